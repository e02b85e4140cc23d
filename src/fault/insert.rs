// SPDX-License-Identifier: GPL-2.0

//! Inserting into the page table.

#[cfg(RDAX_CHECK)]
use super::super::check;
use super::{
    super::{
        stats::Counter,
        tree::{LockedEntry, Prefault, PrefaultEntries}, //
    },
    install::Installed,
    lock::Target,
    plan::Wanted,
    Failure, Fault, Outcome, PTE,
};
use crate::kern::{
    order::Order,
    page::DevPage,
    page_table::Insertion,
    trace,
    vm::{self, FaultCode}, //
};

/// The most entries of 1 GiB for the same memory, if not many come at the same time, for a process that has mapped
/// as many of whatever memory: all go at once when the file is truncated, and each of their places is remembered for a
/// while. Others get theirs, whoever has so many.
const MOST_PUDS: u32 = 4096;

impl<'a, const ORDER: usize> Fault<'a, ORDER> {
    /// Maps the installed page, and the pages around it; or says that the metadata has to be durable
    /// first.
    #[inline(always)]
    pub(super) fn insert(
        &mut self,
        target: &Target<'_, '_>,
        prefault: Prefault,
        behind: Option<&PrefaultEntries<'_, '_>>,
        wanted: &Wanted,
        installed: &Installed<'_>,
    ) -> Result<Outcome, Failure<'a>> {
        if wanted.entry.dirty {
            self.mapping.host().mark_dirty_pages();
        }
        let mut major = FaultCode::DONE;
        if installed.new {
            vm::count_major_fault();
            major = FaultCode::MAJOR;
        }
        if let (true, Some(page)) = (installed.sync, installed.page) {
            self.device.inc(Counter::SyncFaults);
            return Ok(Outcome {
                code: FaultCode::NEED_SYNC.with(major),
                pfn: Some(page.pfn()),
                error: None,
            });
        }
        let code = match installed.page {
            Some(page) => self.insert_memory(target.locked, page, target.present)?,
            None => self.insert_zeroes()?,
        };
        if !code.is_error() {
            if ORDER == PTE && self.write && !target.locked.entry().is_of_one_page() {
                // Its other pages may be mapped ahead.
                target.locked.change(|entry| entry.ahead());
            }
            if !wanted.alone {
                self.insert_around(target, prefault, behind, wanted, installed.asked);
            }
        }
        Ok(code.with(major).into())
    }

    /// Puts memory into the page table.
    #[inline(always)]
    pub(super) fn insert_memory(
        &mut self,
        locked: &LockedEntry<'_>,
        page: DevPage<'_>,
        present: bool,
    ) -> Result<FaultCode, Failure<'a>> {
        if self.vmf.wants_copy() {
            self.device.inc(Counter::PrivatePte);
            return Ok(self.vmf.give_page(page));
        }
        let write = self.write;
        let counter = self.counter(present);
        let folio = page.folio();
        #[cfg(RDAX_CHECK)]
        check::about_to_map(self.mapping, self.index, write);
        let inserted = match self.order() {
            Order::PTE => self.vmf.insert_page(page, write),
            order if locked.entry().order() != order => Insertion::Unfit,
            Order::PMD => self.vmf.insert_pmd(folio, write),
            Order::PUD
                if !present
                    && folio.entire_mapcount() >= MOST_PUDS
                    && self.vmf.has_mapped(MOST_PUDS as usize * Order::PUD.pages()) =>
            {
                return Err(Failure::Fallback(Counter::FallbackNomem));
            }
            _ => self.vmf.insert_pud(folio, write),
        };
        if inserted == Insertion::Unfit {
            // A larger folio, which the core maps whole or page by page only.
            return Err(Failure::Fallback(Counter::FallbackConflict));
        }
        if inserted.is_done() {
            self.device.inc(counter);
            if trace::wants_insertions() {
                trace::insert(self.vmf, locked.entry(), locked.first(), self.order());
            }
        }
        Ok(inserted.code())
    }

    fn insert_zeroes(&mut self) -> Result<FaultCode, Failure<'a>> {
        if self.vmf.wants_copy() {
            self.device.inc(Counter::PrivatePte);
            return Ok(self.vmf.give_zero_page());
        }
        if self.order() == Order::PTE {
            self.device.inc(Counter::ZeroPte);
            return Ok(self.vmf.insert_zero_page().code());
        }
        let inserted = self.vmf.insert_zero_pmd();
        let inserted = inserted.ok_or(Failure::Fallback(Counter::FallbackNomem))?;
        self.device.inc(Counter::ZeroPmd);
        Ok(inserted.code())
    }

    /// The counter of this fault, at an address where an entry was `present` or not.
    fn counter(&self, present: bool) -> Counter {
        match (self.order(), self.write, present) {
            (Order::PTE, false, _) => Counter::ReadPte,
            (Order::PTE, true, false) => Counter::WritePte,
            (Order::PTE, true, true) => Counter::MkwritePte,
            (Order::PMD, false, _) => Counter::ReadPmd,
            (Order::PMD, true, false) => Counter::WritePmd,
            (Order::PMD, true, true) => Counter::MkwritePmd,
            (_, false, _) => Counter::ReadPud,
            (_, true, false) => Counter::WritePud,
            (_, true, true) => Counter::MkwritePud,
        }
    }
}
