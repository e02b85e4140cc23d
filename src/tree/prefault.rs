// SPDX-License-Identifier: GPL-2.0

//! Entries behind a new one, for the pages that a fault prepares along with its own.

use super::LockedEntry;
use crate::kern::{
    entry::Entry,
    fs::{Mapping, PageIndex, PageRange},
    order::Order,
    page::FilePages,
    vm::PteBatch,
    wait::{self, EntryKey, Wake},
    xa::{Mark, NewValues, Release, XaState}, //
};

/// How far a fault of a page may go beyond the page that was accessed.
#[derive(Clone, Copy)]
pub(crate) struct PrefaultLimits {
    /// The pages around the accessed one.
    pub(crate) block: PageRange,
    /// The largest order of a new entry.
    pub(crate) order: Order,
    /// The pages that a new entry may have, from the accessed one on.
    pub(crate) room: usize,
}

impl PrefaultLimits {
    /// The pages of the block from `index` on.
    #[inline(always)]
    pub(super) fn rest(&self, index: PageIndex) -> usize {
        self.block.last.get() - index.get() + 1
    }
}

/// The pages that may be mapped along with the accessed one.
#[derive(Clone, Copy)]
pub(crate) struct Prefault {
    /// Their number, from the accessed one on; may be 0.
    pub(crate) pages: usize,
    /// The entry is new, and entries of up to this order may be put behind it.
    pub(crate) behind: Option<Order>,
}

impl Prefault {
    /// None.
    #[inline(always)]
    pub(super) fn none() -> Self {
        Self {
            pages: 0,
            behind: None,
        }
    }
}

/// Dirty pages right before an index, which tell of a fault that writes there.
pub(super) struct DirtyRun {
    /// Their number, at least two: a power of two that is not larger.
    pub(super) pages: usize,
    /// The largest order of which pages would lie in memory as they do in the file.
    pub(super) order: Order,
}

/// The most entries that are looked at before an index.
const MOST_ENTRIES_BEFORE: usize = 256;

/// Looks at the pages before the state's index, one entry after the other as long as they are dirty.
/// A single page before is too little to go by.
pub(super) fn scan_dirty_before(
    xas: &XaState<'_, '_>,
    index: PageIndex,
    limits: &PrefaultLimits,
) -> Option<DirtyRun> {
    let Some((raw, true)) = xas.before(Mark::Dirty) else {
        return None;
    };
    let (entry, _) = Entry::from_raw(raw);
    let block = entry.block()?;
    if entry.is_fresh() {
        return None;
    }
    let index = index.get();
    let mut first = entry.order().first(PageIndex::new(index - 1)).get();
    let shift = block.pfn().to_bits() ^ first;
    let most = limits.room.max(PteBatch::MAX);
    let mut further = xas.reader(PageIndex::new(first));
    for _ in 0..MOST_ENTRIES_BEFORE {
        if index - first >= most || first == 0 {
            break;
        }
        let before = PageIndex::new(first - 1);
        let Some(raw) = further.at(before) else {
            break;
        };
        if !further.has_mark(Mark::Dirty) {
            break;
        }
        first = Entry::from_raw(raw).0.order().first(before).get();
    }
    let pages = (index - first).min(most);
    (pages > 1).then(|| DirtyRun {
        pages: 1 << pages.ilog2(),
        order: Order::PUD.fitting(shift, Order::PUD.pages()),
    })
}

/// The memory that entries of a fault point to.
#[derive(Clone, Copy)]
pub(crate) enum Backing<'l> {
    /// None: a hole.
    Hole,
    /// These pages.
    Memory(FilePages<'l>),
}

/// The largest order of the entries behind a new one.
const LARGEST: Order = Order::from_bits(4);

