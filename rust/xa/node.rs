// SPDX-License-Identifier: GPL-2.0

//! The nodes of an XArray: slots, marks, and what a slot holds.

use super::{
    super::{bindings, once::Once, order::Order},
    Mark, RawValue,
};
use core::{ffi::c_void, marker::PhantomData, ptr};
use kernel::sync::atomic::Atomic;

/// The indices of a node of the lowest level.
pub(crate) const NODE_ORDER: Order = Order::from_bits(bindings::XA_CHUNK_SHIFT as usize);
pub(super) const NODE_MASK: usize = NODE_ORDER.pages() - 1;

/// XAS_RESTART: the next use walks down from the root.
pub(super) const RESTART: *mut bindings::xa_node = ptr::without_provenance_mut(3);

/// XAS_BOUNDS: the index is none that the tree, as high as it is, can have.
pub(super) const BOUNDS: *mut bindings::xa_node = ptr::without_provenance_mut(1);

/// Whether a state's node is one, not the root (NULL) or what stands for a position without a node.
#[inline(always)]
pub(super) fn is_node(node: *mut bindings::xa_node) -> bool {
    !node.is_null() && node as usize & 3 == 0
}

/// The value in a slot, or in the root, of a tree; nodes and other internal entries are even.
///
/// # Safety
///
/// The slot was read in a tree whose lock is held for `'a`, or in which a value is locked for `'a`.
#[inline(always)]
pub(super) unsafe fn as_value<'a>(slot: *mut c_void) -> Option<RawValue<'a>> {
    let bits = slot as usize;
    // INVARIANT: A tree has no other values, by the requirements of `Tree::from_raw`. By this function's
    // its pages are there: see `RawValue` and `LockedSlot`.
    (bits & 1 != 0).then_some(RawValue(bits, PhantomData))
}

/// The node that a slot, or the root, points to.
#[inline(always)]
pub(super) fn as_node(slot: *mut c_void) -> Option<*mut bindings::xa_node> {
    let bits = slot as usize;
    // As `xa_is_node`: the two lowest bits are those of internal entries, the small ones of which
    // are no pointers. The kernel's have the highest bit.
    const MASK: usize = 1 << (usize::BITS - 1) | 3;
    const NODE: usize = 1 << (usize::BITS - 1) | 2;
    (bits & MASK == NODE).then(|| slot.wrapping_byte_sub(2).cast())
}

/// The offset of the slot that has the value, for one of the others over which it extends.
#[inline(always)]
pub(super) fn as_sibling(slot: *mut c_void) -> Option<usize> {
    let bits = slot as usize;
    (bits & 3 == 2 && bits >> 2 < NODE_MASK).then_some(bits >> 2)
}

/// Reads a slot.
///
/// # Safety
///
/// The node is in a tree whose lock is held.
#[inline(always)]
pub(super) unsafe fn slot_of(node: *mut bindings::xa_node, offset: usize) -> *mut c_void {
    // SAFETY: By this function's requirements the node is live, and its slots are written under the
    // lock only. The offset is cut to their number.
    unsafe {
        (&raw const (*node).slots)
            .cast::<*mut c_void>()
            .add(offset & NODE_MASK)
            .read()
    }
}

/// Writes a value over the one in a slot.
///
/// # Safety
///
/// As for [`slot_of`]; the value has the order of the one that it replaces.
#[inline(always)]
pub(super) unsafe fn overwrite_slot(
    node: *mut bindings::xa_node,
    offset: usize,
    value: RawValue<'_>,
) {
    // SAFETY: By this function's requirements.
    unsafe { write_slot(node, offset, value.0) };
}

