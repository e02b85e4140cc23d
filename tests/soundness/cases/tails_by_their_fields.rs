//! error: E0451
// SPDX-License-Identifier: GPL-2.0

//! Pages are said to be tails without a head.

use crate::kern::page::{Giant, PageBlock, Tails};

pub(crate) fn case(block: PageBlock, giant: &mut Giant) {
    drop(Tails {
        block,
        regions: 512,
        _giant: giant,
    });
}
