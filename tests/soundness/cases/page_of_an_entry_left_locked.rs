//! error: no method named `is_poisoned` found
// SPDX-License-Identifier: GPL-2.0

//! The page of an entry that somebody else unlocks.

use crate::{
    dax::poison,
    kern::fs::{Mapping, PageIndex},
};

pub(crate) fn case(mapping: &Mapping, index: PageIndex) -> bool {
    let (cookie, page) = poison::lock_index(mapping, index);
    poison::unlock_index(mapping, cookie);
    page.is_some_and(|page| page.is_poisoned())
}
