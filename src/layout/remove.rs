// SPDX-License-Identifier: GPL-2.0

//! Removing entries, with the `invalidate_lock` held exclusively.

use super::{
    super::{
        device::FileDevice,
        folio::{self, FolioReleaseBatch},
        stats::Counter,
        tree::{self, Disposition, EntryBatch, Filter, Visitor, WalkAction},
    },
    busy::{busy_folio, held},
    release::{discard, release_batch, unmap_and_release},
};
use crate::kern::{
    entry::{Entry, Kind},
    fs::{Mapping, PageIndex, PageRange},
    order::Order,
    xa::Mark,
};
use kernel::pr_err_once;

/// The largest order of an entry that is removed, and taken off its pages, under the tree's lock.
const REMOVE_AT_ONCE: Order = Order::from_bits(4);

/// Removes entries, writing back what is dirty.
struct Remove<'a> {
    device: FileDevice<'a>,
    mapping: &'a Mapping,
    /// The caller has unmapped the range and keeps faults out.
    unmapped: bool,
    /// The content goes away with the file: nobody will miss what is not written back.
    forget: bool,
}

impl Remove<'_> {
    /// Whether a page table may have something of an entry that is locked, or that nobody can lock at
    /// this moment.
    #[inline]
    fn may_be_mapped(&self, entry: Entry<'_>) -> bool {
        match entry.kind() {
            Kind::Data(block) => block.first().folio().mapcount() != 0,
            // How often zeroes are mapped for a file is not known.
            Kind::Zero => !self.unmapped && self.mapping.has_vmas(),
            Kind::Empty => false,
        }
    }
}

impl Visitor for Remove<'_> {
    const ASKS_DIRTY: bool = true;
    const BATCHES: bool = true;

    #[inline]
    fn look(&mut self, entry: Entry<'_>, dirty: bool) -> WalkAction {
        let dirty = dirty && !self.forget;
        match entry.kind() {
            _ if self.may_be_mapped(entry) => WalkAction::Work,
            Kind::Data(_) if dirty || entry.order() > REMOVE_AT_ONCE => WalkAction::Work,
            Kind::Data(block) if !folio::is_small(block.first()) => WalkAction::Work,
            _ => WalkAction::Remove,
        }
    }

    fn work(&mut self, batch: &EntryBatch<'_>) -> Disposition {
        if batch.iter().any(|(_, entry, _)| self.may_be_mapped(entry)) {
            // A store between the flush and the unmapping must not be lost, and no page stay
            // mapped that is not the file's any more.
            batch.mapping().unmap(batch.range());
        }
        if self.forget {
            let mut released = FolioReleaseBatch::new();
            batch.detach(|association, _| released.add(association));
        } else {
            release_batch(batch, self.device);
        }
        Disposition::Remove
    }
}

pub(super) fn remove_range(mapping: &Mapping, range: PageRange, unmapped: bool, forget: bool) {
    let device = FileDevice::of(mapping.host());
    let mut visitor = Remove {
        device,
        mapping,
        unmapped,
        forget,
    };
    let removed = tree::walk(mapping, range, Filter::Any, &mut visitor);
    device.add(Counter::EntriesRemoved, removed as u64);
}

/// Unmaps and removes every entry of the range, dirty ones after they were written back
/// (`dax_delete_mapping_range`). Sleeps.
pub(crate) fn delete_range(mapping: &Mapping, range: PageRange) {
    remove_range(mapping, range, false, false);
}

/// Removes what a file has in the range, as the filesystem takes for done: unmaps it, and writes back
/// what is dirty. With `may_stay`, nothing is removed if somebody holds a page of it: to be waited for he
/// would have to be let fault on the next, and the caller looks whether there is something left. Sleeps.
pub(crate) fn cut(mapping: &Mapping, range: PageRange, may_stay: bool) {
    if !may_stay || busy_folio(mapping, range).is_none() {
        remove_range(mapping, range, false, false);
    }
}

/// Removes the entry that covers `index` (`dax_delete_mapping_entry`). Returns whether there was
/// one. Sleeps.
pub(crate) fn delete_entry(mapping: &Mapping, index: PageIndex) -> bool {
    match tree::lock_present(mapping, index) {
        Some(locked) => {
            discard(locked);
            true
        }
        None => {
            pr_err_once!("asked to remove an entry that is not there\n");
            false
        }
    }
}

/// Removes the entry that covers `index` if it has nothing to write back
/// (`dax_invalidate_mapping_entry_sync`). Returns whether it was removed. Sleeps.
///
/// The caller unmaps the range afterwards. That is too late: up to then a page would be mapped that no
/// entry points to.
pub(crate) fn invalidate_entry(mapping: &Mapping, index: PageIndex) -> bool {
    let Some(locked) = tree::lock_present(mapping, index) else {
        return false;
    };
    // Nor if it is in use: what somebody holds stays the file's (spec, R2).
    if locked.is_dirty() || locked.has_mark(Mark::ToWrite) || held(&locked).is_some() {
        return false;
    }
    unmap_and_release(&locked);
    locked.remove();
    true
}
