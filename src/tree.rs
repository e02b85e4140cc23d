// SPDX-License-Identifier: GPL-2.0

//! The tree: finding, locking, waiting for and removing entries (spec, section 3).
//!
//! An entry's lock is a bit of its word in the tree. It is taken and dropped under the tree's lock
//! and held across calls into the filesystem. Lock order: the filesystem's `invalidate_lock`, an
//! entry's lock, the tree's lock. Who has an entry locked waits for no other one: a fault and a walk
//! lock more of them only where nobody has ([`Window`], [`Neighbours`], [`Run`]).

use super::{
    device::{self, FileDevice},
    entry::{Entry, Kind},
    folio::{self, Disassociation},
    stats::Counter, //
};
#[cfg(CONFIG_MEMORY_FAILURE)]
use crate::kern::fs::InodeRef;
use crate::kern::{
    fs::{Mapping, PageIndex, PageRange},
    order::Order,
    page::{DevFolio, DevPage, Pfn, Region},
    redirect::InFlight,
    vm::{reschedule, Around},
    wait::{self, EntryKey, OwnerGuard, Wake},
    xa::{Cursor, Mark, Node, RawValue, Slot, TreeGuard, NODE_ORDER}, //
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
    /// A fatal signal ended the wait for an entry.
    Killed,
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
    /// Where it is, which does not change while it is locked.
    slot: Slot,
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
        let (cursor, value) = Cursor::back_at(tree, &guard, self.first, self.slot);
        value.is_some() && cursor.has_mark(&guard, mark)
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
        let (mut cursor, value) = Cursor::back_at(tree, &guard, self.first, self.slot);
        if value.is_some() {
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

    /// The node that the entry is in, if that has entries of one page.
    #[inline]
    fn node(&self, guard: &TreeGuard<'_>) -> Option<Node> {
        let (at, _) = Cursor::back_at(self.mapping.tree(), guard, self.first, self.slot);
        at.node(guard)
    }

    #[inline]
    fn is_dirty_without_memory(&self) -> bool {
        self.dirty && !matches!(self.entry.kind(), Kind::Data(_))
    }

    /// Unlocks the entry that a cursor was walked to.
    #[inline]
    fn unlock_at(self, guard: &TreeGuard<'_>, cursor: &mut Cursor<'_>) {
        if self.is_dirty_without_memory() {
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
        if !this.is_dirty_without_memory() && this.slot.overwrite(&guard, this.entry.unlocked()) {
            wait::wake_entry_waiters(this.key(), Wake::One);
            core::mem::forget(this);
            return;
        }
        let (mut cursor, value) = Cursor::back_at(tree, &guard, this.first, this.slot);
        if value.is_some() {
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
        slot: cursor.slot(),
        dirty,
    }
}

/// How far a fault of a page may go beyond the page that was accessed.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    /// The pages around the accessed one.
    pub(crate) block: PageRange,
    /// The largest order of a new entry.
    pub(crate) order: Order,
    /// The pages that a new entry may have, from the accessed one on.
    pub(crate) room: usize,
}

/// What [`grab`] got along with an entry.
pub(crate) struct Behind<'m> {
    /// The number of pages, from the accessed one on, for which it makes sense to do now what is
    /// done for that one; may be 0.
    pub(crate) pages: usize,
    /// New entries behind a new one.
    pub(crate) window: Option<Window<'m>>,
    /// The pages around the accessed one, where they were asked for.
    pub(crate) block: Option<PageRange>,
}

impl Behind<'_> {
    /// Nothing.
    #[inline(always)]
    pub(crate) fn none() -> Self {
        Self {
            pages: 0,
            window: None,
            block: None,
        }
    }
}

/// What the pages right before an index tell of a fault that writes there.
struct Before {
    /// The number of pages that are dirty, at least two: a power of two that is not larger.
    pages: usize,
    /// The largest order of which pages would lie in memory as they do in the file.
    order: Order,
}

/// The most entries that are looked at for what is before an index.
const LOOK_BEFORE: usize = 256;

