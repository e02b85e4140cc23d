// SPDX-License-Identifier: GPL-2.0

//! Entries of the levels above the lowest: a folio of 2 MiB or 1 GiB, or zeroes, by one entry.

use super::{
    How,
    Insertion,
    Slot,
    TableMakers,
    Tally, //
};
use crate::kern::{
    bindings,
    order::Order,
    page::{
        DevFolio,
        Pfn, //
    },
    vm::VmFault, //
};
use kernel::sync::atomic::Relaxed;

impl VmFault<'_> {
    /// Maps a folio of order [`Order::PMD`], by one entry; none of another order.
    ///
    /// For the folio to be that of the file, its entry in the file's tree is locked.
    #[inline]
    pub(crate) fn insert_pmd(&mut self, folio: DevFolio<'_>, write: bool) -> Insertion {
        self.insert_pmd_if(folio, write, |_| true)
    }

    /// The same, but for where one of the `makers` is at work.
    #[inline]
    pub(crate) fn insert_pmd_unless_made(
        &mut self,
        makers: &TableMakers,
        folio: DevFolio<'_>,
        write: bool,
    ) -> Insertion {
        self.insert_pmd_if(folio, write, |fault| makers.at(fault).load(Relaxed) == 0)
    }

    #[inline(always)]
    fn insert_pmd_if(
        &mut self,
        folio: DevFolio<'_>,
        write: bool,
        may_enter: impl FnOnce(&Self) -> bool,
    ) -> Insertion {
        if folio.order() != Order::PMD {
            return Insertion::Unfit;
        }
        self.insert_large::<Pmd>(folio.head().pfn(), How::of(write), may_enter, Some(folio))
    }

    /// Maps a folio of order [`Order::PUD`], by one entry. As [`VmFault::insert_pmd`]; and not where a table is about
    /// to be made.
    #[inline]
    pub(crate) fn insert_pud(&mut self, folio: DevFolio<'_>, write: bool) -> Insertion {
        if folio.order() != Order::PUD {
            return Insertion::Unfit;
        }
        let may_enter = |fault: &Self| {
            // SAFETY: The fault is valid, and the lock of its place is held.
            !unsafe { bindings::rdax_table_is_made(fault.raw()) }
        };
        self.insert_large::<Pud>(folio.head().pfn(), How::of(write), may_enter, Some(folio))
    }

    /// Maps zeroes by an entry of the second level, for reading. `None` if there is no memory for
    /// them. Sleeps.
    #[inline]
    pub(crate) fn insert_zero_pmd(&mut self) -> Option<Insertion> {
        // SAFETY: The fault is valid.
        let zero = unsafe { bindings::rdax_zero_folio_pfn(self.raw()) } as usize;
        if zero == 0 {
            return None;
        }
        let zero = Pfn::from_bits(zero);
        Some(self.insert_large::<Pmd>(zero, How::ZERO, |_| true, None))
    }

    /// Has one entry of a higher level, for a folio of its size or for zeroes. A new one only if
    /// `may_enter`, which is asked under the lock, allows it.
    #[inline(always)]
    fn insert_large<L: Level>(
        &mut self,
        pfn: Pfn,
        how: How,
        may_enter: impl FnOnce(&Self) -> bool,
        folio: Option<DevFolio<'_>>,
    ) -> Insertion {
        if L::ORDER < Order::PUD && !self.has_pmd() || !self.vma_covers(L::ORDER) {
            return Insertion::Occupied;
        }
        let fault = self.raw();
        let bits = pfn.to_bits();
        // SAFETY: By its type invariant the fault is valid, and has the entry of the third level; that of
        // the second is there, as was just seen, and the VMA has all that the entry maps. The entry is
        // looked at and changed under the lock. The callers have seen that the folio is of that size.
        // It is counted before it is entered, and the reference that this takes keeps it.
        unsafe {
            let lock = L::lock(fault);
            let result = match Slot::of(L::look(fault, bits)) {
                Slot::Empty if !may_enter(self) => Insertion::Yielded,
                Slot::Empty => {
                    let mut tally = Tally::default();
                    if let Some(folio) = folio {
                        folio.map_whole(self.vma(), &mut tally);
                        if L::ORDER != Order::PMD {
                            tally.mapped_by_pmd = 0;
                        }
                        tally.count(self.vma(), folio);
                    }
                    L::set(fault, bits, how.0);
                    Insertion::New
                }
                Slot::Same => {
                    L::allow(fault, how.0);
                    Insertion::Present
                }
                Slot::Protected if how.0 != How::STORE.0 => Insertion::Present,
                Slot::Protected => Insertion::Yielded,
                Slot::Marked | Slot::Other => Insertion::Occupied,
            };
            bindings::rdax_level_unlock(lock);
            result
        }
    }
}

