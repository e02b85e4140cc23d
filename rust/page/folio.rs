// SPDX-License-Identifier: GPL-2.0

//! Folios: who owns them, who refers to them, how large they are.

use super::{
    DevPage,
    PageBlock,
    Region,
    FLAG_HEAD,
    INDEX,
    INFO,
    MAPCOUNT,
    MAPPING,
    ORDER_MASK,
    REFCOUNT,
    SECOND, //
};
use crate::kern::{
    bindings,
    fs::{Mapping, PageIndex},
    once::{self, Once},
    order::Order, //
};
use core::ptr::{self, NonNull};
use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Full,
        Relaxed,
        Release, //
    },
};

/// A folio of DAX memory, large or not.
///
/// Owner, share count and order change under the lock of the folio's [`Region`] only, and are coherent
/// only there ([`RegionFolio`](super::RegionFolio)).
///
/// # Invariants
///
/// The page was the first of a folio when this was made. Later it may be one in the middle of a larger
/// folio; what is read then is of no use, but of that page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct DevFolio<'a>(DevPage<'a>);

impl<'a> DevFolio<'a> {
    /// # Safety
    ///
    /// The page is the first of a folio.
    #[inline]
    pub(super) const unsafe fn from_head(head: DevPage<'a>) -> Self {
        // INVARIANT: By this function's safety requirements.
        Self(head)
    }

    /// The folio that a page was the first of, as was seen before.
    #[inline]
    pub(in crate::kern) fn at(head: DevPage<'a>) -> Self {
        // INVARIANT: A page that is no tail is the first of a folio. One that has become a tail reads as one
        // of its own: the flag of a head is never a tail's.
        Self(head)
    }

    /// # Safety
    ///
    /// As for [`DevPage::from_raw`], and `folio` is a folio.
    #[inline]
    pub(in crate::kern) unsafe fn from_raw(folio: NonNull<bindings::folio>) -> Self {
        // SAFETY: By this function's safety requirements.
        // INVARIANT: As above.
        Self(unsafe { DevPage::from_raw(folio.cast()) })
    }

