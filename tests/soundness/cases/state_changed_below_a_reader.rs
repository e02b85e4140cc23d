//! error: E0502
// SPDX-License-Identifier: GPL-2.0

//! A position to look only stands in a node that is removed.

use crate::kern::fs::{Mapping, PageIndex};

pub(crate) fn case(mapping: &Mapping) -> bool {
    let mut guard = mapping.tree().lock();
    let mut xas = guard.xas(PageIndex::new(0));
    let mut reader = xas.reader(PageIndex::new(0));
    xas.erase(drop);
    reader.at(PageIndex::new(1)).is_some()
}
