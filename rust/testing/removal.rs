// SPDX-License-Identifier: GPL-2.0

//! Entries of 1 GiB that are unmapped, in page tables that are none.

use crate::kern::bindings;
use core::{
    ffi::c_void,
    marker::PhantomData,
    ptr, //
};
use kernel::{
    prelude::*,
    sync::atomic::{Atomic, Relaxed}, //
};

/// The numbers of address spaces that are none, from above.
static NUMBER: Atomic<u64> = Atomic::new(u64::MAX);

/// An address space with a VMA and two entries of the third level.
pub(crate) struct Entries {
    mm: *mut bindings::mm_struct,
    vma: KBox<bindings::vm_area_struct>,
    entries: KBox<[bindings::pud_t; 2]>,
}

/// An entry that is being unmapped.
#[must_use]
pub(crate) struct Removal(*mut bindings::vm_area_struct, *mut c_void);

impl Entries {
    pub(crate) fn new() -> Result<Self> {
        let mut vma = KBox::<bindings::vm_area_struct>::new(pin_init::zeroed(), GFP_KERNEL)?;
        let entries = KBox::new(pin_init::zeroed(), GFP_KERNEL)?;
        let number = NUMBER.fetch_sub(1, Relaxed);
        // SAFETY: The VMA is of zeroes.
        let mm = unsafe { bindings::rdax_test_new_mm(&raw mut *vma, number) };
        if mm.is_null() {
            return Err(ENOMEM);
        }
        Ok(Self { mm, vma, entries })
    }

    /// Takes the VMA out of the address space, as munmap does.
    pub(crate) fn detach(&mut self) {
        // SAFETY: It is this value's.
        unsafe { bindings::rdax_test_detach(&raw mut *self.vma) };
    }

    pub(crate) fn begin_removal(&mut self, number: usize) -> Removal {
        let entry = &raw mut self.entries[number & 1];
        let vma = &raw mut *self.vma;
        // SAFETY: The entry is of the VMA's address space, as far as is looked at.
        Removal(vma, unsafe {
            bindings::rdax_large_pud_begin_removal(vma, entry)
        })
    }

    /// Does something while the mmap lock is held, for writing or for reading.
    pub(crate) fn with_lock<R>(&self, write: bool, work: impl FnOnce() -> R) -> R {
        // SAFETY: The address space is this value's.
        unsafe { bindings::rdax_test_mmap_lock(self.mm, write) };
        let result = work();
        // SAFETY: Locked above, by this task.
        unsafe { bindings::rdax_test_mmap_unlock(self.mm, write) };
        result
    }

    /// How many entries are remembered, of all address spaces.
    pub(crate) fn remembered() -> u32 {
        // SAFETY: Looks at a counter.
        unsafe { bindings::rdax_large_puds_removed() }
    }

    /// Whether somebody may still have seen an entry.
    pub(crate) fn was_removed(&self, number: usize) -> bool {
        let entry = ptr::from_ref(&self.entries[number & 1]).cast_mut();
        // SAFETY: Nothing is changed.
        unsafe { bindings::rdax_large_pud_was_removed(self.mm, entry) }
    }
}

/// For a thread that makes a table meanwhile.
///
/// # Invariants
///
/// The pointers are those of an [`Entries`] that lives as long.
#[derive(Clone, Copy)]
pub(crate) struct Table<'a> {
    mm: *mut bindings::mm_struct,
    entry: *mut bindings::pud_t,
    _entries: PhantomData<&'a Entries>,
}

// SAFETY: What the pointers are to is looked at under locks.
unsafe impl Send for Table<'_> {}
// SAFETY: As above.
unsafe impl Sync for Table<'_> {}

impl Entries {
    pub(crate) fn table(&self, number: usize) -> Table<'_> {
        Table {
            mm: self.mm,
            entry: ptr::from_ref(&self.entries[number & 1]).cast_mut(),
            _entries: PhantomData,
        }
    }
}

impl Table<'_> {
    /// Waits until a table may be made. Whether one may.
    pub(crate) fn make(self) -> bool {
        let mut place = pin_init::zeroed();
        // SAFETY: By the type invariant; the place is in use until the end.
        unsafe {
            let result = bindings::rdax_begin_table(self.mm, self.entry, &raw mut place);
            bindings::rdax_end_table(&raw mut place);
            result == 0
        }
    }

    /// Whether somebody is about to.
    pub(crate) fn is_made(self) -> bool {
        // SAFETY: By the type invariant.
        unsafe { bindings::rdax_is_made(self.mm, self.entry) }
    }
}

impl Drop for Entries {
    fn drop(&mut self) {
        // SAFETY: It is this value's.
        unsafe { bindings::rdax_test_free_mm(self.mm) };
    }
}

impl Removal {
    pub(crate) fn end(self) {
        // SAFETY: It was begun, and is ended once.
        unsafe { bindings::rdax_large_pud_end_removal(self.0, self.1) };
    }
}
