// SPDX-License-Identifier: GPL-2.0

//! A position in a tree: walking, reading, and changing what is not locked.

use super::{
    super::{bindings, fs::PageIndex, once::Once, order::Order},
    locked::Place,
    new_state,
    node::{
        as_node, as_sibling, as_value, fill_slots, is_free, is_node, mark_another, marks_of,
        overwrite_slot, shift_of, slot_of, unmark_one, BOUNDS, NODE_MASK, RESTART,
    },
    InsertError, LockedSlot, Mark, Paused, RawValue, Reserve, TreeGuard,
};
use core::{cell::Cell, ffi::c_void, marker::PhantomData, ptr};
use kernel::sync::atomic::Atomic;

/// A position in a tree whose lock is held (`struct xa_state`).
///
/// # Invariants
///
/// The tree is that of the guard. The state's node is in the tree, or it is NULL, an error, or one of
/// the kernel's marks of a position without a node. Between calls the state has no order and no memory
/// of its own. No other state of this guard changes the tree.
pub(crate) struct XaState<'g, 't> {
    pub(super) xas: bindings::xa_state,
    pub(super) guard: &'g TreeGuard<'t>,
    _only_one: PhantomData<&'g mut ()>,
}

impl<'g, 't> XaState<'g, 't> {
    /// The callers see to it that no two states of a guard change the tree, each only as long as it is
    /// borrowed.
    #[inline(always)]
    pub(super) fn new(guard: &'g TreeGuard<'t>, index: PageIndex) -> Self {
        // INVARIANT: A new state has no node.
        Self {
            xas: new_state(guard.tree, index),
            guard,
            _only_one: PhantomData,
        }
    }

    /// The guard that the state was made under.
    #[inline(always)]
    pub(crate) fn guard(&self) -> &'g TreeGuard<'t> {
        self.guard
    }

    /// The index that the walk has come to.
    #[inline]
    pub(crate) fn index(&self) -> PageIndex {
        PageIndex::new(self.xas.xa_index)
    }

    /// Goes on at `index`.
    #[inline]
    pub(crate) fn set(&mut self, index: PageIndex) {
        self.xas.xa_index = index.get();
        self.xas.xa_node = RESTART;
    }

    /// Goes on behind `last`, with [`XaState::find`] or [`XaState::find_marked`]; from the node that the
    /// state stands in where `last` is in it, without walking down again.
    #[inline]
    pub(crate) fn set_behind(&mut self, last: PageIndex) {
        if (self.xas.xa_index ^ last.get()) <= NODE_MASK && self.slot_of_page(0).is_some() {
            // Both go on at the slot behind the state's.
            self.xas.xa_index = last.get();
            self.xas.xa_offset = (last.get() & NODE_MASK) as u8;
        } else {
            self.set(PageIndex::new(last.get().wrapping_add(1)));
        }
    }

    /// Ends the use of the state, for the lock to be dropped, and keeps where to go on: behind the
    /// value that it stands at.
    pub(crate) fn pause(mut self) -> Paused {
        // SAFETY: The tree is alive and locked.
        unsafe { bindings::xas_pause(&mut self.xas) };
        Paused((!ptr::eq(self.xas.xa_node, BOUNDS)).then(|| self.index()))
    }

