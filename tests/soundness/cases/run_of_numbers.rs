//! error: E0624
// SPDX-License-Identifier: GPL-2.0

//! Frame numbers are turned into a run of pages.

use crate::kern::page::{PageRun, Pfn};

pub(crate) fn case() -> PageRun {
    PageRun::from_frames(Pfn::from_bits(0), 1 << 20)
}
