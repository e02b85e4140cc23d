//! error: lifetime may not live long enough
// SPDX-License-Identifier: GPL-2.0

//! An entry is changed to one that has another file's memory.

use crate::dax::tree::LockedEntry;

pub(crate) fn case(own: LockedEntry<'_>, other: LockedEntry<'_>) -> bool {
    own.change(|_| other.entry());
    drop(other);
    let page = own.entry().page();
    page.is_some_and(|page| page.is_poisoned())
}
