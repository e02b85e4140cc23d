//! error: E0499
// SPDX-License-Identifier: GPL-2.0

//! A folio that nobody used when it was looked at gets two owners.

use crate::kern::page::{EntryMemory, Region, RegionFolio};

pub(crate) fn case(a: EntryMemory<'_>, b: EntryMemory<'_>) {
    let page = a.block().first();
    let mut region = Region::lock(page);
    let one = region.folio(page).map(RegionFolio::free);
    let other = region.folio(page).map(RegionFolio::free);
    if let (Some(Ok(one)), Some(Ok(other))) = (one, other) {
        let _ = (one.set_owner(a), other.set_owner(b));
    }
}
