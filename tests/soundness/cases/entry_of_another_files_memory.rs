//! error: does not live long enough
// SPDX-License-Identifier: GPL-2.0

//! An entry is given the memory that another file's device has given for that file.

use crate::{
    dax::tree::LockedEntry,
    kern::{entry::Entry, iomap::IomapIter, order::Order},
};

pub(crate) fn case(own: LockedEntry<'_>, other: LockedEntry<'_>, iter: &IomapIter<'_>) -> bool {
    if let Ok(memory) = iter.pages_for(other.slot(), 0, 1) {
        if let Some(block) = memory.block(0, Order::PTE) {
            own.set(Entry::data(block));
        }
    }
    drop(other);
    let page = own.entry().page();
    page.is_some_and(|page| page.is_poisoned())
}
