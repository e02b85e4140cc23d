//! error: no method named `iter` found
// SPDX-License-Identifier: GPL-2.0

//! Pages of a block device, which may be removed at any time.

use crate::kern::bdev::BlockDevice;

pub(crate) fn case(bdev: &BlockDevice) -> bool {
    bdev.memory(0)
        .is_some_and(|run| run.iter().any(|page| page.is_marked()))
}
