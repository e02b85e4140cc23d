//! error: mismatched types
// SPDX-License-Identifier: GPL-2.0

//! An entry is given memory that was not compared with its file.

use crate::{
    dax::tree,
    kern::page::{FileBlock, NewAssociation},
};

pub(crate) fn case(block: FileBlock<'_>, association: NewAssociation<'_>) {
    tree::set_memory(block, association, |entry| entry);
}
