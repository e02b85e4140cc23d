//! error: E0505
// SPDX-License-Identifier: GPL-2.0

//! A folio that was found under its region's lock is changed when that is gone.

use crate::kern::page::{DevPage, Region};

pub(crate) fn case(page: DevPage) {
    let region = Region::lock(page);
    if let Some(folio) = region.folio(page) {
        drop(region);
        folio.set_share(0);
    }
}