    /// The folio's first page.
    #[inline]
    pub(crate) fn head(self) -> DevPage<'a> {
        self.0
    }

    #[inline]
    pub(crate) fn as_ptr(self) -> *mut bindings::folio {
        self.0 .0.as_ptr().cast()
    }

    #[inline]
    fn is_large(self) -> bool {
        // Pairs with `make_head`: whoever sees the head sees the order.
        self.0.flags().load_acquire() & FLAG_HEAD != 0
    }

    /// The folio's order.
    #[inline]
    pub(crate) fn order(self) -> Order {
        if !self.is_large() {
            return Order::PTE;
        }
        // SAFETY: A large folio has a second page.
        let flags = unsafe { self.0.next(1) }.flags().read_once();
        Order::from_bits(flags & ORDER_MASK)
    }

    /// The pages of the folio.
    #[inline]
    pub(super) fn block(self) -> PageBlock<'a> {
        // SAFETY: By the type invariant there are so many pages, and a folio begins at a multiple of its
        // size.
        unsafe { PageBlock::from_frames(self.0.pfn(), self.order()) }
    }

    /// The same, for tests, which keep the folio as it is.
    #[cfg(RDAX_TEST)]
    pub(crate) fn block_of_test(self) -> PageBlock<'a> {
        self.block()
    }

    /// References to the folio; 0 means idle (spec, R1).
    #[inline]
    pub(crate) fn refcount(self) -> i32 {
        // Pairs with what drops references, here and in the core, all of which is fully ordered: whoever
        // finds the folio idle sees what its holders did to it.
        self.0.count(REFCOUNT).load_acquire()
    }

    /// Page-table entries of any size that map the folio or a part of it.
    #[inline]
    pub(crate) fn mapcount(self) -> i32 {
        let count = if self.is_large() {
            // The large map count is the first of the words that overlay the second page.
            // SAFETY: A large folio has a second page.
            unsafe { self.0.next(1) }.count(SECOND).read_once()
        } else {
            self.0.count(MAPCOUNT).read_once()
        };
        count + 1
    }

    /// How many page-table entries map all of it by themselves; 0 for a page. Does not sleep.
    pub(crate) fn entire_mapcount(self) -> u32 {
        if !self.is_large() {
            return 0;
        }
        // SAFETY: By the type invariant it is a folio, and was seen to be large, so that it has the words that are read,
        // which are within its first pages.
        unsafe { bindings::rdax_folio_entire_mapcount(self.as_ptr()) }.max(0) as u32
    }

    /// Whether somebody has a reference that is not that of a page-table entry. May say so of a folio that is
    /// being mapped or unmapped: an entry's reference is taken before it is counted as a mapping, and given
    /// up afterwards.
    ///
    /// Nobody is missed: both counts are those of one moment. A folio that several files share is mapped and
    /// unmapped by others while this looks, and a mapping that comes or goes between two looks would make up for
    /// somebody who holds it.
    #[inline]
    pub(crate) fn is_held(self) -> bool {
        HolderLook::new().is_held(self)
    }

    /// Those of them that map all of a folio of 2 MiB or 1 GiB.
    pub(crate) fn whole_mapcount(self) -> i32 {
        // SAFETY: By the invariant of the page it is there.
        unsafe { bindings::rdax_folio_whole_maps(self.as_ptr()) }
    }

    /// Takes a reference, also on an idle folio. The holder of the locked entry that points to the
    /// folio does this to insert it into a page table.
    #[inline]
    pub(in crate::kern) fn get(self) -> FolioRef {
        self.get_many(1);
        // INVARIANT: One reference more, as of now.
        FolioRef(self.0 .0.cast())
    }

    /// Takes references for `count` entries of page tables.
    #[inline]
    pub(in crate::kern) fn get_many(self, count: usize) {
        once::add(self.0.count(REFCOUNT), count as i32);
    }

    /// The address of the `address_space` that owns the folio, 0 if none does.
    #[inline]
    pub(crate) fn owner(self) -> usize {
        // Pairs with `set_owner` and `set_place`: whoever sees the owner sees the index in it.
        self.0.word(MAPPING).load_acquire()
    }

    /// The same for a folio that nothing keeps: its first page may be in the middle of a larger one
    /// by now, and has no owner then. A tail holds a mark, counts, or a list in its place.
    pub(crate) fn owner_unless_tail(self) -> usize {
        let _region = Region::lock(self.0);
        if self.0.word(INFO).read_once() & 1 != 0 {
            return 0;
        }
        self.owner()
    }

    /// The page index of the folio in its owner.
    #[inline]
    pub(crate) fn index(self) -> PageIndex {
        PageIndex::new(self.0.word(INDEX).read_once())
    }

    /// The number of entries that point to a folio without an owner.
    #[inline]
    pub(crate) fn share(self) -> usize {
        self.0.word(INDEX).read_once()
    }

    /// The page index of the folio in a file, if that is its owner.
    pub(crate) fn index_in(self, mapping: &Mapping) -> Option<PageIndex> {
        let _region = Region::lock(self.0);
        (self.owner() == ptr::from_ref(mapping) as usize).then(|| self.index())
    }

    /// Has [`RegionFolio::add_entry`](super::RegionFolio::add_entry) leave the owner for as long as the result is
    /// there, for whoever has locked the owner's entry and knows the folio only.
    ///
    /// Errors: `ENOENT` if the file does not own the folio, `EBUSY` if as many as there can be are kept.
    pub(crate) fn keep_owner(self, mapping: &Mapping) -> Result<KeptOwner> {
        let _region = Region::lock(self.0);
        if self.owner() != ptr::from_ref(mapping) as usize {
            return Err(ENOENT);
        }
        for kept in &KEPT {
            let ours = self.as_ptr() as usize;
            if kept.cmpxchg(0, ours, Relaxed).is_ok() {
                // INVARIANT: The table has it as of now.
                return Ok(KeptOwner(ours));
            }
        }
        Err(EBUSY)
    }

    /// Says where in a device the folio is, which whoever maps it says alike.
    ///
    /// # Safety
    ///
    /// The folio is of a device that is mapped by way of `mapping`, which lives as long as the
    /// folio's page map.
    #[inline]
    pub(in crate::kern) unsafe fn set_place(
        self,
        mapping: NonNull<bindings::address_space>,
        index: PageIndex,
    ) {
        let mapping = mapping.as_ptr() as usize;
        if self.owner() != mapping {
            // Pairs with `owner`: whoever sees the mapping sees the index.
            self.0.word(INDEX).write_once(index.get());
            self.0.word(MAPPING).store_release(mapping);
        }
    }

    /// The address of the page map that the folio is of.
    #[inline]
    pub(in crate::kern) fn page_map(self) -> usize {
        self.0.word(INFO).read_once()
    }
}

/// Looks at one folio after the other whether somebody holds it, as [`DevFolio::is_held`] says: the lock of a region
/// is kept from one to the next. Does not sleep; nor may anybody as long as this is there.
pub(crate) struct HolderLook {
    region: Option<Region>,
}

