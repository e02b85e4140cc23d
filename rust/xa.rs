// SPDX-License-Identifier: GPL-2.0

//! A file's tree of entries: an XArray with multi-index value entries, walked with a cursor.
//!
//! C header: [`include/linux/xarray.h`](srctree/include/linux/xarray.h)

use super::{
    bindings,
    fs::PageIndex,
    once::Once,
    order::Order, //
};
use core::{
    ffi::c_void,
    marker::PhantomData,
    ptr::{self, NonNull}, //
};
use kernel::{
    sync::atomic::Atomic,
    types::{NotThreadSafe, Opaque}, //
};

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

/// The bits of a value that the core takes for the number of a NUMA node, in the tree of any file that
/// is not shmem's: above the XArray's own bit and one more.
pub(crate) const NODE_BITS: RawValue = ((1 << bindings::NODES_SHIFT) - 1) << 2;

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

/// XAS_BOUNDS: the index is none that the tree, as high as it is, can have.
const BOUNDS: *mut bindings::xa_node = ptr::without_provenance_mut(1);

/// Where in a tree a value is: a slot of a node, or none that is worth being kept.
///
/// # Invariants
///
/// The node, if it is not NULL, is live as long as the value stays in the tree: a node goes when
/// it is empty, and no value is moved but the one at index 0.
#[derive(Clone, Copy)]
pub(crate) struct Slot {
    node: *mut bindings::xa_node,
    offset: u8,
}

impl Slot {
    /// Writes another value over the one that a cursor told this slot of, of the same size; that
    /// has been in the tree ever since. Marks stay. False, and nothing is written, when the slot
    /// was not worth being kept.
    #[inline]
    pub(crate) fn overwrite(self, _guard: &TreeGuard<'_>, value: RawValue) -> bool {
        debug_assert!(value & 1 != 0);
        if self.node.is_null() {
            return false;
        }
        overwrite_slot(self.node, self.offset.into(), value);
        true
    }
}

/// The slots of a node of the lowest level, where each is of one index, while the tree's lock is
/// held.
pub(crate) struct Slots<'g> {
    node: *mut bindings::xa_node,
    _guard: PhantomData<&'g TreeGuard<'g>>,
}

/// A node of the lowest level.
///
/// It is live as long as the lock under which it was got is held, and after that as long as a value
/// in it stays, other than one at index 0 that is alone: who keeps it longer sees to that.
#[derive(Clone, Copy)]
pub(crate) struct Node(*mut bindings::xa_node);

impl Node {
    /// The node's slots.
    #[inline]
    pub(crate) fn slots<'g>(self, _guard: &'g TreeGuard<'_>) -> Slots<'g> {
        Slots {
            node: self.0,
            _guard: PhantomData,
        }
    }
}

impl Slots<'_> {
    /// The value that covers the slot at `offset`, and the offset of the slot that has it.
    #[inline(always)]
    pub(crate) fn get(&self, offset: usize) -> Option<(RawValue, usize)> {
        let slot = slot_of(self.node, offset);
        if slot as usize & 1 != 0 {
            return Some((slot as usize, offset));
        }
        let canonical = as_sibling(slot)?;
        Some((slot_of(self.node, canonical) as usize, canonical))
    }

    /// Writes another value over the one at `offset`, of the same size. Marks stay.
    #[inline(always)]
    pub(crate) fn overwrite(&self, offset: usize, value: RawValue) {
        debug_assert!(value & 1 != 0);
        overwrite_slot(self.node, offset, value);
    }

    /// The marks of one kind, a bit for each slot.
    #[inline(always)]
    pub(crate) fn marks(&self, mark: Mark) -> u64 {
        marks_of(self.node, mark)
    }
}

/// The marks of one kind of a live node of a tree whose lock is held, a bit for each slot.
#[inline(always)]
fn marks_of(node: *mut bindings::xa_node, mark: Mark) -> u64 {
    const { assert!(NODE_MASK < u64::BITS as usize) };
    // SAFETY: By this function's requirements, which its callers in this file meet, the node is live;
    // the mark is one of three.
    unsafe { (*node).__bindgen_anon_2.marks[mark as usize][0] as u64 }
}

