//! error: borrowed data escapes outside of function
// SPDX-License-Identifier: GPL-2.0

//! A folio that the core has named for a call, kept for longer.

use crate::kern::page::DevFolio;
use kernel::sync::SetOnce;

static KEPT: SetOnce<DevFolio> = SetOnce::new();

pub(crate) fn case(folio: DevFolio) -> bool {
    KEPT.populate(folio)
}

pub(crate) fn later() -> i32 {
    KEPT.as_ref().map_or(0, |folio| folio.refcount())
}
