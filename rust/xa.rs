// SPDX-License-Identifier: GPL-2.0

//! A file's tree of entries: an XArray with multi-index value entries, walked with a cursor.
//!
//! C header: [`include/linux/xarray.h`](srctree/include/linux/xarray.h)

use super::{
    bindings,
    fs::PageIndex,
    order::Order, //
};
use core::{
    marker::PhantomData,
    ptr::{self, NonNull},
    sync::atomic::{AtomicPtr, Ordering},
};
use kernel::types::{NotThreadSafe, Opaque};

/// A mark that an entry can carry.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    /// User space may have written to the pages (`PAGECACHE_TAG_DIRTY`).
    Dirty = 0,
    /// Write-back has this entry before it (`PAGECACHE_TAG_TOWRITE`).
    ToWrite = 2,
}

/// The XArray of an address space.
#[repr(transparent)]
pub(crate) struct Tree(Opaque<bindings::xarray>);

impl Tree {
    /// # Safety
    ///
    /// The array stays alive for `'a`, is one whose lock is taken with interrupts off, and holds
    /// no other entries than values.
    #[inline]
    pub(crate) unsafe fn from_raw<'a>(tree: NonNull<bindings::xarray>) -> &'a Self {
        // SAFETY: The type is transparent; the caller vouches for the lifetime.
        unsafe { tree.cast::<Self>().as_ref() }
    }

    /// Takes the tree's lock (`xa_lock_irq`). Does not sleep. Not with interrupts off.
    #[inline]
    pub(crate) fn lock(&self) -> TreeGuard<'_> {
        // SAFETY: The array is alive.
        unsafe { bindings::rdax_xa_lock_irq(self.0.get()) };
        TreeGuard {
            tree: self,
            _not_send: NotThreadSafe,
        }
    }
}

/// The tree's lock, held with interrupts off.
#[must_use = "the lock is dropped at once"]
pub(crate) struct TreeGuard<'a> {
    tree: &'a Tree,
    _not_send: NotThreadSafe,
}

impl Drop for TreeGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: This value stands for the lock that `Tree::lock` took.
        unsafe { bindings::rdax_xa_unlock_irq(self.tree.0.get()) };
    }
}

/// A value of the tree, odd as every XArray value.
pub(crate) type RawValue = usize;

/// A place in a tree.
///
/// It can be moved and read only by who shows the tree's lock. After the lock was dropped, it must
/// be set anew ([`Cursor::set`], [`Cursor::pause`]) before it is used again.
pub(crate) struct Cursor<'a> {
    xas: bindings::xa_state,
    _tree: PhantomData<&'a Tree>,
}

/// The indices of a node of the lowest level.
pub(crate) const NODE_ORDER: Order = Order::from_bits(bindings::XA_CHUNK_SHIFT as usize);
const NODE_MASK: usize = NODE_ORDER.pages() - 1;

/// XAS_RESTART: the next use walks down from the root.
const RESTART: *mut bindings::xa_node = ptr::without_provenance_mut(3);

impl<'a> Cursor<'a> {
    /// A cursor for what covers `index`.
    #[inline]
    pub(crate) fn new(tree: &'a Tree, index: PageIndex) -> Self {
        Self::with_order(tree, index, Order::PTE)
    }

    /// A cursor for an entry of `order` that covers `index`.
    #[inline]
    pub(crate) fn with_order(tree: &'a Tree, index: PageIndex, order: Order) -> Self {
        let sibs = order.bits() % bindings::XA_CHUNK_SHIFT as usize;
        Self {
            xas: bindings::xa_state {
                xa: tree.0.get(),
                xa_index: order.first(index).get() as usize,
                xa_shift: (order.bits() - sibs) as u8,
                xa_sibs: ((1usize << sibs) - 1) as u8,
                xa_offset: 0,
                xa_pad: 0,
                xa_node: RESTART,
                xa_alloc: ptr::null_mut(),
                xa_update: None,
                xa_lru: ptr::null_mut(),
            },
            _tree: PhantomData,
        }
    }

    #[inline]
    fn check(&self, guard: &TreeGuard<'_>) {
        debug_assert!(ptr::eq(self.xas.xa, guard.tree.0.get()));
    }

    #[inline]
    fn value(entry: *mut core::ffi::c_void) -> Option<RawValue> {
        let entry = entry as usize;
        // Nodes and other internal entries are even.
        (entry & 1 != 0).then_some(entry)
    }