/// Writes a value into a slot of a live node of a tree whose lock is held.
#[inline(always)]
fn overwrite_slot(node: *mut bindings::xa_node, offset: usize, value: RawValue) {
    // SAFETY: By this function's requirements, which its callers in this file meet, the node is
    // live. The offset is cut to the number of its slots. They are read concurrently under RCU only,
    // atomically.
    unsafe {
        let slot = (&raw mut (*node).slots).cast::<*mut c_void>();
        Atomic::from_ptr(slot.add(offset & NODE_MASK))
    }
    // As `rcu_assign_pointer`; pairs with those who look up under RCU.
    .store_release(value as *mut _);
}

/// The node that a slot, or the root, points to.
#[inline(always)]
fn as_node(slot: *mut c_void) -> Option<*mut bindings::xa_node> {
    let bits = slot as usize;
    // As `xa_is_node`: the two lowest bits are those of internal entries, the small ones of which
    // are no pointers.
    (bits & 3 == 2 && bits > 4096).then(|| slot.wrapping_byte_sub(2).cast())
}

/// The offset of the slot that has the value, for one of the others over which it extends.
#[inline(always)]
fn as_sibling(slot: *mut c_void) -> Option<usize> {
    let bits = slot as usize;
    (bits & 3 == 2 && bits >> 2 < NODE_MASK).then_some(bits >> 2)
}

/// What is in a slot of a live node of a tree whose lock is held.
#[inline(always)]
fn slot_of(node: *mut bindings::xa_node, offset: usize) -> *mut c_void {
    // SAFETY: By this function's requirements, which its callers in this file meet, the node is
    // live, and its slots are written under the lock only. The offset is cut to their number.
    unsafe {
        (&raw const (*node).slots)
            .cast::<*mut c_void>()
            .add(offset & NODE_MASK)
            .read()
    }
}

impl<'a> Cursor<'a> {
    /// A cursor for an entry of `order` that covers `index`.
    #[inline]
    pub(crate) fn with_order(tree: &'a Tree, index: PageIndex, order: Order) -> Self {
        let mut cursor = Self::new(tree, index);
        if order != Order::PTE {
            cursor.give_order(index, order);
        }
        cursor
    }