/// Looks at the pages before the cursor's index, one entry after the other as long as they are dirty.
/// A single page before is too little to go by.
fn look_before(
    mapping: &Mapping,
    guard: &TreeGuard<'_>,
    at: &Cursor<'_>,
    index: PageIndex,
    ahead: &Ahead,
) -> Option<Before> {
    let Some((raw, true)) = at.before(guard, Mark::Dirty) else {
        return None;
    };
    let (entry, _) = Entry::from_raw(raw);
    let Kind::Data(pfn) = entry.kind() else {
        return None;
    };
    if entry.is_fresh() {
        return None;
    }
    let index = index.get();
    let mut first = entry.order().first(PageIndex::new(index - 1)).get();
    let shift = pfn.to_bits() ^ first;
    let most = ahead.room.max(Around::MAX);
    let mut further = Cursor::new(mapping.tree(), PageIndex::new(first));
    for _ in 0..LOOK_BEFORE {
        if index - first >= most || first == 0 {
            break;
        }
        let before = PageIndex::new(first - 1);
        let Some(raw) = further.at(guard, before) else {
            break;
        };
        if !further.has_mark(guard, Mark::Dirty) {
            break;
        }
        first = Entry::from_raw(raw).0.order().first(before).get();
    }
    let pages = (index - first).min(most);
    (pages > 1).then(|| Before {
        pages: 1 << pages.ilog2(),
        order: Order::PUD.fitting(shift, Order::PUD.pages()),
    })
}

