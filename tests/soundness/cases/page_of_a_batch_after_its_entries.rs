//! error: cannot move out of `batch` because it is borrowed
// SPDX-License-Identifier: GPL-2.0

//! A page of entries that were locked together, and are not any more.

use crate::dax::tree::EntryBatch;

pub(crate) fn case(batch: EntryBatch<'_>) -> bool {
    let page = batch.iter().find_map(|(_, entry, _)| entry.page());
    drop(batch);
    page.is_some_and(|page| page.is_poisoned())
}
