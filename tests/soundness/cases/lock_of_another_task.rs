//! error: E0277
// SPDX-License-Identifier: GPL-2.0

//! A tree's lock is dropped by another task than the one that has taken it.

use crate::kern::fs::Mapping;

fn give<T: Send>(_: T) {}

pub(crate) fn case(mapping: &Mapping) {
    give(mapping.tree().lock());
}
