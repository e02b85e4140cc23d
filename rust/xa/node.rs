// SPDX-License-Identifier: GPL-2.0

//! The nodes of an XArray: slots, marks, and what a slot holds.

use super::{
    super::{bindings, once::Once, order::Order},
    Mark, RawValue,
};
use core::{ffi::c_void, ptr};
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

/// The value in a slot, or in the root, of a tree whose lock is held; nodes and other internal entries
/// are even.
#[inline(always)]
pub(super) fn as_value(slot: *mut c_void) -> Option<RawValue> {
    let bits = slot as usize;
    // INVARIANT: A tree has no other values, by the requirements of `Tree::from_raw`.
    (bits & 1 != 0).then_some(RawValue(bits))
}

/// The node that a slot, or the root, points to.
#[inline(always)]
pub(super) fn as_node(slot: *mut c_void) -> Option<*mut bindings::xa_node> {
    let bits = slot as usize;
    // As `xa_is_node`: the two lowest bits are those of internal entries, the small ones of which
    // are no pointers.
    (bits & 3 == 2 && bits > 4096).then(|| slot.wrapping_byte_sub(2).cast())
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
pub(super) unsafe fn overwrite_slot(node: *mut bindings::xa_node, offset: usize, value: RawValue) {
    // SAFETY: By this function's requirements the node is live. The offset is cut to the number of its
    // slots. They are read concurrently under RCU only, atomically.
    unsafe {
        let slot = (&raw mut (*node).slots).cast::<*mut c_void>();
        Atomic::from_ptr(slot.add(offset & NODE_MASK))
    }
    // As `rcu_assign_pointer`; pairs with look-ups under RCU.
    .store_release(value.0 as *mut _);
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
