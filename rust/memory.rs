// SPDX-License-Identifier: GPL-2.0

//! A device's memory as something that may go away while others sleep on it.
//!
//! As a rule, the entry that points to a device's `struct page`s keeps them: a device that goes away waits
//! until there is none. A task that sleeps until a folio is idle has no entry, or one that may be removed
//! meanwhile. It holds a [`Stay`] instead, which the device waits for as well, and is woken when the device
//! goes.

use super::{
    compat::{
        new_srcu,
        Srcu,
        SrcuGuard, //
    },
    once::Once,
    page::{PageRun, Pfn}, //
};
use kernel::{
    prelude::*,
    sync::atomic::{Atomic, Release},
};

/// Whose page map pages are of: to be compared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct MemoryOwner(pub(super) usize);

/// Pages of one page map that follow each other.
pub(crate) struct PageMapRange {
    pub(crate) run: PageRun,
    pub(crate) owner: MemoryOwner,
    gone: Atomic<bool>,
}

impl PageMapRange {
    pub(crate) fn new(run: PageRun, owner: MemoryOwner) -> Self {
        Self {
            run,
            owner,
            gone: Atomic::new(false),
        }
    }

    pub(crate) fn has(&self, pfn: Pfn) -> bool {
        pfn.to_bits().wrapping_sub(self.run.pfn().to_bits()) < self.run.pages()
    }

    fn is_gone(&self) -> bool {
        // Pairs with `retire`: whoever stays and does not see it yet is waited for.
        self.gone.load_acquire()
    }
}

/// The memory of a device.
#[pin_data]
pub(crate) struct DeviceMemory {
    ranges: KVec<PageMapRange>,
    #[pin]
    stays: Srcu,
}

impl DeviceMemory {
    /// Memory of these ranges. Sleeps. Fails for want of memory.
    pub(crate) fn new(ranges: KVec<PageMapRange>) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            ranges,
            stays <- new_srcu(),
        })
    }

    /// Keeps the `struct page`s of all folios of the memory that are found from now on, as long as the
    /// result lives. Does not sleep.
    pub(crate) fn stay(&self) -> Stay<'_> {
        Stay {
            memory: self,
            _read: self.stays.read_lock(),
        }
    }

    /// Whether the frame is going away, or is gone.
    pub(crate) fn is_gone(&self, pfn: Pfn) -> bool {
        let mut ranges = self.ranges.iter();
        ranges.any(|range| range.has(pfn) && range.is_gone())
    }

    /// Whether some of the memory is going away, or is gone.
    pub(crate) fn is_gone_in_part(&self) -> bool {
        self.ranges.iter().any(PageMapRange::is_gone)
    }

    /// Whether the frame is one of the memory, and not going away.
    pub(crate) fn has(&self, pfn: Pfn) -> bool {
        let mut ranges = self.ranges.iter();
        ranges.any(|range| range.has(pfn) && !range.is_gone())
    }

    /// The ranges of one owner.
    pub(crate) fn of(&self, owner: MemoryOwner) -> impl Iterator<Item = &PageMapRange> {
        self.ranges.iter().filter(move |range| range.owner == owner)
    }

    /// Whether the owner has memory here that is not gone. Owners are told apart by numbers, and that of
    /// one that is gone may be given to another.
    pub(crate) fn is_owned_by(&self, owner: MemoryOwner) -> bool {
        self.of(owner).any(|range| !range.is_gone())
    }

    /// Says that the memory of one owner goes away, and waits until nobody is left who does not know
    /// and stays. Sleeps, and cannot be interrupted.
    ///
    /// Held: nothing that those who stay may need to come to an end.
    pub(crate) fn retire(&self, owner: MemoryOwner) {
        for range in self.of(owner) {
            // Pairs with `is_gone`.
            range.gone.store(true, Release);
        }
        // Later callers see that it is gone.
        self.stays.synchronize();
    }
}

/// That the `struct page`s of a device stay, for those who look at folios that they do not keep by a
/// locked entry. The device does not wait for long: whoever has this looks regularly whether it goes
/// ([`Stay::is_over`]).
#[must_use = "the memory may go at once"]
pub(crate) struct Stay<'a> {
    memory: &'a DeviceMemory,
    _read: SrcuGuard<'a>,
}

impl Stay<'_> {
    /// Whether the frame is going away, so that this has to end soon; or is not of the memory at all. If
    /// not, its page stays as long as this: the device says first that it goes, and waits then.
    pub(crate) fn is_over(&self, pfn: Pfn) -> bool {
        !self.memory.has(pfn)
    }
}
