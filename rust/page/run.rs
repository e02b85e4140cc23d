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
    order::Order,
    xa::TreeKey, //
};
use core::{
    marker::PhantomData,
    ops::Deref, //
};

/// Frames that follow each other: numbers, which do not say whether there are such frames.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frames {
    pub(crate) first: Pfn,
    pub(crate) pages: usize,
}

impl Frames {
    /// How many frames come before this one. `None` if it is none of them.
    #[inline]
    pub(crate) fn offset_of(self, pfn: Pfn) -> Option<usize> {
        let offset = pfn.to_bits().wrapping_sub(self.first.to_bits());
        (offset < self.pages).then_some(offset)
    }
}

/// Pages of a device that follow each other, at least one.
///
/// # Invariants
///
/// All of the `pages` frames from `first` on are of page maps of devices, which are there for `'a`, as that of
/// a [`DevPage`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct PageRun<'a> {
    first: Pfn,
    pages: usize,
    _kept: PhantomData<&'a ()>,
}

impl<'a> PageRun<'a> {
    /// # Safety
    ///
    /// `pages` is not 0, and all of these frames are of page maps of devices, which are there for `'a`.
    #[inline]
    pub(in crate::kern) const unsafe fn from_frames(first: Pfn, pages: usize) -> Self {
        // INVARIANT: By this function's safety requirements.
        Self {
            first,
            pages,
            _kept: PhantomData,
        }
    }

    /// The first frame.
    #[inline]
    pub(crate) const fn pfn(self) -> Pfn {
        self.first
    }

    /// The frames.
    pub(crate) const fn frames(self) -> Frames {
        Frames {
            first: self.first,
            pages: self.pages,
        }
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
    pub(crate) fn first(self) -> DevPage<'a> {
        // SAFETY: By the type invariant there is one.
        unsafe { DevPage::of(self.first) }
    }

    /// The page with this number, from 0 on.
    #[inline]
    pub(crate) fn nth(self, at: usize) -> Option<DevPage<'a>> {
        // SAFETY: By the type invariant these frames have pages.
        (at < self.pages).then(|| unsafe { DevPage::of(self.first.offset(at)) })
    }

    /// All of the pages, the first one first.
    #[inline]
    pub(crate) fn iter(self) -> impl Iterator<Item = DevPage<'a>> {
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
            ..self
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
    pub(crate) fn block(self, at: usize, order: Order) -> Option<PageBlock<'a>> {
        let first = self.first.offset(at);
        // INVARIANT: A part of the run, and aligned.
        (at < self.pages && order.pages() <= self.pages - at && first.is_aligned(order)).then_some(
            PageBlock {
                first,
                order,
                _kept: PhantomData,
            },
        )
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
pub(crate) struct PageBlock<'a> {
    first: Pfn,
    order: Order,
    _kept: PhantomData<&'a ()>,
}

impl<'a> PageBlock<'a> {
    /// # Safety
    ///
    /// All of these frames are of page maps of devices, which are there for `'a`, and the first is a
    /// multiple of their number.
    #[inline]
    pub(in crate::kern) const unsafe fn from_frames(first: Pfn, order: Order) -> Self {
        // INVARIANT: By this function's safety requirements.
        Self {
            first,
            order,
            _kept: PhantomData,
        }
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
    pub(crate) fn first(self) -> DevPage<'a> {
        // SAFETY: By the type invariant there is one.
        unsafe { DevPage::of(self.first) }
    }

    /// The page with this number, modulo the number of pages.
    #[inline]
    pub(crate) fn nth(self, at: usize) -> DevPage<'a> {
        let at = at & (self.order.pages() - 1);
        // SAFETY: By the type invariant these frames have pages.
        unsafe { DevPage::of(self.first.offset(at)) }
    }

    /// The pages as a run.
    #[inline]
    pub(crate) fn run(self) -> PageRun<'a> {
        // SAFETY: By the type invariant; every order has at least one page.
        unsafe { PageRun::from_frames(self.first, self.order.pages()) }
    }
}

/// Pages that a device has given for a file of which an entry is locked.
///
/// # Invariants
///
/// The device is one that the filesystem of the file is on, whose tree is `tree`: it waits for the locked entries
/// of the file before it goes ([`LockedSlot`](crate::kern::xa::LockedSlot)). An entry was locked for `'l`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct FilePages<'l> {
    run: PageRun<'l>,
    tree: TreeKey,
}

impl<'l> FilePages<'l> {
    /// # Safety
    ///
    /// As the type invariant says.
    #[inline]
    pub(in crate::kern) const unsafe fn new(run: PageRun<'l>, tree: TreeKey) -> Self {
        // INVARIANT: By this function's safety requirements.
        Self { run, tree }
    }

    /// Which file's they are.
    #[inline]
    pub(in crate::kern) const fn tree(self) -> TreeKey {
        self.tree
    }

    /// As [`PageRun::from`].
    #[inline]
    pub(crate) fn from(self, at: usize) -> Option<Self> {
        // INVARIANT: A part of the pages.
        let run = self.run.from(at)?;
        Some(Self { run, ..self })
    }

    /// As [`PageRun::up_to`].
    #[inline]
    pub(crate) fn up_to(self, pages: usize) -> Self {
        // INVARIANT: A part of the pages.
        Self {
            run: self.run.up_to(pages),
            ..self
        }
    }

    /// As [`PageRun::block`].
    #[inline]
    pub(crate) fn block(self, at: usize, order: Order) -> Option<FileBlock<'l>> {
        // INVARIANT: A part of the pages.
        let pages = self.run.block(at, order)?;
        Some(FileBlock {
            pages,
            tree: self.tree,
        })
    }
}

impl<'l> Deref for FilePages<'l> {
    type Target = PageRun<'l>;

    #[inline]
    fn deref(&self) -> &PageRun<'l> {
        &self.run
    }
}

/// Such pages as an entry of the file can have.
///
/// # Invariants
///
/// As for [`FilePages`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileBlock<'l> {
    pages: PageBlock<'l>,
    tree: TreeKey,
}

impl<'l> FileBlock<'l> {
    /// # Safety
    ///
    /// As the type invariant says.
    #[cfg(RDAX_TEST)]
    pub(in crate::kern) const unsafe fn new(pages: PageBlock<'l>, tree: TreeKey) -> Self {
        // INVARIANT: By this function's safety requirements.
        Self { pages, tree }
    }

    /// Which file's they are.
    #[inline]
    pub(in crate::kern) const fn tree(self) -> TreeKey {
        self.tree
    }

    /// The pages, whatever they are used for.
    #[inline]
    pub(crate) const fn pages(self) -> PageBlock<'l> {
        self.pages
    }
}

impl<'l> Deref for FileBlock<'l> {
    type Target = PageBlock<'l>;

    #[inline]
    fn deref(&self) -> &PageBlock<'l> {
        &self.pages
    }
}
