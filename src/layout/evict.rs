// SPDX-License-Identifier: GPL-2.0

//! Removing entries while faults go on.

use super::{
    super::{
        device::FileDevice,
        stats::Counter,
        tree::{self, Disposition, EntryBatch, Filter, Visitor, WalkAction},
    },
    release::release_batch,
};
use crate::kern::{
    entry::Entry,
    fs::{Inode, Mapping, PageRange},
    vm::LockedVma,
};
use core::cell::Cell;

/// Which entries are evicted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Evicted {
    /// All.
    All,
    /// Those with memory.
    Data,
    /// Those with memory that goes away.
    Gone,
    /// Those that stand for holes.
    Zeroes,
}

/// Unmaps and removes entries while faults go on.
struct Evict<'a> {
    device: FileDevice<'a>,
    which: Evicted,
}

impl Evicted {
    /// Whether an entry that is not locked is one of them.
    fn has(self, entry: Entry<'_>, device: FileDevice<'_>) -> bool {
        match self {
            Self::All => true,
            Self::Data => entry.is_data(),
            Self::Gone => entry.page().is_some_and(|page| device.is_gone(page.pfn())),
            Self::Zeroes => entry.is_zero(),
        }
    }

    /// Whether an entry that is locked may become one of them.
    fn may_have(self, entry: Entry<'_>) -> bool {
        // Memory does not become a hole.
        self != Self::Zeroes || entry.page().is_none()
    }
}

impl Visitor for Evict<'_> {
    const ASKS_DIRTY: bool = true;
    const BATCHES: bool = true;

    fn awaits(&self, entry: Entry<'_>) -> bool {
        self.which.may_have(entry)
    }

    fn look(&mut self, entry: Entry<'_>, _dirty: bool) -> WalkAction {
        if self.which.has(entry, self.device) {
            WalkAction::Work
        } else {
            WalkAction::Next
        }
    }

    fn work(&mut self, batch: &EntryBatch<'_>) -> Disposition {
        batch.mapping().unmap(batch.range());
        release_batch(batch, self.device);
        Disposition::Remove
    }
}

fn evict(mapping: &Mapping, range: PageRange, which: Evicted) {
    let device = FileDevice::of(mapping.host());
    let removed = tree::walk(mapping, range, Filter::Any, &mut Evict { device, which });
    device.add(Counter::EntriesRemoved, removed as u64);
}

/// Looks for entries that there would be something to do about, or to wait for.
struct FindEvicted<'a> {
    device: FileDevice<'a>,
    which: Evicted,
    found: Cell<bool>,
}

impl Visitor for FindEvicted<'_> {
    const ASKS_DIRTY: bool = false;
    const BATCHES: bool = false;

    fn awaits(&self, entry: Entry<'_>) -> bool {
        if self.which.may_have(entry) {
            self.found.set(true);
        }
        false
    }

    fn look(&mut self, entry: Entry<'_>, _dirty: bool) -> WalkAction {
        if self.which.has(entry, self.device) {
            self.found.set(true);
        }
        if self.found.get() {
            WalkAction::Stop
        } else {
            WalkAction::Next
        }
    }

    fn work(&mut self, _batch: &EntryBatch<'_>) -> Disposition {
        // Not reached: nothing is to be worked on.
        Disposition::Clean(0)
    }
}

/// Whether [`evict_range`], or with `zeroes` [`evict_zeroes`], would have an entry to wait for or to
/// remove. Waits for none.
pub(crate) fn has_to_evict(mapping: &Mapping, range: PageRange, zeroes: bool) -> bool {
    let which = match zeroes {
        true => Evicted::Zeroes,
        false => Evicted::All,
    };
    let mut visitor = FindEvicted {
        device: FileDevice::of(mapping.host()),
        which,
        found: Cell::new(false),
    };
    tree::walk(mapping, range, Filter::Any, &mut visitor);
    visitor.found.get()
}

/// Unmaps and removes every entry of the range, dirty ones after they were written back: what they
/// say of the file is about to be wrong. Faults may go on meanwhile (`invalidate_lock` is not
/// held). Sleeps.
pub(crate) fn evict_range(mapping: &Mapping, range: PageRange) {
    evict(mapping, range, Evicted::All);
}

/// Unmaps and removes the entries of the range that stand for holes, before the blocks that are
/// there are written to: a filesystem may have made a hole's blocks written ones along with their
/// neighbours. Sleeps.
pub(crate) fn evict_zeroes(mapping: &Mapping, range: PageRange) {
    evict(mapping, range, Evicted::Zeroes);
}

/// Lets go of a device's memory: unmaps and removes what a file has of it (spec, section 8). With
/// `gone_only` that is what is about to go away: it is not given any more, so no entry is added
/// meanwhile.
///
/// Waits for nobody who holds pages: he may be about to fault on another page of the same entry.
/// That is for [`folio::wait_until_unused`], when no entry is left. Sleeps.
pub(crate) fn evict_device_memory(inode: &Inode, gone_only: bool) {
    if inode.is_dax() {
        let which = match gone_only {
            true => Evicted::Gone,
            false => Evicted::Data,
        };
        evict(inode.mapping(), PageRange::ALL, which);
    }
}

/// Unmaps of the addresses from `start` up to `end` what is not moved as it should be: what entries of
/// the third level may map, and pages that were mapped ahead for writing. Keeps faults out until the
/// address space is unlocked. Sleeps.
pub(crate) fn unmap_immovable(vma: &LockedVma, start: usize, end: usize) {
    let locked = vma.start_write();
    locked.unmap_puds(start, end);
    locked.unmap_ahead(start, end);
}
