// SPDX-License-Identifier: GPL-2.0

//! The walk over many entries, for visitors that remove them or write them back.

use super::super::folio::{self, FolioReleaseBatch};
use crate::kern::{
    entry::Entry,
    fs::{Mapping, PageIndex, PageRange},
    order::Order,
    page::{Association, PageBlock, PageRun},
    vm::cond_resched,
    wait::{self, EntryKey, Wake},
    xa::{LockedValues, Mark, RawValue, Release, XaState, NODE_ORDER}, //
};

/// Entries that are looked at under one hold of the tree's lock (`XA_CHECK_SCHED`; spec, R8).
const BATCH: usize = 4096;

/// Entries that are removed under one hold of the tree's lock: each is more work than a look.
const REMOVE_BATCH: usize = 256;

/// Pages of entries that are worked on before others get the processor.
const WORK_BATCH: usize = 512;

/// Adjacent entries of a file that this task has locked: at least one.
///
/// Only the first was waited for, so that a task with a locked batch waits for no entry.
pub(crate) struct EntryBatch<'m> {
    mapping: &'m Mapping,
    locked: LockedValues<'m>,
    dirty: u64,
}

impl<'m> EntryBatch<'m> {
    /// A batch with nothing in it yet.
    fn new(mapping: &'m Mapping) -> Self {
        Self {
            mapping,
            locked: LockedValues::new(mapping.tree()),
            dirty: 0,
        }
    }

    /// The file's contents.
    #[inline]
    pub(crate) fn mapping(&self) -> &'m Mapping {
        self.mapping
    }

    /// The pages of the file that the entries cover.
    #[inline]
    pub(crate) fn range(&self) -> PageRange {
        let first = self.locked.first();
        PageRange {
            first,
            last: PageIndex::new((first.get() + self.locked.pages()).saturating_sub(1)),
        }
    }

    /// The entries in their order, each with its first page in the file and whether it is dirty.
    #[inline]
    pub(crate) fn iter(&self) -> impl Iterator<Item = (PageIndex, Entry<'_>, bool)> {
        let mut index = self.locked.first().get();
        let mut dirty = self.dirty;
        self.locked.iter().map(move |raw| {
            let (entry, _) = Entry::from_raw(raw);
            let item = (PageIndex::new(index), entry, dirty & 1 != 0);
            index = index.wrapping_add(entry.order().pages());
            dirty >>= 1;
            item
        })
    }

    /// How many entries there are.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.locked.len()
    }

    /// The order of the first entry. Where there are several, they all are in one node of the tree.
    #[inline]
    pub(crate) fn first_order(&self) -> Order {
        self.iter()
            .next()
            .map_or(Order::PTE, |(_, entry, _)| entry.order())
    }

    /// Whether a page table has some of the entries' memory.
    pub(crate) fn is_mapped(&self) -> bool {
        self.iter()
            .filter_map(|(_, entry, _)| entry.page())
            .any(|page| page.folio().mapcount() != 0)
    }

    /// Whether pages of the entries were mapped ahead for writing.
    #[inline]
    pub(crate) fn has_ahead(&self) -> bool {
        self.iter().any(|(_, entry, _)| entry.is_ahead())
    }

    /// The entries lose their memory, which is to be taken off its folios, and are empty from now on. `each` is told
    /// of whose memory it is whether that is dirty. Once.
    #[inline]
    pub(crate) fn detach<'a>(&'a self, mut each: impl FnMut(Association<'a>, bool)) {
        let mut dirty = self.dirty;
        self.locked.detach(|association| {
            if let Some(association) = association {
                each(association, dirty & 1 != 0);
            }
            dirty >>= 1;
        });
    }

    /// The memory of the data entries in pieces: those that follow each other there as they do in
    /// the file, with the first page in the file, the first page, and the number of pages.
    pub(crate) fn pieces(&self, dirty_only: bool, mut work: impl FnMut(PageIndex, PageRun<'_>)) {
        let mut piece: Option<(PageIndex, PageRun<'_>)> = None;
        for (index, entry, dirty) in self.iter() {
            let next = entry.block().filter(|_| dirty || !dirty_only);
            let next = next.map(PageBlock::run);
            if let (Some((_, run)), Some(next)) = (piece.as_mut(), next) {
                if let Some(joined) = run.joined(next) {
                    *run = joined;
                    continue;
                }
            }
            if let Some((at, run)) = piece.take() {
                work(at, run);
            }
            piece = next.map(|next| (index, next));
        }
        if let Some((at, run)) = piece {
            work(at, run);
        }
    }

    /// Locks the entry that the state was walked to, as the first or the next.
    #[inline]
    fn lock(&mut self, xas: &mut XaState<'_, 'm>, dirty: bool) {
        let at = self.locked.len();
        if !self.locked.lock(xas) {
            // Unreachable: the caller has seen that it is not locked, and right behind the others.
            return;
        }
        self.dirty |= u64::from(dirty) << at;
    }

    /// Unlocks or removes the entries. Returns how many were removed.
    fn finish(&mut self, xas: &mut XaState<'_, '_>, disposition: Disposition) -> usize {
        let range = self.range();
        if disposition != Disposition::Remove || !self.locked.erase_node(xas) {
            let mut dirty = match disposition {
                Disposition::Clean(dirty) => dirty,
                Disposition::Remove => 0,
            };
            self.locked.release(xas, |raw| {
                let clean = dirty & 1 == 0;
                dirty >>= 1;
                match disposition {
                    // The marks go now and not before: a task that writes back at the same time waits
                    // for the entries that are marked, and must not tell anybody that their data is safe
                    // yet.
                    Disposition::Clean(_) => {
                        let (entry, _) = Entry::from_raw(raw);
                        Release::Unlock(entry.protected().unlocked(), clean)
                    }
                    Disposition::Remove => Release::Erase,
                }
            });
        }
        self.dirty = 0;
        if wait::anybody_waits() {
            let wake = match disposition {
                Disposition::Remove => Wake::All,
                Disposition::Clean(_) => Wake::One,
            };
            let mut index = range.first;
            for order in self.locked.released() {
                wait::wake_entry_waiters(EntryKey::new(self.mapping, index), wake);
                index = PageIndex::new(index.get().wrapping_add(order.pages()));
            }
        }
        if disposition == Disposition::Remove {
            self.mapping.sub_pages(xas.guard(), range.pages());
            self.locked.released().count()
        } else {
            0
        }
    }
}

/// The action on an entry that a walk came to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum WalkAction {
    /// Leave it.
    Next,
    /// Remove it at once: it has no memory, or few pages, and is not dirty.
    Remove,
    /// Lock it and work on it without the tree's lock.
    Work,
    /// End the walk.
    Stop,
}

