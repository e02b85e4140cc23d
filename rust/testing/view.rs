// SPDX-License-Identifier: GPL-2.0

//! Mappings of files: what page tables have, what is counted for it, and pins.

use super::{failed, Checked, File};
use crate::kern::{bindings, order::Order, page::DevPage};
use core::{ffi::c_void, marker::PhantomData, ptr::NonNull};
use kernel::{
    prelude::*,
    sync::atomic::{Atomic, Relaxed},
};

/// The state of a page table at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapped {
    pub(crate) order: usize,
    pub(crate) pfn: usize,
    pub(crate) writable: bool,
    pub(crate) dirty: bool,
}

/// The state of this task's page table at an address.
pub(crate) fn mapped_at(address: usize) -> Option<Mapped> {
    let (mut order, mut pfn) = (0, 0);
    // SAFETY: The pointers are to locals.
    let flags = unsafe { bindings::rdax_test_mapping(address, &mut order, &mut pfn) };
    let has = |flag| flags & flag != 0;
    has(bindings::TEST_PRESENT).then(|| Mapped {
        order: order as usize,
        pfn,
        writable: has(bindings::TEST_WRITABLE),
        dirty: has(bindings::TEST_DIRTY),
    })
}

/// Counts of mapped pages: those of files in this task, and of the node of a frame those that
/// are mapped, and that are mapped by 2 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) resident: isize,
    pub(crate) mapped: isize,
    pub(crate) mapped_by_pmd: isize,
}

impl Counts {
    /// The counts now. The task has an address space.
    pub(crate) fn now(page: DevPage<'_>) -> Self {
        let mut counts = bindings::rdax_test_counts::default();
        // SAFETY: By the invariant of `DevPage` the frame has a page.
        unsafe { bindings::rdax_test_count(page.pfn().to_bits(), &mut counts) };
        Self {
            resident: counts.resident,
            mapped: counts.mapped,
            mapped_by_pmd: counts.mapped_by_pmd,
        }
    }

    /// How many more there are than there were.
    pub(crate) fn since(page: DevPage<'_>, before: Self) -> Self {
        let now = Self::now(page);
        Self {
            resident: now.resident - before.resident,
            mapped: now.mapped - before.mapped,
            mapped_by_pmd: now.mapped_by_pmd - before.mapped_by_pmd,
        }
    }
}

/// How a file is mapped.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Share {
    /// `MAP_SHARED`
    Shared,
    /// `MAP_PRIVATE`
    Private,
    /// `MAP_SHARED_VALIDATE | MAP_SYNC`
    Sync,
}

/// A mapping of a file into the address space of the test, which it is the first to have when it
/// makes one.
pub(crate) struct View<'f> {
    address: usize,
    pages: usize,
    first: usize,
    _file: PhantomData<&'f File<'f>>,
    _not_send: PhantomData<*mut c_void>,
}

/// Where mappings are made: far enough from each other for the largest.
static NEXT_ADDRESS: Atomic<usize> = Atomic::new(0);

impl<'f> View<'f> {
    /// Maps `pages` pages from page `first` of the file on, to be read and written, at an address
    /// that agrees with the place in the file modulo [`Order::PUD`] when `shift` is 0; else at one
    /// that is `shift` pages off.
    pub(crate) fn new(
        file: &'f File<'_>,
        first: usize,
        pages: usize,
        share: Share,
        shift: usize,
    ) -> Checked<Self> {
        const BASE: usize = 16 << 40;
        const SLOTS: usize = 4096;
        let slot = NEXT_ADDRESS.fetch_add(1, Relaxed) % SLOTS;
        let address = BASE
            + slot * 8 * Order::PUD.bytes()
            + (((first & (Order::PUD.pages() - 1)) + shift) << Order::PAGE_SHIFT);
        // SAFETY: The task is one of the tests, without an address space of its own.
        let mapped = unsafe {
            kernel::error::to_result(bindings::rdax_test_attach_mm())?;
            bindings::rdax_test_map(
                file.raw(),
                address,
                pages << Order::PAGE_SHIFT,
                first << Order::PAGE_SHIFT,
                share == Share::Private,
                share == Share::Sync,
            )
        };
        if mapped != address {
            return Err(failed(
                file!(),
                line!(),
                fmt!("mmap: {}, wanted {address:#x}", mapped as isize),
            ));
        }
        Ok(Self {
            address,
            pages,
            first,
            _file: PhantomData,
            _not_send: PhantomData,
        })
    }

