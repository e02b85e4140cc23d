//! error: E0624
// SPDX-License-Identifier: GPL-2.0

//! A frame number is turned into a page.

use crate::kern::page::{DevPage, Pfn};

pub(crate) fn case() {
    DevPage::of(Pfn::from_bits(0xdead_beef)).clear_poison();
}
