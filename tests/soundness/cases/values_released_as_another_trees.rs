//! error: lifetime may not live long enough
// SPDX-License-Identifier: GPL-2.0

//! Locked values become ones that have another file's memory.

use crate::{
    dax::tree::LockedEntry,
    kern::xa::{LockedRange, Release, XaState},
};

pub(crate) fn case(
    range: &mut LockedRange<'_>,
    xas: &mut XaState<'_, '_>,
    other: LockedEntry<'_>,
) {
    range.release(xas, None, |_, _| Release::Unlock(other.entry().unlocked(), false));
}
