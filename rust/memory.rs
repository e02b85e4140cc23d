// SPDX-License-Identifier: GPL-2.0

//! A device's memory as something that may go away while others sleep on it.
//!
//! As a rule, the entry that points to a device's `struct page`s keeps them: a device that goes away waits
//! until there is none. A task that sleeps until a folio is idle has no entry, or one that may be removed
//! meanwhile. It holds a [`Stay`] instead, which the device waits for as well, and is woken when the device
//! goes.
//!
//! All memory that somebody knows of is in a list: when a device is said to go, whatever is left of it there is
//! retired before the device goes on, whoever has it.

use super::{
    bdev::GoingDevice,
    bindings,
    compat::{
        new_srcu,
        Srcu,
        SrcuGuard, //
    },
    once::Once,
    page::{DevFolio, Frames, PageRun, Pfn},
    vm, //
};
use core::ops::Range;
use kernel::{
    prelude::*,
    sync::{
        atomic::{Atomic, Release},
        Arc,
        SetOnce, //
    },
};

/// The memory of devices that there is.
pub(super) struct Memories {
    /// The number of the next memory: none is given twice.
    next: u64,
    /// With their numbers, in the order of these.
    all: KVec<(u64, Arc<Ranges>)>,
}

kernel::sync::global_lock! {
    // SAFETY: Made ready when the module is loaded, before there is any memory.
    pub(super) unsafe(uninit) static MEMORIES: Mutex<Memories> =
        Memories { next: 0, all: KVec::new() };
}

/// Whether it is told when a device goes. Changes under the lock of [`MEMORIES`].
static WATCHED: Atomic<bool> = Atomic::new(false);

/// How often a device went, or [`WATCHED`] was set. Changes under the lock of [`MEMORIES`].
static CHANGES: Atomic<usize> = Atomic::new(0);

impl Memories {
    /// Adds one, and gives it its number. Nothing is allocated with the lock: whoever reclaims memory may wait for
    /// a task that faults, and has another's memory shared with it ([`DeviceMemory::share`]).
    fn add(mut room: KVec<(u64, Arc<Ranges>)>, ranges: &Arc<Ranges>) -> Result<u64, AddError> {
        let mut memories = MEMORIES.lock();
        if !is_watched() {
            return Err(AddError::Unwatched);
        }
        if ranges.all.iter().any(|range| range.since != changes()) {
            return Err(AddError::Changed);
        }
        if room.capacity() <= memories.all.len() {
            return Err(AddError::Room(memories.all.len() + 1));
        }
        for known in memories.all.drain_all() {
            let _ = room.push_within_capacity(known);
        }
        let number = memories.next;
        let _ = room.push_within_capacity((number, ranges.clone()));
        let old = core::mem::replace(&mut memories.all, room);
        memories.next += 1;
        drop(memories);
        drop(old);
        Ok(number)
    }

    fn note_change(&self) {
        // Pairs with `changes`: what is found of a device by whoever sees the change was found after it.
        CHANGES.store(CHANGES.read_once().wrapping_add(1), Release);
    }

    /// The first memory with one of these numbers that is wanted.
    fn first(
        &self,
        numbers: Range<u64>,
        wanted: impl Fn(&Ranges) -> bool,
    ) -> Option<(u64, Arc<Ranges>)> {
        let mut all = self.all.iter();
        all.find(|(number, ranges)| numbers.contains(number) && wanted(ranges))
            .cloned()
    }
}

/// Why memory is not in the list.
enum AddError {
    /// Nobody is told that a device goes.
    Unwatched,
    /// A device went since the ranges were found.
    Changed,
    /// The new list is to have room for so many.
    Room(usize),
}

/// To be read before it is asked what memory a device has.
fn changes() -> usize {
    CHANGES.load_acquire()
}

/// Whether it is told when a device goes: also when there is no memory yet, as some may have been found.
///
/// A device of DAX gives no memory before it is said to go, after a grace period. So whoever says so sees what
/// those saw who have found memory of it.
pub(super) fn is_watched() -> bool {
    WATCHED.read_once()
}

/// Says whether it is told from now on when a device goes. If not, all memory is as if it had gone. Sleeps.
///
/// Held: as for [`DeviceMemory::retire`], if not.
pub(super) fn set_watched(watched: bool) {
    let memories = MEMORIES.lock();
    WATCHED.write_once(watched);
    memories.note_change();
    let end = memories.next;
    drop(memories);
    if !watched {
        retire_before(end, None);
    }
}

/// Retires what is left of the memory of a device that goes, when the layer is done with it. Sleeps.
pub(super) fn retire_rest(device: &GoingDevice<'_>) {
    if device.memory(0).is_some() {
        // It stays.
        return;
    }
    retire_rest_of(device.memory_owner());
}

