// SPDX-License-Identifier: GPL-2.0

//! Pages that follow each other.

use super::{
    DevPage,
    Pfn,
    FLAG_HWPOISON,
    FLAG_MADE_UP, //
};
use crate::kern::{
    bindings,
    once::Once,
    order::Order, //
};

/// Pages of a device that follow each other, at least one.
///
/// # Invariants
///
/// All of the `pages` frames from `first` on are of page maps of devices, as the page of [`DevPage`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct PageRun {
    first: Pfn,
    pages: usize,
}

impl PageRun {
    /// # Safety
    ///
    /// `pages` is not 0, and all of these frames are of page maps of devices, which stay for as long as
    /// the result is used.
    #[inline]
    pub(in crate::kern) const unsafe fn from_frames(first: Pfn, pages: usize) -> Self {
        // INVARIANT: By this function's safety requirements.
        Self { first, pages }
    }

    /// The first frame.
    #[inline]
    pub(crate) const fn pfn(self) -> Pfn {
        self.first
    }

    /// How many pages these are.
    #[inline]
    pub(crate) const fn pages(self) -> usize {
        self.pages
    }

    /// How many bytes that is.
    #[inline]
    pub(crate) const fn bytes(self) -> usize {
        self.pages << Order::PAGE_SHIFT
    }

    /// The first page.
    #[inline]
    pub(crate) fn first(self) -> DevPage {
        // SAFETY: By the type invariant there is one.
        unsafe { DevPage::of(self.first) }
    }

    /// The page with this number, from 0 on.
    #[inline]
    pub(crate) fn nth(self, at: usize) -> Option<DevPage> {
        // SAFETY: By the type invariant these frames have pages.
        (at < self.pages).then(|| unsafe { DevPage::of(self.first.offset(at)) })
    }

    /// All of the pages, the first one first.
    #[inline]
    pub(crate) fn iter(self) -> impl Iterator<Item = DevPage> {
        // SAFETY: By the type invariant these frames have pages.
        (0..self.pages).map(move |at| unsafe { DevPage::of(self.first.offset(at)) })
    }

    /// Whether any of the pages is marked.
    #[inline]
    pub(crate) fn has_marks(self) -> bool {
        let first = self.first();
        let mut flags = 0;
        for at in 0..self.pages {
            // SAFETY: By the type invariant there are so many pages.
            flags |= unsafe { first.next(at) }.flags().read_once();
        }
        flags & (FLAG_HWPOISON | FLAG_MADE_UP) != 0
    }

    /// The pages from number `at` on.
    #[inline]
    pub(crate) fn from(self, at: usize) -> Option<Self> {
        // INVARIANT: A part of the run, at least one page.
        (at < self.pages).then(|| Self {
            first: self.first.offset(at),
            pages: self.pages - at,
        })
    }

    /// The first `pages` pages, at least one and no more than there are.
    #[inline]
    pub(crate) fn up_to(self, pages: usize) -> Self {
        // INVARIANT: A part of the run, at least one page.
        Self {
            pages: pages.clamp(1, self.pages),
            ..self
        }
    }

    /// The pages from number `at` on that can be the memory of an entry of `order`. `None` if there are
    /// too few, or they do not begin at a multiple of their number.
    #[inline]
    pub(crate) fn block(self, at: usize, order: Order) -> Option<PageBlock> {
        let first = self.first.offset(at);
        // INVARIANT: A part of the run, and aligned.
        (at < self.pages && order.pages() <= self.pages - at && first.is_aligned(order))
            .then_some(PageBlock { first, order })
    }

    /// These pages and those of another run, if it begins where this one ends.
    #[inline]
    pub(crate) fn joined(self, next: Self) -> Option<Self> {
        // INVARIANT: All pages of both.
        (self.first.offset(self.pages) == next.first).then(|| Self {
            pages: self.pages + next.pages,
            ..self
        })
    }

    /// The address of the byte at `offset`, and how many of `bytes` bytes the pages have from there on.
    #[inline]
    pub(in crate::kern) fn range(self, offset: usize, bytes: usize) -> (*mut u8, usize) {
        let offset = offset.min(self.bytes());
        (
            self.first().address().as_ptr().wrapping_add(offset),
            bytes.min(self.bytes() - offset),
        )
    }

    /// Writes the cache lines of `bytes` bytes from `offset` on, as far as the pages have them, back to
    /// the device, whether or not it has a cache that can be lost.
    #[inline]
    pub(crate) fn write_back(self, offset: usize, bytes: usize) {
        let (address, bytes) = self.range(offset, bytes);
        // SAFETY: By the type invariant the memory is there. Writing back cache lines changes nothing.
        unsafe { bindings::arch_wb_cache_pmem(address.cast(), bytes) };
    }
}

/// Pages that an entry or a folio of an order can have.
///
/// # Invariants
///
/// As for a [`PageRun`] of as many pages as the order has; the first frame is a multiple of that
/// number.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct PageBlock {
    first: Pfn,
    order: Order,
}

impl PageBlock {
    /// # Safety
    ///
    /// All of these frames are of page maps of devices, which stay for as long as the result is used,
    /// and the first is a multiple of their number.
    #[inline]
    pub(in crate::kern) const unsafe fn from_frames(first: Pfn, order: Order) -> Self {
        // INVARIANT: By this function's safety requirements.
        Self { first, order }
    }

    /// The first frame.
    #[inline]
    pub(crate) const fn pfn(self) -> Pfn {
        self.first
    }

    /// Log2 of the number of pages.
    #[inline]
    pub(crate) const fn order(self) -> Order {
        self.order
    }

    /// The first page.
    #[inline]
    pub(crate) fn first(self) -> DevPage {
        // SAFETY: By the type invariant there is one.
        unsafe { DevPage::of(self.first) }
    }

    /// The page with this number, modulo the number of pages.
    #[inline]
    pub(crate) fn nth(self, at: usize) -> DevPage {
        let at = at & (self.order.pages() - 1);
        // SAFETY: By the type invariant these frames have pages.
        unsafe { DevPage::of(self.first.offset(at)) }
    }

    /// The pages as a run.
    #[inline]
    pub(crate) fn run(self) -> PageRun {
        // SAFETY: By the type invariant; every order has at least one page.
        unsafe { PageRun::from_frames(self.first, self.order.pages()) }
    }
}
