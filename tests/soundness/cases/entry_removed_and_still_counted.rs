//! error: E0061
// SPDX-License-Identifier: GPL-2.0

//! An entry is removed, and nobody gets what it stood for.

use crate::kern::fs::{Mapping, PageIndex};

pub(crate) fn case(mapping: &Mapping) -> bool {
    let mut guard = mapping.tree().lock();
    guard.xas(PageIndex::new(0)).erase()
}
