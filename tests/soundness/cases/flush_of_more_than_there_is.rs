//! error: E0308
// SPDX-License-Identifier: GPL-2.0

//! Cache lines are written back from a page on, as many as one likes.

use crate::kern::{dax::DaxDevice, page::DevPage};

pub(crate) fn case(device: &DaxDevice, page: DevPage) {
    device.flush(page, 0, 1 << 40);
}