/// Returns a locked entry of at least `order` that covers `index`; where nothing is, or a larger
/// entry without memory, it is a new empty entry of `order`. Sleeps.
///
/// With `dirty` the entry is marked [`Mark::Dirty`], for a fault that will map it for writing.
///
/// If `ahead` says so (and for [`Order::PTE`] only), what follows is prepared as well. For reading,
/// these are locked empty entries for the pages behind a new entry, as far as there are none. For
/// writing, there are not more of them than pages were written before, so that what is flushed for
/// nothing, when the writes end here, is less than what was written; and then they, and the new
/// entry itself, may be larger than a page.
pub(crate) fn grab<'m>(
    mapping: &'m Mapping,
    index: PageIndex,
    order: Order,
    dirty: bool,
    ahead: impl Fn() -> Option<Ahead>,
    behind: &mut Behind<'m>,
) -> Result<Locked<'m>, GrabError> {
    let mut simple = order != Order::PTE;
    let tree = mapping.tree();
    let base = order.first(index);
    // Whatever is there is found without an order, in fewer steps.
    let mut at = Cursor::new(tree, index);
    // Ends: whoever has the entry locked unlocks it, and waiters have their turn one by one; an entry
    // without memory that is too large is removed, and comes again only by faults that wanted it before
    // this one; memory for the tree is there at the second try, or missing.
    loop {
        let guard = tree.lock();
        if let Some(raw) = at.load(&guard) {
            let (entry, locked) = Entry::from_raw(raw);
            if entry.order() < order {
                return Err(GrabError::Conflict);
            }
            if locked {
                let key = EntryKey::new(mapping, entry.order().first(index));
                wait::wait_for_entry_killable(mapping, guard, key)
                    .map_err(|_| GrabError::Killed)?;
                at.set(index);
                continue;
            }
            let mut taken = lock_at(mapping, &guard, &mut at, entry, index);
            if entry.order() == order || matches!(entry.kind(), Kind::Data(_)) {
                if dirty && !taken.dirty {
                    if let Some(ahead) = (!simple).then(&ahead).flatten() {
                        if let Some(before) = look_before(mapping, &guard, &at, index, &ahead) {
                            behind.pages = before.pages;
                            behind.block = Some(ahead.block);
                        }
                    }
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
        let mut pages = 0;
        let mut largest = Order::PTE;
        let mut size = order;
        if order != Order::PTE {
            if at.has_order() {
                at.set(base);
            } else {
                at.give_order(base, order);
            }
            if at.conflict(&guard).is_some() {
                return Err(GrabError::Conflict);
            }
        } else if let Some(ahead) = (!simple).then(&ahead).flatten() {
            if !dirty {
                pages = ahead.block.last.get() - index.get() + 1;
                behind.block = Some(ahead.block);
            } else if let Some(before) = at
                .is_free_behind(&guard)
                .then(|| look_before(mapping, &guard, &at, index, &ahead))
                .flatten()
            {
                let rest = ahead.block.last.get() - index.get() + 1;
                pages = before.pages.min(rest);
                largest = before.order.min(ahead.order);
                behind.block = Some(ahead.block);
                size = largest.fitting(index.get(), before.pages.min(ahead.room));
                let free = if size < NODE_ORDER && at.node(&guard).is_some() {
                    at.widen(&guard, size)
                } else {
                    at = Cursor::with_order(tree, index, size);
                    at.conflict(&guard).is_none()
                };
                if !free {
                    size = Order::PTE;
                    at = Cursor::new(tree, index);
                }
            }
        }
        let empty = Entry::empty(size);
        if at.store(&guard, empty.locked()) {
            mapping.add_pages(&guard, size.pages());
            if dirty {
                at.set_mark(&guard, Mark::Dirty);
            }
            let locked = Locked {
                mapping,
                first: size.first(index),
                entry: empty,
                slot: at.slot(),
                dirty,
            };
            behind.pages = pages;
            if pages > size.pages() {
                let range = PageRange {
                    first: PageIndex::new(index.get() + size.pages()),
                    last: PageIndex::new(index.get() + pages - 1),
                };
                behind.window = Some(Window::new(mapping, &guard, &mut at, range, largest, dirty));
            }
            return Ok(locked);
        }
        drop(guard);
        simple = true;
        if size != order {
            // The page alone may need less.
            at = Cursor::new(tree, index);
            continue;
        }
        if !at.allocate() {
            return Err(GrabError::NoMemory);
        }
        if order == Order::PTE {
            at.narrow();
        }
        at.set(base);
    }
}

/// Where pages are that a fault has entries for.
#[derive(Clone, Copy)]
pub(crate) enum Place {
    /// Nowhere: a hole.
    Hole,
    /// In memory, one behind the other from this frame on.
    Memory(Pfn),
}

/// New entries behind a new one, locked: empty until it is known what is there. Dropping it unlocks
/// them, and removes those that are empty still.
///
/// Those for writing are dirty from the begin, as every entry is that a write fault has locked.
#[must_use = "the entries are removed at once"]
pub(crate) struct Window<'m> {
    mapping: &'m Mapping,
    /// The pages for which entries were wanted; the entries' orders follow from that.
    range: PageRange,
    largest: Order,
    /// Pages with entries, from the first on.
    pages: usize,
    /// Those of them that are filled.
    filled: usize,
    place: Place,
    writable: bool,
}

impl<'m> Window<'m> {
    /// Entries of up to `largest` order for as many pages of the range as have none, from the first
    /// on. The cursor is that of the entry before.
    fn new(
        mapping: &'m Mapping,
        guard: &TreeGuard<'_>,
        at: &mut Cursor<'_>,
        range: PageRange,
        largest: Order,
        dirty: bool,
    ) -> Self {
        let mut window = Self {
            mapping,
            range,
            largest: largest.min(LARGEST_BEHIND),
            pages: 0,
            filled: 0,
            place: Place::Hole,
            writable: false,
        };
        // Ends: each round is for the pages behind the last one's, in a range.
        loop {
            let index = PageIndex::new(range.first.get() + window.pages);
            if index > range.last || at.at(guard, index).is_some() {
                break;
            }
            let order = window.order_at(index);
            if !at.widen(guard, order) || !at.store(guard, Entry::empty(order).locked()) {
                break;
            }
            if dirty {
                at.set_mark(guard, Mark::Dirty);
            }
            window.pages += order.pages();
        }
        at.narrow();
        mapping.add_pages(guard, window.pages);
        window
    }

    /// The order of the entry that begins at `index`.
    #[inline]
    fn order_at(&self, index: PageIndex) -> Order {
        let rest = self.range.last.get() - index.get() + 1;
        self.largest.fitting(index.get(), rest)
    }

    /// The filled entry at `offset` pages behind the first.
    #[inline]
    fn entry_at(&self, offset: usize, order: Order) -> Entry {
        match self.place {
            Place::Hole => Entry::zero(order),
            Place::Memory(pfn) => {
                let entry = Entry::data(pfn.offset(offset), order);
                if self.writable {
                    entry.writable().ahead()
                } else {
                    entry
                }
            }
        }
    }

    /// The pages that the entries cover.
    #[inline]
    pub(crate) fn pages(&self) -> usize {
        self.pages
    }

    /// The first page, the pages that were filled, and with what.
    #[inline]
    pub(crate) fn filled(&self) -> (PageIndex, usize, Place) {
        (self.range.first, self.filled, self.place)
    }

    /// Makes the first `pages` pages what the filesystem says that they are, as far as that is
    /// simple; with `writable`, entries that need nothing of it to be written to. Once. Does not
    /// sleep.
    pub(crate) fn fill(&mut self, pages: usize, place: Place, writable: bool) {
        self.place = place;
        self.writable = writable;
        let pages = pages.min(self.pages);
        let Place::Memory(pfn) = place else {
            self.filled = pages;
            return;
        };
        if pages == 0 {
            return;
        }
        let region = Region::lock(DevPage::of(pfn));
        while self.filled < pages {
            let index = PageIndex::new(self.range.first.get() + self.filled);
            let order = self.order_at(index);
            let there = pfn.offset(self.filled);
            if self.filled + order.pages() > pages
                || !there.is_aligned(order)
                || !folio::associate_free(&region, DevPage::of(there), order, self.mapping, index)
            {
                break;
            }
            self.filled += order.pages();
        }
    }
}

impl Drop for Window<'_> {
    fn drop(&mut self) {
        if self.pages == 0 {
            return;
        }
        let tree = self.mapping.tree();
        let guard = tree.lock();
        let mut at = Cursor::new(tree, self.range.first);
        let waiters = wait::anybody_waits();
        let mut offset = 0;
        while offset < self.pages {
            let index = PageIndex::new(self.range.first.get() + offset);
            let order = self.order_at(index);
            let mut wake = Wake::One;
            if at.at(&guard, index).is_none() {
                // Not so: it is locked by us.
            } else if offset < self.filled {
                at.overwrite(&guard, self.entry_at(offset, order).unlocked());
            } else {
                at.erase(&guard);
                at.set(index);
                wake = Wake::All;
            }
            if waiters {
                wait::wake_entry_waiters(EntryKey::new(self.mapping, index), wake);
            }
            offset += order.pages();
        }
        self.mapping.sub_pages(&guard, self.pages - self.filled);
    }
}

