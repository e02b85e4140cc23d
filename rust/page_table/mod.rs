// SPDX-License-Identifier: GPL-2.0

//! Insertion into page tables (spec, section 11): what is entered, and what is counted for it. Entries of the
//! lowest level are here, those above in `large`.
//!
//! The core takes entries away again: it drops a reference and a map count for each.
//! All of an insertion happens in one hold of the lock of the table, which comes after all other
//! locks. Nothing here warns: what is in the way is a result, and the access is tried again.
//!
//! C headers: [`include/linux/pgtable.h`](srctree/include/linux/pgtable.h),
//! [`include/linux/rmap.h`](srctree/include/linux/rmap.h)

mod large;

use super::{
    bindings,
    order::Order,
    page::{DevFolio, DevPage, PageRun, Pfn},
    vm::{FaultCode, Present, PteBatch, VmFault}, //
};
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::{
    sync::atomic::{
        Atomic,
        Full,
        Release, //
    },
    types::NotThreadSafe, //
};

/// The result of an insertion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Insertion {
    /// There is an entry that there was not, and it is counted.
    New,
    /// The entry was there. It has the rights that were asked for.
    Present,
    /// There is an entry, but userfaultfd has to be told of a store first, which the access leads to.
    Protected,
    /// Something else is there: another page, a marker, a table of smaller entries, or no table any
    /// more. Nothing was changed.
    Occupied,
    /// A table of smaller entries is to be there: somebody makes one, or userfaultfd has to be told of a
    /// store, for which the core takes a larger entry apart. Nothing was changed.
    Yielded,
    /// The folio is not as large as the entry is to be. Nothing was changed.
    Unfit,
    /// There is no memory for a table. Nothing was changed.
    NoMemory,
}

impl Insertion {
    /// For the core. The access is tried again whatever was found: it succeeds, or leads to what was
    /// in the way. A table that is being made serves at once: its maker may have to wait for memory.
    #[inline]
    pub(crate) fn code(self) -> FaultCode {
        match self {
            Self::NoMemory => FaultCode::OOM,
            Self::Yielded | Self::Unfit => FaultCode::FALLBACK,
            _ => FaultCode::NOPAGE,
        }
    }

    /// Whether the page is mapped as it was asked for.
    #[inline]
    pub(crate) fn is_done(self) -> bool {
        matches!(self, Self::New | Self::Present)
    }
}

/// The access that a page is mapped for.
#[derive(Clone, Copy)]
struct How(u32);

impl How {
    const LOAD: Self = Self(bindings::RDAX_LOAD);
    const STORE: Self = Self(bindings::RDAX_STORE);
    /// As for a store, but there was none: the processor notes the first.
    const AHEAD: Self = Self(bindings::RDAX_AHEAD);
    const ZERO: Self = Self(bindings::RDAX_ZERO);

    #[inline]
    fn of(write: bool) -> Self {
        if write {
            Self::STORE
        } else {
            Self::LOAD
        }
    }
}

/// An entry, as seen by a caller who wants to enter a frame there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slot {
    Empty,
    Same,
    Protected,
    Marked,
    Other,
}

impl Slot {
    #[inline(always)]
    fn of(found: u32) -> Self {
        match found {
            bindings::RDAX_NOTHING => Self::Empty,
            bindings::RDAX_SAME => Self::Same,
            bindings::RDAX_PROTECTED => Self::Protected,
            bindings::RDAX_MARKED => Self::Marked,
            _ => Self::Other,
        }
    }
}

/// The entries made, to be counted at once.
#[derive(Default)]
struct Tally {
    added: usize,
    mapped: usize,
    mapped_by_pmd: usize,
}

impl Tally {
    /// Adds the count to those of the VMA's process and of the folio's node.
    ///
    /// # Safety
    ///
    /// The VMA is valid, and the folio has a reference for one of the entries that are counted.
    #[inline]
    unsafe fn count(&self, vma: *mut bindings::vm_area_struct, folio: DevFolio<'_>) {
        if self.added == 0 {
            return;
        }
        // SAFETY: By this function's safety requirements.
        unsafe {
            bindings::rdax_count_mapped(
                (*vma).vm_mm,
                folio.as_ptr(),
                self.added,
                self.mapped,
                self.mapped_by_pmd,
            )
        };
    }
}

