//! error: E0505
// SPDX-License-Identifier: GPL-2.0

//! The tails of what will be a folio of 1 GiB are kept when others may form folios of them.

use crate::kern::page::{GiganticLock, PageBlock};

pub(crate) fn case(block: PageBlock) -> bool {
    let mut gigantic = GiganticLock::lock();
    let tails = gigantic.begin(block);
    drop(gigantic);
    tails.is_some_and(|tails| tails.next().is_some())
}