/// The same for one whose memory has this owner.
pub(crate) fn retire_rest_of(owner: MemoryOwner) {
    let memories = MEMORIES.lock();
    memories.note_change();
    let end = memories.next;
    drop(memories);
    retire_before(end, Some(owner));
}

/// Retires memory that has a number below `end`: that of one owner, or all. Waits for those who stay on that
/// memory, and holds nothing meanwhile. What comes into the list later was found later ([`DeviceMemory::new`]).
fn retire_before(end: u64, owner: Option<MemoryOwner>) {
    let mut from = 0;
    // Ends: each turn is for a number above the last one's, and those below `end` are given already.
    while from < end {
        // What is gone already is waited for as well: whoever said so may be waiting still.
        let next = MEMORIES
            .lock()
            .first(from..end, |ranges| ranges.of(owner).next().is_some());
        let Some((number, ranges)) = next else {
            return;
        };
        ranges.retire(owner);
        from = number + 1;
    }
}

/// Whose page map pages are of: to be compared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct MemoryOwner(pub(super) usize);

/// Frames of one page map that follow each other.
///
/// # Invariants
///
/// They had pages when this was made, which was found out when [`CHANGES`] was `since`, or later.
pub(crate) struct PageMapRange {
    frames: Frames,
    since: usize,
    pub(crate) owner: MemoryOwner,
    /// Stores last only when the device's host has flushed them.
    pub(crate) asynchronous: bool,
    gone: Atomic<bool>,
    /// When it was said that it goes, by [`vm::now_ms`].
    gone_at: Atomic<u32>,
    /// Its device was released, and not because it went.
    released: Atomic<bool>,
}

