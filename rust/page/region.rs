// SPDX-License-Identifier: GPL-2.0

//! Regions: under whose locks folios get owners and share counts, are formed and dissolved.
//!
//! Lock order: [`GiganticLock`](super::GiganticLock), the tree's lock, a region's lock; nothing is taken below that.
//!
//! Of the flags of pages only those of the order change here, and that of the head. `PG_reserved` stays: a page that
//! several files share has no mapping, and by that flag alone whoever takes pages out of a pipe for his cache (FUSE)
//! knows that it is in use.

use super::{
    region_folio::{self, owned_or_free, EntryMemory, NewAssociation, RegionFolio},
    tails_hold_mask,
    DevPage,
    PageBlock,
    FLAG_HEAD,
    INDEX,
    INFO,
    MAPPING,
    ORDER_MASK,
    REFCOUNT, //
};
use crate::kern::{
    bindings,
    once::{write_barrier, Bits, Once},
    order::Order, //
};
use core::{
    marker::PhantomData,
    mem::size_of, //
};
use kernel::types::NotThreadSafe;

/// The lock of an aligned range of DAX memory, under which the owners, share counts and sizes of
/// its folios change (spec, section 2). Interrupts are off while it is held.
///
/// It nests inside the tree's lock and does not sleep.
///
/// # Invariants
///
/// The lock of the region with this number is held, with what `flags` says of interrupts before.
pub(crate) struct Region {
    number: usize,
    flags: usize,
    _not_send: NotThreadSafe,
}

impl Region {
    /// The largest folio that lies in one region whole.
    pub(crate) const ORDER: Order = Order::PMD;

    /// Locks the region of a page.
    #[inline]
    pub(crate) fn lock(page: DevPage<'_>) -> Self {
        let number = page.pfn().to_bits() >> Self::ORDER.bits();
        // SAFETY: The helper takes any number.
        let flags = unsafe { bindings::rdax_region_lock(number) };
        // INVARIANT: Locked now.
        Self {
            number,
            flags,
            _not_send: NotThreadSafe,
        }
    }

    /// Whether this is the lock of the page's region.
    #[inline]
    pub(crate) fn covers(&self, page: DevPage<'_>) -> bool {
        self.number == page.pfn().to_bits() >> Self::ORDER.bits()
    }

    /// The folio that a page is part of, if it begins in the region. `None` also when it is being
    /// formed or dissolved: such a one is larger than a region.
    #[inline]
    pub(crate) fn folio<'p>(&mut self, page: DevPage<'p>) -> Option<RegionFolio<'_, 'p>> {
        let folio = page.folio();
        let head = folio.head();
        // The way from the page to the head may be outdated, and the head part of another folio.
        let is_head = head == page || head.word(INFO).read_once() & 1 == 0;
        // INVARIANT: The page is in the region, and begins a folio.
        (is_head && self.covers(head)).then_some(RegionFolio {
            folio,
            _region: PhantomData,
        })
    }

    /// Makes one folio, not larger than the region, of these pages, and gives it to the entry whose memory they
    /// are. Nobody has a reference to it.
    ///
    /// `None`, and nothing is changed, when they are a single page, or not of the region, or one of them is in use:
    /// it has an owner, a share count or a reference, or is part of a large folio.
    #[inline]
    pub(crate) fn form<'p>(&mut self, memory: EntryMemory<'p>) -> Option<NewAssociation<'p>> {
        let block = memory.block();
        if block.order() > Self::ORDER || !self.claim_tails(block) {
            return None;
        }
        if !self.make_head(block) {
            self.release_tails(block);
            return None;
        }
        // SAFETY: `claim_tails` and `make_head` have seen that the pages are of the region, which is locked, and that
        // nobody owns or shares any.
        Some(unsafe { region_folio::set_owner(block.first(), memory) })
    }

    /// The pages of `block` that are in the region: the first of them, and how many. `None` if there are
    /// none.
    #[inline]
    fn part_of<'p>(&self, block: PageBlock<'p>) -> Option<(DevPage<'p>, usize)> {
        if block.order() <= Self::ORDER {
            let first = block.first();
            return self.covers(first).then(|| (first, block.order().pages()));
        }
        let begin = self.number << Self::ORDER.bits();
        let offset = begin.wrapping_sub(block.pfn().to_bits());
        (offset < block.order().pages()).then(|| (block.nth(offset), Self::ORDER.pages()))
    }

    /// Makes those pages of the block that are in the region tails of the folio that will be formed of
    /// it, but for the head itself.
    ///
    /// False, and nothing is changed, when one of them is in use, none is in the region, or there is one only.
    pub(super) fn claim_tails(&mut self, block: PageBlock<'_>) -> bool {
        // Then share counts and references need not be looked at: nobody has any but of owned folios.
        let owners_only = owned_or_free();
        let Some((first, pages)) = self.part_of(block) else {
            return false;
        };
        let head = block.first();
        let pgmap = head.word(INFO).read_once();
        if pgmap & 1 != 0 {
            return false;
        }
        // A region is of one page map, as those begin and end at multiples of its size; another region may be of
        // another device.
        if first != head && first.word(INFO).read_once() != pgmap {
            return false;
        }
        let info = tail_info(block);
        let begin = usize::from(first == head);
        // SAFETY: The pages with numbers less than `pages` from `first` on are of the block, and their
        // region is locked.
        unsafe {
            match owners_only {
                true => claim_part::<true>(first, begin, pages, pgmap, info),
                false => claim_part::<false>(first, begin, pages, pgmap, info),
            }
        }
    }

    /// Makes pages of the tails that [`Region::claim_tails`] made, and that have no head.
    pub(super) fn release_tails(&mut self, block: PageBlock<'_>) {
        let Some((first, pages)) = self.part_of(block) else {
            return;
        };
        let head = block.first();
        let pgmap = head.word(INFO).read_once();
        // SAFETY: These pages are of the block, and their region is locked.
        unsafe { give_back(first, usize::from(first == head), pages, pgmap) };
    }

    /// Makes the first page of the block the head of a folio whose tails all were claimed. The folio has
    /// refcount 0 and no owner. False, and nothing is changed, when the page is in use, or not of the
    /// region.
    #[inline]
    pub(super) fn make_head(&mut self, block: PageBlock<'_>) -> bool {
        let head = block.first();
        let pgmap = head.word(INFO).read_once();
        if !self.covers(head)
            || block.order() == Order::PTE
            || pgmap & 1 != 0
            || head.in_use(pgmap) != 0
        {
            return false;
        }
        // SAFETY: The order is not that of one page, and nobody uses the pages.
        unsafe { init_large(block) };
        // Pairs with `is_large`: whoever sees the head sees the order.
        head.flags().set_bits(FLAG_HEAD);
        true
    }
}

