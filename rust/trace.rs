// SPDX-License-Identifier: GPL-2.0

//! Tracepoints (`trace.h`). One that is off costs an instruction which does nothing: what it would say is
//! computed only when it is on.

use super::{
    bdev::BlockDevice,
    bindings,
    fs::{Inode, PageIndex, PageRange},
    order::Order,
    page::Pfn,
    vm::FaultCode, //
};
use kernel::{
    jump_label::static_branch_unlikely,
    macros::paste, //
};

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

/// A fault that was served, or not.
pub(crate) struct Fault<'a> {
    pub(crate) inode: &'a Inode,
    pub(crate) index: PageIndex,
    pub(crate) address: usize,
    pub(crate) order: Order,
    pub(crate) write: bool,
    pub(crate) result: FaultCode,
    pub(crate) reason: Reason,
}

/// Somebody wants to know of faults. Asked by the callers, where they serve faults: a closure that were
/// called here would have all that it captures kept in memory, also for nobody.
#[inline(always)]
pub(crate) fn wants_faults() -> bool {
    is_on!(rdax_fault)
}

/// A fault ended.
#[cold]
pub(crate) fn fault(fault: &Fault<'_>) {
    // SAFETY: The inode is alive.
    unsafe {
        bindings::rust_do_trace_rdax_fault(
            fault.inode.as_ptr(),
            fault.index.get(),
            fault.address,
            fault.order.bits() as u32,
            fault.write,
            fault.result.0,
            fault.reason as u32,
        )
    }
}

/// The same of insertions.
#[inline(always)]
pub(crate) fn wants_insertions() -> bool {
    is_on!(rdax_insert)
}

/// Memory was entered into a page table.
#[cold]
pub(crate) fn insert(inode: &Inode, index: PageIndex, pfn: Pfn, order: Order, write: bool) {
    // SAFETY: The inode is alive.
    unsafe {
        bindings::rust_do_trace_rdax_insert(
            inode.as_ptr(),
            index.get(),
            pfn.to_bits(),
            order.bits() as u32,
            write,
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
