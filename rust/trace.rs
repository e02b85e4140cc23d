// SPDX-License-Identifier: GPL-2.0

//! Tracepoints (`trace.h`). One that is off costs an instruction which does nothing: what it would say is
//! computed only when it is on.

use super::{
    bdev::BlockDevice,
    bindings,
    entry::Entry,
    fs::{Inode, PageIndex, PageRange},
    order::Order,
    vm::{FaultCode, VmFault}, //
};
use kernel::{
    jump_label::static_branch_unlikely,
    macros::paste, //
};

// Half of what `kernel::tracepoint::declare_trace!` makes, which takes the events from the kernel's own bindings, where
// those of this module are not. The other half are the calls of `rust_do_trace_…`.
macro_rules! is_on {
    ($event:ident) => {
        paste! {
            // SAFETY: This is the static key of a tracepoint.
            unsafe {
                static_branch_unlikely!(
                    bindings::[<__tracepoint_ $event>],
                    kernel::bindings::tracepoint,
                    key
                )
            }
        }
    };
}

/// Why a fault fell back to a smaller order, as the event `rdax_fault` has them.
#[derive(Clone, Copy, Default)]
pub(crate) enum Reason {
    #[default]
    None,
    Alignment,
    Vma,
    Eof,
    Private,
    Extent,
    Hole,
    Conflict,
    MaxOrder,
    Poison,
    Nomem,
}

/// Somebody wants to know of faults. Asked by the callers, where they serve faults, and what an event says is
/// found out again from what they have at hand anyway: whatever is kept for it costs also where nobody asks.
#[inline(always)]
pub(crate) fn wants_faults() -> bool {
    is_on!(rdax_fault)
}

/// A fault ended.
#[cold]
pub(crate) fn fault(vmf: &VmFault<'_>, order: Order, result: FaultCode, reason: Reason) {
    // SAFETY: The inode is alive.
    unsafe {
        bindings::rust_do_trace_rdax_fault(
            vmf.mapping().host().as_ptr(),
            vmf.index().get(),
            vmf.address(),
            order.bits() as u32,
            writes(vmf),
            result.0,
            reason as u32,
        )
    }
}

/// Whether the file is written, not a private copy.
fn writes(vmf: &VmFault<'_>) -> bool {
    vmf.is_write() && vmf.is_shared()
}

/// The same of insertions.
#[inline(always)]
pub(crate) fn wants_insertions() -> bool {
    is_on!(rdax_insert)
}

/// Memory of an entry that begins at page `first` was entered into a page table.
#[cold]
pub(crate) fn insert(vmf: &VmFault<'_>, entry: Entry<'_>, first: PageIndex, order: Order) {
    let index = vmf.index();
    let at = order.first(index).get().wrapping_sub(first.get());
    let pfn = entry.page().map_or(0, |page| page.pfn().to_bits() + at);
    // SAFETY: The inode is alive.
    unsafe {
        bindings::rust_do_trace_rdax_insert(
            vmf.mapping().host().as_ptr(),
            index.get(),
            pfn,
            order.bits() as u32,
            writes(vmf),
        )
    }
}

/// The same of write-back.
#[inline(always)]
pub(crate) fn wants_writeback() -> bool {
    is_on!(rdax_writeback)
}

/// A range was written back: how many pages.
#[cold]
pub(crate) fn writeback(inode: &Inode, range: PageRange, pages: usize) {
    let (first, last) = (range.first.get(), range.last.get());
    // SAFETY: The inode is alive.
    unsafe { bindings::rust_do_trace_rdax_writeback(inode.as_ptr(), first, last, pages) };
}

/// The same of what is flushed because it is removed.
#[inline(always)]
pub(crate) fn wants_removals() -> bool {
    is_on!(rdax_remove_flush)
}

/// Dirty entries of a range are removed or replaced, and flushed for that: how many.
#[cold]
pub(crate) fn remove_flush(inode: &Inode, range: PageRange, entries: usize) {
    let (first, last) = (range.first.get(), range.last.get());
    // SAFETY: The inode is alive.
    unsafe { bindings::rust_do_trace_rdax_remove_flush(inode.as_ptr(), first, last, entries) };
}

/// A device is adopted, or is not any more.
pub(crate) fn adopt(bdev: &BlockDevice, adopted: bool) {
    if is_on!(rdax_adopt) {
        // SAFETY: It takes numbers.
        unsafe { bindings::rust_do_trace_rdax_adopt(bdev.number(), adopted) };
    }
}

/// An entry is kept still while processes are told of bad memory.
pub(crate) fn poison(inode: &Inode, index: PageIndex, order: Order) {
    if is_on!(rdax_poison) {
        // SAFETY: The inode is alive.
        unsafe {
            bindings::rust_do_trace_rdax_poison(inode.as_ptr(), index.get(), order.bits() as u32)
        };
    }
}
