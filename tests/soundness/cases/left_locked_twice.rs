//! error: E0382
// SPDX-License-Identifier: GPL-2.0

//! An entry that was left locked is unlocked twice.

use crate::{
    dax::tree,
    kern::{fs::Mapping, xa::LeftLocked}, //
};

pub(crate) fn case(mapping: &Mapping, left: LeftLocked) {
    tree::unlock_left(mapping, left);
    tree::unlock_left(mapping, left);
}
