// SPDX-License-Identifier: GPL-2.0

//! Pages and folios of filesystem DAX memory (`MEMORY_DEVICE_FS_DAX`).
//!
//! C headers: [`include/linux/mm_types.h`](srctree/include/linux/mm_types.h),
//! [`include/linux/page-flags.h`](srctree/include/linux/page-flags.h)
//!
//! Lock order: the tree's lock, then a region's lock ([`Region`]); nothing is taken below it.

use super::{
    bindings,
    fs::{Mapping, PageIndex},
    once::Once,
    order::Order, //
};
use core::{
    marker::PhantomData,
    mem::{offset_of, size_of},
    ptr::{self, NonNull},
};
use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Full,
        Relaxed,
        Release, //
    },
    types::NotThreadSafe, //
};

/// A page frame number of DAX memory.
///
/// # Invariants
///
/// The frame has a `struct page` in a device page map, or the value came out of an entry that was
/// made from such a page. Page maps outlive every filesystem on their device, and entries live in
/// the trees of such filesystems only.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pfn(usize);

impl Pfn {
    /// What a tree's entry keeps of a frame. The inverse of [`Pfn::to_bits`], whose results are
    /// the only values that this may be given.
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

    /// The frame `pages` further on in the same extent.
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

const FLAG_HEAD: usize = 1 << bindings::pageflags_PG_head;
const FLAG_HWPOISON: usize = 1 << bindings::pageflags_PG_hwpoison;
/// The mark of bad memory, if the page has it, says nothing of the memory. A flag for the owner of a
/// page to use, which nobody else does for the pages of DAX files.
const FLAG_MADE_UP: usize = 1 << bindings::pageflags_PG_owner_priv_1;
/// The low byte of the second page's flags holds the order of a large folio.
const ORDER_MASK: usize = 0xff;

/// A page of filesystem DAX memory.
///
/// # Invariants
///
/// The pointer is to the `struct page` of a [`Pfn`]; it is valid as long as the device's page map,
/// which every user of this type outlives no further than the filesystem call it serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct DevPage(NonNull<bindings::page>);

impl DevPage {
    /// The page of a frame.
    #[inline]
    pub(crate) fn of(pfn: Pfn) -> Self {
        // SAFETY: The virtual memory map is one linear array; by the invariant of `Pfn` the frame
        // has an element in it, so the pointer is not NULL.
        let page = unsafe {
            NonNull::new_unchecked(
                (bindings::vmemmap_base as *mut bindings::page).wrapping_add(pfn.0),
            )
        };
        Self(page)
    }

    /// # Safety
    ///
    /// `page` is a page of filesystem DAX memory whose page map stays for as long as the result is
    /// used.
    #[inline]
    pub(crate) unsafe fn from_raw(page: NonNull<bindings::page>) -> Self {
        Self(page)
    }

    /// The page's frame.
    #[inline]
    pub(crate) fn pfn(self) -> Pfn {
        // SAFETY: Only a variable of the kernel is read; it does not change after boot.
        let base = unsafe { bindings::vmemmap_base } as usize;
        Pfn((self.0.as_ptr() as usize - base) / size_of::<bindings::page>())
    }

    #[inline]
    pub(crate) fn as_ptr(self) -> *mut bindings::page {
        self.0.as_ptr()
    }

