//! error: E0277
// SPDX-License-Identifier: GPL-2.0

//! A spinlock is dropped by another task than the one that has taken it.

use crate::kern::page::{DevPage, Region};

fn give<T: Send>(_: T) {}

pub(crate) fn case(page: DevPage) {
    give(Region::lock(page));
}
