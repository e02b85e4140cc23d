// SPDX-License-Identifier: GPL-2.0

//! The locked entry.

use crate::kern::{
    entry::Entry,
    fs::{Mapping, PageIndex, PageRange},
    page::{Association, FileBlock, NewAssociation},
    wait::{self, EntryKey, Wake},
    xa::{LeftLocked, LockedSlot, Mark, OwnMemory, XaState}, //
};
use core::cell::Cell;
use kernel::prelude::*;

/// An entry that this task has locked. Dropping it unlocks the entry and wakes the next waiter.
///
/// Changes of the entry are stored when it is unlocked; until then the tree has the one that was locked. Its marks are
/// stored at once, because `fsync` looks for them without waiting for the lock. Only data entries stay dirty.
#[must_use = "the entry is unlocked at once"]
pub(crate) struct LockedEntry<'m> {
    mapping: &'m Mapping,
    /// Where it is, which does not change while it is locked, and what it will be.
    slot: LockedSlot<'m>,
    /// 0 if not; a word, as the others are, for it to be moved in one go.
    dirty: Cell<usize>,
}

impl<'m> LockedEntry<'m> {
    /// The entry that was locked as `slot`, dirty or not.
    #[inline(always)]
    pub(super) fn new(mapping: &'m Mapping, slot: LockedSlot<'m>, dirty: bool) -> Self {
        Self {
            mapping,
            slot,
            dirty: Cell::new(dirty.into()),
        }
    }

    /// Locks the entry that a state was walked to. `None` when it is locked.
    #[inline(always)]
    pub(super) fn lock(mapping: &'m Mapping, xas: &mut XaState<'_, 'm>) -> Option<Self> {
        let dirty = xas.has_mark(Mark::Dirty);
        Some(Self::new(mapping, xas.lock()?, dirty))
    }

    /// The entry, as it will be when it is unlocked.
    #[inline]
    pub(crate) fn entry(&self) -> Entry<'_> {
        Entry::from_raw(self.slot.value()).0
    }

    /// The token that has it locked.
    #[inline]
    pub(crate) fn slot(&self) -> &LockedSlot<'m> {
        &self.slot
    }

    /// The first page of the file that the entry covers.
    #[inline]
    pub(crate) fn first(&self) -> PageIndex {
        self.slot.first()
    }

    /// The pages of the file that the entry covers.
    #[inline]
    pub(crate) fn range(&self) -> PageRange {
        PageRange {
            first: self.first(),
            last: self.entry().order().last(self.first()),
        }
    }

    /// Whether the entry was dirty when it was locked, or has been marked since.
    #[inline]
    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty.get() != 0
    }

    /// Whether the entry has a mark now.
    pub(crate) fn has_mark(&self, mark: Mark) -> bool {
        let mut guard = self.mapping.tree().lock();
        let xas = self.slot.xas(&mut guard);
        xas.is_some_and(|xas| xas.has_mark(mark))
    }

    /// The file's contents.
    #[inline]
    pub(crate) fn mapping(&self) -> &'m Mapping {
        self.mapping
    }

    #[inline]
    fn key(&self) -> EntryKey {
        EntryKey::new(self.mapping, self.first())
    }

    /// Makes it another entry of the same order, without memory.
    #[inline]
    pub(crate) fn set(&self, entry: Entry<'static>) {
        self.slot.set(entry.unlocked());
    }

    /// As [`LockedEntry::set`], with memory of a test.
    #[cfg(RDAX_TEST)]
    pub(crate) fn set_of_test(&self, entry: Entry<'_>) {
        self.slot.set_of_test(entry.unlocked());
    }

    /// Makes it what `change` makes of it: an entry of the same order and memory.
    #[inline]
    pub(crate) fn change(&self, change: impl for<'a> FnOnce(Entry<'a>) -> Entry<'a>) {
        self.slot
            .change(|raw| change(Entry::from_raw(raw).0).unlocked());
    }

    /// Memory for the entry ([`set_memory`]), if it is that of the file.
    #[inline]
    pub(crate) fn takes<'l>(&'l self, block: FileBlock<'l>) -> Option<OwnMemory<'l>> {
        self.slot.takes(block)
    }

    /// The entry loses its memory, which is to be taken off its folio, and is empty from now on. `None` if it has none.
    #[inline]
    pub(crate) fn detach(&self) -> Option<Association<'_>> {
        self.slot.detach()
    }

    /// Marks the entry.
    pub(crate) fn mark(&self, mark: Mark) {
        let mut guard = self.mapping.tree().lock();
        if let Some(mut xas) = self.slot.xas(&mut guard) {
            xas.set_mark(mark);
            if mark == Mark::Dirty {
                self.dirty.set(1);
            }
        }
    }

    /// Marks the entry as dirty, with the state that it was locked by.
    #[inline(always)]
    pub(super) fn mark_dirty_at(&self, xas: &mut XaState<'_, '_>) {
        xas.set_mark(Mark::Dirty);
        self.dirty.set(1);
    }

    /// Removes the entry from the tree and wakes all its waiters. The caller has released its backing, writing back
    /// what is dirty.
    pub(crate) fn remove(mut self) {
        let mut guard = self.mapping.tree().lock();
        let mut xas = guard.xas(self.first());
        if xas.erase_locked(&mut self.slot) {
            self.mapping
                .sub_pages(xas.guard(), self.entry().order().pages());
            wait::wake_entry_waiters(self.key(), Wake::All);
        }
    }

    #[inline]
    fn is_dirty_without_memory(&self) -> bool {
        self.is_dirty() && !self.entry().is_data()
    }

    /// Leaves the entry locked. Its word is enough to unlock it ([`unlock_left`]).
    pub(crate) fn leave_locked(mut self) -> LeftLocked {
        self.slot.leave()
    }
}

