//! error: E0451
// SPDX-License-Identifier: GPL-2.0

//! A folio is said to be of a region that is locked.

use crate::kern::page::{DevFolio, RegionFolio};

pub(crate) fn case(folio: DevFolio) {
    let taken: RegionFolio<'static> = RegionFolio {
        folio,
        _region: core::marker::PhantomData,
    };
    taken.set_share(0);
}