    /// A cursor for what covers `index`.
    #[inline(always)]
    pub(crate) fn new(tree: &'a Tree, index: PageIndex) -> Self {
        Self {
            xas: bindings::xa_state {
                xa: tree.0.get(),
                xa_index: index.get() as usize,
                xa_shift: 0,
                xa_sibs: 0,
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

    /// Makes a new cursor of one that was used without an order. Apart from those, because what an
    /// order means to a cursor takes some steps.
    #[cold]
    #[inline(never)]
    pub(crate) fn give_order(&mut self, index: PageIndex, order: Order) {
        let Self { xas, .. } = self;
        let sibs = order.bits() % bindings::XA_CHUNK_SHIFT as usize;
        xas.xa_index = order.first(index).get() as usize;
        xas.xa_shift = (order.bits() - sibs) as u8;
        xas.xa_sibs = ((1usize << sibs) - 1) as u8;
        xas.xa_node = RESTART;
    }

    #[inline]
    fn check(&self, guard: &TreeGuard<'_>) {
        debug_assert!(ptr::eq(self.xas.xa, guard.tree.0.get()));
    }

    #[inline]
    fn value(entry: *mut c_void) -> Option<RawValue> {
        let entry = entry as usize;
        // Nodes and other internal entries are even.
        (entry & 1 != 0).then_some(entry)
    }

    /// The value that covers the cursor's index.
    #[inline]
    pub(crate) fn load(&mut self, guard: &TreeGuard<'_>) -> Option<RawValue> {
        self.check(guard);
        if ptr::eq(self.xas.xa_node, RESTART) && self.xas.xa_shift == 0 && self.xas.xa_sibs == 0 {
            return self.descend();
        }
        // SAFETY: The cursor's tree is alive and locked.
        Self::value(unsafe { bindings::xas_load(&mut self.xas) }.cast())
    }

    /// Walks from the root down to the index, for a cursor without an order that was just set: what
    /// `xas_load` does, without its generality.
    #[inline(always)]
    fn descend(&mut self) -> Option<RawValue> {
        let index = self.xas.xa_index as usize;
        // SAFETY: The array is alive. Its nodes change under the lock only, which is held.
        let mut slot: *mut c_void = unsafe { (*self.xas.xa).xa_head };
        let Some(mut node) = as_node(slot) else {
            if index != 0 {
                self.xas.xa_node = BOUNDS;
                return None;
            }
            self.xas.xa_node = ptr::null_mut();
            return Self::value(slot);
        };
        // SAFETY: As above; what `as_node` says is a live node, here and below.
        let mut shift = unsafe { (*node).shift };
        if index >> shift > NODE_MASK {
            self.xas.xa_node = BOUNDS;
            return None;
        }
        let mut offset;
        // Ends: a level further down each time.
        loop {
            offset = index >> shift & NODE_MASK;
            slot = slot_of(node, offset);
            match as_node(slot) {
                Some(next) if shift != 0 => node = next,
                _ => break,
            }
            // SAFETY: As above.
            shift = unsafe { (*node).shift };
        }
        if let Some(canonical) = as_sibling(slot) {
            offset = canonical;
            slot = slot_of(node, offset);
        }
        self.xas.xa_node = node;
        self.xas.xa_offset = offset as u8;
        Self::value(slot)
    }

    /// The slot that the cursor was walked to, for [`Cursor::back_at`].
    #[inline]
    pub(crate) fn slot(&self) -> Slot {
        let node = self.xas.xa_node;
        // What is at index 0 is moved between a node and the root when the tree grows or shrinks.
        let stays = node as usize & 3 == 0 && self.xas.xa_index != 0;
        Slot {
            node: if stays { node } else { ptr::null_mut() },
            offset: self.xas.xa_offset,
        }
    }

    /// The node that the cursor was walked to, if its slots are of one index each.
    #[inline]
    pub(crate) fn node(&self, guard: &TreeGuard<'_>) -> Option<Node> {
        self.check(guard);
        self.slot_of_page(0).map(|_| Node(self.xas.xa_node))
    }

    /// A cursor at `index`, where there was a value ever since a cursor that was walked to it told
    /// its slot; and the value. Does not walk if it need not.
    #[inline]
    pub(crate) fn back_at(
        tree: &'a Tree,
        guard: &TreeGuard<'_>,
        index: PageIndex,
        slot: Slot,
    ) -> (Self, Option<RawValue>) {
        let mut at = Self::new(tree, index);
        let value = if slot.node.is_null() {
            at.load(guard)
        } else {
            at.xas.xa_node = slot.node;
            at.xas.xa_offset = slot.offset;
            Self::value(slot_of(slot.node, slot.offset.into()))
        };
        (at, value)
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

    /// The next value, if it begins where the one before it ends and is in the same node: what most
    /// steps of a walk over small entries are.
    #[inline]
    pub(crate) fn next_in_node(&mut self, last: PageIndex) -> Option<RawValue> {
        let index = self.xas.xa_index as usize;
        if index >= last.get() || usize::from(self.xas.xa_offset) != index & NODE_MASK {
            return None;
        }
        let mut step = 1;
        // Ends: with the node, at the latest.
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

    /// Whether the cursor is for an entry of more than one index.
    #[inline]
    pub(crate) fn has_order(&self) -> bool {
        self.xas.xa_shift != 0 || self.xas.xa_sibs != 0
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
        let mut marks = marks_of(self.xas.xa_node, mark);
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
    fn slot_of_page(&self, offset: usize) -> Option<*mut c_void> {
        let node = self.xas.xa_node;
        if node.is_null() || node as usize & 3 != 0 || offset > NODE_MASK {
            return None;
        }
        // SAFETY: A cursor that was walked under the lock, which is still held, stands at a live
        // node. An entry that was removed since may have been the node's last: then the cursor was
        // moved on by the removal.
        if unsafe { (*node).shift } != 0 {
            return None;
        }
        Some(slot_of(node, offset))
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
                    let marked = marks_of(self.xas.xa_node, mark) >> offset;
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
        if !node.is_null() {
            // A cursor that was walked under the lock, which is still held, stands at a live node.
            return overwrite_slot(node, self.xas.xa_offset.into(), value);
        }
        // SAFETY: The array is alive, and its root is read concurrently under RCU only, atomically.
        unsafe { Atomic::from_ptr((&raw mut (*self.xas.xa).xa_head).cast()) }
            // As `overwrite_slot`.
            .store_release(value as *mut c_void);
    }

    #[inline]
    pub(crate) fn set_mark(&mut self, guard: &TreeGuard<'_>, mark: Mark) {
        if self.has_mark(guard, mark) {
            return;
        }
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
        let node = self.xas.xa_node;
        if node.is_null() {
            // SAFETY: The cursor's tree is alive and locked.
            return unsafe { bindings::xas_get_mark(&self.xas, mark as bindings::xa_mark_t) };
        }
        node as usize & 3 == 0 && marks_of(self.xas.xa_node, mark) >> self.xas.xa_offset & 1 != 0
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