/// The largest order of the entries behind a new one: that of the block around a fault.
const LARGEST_BEHIND: Order = Order::from_bits(4);

/// Entries around one that a fault has locked, locked as well. Dropping it unlocks them.
///
/// None of them was waited for.
#[must_use = "the entries are unlocked at once"]
pub(crate) struct Neighbours<'l, 'm> {
    locked: &'l Locked<'m>,
    /// The node that they all are in, with the locked one; none when there are none.
    node: Option<Node>,
    /// A bit for the slot of each.
    slots: u64,
    /// Whether one of them was marked dirty.
    pub(crate) marked: bool,
}

impl Drop for Neighbours<'_, '_> {
    fn drop(&mut self) {
        let (Some(node), true) = (self.node, self.slots != 0) else {
            return;
        };
        let mapping = self.locked.mapping();
        let guard = mapping.tree().lock();
        let slots = node.slots(&guard);
        let waiters = wait::anybody_waits();
        let mut rest = self.slots;
        while rest != 0 {
            let offset = rest.trailing_zeros() as usize;
            rest &= rest - 1;
            let Some((raw, _)) = slots.get(offset) else {
                // Not so: it is locked by us.
                continue;
            };
            slots.overwrite(offset, Entry::from_raw(raw).0.unlocked());
            if waiters {
                let first = NODE_ORDER.first(self.locked.first()).get() + offset;
                let key = EntryKey::new(mapping, PageIndex::new(first));
                wait::wake_entry_waiters(key, Wake::One);
            }
        }
    }
}

/// What a fault makes of an entry beside the one that it is about.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Take {
    /// Nothing.
    Leave,
    /// It is wanted as it is.
    Have,
    /// It is wanted, and is to be marked dirty.
    Mark,
}

