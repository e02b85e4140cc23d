//! error: E0502
// SPDX-License-Identifier: GPL-2.0

//! A page that was a folio is changed as one when it has become the middle of another.

use crate::kern::page::{PageBlock, Region};

pub(crate) fn case(block: PageBlock) {
    let mut region = Region::lock(block.first());
    if let Some(folio) = region.folio(block.nth(1)) {
        let _ = region.form(block, false);
        folio.set_share(1);
    }
}
