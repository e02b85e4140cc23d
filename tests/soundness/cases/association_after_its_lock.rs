//! error: E0505
// SPDX-License-Identifier: GPL-2.0

//! What a removed entry stood for is taken off its folio when the tree's lock is gone, and maybe the pages.

use crate::{
    dax::folio,
    kern::fs::{Mapping, PageIndex},
};

pub(crate) fn case(mapping: &Mapping) {
    let mut guard = mapping.tree().lock();
    let mut kept = None;
    guard
        .xas(PageIndex::new(0))
        .erase(|association| kept = Some(association));
    drop(guard);
    if let Some(association) = kept {
        folio::disassociate(association);
    }
}
