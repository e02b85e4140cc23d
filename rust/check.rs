// SPDX-License-Identifier: GPL-2.0

//! The state that the check looks at ([`crate::dax::check`]), read through the kernel's own accessors.

use super::{
    bdev::BlockDevice,
    bindings,
    fs::{Inode, Mapping, PageIndex},
    page::{DevPage, PageRun}, //
};
use core::{
    ffi::c_void,
    ptr::NonNull, //
};
use kernel::{
    error::to_result,
    prelude::*, //
};

pub(crate) use bindings::rdax_folio_state as FolioState;

/// Leaves a report in the kernel's log, with where it came from, which ends a test with an error.
#[cold]
pub(crate) fn complain() {
    // SAFETY: It needs nothing.
    unsafe { bindings::rdax_complain() };
}

/// Has a page of device memory fail, as the kernel does when the hardware reports it. Sleeps.
///
/// Errors: `EINVAL` if the frame is not one of device memory; what the core found.
pub(crate) fn fail_memory(pfn: usize) -> Result {
    // SAFETY: The core looks up what the frame is.
    to_result(unsafe { bindings::rdax_fail_memory(pfn) })
}

/// Makes a page of device memory that has failed visible to the kernel again. Sleeps.
///
/// Errors: `EINVAL` if the frame is not one of device memory; what the core found.
pub(crate) fn restore_memory(pfn: usize) -> Result {
    // SAFETY: Device memory is in the direct map by right.
    to_result(unsafe { bindings::rdax_restore_memory(pfn) })
}

/// The state of the folio that a page is part of, as its `struct page` has it.
pub(crate) fn folio_state(page: DevPage<'_>) -> FolioState {
    let mut state = FolioState::default();
    // SAFETY: By the invariant of `DevPage` the frame is one of device memory.
    unsafe { bindings::rdax_folio_state(page.pfn().to_bits(), &mut state) };
    state
}

/// The number of the first page of the run that is not one of its own that nobody uses; and how many
/// folios there are before it that are whole but idle.
pub(crate) fn find_used(run: PageRun<'_>) -> (Option<usize>, usize) {
    let first = run.pfn().to_bits();
    let mut whole = 0;
    // SAFETY: By the invariant of `PageRun` the frames are of device memory.
    let found = unsafe { bindings::rdax_find_used(first, first + run.pages(), &mut whole) };
    let at = found - first;
    ((at < run.pages()).then_some(at), whole)
}

/// Calls `f` for every inode of the filesystem that is mounted on the device. Sleeps.
pub(crate) fn visit_inodes(bdev: &BlockDevice, mut f: impl FnMut(&Inode)) {
    /// # Safety
    ///
    /// The inode is referenced; `data` is a `F` that nobody else uses.
    unsafe extern "C" fn call<F: FnMut(&Inode)>(inode: *mut bindings::inode, data: *mut c_void) {
        // SAFETY: By this function's safety requirements.
        unsafe { (*data.cast::<F>())(Inode::from_raw(NonNull::new_unchecked(inode))) }
    }
    fn of<F: FnMut(&Inode)>(_: &F) -> bindings::rdax_inode_fn {
        Some(call::<F>)
    }
    let function = of(&f);
    // SAFETY: The device is valid, and the function is that of the closure.
    unsafe { bindings::rdax_visit_inodes(bdev.as_ptr(), function, (&raw mut f).cast()) };
}

/// A page-table entry of any size that maps a part of a file.
#[derive(Clone, Copy)]
pub(crate) struct Leaf {
    /// The place in the file.
    pub(crate) index: PageIndex,
    /// The first frame's number.
    pub(crate) pfn: usize,
    /// Log2 of the pages.
    pub(crate) order: usize,
    /// User space can store through it.
    pub(crate) writable: bool,
    /// The mapping is shared.
    pub(crate) shared: bool,
    /// The memory is that of a device.
    pub(crate) device: bool,
}

/// Calls `f` for every page-table entry that maps a part of the file, without memory being
/// allocated meanwhile. Sleeps.
pub(crate) fn visit_leaves(mapping: &Mapping, mut f: impl FnMut(Leaf)) {
    /// # Safety
    ///
    /// The leaf is valid; `data` is a `F` that nobody else uses.
    unsafe extern "C" fn call<F: FnMut(Leaf)>(leaf: *const bindings::rdax_leaf, data: *mut c_void) {
        // SAFETY: By this function's safety requirements.
        let leaf = unsafe { &*leaf };
        let leaf = Leaf {
            index: PageIndex::new(leaf.index),
            pfn: leaf.pfn,
            order: leaf.order as usize,
            writable: leaf.writable,
            shared: leaf.shared,
            device: leaf.device,
        };
        // SAFETY: By this function's safety requirements.
        unsafe { (*data.cast::<F>())(leaf) }
    }
    fn of<F: FnMut(Leaf)>(_: &F) -> bindings::rdax_leaf_fn {
        Some(call::<F>)
    }
    let function = of(&f);
    // SAFETY: The address space is alive, and the function is that of the closure.
    unsafe { bindings::rdax_visit_leaves(mapping.as_ptr(), function, (&raw mut f).cast()) };
}
