//! error: lifetime may not live long enough
// SPDX-License-Identifier: GPL-2.0

//! Locked values become ones that have another file's memory.

use crate::{
    dax::tree::LockedEntry,
    kern::xa::{NewValues, Release, XaState},
};

pub(crate) fn case(
    values: &mut NewValues<'_, '_>,
    xas: &mut XaState<'_, '_>,
    other: LockedEntry<'_>,
) {
    values.release(xas, |_, _, _| Release::Unlock(other.entry().unlocked(), false));
}
