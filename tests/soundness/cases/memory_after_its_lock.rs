//! error: E0597
// SPDX-License-Identifier: GPL-2.0

//! A device's memory is written to when the device may be gone.

use crate::kern::dax::{Access, DaxDevice, DaxReadGuard};

pub(crate) fn case(device: &DaxDevice) -> kernel::error::Result {
    let memory = {
        let alive = DaxReadGuard::new();
        device.access(&alive, 0, 1, Access::Normal)?
    };
    memory.zero(0, 4096)
}
