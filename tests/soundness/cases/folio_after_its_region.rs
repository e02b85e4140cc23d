//! error: E0505
// SPDX-License-Identifier: GPL-2.0

//! A folio that was found under its region's lock is changed when that is gone.

use crate::kern::page::{EntryMemory, Region};

pub(crate) fn case(memory: EntryMemory<'_>) {
    let page = memory.block().first();
    let mut region = Region::lock(page);
    if let Some(folio) = region.folio(page) {
        drop(region);
        folio.add_entry(memory);
    }
}