impl HolderLook {
    #[inline]
    pub(crate) fn new() -> Self {
        Self { region: None }
    }

    /// Whether somebody holds the folio.
    #[inline(always)]
    pub(crate) fn is_held(&mut self, folio: DevFolio<'_>) -> bool {
        // Pairs as in `DevFolio::refcount`.
        let counts = folio.0.word(MAPCOUNT).load_acquire();
        let references = (counts >> 32) as i32;
        if references == 0 {
            // Nor does anybody map it. This is what a look mostly finds.
            return false;
        }
        if folio.is_large() {
            return self.is_large_held(folio);
        }
        references > counts as i32 + 1
    }

    #[cold]
    #[inline(never)]
    fn is_large_held(&mut self, folio: DevFolio<'_>) -> bool {
        let covered = self
            .region
            .as_ref()
            .is_some_and(|region| region.covers(folio.0));
        if !covered {
            // The one is unlocked before the other is locked.
            self.region = None;
            self.region = Some(Region::lock(folio.0));
        }
        match self
            .region
            .as_mut()
            .and_then(|region| region.folio(folio.0))
        {
            // SAFETY: The folio is large, which changes only under its region's lock.
            Some(found) if *found == folio && folio.is_large() => unsafe {
                bindings::rdax_large_folio_is_held(folio.as_ptr())
            },
            // Of another size by now: to be found anew.
            _ => true,
        }
    }
}

/// A reference to a folio, dropped like any other: the last one tells those who wait for the folio
/// to become idle.
///
/// # Invariants
///
/// The pointer is to a folio of DAX memory. The value owns one of the references that the folio counts, which
/// keeps it a folio, and its page map: a device that goes away waits until its pages have no references.
pub(crate) struct FolioRef(NonNull<bindings::folio>);

// SAFETY: References to a folio may be given to, and dropped by, any task.
unsafe impl Send for FolioRef {}
// SAFETY: As above.
unsafe impl Sync for FolioRef {}

impl FolioRef {
    /// The folio.
    #[inline]
    pub(crate) fn folio(&self) -> DevFolio<'_> {
        // SAFETY: By the type invariant it is a folio, and there as long as this value.
        unsafe { DevFolio::from_raw(self.0) }
    }

    /// Leaves the reference to whoever was given the folio.
    #[inline]
    pub(in crate::kern) fn into_raw(self) {
        core::mem::forget(self);
    }
}

impl Drop for FolioRef {
    #[inline]
    fn drop(&mut self) {
        let page = self.folio().head();
        let count = page.count(REFCOUNT);
        // As the core drops references. Pairs with `refcount`.
        if count.fetch_sub(1, Full) == 1 {
            // SAFETY: The last reference is gone, which is what the core asks of the caller.
            unsafe { bindings::__folio_put(self.0.as_ptr()) };
        }
    }
}

/// That a folio keeps its owner, and its place in that. It ends when this is dropped.
///
/// # Invariants
///
/// [`KEPT`] has the folio at this address, on account of this value. That is only compared.
#[must_use = "the owner is kept no longer"]
#[derive(PartialEq, Eq)]
pub(crate) struct KeptOwner(usize);

impl KeptOwner {
    /// Goes on keeping the owner, up to [`KeptOwner::from_left`].
    pub(crate) fn leave(self) {
        core::mem::forget(self);
    }

    /// # Safety
    ///
    /// [`KeptOwner::leave`] was called for the folio, and nobody else is given what it has left.
    pub(in crate::kern) unsafe fn from_left(folio: DevFolio<'_>) -> Self {
        // INVARIANT: By this function's safety requirements.
        Self(folio.as_ptr() as usize)
    }
}

impl Drop for KeptOwner {
    fn drop(&mut self) {
        for kept in &KEPT {
            // Pairs with `keeps_owner`: what was read of the folio before was read while it was kept.
            if kept.cmpxchg(self.0, 0, Release).is_ok() {
                return;
            }
        }
    }
}

/// Folios that keep their owners. The core handles one memory failure at a time.
static KEPT: [Atomic<usize>; 4] = [const { Atomic::new(0) }; 4];

/// Whether the owner of the folio that begins at `head` has to stay for now.
#[inline]
pub(super) fn keeps_owner(folio: DevFolio<'_>) -> bool {
    let ours = folio.as_ptr() as usize;
    // Pairs with the end of `KeptOwner`.
    KEPT.iter().any(|kept| kept.load_acquire() == ours)
}
