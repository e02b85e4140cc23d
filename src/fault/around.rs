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

/// The first pages of a block, as many as a [`PteBatch`] has room for, and the rest. The parts of a block that
/// has to be divided are in one node of the tree each.
#[inline(always)]
fn first_part(block: PageRange) -> (PageRange, Option<PageRange>) {
    if block.pages() <= PteBatch::MAX {
        return (block, None);
    }
    let last = PageIndex::new(block.first.get() | (PteBatch::MAX - 1));
    (
        PageRange { last, ..block },
        Some(PageRange {
            first: PageIndex::new(last.get() + 1),
            ..block
        }),
    )
}

impl<const ORDER: usize> Fault<'_, ORDER> {
    /// Maps pages along with the accessed one, which is mapped already: the prefaulted ones behind it
    /// if the filesystem was asked; otherwise those around it that can be mapped without asking.
    pub(super) fn insert_around(
        &mut self,
        target: &Target<'_, '_>,
        prefault: Prefault,
        behind: Option<&PrefaultEntries<'_, '_>>,
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
        let mut mapped = 0;
        // Ends: each turn is for the pages behind the last one's, up to the end of the block.
        let mut next = Some(block);
        while let Some(rest) = next {
            let (part, behind_part) = first_part(rest);
            next = behind_part;
            let candidates = self.vmf.candidate_ptes(part);
            if candidates == 0 {
                continue;
            }
            let mut batch = PteBatch::new(part.first);
            if locked.entry().order() != Order::PTE {
                Self::add(&mut batch, part, locked.first(), locked.entry());
            }
            let entries;
            if !asked {
                entries = self.lock_around(&mut batch, locked, prefault.pages, part, candidates);
                if entries.marked {
                    self.mapping.host().mark_dirty_pages();
                }
            } else if let Some(behind) = behind {
                Self::add_filled(&mut batch, part, behind);
            }
            #[cfg(RDAX_CHECK)]
            for index in batch.iter() {
                check::about_to_map(self.mapping, index, self.write);
            }
            mapped += self.vmf.map_batch(&batch, self.write);
        }
        self.device.add(Counter::AroundPte, mapped as u64);
    }

    /// Adds the prefaulted pages that are in the part of the block.
    #[inline(always)]
    fn add_filled<'l>(batch: &mut PteBatch<'l>, part: PageRange, behind: &PrefaultEntries<'l, '_>) {
        let (first, pages, backing) = behind.filled();
        let begin = first.get().max(part.first.get());
        let end = (first.get() + pages).min(part.last.get() + 1);
        if begin >= end {
            return;
        }
        match backing {
            Backing::Hole => batch.add_zeroes(PageIndex::new(begin), end - begin),
            Backing::Memory(run) => {
                if let Some(run) = run.from(begin - first.get()) {
                    batch.add(PageIndex::new(begin), *run.up_to(end - begin));
                }
            }
        }
    }

    /// Adds the pages of an entry that are in the block.
    #[inline]
    fn add<'l>(batch: &mut PteBatch<'l>, block: PageRange, first: PageIndex, entry: Entry<'l>) {
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
        batch: &mut PteBatch<'l>,
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
