// SPDX-License-Identifier: GPL-2.0

//! Folios larger than a region: formed of the tails of one region after the other.

use super::{
    region_folio,
    EntryMemory,
    NewAssociation,
    PageBlock,
    Region,
    RegionFolio, //
};
use crate::kern::vm;
use kernel::prelude::*;

kernel::sync::global_lock! {
    // SAFETY: Made ready when the module is loaded, before any file is served.
    unsafe(uninit) static GIGANTIC: Mutex<()> = ();
}

/// The lock under which folios larger than a region are formed and dissolved, which takes many
/// regions one after the other. It is taken before any other lock of this file, and sleeps.
pub(crate) struct GiganticLock {
    _guard: kernel::sync::GlobalGuard<GIGANTIC>,
}

impl GiganticLock {
    /// Makes the lock ready.
    ///
    /// # Safety
    ///
    /// To be called once, before anybody takes it.
    pub(in crate::kern) unsafe fn init() {
        // SAFETY: By this function's safety requirements.
        unsafe { GIGANTIC.init() };
    }

    /// Takes the lock. Sleeps.
    pub(crate) fn lock() -> Self {
        Self {
            _guard: GIGANTIC.lock(),
        }
    }

    /// Begins to form a folio larger than a region of these pages. `None` if it would not be larger.
    pub(crate) fn begin<'p>(&mut self, block: PageBlock<'p>) -> Option<Tails<'_, 'p>> {
        // INVARIANT: Of no region are the pages tails yet.
        (block.order() > Region::ORDER).then_some(Tails {
            block,
            regions: 0,
            _gigantic: self,
        })
    }
}

impl<'p> RegionFolio<'_, 'p> {
    /// Begins to dissolve a folio that is larger than a region: what is left are tails without a head,
    /// to be released when the region is unlocked. `None`, and nothing is changed, if it is not larger,
    /// or in use.
    pub(crate) fn dissolve_head<'g>(self, gigantic: &'g mut GiganticLock) -> Option<Tails<'g, 'p>> {
        let block = self.block();
        if block.order() <= Region::ORDER || !self.is_idle() {
            return None;
        }
        self.unmake_head(block.order());
        // INVARIANT: All pages were tails of the folio.
        Some(Tails {
            block,
            regions: block.order().pages() / Region::ORDER.pages(),
            _gigantic: gigantic,
        })
    }
}

/// The tails of a folio larger than a region that has no head yet, or no more. Dropping it makes pages
/// of their own of them, for which regions are locked, and sleeps.
///
/// # Invariants
///
/// The pages of the block in its first `regions` regions, but for the very first page, are tails that
/// have no head, and nobody else makes anything else of them: for that they would need the lock that
/// this borrows.
pub(crate) struct Tails<'g, 'p> {
    block: PageBlock<'p>,
    regions: usize,
    _gigantic: &'g mut GiganticLock,
}

impl<'p> Tails<'_, 'p> {
    /// The pages in the next region that are to be claimed; `None` when all were.
    #[inline]
    pub(crate) fn next(&self) -> Option<PageBlock<'p>> {
        self.part(self.regions)
    }

    /// The pages in the region with this number, counted from the first.
    fn part(&self, number: usize) -> Option<PageBlock<'p>> {
        let at = number * Region::ORDER.pages();
        self.block.run().block(at, Region::ORDER)
    }

    /// Claims what [`Tails::next`] said. False, and nothing is changed, if one of the pages is in use,
    /// or the region is that of others.
    pub(crate) fn claim(&mut self, region: &mut Region) -> bool {
        let Some(next) = self.next() else {
            return false;
        };
        if !region.covers(next.first()) || !region.claim_tails(self.block) {
            return false;
        }
        // INVARIANT: Those in the next region are tails, too, now.
        self.regions += 1;
        true
    }

    /// Gives the tails their head, when all were claimed, under the lock of the first page's region, and the folio
    /// to the entry whose memory it is.
    ///
    /// Errors: the tails, if not all were claimed, they are not that memory, or the first page is in use.
    pub(crate) fn finish(
        mut self,
        region: &mut Region,
        memory: EntryMemory<'p>,
    ) -> Result<NewAssociation<'p>, Self> {
        if self.next().is_some() || memory.block() != self.block || !region.make_head(self.block) {
            return Err(self);
        }
        // INVARIANT: They have a head now.
        self.regions = 0;
        // SAFETY: `make_head` has seen that the first page is of the region, which is locked, and that nobody owns or
        // shares it.
        Ok(unsafe { region_folio::set_owner(memory.block().first(), memory) })
    }
}

impl Drop for Tails<'_, '_> {
    fn drop(&mut self) {
        for number in 0..self.regions {
            let Some(part) = self.part(number) else {
                break;
            };
            let mut region = Region::lock(part.first());
            region.release_tails(self.block);
            drop(region);
            vm::cond_resched();
        }
    }
}
