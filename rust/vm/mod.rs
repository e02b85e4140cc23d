// SPDX-License-Identifier: GPL-2.0

//! A page fault, and what can be put into the page table that it happened in.
//!
//! C header: [`include/linux/mm.h`](srctree/include/linux/mm.h)

mod batch;
mod vma;

pub(crate) use self::{batch::PteBatch, vma::LockedVma};

use super::{
    bindings,
    fs::{File, Mapping, PageIndex, PageRange},
    order::Order,
    page::DevPage, //
};
use core::{
    marker::PhantomData,
    ptr::{self, NonNull}, //
};
use kernel::{
    mm::virt::VmaRef,
    types::Opaque, //
};

/// The result of a fault handler (`VM_FAULT_*`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FaultCode(pub(crate) u32);

impl FaultCode {
    /// The page is in [`VmFault`], or the access is to be tried again.
    pub(crate) const DONE: Self = Self(0);
    /// The page table is as it should be; the access is tried again.
    pub(crate) const NOPAGE: Self = Self(bindings::vm_fault_reason_VM_FAULT_NOPAGE);
    /// The access is to be tried again, but others come first: those who wait for the address space.
    pub(crate) const LATER: Self =
        Self(bindings::vm_fault_reason_VM_FAULT_NOPAGE | bindings::vm_fault_reason_VM_FAULT_RETRY);
    /// A smaller order is to be tried.
    pub(crate) const FALLBACK: Self = Self(bindings::vm_fault_reason_VM_FAULT_FALLBACK);
    /// The process gets SIGBUS.
    pub(crate) const SIGBUS: Self = Self(bindings::vm_fault_reason_VM_FAULT_SIGBUS);
    /// There is no memory.
    pub(crate) const OOM: Self = Self(bindings::vm_fault_reason_VM_FAULT_OOM);
    /// The memory is bad.
    pub(crate) const HWPOISON: Self = Self(bindings::vm_fault_reason_VM_FAULT_HWPOISON);
    /// The caller has to call `dax_finish_sync_fault`.
    pub(crate) const NEED_SYNC: Self = Self(bindings::vm_fault_reason_VM_FAULT_NEEDDSYNC);
    /// Blocks were allocated on the way.
    pub(crate) const MAJOR: Self = Self(bindings::vm_fault_reason_VM_FAULT_MAJOR);

    /// Both.
    #[inline]
    pub(crate) const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether the fault was not served.
    #[inline]
    pub(crate) const fn is_error(self) -> bool {
        self.0 & (Self::OOM.0 | Self::SIGBUS.0 | Self::HWPOISON.0 | Self::FALLBACK.0) != 0
    }
}

/// The state of a page table at the address of a fault.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Present {
    Nothing,
    /// An entry of the fault's order: the fault is one of write-protection.
    Mapped,
    /// A table of the level below: some of the range is mapped by smaller entries.
    Smaller,
    /// An entry of a higher order.
    Larger,
}

impl Present {
    /// From a value of the helpers.
    #[inline(always)]
    fn of(found: u32) -> Self {
        match found {
            bindings::RDAX_NOTHING => Self::Nothing,
            bindings::RDAX_HUGE => Self::Mapped,
            _ => Self::Smaller,
        }
    }
}

/// A page fault, in the task that it happened to.
///
/// # Invariants
///
/// The fault is handled by this task for all of `'f`. It is in the VMA of an open file, and both stay as
/// they are for as long. Its pointer to an entry of the third level is set, and that to one of the second
/// level unless it is of the third.
#[repr(transparent)]
pub(crate) struct VmFault<'f>(Opaque<bindings::vm_fault>, PhantomData<&'f File>);