/// The table that a fault's address is mapped by, locked.
///
/// # Invariants
///
/// `first` is the entry for the address `start`, and the lock of the table is held.
struct Table<'a> {
    vma: *mut bindings::vm_area_struct,
    start: usize,
    first: NonNull<bindings::pte_t>,
    lock: *mut bindings::spinlock_t,
    _fault: PhantomData<&'a VmFault<'a>>,
    _not_send: NotThreadSafe,
}

impl<'a> Table<'a> {
    /// The table of the fault, of which the entries from that for the address `start` on are wanted.
    /// `None` if there is no table.
    #[inline]
    fn lock(fault: &'a VmFault<'_>, start: usize) -> Option<Self> {
        if !fault.has_pmd() {
            return None;
        }
        let mut lock = core::ptr::null_mut();
        // SAFETY: The fault is valid, and has an entry of the second level.
        let first = unsafe { bindings::rdax_ptes_lock(fault.raw(), start, &raw mut lock) };
        // INVARIANT: This is what the helper does.
        Some(Self {
            vma: fault.vma(),
            start,
            first: NonNull::new(first)?,
            lock,
            _fault: PhantomData,
            _not_send: NotThreadSafe,
        })
    }

    /// The entry with this number, counted from `start`.
    #[inline]
    fn entry(&self, at: usize) -> *mut bindings::pte_t {
        self.first.as_ptr().wrapping_add(at)
    }

    #[inline]
    fn address(&self, at: usize) -> usize {
        self.start + (at << Order::PAGE_SHIFT)
    }

    /// # Safety
    ///
    /// The entry is in the table.
    #[inline]
    unsafe fn look(&self, at: usize, pfn: Pfn) -> Slot {
        // SAFETY: By this function's safety requirements.
        Slot::of(unsafe { bindings::rdax_pte_look(self.vma, self.entry(at), pfn.to_bits()) })
    }

    /// Maps the frames from `pfn` on by `count` entries.
    ///
    /// # Safety
    ///
    /// The entries are in the table and map nothing, and what they are to map is counted.
    #[inline]
    unsafe fn set(&mut self, at: usize, pfn: Pfn, count: usize, how: How, protect: bool) {
        // SAFETY: By this function's safety requirements.
        unsafe {
            bindings::rdax_ptes_set(
                self.vma,
                self.address(at),
                self.entry(at),
                pfn.to_bits(),
                count,
                how.0,
                protect,
            )
        };
    }

    /// Maps pages of device memory by entries, with a reference and a map count for each.
    ///
    /// # Safety
    ///
    /// The entries are in the table and map nothing, and the pages are contiguous in memory
    /// whose entries in the file's tree are locked, or that stays for another reason.
    #[inline]
    unsafe fn map(&mut self, at: usize, run: PageRun<'_>, how: How, protect: bool) {
        let (first, count) = (run.first(), run.pages());
        let mut tally = Tally {
            added: count,
            ..Tally::default()
        };
        let mut done = 0;
        while done < count {
            // SAFETY: By this function's safety requirements.
            let page = unsafe { first.next(done) };
            let rest = count - done;
            if !page.is_in_large() {
                let mapped = &raw mut tally.mapped;
                // SAFETY: By this function's safety requirements: these pages stay, and the references
                // are those of the entries.
                done += unsafe { bindings::rdax_map_small(page.as_ptr(), rest, mapped) };
                continue;
            }
            let folio = page.folio();
            let into = page.pfn().to_bits() - folio.head().pfn().to_bits();
            let pages = (folio.order().pages() - into).min(rest);
            // SAFETY: By this function's safety requirements; so many pages are in the folio. The
            // references are those of the entries.
            tally.mapped += unsafe { folio.map_pages(page, pages, self.vma) };
            done += pages;
        }
        // SAFETY: By this function's safety requirements; contiguous memory is of one node.
        unsafe {
            tally.count(self.vma, first.folio());
            self.set(at, run.pfn(), count, how, protect);
        }
    }
}