/// New entries behind a new one, locked: empty until it is known what is there. Dropping it unlocks
/// them, and removes those that are empty still.
///
/// Those for writing are dirty from the start, as every entry is that a write fault has locked.
#[must_use = "the entries are removed at once"]
pub(crate) struct PrefaultEntries<'l, 'm> {
    mapping: &'m Mapping,
    /// For the pages that have one, from the first of those on for which they were wanted.
    locked: NewValues<'l, 'm>,
    /// The pages whose entries are filled.
    filled: usize,
    writable: bool,
}

impl<'l, 'm: 'l> PrefaultEntries<'l, 'm> {
    /// No entries yet. `None` when there are no pages to prefault behind a new entry.
    #[inline(always)]
    pub(crate) fn new(locked: &LockedEntry<'m>, prefault: Prefault) -> Option<Self> {
        let largest = prefault.behind?;
        let range = PageRange {
            first: PageIndex::new(locked.range().last.get() + 1),
            last: PageIndex::new(locked.first().get() + prefault.pages - 1),
        };
        if range.last < range.first {
            return None;
        }
        let mapping = locked.mapping();
        let largest = largest.min(LARGEST);
        Some(Self {
            mapping,
            locked: NewValues::new(mapping.tree(), range, largest),
            filled: 0,
            writable: false,
        })
    }

    /// Puts entries behind the new one, for as many of the pages to prefault as have none, from the first
    /// on. By itself, so that what is large is not moved.
    #[inline(always)]
    pub(crate) fn insert(&mut self, locked: &LockedEntry<'m>) {
        let mapping = self.mapping;
        let mark = locked.is_dirty().then_some(Mark::Dirty);
        let mut guard = mapping.tree().lock();
        let Some(mut xas) = locked.slot().xas(&mut guard) else {
            return;
        };
        self.locked.insert(&mut xas, mark);
        mapping.add_pages(xas.guard(), self.pages());
    }

    /// The pages that the entries cover.
    #[inline]
    pub(crate) fn pages(&self) -> usize {
        self.locked.pages()
    }

    /// The first page, the pages that were filled, and with what.
    #[inline]
    pub(crate) fn filled(&self) -> (PageIndex, usize, Backing<'l>) {
        let backing = self.locked.memory().map_or(Backing::Hole, Backing::Memory);
        (self.locked.first(), self.filled, backing)
    }

    /// Fills the entries of the first `pages` pages with what the filesystem says that is there, up to
    /// the first that another entry has; with `writable`, entries that may be written to without asking
    /// it. Called once. Does not sleep.
    pub(crate) fn fill(&mut self, pages: usize, backing: Backing<'l>, writable: bool) {
        self.writable = writable;
        let pages = pages.min(self.pages());
        let Backing::Memory(run) = backing else {
            self.filled = pages;
            return;
        };
        if pages != 0 {
            self.filled = self.locked.fill(run, pages);
        }
    }
}

impl<'l, 'm: 'l> Drop for PrefaultEntries<'l, 'm> {
    fn drop(&mut self) {
        let pages = self.pages();
        if pages == 0 {
            return;
        }
        let mapping = self.mapping;
        let mut guard = mapping.tree().lock();
        let first = self.locked.first();
        let mut xas = guard.xas(first);
        let waiters = wait::anybody_waits();
        let (filled, writable) = (self.filled, self.writable);
        self.locked.release(&mut xas, |index, order, raw| {
            let entry = match raw.map(|raw| Entry::from_raw(raw).0) {
                Some(entry) if writable => Some(entry.writable().ahead()),
                Some(entry) => Some(entry),
                None if index.get() - first.get() < filled => Some(Entry::zero(order)),
                None => None,
            };
            let (wake, release) = match entry {
                Some(entry) => (Wake::One, Release::Unlock(entry.unlocked(), false)),
                None => (Wake::All, Release::Erase),
            };
            if waiters {
                wait::wake_entry_waiters(EntryKey::new(mapping, index), wake);
            }
            release
        });
        mapping.sub_pages(xas.guard(), pages - filled);
    }
}