/// The disposition of entries that were worked on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disposition {
    /// Unlock them; no page table has them writable, and they are not dirty any more, but for those
    /// that have their bit here, the first entry the lowest.
    Clean(u64),
    /// Remove them; their backing was released.
    Remove,
}

/// The work of a walk.
pub(crate) trait Visitor {
    /// Whether [`Visitor::look`] has to know if an entry is dirty.
    const ASKS_DIRTY: bool;

    /// Whether [`Visitor::work`] takes several small entries at a time.
    const BATCHES: bool;

    /// Whether an entry that somebody has locked is waited for, or passed by.
    #[inline]
    fn awaits(&self, _entry: Entry<'_>) -> bool {
        true
    }

    /// Looks at an entry that is not locked, under the tree's lock. May be asked several times.
    fn look(&mut self, entry: Entry<'_>, dirty: bool) -> WalkAction;

    /// Works on locked entries, without the tree's lock. May sleep.
    fn work(&mut self, batch: &EntryBatch<'_>) -> Disposition;
}

/// Which entries a walk comes to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filter {
    /// All.
    Any,
    /// Those with [`Mark::ToWrite`].
    ToWrite,
}

/// Removes entries of the node that the state stands at the start of, as far as they may be removed at
/// once. Returns their number.
fn remove_in_node<V: Visitor>(
    mapping: &Mapping,
    xas: &mut XaState<'_, '_>,
    visitor: &mut V,
) -> usize {
    let mut removed = 0;
    let mut pages = 0;
    let mut released = FolioReleaseBatch::new();
    xas.erase_in_node(
        Mark::Dirty,
        |index, raw, dirty| {
            let (entry, _) = Entry::from_raw(raw);
            if visitor.look(entry, dirty) != WalkAction::Remove {
                return false;
            }
            wait::wake_entry_waiters(EntryKey::new(mapping, index), Wake::All);
            removed += 1;
            pages += entry.order().pages();
            true
        },
        |association| released.add(association),
    );
    drop(released);
    if removed != 0 {
        mapping.sub_pages(xas.guard(), pages);
    }
    removed
}

/// Visits every entry of the range, waiting for those that are locked, and gives way to others
/// every [`BATCH`] entries (spec, R8). Returns how many were removed. Sleeps.
pub(crate) fn walk<V: Visitor>(
    mapping: &Mapping,
    range: PageRange,
    filter: Filter,
    visitor: &mut V,
) -> usize {
    if mapping.is_empty() {
        return 0;
    }
    let tree = mapping.tree();
    let mut guard = tree.lock();
    let mut xas = guard.xas(range.first);
    let mut budget = BATCH;
    let mut worked = 0;
    let mut removed = 0;
    let mut batch = EntryBatch::new(mapping);
    // The key of an entry that this task has waited for, as one of those woken one at a time.
    let mut waited: Option<EntryKey> = None;
    // Ends: each round is for an entry behind the last one's, up to the range's end, or waits for one
    // that is locked, as `lock_present` does.
    loop {
        let found: Option<RawValue<'_>> = match filter {
            Filter::Any => xas.find(range.last),
            Filter::ToWrite => xas.find_marked(range.last, Mark::ToWrite),
        };
        let found = found.map(|raw| {
            let (entry, locked) = Entry::from_raw(raw);
            let first = entry.order().first(xas.index());
            (entry, locked, first, EntryKey::new(mapping, first))
        });
        if let Some(left) = waited.filter(|left| found.is_none_or(|(.., key)| key != *left)) {
            // The entry is gone, or not wanted any more. The waiters behind us in the queue still want
            // it.
            wait::wake_entry_waiters(left, Wake::One);
            waited = None;
        }
        let Some((entry, locked, first, key)) = found else {
            break;
        };
        if locked && visitor.awaits(entry) {
            let index = xas.index();
            wait::wait_for_entry(guard, key);
            waited = Some(key);
            guard = tree.lock();
            xas = guard.xas(index);
            continue;
        }
        let dirty = V::ASKS_DIRTY && xas.has_mark(Mark::Dirty);
        let action = if locked {
            WalkAction::Next
        } else {
            visitor.look(entry, dirty)
        };
        if matches!(action, WalkAction::Next | WalkAction::Stop) && waited.take().is_some() {
            wait::wake_entry_waiters(key, Wake::One);
        }
        match action {
            WalkAction::Next => (),
            WalkAction::Stop => break,
            WalkAction::Remove => {
                waited = None;
                budget = budget.saturating_sub(BATCH / REMOVE_BATCH - 1);
                let node = NODE_ORDER.first(first);
                let whole_node = entry.order() < NODE_ORDER
                    && node >= range.first
                    && NODE_ORDER.last(first) <= range.last;
                let together = if whole_node {
                    xas.at(node);
                    let removed = remove_in_node(mapping, &mut xas, visitor);
                    if removed == 0 {
                        // Something that is to stay lies before the entry in its node.
                        xas.at(first);
                    }
                    removed
                } else {
                    0
                };
                removed += together;
                budget = budget.saturating_sub(4 * together);
                if together == 0 {
                    xas.erase(folio::disassociate);
                    mapping.sub_pages(xas.guard(), entry.order().pages());
                    wait::wake_entry_waiters(key, Wake::All);
                    removed += 1;
                } else if xas.index() > range.last || xas.index().get() == 0 {
                    break;
                }
            }
            WalkAction::Work => {
                waited = None;
                let mut next = entry;
                let mut dirty = dirty;
                loop {
                    batch.lock(&mut xas, dirty);
                    if !V::BATCHES || next.order() >= NODE_ORDER {
                        break;
                    }
                    // That is the very next page.
                    let Some(raw) = xas.next_in_node(range.last) else {
                        break;
                    };
                    let (entry, locked) = Entry::from_raw(raw);
                    let wanted = match filter {
                        Filter::Any => true,
                        Filter::ToWrite => xas.has_mark(Mark::ToWrite),
                    };
                    if locked || !wanted {
                        break;
                    }
                    dirty = V::ASKS_DIRTY && xas.has_mark(Mark::Dirty);
                    if visitor.look(entry, dirty) != WalkAction::Work {
                        break;
                    }
                    next = entry;
                }
                drop(guard);
                let disposition = visitor.work(&batch);
                let done = batch.range();
                worked += done.pages();
                if worked >= WORK_BATCH {
                    worked = 0;
                    cond_resched();
                }
                guard = tree.lock();
                xas = guard.xas(done.first);
                removed += batch.finish(&mut xas, disposition);
                if done.last >= range.last {
                    break;
                }
                xas.set_behind(done.last);
                budget = BATCH;
                continue;
            }
        }
        budget = budget.saturating_sub(1);
        if budget == 0 {
            let paused = xas.pause();
            drop(guard);
            cond_resched();
            guard = tree.lock();
            xas = guard.resume(paused);
            budget = BATCH;
        }
    }
    removed
}

/// The range, enlarged to the whole of the entries at its ends (spec, section 5).
pub(crate) fn whole_entries(mapping: &Mapping, range: PageRange) -> PageRange {
    if mapping.is_empty() {
        return range;
    }
    let mut guard = mapping.tree().lock();
    let mut whole = range;
    if let Some(raw) = guard.xas(range.first).load() {
        whole.first = Entry::from_raw(raw).0.order().first(range.first);
    }
    if range.last != PageIndex::MAX {
        if let Some(raw) = guard.xas(range.last).load() {
            whole.last = Entry::from_raw(raw).0.order().last(range.last);
        }
    }
    whole
}
