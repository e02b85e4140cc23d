//! error: E0133
// SPDX-License-Identifier: GPL-2.0

//! Any entry is unlocked by way of a number.

use crate::kern::{
    fs::{Mapping, PageIndex},
    xa::LeftLocked, //
};

pub(crate) fn case(mapping: &Mapping) -> LeftLocked {
    LeftLocked::from_bits(mapping.tree(), PageIndex::new(0), 1)
}
