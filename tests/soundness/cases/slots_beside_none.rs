//! error: E0505
// SPDX-License-Identifier: GPL-2.0

//! The values beside a locked one are unlocked when that is gone, and with it what keeps their node.

use crate::kern::{
    fs::Mapping,
    xa::{Beside, LockedSlot}, //
};

pub(crate) fn case(mapping: &Mapping, own: LockedSlot<'_>) {
    let mut guard = mapping.tree().lock();
    let at = own.first();
    let mut slots = own.lock_beside(&mut guard, at, u64::MAX, false, 0, |_, _, _| Beside::Lock);
    drop(own);
    slots.unlock(&guard, |_| ());
}
