//! error: E0597
// SPDX-License-Identifier: GPL-2.0

//! A device's memory is written to when the device may be gone.

use crate::kern::dax::{Access, DaxPlace, DaxReadGuard};

pub(crate) fn case(place: DaxPlace<'_>) -> kernel::error::Result {
    let memory = {
        let alive = DaxReadGuard::new();
        place.access(&alive, 1, Access::Normal)?
    };
    memory.zero(0, 4096)
}