impl<'f> VmFault<'f> {
    /// # Safety
    ///
    /// A fault that is being handled by this task for all of `'f`, in the VMA of an open file.
    #[inline]
    pub(crate) unsafe fn from_raw(vmf: NonNull<bindings::vm_fault>) -> &'f mut Self {
        // SAFETY: The type is transparent; the rest is this function's safety requirement.
        // INVARIANT: The core fills in what it has looked up.
        unsafe { vmf.cast::<Self>().as_mut() }
    }

    #[inline]
    pub(super) fn raw(&self) -> *mut bindings::vm_fault {
        self.0.get()
    }

    #[inline]
    pub(super) fn vma(&self) -> *mut bindings::vm_area_struct {
        // SAFETY: The fault is valid.
        unsafe { (*self.raw()).__bindgen_anon_1.vma }
    }

    /// The file that is mapped.
    #[inline]
    pub(crate) fn file(&self) -> &'f File {
        // SAFETY: By the type invariant the VMA has a file, which it keeps open for so long.
        unsafe { File::from_raw(NonNull::new_unchecked((*self.vma()).vm_file)) }
    }

    /// The contents that are mapped.
    #[inline]
    pub(crate) fn mapping(&self) -> &'f Mapping {
        self.file().mapping()
    }

    /// The page of the file that was accessed.
    #[inline]
    pub(crate) fn index(&self) -> PageIndex {
        // SAFETY: The fault is valid.
        PageIndex::new(unsafe { (*self.raw()).__bindgen_anon_1.pgoff })
    }

    /// The virtual address that was accessed, in bytes, of the page.
    #[inline]
    pub(crate) fn address(&self) -> usize {
        // SAFETY: The fault is valid.
        unsafe { (*self.raw()).__bindgen_anon_1.address }
    }

    /// Whether the VMA can have an entry of `order` for the whole range around the address.
    ///
    /// Where nobody may access the memory, the kernel takes an entry of the third level for absent: it
    /// would have a debugger's access fault again and again.
    #[inline]
    pub(crate) fn vma_covers(&self, order: Order) -> bool {
        // SAFETY: The VMA is valid.
        if order > Order::PMD && !unsafe { bindings::rdax_vma_is_accessible(self.vma()) } {
            return false;
        }
        let start = self.address() & !(order.bytes() - 1);
        let vma = self.vma_ref();
        start >= vma.start()
            && start
                .checked_add(order.bytes())
                .is_some_and(|end| end <= vma.end())
    }

    #[inline]
    fn vma_ref(&self) -> &VmaRef {
        // SAFETY: By the type invariant the VMA is valid, and stays as it is, for as long as the fault is borrowed:
        // the core holds its lock or that of the address space.
        unsafe { VmaRef::from_raw(self.vma()) }
    }

    /// Whether writes go to the file.
    #[inline]
    pub(crate) fn is_shared(&self) -> bool {
        self.vma_ref().flags() & bindings::VM_SHARED != 0
    }

    /// Whether a store must find its metadata durable (`MAP_SYNC`).
    #[inline]
    pub(crate) fn is_sync(&self) -> bool {
        self.vma_ref().flags() & bindings::VM_SYNC != 0
    }

    /// Whether nobody is to be waited for.
    pub(crate) fn is_nowait(&self) -> bool {
        // SAFETY: The fault is valid.
        unsafe { bindings::rdax_fault_is_nowait(self.raw()) }
    }

    /// Whether the user has said that accesses are in no order (`MADV_RANDOM`).
    #[inline]
    pub(crate) fn is_random(&self) -> bool {
        self.vma_ref().flags() & (bindings::VM_RAND_READ as bindings::vm_flags_t) != 0
    }

    /// Whether the core has looked up the entry of the second level: not for a fault of the third.
    #[inline(always)]
    pub(super) fn has_pmd(&self) -> bool {
        // SAFETY: The fault is valid.
        !unsafe { (*self.raw()).pmd }.is_null()
    }

    /// Whether the page table that maps the address maps all of these pages, for the VMA.
    #[inline]
    pub(super) fn is_around(&self, first: PageIndex, last: PageIndex) -> bool {
        let (start, end) = (self.address_of(first), self.address_of(last));
        let other = (start ^ self.address()) | (end ^ self.address());
        let vma = self.vma_ref();
        self.has_pmd()
            && other < Order::PMD.bytes()
            && vma.start() <= start
            && start <= end
            && end < vma.end()
    }

    /// The pages of the VMA in the aligned range of `pages` pages (a power of two) around the address.
    #[inline]
    pub(crate) fn around(&self, pages: usize) -> PageRange {
        let mask = (pages << Order::PAGE_SHIFT) - 1;
        let address = self.address() & !(Order::PTE.bytes() - 1);
        let vma = self.vma_ref();
        let index = self.index().get();
        let before =
            (address - (address & !mask).max(vma.start()).min(address)) >> Order::PAGE_SHIFT;
        let last = (address | mask).min(vma.end().wrapping_sub(1)).max(address);
        let behind = (last - address) >> Order::PAGE_SHIFT;
        PageRange {
            first: PageIndex::new(index - before.min(index)),
            last: PageIndex::new(index + behind),
        }
    }

    /// Which pages of `range`, a part of what [`VmFault::around`] said, are worth being mapped along
    /// with the one that faulted: those that nothing is mapped at, or, when the fault is one of
    /// write-protection, those that are write-protected too. One bit each, from the first on. May be
    /// outdated at once.
    #[inline]
    pub(crate) fn candidate_ptes(&self, range: PageRange) -> usize {
        if !self.is_around(range.first, range.last) {
            return 0;
        }
        let pages = range.pages().min(PteBatch::MAX);
        // SAFETY: The fault is valid, and the range is around its address, as was just seen.
        unsafe {
            bindings::rdax_vmf_candidate_ptes(
                self.raw(),
                self.address_of(range.first),
                pages,
                self.is_write() && bindings::rdax_vmf_is_present(self.raw()),
            ) as usize
        }
    }

    /// The address that maps a page of the file.
    #[inline]
    pub(super) fn address_of(&self, index: PageIndex) -> usize {
        let address = self.address() & !(Order::PTE.bytes() - 1);
        let distance = index.get().wrapping_sub(self.index().get());
        address.wrapping_add(distance.wrapping_mul(Order::PTE.bytes()))
    }

    /// Whether `fork` leaves the VMA's page table alone, to be filled by faults.
    #[inline]
    pub(crate) fn is_not_copied_by_fork(&self) -> bool {
        // The other flag is taken off shared mappings of files that are open for reading only.
        let shared = self.vma_ref().flags() & bindings::VM_MAYSHARE != 0;
        // SAFETY: The fault is valid.
        shared && unsafe { !bindings::rdax_vma_needs_copy(self.vma()) }
    }

    /// Whether so many entries of 1 GiB were unmapped a moment ago that none is to be mapped anew for the process
    /// (`large_puds.c`).
    pub(crate) fn has_too_many_puds(&self) -> bool {
        // SAFETY: The fault is valid; only counters are looked at.
        unsafe { bindings::rdax_large_puds_are_many((*self.vma()).vm_mm) }
    }

    /// Whether the process has mapped so many pages of files, or more. Roughly: what its processors have counted of
    /// small pages may not be in it yet.
    pub(crate) fn has_mapped(&self, pages: usize) -> bool {
        // SAFETY: The fault is valid; only a counter is looked at.
        unsafe { bindings::rdax_file_pages_mapped((*self.vma()).vm_mm) >= pages }
    }

    /// Whether the access was a write.
    #[inline]
    pub(crate) fn is_write(&self) -> bool {
        // SAFETY: The fault is valid.
        unsafe { (*self.raw()).flags & bindings::fault_flag_FAULT_FLAG_WRITE != 0 }
    }

    /// Whether the core makes a private copy of the page that it is given.
    #[inline]
    pub(crate) fn wants_copy(&self) -> bool {
        // SAFETY: The fault is valid.
        unsafe { !(*self.raw()).cow_page.is_null() }
    }

    /// The state of the page table at the address, for a fault of `order`.
    #[inline]
    pub(crate) fn present(&self, order: Order) -> Present {
        if order < Order::PUD && !self.has_pmd() {
            return Present::Larger;
        }
        // SAFETY: By the type invariant the fault is valid and has the entry of the third level; that of
        // the second is there, as was just seen.
        unsafe {
            match order {
                Order::PTE if bindings::rdax_vmf_pmd_is_huge(self.raw()) => Present::Larger,
                Order::PTE if bindings::rdax_vmf_is_present(self.raw()) => Present::Mapped,
                Order::PTE => Present::Nothing,
                Order::PMD => Present::of(bindings::rdax_vmf_pmd_present(self.raw())),
                _ => Present::of(bindings::rdax_vmf_pud_present(self.raw())),
            }
        }
    }

    /// Gives the core a page to copy, with a reference. The core does the rest.
    #[inline]
    pub(crate) fn give_page(&mut self, page: DevPage<'_>) -> FaultCode {
        page.folio().get().into_raw();
        // SAFETY: The fault is valid and the page has a reference, which is the core's now.
        unsafe { (*self.raw()).page = page.as_ptr() };
        FaultCode::DONE
    }

    /// Gives the core the zero page to copy.
    #[inline]
    pub(crate) fn give_zero_page(&mut self) -> FaultCode {
        // SAFETY: The fault is valid.
        unsafe { bindings::rdax_vmf_give_zero_page(self.raw()) };
        FaultCode::DONE
    }
}

