//! error: E0505
// SPDX-License-Identifier: GPL-2.0

//! What a locked entry stood for is taken off its folio when that is unlocked, and maybe the pages are gone.

use crate::dax::{folio, tree::LockedEntry};

pub(crate) fn case(locked: LockedEntry<'_>) {
    if let Some(association) = locked.detach() {
        drop(locked);
        folio::disassociate(association);
    }
}
