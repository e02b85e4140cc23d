//! error: E0599
// SPDX-License-Identifier: GPL-2.0

//! A folio's share count is changed under the lock of any region.

use crate::kern::page::{DevFolio, DevPage, Region};

pub(crate) fn case(folio: DevFolio, elsewhere: DevPage) {
    let region = Region::lock(elsewhere);
    folio.set_share(&region, 0);
}
