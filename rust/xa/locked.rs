// SPDX-License-Identifier: GPL-2.0

//! Locked values: tokens that are kept while the tree's lock is dropped.
//!
//! A token stands for locked values that nobody else changes or removes. So their node stays, and the
//! token can go back to it without walking down again. Each is used under the lock of its own tree
//! only, which is checked.

use super::{
    super::{fs::PageIndex, order::Order},
    bindings,
    node::{as_sibling, as_value, marks_of, overwrite_slot, slot_of, NODE_ORDER},
    Mark, RawValue, Tree, TreeGuard, XaState, FLAGS, LOCKED,
};
use core::{cell::Cell, marker::PhantomData, ptr};

/// A value that was locked. When this is dropped and was not used to unlock or remove the value, that
/// stays locked for ever.
///
/// # Invariants
///
/// Unless `tree` is `None`, the value at `first` of the tree is locked, has the order that `place` says,
/// and no other token stands for it. If the node is not NULL, the value is in the slot of it that `place`
/// says: the node stays as long as there is a value in it, and no value is moved but the one at index 0.
/// `word` is what the value will be when it is unlocked, of the same order. If it has memory, it stands for an entry
/// that is counted ([`Association`]).
///
/// A device that goes away takes the entries of the files that are on it one by one, and waits for those that
/// are locked; of a file that is evicted meanwhile, for whoever does that. So as long as a value of a file's
/// tree is locked, the pages of its device are there: its own, those of other values of the tree, and those
/// that the device gives for the file meanwhile.
#[must_use = "the value stays locked"]
pub(crate) struct LockedSlot<'t> {
    pub(super) tree: Option<&'t Tree>,
    pub(super) first: PageIndex,
    pub(super) node: *mut bindings::xa_node,
    pub(super) place: Place,
    pub(super) word: Cell<usize>,
}

/// The order of a value, and the slot of its node that it is in. One word: what is between two bytes of
/// a token would be moved with it, byte by byte.
#[derive(Clone, Copy)]
pub(super) struct Place(usize);

impl Place {
    #[inline(always)]
    pub(super) const fn new(order: Order, offset: u8) -> Self {
        Self(order.bits() << u8::BITS | offset as usize)
    }

    #[inline(always)]
    pub(super) const fn order(self) -> Order {
        // SAFETY: `new` was given one.
        unsafe { Order::from_bits_unchecked(self.0 >> u8::BITS) }
    }

    #[inline(always)]
    const fn offset(self) -> u8 {
        self.0 as u8
    }
}

impl<'t> LockedSlot<'t> {
    /// The first index that the value is for.
    #[inline(always)]
    pub(crate) fn first(&self) -> PageIndex {
        self.first
    }

