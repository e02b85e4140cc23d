// SPDX-License-Identifier: GPL-2.0

//! A device's memory as something that may go away while others sleep on it.
//!
//! As a rule, the entry that points to a device's `struct page`s keeps them: a device that goes away waits
//! until there is none. A task that sleeps until a folio is idle has no entry, or one that may be removed
//! meanwhile. It holds a [`Stay`] instead, which the device waits for as well, and is woken when the device
//! goes.

use super::{
    bdev::GoingDevice,
    bindings,
    compat::{
        new_srcu,
        Srcu,
        SrcuGuard, //
    },
    once::Once,
    page::{DevFolio, Frames, PageRun, Pfn}, //
};
use kernel::{
    prelude::*,
    sync::atomic::{Atomic, Release},
};

/// Whose page map pages are of: to be compared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct MemoryOwner(pub(super) usize);

/// Frames of one page map that follow each other.
///
/// # Invariants
///
/// They had pages when this was made.
pub(crate) struct PageMapRange {
    frames: Frames,
    pub(crate) owner: MemoryOwner,
    /// Stores last only when the device's host has flushed them.
    pub(crate) asynchronous: bool,
    gone: Atomic<bool>,
}

impl PageMapRange {
    /// # Safety
    ///
    /// The frames are of a page map of this owner.
    pub(super) unsafe fn new(frames: Frames, owner: MemoryOwner, asynchronous: bool) -> Self {
        // INVARIANT: By this function's safety requirements.
        Self {
            frames,
            owner,
            asynchronous,
            gone: Atomic::new(false),
        }
    }

    /// The first frame.
    pub(crate) fn first(&self) -> Pfn {
        self.frames.first
    }

    pub(crate) fn has(&self, pfn: Pfn) -> bool {
        self.frames.offset_of(pfn).is_some()
    }

    fn is_gone(&self) -> bool {
        // Pairs with `retire`: whoever stays and does not see it yet is waited for.
        self.gone.load_acquire()
    }
}

/// The memory of a device.
///
/// # Invariants
///
/// The pages of a range are there as long as it is not marked as gone, and those of one that is marked as long
/// as somebody stays who has come before: its device says so, and waits, before it goes
/// ([`DeviceMemory::retire`]).
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
    fn of(&self, owner: MemoryOwner) -> impl Iterator<Item = &PageMapRange> {
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

    /// The same for a device that goes. `None` if it has no memory here that was not gone before.
    ///
    /// Held: as above.
    pub(crate) fn retire_for<'a>(&'a self, device: &'a GoingDevice<'_>) -> Option<Retired<'a>> {
        let owner = device.memory_owner();
        if !self.is_owned_by(owner) {
            return None;
        }
        self.retire(owner);
        // INVARIANT: It was there up to now, and the device goes after this call.
        Some(Retired {
            memory: self,
            owner,
        })
    }
}

/// Memory that goes away with a device. Dropping this waits for those who have a page of it that no entry has any
/// more: who has found it in a tree whose lock he has, for which a grace period of RCU has to pass; and who evicts
/// a file, and stays.
///
/// # Invariants
///
/// The pages of the owner's ranges are there for `'a`: their device goes later.
pub(crate) struct Retired<'a> {
    memory: &'a DeviceMemory,
    owner: MemoryOwner,
}

impl Retired<'_> {
    /// The pages, in contiguous pieces.
    pub(crate) fn runs(&self) -> impl Iterator<Item = PageRun<'_>> {
        let ranges = self.memory.of(self.owner);
        // SAFETY: By the type invariant. A page map has pages.
        ranges.map(|range| unsafe {
            PageRun::from_frames(range.frames.first, range.frames.pages.max(1))
        })
    }
}

impl Drop for Retired<'_> {
    fn drop(&mut self) {
        self.memory.stays.synchronize();
        // SAFETY: The task may sleep: it has waited for others.
        unsafe { bindings::synchronize_rcu() };
    }
}

/// That the `struct page`s of a device stay, for those who look at folios that they do not keep by a
/// locked entry. The device does not wait for long: whoever has this looks regularly whether it goes
/// ([`Stay::is_over`]).
///
/// # Invariants
///
/// `_read` is held for the memory's domain. By the invariant of [`DeviceMemory`] the pages of all ranges that are
/// seen not to be gone while it is held are there as long.
#[must_use = "the memory may go at once"]
pub(crate) struct Stay<'a> {
    memory: &'a DeviceMemory,
    _read: SrcuGuard<'a>,
}

impl Stay<'_> {
    /// The pages of these frames, or the first of them.
    ///
    /// Errors: `EIO` if they are going away, or are not of the memory at all.
    pub(crate) fn run(&self, frames: Frames) -> Result<PageRun<'_>> {
        let (range, offset) = self
            .memory
            .ranges
            .iter()
            .filter(|range| !range.is_gone())
            .find_map(|range| Some((range, range.frames.offset_of(frames.first)?)))
            .ok_or(EIO)?;
        let pages = frames.pages.clamp(1, range.frames.pages - offset);
        // SAFETY: By the type invariant the pages of the range, which is not gone, are there for as long as
        // this is borrowed. These are some of them, at least one.
        Ok(unsafe { PageRun::from_frames(frames.first, pages) })
    }

    /// The folio that begins, or has begun, at a frame.
    ///
    /// Errors: as for [`Stay::run`].
    pub(crate) fn folio(&self, head: Pfn) -> Result<DevFolio<'_>> {
        let run = self.run(Frames {
            first: head,
            pages: 1,
        })?;
        // INVARIANT: As the caller says; if not, what is read of it is of no use.
        Ok(DevFolio::at(run.first()))
    }

    /// Whether the frame is going away, so that this has to end soon; or is not of the memory at all. If
    /// not, its page stays as long as this: the device says first that it goes, and waits then.
    pub(crate) fn is_over(&self, pfn: Pfn) -> bool {
        !self.memory.has(pfn)
    }
}
