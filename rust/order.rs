// SPDX-License-Identifier: GPL-2.0

//! The size of an entry, a folio or a mapping: log2 of the pages it covers.

use super::fs::PageIndex;
use kernel::{
    page::PAGE_SHIFT,
    sync::atomic::AtomicType, //
};

/// Log2 of a number of pages.
///
/// # Invariants
///
/// At most that of [`Order::PUD`].
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Order(u8);

// SAFETY: A byte, of which every value that an order has is one of an `i8`.
unsafe impl AtomicType for Order {
    type Repr = i8;
}

impl Order {
    /// Log2 of the bytes of a page.
    pub(crate) const PAGE_SHIFT: usize = PAGE_SHIFT;
    /// One page, mapped by an entry of the last level.
    pub(crate) const PTE: Self = Self(0);
    /// The order of an entry of the second level: 2 MiB.
    pub(crate) const PMD: Self = Self(9);
    /// The order of an entry of the third level: 1 GiB.
    pub(crate) const PUD: Self = Self(18);

    /// The order that a caller in C asks for; `None` for one that no page-table level has.
    #[inline]
    pub(crate) const fn of_level(order: u32) -> Option<Self> {
        match order {
            0 => Some(Self::PTE),
            9 => Some(Self::PMD),
            18 => Some(Self::PUD),
            _ => None,
        }
    }

    /// The order with this number, cut at [`Order::PUD`].
    #[inline]
    pub(crate) const fn from_bits(bits: usize) -> Self {
        if bits > Self::PUD.0 as usize {
            Self::PUD
        } else {
            Self(bits as u8)
        }
    }

    /// The order with this number.
    ///
    /// # Safety
    ///
    /// It is one that [`Order::bits`] gave.
    #[inline(always)]
    pub(super) const unsafe fn from_bits_unchecked(bits: usize) -> Self {
        // INVARIANT: By this function's safety requirements.
        Self(bits as u8)
    }

    /// The order's number.
    #[inline]
    pub(crate) const fn bits(self) -> usize {
        self.0 as usize
    }

    /// The largest order that is not larger than this one, that `index` is a multiple of, and that
    /// `pages` pages (at least one) suffice for.
    #[inline]
    pub(crate) const fn fitting(self, index: usize, pages: usize) -> Self {
        // Both have a bit set.
        let aligned = (index | Self::PUD.pages()).trailing_zeros();
        let enough = (pages | 1).ilog2();
        let mut order = self.0 as u32;
        if aligned < order {
            order = aligned;
        }
        if enough < order {
            order = enough;
        }
        Self(order as u8)
    }

    /// Pages covered.
    #[inline]
    pub(crate) const fn pages(self) -> usize {
        1 << self.0
    }

    /// Bytes covered.
    #[inline]
    pub(crate) const fn bytes(self) -> usize {
        1 << (self.0 as usize + Self::PAGE_SHIFT)
    }

    /// The first index of the range of this order that `index` lies in.
    #[inline]
    pub(crate) const fn first(self, index: PageIndex) -> PageIndex {
        PageIndex::new(index.get() & !(self.pages() - 1))
    }

    /// The last index of the range of this order that `index` lies in.
    #[inline]
    pub(crate) const fn last(self, index: PageIndex) -> PageIndex {
        PageIndex::new(index.get() | (self.pages() - 1))
    }
}
