// SPDX-License-Identifier: GPL-2.0

//! A VMA whose address space is locked for writing.
//!
//! C header: [`include/linux/mm.h`](srctree/include/linux/mm.h)

use crate::kern::bindings;
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
}

/// A VMA that no fault maps anything into, until the address space is unlocked.
pub(crate) struct WriteLockedVma<'a>(&'a LockedVma);

impl WriteLockedVma<'_> {
    /// Unmaps what entries of the third level map at the addresses from `start` up to `end`, in this VMA
    /// only. Sleeps.
    pub(crate) fn unmap_puds(&self, start: usize, end: usize) {
        // SAFETY: By the constructor's safety requirements; faults are kept out.
        unsafe { bindings::rdax_vma_unmap_puds(self.0 .0.as_ptr(), start, end) };
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
