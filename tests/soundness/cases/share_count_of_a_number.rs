//! error: E0624
// SPDX-License-Identifier: GPL-2.0

//! A folio that entries point to is made one that nobody uses.

use crate::kern::page::{DevPage, Region};

pub(crate) fn case(page: DevPage) {
    let mut region = Region::lock(page);
    if let Some(folio) = region.folio(page) {
        folio.set_share(0);
    }
}