    /// The value that covers the state's index.
    #[inline]
    pub(crate) fn load(&mut self) -> Option<RawValue<'g>> {
        if ptr::eq(self.xas.xa_node, RESTART) {
            return self.descend();
        }
        // SAFETY: The tree is alive and locked.
        unsafe { as_value(bindings::xas_load(&mut self.xas).cast()) }
    }

    /// Walks from the root down to the index: what `xas_load` does, without its generality.
    #[inline(always)]
    fn descend(&mut self) -> Option<RawValue<'g>> {
        let index = self.xas.xa_index;
        // SAFETY: The array is alive. Its nodes change under the lock only, which is held.
        let mut slot: *mut c_void = unsafe { (*self.xas.xa).xa_head };
        let Some(mut node) = as_node(slot) else {
            if index != 0 {
                self.xas.xa_node = BOUNDS;
                return None;
            }
            self.xas.xa_node = ptr::null_mut();
            // SAFETY: The root of the tree, which is locked for `'g`.
            return unsafe { as_value(slot) };
        };
        // SAFETY: A node to which the root or a slot points is in the tree, here and below.
        let mut shift = unsafe { shift_of(node) };
        if index >> shift > NODE_MASK {
            self.xas.xa_node = BOUNDS;
            return None;
        }
        let mut offset;
        // Ends: a level further down each time.
        loop {
            offset = index >> shift & NODE_MASK;
            // SAFETY: As above.
            slot = unsafe { slot_of(node, offset) };
            match as_node(slot) {
                Some(next) if shift != 0 => node = next,
                _ => break,
            }
            // SAFETY: As above.
            shift = unsafe { shift_of(node) };
        }
        if let Some(canonical) = as_sibling(slot) {
            offset = canonical;
            // SAFETY: As above.
            slot = unsafe { slot_of(node, offset) };
        }
        self.xas.xa_node = node;
        self.xas.xa_offset = offset as u8;
        // SAFETY: A slot of the tree, which is locked for `'g`.
        unsafe { as_value(slot) }
    }

    /// Reads the slot that the state was walked to; NULL when it was walked to none.
    #[inline(always)]
    pub(super) fn current(&self) -> *mut c_void {
        let node = self.xas.xa_node;
        if is_node(node) {
            // SAFETY: By the type invariant the node is in the tree, which is locked.
            unsafe { slot_of(node, self.xas.xa_offset.into()) }
        } else if node.is_null() {
            // SAFETY: The array is alive and locked.
            unsafe { (*self.xas.xa).xa_head }
        } else {
            ptr::null_mut()
        }
    }

    /// The value that the state was walked to, if to any.
    #[inline(always)]
    pub(super) fn current_value(&self) -> Option<RawValue<'g>> {
        // SAFETY: A slot of the tree, which is locked for `'g`.
        unsafe { as_value(self.current()) }
    }

    /// Writes another value over the one that the state was walked to.
    ///
    /// # Safety
    ///
    /// The state stands at a value, and this one has the same order. It is not another's to change.
    #[inline(always)]
    pub(super) unsafe fn overwrite(&mut self, value: RawValue<'_>) {
        let node = self.xas.xa_node;
        if is_node(node) {
            // SAFETY: By the type invariant the node is in the tree, which is locked. By this
            // function's requirements the order is that of the value there.
            return unsafe { overwrite_slot(node, self.xas.xa_offset.into(), value) };
        }
        // SAFETY: The array is alive, and the state stands at its root, which is read concurrently
        // under RCU only, atomically.
        unsafe { Atomic::from_ptr((&raw mut (*self.xas.xa).xa_head).cast()) }
            // As `overwrite_slot`.
            .store_release(value.0 as *mut c_void);
    }

    /// Locks the value that the state was walked to. `None` when there is none, or it is locked.
    #[inline(always)]
    pub(crate) fn lock(&mut self) -> Option<LockedSlot<'t>> {
        let value = self.current_value().filter(|value| !value.is_locked())?;
        // SAFETY: The state stands at the value, which nobody has locked.
        unsafe { self.overwrite(value.locked()) };
        // INVARIANT: The value is locked as of now.
        Some(self.locked_slot(value))
    }

    /// The token for the value that the state stands at. Its maker keeps the invariant of that.
    #[inline(always)]
    pub(super) fn locked_slot(&self, value: RawValue<'_>) -> LockedSlot<'t> {
        let order = value.order();
        let node = self.xas.xa_node;
        // The value at index 0 moves between a node and the root when the tree grows or shrinks.
        let stays = is_node(node) && self.xas.xa_index != 0;
        LockedSlot {
            tree: Some(self.guard.tree),
            first: order.first(self.index()),
            node: if stays { node } else { ptr::null_mut() },
            place: Place::new(order, self.xas.xa_offset),
            word: Cell::new(value.unlocked().0),
        }
    }

    /// The next value at or after the state's index that begins at or before `last`.
    #[inline]
    pub(crate) fn find(&mut self, last: PageIndex) -> Option<RawValue<'g>> {
        if let Some(value) = self.next_in_node(last) {
            return Some(value);
        }
        // SAFETY: The tree is alive and locked.
        unsafe { as_value(bindings::xas_find(&mut self.xas, last.get()).cast()) }
    }

    /// The next value, if it begins where the one before it ends and is in the same node: what most
    /// steps of a walk over small entries are.
    #[inline]
    pub(crate) fn next_in_node(&mut self, last: PageIndex) -> Option<RawValue<'g>> {
        let index = self.xas.xa_index;
        if index >= last.get() || usize::from(self.xas.xa_offset) != index & NODE_MASK {
            return None;
        }
        let mut step = 1;
        // Ends: with the node, at the latest.
        loop {
            let offset = (index & NODE_MASK) + step;
            let slot = self.slot_of_page(offset)?;
            // SAFETY: A slot of the tree, which is locked for `'g`.
            if let Some(value) = unsafe { as_value(slot) } {
                self.xas.xa_offset = offset as u8;
                self.xas.xa_index += step;
                return Some(value);
            }
            // In a node of the lowest level, what is no value is the rest of the one before it.
            if slot.is_null() || index + step >= last.get() {
                return None;
            }
            step += 1;
        }
    }

    /// The next value with a mark that begins at or before `last`.
    #[inline]
    pub(crate) fn find_marked(&mut self, last: PageIndex, mark: Mark) -> Option<RawValue<'g>> {
        if let Some(value) = self.next_marked_in_node(last, mark) {
            return Some(value);
        }
        // SAFETY: The tree is alive and locked.
        unsafe {
            as_value(
                bindings::xas_find_marked(&mut self.xas, last.get(), mark as bindings::xa_mark_t)
                    .cast(),
            )
        }
    }

    /// The next value with a mark, if it is in the same node, of the lowest level.
    #[inline]
    fn next_marked_in_node(&mut self, last: PageIndex, mark: Mark) -> Option<RawValue<'g>> {
        let index = self.xas.xa_index;
        let at = index & NODE_MASK;
        if usize::from(self.xas.xa_offset) != at {
            return None;
        }
        self.slot_of_page(at)?;
        // SAFETY: `slot_of_page` says that there is a node; by the type invariant it is in the tree.
        let behind = unsafe { marks_of(self.xas.xa_node, mark) } & (!1 << at);
        let offset = behind.trailing_zeros() as usize;
        let next = (index & !NODE_MASK) | offset;
        if next > last.get() {
            return None;
        }
        // Where there is no further mark, this is no slot.
        let slot = self.slot_of_page(offset)?;
        // SAFETY: A slot of the tree, which is locked for `'g`.
        let value = unsafe { as_value(slot) }?;
        self.xas.xa_offset = offset as u8;
        self.xas.xa_index = next;
        Some(value)
    }

    /// The value that covers `index`, where the state is moved to; in the node that it stands in
    /// without walking down again.
    #[inline(always)]
    pub(crate) fn at(&mut self, index: PageIndex) -> Option<RawValue<'g>> {
        if (self.xas.xa_index ^ index.get()) <= NODE_MASK {
            if let Some(slot) = self.slot_of_page(index.get() & NODE_MASK) {
                if slot.is_null() || slot as usize & 1 != 0 {
                    self.xas.xa_index = index.get();
                    self.xas.xa_offset = (index.get() & NODE_MASK) as u8;
                    // SAFETY: A slot of the tree, which is locked for `'g`.
                    return unsafe { as_value(slot) };
                }
            }
        }
        self.at_another_node(index)
    }

    #[cold]
    #[inline(never)]
    fn at_another_node(&mut self, index: PageIndex) -> Option<RawValue<'g>> {
        self.set(index);
        self.load()
    }

    /// Reads a slot of the node that the state was walked to, if its slots are of one index each.
    #[inline]
    pub(super) fn slot_of_page(&self, offset: usize) -> Option<*mut c_void> {
        let node = self.xas.xa_node;
        // SAFETY: By the type invariant the node is in the tree, which is locked.
        if !is_node(node) || offset > NODE_MASK || unsafe { shift_of(node) } != 0 {
            return None;
        }
        // SAFETY: As above.
        Some(unsafe { slot_of(node, offset) })
    }

    /// Whether nothing is at the index behind the state's, as far as the state's node tells.
    #[inline]
    pub(crate) fn is_free_behind(&self) -> bool {
        let offset = self.xas.xa_index & NODE_MASK;
        self.slot_of_page(offset + 1)
            .is_none_or(|slot| slot.is_null())
    }

    /// The value that covers the page before the state's index, and whether it has a mark.
    #[inline]
    pub(crate) fn before(&self, mark: Mark) -> Option<(RawValue<'g>, bool)> {
        let index = self.index();
        let before = PageIndex::new(index.get().checked_sub(1)?);
        if index.get() & NODE_MASK != 0 {
            // Mostly there is a page beside, or nothing: seen without walking down again.
            match self.slot_of_page(before.get() & NODE_MASK) {
                Some(slot) if slot.is_null() => return None,
                Some(slot) => {
                    // SAFETY: A slot of the tree, which is locked for `'g`.
                    if let Some(value) = unsafe { as_value(slot) } {
                        let offset = before.get() & NODE_MASK;
                        // SAFETY: `slot_of_page` says that there is a node; by the type invariant it is
                        // in the tree.
                        let marked = unsafe { marks_of(self.xas.xa_node, mark) } >> offset;
                        return Some((value, marked & 1 != 0));
                    }
                }
                None => (),
            }
        }
        let mut state = XaState::new(self.guard, before);
        let value = state.load()?;
        Some((value, state.has_mark(mark)))
    }

    /// Another position in the tree, to look only.
    #[inline(always)]
    pub(crate) fn reader(&self, index: PageIndex) -> XaReader<'_, 't> {
        XaReader(XaState::new(self.guard, index))
    }

    /// Stores a value at the state's index, and locks it, where that is a multiple of its pages, the
    /// state's node is of the lowest level, and nothing is there: [`XaState::insert`] in fewer steps.
    /// `None`, and nothing is done, where it is not so simple.
    #[inline(always)]
    pub(super) fn insert_in_node(
        &mut self,
        value: RawValue<'_>,
    ) -> Option<Result<(), InsertError>> {
        let offset = self.xas.xa_index & NODE_MASK;
        let pages = value.pages();
        if pages > NODE_MASK || offset & (pages - 1) != 0 || self.slot_of_page(0).is_none() {
            return None;
        }
        let node = self.xas.xa_node;
        // SAFETY: `slot_of_page` says that there is a node, of the lowest level; by the type invariant it
        // is in the tree.
        if !unsafe { is_free(node, offset, pages) } {
            return Some(Err(InsertError::Occupied));
        }
        // SAFETY: As above, and nothing is there.
        unsafe { fill_slots(node, offset, value.locked()) };
        self.xas.xa_offset = offset as u8;
        Some(Ok(()))
    }

    /// Stores a value without memory where nothing is, at its order's multiple below the state's index, and locks
    /// it. Every mark stays as it is.
    #[inline(always)]
    pub(crate) fn insert(
        &mut self,
        value: RawValue<'static>,
        reserve: &mut Reserve,
    ) -> Result<LockedSlot<'t>, InsertError> {
        if ptr::eq(self.xas.xa_node, RESTART) {
            self.load();
        }
        if let Some(inserted) = self.insert_in_node(value) {
            // INVARIANT: The value was stored as a locked one.
            return inserted.map(|()| self.locked_slot(value));
        }
        if !value.is_of_one_page() {
            self.reserve_order(value.order())?;
        } else if !self.current().is_null() {
            return Err(InsertError::Occupied);
        }
        self.xas.xa_alloc = reserve.0;
        // SAFETY: Nothing is there.
        let stored = unsafe { self.store_locked(value) };
        // INVARIANT: The node is NULL, or was not taken. The state has no memory.
        reserve.0 = self.xas.xa_alloc;
        self.xas.xa_alloc = ptr::null_mut();
        match stored {
            // INVARIANT: The value was stored as a locked one.
            true => Ok(self.locked_slot(value)),
            false => Err(InsertError::NoMemory),
        }
    }

    /// Stores a value over what the state stands for, and locks it. The state has no order then. False
    /// when there is no memory.
    ///
    /// # Safety
    ///
    /// Nothing is there, and the value has the state's order.
    #[inline(always)]
    pub(super) unsafe fn store_locked(&mut self, value: RawValue<'_>) -> bool {
        // SAFETY: The tree is alive and locked; `value` is an XArray value, and covers no other.
        unsafe { bindings::xas_store(&mut self.xas, value.locked().0 as *mut _) };
        self.drop_order();
        if self.xas.xa_node as usize & 3 == 2 {
            self.xas.xa_node = RESTART;
            return false;
        }
        true
    }

    /// Gives the state an order, for a value to be stored where nothing is. Apart from those without,
    /// because what an order means to a state takes some steps.
    pub(super) fn reserve_order(&mut self, order: Order) -> Result<(), InsertError> {
        let index = self.index();
        self.give_order(order.first(index), order);
        // SAFETY: The tree is alive and locked.
        if unsafe { bindings::xas_find_conflict(&mut self.xas) }.is_null() {
            return Ok(());
        }
        self.drop_order();
        self.set(index);
        Err(InsertError::Occupied)
    }

    #[cold]
    #[inline(never)]
    pub(super) fn give_order(&mut self, first: PageIndex, order: Order) {
        let sibs = order.bits() % bindings::XA_CHUNK_SHIFT as usize;
        self.xas.xa_index = first.get();
        self.xas.xa_shift = (order.bits() - sibs) as u8;
        self.xas.xa_sibs = ((1usize << sibs) - 1) as u8;
        self.xas.xa_node = RESTART;
    }

    #[inline(always)]
    pub(super) fn drop_order(&mut self) {
        self.xas.xa_shift = 0;
        self.xas.xa_sibs = 0;
    }

    #[inline]
    pub(crate) fn set_mark(&mut self, mark: Mark) {
        if self.has_mark(mark) {
            return;
        }
        let node = self.xas.xa_node;
        // SAFETY: By the type invariant the node is in the tree, which is locked.
        if is_node(node) && unsafe { mark_another(node, self.xas.xa_offset.into(), mark) } {
            return;
        }
        // SAFETY: The tree is alive and locked. A state without a node changes nothing.
        unsafe { bindings::xas_set_mark(&self.xas, mark as bindings::xa_mark_t) };
    }

    #[inline]
    pub(crate) fn clear_mark(&mut self, mark: Mark) {
        let node = self.xas.xa_node;
        // SAFETY: By the type invariant the node is in the tree, which is locked.
        if is_node(node) && unsafe { unmark_one(node, self.xas.xa_offset.into(), mark) } {
            return;
        }
        // SAFETY: The tree is alive and locked.
        unsafe { bindings::xas_clear_mark(&self.xas, mark as bindings::xa_mark_t) };
    }

    /// Whether the value that the state was walked to has a mark.
    #[inline]
    pub(crate) fn has_mark(&self, mark: Mark) -> bool {
        let node = self.xas.xa_node;
        if node.is_null() {
            // SAFETY: The tree is alive and locked.
            return unsafe { bindings::xas_get_mark(&self.xas, mark as bindings::xa_mark_t) };
        }
        // SAFETY: By the type invariant the node is in the tree, which is locked.
        is_node(node) && unsafe { marks_of(node, mark) } >> self.xas.xa_offset & 1 != 0
    }

    /// Log2 of the indices that the tree keeps for the value that the walk has come to.
    #[cfg(RDAX_CHECK)]
    pub(crate) fn stored_order(&mut self) -> usize {
        if !is_node(self.xas.xa_node) {
            return 0;
        }
        // SAFETY: The tree is alive and locked, and by the type invariant the node is in it.
        unsafe { bindings::xas_get_order(&mut self.xas) as usize }
    }
}

/// A position in a tree whose lock is held, which cannot change the tree.
pub(crate) struct XaReader<'g, 't>(XaState<'g, 't>);

impl<'g> XaReader<'g, '_> {
    /// The value that covers `index`, where the state is moved to: [`XaState::at`].
    #[inline(always)]
    pub(crate) fn at(&mut self, index: PageIndex) -> Option<RawValue<'g>> {
        self.0.at(index)
    }

    /// Whether the value that the state was walked to has a mark.
    #[inline]
    pub(crate) fn has_mark(&self, mark: Mark) -> bool {
        self.0.has_mark(mark)
    }
}
