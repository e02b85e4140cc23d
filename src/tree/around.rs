// SPDX-License-Identifier: GPL-2.0

//! Entries around one that a fault has locked.

use super::LockedEntry;
use crate::kern::{
    entry::Entry,
    fs::{PageIndex, PageRange},
    order::Order,
    wait::{self, EntryKey, Wake},
    xa::{Beside, LockedSlots, NODE_ORDER}, //
};

/// Entries around one that a fault has locked, locked as well. Dropping it unlocks them.
///
/// None of them was waited for.
#[must_use = "the entries are unlocked at once"]
pub(crate) struct AroundEntries<'l, 'm> {
    locked: &'l LockedEntry<'m>,
    /// The first page of their node.
    base: usize,
    slots: LockedSlots<'l, 'm>,
    /// Whether one of them was marked dirty.
    pub(crate) marked: bool,
}

impl Drop for AroundEntries<'_, '_> {
    fn drop(&mut self) {
        if self.slots.is_empty() {
            return;
        }
        let mapping = self.locked.mapping();
        let base = self.base;
        let guard = mapping.tree().lock();
        let waiters = wait::anybody_waits();
        self.slots.unlock(&guard, |offset| {
            if waiters {
                let key = EntryKey::new(mapping, PageIndex::new(base + offset));
                wait::wake_entry_waiters(key, Wake::One);
            }
        });
    }
}

/// The action of a fault on an entry beside its own.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum AroundAction {
    /// Nothing.
    Leave,
    /// Lock it.
    Lock,
    /// Mark it dirty and lock it.
    LockAndMark,
}

/// Locks entries in `range`, which has at most `PteBatch::MAX` pages, around the locked one, in one
/// node of the tree: the range's, or the locked entry's if the range is in two. Those are locked that
/// nobody has locked and that `choose` wants, which is told their first page, what they are and, with
/// `asks_dirty`, whether they are dirty. Only pages that have their bit in `candidates`, counted
/// from the range's first, are looked at. With `asks_dirty` the entries are mapped ahead for writing
/// ([`Entry::ahead`]). Does not sleep.
#[inline]
pub(crate) fn lock_around<'l, 'm>(
    locked: &'l LockedEntry<'m>,
    range: PageRange,
    candidates: usize,
    asks_dirty: bool,
    mut choose: impl FnMut(PageIndex, Entry<'l>, bool) -> AroundAction,
) -> AroundEntries<'l, 'm> {
    const AHEAD: usize = Entry::empty(Order::PTE).ahead().unlocked().word();

    let node = match NODE_ORDER.first(range.first) == NODE_ORDER.first(range.last) {
        true => range.first,
        false => locked.first(),
    };
    let base = NODE_ORDER.first(node).get();
    let last = NODE_ORDER.last(node).get();
    // Of a range that begins or ends in another node, the part in this one.
    let (begin, end) = (range.first.get(), range.last.get().min(last) - base);
    let candidates = candidates as u64;
    let candidates = if begin < base {
        candidates >> (base - begin)
    } else {
        // A range beyond the node is within an entry that is larger than the node.
        candidates.checked_shl((begin - base) as u32).unwrap_or(0)
    } & u64::MAX >> (u64::BITS as usize - 1 - end);
    let set = if asks_dirty { AHEAD } else { 0 };
    let mut marked = false;
    let mut guard = locked.mapping().tree().lock();
    // Where the locked entry's node has larger steps, the entry is larger than the range.
    let slots = locked.slot().lock_beside(
        &mut guard,
        node,
        candidates,
        asks_dirty,
        set,
        |offset, raw, dirty| {
            let (entry, _) = Entry::from_raw(raw);
            match choose(PageIndex::new(base + offset), entry, dirty) {
                AroundAction::Leave => Beside::Leave,
                AroundAction::Lock => Beside::Lock,
                AroundAction::LockAndMark => {
                    marked = true;
                    Beside::LockAndMark
                }
            }
        },
    );
    drop(guard);
    AroundEntries {
        locked,
        base,
        slots,
        marked,
    }
}
