//! error: cannot move out of `locked` because it is borrowed
// SPDX-License-Identifier: GPL-2.0

//! The memory of an entry that was locked, and is removed.

use crate::dax::tree::LockedEntry;

pub(crate) fn case(locked: LockedEntry<'_>) -> bool {
    let block = locked.entry().block();
    locked.remove();
    block.is_some_and(|block| block.first().is_poisoned())
}
