//! error: E0382
// SPDX-License-Identifier: GPL-2.0

//! A state is used after the walk was paused.

use crate::kern::fs::{Mapping, PageIndex};

pub(crate) fn case(mapping: &Mapping) -> bool {
    let mut guard = mapping.tree().lock();
    let mut xas = guard.xas(PageIndex::new(0));
    let paused = xas.pause();
    drop(paused);
    xas.erase(drop)
}
