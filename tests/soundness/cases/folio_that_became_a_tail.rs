//! error: E0499
// SPDX-License-Identifier: GPL-2.0

//! A page that was a folio is changed as one when it has become the middle of another.

use crate::kern::page::{EntryMemory, Region};

pub(crate) fn case(memory: EntryMemory<'_>) {
    let mut region = Region::lock(memory.block().first());
    if let Some(folio) = region.folio(memory.block().nth(1)) {
        let _ = region.form(memory);
        folio.add_entry(memory);
    }
}
