//! error: E0451
// SPDX-License-Identifier: GPL-2.0

//! A token for a locked value is made of nothing.

use crate::kern::{fs::PageIndex, xa::LockedSlot};

pub(crate) fn case() -> LockedSlot<'static> {
    LockedSlot {
        tree: None,
        first: PageIndex::new(0),
        node: core::ptr::null_mut(),
        place: panic!(),
        word: core::cell::Cell::new(1),
    }
}
