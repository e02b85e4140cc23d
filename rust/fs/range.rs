// SPDX-License-Identifier: GPL-2.0

//! Positions in a file.

use crate::kern::order::Order;
/// A position in a file, in pages.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct PageIndex(usize);

impl PageIndex {
    /// The last index that a file can have.
    pub(crate) const MAX: Self = Self(usize::MAX >> Order::PAGE_SHIFT);

    #[inline]
    pub(crate) const fn new(index: usize) -> Self {
        Self(index)
    }

    /// The page that the byte at `pos` is in.
    #[inline]
    pub(crate) const fn of_byte(pos: u64) -> Self {
        Self((pos >> Order::PAGE_SHIFT) as usize)
    }

    #[inline]
    pub(crate) const fn get(self) -> usize {
        self.0
    }

    /// The position in the file of the page's first byte.
    #[inline]
    pub(crate) const fn to_byte(self) -> u64 {
        (self.0 as u64) << Order::PAGE_SHIFT
    }
}

/// A range of pages of a file, both ends included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PageRange {
    pub(crate) first: PageIndex,
    pub(crate) last: PageIndex,
}

impl PageRange {
    /// All of a file.
    pub(crate) const ALL: Self = Self {
        first: PageIndex::new(0),
        last: PageIndex::MAX,
    };

    /// The pages that the bytes from `start` to `end`, both included, are in; at least one. An end
    /// below the start of the file (callers say -1) or past its largest size means all the rest.
    pub(crate) fn of_bytes(start: i64, end: i64) -> Self {
        let first = PageIndex::of_byte(start.max(0) as u64);
        let last = if end < 0 || end == i64::MAX {
            PageIndex::MAX
        } else {
            PageIndex::of_byte(end as u64).max(first)
        };
        Self { first, last }
    }

    /// The whole pages from byte `start` up to `end`, included; -1 means all the rest.
    pub(crate) fn within_bytes(start: i64, end: i64) -> Option<Self> {
        let start = (start.max(0) as u64).next_multiple_of(Order::PTE.bytes() as u64);
        let first = PageIndex::of_byte(start);
        if end < 0 {
            return Some(Self {
                first,
                last: PageIndex::MAX,
            });
        }
        let end = PageIndex::of_byte(end as u64 + 1).get();
        (end > first.get()).then(|| Self {
            first,
            last: PageIndex::new(end - 1),
        })
    }

    /// The pages that `len` bytes (at least one) from `pos` on are in.
    pub(crate) fn of_len(pos: u64, len: u64) -> Self {
        Self {
            first: PageIndex::of_byte(pos),
            last: PageIndex::of_byte(pos.saturating_add(len.max(1) - 1)),
        }
    }

    /// The number of pages.
    pub(crate) fn pages(self) -> usize {
        self.last
            .get()
            .saturating_sub(self.first.get())
            .saturating_add(1)
    }
}
