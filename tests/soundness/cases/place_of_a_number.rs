//! error: E0624
// SPDX-License-Identifier: GPL-2.0

//! A page of a device is used of which nobody has said that the device has it.

use crate::kern::dax::{DaxDevice, DaxPlace};

pub(crate) fn case(device: &DaxDevice) -> DaxPlace<'_> {
    DaxPlace::new(device, 0xdead_beef)
}