    #[inline]
    fn word(&self, offset: usize) -> &Atomic<usize> {
        // SAFETY: `offset` is one of the offsets above, inside `struct page` and aligned; the
        // kernel accesses these words atomically too.
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

    #[inline]
    pub(super) fn next(self, pages: usize) -> Self {
        // SAFETY: The virtual memory map is linear, so this is the page of the frame `pages` further
        // on, and not NULL.
        Self(unsafe { NonNull::new_unchecked(self.0.as_ptr().wrapping_add(pages)) })
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
            // SAFETY: The page is one of memory that is in the direct map by right.
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

    /// The folio that this page is part of.
    #[inline]
    pub(crate) fn folio(self) -> DevFolio {
        // Pairs with `unclaim`: whoever sees a page of its own sees that it has no owner.
        let info = self.word(INFO).load_acquire();
        if info & 1 == 0 {
            return DevFolio(self);
        }
        let head = if tails_hold_mask() {
            self.0.as_ptr() as usize & info
        } else {
            info - 1
        };
        // SAFETY: A tail leads to its head, a page of the same page map.
        DevFolio(Self(unsafe {
            NonNull::new_unchecked(head as *mut bindings::page)
        }))
    }

    /// The kernel's address of the page's memory.
    #[inline]
    pub(crate) fn address(self) -> NonNull<u8> {
        // SAFETY: The memory of filesystem DAX devices is in the kernel's direct map.
        unsafe {
            NonNull::new_unchecked(
                (bindings::page_offset_base as usize)
                    .wrapping_add(self.pfn().0 << Order::PAGE_SHIFT) as *mut u8,
            )
        }
    }
}

impl DevPage {
    /// Writes the cache lines of `bytes` bytes, from `offset` on after the page's begin, back to
    /// the device, whether or not it has a cache that can be lost.
    #[inline]
    pub(crate) fn write_back(self, offset: usize, bytes: usize) {
        // SAFETY: The memory is the page's and that of those behind it in its entry. Writing back
        // cache lines changes nothing.
        unsafe {
            bindings::arch_wb_cache_pmem(
                self.address().as_ptr().wrapping_add(offset).cast(),
                bytes as usize,
            )
        };
    }
}

/// Whether a tail holds a mask to find its head with, instead of the head's address.
#[inline]
const fn tails_hold_mask() -> bool {
    cfg!(CONFIG_HUGETLB_PAGE_OPTIMIZE_VMEMMAP) && size_of::<bindings::page>().is_power_of_two()
}

/// The first page of a folio of filesystem DAX memory, large or not.
///
/// The accessors of the owner ([`DevFolio::owner`], [`DevFolio::share`] and their setters) are
/// coherent only under the lock of the folio's [`Region`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct DevFolio(DevPage);

impl DevFolio {
    /// # Safety
    ///
    /// As for [`DevPage::from_raw`], and `folio` is a folio.
    #[inline]
    pub(crate) unsafe fn from_raw(folio: NonNull<bindings::folio>) -> Self {
        // SAFETY: Passed on to the caller.
        Self(unsafe { DevPage::from_raw(folio.cast()) })
    }

    /// The folio's first page.
    #[inline]
    pub(crate) fn head(self) -> DevPage {
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
        let flags = self.0.next(1).flags().read_once();
        Order::from_bits(flags & ORDER_MASK)
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
            self.0.next(1).count(SECOND).read_once()
        } else {
            self.0.count(MAPCOUNT).read_once()
        };
        count + 1
    }

    /// Takes a reference, also on an idle folio. The holder of the locked entry that points to the
    /// folio does this to insert it into a page table.
    #[inline]
    pub(crate) fn get(self) -> FolioRef {
        self.get_many(1);
        FolioRef(self)
    }

    /// Takes references for `count` entries of page tables.
    #[inline]
    pub(super) fn get_many(self, count: usize) {
        self.0.count(REFCOUNT).add(count as i32, Relaxed);
    }

    /// The address of the `address_space` that owns the folio, 0 if none does.
    #[inline]
    pub(crate) fn owner(self) -> usize {
        // Pairs with `set_owner` and `set_place`: whoever sees the owner sees the index in it.
        self.0.word(MAPPING).load_acquire()
    }

    /// The same for a folio that nothing keeps: its first page may be in the middle of a larger one
    /// by now, and has no owner then. What a tail holds in its place is a mark, counts, or a list.
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

    /// Has [`DevFolio::keeps_owner`] say yes, for whoever has locked the owner's entry and knows the
    /// folio only, up to [`DevFolio::release_owner`]. Returns the page index of the folio in its owner.
    ///
    /// Errors: `ENOENT` if the file does not own the folio, `EBUSY` if as many as there can be are kept.
    pub(crate) fn keep_owner(self, mapping: &Mapping) -> Result<PageIndex> {
        let _region = Region::lock(self.0);
        if self.owner() != ptr::from_ref(mapping) as usize {
            return Err(ENOENT);
        }
        for kept in &KEPT {
            let ours = self.as_ptr() as usize;
            if kept.cmpxchg(0, ours, Relaxed).is_ok() {
                return Ok(self.index());
            }
        }
        Err(EBUSY)
    }

    /// Ends what [`DevFolio::keep_owner`] began.
    pub(crate) fn release_owner(self) {
        let ours = self.as_ptr() as usize;
        for kept in &KEPT {
            // Pairs with `keeps_owner`: what was read of the folio before was read while it was kept.
            if kept.cmpxchg(ours, 0, Release).is_ok() {
                return;
            }
        }
    }

    /// Whether the folio's owner has to stay for now.
    #[inline]
    pub(crate) fn keeps_owner(self, _region: &Region<'_>) -> bool {
        let ours = self.as_ptr() as usize;
        // Pairs with `release_owner`.
        KEPT.iter().any(|kept| kept.load_acquire() == ours)
    }

    /// Gives the folio to one file.
    #[inline]
    pub(crate) fn set_owner(self, _region: &Region<'_>, mapping: &Mapping, index: PageIndex) {
        self.0.word(INDEX).write_once(index.get());
        // Pairs with `owner`.
        self.0
            .word(MAPPING)
            .store_release(ptr::from_ref(mapping) as usize);
    }

    /// Says where in a device the folio is, which whoever maps it says alike.
    ///
    /// # Safety
    ///
    /// The folio is of a device that is mapped by way of `mapping`, which lives as long as the
    /// folio's page map.
    #[inline]
    pub(super) unsafe fn set_place(
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
    pub(super) fn page_map(self) -> usize {
        self.0.word(INFO).read_once()
    }

    /// Makes the folio one that `share` entries point to and no file owns; with 0, one that nobody
    /// uses.
    #[inline]
    pub(crate) fn set_share(self, _region: &Region<'_>, share: usize) {
        self.0.word(MAPPING).write_once(0);
        self.0.word(INDEX).write_once(share);
    }

    /// Makes pages tails of the folio of `order` that will begin at `head`: the pages of the stretch
    /// of at most [`Region::ORDER`] that `first` begins, but for the head itself.
    ///
    /// False, and nothing is changed, when one of them is in use: it has an owner or a share count,
    /// a reference, or is part of a large folio. `region` is that of `first`. With `owners_only`,
    /// share counts and references are not looked at: nobody has any but of owned folios.
    pub(crate) fn claim_tails(
        _region: &Region<'_>,
        head: DevPage,
        order: Order,
        first: DevPage,
        owners_only: bool,
    ) -> bool {
        let pages = order.min(Region::ORDER).pages();
        let pgmap = head.word(INFO).read_once();
        if pgmap & 1 != 0 {
            return false;
        }
        let info = tail_info(head, order);
        let begin = first.next(usize::from(first == head));
        let end = first.next(pages);
        let mut page = begin;
        // This is most of the work of a first fault on a large folio: in groups that begin at
        // multiples of their size, and one by one where the head is missing in a group.
        const GROUP: usize = 16;
        let grouped = first.next(if first == head { GROUP.min(pages) } else { 0 });
        while page.0 < grouped.0 {
            if !Self::claim_group::<1, false>(page, pgmap, info) {
                Self::unclaim(begin, page, pgmap);
                return false;
            }
            page = page.next(1);
        }
        while page != end {
            let claimed = if owners_only {
                Self::claim_group::<GROUP, true>(page, pgmap, info)
            } else {
                Self::claim_group::<GROUP, false>(page, pgmap, info)
            };
            if !claimed {
                Self::unclaim(begin, page, pgmap);
                return false;
            }
            page = page.next(GROUP);
        }
        true
    }

    /// Claims `N` pages or none. A page of a large folio is told by the tails, one of which at least
    /// is among the pages: what they hold as a mapping is no more zero than an owner.
    #[inline(always)]
    fn claim_group<const N: usize, const OWNERS_ONLY: bool>(
        page: DevPage,
        pgmap: usize,
        info: usize,
    ) -> bool {
        let (mut used, mut references) = (0, 0);
        for at in 0..N {
            let page = page.next(at);
            used |= page.peek::<usize>(MAPPING);
            if !OWNERS_ONLY {
                references |= page.peek::<u32>(REFCOUNT);
                used |= page.peek::<usize>(INDEX);
            }
            if N == 1 {
                used |= page.peek::<usize>(INFO) ^ pgmap;
            }
        }
        if used != 0 || references != 0 {
            return false;
        }
        for at in 0..N {
            let page = page.next(at);
            page.word(MAPPING).write_once(TAIL_MAPPING);
            page.word(INFO).write_once(info);
        }
        true
    }

    /// Makes pages of the tails that [`DevFolio::claim_tails`] made, and that have no head.
    pub(crate) fn release_tails(_region: &Region<'_>, head: DevPage, order: Order, first: DevPage) {
        let pages = order.min(Region::ORDER).pages();
        let pgmap = head.word(INFO).read_once();
        Self::unclaim(
            first.next(usize::from(first == head)),
            first.next(pages),
            pgmap,
        );
    }

    /// Makes pages of the tails from `begin` up to `end`.
    #[inline]
    fn unclaim(begin: DevPage, end: DevPage, pgmap: usize) {
        let mut page = begin;
        while page != end {
            page.word(MAPPING).write_once(0);
            // Pairs with `folio`.
            page.word(INFO).store_release(pgmap);
            page = page.next(1);
        }
    }

    /// Makes a page the head of the folio of `order` whose tails all were claimed. The folio has
    /// refcount 0 and no owner. False, and nothing is changed, when the page is in use.
    pub(crate) fn make_head(_region: &Region<'_>, head: DevPage, order: Order) -> Option<Self> {
        let pgmap = head.word(INFO).read_once();
        if order == Order::PTE || pgmap & 1 != 0 || head.in_use(pgmap) != 0 {
            return None;
        }
        let folio = Self(head);
        folio.init_large(order);
        head.update_flags(|flags| flags | FLAG_HEAD);
        Some(folio)
    }

    /// Takes what makes it a large folio off one that is idle and owned by nobody, and returns the
    /// order that it had. What is left are tails without a head, to be released.
    pub(crate) fn unmake_head(self, _region: &Region<'_>) -> Order {
        let order = self.order();
        if order == Order::PTE {
            return order;
        }
        let head = self.0;
        head.update_flags(|flags| flags & !FLAG_HEAD);
        let second = head.next(1);
        let flags = second.flags().read_once();
        second.flags().write_once(flags & !ORDER_MASK);
        #[cfg(any(CONFIG_MEMCG, CONFIG_SLAB_OBJ_EXT))]
        // SAFETY: The field lies in the second page of a folio that nobody uses.
        unsafe {
            (&raw mut (*self.as_ptr()).__bindgen_anon_2.__bindgen_anon_1._nr_pages).write(0);
        }
        // The second and third page held more than a tail's words.
        for page in [second, head.next(2)].into_iter().take(order.pages() - 1) {
            page.word(SECOND).write_once(0);
            page.word(INDEX).write_once(0);
            page.word(PRIVATE).write_once(0);
        }
        order
    }

    /// Makes one folio of `order`, at most [`Region::ORDER`], of the pages from `first` on.
    pub(crate) fn form(
        region: &Region<'_>,
        first: DevPage,
        order: Order,
        owners_only: bool,
    ) -> bool {
        if order > Region::ORDER || !Self::claim_tails(region, first, order, first, owners_only) {
            return false;
        }
        if Self::make_head(region, first, order).is_some() {
            return true;
        }
        Self::release_tails(region, first, order, first);
        false
    }

    /// Takes a large folio of at most [`Region::ORDER`] that is idle and owned by nobody apart into
    /// pages of their own.
    pub(crate) fn take_apart(self, region: &Region<'_>) {
        let order = self.unmake_head(region);
        if order != Order::PTE {
            Self::release_tails(region, self.0, order, self.0);
        }
    }

    /// Sets what the core keeps of a large folio in its second and third page, as for a fresh one.
    fn init_large(self, order: Order) {
        let second = self.0.next(1);
        let flags = second.flags().read_once();
        second
            .flags()
            .write_once(flags & !ORDER_MASK | order.bits());
        let folio = self.as_ptr();
        // SAFETY: A large folio has at least two pages, and these fields lie in its second one.
        // Nobody else looks at them while the refcount is 0.
        unsafe {
            let two = &raw mut (*folio).__bindgen_anon_2.__bindgen_anon_1;
            #[cfg(any(CONFIG_MEMCG, CONFIG_SLAB_OBJ_EXT))]
            (&raw mut (*two)._nr_pages).write(order.pages() as u32);
            let counts = &raw mut (*two).__bindgen_anon_1.__bindgen_anon_1;
            (&raw mut (*counts)._large_mapcount.counter).write(-1);
            (&raw mut (*counts)._nr_pages_mapped.counter).write(0);
            (&raw mut (*counts)._entire_mapcount.counter).write(-1);
            (&raw mut (*counts)._pincount.counter).write(0);
            (&raw mut (*counts).__bindgen_anon_1._mm_ids).write(0);
            (&raw mut (*counts)._mm_id_mapcount).write([-1i32 as i32; 2]);
        }
        if order.bits() > 1 {
            // SAFETY: The folio has a third page, and the list head lies in it.
            unsafe {
                let list = &raw mut (*folio).__bindgen_anon_3.__bindgen_anon_1._deferred_list;
                (&raw mut (*list).next).write(list);
                (&raw mut (*list).prev).write(list);
            }
        }
    }
}

impl DevPage {
    /// Reads a field that changes only under the lock of the page's region, which is held, or that
    /// nobody changes from what an idle page has.
    #[inline(always)]
    fn peek<T: Copy>(self, offset: usize) -> T {
        // SAFETY: `offset` is that of a field of this type in `struct page`.
        unsafe { self.0.as_ptr().byte_add(offset).cast::<T>().read() }
    }

    /// 0 if this is a page of its own that nobody uses, of the page map `pgmap`.
    #[inline]
    fn in_use(self, pgmap: usize) -> usize {
        self.word(MAPPING).read_once()
            | self.word(INDEX).read_once()
            | (self.word(INFO).read_once() ^ pgmap)
            | self.count(REFCOUNT).read_once() as usize
    }
}

/// What a tail's `mapping` holds.
const TAIL_MAPPING: usize =
    (bindings::TAIL_MAPPING_HIGH as usize) << 32 | bindings::TAIL_MAPPING_LOW as usize;

/// What the tails of a folio of `order` that begins at `head` hold to find it.
#[inline]
fn tail_info(head: DevPage, order: Order) -> usize {
    if tails_hold_mask() {
        let shift = order.bits() as u32 + size_of::<bindings::page>().trailing_zeros();
        (usize::MAX << shift) | 1
    } else {
        head.0.as_ptr() as usize | 1
    }
}

kernel::sync::global_lock! {
    // SAFETY: Made ready when the module is loaded, before any file is served.
    unsafe(uninit) static GIANT: Mutex<()> = ();
}

/// The lock under which folios larger than a region are formed and taken apart, which takes many
/// regions one after the other. It is taken before any other lock of this file, and sleeps.
pub(crate) struct Giant {
    _guard: kernel::sync::GlobalGuard<GIANT>,
}

impl Giant {
    /// Makes the lock ready.
    ///
    /// # Safety
    ///
    /// To be called once, before anybody takes it.
    pub(super) unsafe fn init() {
        // SAFETY: By this function's safety requirements.
        unsafe { GIANT.init() };
    }

    /// Takes the lock. Sleeps.
    pub(crate) fn lock() -> Self {
        Self {
            _guard: GIANT.lock(),
        }
    }
}

/// A reference to a folio, dropped like any other: the last one tells those who wait for the folio
/// to become idle.
pub(crate) struct FolioRef(DevFolio);

impl FolioRef {
    /// The folio.
    #[cfg(RDAX_TEST)]
    pub(crate) fn folio(&self) -> DevFolio {
        self.0
    }

    /// Leaves the reference to whoever was given the folio.
    #[inline]
    pub(crate) fn into_raw(self) {
        core::mem::forget(self);
    }
}

impl Drop for FolioRef {
    #[inline]
    fn drop(&mut self) {
        let count = self.0 .0.count(REFCOUNT);
        // As the core drops references. Pairs with `refcount`.
        if count.fetch_sub(1, Full) == 1 {
            // SAFETY: The last reference is gone, which is what the core asks of the caller.
            unsafe { bindings::__folio_put(self.0.as_ptr()) };
        }
    }
}

/// Folios that keep their owners. The core handles one memory failure at a time.
static KEPT: [Atomic<usize>; 4] = [const { Atomic::new(0) }; 4];

/// The lock of an aligned stretch of DAX memory, under which the owners, share counts and sizes of
/// its folios change (spec, section 2). Interrupts are off while it is held.
///
/// It nests inside the tree's lock and does not sleep.
pub(crate) struct Region<'a> {
    slot: usize,
    flags: usize,
    _lock: PhantomData<&'a ()>,
    _not_send: NotThreadSafe,
}

impl Region<'_> {
    /// The largest folio that lies in one region whole.
    pub(crate) const ORDER: Order = Order::PMD;

    /// Locks the region of a page.
    #[inline]
    pub(crate) fn lock(page: DevPage) -> Self {
        let slot = page.pfn().0 >> Self::ORDER.bits();
        // SAFETY: The helper takes any number.
        let flags = unsafe { bindings::rdax_region_lock(slot as usize) } as usize;
        Self {
            slot,
            flags,
            _lock: PhantomData,
            _not_send: NotThreadSafe,
        }
    }
}

impl Region<'_> {
    /// Whether this is the lock of the page's region.
    #[inline]
    pub(crate) fn covers(&self, page: DevPage) -> bool {
        self.slot == page.pfn().0 >> Self::ORDER.bits()
    }
}

impl Drop for Region<'_> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: This value stands for the lock that `lock` took.
        unsafe { bindings::rdax_region_unlock(self.slot as usize, self.flags as usize) };
    }
}
