//! error: E0599
// SPDX-License-Identifier: GPL-2.0

//! A folio gets an owner, and whoever has it already is forgotten.

use crate::kern::page::{EntryMemory, Region};

pub(crate) fn case(memory: EntryMemory<'_>) {
    let page = memory.block().first();
    let mut region = Region::lock(page);
    if let Some(folio) = region.folio(page) {
        let _ = folio.set_owner(memory);
    }
}
