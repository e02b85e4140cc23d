//! error: E0451
// SPDX-License-Identifier: GPL-2.0

//! A folio is said to be of a region that is locked.

use crate::kern::page::{DevFolio, RegionFolio};

pub(crate) fn case(folio: DevFolio<'_>) {
    let taken: RegionFolio<'_, '_> = RegionFolio {
        folio,
        _region: core::marker::PhantomData,
    };
    taken.dissolve();
}