/// Locks entries in `range`, which has at most [`Around::MAX`] pages, around the locked one: those
/// that nobody has locked and that `take`, by their first page, what they are and, if it asks,
/// whether they are dirty, wants. Only pages that have their bit in `wanting`, counted from the
/// range's first, are looked at. What is wanted by whom asks whether it is dirty is mapped ahead for
/// writing ([`Entry::ahead`]). Does not sleep.
#[inline]
pub(crate) fn lock_neighbours<'l, 'm>(
    locked: &'l Locked<'m>,
    range: PageRange,
    wanting: usize,
    asks_dirty: bool,
    mut take: impl FnMut(PageIndex, Entry, bool) -> Take,
) -> Neighbours<'l, 'm> {
    let mut neighbours = Neighbours {
        locked,
        node: None,
        slots: 0,
        marked: false,
    };
    let tree = locked.mapping().tree();
    let guard = tree.lock();
    // Where the locked entry's node has larger steps, the entry is larger than the range.
    let Some(node) = locked.node(&guard) else {
        return neighbours;
    };
    neighbours.node = Some(node);
    let slots = node.slots(&guard);
    let base = NODE_ORDER.first(locked.first()).get();
    let last = NODE_ORDER.last(locked.first()).get();
    let dirty = if asks_dirty {
        slots.marks(Mark::Dirty)
    } else {
        0
    };
    // Of a range that begins or ends in another node, the part in this one.
    let (begin, end) = (range.first.get(), range.last.get().min(last) - base);
    let wanting = wanting as u64;
    let mut rest = if begin < base {
        wanting >> (base - begin)
    } else {
        wanting << (begin - base)
    };
    while rest != 0 {
        let offset = rest.trailing_zeros() as usize;
        rest &= rest - 1;
        if offset > end {
            break;
        }
        let Some((raw, offset)) = slots.get(offset) else {
            continue;
        };
        // The one that the fault is about is locked, too.
        let (entry, is_locked) = Entry::from_raw(raw);
        if !entry.is_of_one_page() {
            // The rest of its pages is done with it.
            rest &= u64::MAX
                .checked_shl((offset + entry.order().pages()) as u32)
                .unwrap_or(0);
        }
        if is_locked {
            continue;
        }
        let first = PageIndex::new(base + offset);
        match take(first, entry, dirty >> offset & 1 != 0) {
            Take::Leave => continue,
            Take::Have => (),
            Take::Mark => {
                let mut at = Cursor::new(tree, first);
                if at.load(&guard).is_some() {
                    at.set_mark(&guard, Mark::Dirty);
                }
                neighbours.marked = true;
            }
        }
        let entry = if asks_dirty { entry.ahead() } else { entry };
        slots.overwrite(offset, entry.locked());
        neighbours.slots |= 1 << offset;
    }
    drop(guard);
    neighbours
}

/// The same as [`lock_present`], for those who can be told that a fatal signal has ended the wait for
/// the entry (`EINTR`).
pub(crate) fn lock_present_killable(
    mapping: &Mapping,
    index: PageIndex,
) -> Result<Option<Locked<'_>>> {
    let tree = mapping.tree();
    // Every turn waits for somebody who has the entry locked, which nobody has for ever.
    loop {
        let guard = tree.lock();
        let mut at = Cursor::new(tree, index);
        let Some(raw) = at.load(&guard) else {
            return Ok(None);
        };
        let (entry, locked) = Entry::from_raw(raw);
        if !locked {
            return Ok(Some(lock_at(mapping, &guard, &mut at, entry, index)));
        }
        let key = EntryKey::new(mapping, entry.order().first(index));
        wait::wait_for_entry_killable(mapping, guard, key)?;
    }
}

/// Locks the entry that covers `index`, if there is one. Sleeps.
pub(crate) fn lock_present(mapping: &Mapping, index: PageIndex) -> Option<Locked<'_>> {
    let tree = mapping.tree();
    // Ends: whoever has it locked unlocks it, and waiters have their turn one by one.
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

/// The most entries of a [`Run`].
const RUN: usize = NODE_ORDER.pages();

/// Entries that lie one behind the other in a file, and that this task has locked: at least one.
///
/// Only the first was waited for, so that whoever holds a run waits for no entry.
pub(crate) struct Run<'m> {
    mapping: &'m Mapping,
    first: PageIndex,
    last: PageIndex,
    len: usize,
    entries: [Entry; RUN],
    dirty: u64,
}

