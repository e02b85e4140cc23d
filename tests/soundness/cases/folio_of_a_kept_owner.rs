//! error: no method named `index` found
// SPDX-License-Identifier: GPL-2.0

//! A folio that is known by its owner being kept only, which does not keep its device.

use crate::kern::{fs::PageIndex, page::KeptOwner};

pub(crate) fn case(kept: &KeptOwner) -> PageIndex {
    kept.index()
}
