//! error: E0624
// SPDX-License-Identifier: GPL-2.0

//! A page that is computed with leaves its device's memory.

use crate::kern::page::DevPage;

pub(crate) fn case(page: DevPage) -> DevPage {
    page.next(1 << 40)
}