/// Counts a fault for which blocks had to be allocated (`PGMAJFAULT`).
#[inline]
pub(crate) fn count_major_fault() {
    // SAFETY: Counts.
    unsafe { bindings::rdax_count_major_fault() };
}

/// Gives way to other tasks if one waits for the processor. Sleeps; no lock may be held.
#[inline]
pub(crate) fn cond_resched() {
    // SAFETY: The task may sleep where this is called.
    unsafe { bindings::rdax_cond_resched() };
}

/// A number that tells this task from all others, for as long as it lives.
#[inline]
pub(crate) fn this_task() -> usize {
    // SAFETY: Only the address is looked at.
    unsafe { bindings::rdax_current() as usize }
}

/// Whether a filesystem has a transaction open in this task.
#[inline]
pub(crate) fn in_transaction() -> bool {
    // SAFETY: Looks at the current task.
    unsafe { bindings::rdax_in_transaction() }
}

/// Whether a fatal signal waits for this task.
#[inline]
pub(crate) fn fatal_signal() -> bool {
    // SAFETY: Looks at the current task.
    unsafe { bindings::rdax_fatal_signal_pending() }
}

/// The same, or this task exits, which no signal ends any more.
pub(crate) fn is_dying() -> bool {
    // SAFETY: Looks at the current task.
    unsafe { bindings::rdax_is_dying() }
}

