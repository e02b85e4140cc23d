//! error: mismatched types
// SPDX-License-Identifier: GPL-2.0

//! An entry of memory that any device has given, for as long as its lock is held, is kept for longer.

use crate::{
    dax::tree::LockedEntry,
    kern::{
        dax::{Access, DaxPlace, DaxReadGuard},
        entry::Entry,
        order::Order,
    },
};

pub(crate) fn case(mut locked: LockedEntry<'_>, place: DaxPlace<'_>) -> bool {
    let alive = DaxReadGuard::new();
    if let Ok(memory) = place.access(&alive, 1, Access::Normal) {
        if let Some(block) = memory.run().block(0, Order::PTE) {
            locked.set(Entry::data(block));
        }
    }
    drop(alive);
    let page = locked.entry().page();
    page.is_some_and(|page| page.is_poisoned())
}
