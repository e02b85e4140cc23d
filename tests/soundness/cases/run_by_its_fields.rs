//! error: E0451
// SPDX-License-Identifier: GPL-2.0

//! A run of pages is made longer than it is.

use crate::kern::page::PageRun;

pub(crate) fn case(run: PageRun) -> PageRun {
    PageRun {
        pages: 1 << 40,
        ..run
    }
}
