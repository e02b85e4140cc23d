//! error: E0505
// SPDX-License-Identifier: GPL-2.0

//! A state is used after its tree's lock was dropped and taken again.

use crate::kern::fs::{Mapping, PageIndex};

pub(crate) fn case(mapping: &Mapping) -> bool {
    let mut guard = mapping.tree().lock();
    let mut xas = guard.xas(PageIndex::new(0));
    drop(guard);
    let _guard = mapping.tree().lock();
    xas.erase(drop)
}
