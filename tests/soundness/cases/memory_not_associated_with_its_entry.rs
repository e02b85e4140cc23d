//! error: mismatched types
// SPDX-License-Identifier: GPL-2.0

//! An entry is given memory whose folio does not count it.

use crate::{
    dax::tree::{self, LockedEntry},
    kern::page::FileBlock,
};

pub(crate) fn case(locked: &LockedEntry<'_>, block: FileBlock<'_>) {
    if let Some(own) = locked.takes(block) {
        let memory = own.memory();
        tree::set_memory(own, memory, |entry| entry);
    }
}
