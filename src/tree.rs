// SPDX-License-Identifier: GPL-2.0

//! The tree: finding, locking, waiting for and removing entries (spec, section 3).
//!
//! An entry's lock is a bit of its word in the tree. It is taken and dropped under the tree's lock
//! and held across calls into the filesystem. Lock order: the filesystem's `invalidate_lock`, an
//! entry's lock (one at a time), the tree's lock.

use super::{
    account::Account,
    entry::{Entry, Kind},
    folio,
    stats::Counter, //
};
use crate::kern::{
    fs::{Mapping, PageIndex, PageRange},
    order::Order,
    page::DevFolio,
    vm::reschedule,
    wait::{self, EntryKey, OwnerGuard, Wake},
    xa::{Cursor, Mark, RawValue, TreeGuard}, //
};
use kernel::prelude::*;

/// Entries that are looked at under one hold of the tree's lock (`XA_CHECK_SCHED`; spec, R8).
const BATCH: usize = 4096;

/// Entries that are removed under one hold of the tree's lock: each is more work than a look.
const REMOVE_BATCH: usize = 256;

/// Pages of entries that are worked on before others get the processor.
const WORK_BATCH: usize = 512;

/// Why no entry could be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum GrabError {
    /// An entry of a smaller order is in the way.
    Conflict,
    /// There is no memory for the tree.
    NoMemory,
}

/// An entry that this task has locked. Dropping it unlocks the entry and wakes the next waiter.
///
/// What the entry is, is stored when it is unlocked; until then the tree has what was locked. Its
/// marks are stored at once, because `fsync` looks for them without waiting for the lock. Only
/// data entries stay dirty.
#[must_use = "the entry is unlocked at once"]
pub(crate) struct Locked<'m> {
    mapping: &'m Mapping,
    first: PageIndex,
    entry: Entry,
    dirty: bool,
}

impl<'m> Locked<'m> {
    /// The entry, as it will be when it is unlocked.
    #[inline]
    pub(crate) fn entry(&self) -> Entry {
        self.entry
    }

    /// The first page of the file that the entry covers.
    #[inline]
    pub(crate) fn first(&self) -> PageIndex {
        self.first
    }

    /// The pages of the file that the entry covers.
    #[inline]
    pub(crate) fn range(&self) -> PageRange {
        PageRange {
            first: self.first,
            last: self.entry.order().last(self.first),
        }
    }

    /// Whether the entry was dirty when it was locked, or has been marked since.
    #[inline]
    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Whether the entry has a mark now.
    pub(crate) fn has_mark(&self, mark: Mark) -> bool {
        let tree = self.mapping.tree();
        let guard = tree.lock();
        let mut cursor = Cursor::new(tree, self.first);
        cursor.load(&guard).is_some() && cursor.has_mark(&guard, mark)
    }

    /// The file's contents.
    #[inline]
    pub(crate) fn mapping(&self) -> &'m Mapping {
        self.mapping
    }

    #[inline]
    fn key(&self) -> EntryKey {
        EntryKey::new(self.mapping, self.first)
    }

    /// Makes it another entry of the same order.
    #[inline]
    pub(crate) fn set(&mut self, entry: Entry) {
        debug_assert!(entry.order() == self.entry.order());
        self.entry = entry;
    }

    /// Marks the entry.
    pub(crate) fn mark(&mut self, mark: Mark) {
        let tree = self.mapping.tree();
        let guard = tree.lock();
        let mut cursor = Cursor::new(tree, self.first);
        if cursor.load(&guard).is_some() {
            cursor.set_mark(&guard, mark);
            self.dirty |= mark == Mark::Dirty;
        }
    }

    /// Removes the entry from the tree and wakes everybody who waits for it. What it points to was
    /// let go before.
    pub(crate) fn remove(self) {
        let tree = self.mapping.tree();
        let guard = tree.lock();
        let mut cursor = Cursor::new(tree, self.first);
        if cursor.load(&guard).is_some() {
            self.erase_at(&guard, &mut cursor);
        } else {
            core::mem::forget(self);
        }
    }

    /// The same, for a cursor that was walked to the entry.
    fn erase_at(self, guard: &TreeGuard<'_>, cursor: &mut Cursor<'_>) {
        cursor.erase(guard);
        self.mapping.sub_pages(guard, self.entry.order().pages());
        wait::wake_entry_waiters(self.key(), Wake::All);
        core::mem::forget(self);
    }

    /// Unlocks the entry that a cursor was walked to.
    #[inline]
    fn unlock_at(self, guard: &TreeGuard<'_>, cursor: &mut Cursor<'_>) {
        if self.dirty && !matches!(self.entry.kind(), Kind::Data(_)) {
            cursor.clear_mark(guard, Mark::Dirty);
            cursor.clear_mark(guard, Mark::ToWrite);
        }
        cursor.overwrite(guard, self.entry.unlocked());
        wait::wake_entry_waiters(self.key(), Wake::One);
        core::mem::forget(self);
    }

    /// Leaves the entry locked, for somebody who has only its word to unlock it with
    /// ([`unlock_raw`]).
    pub(crate) fn leave_locked(self) -> Entry {
        let entry = self.entry;
        core::mem::forget(self);
        entry
    }
}