impl<'m> Run<'m> {
    /// A run with nothing in it yet.
    fn new(mapping: &'m Mapping) -> Self {
        Self {
            mapping,
            first: PageIndex::new(0),
            last: PageIndex::new(0),
            len: 0,
            entries: [Entry::empty(Order::PTE); RUN],
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
        PageRange {
            first: self.first,
            last: self.last,
        }
    }

    /// The entries in their order, each with its first page in the file and whether it is dirty.
    #[inline]
    pub(crate) fn iter(&self) -> impl Iterator<Item = (PageIndex, Entry, bool)> + '_ {
        let mut index = self.first.get();
        let mut dirty = self.dirty;
        self.entries.iter().take(self.len).map(move |entry| {
            let item = (PageIndex::new(index), *entry, dirty & 1 != 0);
            index = index.wrapping_add(entry.order().pages());
            dirty >>= 1;
            item
        })
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

    /// The memory of the data entries in pieces: those that follow each other there as they do in
    /// the file, with the first page in the file, the first page, and the number of pages.
    pub(crate) fn pieces(&self, dirty_only: bool, mut work: impl FnMut(PageIndex, DevPage, usize)) {
        let mut piece: Option<(PageIndex, DevPage, usize)> = None;
        for (index, entry, dirty) in self.iter() {
            let page = entry.page().filter(|_| dirty || !dirty_only);
            let pages = entry.order().pages();
            if let (Some((_, first, length)), Some(page)) = (piece.as_mut(), page) {
                if first.pfn().offset(*length) == page.pfn() {
                    *length += pages;
                    continue;
                }
            }
            if let Some((at, first, length)) = piece.take() {
                work(at, first, length);
            }
            piece = page.map(|page| (index, page, pages));
        }
        if let Some((at, first, length)) = piece {
            work(at, first, length);
        }
    }

    /// Locks the entry that the cursor was walked to, as the first or the next.
    #[inline]
    fn lock(&mut self, guard: &TreeGuard<'_>, cursor: &mut Cursor<'_>, entry: Entry, dirty: bool) {
        if let Some(slot) = self.entries.get_mut(self.len) {
            cursor.overwrite(guard, entry.locked());
            *slot = entry;
            if self.len == 0 {
                self.first = entry.order().first(cursor.index());
                self.dirty = 0;
            }
            self.last = entry.order().last(cursor.index());
            self.dirty |= u64::from(dirty) << self.len;
            self.len += 1;
        }
    }

    /// Unlocks or removes the entries. Returns how many were removed.
    fn finish(&mut self, guard: &TreeGuard<'_>, cursor: &mut Cursor<'_>, after: After) -> usize {
        let whole_node = self.range()
            == (PageRange {
                first: NODE_ORDER.first(self.first),
                last: NODE_ORDER.last(self.first),
            });
        if after == After::Remove && whole_node {
            Cursor::erase_stretch(self.mapping.tree(), guard, self.first, NODE_ORDER);
        } else {
            for (at, (index, entry, _)) in self.iter().enumerate() {
                if cursor.at(guard, index).is_none() {
                    // Not so: it is locked by us.
                    continue;
                }
                match after {
                    After::Remove => {
                        cursor.erase(guard);
                        cursor.set(index);
                    }
                    After::Clean(dirty) => {
                        // Not before: whoever writes back at the same time waits for what is
                        // marked, and must not tell anybody that it is safe yet.
                        if dirty >> at & 1 == 0 {
                            cursor.clear_mark(guard, Mark::Dirty);
                            cursor.clear_mark(guard, Mark::ToWrite);
                        }
                        cursor.overwrite(guard, entry.protected().unlocked());
                    }
                }
            }
        }
        if wait::anybody_waits() {
            for (index, _, _) in self.iter() {
                let wake = match after {
                    After::Remove => Wake::All,
                    After::Clean(_) => Wake::One,
                };
                wait::wake_entry_waiters(EntryKey::new(self.mapping, index), wake);
            }
        }
        let len = core::mem::replace(&mut self.len, 0);
        if after == After::Remove {
            self.mapping.sub_pages(guard, self.range().pages());
            len
        } else {
            0
        }
    }
}

/// What to do with an entry that a walk came to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Leave it.
    Next,
    /// Remove it at once: it has no memory, or few pages, and is not dirty.
    Remove,
    /// Lock it and work on it without the tree's lock.
    Work,
    /// End the walk.
    Stop,
}

/// What to do with entries that were worked on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum After {
    /// Unlock them; no page table has them writable, and they are not dirty any more, but for those
    /// that have their bit here, the first entry the lowest.
    Clean(u64),
    /// Remove them; what they point to was let go.
    Remove,
}

/// Who looks at the entries of a walk.
pub(crate) trait Visitor {
    /// Whether [`Visitor::look`] has to know if an entry is dirty.
    const ASKS_DIRTY: bool;

    /// Whether [`Visitor::work`] takes several small entries at a time.
    const RUNS: bool;

    /// Whether an entry that somebody has locked is waited for, or passed by.
    #[inline]
    fn awaits(&self, _entry: Entry) -> bool {
        true
    }

    /// Looks at an entry that is not locked, under the tree's lock. May be asked several times.
    fn look(&mut self, entry: Entry, dirty: bool) -> Step;

    /// Works on locked entries, without the tree's lock. May sleep.
    fn work(&mut self, run: &Run<'_>) -> After;
}

/// Which entries a walk comes to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// All.
    Any,
    /// Those with [`Mark::ToWrite`].
    ToWrite,
}

