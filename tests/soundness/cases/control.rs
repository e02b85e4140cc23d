//! compiles
// SPDX-License-Identifier: GPL-2.0

//! What the layer does all the time: pages from an entry, a folio under its region's lock.

use crate::kern::{
    entry::Entry,
    fs::{Mapping, PageIndex},
    page::{Pfn, Region},
};

pub(crate) fn case(entry: Entry, mapping: &Mapping) -> bool {
    let Some(block) = entry.block() else {
        return false;
    };
    block.first().clear_poison();
    let region = Region::lock(block.first());
    if let Some(folio) = region.folio(block.nth(1)) {
        folio.set_owner(mapping, PageIndex::new(0));
    }
    block.pfn().offset(1) == Pfn::from_bits(7)
}
