// SPDX-License-Identifier: GPL-2.0

//! Pages that are mapped along with the one that was accessed.

#[cfg(RDAX_CHECK)]
use super::super::check;
use super::{
    super::{
        stats::Counter,
        tree::{
            self, AroundAction, AroundEntries, Backing, LockedEntry, Prefault, PrefaultEntries,
        }, //
    },
    lock::Target,
    plan::Wanted,
    Fault,
};
use crate::kern::{
    entry::Entry,
    fs::{PageIndex, PageRange},
    order::Order,
    vm::PteBatch, //
};

impl<const ORDER: usize> Fault<'_, ORDER> {
    /// Maps pages along with the accessed one, which is mapped already: the prefaulted ones behind it
    /// if the filesystem was asked; otherwise those around it that can be mapped without asking.
    pub(super) fn insert_around(
        &mut self,
        target: &Target<'_, '_>,
        prefault: Prefault,
        behind: Option<&PrefaultEntries<'_>>,
        wanted: &Wanted,
        asked: bool,
    ) {
        let Target { locked, size, .. } = target;
        if self.order() != Order::PTE || asked && behind.is_none() && *size == Order::PTE {
            return;
        }
        let limits = &wanted.entry.prefault;
        let Some(block) = limits.map(|limits| limits.block).or_else(|| self.block()) else {
            return;
        };
        let candidates = self.vmf.candidate_ptes(block);
        if candidates == 0 {
            return;
        }
        let mut batch = PteBatch::new(block.first);
        if locked.entry().order() != Order::PTE {
            Self::add(&mut batch, block, locked.first(), locked.entry());
        }
        let entries;
        if !asked {
            entries = self.lock_around(&mut batch, locked, prefault.pages, block, candidates);
            if entries.marked {
                self.mapping.host().mark_dirty_pages();
            }
        } else if let Some(behind) = behind {
            let (first, pages, backing) = behind.filled();
            let pages = pages.min((block.last.get() + 1).saturating_sub(first.get()));
            match backing {
                Backing::Hole => batch.add_zeroes(first, pages),
                Backing::Memory(run) if pages != 0 => batch.add(first, run.up_to(pages)),
                Backing::Memory(_) => (),
            }
        }
        #[cfg(RDAX_CHECK)]
        for index in batch.iter() {
            check::about_to_map(self.mapping, index, self.write);
        }
        let mapped = self.vmf.map_batch(&batch, self.write);
        self.device.add(Counter::AroundPte, mapped as u64);
    }

    /// Adds the pages of an entry that are in the block.
    #[inline]
    fn add(batch: &mut PteBatch, block: PageRange, first: PageIndex, entry: Entry) {
        let Some(memory) = entry.block() else {
            return;
        };
        let begin = first.max(block.first).get();
        let end = entry.order().last(first).min(block.last).get();
        if begin > end {
            return;
        }
        if let Some(pages) = memory.run().from(begin - first.get()) {
            batch.add(PageIndex::new(begin), pages.up_to(end - begin + 1));
        }
    }

    /// Locks the entries around that can be mapped as they are, and adds their pages. For writing, an
    /// entry is dirty already, or is among the `ahead` pages from the accessed one on and is marked.
    #[inline]
    fn lock_around<'l, 'm>(
        &self,
        batch: &mut PteBatch,
        locked: &'l LockedEntry<'m>,
        ahead: usize,
        block: PageRange,
        candidates: usize,
    ) -> AroundEntries<'l, 'm> {
        let write = self.write;
        let first = self.index;
        let end = self.index.get() + ahead;
        tree::lock_around(locked, block, candidates, write, |at, entry, dirty| {
            let Some(memory) = entry.block().filter(|_| !write || entry.is_writable()) else {
                return AroundAction::Leave;
            };
            let mut action = AroundAction::Lock;
            if write && !dirty {
                if at < first || entry.order().last(at).get() >= end {
                    return AroundAction::Leave;
                }
                action = AroundAction::LockAndMark;
            }
            if entry.is_of_one_page() {
                batch.add(at, memory.run());
            } else {
                Self::add(batch, block, at, entry);
            }
            action
        })
    }
}