impl Drop for Locked<'_> {
    #[inline]
    fn drop(&mut self) {
        // A value of its own, which is what unlocking consumes.
        let this = Locked { ..*self };
        let tree = this.mapping.tree();
        let guard = tree.lock();
        let mut cursor = Cursor::new(tree, this.first);
        if cursor.load(&guard).is_some() {
            this.unlock_at(&guard, &mut cursor);
        } else {
            core::mem::forget(this);
        }
    }
}

/// Unlocks the entry that covers `index`, which the caller has locked, and wakes the next waiter.
#[inline]
pub(crate) fn unlock_raw(mapping: &Mapping, index: PageIndex, entry: Entry) {
    let tree = mapping.tree();
    let guard = tree.lock();
    let mut cursor = Cursor::new(tree, index);
    if cursor.load(&guard).is_some() {
        cursor.overwrite(&guard, entry.unlocked());
    }
    drop(guard);
    wait::wake_entry_waiters(
        EntryKey::new(mapping, entry.order().first(index)),
        Wake::One,
    );
}

/// Locks the entry that the cursor was walked to.
#[inline]
fn lock_at<'m>(
    mapping: &'m Mapping,
    guard: &TreeGuard<'_>,
    cursor: &mut Cursor<'_>,
    entry: Entry,
    index: PageIndex,
) -> Locked<'m> {
    let dirty = cursor.has_mark(guard, Mark::Dirty);
    cursor.overwrite(guard, entry.locked());
    Locked {
        mapping,
        first: entry.order().first(index),
        entry,
        dirty,
    }
}

/// Returns a locked entry of at least `order` that covers `index`; where nothing is, or a larger
/// entry without memory, it is a new empty entry of `order`. Sleeps.
///
/// With `dirty` the entry is marked [`Mark::Dirty`], for a fault that will map it for writing.
pub(crate) fn grab(
    mapping: &Mapping,
    index: PageIndex,
    order: Order,
    dirty: bool,
) -> Result<Locked<'_>, GrabError> {
    let tree = mapping.tree();
    let mut at = Cursor::new(tree, index);
    loop {
        let guard = tree.lock();
        if let Some(raw) = at.load(&guard) {
            let (entry, locked) = Entry::from_raw(raw);
            if entry.order() < order {
                return Err(GrabError::Conflict);
            }
            if locked {
                let key = EntryKey::new(mapping, entry.order().first(index));
                wait::wait_for_entry(guard, key);
                at.set(index);
                continue;
            }
            let mut taken = lock_at(mapping, &guard, &mut at, entry, index);
            if entry.order() == order || matches!(entry.kind(), Kind::Data(_)) {
                if dirty && !taken.dirty {
                    at.set_mark(&guard, Mark::Dirty);
                    taken.dirty = true;
                }
                drop(guard);
                return Ok(taken);
            }
            // Too large for what is known of it: nothing but a placeholder, or zeroes.
            drop(guard);
            if entry.kind() == Kind::Zero {
                mapping.unmap(taken.range());
            }
            taken.remove();
            at.set(index);
            continue;
        }
        if order != Order::PTE {
            at = Cursor::with_order(tree, index, order);
            if at.conflict(&guard).is_some() {
                return Err(GrabError::Conflict);
            }
        }
        let empty = Entry::empty(order);
        if at.store(&guard, empty.locked()) {
            mapping.add_pages(&guard, order.pages());
            if dirty {
                at.set_mark(&guard, Mark::Dirty);
            }
            return Ok(Locked {
                mapping,
                first: order.first(index),
                entry: empty,
                dirty,
            });
        }
        drop(guard);
        if !at.allocate() {
            return Err(GrabError::NoMemory);
        }
    }
}