/// A level of page tables above the lowest: what the helpers are called.
trait Level {
    /// The memory that an entry maps.
    const ORDER: Order;

    /// # Safety
    ///
    /// The fault is valid, and has an entry of this level.
    unsafe fn lock(fault: *mut bindings::vm_fault) -> *mut bindings::spinlock_t;
    /// # Safety
    ///
    /// The lock is held.
    unsafe fn look(fault: *mut bindings::vm_fault, pfn: usize) -> u32;
    /// # Safety
    ///
    /// The lock is held, the entry is empty, and what it is to map is counted.
    unsafe fn set(fault: *mut bindings::vm_fault, pfn: usize, how: u32);
    /// # Safety
    ///
    /// The lock is held, and the entry maps a page.
    unsafe fn allow(fault: *mut bindings::vm_fault, how: u32);
}

macro_rules! level {
    ($name:ident, $order:expr, $lock:ident, $look:ident, $set:ident, $allow:ident) => {
        struct $name;

        impl Level for $name {
            const ORDER: Order = $order;

            #[inline(always)]
            unsafe fn lock(fault: *mut bindings::vm_fault) -> *mut bindings::spinlock_t {
                // SAFETY: By this function's safety requirements.
                unsafe { bindings::$lock(fault) }
            }

            #[inline(always)]
            unsafe fn look(fault: *mut bindings::vm_fault, pfn: usize) -> u32 {
                // SAFETY: By this function's safety requirements.
                unsafe { bindings::$look(fault, pfn) }
            }

            #[inline(always)]
            unsafe fn set(fault: *mut bindings::vm_fault, pfn: usize, how: u32) {
                // SAFETY: By this function's safety requirements.
                unsafe { bindings::$set(fault, pfn, how) }
            }

            #[inline(always)]
            unsafe fn allow(fault: *mut bindings::vm_fault, how: u32) {
                // SAFETY: By this function's safety requirements.
                unsafe { bindings::$allow(fault, how) }
            }
        }
    };
}

level!(
    Pmd,
    Order::PMD,
    rdax_pmd_lock,
    rdax_pmd_look,
    rdax_pmd_set,
    rdax_pmd_allow
);
level!(
    Pud,
    Order::PUD,
    rdax_pud_lock,
    rdax_pud_look,
    rdax_pud_set,
    rdax_pud_allow
);

impl DevFolio<'_> {
    /// Counts an entry for the whole folio, which is large.
    ///
    /// # Safety
    ///
    /// The lock of the entry is held, and the caller keeps the folio. The entry is in the VMA.
    #[inline(always)]
    unsafe fn map_whole(self, vma: *mut bindings::vm_area_struct, tally: &mut Tally) {
        let pages = self.order().pages();
        let mut first = false;
        self.get_many(1);
        // SAFETY: By this function's safety requirements.
        let mapped = unsafe { bindings::rdax_folio_map_whole(self.as_ptr(), vma, &raw mut first) };
        tally.mapped = mapped as usize;
        tally.added = pages;
        tally.mapped_by_pmd = if first { pages } else { 0 };
    }
}
