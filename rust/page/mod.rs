// SPDX-License-Identifier: GPL-2.0

//! Pages and folios of DAX memory: `struct page` and what it says.
//!
//! A frame number ([`Pfn`]) is a number: anybody may compute one and compare it. A page ([`DevPage`])
//! is made only by those who know that it exists: what a device says of its memory, an entry of a
//! file's tree, and a folio for its own pages. Pages that follow each other are a [`PageRun`], those of
//! an entry or of a folio a [`PageBlock`]; both give out no page but their own. The lifetime of each is that
//! of what keeps the page map: who wants to keep a page for longer keeps its number.
//!
//! C headers: [`include/linux/mm_types.h`](srctree/include/linux/mm_types.h),
//! [`include/linux/page-flags.h`](srctree/include/linux/page-flags.h)
//!
//! Lock order: the tree's lock, then a region's lock ([`Region`]); nothing is taken below it.

mod folio;
mod gigantic;
mod region;
mod region_folio;
mod run;

#[cfg(RDAX_TEST)]
pub(crate) use folio::FolioRef;
pub(crate) use folio::{DevFolio, HolderLook, KeptOwner};
pub(crate) use gigantic::{GiganticLock, Tails};
pub(crate) use region::Region;
#[cfg(RDAX_TEST)]
pub(crate) use region_folio::set_without_owner;
pub(crate) use region_folio::{
    owned_or_free, Added, Association, EntryMemory, NewAssociation, RegionFolio, Released,
};
pub(crate) use run::{FileBlock, FilePages, Frames, PageBlock, PageRun};

use super::{
    bindings,
    once::Once,
    order::Order, //
};
use core::{
    marker::PhantomData,
    mem::{offset_of, size_of},
    ptr::NonNull, //
};
use kernel::sync::atomic::{
    Atomic,
    Release, //
};

/// A page frame number. It does not say whether there is such a frame.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pfn(usize);

impl Pfn {
    /// The frame with this number.
    #[inline]
    pub(crate) const fn from_bits(bits: usize) -> Self {
        Self(bits)
    }

    /// The frame's number.
    #[inline]
    pub(crate) const fn to_bits(self) -> usize {
        self.0
    }

    /// Whether a folio of `order` can begin here.
    #[inline]
    pub(crate) const fn is_aligned(self, order: Order) -> bool {
        self.0 & (order.pages() - 1) == 0
    }

    /// Where the kernel has the frame's memory, if it has it: the number of the address.
    #[inline]
    pub(crate) fn address(self) -> usize {
        // SAFETY: Only a variable of the kernel is read; it does not change after boot.
        let base = unsafe { bindings::page_offset_base };
        base.wrapping_add(self.0 << Order::PAGE_SHIFT)
    }

    /// Where the kernel has the frame's `struct page`, if it has one: an address to be handed on.
    #[inline]
    pub(in crate::kern) fn page_address(self) -> *mut bindings::page {
        // SAFETY: Only a variable of the kernel is read; it does not change after boot.
        (unsafe { bindings::vmemmap_base } as *mut bindings::page).wrapping_add(self.0)
    }

    /// The frame `pages` further on.
    #[inline]
    pub(crate) const fn offset(self, pages: usize) -> Self {
        Self(self.0.wrapping_add(pages))
    }
}

/// The word of `struct page` that holds the page map, or in a tail the way to its head.
const INFO: usize = offset_of!(bindings::page, __bindgen_anon_1);
const WORD: usize = size_of::<usize>();
const SECOND: usize = INFO + WORD;
const MAPPING: usize = INFO + 2 * WORD;
const INDEX: usize = INFO + 3 * WORD;
const PRIVATE: usize = INFO + 4 * WORD;
const MAPCOUNT: usize = offset_of!(bindings::page, __bindgen_anon_2);
const REFCOUNT: usize = offset_of!(bindings::page, _refcount);

// Both are in one word, so that one read of it is coherent.
const _: () = assert!(MAPCOUNT % WORD == 0 && REFCOUNT == MAPCOUNT + WORD / 2);