/// Locks the entry that covers `index`, if there is one. Sleeps.
pub(crate) fn lock_present(mapping: &Mapping, index: PageIndex) -> Option<Locked<'_>> {
    let tree = mapping.tree();
    loop {
        let guard = tree.lock();
        let mut at = Cursor::new(tree, index);
        let (entry, locked) = Entry::from_raw(at.load(&guard)?);
        if !locked {
            return Some(lock_at(mapping, &guard, &mut at, entry, index));
        }
        let key = EntryKey::new(mapping, entry.order().first(index));
        wait::wait_for_entry(guard, key);
    }
}

/// What to do with an entry that a walk came to.
pub(crate) enum Step {
    /// Leave it.
    Next,
    /// Remove it at once: it has no memory, or only a single page, and is not dirty.
    Remove,
    /// Lock it and work on it without the tree's lock.
    Work,
    /// End the walk.
    Stop,
}

/// What to do with an entry that was worked on.
pub(crate) enum After {
    /// Unlock it.
    Keep,
    /// Unlock it; it is not dirty any more.
    Clean,
    /// Remove it; what it points to was let go.
    Remove,
}

/// Who looks at the entries of a walk.
pub(crate) trait Visitor {
    /// Whether [`Visitor::look`] has to know if an entry is dirty.
    const ASKS_DIRTY: bool;

    /// Looks at an entry that is not locked, under the tree's lock.
    fn look(&mut self, entry: Entry, dirty: bool) -> Step;

    /// Works on a locked entry, without the tree's lock. May sleep.
    fn work(&mut self, locked: &mut Locked<'_>) -> After;
}

/// Which entries a walk comes to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// All.
    Any,
    /// Those with [`Mark::ToWrite`].
    ToWrite,
}