impl PageMapRange {
    /// A range that `look_up` gives, if any.
    ///
    /// # Safety
    ///
    /// It gives frames of a page map, which is there when it is called, the owner of that, and whether stores to
    /// them last only when a host has flushed them.
    pub(super) unsafe fn find(
        look_up: impl FnOnce() -> Option<(Frames, MemoryOwner, bool)>,
    ) -> Option<Self> {
        let since = changes();
        let (frames, owner, asynchronous) = look_up()?;
        // INVARIANT: By this function's safety requirements.
        Some(Self {
            frames,
            since,
            owner,
            asynchronous,
            gone: Atomic::new(false),
            gone_at: Atomic::new(0),
            released: Atomic::new(false),
        })
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

/// What a device's memory is made of, and who stays on it.
#[pin_data]
struct Ranges {
    /// What the device has itself.
    all: KVec<Arc<PageMapRange>>,
    /// What the files of its filesystem have of other devices, in the order in which it was found out. Changes under
    /// the lock of [`MEMORIES`].
    shared: [SetOnce<Arc<PageMapRange>>; Self::SHARED],
    #[pin]
    stays: Srcu,
}

impl Ranges {
    /// The most ranges of other devices. One that is adopted anew takes another place.
    const SHARED: usize = 64;

    /// All ranges.
    #[inline(always)]
    fn iter(&self) -> impl Iterator<Item = &PageMapRange> {
        let shared = self.shared.iter().map_while(SetOnce::as_ref);
        Iterator::chain(self.all.iter(), shared).map(|range| &**range)
    }

    /// The ranges of one owner, or all.
    fn of(&self, owner: Option<MemoryOwner>) -> impl Iterator<Item = &PageMapRange> {
        self.iter()
            .filter(move |range| owner.is_none_or(|owner| range.owner == owner))
    }

    /// As [`DeviceMemory::retire`].
    fn retire(&self, owner: Option<MemoryOwner>) {
        for range in self.of(owner) {
            if !range.is_gone() {
                range.gone_at.write_once(vm::now_ms());
            }
            // Pairs with `is_gone`.
            range.gone.store(true, Release);
        }
        // Later callers see that it is gone.
        self.stays.synchronize();
    }
}

/// The memory of a device.
///
/// # Invariants
///
/// The pages of a range are there as long as it is not marked as gone, and those of one that is marked as long
/// as somebody stays who has come before: its device says so, and waits, before it goes
/// ([`DeviceMemory::retire`], [`retire_rest`]). For that the ranges are in the list of [`MEMORIES`], with this
/// number, for as long as this is there.
pub(crate) struct DeviceMemory {
    ranges: Arc<Ranges>,
    number: u64,
}

impl DeviceMemory {
    /// Memory of the ranges that `find` finds; it is called again if a device has gone meanwhile. Sleeps.
    ///
    /// Errors: those of `find`; `ENOMEM`; `ENODEV` when nobody is told that a device goes: the kernel's functions
    /// are not redirected.
    pub(crate) fn new(mut find: impl FnMut() -> Result<KVec<PageMapRange>>) -> Result<Self> {
        // Ends: each turn more is for a device that has gone during the last one.
        loop {
            let mut all = KVec::new();
            for range in find()? {
                all.push(Arc::new(range, GFP_KERNEL)?, GFP_KERNEL)?;
            }
            let ranges = Arc::pin_init(
                try_pin_init!(Ranges {
                    all,
                    shared: [const { SetOnce::new() }; Ranges::SHARED],
                    stays <- new_srcu(),
                }),
                GFP_KERNEL,
            )?;
            let mut room = 1;
            // Ends: each turn more is for memory that has come into the list during the last one.
            loop {
                match Memories::add(KVec::with_capacity(room, GFP_KERNEL)?, &ranges) {
                    // INVARIANT: No device has gone since the ranges were found, and those that go from now on
                    // find them in the list.
                    Ok(number) => return Ok(Self { ranges, number }),
                    Err(AddError::Unwatched) => return Err(ENODEV),
                    Err(AddError::Changed) => break,
                    Err(AddError::Room(wanted)) => room = wanted,
                }
            }
        }
    }

    /// Whether files of this device may have a frame from now on that `other` has, as one of several devices of a
    /// filesystem: it is waited for as what this one has itself. Sleeps. Allocates nothing.
    ///
    /// It ends when `other` is dropped. False if the frame is not `other`'s, or is going away, or if there were too
    /// many such devices.
    pub(crate) fn share(&self, other: &Self, pfn: Pfn) -> bool {
        // A device that goes after this has marked the range itself, which is the same here and there; and before it
        // is gone it finds this memory in the list, and waits for those who stay on that ([`retire_rest`]).
        let memories = MEMORIES.lock();
        let done = self.has(pfn)
            || other
                .ranges
                .all
                .iter()
                .find(|range| range.has(pfn) && !range.is_gone())
                .is_some_and(|range| {
                    let mut places = self.ranges.shared.iter();
                    places.any(|place| place.as_ref().is_none() && place.populate(range.clone()))
                });
        drop(memories);
        done
    }

    /// Keeps the `struct page`s of all folios of the memory that are found from now on, as long as the
    /// result lives. Does not sleep.
    pub(crate) fn stay(&self) -> Stay<'_> {
        Stay {
            memory: self,
            _read: self.ranges.stays.read_lock(),
        }
    }

    /// Whether the frame is going away, or is gone and has not come back with another device.
    pub(crate) fn is_gone(&self, pfn: Pfn) -> bool {
        self.ranges.iter().any(|range| range.has(pfn)) && !self.has(pfn)
    }

    /// Whether some of the memory is going away, or is gone: of what is another device's, what went in the last `ago`
    /// milliseconds. That one may have come back since, as another.
    pub(crate) fn went(&self, ago: u32) -> bool {
        let own = self.ranges.all.iter().any(|range| range.is_gone());
        own || self.ranges.iter().any(|range| {
            let age = || vm::now_ms().wrapping_sub(range.gone_at.read_once());
            range.is_gone() && !range.released.read_once() && age() <= ago
        })
    }

    /// Whether the frame is one of the memory, and not going away.
    #[inline(always)]
    pub(crate) fn has(&self, pfn: Pfn) -> bool {
        self.ranges
            .iter()
            .any(|range| range.has(pfn) && !range.is_gone())
    }

    /// Whether the frame is one of the device itself, gone or not, and of no other that it shares memory of.
    #[inline(always)]
    pub(crate) fn is_own(&self, pfn: Pfn) -> bool {
        self.ranges.all.iter().any(|range| range.has(pfn))
    }

    /// Whether the owner has memory here that is not gone. Owners are told apart by numbers, and that of
    /// one that is gone may be given to another.
    pub(crate) fn is_owned_by(&self, owner: MemoryOwner) -> bool {
        self.ranges.of(Some(owner)).any(|range| !range.is_gone())
    }

    /// Says that the memory of one owner goes away, and waits until nobody is left who does not know
    /// and stays. Sleeps, and cannot be interrupted.
    ///
    /// Held: nothing that those who stay may need to come to an end.
    pub(crate) fn retire(&self, owner: MemoryOwner) {
        self.ranges.retire(Some(owner));
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

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // Whoever has some of it shared with it is not to map it any more: the device was released, and mounted by
        // nobody then.
        for range in self.ranges.all.iter() {
            // What went before it was released is waited for by those who must be told so.
            range.released.write_once(!range.is_gone());
            range.gone.store(true, Release);
        }
        let mut memories = MEMORIES.lock();
        // Not the last reference to the ranges: that is here, and given up without the lock.
        memories.all.retain(|(number, _)| *number != self.number);
        if memories.all.is_empty() {
            // Nothing is to be left when the module is unloaded.
            memories.all = KVec::new();
        }
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
        let ranges = self.memory.ranges.of(Some(self.owner));
        // SAFETY: By the type invariant. A page map has pages.
        ranges.map(|range| unsafe {
            PageRun::from_frames(range.frames.first, range.frames.pages.max(1))
        })
    }
}

impl Drop for Retired<'_> {
    fn drop(&mut self) {
        self.memory.ranges.stays.synchronize();
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