impl Drop for Table<'_> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type's invariants.
        unsafe { bindings::rdax_ptes_unlock(self.lock) };
    }
}

/// The faults of a device that make a table just now, for those who would enter a page of the second
/// level in its place. What makes tables for modules (`apply_to_page_range`) complains of such an entry,
/// and there is no entry of a file here whose lock excludes one of the two.
pub(crate) struct TableMakers([Atomic<u32>; Self::SLOTS]);

impl TableMakers {
    const SLOTS: usize = 64;

    pub(crate) const fn new() -> Self {
        Self([const { Atomic::new(0) }; Self::SLOTS])
    }

    /// How many there are where a fault happened; those of other places may be among them.
    #[inline]
    fn at(&self, fault: &VmFault<'_>) -> &Atomic<u32> {
        &self.0[(fault.address() / Order::PMD.bytes()) % Self::SLOTS]
    }
}

impl VmFault<'_> {
    /// Whether it matters which pages the VMA maps besides the one that is accessed: userfaultfd waits
    /// for accesses, or stores to it are to be told from one another (soft-dirty).
    #[inline]
    pub(crate) fn is_watched(&self, write: bool) -> bool {
        // SAFETY: The VMA is valid and does not change during a fault.
        unsafe { bindings::rdax_vma_is_watched(self.vma(), write) }
    }

    /// The address of the page that was accessed.
    #[inline]
    fn page_address(&self) -> usize {
        self.address() & !(Order::PTE.bytes() - 1)
    }

    /// Has a table for the page that was accessed. False without memory. Sleeps.
    #[inline]
    fn make_table(&self) -> bool {
        // SAFETY: The fault is valid, and its address space stays; the entry of the second level is there.
        self.has_pmd() && unsafe { bindings::rdax_ptes_make(self.raw()) == 0 }
    }

    /// Maps a page, by an entry of the lowest level. Sleeps.
    ///
    /// For the page to be that of the file, its entry in the file's tree is locked.
    #[inline]
    pub(crate) fn insert_page(&mut self, page: DevPage<'_>, write: bool) -> Insertion {
        self.insert_one(page.pfn(), How::of(write), |table, how, protect| {
            // SAFETY: Nothing is mapped there, and by its type invariant the page is there. The reference
            // that is taken keeps it.
            unsafe { table.map(0, page.block().run(), how, protect) };
        })
    }

    /// The same where others may map the range by a larger entry meanwhile, but for those that use
    /// [`VmFault::insert_pmd_unless_made`] with the same `makers`.
    pub(crate) fn insert_page_by_table(
        &mut self,
        makers: &TableMakers,
        page: DevPage<'_>,
        write: bool,
    ) -> Insertion {
        if !self.has_pmd() {
            return Insertion::Occupied;
        }
        let count = makers.at(self);
        count.fetch_add(1, Full);
        // Holders of the lock before this have inserted their entry, and it is found; later ones see the
        // count.
        // SAFETY: The fault is valid, and has an entry of the second level.
        unsafe { bindings::rdax_level_unlock(bindings::rdax_pmd_lock(self.raw())) };
        let inserted = self.insert_page(page, write);
        count.fetch_sub(1, Release);
        inserted
    }

    /// Maps the zero page, for reading. Sleeps.
    #[inline]
    pub(crate) fn insert_zero_page(&mut self) -> Insertion {
        // SAFETY: Only the address is computed with.
        let zero = unsafe { bindings::rdax_zero_pfn(self.address()) };
        let zero = Pfn::from_bits(zero as usize);
        self.insert_one(zero, How::ZERO, |table, how, protect| {
            // SAFETY: Nothing is mapped there, and zeroes are not counted.
            unsafe { table.set(0, zero, 1, how, protect) }
        })
    }

    /// Has the page that was accessed mapped, by `enter` if nothing is mapped there.
    #[inline(always)]
    fn insert_one(
        &mut self,
        pfn: Pfn,
        how: How,
        enter: impl FnOnce(&mut Table<'_>, How, bool),
    ) -> Insertion {
        if !self.make_table() {
            return Insertion::NoMemory;
        }
        let Some(mut table) = Table::lock(self, self.page_address()) else {
            return Insertion::Occupied;
        };
        let write = how.0 == How::STORE.0;
        // SAFETY: The first entry is that of the address.
        match unsafe { table.look(0, pfn) } {
            Slot::Empty => {
                enter(&mut table, how, false);
                Insertion::New
            }
            Slot::Marked => {
                // Write-protected before it was mapped, which a store has to wait for.
                let how = if write { How::LOAD } else { how };
                enter(&mut table, how, true);
                if write {
                    Insertion::Protected
                } else {
                    Insertion::New
                }
            }
            Slot::Same => {
                // SAFETY: The entry is in the table, and maps the page.
                unsafe { bindings::rdax_pte_allow(table.vma, table.entry(0), how.0) };
                Insertion::Present
            }
            Slot::Protected if !write => Insertion::Present,
            Slot::Protected => Insertion::Protected,
            Slot::Other => Insertion::Occupied,
        }
    }

    /// Maps pages along with the one that faulted, and returns how many; what is mapped already
    /// stays as it is. Those of a fault of write-protection are made writable where they are mapped.
    /// Pages that are mapped for writing are so without having been written to.
    ///
    /// For the pages to be those of the file, their entries are locked.
    pub(crate) fn map_batch(&mut self, batch: &PteBatch<'_>, write: bool) -> usize {
        let Some((first, last)) = batch.bounds() else {
            return 0;
        };
        if !self.is_around(batch.index(first), batch.index(last)) {
            return 0;
        }
        let start = self.address_of(batch.index(first));
        let upgrade = write && self.present(Order::PTE) == Present::Mapped;
        let how = if write { How::AHEAD } else { How::LOAD };
        let Some(mut table) = Table::lock(self, start) else {
            return 0;
        };
        let span = last - first + 1;
        // SAFETY: All pages of the range are mapped by the fault's table: they are around its address.
        let free = unsafe { bindings::rdax_candidate_ptes(table.entry(0), span, upgrade) };
        let free = free as usize;
        let free = free << first;
        let mut done = 0;
        batch.memory(free, |at, run| {
            let entry = at - first;
            if !upgrade {
                // SAFETY: Nothing is mapped there, and by the invariant of `PageRun` the pages are there.
                unsafe { table.map(entry, run, how, false) };
                done += run.pages();
                return;
            }
            for (number, page) in run.iter().enumerate() {
                // SAFETY: The entry is in the table, and maps the page.
                unsafe {
                    if table.look(entry + number, page.pfn()) == Slot::Same {
                        bindings::rdax_pte_allow(table.vma, table.entry(entry + number), how.0);
                        done += 1;
                    }
                }
            }
        });
        if !upgrade {
            batch.zeroes(free, |at| {
                let entry = at - first;
                // SAFETY: Only the address is computed with. Nothing is mapped there, and zeroes are not
                // counted.
                unsafe {
                    let zero = bindings::rdax_zero_pfn(table.address(entry));
                    table.set(entry, Pfn::from_bits(zero), 1, How::ZERO, false);
                }
                done += 1;
            });
        }
        done
    }
}

impl DevFolio<'_> {
    /// Counts `count` entries of the lowest level for pages of a large folio from `page` on: a
    /// reference and a map count for each. Returns how many pages became mapped that were not.
    ///
    /// # Safety
    ///
    /// The pages are the folio's, the lock of the entries' table is held, and the caller keeps the
    /// folio. The entries are in the VMA.
    #[inline]
    unsafe fn map_pages(
        self,
        page: DevPage<'_>,
        count: usize,
        vma: *mut bindings::vm_area_struct,
    ) -> usize {
        self.get_many(count);
        // SAFETY: By this function's safety requirements; the folio is large.
        unsafe { bindings::rdax_folio_map_some(self.as_ptr(), page.as_ptr(), count, vma) as usize }
    }
}
