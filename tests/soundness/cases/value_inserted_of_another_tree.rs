//! error: does not live long enough
// SPDX-License-Identifier: GPL-2.0

//! A value with memory is inserted into another file's tree.

use crate::{
    dax::tree::LockedEntry,
    kern::xa::{Reserve, Tree},
};

pub(crate) fn case(tree: &Tree, other: LockedEntry<'_>) -> bool {
    let mut guard = tree.lock();
    let mut xas = guard.xas(other.first());
    let inserted = xas.insert(other.entry().locked(), &mut Reserve::none());
    drop(other);
    inserted.is_ok()
}
