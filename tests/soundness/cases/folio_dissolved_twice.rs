//! error: E0382
// SPDX-License-Identifier: GPL-2.0

//! What was a large folio is taken apart once more.

use crate::kern::page::{DevPage, Region};

pub(crate) fn case(page: DevPage) {
    let mut region = Region::lock(page);
    if let Some(folio) = region.folio(page) {
        folio.dissolve();
        folio.dissolve();
    }
}