    /// The value, as it will be when it is unlocked.
    #[inline(always)]
    pub(crate) fn value(&self) -> RawValue<'_> {
        // SAFETY: It was one, and by the type invariant its pages are there as long as it is locked.
        unsafe { RawValue::from_word(self.word.get()) }
    }

    /// Makes it another value of the same order, which the tree has when it is unlocked: one without memory.
    #[inline(always)]
    pub(crate) fn set(&self, value: RawValue<'static>) {
        let now = self.value();
        debug_assert!(value.has_order_of(now));
        if value.has_order_of(now) {
            self.drop_memory();
            // INVARIANT: It has the order, and no memory.
            self.word.set(value.unlocked().0);
        }
    }

    /// Makes it what `change` makes of it: a value of the same order and memory.
    #[inline(always)]
    pub(crate) fn change(&self, change: impl for<'a> FnOnce(RawValue<'a>) -> RawValue<'a>) {
        let now = self.value();
        // INVARIANT: The order and the memory stay.
        self.word.set(change(now).or_as(now).unlocked().0);
    }

    /// As [`LockedSlot::set`], for tests: with memory of theirs, which is there for good, and counted or not.
    #[cfg(RDAX_TEST)]
    pub(crate) fn set_of_test(&self, value: RawValue<'_>) {
        debug_assert!(value.order() == self.place.order());
        self.word.set(value.unlocked().0);
    }

    /// Whether it is locked, in this tree.
    #[inline(always)]
    pub(crate) fn is_in(&self, tree: &Tree) -> bool {
        self.tree.is_some_and(|own| ptr::eq(own, tree))
    }

    #[inline(always)]
    fn is_of(&self, guard: &TreeGuard<'_>) -> bool {
        self.tree.is_some_and(|tree| guard.is_of(tree))
    }

    /// A state at the value. Walks only where the slot is not known.
    #[inline(always)]
    fn state<'g, 'u>(&self, guard: &'g TreeGuard<'u>) -> XaState<'g, 'u> {
        let mut xas = XaState::new(guard, self.first);
        if self.node.is_null() {
            xas.load();
        } else {
            // INVARIANT: The callers have checked that the tree is this one; by this type's invariant
            // the node is in it.
            xas.xas.xa_node = self.node;
            xas.xas.xa_offset = self.place.offset();
        }
        xas
    }

    /// A state at the value. `None` under the lock of another tree, or when the value was unlocked or
    /// removed by this token.
    #[inline(always)]
    pub(crate) fn xas<'g, 'u>(&self, guard: &'g mut TreeGuard<'u>) -> Option<XaState<'g, 'u>> {
        self.is_of(guard).then(|| self.state(guard))
    }

    /// Unlocks the value, as what it was made. Marks stay. False, and nothing is done, where
    /// [`LockedSlot::xas`] gives no state.
    #[inline(always)]
    pub(crate) fn unlock(&mut self, guard: &TreeGuard<'_>) -> bool {
        if !self.is_of(guard) {
            return false;
        }
        self.tree = None;
        let value = self.value();
        if self.node.is_null() {
            // SAFETY: By the type invariant this is the token's value, and of the order; it is a token
            // for nothing any more.
            unsafe { unlock_slowly(XaState::new(guard, self.first), value) };
        } else {
            // SAFETY: By the type invariant the node is in the tree, which is locked, the value there was this
            // token's, and this one has its order.
            unsafe { overwrite_slot(self.node, self.place.offset().into(), value) };
        }
        true
    }

    /// Whether the token stands for no value any more: it was unlocked, removed, or left locked.
    #[inline(always)]
    pub(crate) fn is_left(&self) -> bool {
        self.tree.is_none()
    }

    /// Leaves the value locked. A number is enough to unlock it: what it was made, which is stored then.
    pub(crate) fn leave(&mut self) -> LeftLocked {
        // INVARIANT: By this type's invariant; this is a token for nothing any more.
        LeftLocked {
            tree: self.tree.take().map_or(0, |tree| tree.0.get() as usize),
            index: self.first,
            word: self.word.get(),
        }
    }

    /// Locks other values of the node in which `index` is, if each of its slots is of one index: those
    /// that have the bit of one of their slots in `wanted`, that nobody has locked, and that `choose`
    /// wants, which is told the first slot, the value, and with `asks_dirty` whether it is dirty. The
    /// bits of `set` ([`FLAGS`]) are set in those that are locked. Waits for none.
    #[inline(always)]
    pub(crate) fn lock_beside<'l>(
        &'l self,
        guard: &mut TreeGuard<'_>,
        index: PageIndex,
        wanted: u64,
        asks_dirty: bool,
        set: usize,
        mut choose: impl FnMut(usize, RawValue<'l>, bool) -> Beside,
    ) -> LockedSlots<'l, 't> {
        let mut slots = LockedSlots {
            tree: None,
            node: ptr::null_mut(),
            bits: 0,
            _own: PhantomData,
        };
        if !self.is_of(guard) || wanted == 0 {
            return slots;
        }
        let xas = match NODE_ORDER.first(index) == NODE_ORDER.first(self.first) {
            true => self.state(guard),
            false => {
                let mut xas = XaState::new(guard, index);
                xas.load();
                xas
            }
        };
        if xas.slot_of_page(0).is_none() {
            return slots;
        }
        let node = xas.xas.xa_node;
        // INVARIANT: There are no locked values yet.
        slots.tree = self.tree;
        slots.node = node;
        let dirty = match asks_dirty {
            // SAFETY: The node is in the tree, which is locked, as `slot_of_page` says.
            true => unsafe { marks_of(node, Mark::Dirty) },
            false => 0,
        };
        let set = set & FLAGS;
        let mut rest = wanted;
        while rest != 0 {
            let mut offset = rest.trailing_zeros() as usize;
            rest &= rest - 1;
            // SAFETY: As above, here and below.
            let mut slot = unsafe { slot_of(node, offset) };
            if let Some(canonical) = as_sibling(slot) {
                offset = canonical;
                // SAFETY: As above.
                slot = unsafe { slot_of(node, offset) };
            }
            // SAFETY: As above, and by the type invariant this token's value is locked for `'l`.
            let Some(value) = (unsafe { as_value::<'l>(slot) }) else {
                continue;
            };
            if !value.is_of_one_page() {
                // The rest of its slots is done with it.
                rest &= u64::MAX
                    .checked_shl((offset + value.order().pages()) as u32)
                    .unwrap_or(0);
            }
            // The own one is locked, too.
            if value.is_locked() {
                continue;
            }
            match choose(offset, value, dirty >> offset & 1 != 0) {
                Beside::Leave => continue,
                Beside::Lock => (),
                Beside::LockAndMark => {
                    let mut at = XaState::new(guard, NODE_ORDER.first(index));
                    // INVARIANT: The node is in the tree.
                    at.xas.xa_node = node;
                    at.xas.xa_offset = offset as u8;
                    at.set_mark(Mark::Dirty);
                }
            }
            // SAFETY: The value was not locked. Flags do not change the order.
            unsafe { overwrite_slot(node, offset, RawValue(value.0 | set | LOCKED, PhantomData)) };
            // INVARIANT: It is locked now.
            slots.bits |= 1 << offset;
        }
        slots
    }
}

