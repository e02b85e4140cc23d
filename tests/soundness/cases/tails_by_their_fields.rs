//! error: E0451
// SPDX-License-Identifier: GPL-2.0

//! Pages are said to be tails without a head.

use crate::kern::page::{GiganticLock, PageBlock, Tails};

pub(crate) fn case(block: PageBlock, gigantic: &mut GiganticLock) {
    drop(Tails {
        block,
        regions: 512,
        _gigantic: gigantic,
    });
}
