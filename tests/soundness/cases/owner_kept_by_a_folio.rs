//! error: E0624
// SPDX-License-Identifier: GPL-2.0

//! That a folio keeps its owner is ended by somebody who knows the folio only.

use crate::kern::page::{DevFolio, KeptOwner};

pub(crate) fn case(folio: DevFolio) {
    drop(KeptOwner::from_left(folio));
}
