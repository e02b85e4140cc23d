//! error: mismatched types
// SPDX-License-Identifier: GPL-2.0

//! An entry is given memory whose folio counts the entry of another file, which owns it.

use crate::{
    dax::tree::{self, LockedEntry},
    kern::page::FileBlock,
};

pub(crate) fn case(of_one: &LockedEntry<'_>, locked: &LockedEntry<'_>, block: FileBlock<'_>) {
    if let (Some(association), Some(own)) = (of_one.detach(), locked.takes(block)) {
        tree::set_memory(own, association, |entry| entry);
    }
}