    /// The value that covers the cursor's index.
    #[inline]
    pub(crate) fn load(&mut self, guard: &TreeGuard<'_>) -> Option<RawValue> {
        self.check(guard);
        // SAFETY: The cursor's tree is alive and locked.
        Self::value(unsafe { bindings::xas_load(&mut self.xas) }.cast())
    }

    /// The next value at or after the cursor that begins at or before `last`.
    #[inline]
    pub(crate) fn find(&mut self, guard: &TreeGuard<'_>, last: PageIndex) -> Option<RawValue> {
        self.check(guard);
        if let Some(value) = self.next_in_node(last) {
            return Some(value);
        }
        // SAFETY: The cursor's tree is alive and locked.
        Self::value(unsafe { bindings::xas_find(&mut self.xas, last.get() as usize) }.cast())
    }

    /// The next value, if it is of one index and in the same node: what most steps of a walk over
    /// small entries are.
    #[inline]
    pub(crate) fn next_in_node(&mut self, last: PageIndex) -> Option<RawValue> {
        let index = self.xas.xa_index as usize;
        if index & NODE_MASK == NODE_MASK
            || index >= last.get()
            || usize::from(self.xas.xa_offset) != index & NODE_MASK
        {
            return None;
        }
        let mut step = 1;
        loop {
            let offset = (index & NODE_MASK) + step;
            let slot = self.slot_of_page(offset)?;
            if let Some(value) = Self::value(slot) {
                self.xas.xa_offset = offset as u8;
                self.xas.xa_index += step as usize;
                return Some(value);
            }
            // In a node of the lowest level, what is no value is the rest of the one before it.
            if slot.is_null() || index + step >= last.get() {
                return None;
            }
            step += 1;
        }
    }

    /// The value that covers `index`, where the cursor is moved to; in the node that it stands in
    /// without walking down again.
    #[inline]
    pub(crate) fn at(&mut self, guard: &TreeGuard<'_>, index: PageIndex) -> Option<RawValue> {
        self.check(guard);
        if (self.xas.xa_index as usize ^ index.get()) <= NODE_MASK {
            if let Some(slot) = self.slot_of_page(index.get() & NODE_MASK) {
                if slot.is_null() || slot as usize & 1 != 0 {
                    self.xas.xa_index = index.get() as usize;
                    self.xas.xa_offset = (index.get() & NODE_MASK) as u8;
                    return Self::value(slot);
                }
            }
        }
        self.set(index);
        self.load(guard)
    }

    /// Lets the next [`Cursor::store`] store a value of `order`, below [`NODE_ORDER`], at the
    /// cursor's index, a multiple of the order's pages. False when there is a value in its place.
    #[inline]
    pub(crate) fn widen(&mut self, guard: &TreeGuard<'_>, order: Order) -> bool {
        self.check(guard);
        if order == Order::PTE {
            self.narrow();
            return true;
        }
        let offset = self.xas.xa_index as usize & NODE_MASK;
        self.xas.xa_sibs = (order.pages() - 1).min(NODE_MASK) as u8;
        (0..order.pages()).all(|at| match self.slot_of_page(offset + at) {
            Some(slot) => slot.is_null(),
            None => false,
        })
    }

    /// Lets the next [`Cursor::store`] store a value of one index again.
    #[inline]
    pub(crate) fn narrow(&mut self) {
        self.xas.xa_sibs = 0;
    }

    /// Visits the values of the node that the cursor stands in, if it is one of the lowest level and
    /// the cursor at its begin: with the index, and whether a mark is set. Stops when `visit`
    /// returns false. Returns whether all were visited; `None` when it is no such node.
    #[inline]
    pub(crate) fn visit_node(
        &self,
        guard: &TreeGuard<'_>,
        mark: Mark,
        mut visit: impl FnMut(PageIndex, RawValue, bool) -> bool,
    ) -> Option<bool> {
        self.check(guard);
        let first = self.index();
        if first.get() & NODE_MASK != 0 {
            return None;
        }
        self.slot_of_page(0)?;
        // SAFETY: `slot_of_page` has seen a live node; the mark is one of three.
        let mut marks = unsafe { (*self.xas.xa_node).__bindgen_anon_2.marks[mark as usize][0] };
        const { assert!(NODE_MASK < usize::BITS as usize) };
        for offset in 0..=NODE_MASK {
            if let Some(value) = self.slot_of_page(offset).and_then(Self::value) {
                if !visit(PageIndex::new(first.get() + offset), value, marks & 1 != 0) {
                    return Some(false);
                }
            }
            marks >>= 1;
        }
        Some(true)
    }

