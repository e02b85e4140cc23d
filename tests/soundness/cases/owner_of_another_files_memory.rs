//! error: E0451
// SPDX-License-Identifier: GPL-2.0

//! A folio is given to a file that it is not of.

use crate::kern::{
    fs::{Mapping, PageIndex},
    page::{EntryMemory, PageBlock, Region},
};

pub(crate) fn case(block: PageBlock<'_>, mapping: &Mapping) {
    let memory = EntryMemory {
        block,
        mapping,
        index: PageIndex::new(0),
    };
    let _ = Region::lock(block.first()).form(memory);
}