/// Removes what a walk finds in the node that the cursor stands at the begin of, as far as it may be
/// removed at once. Returns the number of entries.
fn remove_in_node<V: Visitor>(
    mapping: &Mapping,
    guard: &TreeGuard<'_>,
    cursor: &mut Cursor<'_>,
    visitor: &mut V,
) -> usize {
    let node = cursor.index();
    let mut removed = 0;
    let mut pages = 0;
    let mut end = node;
    let mut parting = Disassociation::new();
    let visited = cursor.visit_node(guard, Mark::Dirty, |index, raw, dirty| {
        let (entry, locked) = Entry::from_raw(raw);
        if locked || visitor.look(entry, dirty) != Step::Remove {
            return false;
        }
        if let Some(page) = entry.page() {
            parting.add(page);
        }
        wait::wake_entry_waiters(EntryKey::new(mapping, index), Wake::All);
        removed += 1;
        pages += entry.order().pages();
        end = entry.order().last(index);
        true
    });
    drop(parting);
    if removed == 0 {
        return 0;
    }
    if visited == Some(true) {
        Cursor::erase_stretch(mapping.tree(), guard, node, NODE_ORDER);
        end = NODE_ORDER.last(node);
    } else {
        cursor.set(node);
        while cursor.find(guard, end).is_some() {
            cursor.erase(guard);
        }
    }
    mapping.sub_pages(guard, pages);
    // Where the walk goes on.
    cursor.set(PageIndex::new(end.get().wrapping_add(1)));
    removed
}

