//! error: E0382
// SPDX-License-Identifier: GPL-2.0

//! Two tokens stand for one locked value.

use crate::kern::xa::LockedSlot;

pub(crate) fn case<'t>(slot: LockedSlot<'t>) -> [LockedSlot<'t>; 2] {
    [slot, slot]
}
