//! error: E0624
// SPDX-License-Identifier: GPL-2.0

//! Frame numbers are turned into the pages of an entry.

use crate::kern::{
    order::Order,
    page::{PageBlock, Pfn},
};

pub(crate) fn case() -> PageBlock {
    PageBlock::from_frames(Pfn::from_bits(1), Order::PUD)
}
