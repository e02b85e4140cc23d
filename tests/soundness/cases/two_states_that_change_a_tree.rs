//! error: E0499
// SPDX-License-Identifier: GPL-2.0

//! A state stands in a node that another one removes.

use crate::kern::fs::{Mapping, PageIndex};

pub(crate) fn case(mapping: &Mapping) -> bool {
    let mut guard = mapping.tree().lock();
    let mut first = guard.xas(PageIndex::new(0));
    let mut second = guard.xas(PageIndex::new(0));
    first.erase(drop) && second.erase(drop)
}