impl Drop for Region {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant the lock is held.
        unsafe { bindings::rdax_region_unlock(self.number, self.flags) };
    }
}

/// Sets what the core keeps of a large folio in its second and third page, as for a fresh one.
///
/// # Safety
///
/// The order is not that of one page, the region of the first page is locked, and nobody uses these
/// pages.
#[inline]
unsafe fn init_large(block: PageBlock<'_>) {
    let order = block.order();
    // SAFETY: By this function's safety requirements there is one.
    let second = unsafe { block.first().next(1) };
    let flags = second.flags().read_once();
    second
        .flags()
        .write_once(flags & !ORDER_MASK | order.bits());
    let folio = block.first().as_ptr().cast::<bindings::folio>();
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
        (&raw mut (*counts)._mm_id_mapcount).write([-1; 2]);
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

/// Pages that are worked on in one go where all those of a large folio are.
const GROUP: usize = 16;

/// Claims the pages with the numbers from `begin`, 0 or 1, up to `pages`, counted from `first`, or none. With
/// `OWNERS_ONLY` nobody has a share count or a reference of a page that has no owner.
///
/// # Safety
///
/// They are of a block of an order that is not larger than a region, or of a whole region, which is locked.
#[inline(always)]
unsafe fn claim_part<const OWNERS_ONLY: bool>(
    first: DevPage<'_>,
    begin: usize,
    pages: usize,
    pgmap: usize,
    info: usize,
) -> bool {
    // This is most of the work of a first fault on a large folio: in groups that begin at
    // multiples of their size, but for the head.
    //
    // SAFETY: By this function's safety requirements. Orders of up to four have one group, all others a
    // multiple of its size.
    unsafe {
        let mut at = 0;
        if begin != 0 {
            let next = first.next(1);
            let claimed = match pages {
                1 => return false,
                2 => claim_group::<1, OWNERS_ONLY>(next, pgmap, info),
                4 => claim_group::<3, OWNERS_ONLY>(next, pgmap, info),
                8 => claim_group::<7, OWNERS_ONLY>(next, pgmap, info),
                _ => claim_group::<{ GROUP - 1 }, OWNERS_ONLY>(next, pgmap, info),
            };
            if !claimed {
                return false;
            }
            at = GROUP;
        }
        // Ends: each round is for the group behind the last one's.
        while at < pages {
            if !claim_group::<GROUP, OWNERS_ONLY>(first.next(at), pgmap, info) {
                give_back(first, begin, at, pgmap);
                return false;
            }
            at += GROUP;
        }
    }
    true
}

/// As [`unclaim`], for those who claim no more.
///
/// # Safety
///
/// As for that.
#[cold]
#[inline(never)]
unsafe fn give_back(first: DevPage<'_>, begin: usize, end: usize, pgmap: usize) {
    // SAFETY: By this function's safety requirements.
    unsafe { unclaim(first, begin, end, pgmap) };
}

/// Claims `N` pages or none. A page of a large folio is told by the tails, one of which at least
/// is among the pages: what they hold as a mapping is no more zero than an owner.
///
/// # Safety
///
/// The `N` pages from `page` on are of a device, and their region is locked.
#[inline(always)]
unsafe fn claim_group<const N: usize, const OWNERS_ONLY: bool>(
    page: DevPage<'_>,
    pgmap: usize,
    info: usize,
) -> bool {
    let (mut used, mut references) = (0, 0);
    for at in 0..N {
        // SAFETY: By this function's safety requirements.
        unsafe {
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
    }
    if used != 0 || references != 0 {
        return false;
    }
    for at in 0..N {
        // SAFETY: By this function's safety requirements.
        let page = unsafe { page.next(at) };
        page.word(MAPPING).write_once(TAIL_MAPPING);
        page.word(INFO).write_once(info);
    }
    true
}

/// Makes pages of the tails with the numbers from `begin` up to `end`, counted from `first`.
///
/// # Safety
///
/// They are tails that have no head, or whose folio nobody uses, and their region is locked.
#[inline(always)]
pub(super) unsafe fn unclaim(first: DevPage<'_>, begin: usize, end: usize, pgmap: usize) {
    /// As `GROUP`: there is less to do for each page.
    const RELEASED: usize = 2 * GROUP;

    let mut at = begin;
    // Ends: each round is for the pages behind the last one's.
    //
    // SAFETY: By this function's safety requirements, here and below.
    unsafe {
        while end - at >= RELEASED {
            unclaim_group::<RELEASED>(first.next(at), pgmap);
            at += RELEASED;
        }
        // Mostly these are the tails of a folio, or the last of them.
        match end - at {
            1 => return unclaim_group::<1>(first.next(at), pgmap),
            3 => return unclaim_group::<3>(first.next(at), pgmap),
            7 => return unclaim_group::<7>(first.next(at), pgmap),
            15 => return unclaim_group::<15>(first.next(at), pgmap),
            31 => return unclaim_group::<31>(first.next(at), pgmap),
            _ => (),
        }
        // Ends: as above.
        while at < end {
            unclaim_group::<1>(first.next(at), pgmap);
            at += 1;
        }
    }
}

/// Makes pages of `N` tails from `page` on.
///
/// # Safety
///
/// As for [`unclaim`].
#[inline(always)]
unsafe fn unclaim_group<const N: usize>(page: DevPage<'_>, pgmap: usize) {
    for at in 0..N {
        // SAFETY: By this function's safety requirements.
        unsafe { page.next(at) }.word(MAPPING).write_once(0);
    }
    // Pairs with `DevPage::folio`: whoever sees a page of its own sees that it has no owner.
    write_barrier();
    for at in 0..N {
        // SAFETY: By this function's safety requirements.
        unsafe { page.next(at) }.word(INFO).write_once(pgmap);
    }
}

impl DevPage<'_> {
    /// Reads a field.
    ///
    /// # Safety
    ///
    /// `offset` is that of a field of this type in `struct page`. It changes only under the lock of the
    /// page's region, which is held, or nobody changes it from what an idle page has.
    #[inline(always)]
    unsafe fn peek<T: Copy>(self, offset: usize) -> T {
        // SAFETY: By this function's safety requirements, and by the type invariant.
        unsafe { self.as_ptr().byte_add(offset).cast::<T>().read() }
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

/// The word in a tail's `mapping`.
const TAIL_MAPPING: usize =
    (bindings::TAIL_MAPPING_HIGH as usize) << 32 | bindings::TAIL_MAPPING_LOW as usize;

/// The word by which the tails of a folio of these pages lead to its head.
#[inline]
fn tail_info(block: PageBlock<'_>) -> usize {
    if tails_hold_mask() {
        let shift = block.order().bits() as u32 + size_of::<bindings::page>().trailing_zeros();
        (usize::MAX << shift) | 1
    } else {
        block.first().as_ptr() as usize | 1
    }
}
