//! error: E0308
// SPDX-License-Identifier: GPL-2.0

//! A data entry is made of a frame number.

use crate::kern::{entry::Entry, page::Pfn};

pub(crate) fn case() -> Entry {
    Entry::data(Pfn::from_bits(7))
}