impl Drop for LockedEntry<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.slot.is_left() {
            return;
        }
        let mut guard = self.mapping.tree().lock();
        if self.is_dirty_without_memory() {
            if let Some(mut xas) = self.slot.xas(&mut guard) {
                xas.clear_mark(Mark::Dirty);
                xas.clear_mark(Mark::ToWrite);
            }
        }
        if self.slot.unlock(&guard) {
            wait::wake_entry_waiters(self.key(), Wake::One);
        }
    }
}

/// Makes a locked entry one of the memory that it takes ([`LockedEntry::takes`]) and that is associated with it, as
/// `change` changes that.
#[inline]
pub(crate) fn set_memory(
    memory: OwnMemory<'_>,
    association: NewAssociation<'_>,
    change: impl for<'a> FnOnce(Entry<'a>) -> Entry<'a>,
) {
    memory.set(association, |raw| change(Entry::from_raw(raw).0).unlocked());
}

/// Unlocks an entry that was left locked, and wakes the next waiter.
#[inline]
pub(crate) fn unlock_left(mapping: &Mapping, left: LeftLocked) {
    let key = EntryKey::new(mapping, left.first());
    let mut guard = mapping.tree().lock();
    left.unlock(&mut guard);
    drop(guard);
    wait::wake_entry_waiters(key, Wake::One);
}

/// As [`lock_present`], but a fatal signal ends the wait (`EINTR`).
pub(crate) fn lock_present_killable(
    mapping: &Mapping,
    index: PageIndex,
) -> Result<Option<LockedEntry<'_>>> {
    let tree = mapping.tree();
    // Ends as the loop of `lock_present`, or with a signal.
    loop {
        let mut guard = tree.lock();
        let mut xas = guard.xas(index);
        let Some(raw) = xas.load() else {
            return Ok(None);
        };
        let (entry, _) = Entry::from_raw(raw);
        if let Some(locked) = LockedEntry::lock(mapping, &mut xas) {
            return Ok(Some(locked));
        }
        let key = EntryKey::new(mapping, entry.order().first(index));
        wait::wait_for_entry_killable(mapping, guard, key)?;
    }
}

/// Locks the entry that covers `index`, if there is one. Sleeps.
pub(crate) fn lock_present(mapping: &Mapping, index: PageIndex) -> Option<LockedEntry<'_>> {
    let tree = mapping.tree();
    // Ends: the task that has it locked unlocks it, and waiters have their turn one by one.
    loop {
        let mut guard = tree.lock();
        let mut xas = guard.xas(index);
        let (entry, _) = Entry::from_raw(xas.load()?);
        if let Some(locked) = LockedEntry::lock(mapping, &mut xas) {
            return Some(locked);
        }
        let key = EntryKey::new(mapping, entry.order().first(index));
        wait::wait_for_entry(guard, key);
    }
}
