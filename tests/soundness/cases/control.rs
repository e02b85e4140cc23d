//! compiles
// SPDX-License-Identifier: GPL-2.0

//! What the layer does all the time: pages from an entry, a folio under its region's lock, memory for an entry.

use crate::{
    dax::{
        folio,
        tree::{self, LockedEntry},
    },
    kern::{
        entry::Entry,
        fs::{Mapping, PageIndex},
        page::{Added, EntryMemory, FileBlock, Pfn, Region, RegionFolio},
    },
};

pub(crate) fn case(entry: Entry, memory: EntryMemory<'_>) -> bool {
    let Some(block) = entry.block() else {
        return false;
    };
    block.first().clear_poison();
    let mut region = Region::lock(block.first());
    if let Some(folio) = region.folio(block.nth(1)) {
        if let Added::Done(association) = folio.add_entry(memory) {
            let _ = region.remove_entry(association.into());
        }
    }
    if let Some(Ok(folio)) = region.folio(block.nth(1)).map(RegionFolio::free) {
        let _ = folio.set_owner(memory);
    }
    let _ = region.form(memory);
    block.pfn().offset(1) == Pfn::from_bits(7)
}

pub(crate) fn give(locked: &LockedEntry<'_>, block: FileBlock<'_>) {
    if let Some(association) = locked.detach() {
        folio::disassociate(association);
    }
    let Some(own) = locked.takes(block) else {
        return;
    };
    if let Ok(association) = folio::associate(own.memory(), false) {
        tree::set_memory(own, association, |entry| entry.writable());
    }
}

pub(crate) fn remove(mapping: &Mapping) -> bool {
    let mut guard = mapping.tree().lock();
    guard.xas(PageIndex::new(0)).erase(folio::disassociate)
}