const FLAG_HEAD: usize = 1 << bindings::pageflags_PG_head;
const FLAG_HWPOISON: usize = 1 << bindings::pageflags_PG_hwpoison;
/// The mark of bad memory, if the page has it, says nothing of the memory. A flag for the owner of a
/// page to use, which nobody else does for the pages of DAX files.
const FLAG_MADE_UP: usize = 1 << bindings::pageflags_PG_owner_priv_1;
/// The low byte of the second page's flags holds the order of a large folio.
const ORDER_MASK: usize = 0xff;

/// A page of DAX memory.
///
/// # Invariants
///
/// The pointer is to the `struct page` of a frame of a device's page map, an element of the kernel's
/// virtual memory map, and that page map is there for `'a`: it is the time of what keeps it. A device that
/// goes away waits for whoever has a page of it by that: a tree's lock, under which an entry has the page; an
/// entry that is locked, for all of the device that its file is on
/// ([`LockedSlot`](super::xa::LockedSlot)); the lock under which a device gives memory
/// ([`DaxReadGuard`](super::dax::DaxReadGuard)); a [`Stay`](super::memory::Stay); a reference to the folio;
/// a fault in a mapping of the device, or a call of the core about the page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct DevPage<'a>(NonNull<bindings::page>, PhantomData<&'a ()>);

// SAFETY: The page behind the pointer is read and changed atomically, or under a lock.
unsafe impl Send for DevPage<'_> {}
// SAFETY: As above.
unsafe impl Sync for DevPage<'_> {}

impl<'a> DevPage<'a> {
    /// The page of a frame.
    ///
    /// # Safety
    ///
    /// The frame is one of a device's page map, which is there for `'a`.
    #[inline]
    pub(super) unsafe fn of(pfn: Pfn) -> Self {
        // SAFETY: The virtual memory map is one linear array, in which the frame has an element by this
        // function's safety requirements; so the pointer is not NULL.
        let page = unsafe { NonNull::new_unchecked(pfn.page_address()) };
        // INVARIANT: By this function's safety requirements.
        Self(page, PhantomData)
    }

    /// # Safety
    ///
    /// `page` is a page of a device's page map, which is there for `'a`.
    #[inline]
    pub(super) unsafe fn from_raw(page: NonNull<bindings::page>) -> Self {
        // INVARIANT: By this function's safety requirements.
        Self(page, PhantomData)
    }

    /// The page's frame.
    #[inline]
    pub(crate) fn pfn(self) -> Pfn {
        // SAFETY: Only a variable of the kernel is read; it does not change after boot.
        let base = unsafe { bindings::vmemmap_base };
        Pfn((self.0.as_ptr() as usize - base) / size_of::<bindings::page>())
    }

    #[inline]
    pub(crate) fn as_ptr(self) -> *mut bindings::page {
        self.0.as_ptr()
    }

    #[inline]
    fn word(&self, offset: usize) -> &Atomic<usize> {
        // SAFETY: By the type invariant the page is there; `offset` is one of the offsets above, inside
        // `struct page` and aligned. The kernel accesses these words atomically too.
        unsafe { Atomic::from_ptr(self.0.as_ptr().byte_add(offset).cast()) }
    }

    #[inline]
    fn count(&self, offset: usize) -> &Atomic<i32> {
        // SAFETY: As for `word`.
        unsafe { Atomic::from_ptr(self.0.as_ptr().byte_add(offset).cast()) }
    }

    #[inline]
    fn flags(&self) -> &Atomic<usize> {
        self.word(0)
    }

    /// Changes flags while others may change other flags.
    fn update_flags(self, change: impl Fn(usize) -> usize) {
        let mut flags = self.flags().read_once();
        // Pairs with `is_large`: whoever sees the head of a folio sees its order.
        //
        // Ends: a turn is repeated only when somebody else has changed a flag.
        while let Err(now) = self.flags().cmpxchg(flags, change(flags), Release) {
            flags = now;
        }
    }