/// Visits every entry of the range, waiting for those that are locked, and gives way to others
/// every [`BATCH`] entries (spec, R8). Returns how many were removed. Sleeps.
pub(crate) fn walk<V: Visitor>(
    mapping: &Mapping,
    range: PageRange,
    which: Which,
    visitor: &mut V,
) -> usize {
    if mapping.is_empty() {
        return 0;
    }
    let tree = mapping.tree();
    let mut cursor = Cursor::new(tree, range.first);
    let mut guard = tree.lock();
    let mut budget = BATCH;
    let mut worked = 0;
    let mut removed = 0;
    let mut run = Run::new(mapping);
    // The index of an entry that this task has waited for, as one of those woken one at a time.
    let mut waited: Option<EntryKey> = None;
    // Ends: each round is for an entry behind the last one's, up to the range's end, or waits for one
    // that is locked, as `lock_present` does.
    loop {
        let found: Option<RawValue> = match which {
            Which::Any => cursor.find(&guard, range.last),
            Which::ToWrite => cursor.find_marked(&guard, range.last, Mark::ToWrite),
        };
        let found = found.map(|raw| {
            let (entry, locked) = Entry::from_raw(raw);
            let first = entry.order().first(cursor.index());
            (entry, locked, first, EntryKey::new(mapping, first))
        });
        if let Some(left) = waited.filter(|left| found.is_none_or(|(.., key)| key != *left)) {
            // What was waited for is gone, or not wanted any more: those behind us in the queue
            // still want it.
            wait::wake_entry_waiters(left, Wake::One);
            waited = None;
        }
        let Some((entry, locked, first, key)) = found else {
            break;
        };
        if locked && visitor.awaits(entry) {
            let index = cursor.index();
            wait::wait_for_entry(guard, key);
            waited = Some(key);
            guard = tree.lock();
            cursor.set(index);
            continue;
        }
        let dirty = V::ASKS_DIRTY && cursor.has_mark(&guard, Mark::Dirty);
        let step = if locked {
            Step::Next
        } else {
            visitor.look(entry, dirty)
        };
        if matches!(step, Step::Next | Step::Stop) && waited.take().is_some() {
            wait::wake_entry_waiters(key, Wake::One);
        }
        match step {
            Step::Next => (),
            Step::Stop => break,
            Step::Remove => {
                waited = None;
                budget = budget.saturating_sub(BATCH / REMOVE_BATCH - 1);
                let node = NODE_ORDER.first(first);
                let whole_node = entry.order() < NODE_ORDER
                    && node >= range.first
                    && NODE_ORDER.last(first) <= range.last;
                let together = if whole_node {
                    cursor.at(&guard, node);
                    let removed = remove_in_node(mapping, &guard, &mut cursor, visitor);
                    if removed == 0 {
                        // Something that is to stay lies before the entry in its node.
                        cursor.at(&guard, first);
                    }
                    removed
                } else {
                    0
                };
                removed += together;
                budget = budget.saturating_sub(4 * together);
                if together == 0 {
                    if let Some(page) = entry.page() {
                        folio::disassociate(page);
                    }
                    cursor.erase(&guard);
                    mapping.sub_pages(&guard, entry.order().pages());
                    wait::wake_entry_waiters(key, Wake::All);
                    removed += 1;
                } else if cursor.index() > range.last || cursor.index().get() == 0 {
                    break;
                }
            }
            Step::Work => {
                waited = None;
                let mut next = entry;
                let mut dirty = dirty;
                loop {
                    run.lock(&guard, &mut cursor, next, dirty);
                    if !V::RUNS || next.order() >= NODE_ORDER {
                        break;
                    }
                    // That is the very next page.
                    let Some(raw) = cursor.next_in_node(range.last) else {
                        break;
                    };
                    let (entry, locked) = Entry::from_raw(raw);
                    let wanted = match which {
                        Which::Any => true,
                        Which::ToWrite => cursor.has_mark(&guard, Mark::ToWrite),
                    };
                    if locked || !wanted {
                        break;
                    }
                    dirty = V::ASKS_DIRTY && cursor.has_mark(&guard, Mark::Dirty);
                    if visitor.look(entry, dirty) != Step::Work {
                        break;
                    }
                    next = entry;
                }
                drop(guard);
                let after = visitor.work(&run);
                let done = run.range();
                worked += done.pages();
                if worked >= WORK_BATCH {
                    worked = 0;
                    reschedule();
                }
                guard = tree.lock();
                cursor.set(done.first);
                removed += run.finish(&guard, &mut cursor, after);
                if done.last >= range.last {
                    break;
                }
                cursor.set(PageIndex::new(done.last.get().wrapping_add(1)));
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
    removed
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
/// hold no reference to the inode. The folio keeps its owner meanwhile ([`DevFolio::release_owner`]).
/// The call is in flight, but not while it waits: the file's device may be given back meanwhile. Sleeps.
pub(crate) fn lock_by_folio(folio: DevFolio, in_flight: &mut InFlight) -> FolioLock {
    // Ends: it starts over when the folio has got another owner, or another place, since it was looked
    // up, and when its entry has been let go of.
    loop {
        let Some(owner) = OwnerGuard::of(folio) else {
            return FolioLock::NoFile;
        };
        let host = owner.mapping().host();
        if !host.is_dax() || device::device_for(host).is_none() {
            return FolioLock::NoFile;
        }
        let owner = owner.lock();
        let Some(index) = folio.index_in(owner.mapping()) else {
            continue;
        };
        let mut at = Cursor::new(owner.mapping().tree(), index);
        let Some(raw) = at.load(owner.guard()) else {
            return FolioLock::NoFile;
        };
        let (entry, locked) = Entry::from_raw(raw);
        if !locked {
            // Up to the unlocking the core goes by the folio's owner, as does the unlocking.
            match folio.keep_owner(owner.mapping()) {
                Ok(now) if now == index => (),
                Ok(_) => {
                    folio.release_owner();
                    continue;
                }
                Err(ENOENT) => continue,
                Err(_) => return FolioLock::NoFile,
            }
            at.overwrite(owner.guard(), entry.locked());
            FileDevice::of(owner.mapping().host()).inc(Counter::PoisonLocks);
            return FolioLock::Locked(entry);
        }
        let key = EntryKey::new(owner.mapping(), entry.order().first(index));
        drop(at);
        in_flight.pause(|| owner.wait(key));
    }
}

/// The file that owns the folio of a page, and the page's index in it; `None` if it has none, or one
/// of which nobody may take a reference any more. Both may be outdated at once. Sleeps.
#[cfg(CONFIG_MEMORY_FAILURE)]
pub(crate) fn owner_of(page: DevPage) -> Option<(InodeRef, PageIndex)> {
    let owner = OwnerGuard::of(page.folio())?;
    // Every device of this kind can be asked about.
    device::device_for(owner.mapping().host())?;
    let inode = owner.reference()?;
    let index = {
        let _guard = inode.mapping().tree().lock();
        let folio = page.folio();
        let offset = page.pfn().to_bits() - folio.head().pfn().to_bits();
        let index = folio.index_in(inode.mapping())?;
        PageIndex::new(index.get() + offset)
    };
    Some((inode, index))
}