/// Unlocks the value at the state's index, as `value`: what is at index 0 has to be walked to.
///
/// # Safety
///
/// The value there has the order of this one, and is nobody else's to change.
#[cold]
#[inline(never)]
unsafe fn unlock_slowly(mut xas: XaState<'_, '_>, value: RawValue<'_>) {
    if xas.load().is_some() {
        // SAFETY: By this function's requirements.
        unsafe { xas.overwrite(value) };
    }
}

impl XaState<'_, '_> {
    /// Removes a locked value, where the state is moved to; its memory, if it has any, is taken off its folio. False,
    /// and nothing is done, when it is of another tree, or was unlocked or removed already.
    #[inline(always)]
    pub(crate) fn erase_locked(&mut self, slot: &mut LockedSlot<'_>) -> bool {
        if !slot.is_of(self.guard) {
            return false;
        }
        self.xas.xa_index = slot.first.get();
        if slot.node.is_null() {
            self.set(slot.first);
            self.load();
        } else {
            // INVARIANT: By the slot's invariant the node is in the tree, which is this one.
            self.xas.xa_node = slot.node;
            self.xas.xa_offset = slot.place.offset();
        }
        slot.drop_memory();
        // SAFETY: By the slot's invariant the value is that token's.
        unsafe { self.erase_current() };
        slot.tree = None;
        true
    }
}

/// The action on a value beside a locked one: [`LockedSlot::lock_beside`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beside {
    /// Nothing.
    Leave,
    /// It is locked.
    Lock,
    /// It is marked dirty and locked.
    LockAndMark,
}

/// Locked values of a node, beside one that another token stands for.
///
/// # Invariants
///
/// Unless `tree` is `None`, the values in the slots of the node that have their bit are locked, and no
/// other token stands for them. With the other token's value they are not the only one of the tree, which is
/// the one that is moved out of its node, when it is at index 0; so the node stays.
#[must_use = "the values stay locked"]
pub(crate) struct LockedSlots<'l, 't> {
    tree: Option<&'t Tree>,
    node: *mut bindings::xa_node,
    bits: u64,
    _own: PhantomData<&'l LockedSlot<'t>>,
}

impl LockedSlots<'_, '_> {
    /// Whether there are none.
    #[inline(always)]
    pub(crate) fn is_empty(&self) -> bool {
        self.bits == 0
    }

    /// Unlocks the values, and calls `unlocked` with the slot of each. Nothing is done under the lock
    /// of another tree.
    #[inline(always)]
    pub(crate) fn unlock(&mut self, guard: &TreeGuard<'_>, mut unlocked: impl FnMut(usize)) {
        if !self.tree.is_some_and(|tree| guard.is_of(tree)) {
            return;
        }
        let mut rest = self.bits;
        self.bits = 0;
        while rest != 0 {
            let offset = rest.trailing_zeros() as usize;
            rest &= rest - 1;
            // SAFETY: By the type invariant the node is in the tree, which is locked, and the value is
            // ours.
            unsafe {
                if let Some(value) = as_value(slot_of(self.node, offset)) {
                    overwrite_slot(self.node, offset, value.unlocked());
                }
            }
            unlocked(offset);
        }
    }
}

/// A locked value that was left so. A number is enough to unlock it.
///
/// # Invariants
///
/// The value that covers `index` of the tree at this address is locked, and no token stands for it but
/// this. `word` is a value, to be stored in its place if it has its order.
#[must_use = "the value stays locked"]
#[derive(PartialEq, Eq)]
pub(crate) struct LeftLocked {
    tree: usize,
    index: PageIndex,
    word: usize,
}

impl LeftLocked {
    /// The first index that the value is for.
    pub(crate) fn first(&self) -> PageIndex {
        self.value().order().first(self.index)
    }

    fn value(&self) -> RawValue<'_> {
        // SAFETY: By the type invariant it is one, and its pages are there as those of a token's
        // ([`LockedSlot`]).
        unsafe { RawValue::from_word(self.word) }
    }

    /// The number.
    pub(crate) fn into_bits(self) -> usize {
        self.word
    }

    /// # Safety
    ///
    /// `bits` is the number of one for the value that covers `index` in the tree, and nobody else was
    /// given it.
    pub(crate) unsafe fn from_bits(tree: &Tree, index: PageIndex, bits: usize) -> Self {
        // INVARIANT: By this function's requirements.
        Self {
            tree: tree.0.get() as usize,
            index,
            word: bits,
        }
    }

    /// Stores the value, unlocked. Nothing is done under the lock of another tree.
    pub(crate) fn unlock(self, guard: &mut TreeGuard<'_>) {
        if self.tree != guard.tree.0.get() as usize {
            return;
        }
        let mut xas = guard.xas(self.index);
        if let Some(now) = xas.load() {
            debug_assert!(self.value().has_order_of(now));
            let value = match self.value().has_order_of(now) {
                true => self.value(),
                false => now.unlocked(),
            };
            // SAFETY: By the type invariant the value there is this token's, and this one has the order.
            unsafe { xas.overwrite(value) };
        }
    }
}