/// Whether a message that users can cause may be written to the log now, or there were too many.
pub(crate) fn ratelimit() -> bool {
    // SAFETY: Looks at the module's own counter.
    unsafe { bindings::rdax_ratelimit() }
}

/// Whether this is a thread of the kernel, which works for somebody else or for nobody.
pub(crate) fn is_kernel_thread() -> bool {
    // SAFETY: Looks at the current task.
    unsafe { bindings::rdax_is_kernel_thread() }
}

/// Whether it is a worker of a work queue, which does what somebody has left to it.
pub(crate) fn is_worker() -> bool {
    // SAFETY: Looks at the current task.
    unsafe { bindings::rdax_is_worker() }
}

/// Milliseconds of the kernel's clock, which begin anew when there are too many.
pub(crate) fn now_ms() -> u32 {
    // SAFETY: Computes.
    unsafe { bindings::jiffies64_to_msecs(tick() as u64) as u32 }
}

/// The kernel's clock, in ticks.
#[inline]
pub(crate) fn tick() -> usize {
    // SAFETY: The variable is always there, and read as a whole.
    unsafe { ptr::read_volatile(&raw const bindings::jiffies) as usize }
}

/// Sleeps for some milliseconds, whatever signals come.
pub(crate) fn msleep(milliseconds: u32) {
    // SAFETY: The task may sleep where this is called.
    unsafe { bindings::msleep(milliseconds) };
}