/// Writes a slot.
///
/// # Safety
///
/// As for [`slot_of`]; the word is one that the tree may have there.
#[inline(always)]
unsafe fn write_slot(node: *mut bindings::xa_node, offset: usize, word: usize) {
    // SAFETY: By this function's requirements the node is live. The offset is cut to the number of its
    // slots. They are read concurrently under RCU only, atomically.
    unsafe {
        let slot = (&raw mut (*node).slots).cast::<*mut c_void>();
        Atomic::from_ptr(slot.add(offset & NODE_MASK))
    }
    // As `rcu_assign_pointer`; pairs with look-ups under RCU.
    .store_release(word as *mut _);
}

/// Whether nothing is in `slots` slots from `offset` on.
///
/// # Safety
///
/// As for [`slot_of`].
#[inline(always)]
pub(super) unsafe fn is_free(node: *mut bindings::xa_node, offset: usize, slots: usize) -> bool {
    let mut used = 0;
    for at in offset..offset + slots {
        // SAFETY: By this function's requirements.
        used |= unsafe { slot_of(node, at) } as usize;
    }
    used == 0
}

/// Stores a value in as many slots as it has indices, from `offset` on: what `xas_store` does there,
/// without its generality.
///
/// # Safety
///
/// As for [`slot_of`]; the node is one of the lowest level, the offset a multiple of the value's
/// indices, and nothing is in those slots.
#[inline(always)]
pub(super) unsafe fn fill_slots(node: *mut bindings::xa_node, offset: usize, value: RawValue<'_>) {
    let slots = value.pages();
    // SAFETY: By this function's requirements. As in the core, the first slot is written first, which the
    // others lead to.
    unsafe {
        overwrite_slot(node, offset, value);
        for at in offset + 1..offset + slots {
            write_slot(node, at, sibling(offset));
        }
        (*node).count += slots as u8;
        (*node).nr_values += slots as u8;
    }
}

/// The word in each further slot of the value at `offset`: [`as_sibling`].
#[inline(always)]
const fn sibling(offset: usize) -> usize {
    offset << 2 | 2
}

/// Sets a mark, if another slot of the node has it, so that it need not be set further up. False, and
/// nothing is done, if none has.
///
/// # Safety
///
/// As for [`slot_of`].
#[inline(always)]
pub(super) unsafe fn mark_another(node: *mut bindings::xa_node, offset: usize, mark: Mark) -> bool {
    // SAFETY: As in `marks_of`. They are read concurrently under RCU only, atomically.
    let marks =
        unsafe { Atomic::from_ptr(&raw mut (*node).__bindgen_anon_2.marks[mark as usize][0]) };
    let now = marks.read_once();
    if now != 0 {
        marks.write_once(now | 1 << (offset & NODE_MASK));
    }
    now != 0
}

/// Clears a mark, if another slot of the node has it, so that it need not be cleared further up. False, and
/// nothing is done, if none has.
///
/// # Safety
///
/// As for [`slot_of`].
#[inline(always)]
pub(super) unsafe fn unmark_one(node: *mut bindings::xa_node, offset: usize, mark: Mark) -> bool {
    // SAFETY: As in `mark_another`.
    let marks =
        unsafe { Atomic::from_ptr(&raw mut (*node).__bindgen_anon_2.marks[mark as usize][0]) };
    let rest = marks.read_once() & !(1 << (offset & NODE_MASK));
    if rest != 0 {
        marks.write_once(rest);
    }
    rest != 0
}

/// Log2 of the indices of each slot.
///
/// # Safety
///
/// As for [`slot_of`].
#[inline(always)]
pub(super) unsafe fn shift_of(node: *mut bindings::xa_node) -> u8 {
    // SAFETY: By this function's requirements the node is live; the field does not change.
    unsafe { (*node).shift }
}

/// The marks of one kind, a bit for each slot.
///
/// # Safety
///
/// As for [`slot_of`].
#[inline(always)]
pub(super) unsafe fn marks_of(node: *mut bindings::xa_node, mark: Mark) -> u64 {
    const { assert!(NODE_MASK < u64::BITS as usize) };
    // SAFETY: By this function's requirements the node is live; the mark is one of three.
    unsafe { (*node).__bindgen_anon_2.marks[mark as usize][0] as u64 }
}