    /// As `madvise(MADV_RANDOM)`.
    pub(crate) fn set_random(&self) {
        // SAFETY: Mapped by `new`, in this task.
        unsafe { bindings::rdax_test_set_random(self.address) };
    }

    /// The address of a page of the file.
    pub(crate) fn address(&self, page: usize) -> usize {
        self.address + ((page - self.first) << Order::PAGE_SHIFT)
    }

    /// Reads the begin of a page of the file.
    pub(crate) fn load(&self, page: usize) -> Result<u64> {
        let mut value = 0;
        // SAFETY: User memory, accessed as such.
        kernel::error::to_result(unsafe {
            bindings::rdax_test_load(self.address(page), &mut value)
        })?;
        Ok(value)
    }

    /// Writes to the begin of a page of the file.
    pub(crate) fn store(&self, page: usize, value: u64) -> Result {
        // SAFETY: User memory, accessed as such.
        kernel::error::to_result(unsafe { bindings::rdax_test_store(self.address(page), value) })
    }

    /// Has a page of the file there to be written to, as a thread of the kernel does for somebody else.
    pub(crate) fn ask_for(&self, page: usize) -> Result {
        // SAFETY: Mapped by `new`, in this task, which has the address space therefore.
        kernel::error::to_result(unsafe { bindings::rdax_test_ask_for(self.address(page)) })
    }

    /// The state of the page table for a page of the file.
    pub(crate) fn mapped(&self, page: usize) -> Option<Mapped> {
        mapped_at(self.address(page))
    }

    /// Takes what maps some pages of the file away again, as `madvise(MADV_DONTNEED)`.
    pub(crate) fn forget(&self, page: usize, pages: usize) {
        // SAFETY: Mapped by `new`, in this task.
        unsafe { bindings::rdax_test_drop(self.address(page), pages << Order::PAGE_SHIFT) };
    }

    /// Makes a page of the file, beside which another is mapped by an entry of the lowest level, a
    /// guard page, or has nothing there again.
    pub(crate) fn set_guard(&self, page: usize, guard: bool) {
        // SAFETY: Mapped by `new`, in this task, and nothing is counted for what is there.
        unsafe { bindings::rdax_test_guard(self.address(page), guard) };
    }

    /// Whether the entry of the lowest level for a page is soft-dirty.
    pub(crate) fn is_soft_dirty(&self, page: usize) -> bool {
        // SAFETY: Mapped by `new`, in this task.
        unsafe { bindings::rdax_test_soft_dirty(self.address(page)) }
    }

    /// Has stores told from one another, as after a write to `clear_refs`, or not any more.
    pub(crate) fn track_stores(&self, track: bool) {
        // SAFETY: Mapped by `new`, in this task.
        unsafe { bindings::rdax_test_track_stores(self.address, track) };
    }

    /// Pins a page of the file as direct I/O does.
    pub(crate) fn pin(&self, page: usize, write: bool) -> Option<Pinned> {
        self.try_pin(page, write, false)
    }

    /// Pins for as long as the user likes, which DAX does not allow.
    pub(crate) fn pin_longterm(&self, page: usize) -> Option<Pinned> {
        self.try_pin(page, true, true)
    }

    fn try_pin(&self, page: usize, write: bool, longterm: bool) -> Option<Pinned> {
        // SAFETY: User memory.
        NonNull::new(unsafe { bindings::rdax_test_pin(self.address(page), write, longterm) })
            .map(Pinned)
    }
}

impl Drop for View<'_> {
    fn drop(&mut self) {
        // SAFETY: Mapped by `new`, in this task.
        unsafe { bindings::rdax_test_unmap(self.address, self.pages << Order::PAGE_SHIFT) };
    }
}

/// A page that is pinned.
pub(crate) struct Pinned(NonNull<bindings::page>);

// SAFETY: A pin may be dropped by anybody.
unsafe impl Send for Pinned {}

// SAFETY: It gives nothing to do but to drop it.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// The frame of the page.
    pub(crate) fn pfn(&self) -> usize {
        // SAFETY: Only device memory is mapped by the tests.
        unsafe { DevPage::from_raw(self.0) }.pfn().to_bits()
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: Pinned once.
        unsafe { bindings::rdax_test_unpin(self.0.as_ptr()) };
    }
}
