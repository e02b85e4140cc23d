//! error: E0423
// SPDX-License-Identifier: GPL-2.0

//! An entry that there is not is taken off a folio that others have.

use crate::kern::page::{Association, PageBlock, Region};

pub(crate) fn case(block: PageBlock<'_>) {
    let _ = Region::lock(block.first()).remove_entry(Association(block));
}