/// Visits every entry of the range, waiting for those that are locked, and gives way to others
/// every [`BATCH`] entries (spec, R8). Sleeps.
pub(crate) fn walk<V: Visitor>(mapping: &Mapping, range: PageRange, which: Which, visitor: &mut V) {
    if mapping.is_empty() {
        return;
    }
    let tree = mapping.tree();
    let mut cursor = Cursor::new(tree, range.first);
    let mut guard = tree.lock();
    let mut budget = BATCH;
    let mut worked = 0;
    // The index of an entry that this task has waited for, as one of those woken one at a time.
    let mut waited: Option<EntryKey> = None;
    loop {
        let found: Option<RawValue> = match which {
            Which::Any => cursor.find(&guard, range.last),
            Which::ToWrite => cursor.find_marked(&guard, range.last, Mark::ToWrite),
        };
        let Some(raw) = found else {
            break;
        };
        let (entry, locked) = Entry::from_raw(raw);
        let first = entry.order().first(cursor.index());
        let key = EntryKey::new(mapping, first);
        if waited.is_some_and(|waited| waited != key) {
            // What was waited for is gone; those behind us in the queue were woken with us.
            waited = None;
        }
        if locked {
            let index = cursor.index();
            wait::wait_for_entry(guard, key);
            waited = Some(key);
            guard = tree.lock();
            cursor.set(index);
            continue;
        }
        let dirty = V::ASKS_DIRTY && cursor.has_mark(&guard, Mark::Dirty);
        match visitor.look(entry, dirty) {
            Step::Next => {
                if waited.take().is_some() {
                    wait::wake_entry_waiters(key, Wake::One);
                }
            }
            Step::Stop => {
                if waited.take().is_some() {
                    wait::wake_entry_waiters(key, Wake::One);
                }
                break;
            }
            Step::Remove => {
                waited = None;
                if let Some(page) = entry.page() {
                    folio::disassociate(page);
                }
                cursor.erase(&guard);
                mapping.sub_pages(&guard, entry.order().pages());
                wait::wake_entry_waiters(key, Wake::All);
                budget = budget.saturating_sub(BATCH / REMOVE_BATCH - 1);
            }
            Step::Work => {
                waited = None;
                let mut taken = lock_at(mapping, &guard, &mut cursor, entry, first);
                if which == Which::ToWrite {
                    cursor.clear_mark(&guard, Mark::ToWrite);
                }
                drop(guard);
                let after = visitor.work(&mut taken);
                worked += entry.order().pages();
                if worked >= WORK_BATCH {
                    worked = 0;
                    reschedule();
                }
                guard = tree.lock();
                cursor.set(first);
                if cursor.load(&guard).is_none() {
                    // Not so: it is locked by us.
                    core::mem::forget(taken);
                    break;
                }
                match after {
                    After::Keep => taken.unlock_at(&guard, &mut cursor),
                    After::Clean => {
                        cursor.clear_mark(&guard, Mark::Dirty);
                        taken.unlock_at(&guard, &mut cursor);
                    }
                    After::Remove => taken.erase_at(&guard, &mut cursor),
                }
                if entry.order().last(first) >= range.last {
                    break;
                }
                budget = BATCH;
                continue;
            }
        }
        budget = budget.saturating_sub(1);
        if budget == 0 {
            cursor.pause();
            drop(guard);
            reschedule();
            guard = tree.lock();
            budget = BATCH;
        }
    }
}

/// The range, enlarged to the whole of the entries at its ends (spec, section 5).
pub(crate) fn whole_entries(mapping: &Mapping, range: PageRange) -> PageRange {
    if mapping.is_empty() {
        return range;
    }
    let tree = mapping.tree();
    let guard = tree.lock();
    let mut whole = range;
    if let Some(raw) = Cursor::new(tree, range.first).load(&guard) {
        whole.first = Entry::from_raw(raw).0.order().first(range.first);
    }
    if range.last != PageIndex::MAX {
        if let Some(raw) = Cursor::new(tree, range.last).load(&guard) {
            whole.last = Entry::from_raw(raw).0.order().last(range.last);
        }
    }
    whole
}

/// What locking by folio came to (spec, section 7).
pub(crate) enum FolioLock {
    /// The entry is locked: the word to unlock it with.
    Locked(Entry),
    /// The folio is in no file that could be locked.
    NoFile,
}

/// Locks the entry of the folio in the file that owns it, for those who know the folio only and
/// hold no reference to the inode. Sleeps.
pub(crate) fn lock_by_folio(folio: DevFolio) -> FolioLock {
    loop {
        let Some(owner) = OwnerGuard::of(folio) else {
            return FolioLock::NoFile;
        };
        if !owner.mapping().host().is_dax() {
            return FolioLock::NoFile;
        }
        let owner = owner.lock();
        if !owner.still_owns(folio) {
            continue;
        }
        let index = folio.index();
        let mut at = Cursor::new(owner.mapping().tree(), index);
        let Some(raw) = at.load(owner.guard()) else {
            return FolioLock::NoFile;
        };
        let (entry, locked) = Entry::from_raw(raw);
        if !locked {
            at.overwrite(owner.guard(), entry.locked());
            Account::of(owner.mapping().host()).inc(Counter::PoisonLocks);
            return FolioLock::Locked(entry);
        }
        let key = EntryKey::new(owner.mapping(), entry.order().first(index));
        drop(at);
        owner.wait(key);
    }
}
