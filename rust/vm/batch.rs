// SPDX-License-Identifier: GPL-2.0

//! The pages that a fault maps along with its own.

use crate::kern::{
    fs::PageIndex,
    page::PageRun, //
};
use core::mem::MaybeUninit;

///
/// # Invariants
///
/// The first `len` of the runs were given, and their places are in `given`.
pub(crate) struct PteBatch<'p> {
    first: PageIndex,
    /// A bit for each place that has a page, of memory or of zeroes.
    given: usize,
    zeroes: usize,
    len: usize,
    memory: [MaybeUninit<PteRun<'p>>; MAX],
}

/// Pages that are contiguous in the file and in memory, from a place on.
#[derive(Clone, Copy)]
struct PteRun<'p> {
    at: usize,
    pages: PageRun<'p>,
}

/// [`PteBatch::MAX`].
const MAX: usize = 16;

impl<'p> PteBatch<'p> {
    /// The most pages.
    pub(crate) const MAX: usize = MAX;

    /// No pages yet, of the range that begins at `first`.
    #[inline(always)]
    pub(crate) fn new(first: PageIndex) -> Self {
        // INVARIANT: None was given.
        Self {
            first,
            given: 0,
            zeroes: 0,
            len: 0,
            memory: [const { MaybeUninit::uninit() }; MAX],
        }
    }

    /// A bit for each of `pages` places from the one at `index` of the file on: the first of them, and
    /// the bits. `None` if it is not in the range; those behind it are left out.
    #[inline(always)]
    fn places(&self, index: PageIndex, pages: usize) -> Option<(usize, usize)> {
        let at = index.get().wrapping_sub(self.first.get());
        if at >= MAX || pages == 0 {
            return None;
        }
        Some((at, places(at, pages.min(MAX - at))))
    }

    /// Adds pages from `index` of the file on; those that are not in the range, or known to be bad, are
    /// left out.
    #[inline(always)]
    pub(crate) fn add(&mut self, index: PageIndex, pages: PageRun<'p>) {
        let Some((at, bits)) = self.places(index, pages.pages()) else {
            return;
        };
        let pages = pages.up_to(MAX - at);
        match pages.has_marks() {
            false => self.add_sound(at, bits, pages),
            true => self.add_some(at, pages),
        }
    }

    /// Adds those pages from the place `at` on that are not known to be bad.
    #[cold]
    fn add_some(&mut self, at: usize, pages: PageRun<'p>) {
        for (number, page) in pages.iter().enumerate() {
            if !page.is_poisoned() {
                self.add_sound(at + number, 1 << (at + number), page.block().run());
            }
        }
    }

    #[inline(always)]
    fn add_sound(&mut self, at: usize, bits: usize, pages: PageRun<'p>) {
        if let Some(last) = self.memory[..self.len.min(MAX)].last_mut() {
            // SAFETY: By the type invariant it was given.
            let last = unsafe { last.assume_init_mut() };
            if last.at + last.pages.pages() == at {
                if let Some(joined) = last.pages.joined(pages) {
                    last.pages = joined;
                    self.given |= bits;
                    return;
                }
            }
        }
        if let Some(next) = self.memory.get_mut(self.len) {
            // INVARIANT: One more was given.
            next.write(PteRun { at, pages });
            self.len += 1;
            self.given |= bits;
        }
    }

    /// Adds pages of zeroes from `index` of the file on.
    #[inline]
    pub(crate) fn add_zeroes(&mut self, index: PageIndex, pages: usize) {
        if let Some((_, bits)) = self.places(index, pages) {
            self.given |= bits;
            self.zeroes |= bits;
        }
    }

    /// The pages' places in the file.
    #[cfg(RDAX_CHECK)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = PageIndex> + '_ {
        (0..MAX)
            .filter(|at| self.given >> at & 1 != 0)
            .map(|at| self.index(at))
    }

    /// Where in the file the place with this number is.
    #[inline]
    pub(in crate::kern) fn index(&self, at: usize) -> PageIndex {
        PageIndex::new(self.first.get() + at)
    }

    /// The numbers of the first place that has a page, and of the last. `None` if there are none.
    #[inline]
    pub(in crate::kern) fn bounds(&self) -> Option<(usize, usize)> {
        let last = self.given.checked_ilog2()?;
        Some((self.given.trailing_zeros() as usize, last as usize))
    }

    /// Calls `work` with the memory of those places that have a bit in `free`, in pieces: the number of
    /// the first place, and the pages.
    #[inline(always)]
    pub(in crate::kern) fn memory(&self, free: usize, mut work: impl FnMut(usize, PageRun<'p>)) {
        for run in &self.memory[..self.len.min(MAX)] {
            // SAFETY: By the type invariant it was given.
            let PteRun { at, pages } = unsafe { run.assume_init() };
            let mut rest = free & places(at, pages.pages());
            // Ends: each turn is for the lowest bits, which are cleared.
            while rest != 0 {
                let begin = rest.trailing_zeros() as usize;
                let count = (!(rest >> begin)).trailing_zeros() as usize;
                rest &= !places(begin, count);
                if let Some(part) = pages.from(begin - at) {
                    work(begin, part.up_to(count));
                }
            }
        }
    }

    /// Calls `work` with the number of each place that has a page of zeroes and a bit in `free`.
    #[inline(always)]
    pub(in crate::kern) fn zeroes(&self, free: usize, mut work: impl FnMut(usize)) {
        let mut rest = free & self.zeroes;
        // Ends: as above.
        while rest != 0 {
            work(rest.trailing_zeros() as usize);
            rest &= rest - 1;
        }
    }
}

/// A bit for each of `pages` places, at least one, from `at` on, in all less than a word has bits.
#[inline(always)]
const fn places(at: usize, pages: usize) -> usize {
    ((1 << pages) - 1) << at
}
