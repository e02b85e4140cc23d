//! error: E0599
// SPDX-License-Identifier: GPL-2.0

//! A folio gets an owner, and no lock is held.

use crate::kern::{
    fs::{Mapping, PageIndex},
    page::DevFolio,
};

pub(crate) fn case(folio: DevFolio, mapping: &Mapping) {
    folio.set_owner(mapping, PageIndex::new(0));
}