    /// What is in a slot of the node that the cursor was walked to, if its slots are of one index
    /// each.
    #[inline]
    fn slot_of_page(&self, offset: usize) -> Option<*mut core::ffi::c_void> {
        let node = self.xas.xa_node;
        if node.is_null() || node as usize & 3 != 0 || offset > NODE_MASK {
            return None;
        }
        // SAFETY: A cursor that was walked under the lock, which is still held, stands at a live
        // node. An entry that was removed since may have been the node's last: then the cursor was
        // moved on by the removal. The offset is below the number of slots, which are written under
        // the lock only.
        unsafe {
            if (*node).shift != 0 {
                return None;
            }
            Some(
                (&raw const (*node).slots)
                    .cast::<*mut core::ffi::c_void>()
                    .add(offset)
                    .read(),
            )
        }
    }

    /// Whether nothing is at the index behind the cursor's, as far as the cursor's node tells.
    #[inline]
    pub(crate) fn is_free_behind(&self, guard: &TreeGuard<'_>) -> bool {
        self.check(guard);
        let offset = self.xas.xa_index as usize & NODE_MASK;
        self.slot_of_page(offset + 1)
            .is_none_or(|slot| slot.is_null())
    }

    /// The value that covers the page before the cursor's index, and whether it has a mark.
    #[inline]
    pub(crate) fn before(&self, guard: &TreeGuard<'_>, mark: Mark) -> Option<(RawValue, bool)> {
        self.check(guard);
        let index = self.index();
        let before = PageIndex::new(index.get().checked_sub(1)?);
        if index.get() & NODE_MASK != 0 {
            // Mostly there is a page beside, or nothing: seen without walking down again.
            match self.slot_of_page(before.get() & NODE_MASK) {
                Some(slot) if slot.is_null() => return None,
                Some(slot) if slot as usize & 1 != 0 => {
                    let offset = before.get() & NODE_MASK;
                    // SAFETY: `slot_of_page` has seen the node, and the mark is one of three.
                    let marked = unsafe {
                        (*self.xas.xa_node).__bindgen_anon_2.marks[mark as usize]
                            [offset / usize::BITS as usize]
                            >> (offset % usize::BITS as usize)
                    };
                    return Some((slot as usize, marked & 1 != 0));
                }
                _ => (),
            }
        }
        let mut at = Cursor {
            xas: bindings::xa_state {
                xa_index: before.get() as usize,
                xa_shift: 0,
                xa_sibs: 0,
                xa_node: RESTART,
                xa_alloc: ptr::null_mut(),
                ..self.xas
            },
            _tree: PhantomData,
        };
        let value = at.load(guard)?;
        Some((value, at.has_mark(guard, mark)))
    }

    /// The next value with a mark.
    #[inline]
    pub(crate) fn find_marked(
        &mut self,
        guard: &TreeGuard<'_>,
        last: PageIndex,
        mark: Mark,
    ) -> Option<RawValue> {
        self.check(guard);
        Self::value(
            // SAFETY: The cursor's tree is alive and locked.
            unsafe {
                bindings::xas_find_marked(
                    &mut self.xas,
                    last.get() as usize,
                    mark as bindings::xa_mark_t,
                )
            }
            .cast(),
        )
    }

    /// Any value in the stretch that a cursor with an order stands for.
    #[inline]
    pub(crate) fn conflict(&mut self, guard: &TreeGuard<'_>) -> Option<RawValue> {
        self.check(guard);
        // SAFETY: The cursor's tree is alive and locked.
        Self::value(unsafe { bindings::xas_find_conflict(&mut self.xas) }.cast())
    }

    /// The index that the walk has come to.
    #[inline]
    pub(crate) fn index(&self) -> PageIndex {
        PageIndex::new(self.xas.xa_index as usize)
    }

    /// Log2 of the indices that the tree keeps for the value that the walk has come to.
    #[cfg(RDAX_CHECK)]
    pub(crate) fn stored_order(&mut self, guard: &TreeGuard<'_>) -> usize {
        self.check(guard);
        // SAFETY: The cursor's tree is alive and locked, and the cursor was walked to a value.
        unsafe { bindings::xas_get_order(&mut self.xas) as usize }
    }

    /// Goes on at `index`.
    #[inline]
    pub(crate) fn set(&mut self, index: PageIndex) {
        self.xas.xa_index = index.get() as usize;
        self.xas.xa_node = RESTART;
    }

    /// Makes the walk go on behind the present entry after the lock was dropped.
    #[inline]
    pub(crate) fn pause(&mut self) {
        // SAFETY: The cursor is valid; the lock is still held by a caller that walks.
        unsafe { bindings::xas_pause(&mut self.xas) };
    }

