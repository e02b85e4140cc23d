//! error: cannot move out of `guard` because it is borrowed
// SPDX-License-Identifier: GPL-2.0

//! The page of an entry that anybody may have removed since.

use crate::kern::{
    entry::Entry,
    fs::{Mapping, PageIndex},
};

pub(crate) fn case(mapping: &Mapping, index: PageIndex) -> usize {
    let mut guard = mapping.tree().lock();
    let value = guard.xas(index).load();
    let page = value.and_then(|value| Entry::from_raw(value).0.page());
    drop(guard);
    page.map_or(0, |page| page.folio().owner())
}