    /// The page `pages` further on.
    ///
    /// # Safety
    ///
    /// It is one of a device's page map as well, which is there for `'a`.
    #[inline]
    pub(super) unsafe fn next(self, pages: usize) -> Self {
        // SAFETY: The virtual memory map is linear, so this is the page of the frame `pages` further
        // on, and not NULL.
        let next = unsafe { NonNull::new_unchecked(self.0.as_ptr().wrapping_add(pages)) };
        // INVARIANT: By this function's safety requirements.
        Self(next, PhantomData)
    }

    /// The page by itself, as the memory of an entry.
    #[inline]
    pub(crate) fn block(self) -> PageBlock<'a> {
        // SAFETY: By the type invariant; every frame is a multiple of one.
        unsafe { PageBlock::from_frames(self.pfn(), Order::PTE) }
    }

    /// Whether the memory of this page is known to be bad: it is marked, and not for a failure that
    /// somebody made up.
    #[inline]
    pub(crate) fn is_poisoned(self) -> bool {
        let flags = self.flags().read_once();
        flags & (FLAG_HWPOISON | FLAG_MADE_UP) == FLAG_HWPOISON
    }

    /// Whether the page was marked, be it for a failure that somebody made up.
    #[inline]
    pub(crate) fn is_marked(self) -> bool {
        self.flags().read_once() & (FLAG_HWPOISON | FLAG_MADE_UP) != 0
    }

    /// Takes the mark of bad memory off a page that was overwritten whole.
    #[inline]
    pub(crate) fn clear_poison(self) {
        self.update_flags(|flags| flags & !FLAG_HWPOISON);
    }

    /// Makes a page that is known to be bad ready to be overwritten whole. When its memory failed it
    /// was taken out of the kernel's direct map, lest the processor reads ahead from there: who uses
    /// it by its address there before this was called crashes. Sleeps.
    pub(crate) fn make_writable(self) {
        if self.is_poisoned() {
            // SAFETY: By the type invariant the page's memory is a device's, which is in the direct map
            // by right.
            unsafe { bindings::rdax_see_again(self.pfn().to_bits()) };
        }
    }

    /// Says of the failure that the page is going to be marked for, or was, whether somebody made it
    /// up. A page that is marked for one that has happened stays so.
    pub(crate) fn note_failure(self, made_up: bool) {
        self.update_flags(|flags| {
            if !made_up {
                flags & !FLAG_MADE_UP
            } else if flags & (FLAG_HWPOISON | FLAG_MADE_UP) == FLAG_HWPOISON {
                flags
            } else {
                flags | FLAG_MADE_UP
            }
        });
    }

    /// Whether the page is one of a folio of several. For whoever keeps it in the folio that it is in.
    #[inline]
    pub(super) fn is_in_large(self) -> bool {
        self.flags().read_once() & FLAG_HEAD != 0 || self.word(INFO).read_once() & 1 != 0
    }

    /// The folio that this page is part of.
    #[inline]
    pub(crate) fn folio(self) -> DevFolio<'a> {
        // Pairs with `unclaim`: whoever sees a page of its own sees that it has no owner.
        let info = self.word(INFO).load_acquire();
        if info & 1 == 0 {
            // SAFETY: A page that is no tail is a folio, or the head of one.
            return unsafe { DevFolio::from_head(self) };
        }
        let head = if tails_hold_mask() {
            self.0.as_ptr() as usize & info
        } else {
            info - 1
        };
        // SAFETY: A tail leads to its head, a page of the same page map, which is there by the type
        // invariant.
        unsafe {
            DevFolio::from_head(Self::from_raw(NonNull::new_unchecked(
                head as *mut bindings::page,
            )))
        }
    }

    /// The kernel's address of the page's memory.
    #[inline]
    pub(crate) fn address(self) -> NonNull<u8> {
        // SAFETY: The memory of DAX devices is in the kernel's direct map, so the address is not NULL.
        unsafe { NonNull::new_unchecked(self.pfn().address() as *mut u8) }
    }
}

/// Whether a tail holds a mask to find its head with, instead of the head's address.
#[inline]
const fn tails_hold_mask() -> bool {
    cfg!(CONFIG_HUGETLB_PAGE_OPTIMIZE_VMEMMAP) && size_of::<bindings::page>().is_power_of_two()
}
