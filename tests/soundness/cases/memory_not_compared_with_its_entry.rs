//! error: mismatched types
// SPDX-License-Identifier: GPL-2.0

//! An entry is given memory that was not compared with its file.

use crate::{dax::tree, kern::page::FileBlock};

pub(crate) fn case(block: FileBlock<'_>) {
    tree::set_memory(block, |entry| entry);
}
