//! error: E0451
// SPDX-License-Identifier: GPL-2.0

//! A page of a device is moved to another one.

use crate::kern::dax::DaxPlace;

pub(crate) fn case(place: DaxPlace<'_>) -> DaxPlace<'_> {
    DaxPlace {
        page: 0xdead_beef,
        ..place
    }
}
