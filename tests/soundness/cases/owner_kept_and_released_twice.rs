//! error: E0382
// SPDX-License-Identifier: GPL-2.0

//! That a folio keeps its owner is ended twice, the second time on account of somebody else.

use crate::kern::page::KeptOwner;

pub(crate) fn case(kept: KeptOwner) {
    drop(kept);
    drop(kept);
}
