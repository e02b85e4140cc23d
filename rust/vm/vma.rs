// SPDX-License-Identifier: GPL-2.0

//! A VMA whose address space is locked for writing.
//!
//! C header: [`include/linux/mm.h`](srctree/include/linux/mm.h)

use crate::kern::{
    bindings,
    fs::{File, PageIndex, PageRange},
    order::Order, //
};
use core::ptr::NonNull;

/// A VMA of a file, whose address space its task has locked for writing.
///
/// # Invariants
///
/// The VMA has a file, and this task holds its address space's lock for writing for as long as this is
/// used.
pub(crate) struct LockedVma(NonNull<bindings::vm_area_struct>);

impl LockedVma {
    /// # Safety
    ///
    /// The VMA has a file, and its address space's lock is held for writing while the result is
    /// used.
    pub(crate) unsafe fn from_raw(vma: NonNull<bindings::vm_area_struct>) -> Self {
        Self(vma)
    }

    /// Keeps faults out until the address space is unlocked. Sleeps.
    pub(crate) fn start_write(&self) -> WriteLockedVma<'_> {
        // SAFETY: By the constructor's safety requirements.
        unsafe { bindings::rdax_vma_start_write(self.0.as_ptr()) };
        WriteLockedVma(self)
    }

    /// Unmaps what one huge entry maps on both sides of an address. Faults are kept out. Sleeps.
    pub(crate) fn unmap_straddling(&self, address: usize) {
        // SAFETY: By the constructor's safety requirements.
        unsafe { bindings::rdax_vma_unmap_straddling(self.0.as_ptr(), address) };
    }

    /// The pages of the file behind the whole ranges of `order` of the VMA that the addresses
    /// from `start` up to `end` touch.
    pub(crate) fn whole(&self, order: Order, start: usize, end: usize) -> Option<PageRange> {
        // SAFETY: By the constructor's safety requirements.
        let (from, to, offset) = unsafe {
            let vma = self.0.as_ptr();
            let range = (*vma).__bindgen_anon_1.__bindgen_anon_1;
            (range.vm_start, range.vm_end, (*vma).vm_pgoff)
        };
        let mask = order.bytes() - 1;
        let up = |address: usize| address.saturating_add(mask) & !mask;
        let first = up(from).max(start & !mask);
        let last = (to & !mask).min(up(end));
        if first >= last {
            return None;
        }
        let index = |address: usize| {
            PageIndex::new(offset.wrapping_add(address.wrapping_sub(from) >> Order::PAGE_SHIFT))
        };
        Some(PageRange {
            first: index(first),
            last: index(last - 1),
        })
    }
}

/// A VMA that no fault maps anything into, until the address space is unlocked.
pub(crate) struct WriteLockedVma<'a>(&'a LockedVma);

impl WriteLockedVma<'_> {
    /// Takes pages of the file out of all page tables; they stay out of this VMA's. Sleeps.
    pub(crate) fn unmap(&self, range: PageRange) {
        // SAFETY: By the safety requirements of `LockedVma`'s constructor the VMA has a file, and
        // keeps it open.
        let file = unsafe { File::from_raw(NonNull::new_unchecked((*self.0 .0.as_ptr()).vm_file)) };
        file.mapping().unmap(range);
    }

    /// Unmaps a part of the VMA if pages of it were mapped ahead for writing: what tells whether they
    /// were stored to would be lost when their entries are moved. Sleeps.
    pub(crate) fn unmap_ahead(&self, start: usize, end: usize) {
        // SAFETY: By the constructor's safety requirements.
        unsafe {
            let vma = self.0 .0.as_ptr();
            let range = (*vma).__bindgen_anon_1.__bindgen_anon_1;
            let start = start.max(range.vm_start);
            let end = end.min(range.vm_end);
            // Unmapping takes note of what was stored to.
            if start < end && bindings::rdax_vma_stores(vma, start, end, false) != 0 {
                bindings::zap_vma_range(vma, start, end - start);
            }
        }
    }
}