    /// Stores a value over the stretch that the cursor stands for, over what it covers. Every mark
    /// stays as it is. False when there is no memory: see [`Cursor::allocate`].
    #[inline]
    #[must_use]
    pub(crate) fn store(&mut self, guard: &TreeGuard<'_>, value: RawValue) -> bool {
        self.check(guard);
        debug_assert!(value & 1 != 0);
        // SAFETY: The cursor's tree is alive and locked; `value` is an XArray value.
        unsafe { bindings::xas_store(&mut self.xas, value as *mut _) };
        !self.has_failed()
    }

    /// Removes the value that the cursor was walked to, with its marks.
    #[inline]
    pub(crate) fn erase(&mut self, guard: &TreeGuard<'_>) {
        self.check(guard);
        // SAFETY: The cursor's tree is alive and locked. Removing needs no memory.
        unsafe { bindings::xas_store(&mut self.xas, ptr::null_mut()) };
    }

    /// Removes every value in the aligned stretch of `order` around `index`, with the marks, in one
    /// step. None of the values begins before the stretch or ends behind it. No cursor may be used
    /// that stands there, before it was set anew.
    pub(crate) fn erase_stretch(
        tree: &'a Tree,
        guard: &TreeGuard<'_>,
        index: PageIndex,
        order: Order,
    ) {
        let mut at = Self::with_order(tree, index, order);
        at.erase(guard);
    }

    /// Writes another value over the one that the cursor was walked to, of the same size. Marks
    /// stay.
    #[inline]
    pub(crate) fn overwrite(&mut self, guard: &TreeGuard<'_>, value: RawValue) {
        self.check(guard);
        debug_assert!(value & 1 != 0);
        let node = self.xas.xa_node;
        if node as usize & 3 != 0 {
            // Not walked to anything: a mistake of ours, harmless as nothing is changed.
            return;
        }
        let slot: *mut *mut core::ffi::c_void = if node.is_null() {
            // SAFETY: The array is alive.
            unsafe { (&raw mut (*self.xas.xa).xa_head).cast() }
        } else {
            // SAFETY: A cursor that was walked under the lock, which is still held, stands at a
            // slot of a live node; an offset is below the number of slots.
            unsafe {
                (&raw mut (*node).slots)
                    .cast::<*mut core::ffi::c_void>()
                    .add(usize::from(self.xas.xa_offset))
            }
        };
        // SAFETY: The slot is aligned, and read concurrently under RCU only, atomically.
        unsafe { AtomicPtr::from_ptr(slot) }.store(value as *mut _, Ordering::Release);
    }

    #[inline]
    pub(crate) fn set_mark(&mut self, guard: &TreeGuard<'_>, mark: Mark) {
        self.check(guard);
        // SAFETY: The cursor's tree is alive and locked.
        unsafe { bindings::xas_set_mark(&self.xas, mark as bindings::xa_mark_t) };
    }

    #[inline]
    pub(crate) fn clear_mark(&mut self, guard: &TreeGuard<'_>, mark: Mark) {
        self.check(guard);
        // SAFETY: The cursor's tree is alive and locked.
        unsafe { bindings::xas_clear_mark(&self.xas, mark as bindings::xa_mark_t) };
    }

    #[inline]
    pub(crate) fn has_mark(&self, guard: &TreeGuard<'_>, mark: Mark) -> bool {
        self.check(guard);
        // SAFETY: The cursor's tree is alive and locked.
        unsafe { bindings::xas_get_mark(&self.xas, mark as bindings::xa_mark_t) }
    }

    #[inline]
    fn has_failed(&self) -> bool {
        self.xas.xa_node as usize & 3 == 2
    }

    /// Gets the memory that a [`Cursor::store`] lacked, and sets the cursor anew. False when there
    /// is none. Without the tree's lock. Sleeps.
    #[must_use]
    pub(crate) fn allocate(&mut self) -> bool {
        // SAFETY: The cursor's tree is alive; the lock is not held by us (a guard cannot be passed
        // on to here by accident: it is not an argument).
        unsafe { bindings::xas_nomem(&mut self.xas, bindings::GFP_KERNEL) }
    }
}

impl Drop for Cursor<'_> {
    #[inline]
    fn drop(&mut self) {
        if !self.xas.xa_alloc.is_null() {
            // SAFETY: Frees what `xas_nomem` allocated and no store took.
            unsafe { bindings::xas_destroy(&mut self.xas) };
        }
    }
}
