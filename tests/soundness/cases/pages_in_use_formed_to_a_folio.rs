//! error: E0061
// SPDX-License-Identifier: GPL-2.0

//! Pages whose share counts and references are not looked at are made a folio.

use crate::kern::page::{EntryMemory, Region};

pub(crate) fn case(memory: EntryMemory<'_>) {
    let mut region = Region::lock(memory.block().first());
    let _ = region.form(memory, true);
}
