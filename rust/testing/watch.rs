// SPDX-License-Identifier: GPL-2.0

//! Watching what the module does while it does it.
//!
//! C header: [`include/linux/kprobes.h`](srctree/include/linux/kprobes.h)

use super::{mapped_at, Checked, File};
use crate::kern::{
    bindings,
    order::Order,
    page::{DevFolio, Pfn}, //
    wait::WaitCallback,
};
use core::{
    ffi::CStr,
    ptr::{self, NonNull},
};
use kernel::{
    error::to_result,
    prelude::*,
    sync::atomic::{Atomic, Relaxed},
};

/// A call of `arch_wb_cache_pmem`, and how the page was when it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flush {
    /// The address in the kernel.
    pub(crate) address: usize,
    /// In bytes.
    pub(crate) size: usize,
    /// Whether the entry that is watched was marked as dirty.
    pub(crate) dirty: bool,
    /// Whether the address that is watched could be written to.
    pub(crate) writable: bool,
    /// Whether the entry was there.
    pub(crate) present: bool,
    /// The first byte there.
    pub(crate) byte: u8,
}

const MAX: usize = 4096;
const FIELDS: usize = 3;

static RECORDS: [[Atomic<usize>; FIELDS]; MAX] =
    [const { [const { Atomic::new(0) }; FIELDS] }; MAX];
static COUNT: Atomic<usize> = Atomic::new(0);
static TREE: Atomic<*mut bindings::xarray> = Atomic::new(ptr::null_mut());
static INDEX: Atomic<usize> = Atomic::new(0);
static ADDRESS: Atomic<usize> = Atomic::new(0);

/// Takes no lock, and allocates nothing.
///
/// # Safety
///
/// Called by the probe, with preemption off, while [`Flushes`] lives.
unsafe extern "C" fn on_flush(address: usize, size: usize) {
    let tree = TREE.load(Relaxed);
    let index = INDEX.load(Relaxed);
    let (mut dirty, mut present) = (false, false);
    if !tree.is_null() {
        // SAFETY: The tree is alive while it is watched; it is read under RCU.
        unsafe {
            dirty = bindings::xa_get_mark(tree, index, 0);
            present = !bindings::xa_load(tree, index).is_null();
        }
    }
    let user = ADDRESS.load(Relaxed);
    let writable = user != 0 && mapped_at(user).is_some_and(|mapped| mapped.writable);
    // SAFETY: Memory that can be written back can be read; nobody has it as a Rust object.
    let byte = unsafe { ptr::with_exposed_provenance::<u8>(address).read_volatile() };
    let at = COUNT.fetch_add(1, Relaxed);
    if let Some([a, b, c]) = RECORDS.get(at) {
        a.store(address, Relaxed);
        b.store(size, Relaxed);
        c.store(
            usize::from(dirty)
                | usize::from(writable) << 1
                | usize::from(present) << 2
                | usize::from(byte) << 8,
            Relaxed,
        );
    }
}

/// Watches write-back of cache lines while it lives.
pub(crate) struct Flushes(());

impl Flushes {
    /// Watches; also the entry at `index` of a file and what the page table of this task has for
    /// `address`, 0 for none.
    pub(crate) fn watch(file: &File<'_>, index: usize, address: usize) -> Checked<Self> {
        let mapping = file.mapping().as_ptr();
        // SAFETY: The address space is alive.
        TREE.store(unsafe { &raw mut (*mapping).i_pages }, Relaxed);
        INDEX.store(index, Relaxed);
        ADDRESS.store(address, Relaxed);
        COUNT.store(0, Relaxed);
        // SAFETY: The function stays as long as the module.
        to_result(unsafe { bindings::rdax_test_watch_flushes(Some(on_flush)) })?;
        Ok(Self(()))
    }

    /// How many calls there were.
    pub(crate) fn count(&self) -> usize {
        COUNT.load(Relaxed)
    }

    /// Forgets them.
    pub(crate) fn clear(&self) {
        COUNT.store(0, Relaxed);
    }

    /// A call.
    pub(crate) fn get(&self, number: usize) -> Option<Flush> {
        if number >= self.count() {
            return None;
        }
        let [a, b, c] = RECORDS.get(number)?;
        let flags = c.load(Relaxed);
        Some(Flush {
            address: a.load(Relaxed),
            size: b.load(Relaxed),
            dirty: flags & 1 != 0,
            writable: flags & 2 != 0,
            present: flags & 4 != 0,
            byte: (flags >> 8) as u8,
        })
    }

    /// The calls.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Flush> + '_ {
        (0..self.count().min(MAX)).filter_map(|number| self.get(number))
    }

    /// Whether the calls, one after the other, were for these pages: the frame of the first, and how
    /// many.
    pub(crate) fn are(&self, wanted: &[(Pfn, usize)]) -> bool {
        let wanted = wanted.iter().map(|(first, pages)| {
            let begin = first.address();
            (begin, *pages << Order::PAGE_SHIFT)
        });
        self.iter()
            .map(|flush| (flush.address, flush.size))
            .eq(wanted)
    }

    /// Whether all the memory of `order` from a frame on was written back.
    pub(crate) fn covers(&self, first: Pfn, order: Order) -> bool {
        let begin = first.address();
        let mut next = begin;
        // In any order, each page by one call at least.
        while next < begin + order.bytes() {
            match self
                .iter()
                .find(|flush| flush.address <= next && next < flush.address + flush.size)
            {
                Some(flush) => next = flush.address + flush.size,
                None => return false,
            }
        }
        true
    }
}

impl Drop for Flushes {
    fn drop(&mut self) {
        // SAFETY: Watched since this value was made; nobody is in the function when it returns.
        unsafe { bindings::rdax_test_unwatch_flushes() };
        TREE.store(ptr::null_mut(), Relaxed);
    }
}

/// Counts the calls of a function of the kernel while it lives; one at a time.
pub(crate) struct Calls(());

impl Calls {
    /// Counts from now on.
    pub(crate) fn watch(function: &'static CStr) -> Checked<Self> {
        // SAFETY: The name lives for ever.
        to_result(unsafe { bindings::rdax_test_watch_calls(function.as_char_ptr()) })?;
        Ok(Self(()))
    }

    /// How many there were.
    pub(crate) fn count(&self) -> usize {
        // SAFETY: Reads a number.
        unsafe { bindings::rdax_test_calls() as usize }
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        // SAFETY: Watched since this value was made.
        unsafe { bindings::rdax_test_unwatch_calls() };
    }
}

/// Watches how long a file's tree is locked, in entries.
pub(crate) struct Holds(());

impl Holds {
    /// Watches the tree of a file all of whose entries are of one page.
    pub(crate) fn watch(file: &File<'_>) -> Checked<Self> {
        // SAFETY: The file borrows nothing: it is the test that keeps it while it watches.
        to_result(unsafe { bindings::rdax_test_watch_tree(file.mapping().as_ptr()) })?;
        Ok(Self(()))
    }

    /// How often the tree was locked.
    pub(crate) fn count(&self) -> usize {
        // SAFETY: Reads a number.
        unsafe { bindings::rdax_test_tree_holds() as usize }
    }

    /// The most entries that were removed under one lock.
    pub(crate) fn most(&self) -> usize {
        // SAFETY: Reads a number.
        unsafe { bindings::rdax_test_tree_most() as usize }
    }
}

impl Drop for Holds {
    fn drop(&mut self) {
        // SAFETY: Watched since this value was made.
        unsafe { bindings::rdax_test_unwatch_tree() };
    }
}

/// Watches how often the present task gives way to others.
pub(crate) struct Yields(());

impl Yields {
    /// Watches.
    pub(crate) fn watch() -> Checked<Self> {
        // SAFETY: One at a time, as tests run one after the other.
        to_result(unsafe { bindings::rdax_test_watch_yields() })?;
        Ok(Self(()))
    }

    /// How often it did.
    pub(crate) fn count(&self) -> usize {
        // SAFETY: Reads a number that the present task counts.
        unsafe { bindings::rdax_test_yields() as usize }
    }
}

impl Drop for Yields {
    fn drop(&mut self) {
        // SAFETY: Watched since this value was made.
        unsafe { bindings::rdax_test_unwatch_yields() };
    }
}

/// A folio of ordinary memory as the core makes it, to compare with.
pub(crate) struct CoreFolio(NonNull<bindings::folio>);

impl CoreFolio {
    /// A fresh one.
    pub(crate) fn new(order: Order) -> Checked<Self> {
        // SAFETY: Allocates, and may sleep.
        let folio = unsafe { bindings::rdax_test_alloc_folio(order.bits() as u32) };
        Ok(Self(NonNull::new(folio).ok_or(ENOMEM)?))
    }

    /// The folio, whose pages may be looked at and no more.
    pub(crate) fn folio(&self) -> DevFolio<'_> {
        // SAFETY: The functions that look at pages work for those of any memory.
        unsafe { DevFolio::from_raw(self.0) }
    }
}

impl Drop for CoreFolio {
    fn drop(&mut self) {
        // SAFETY: The reference is the one that the allocation gave.
        unsafe { bindings::rdax_test_put_folio(self.0.as_ptr()) };
    }
}

static CALLBACKS: Atomic<usize> = Atomic::new(0);

/// The function that a filesystem gives to wait with: sleeps, and counts.
pub(crate) fn wait_callback() -> WaitCallback {
    // SAFETY: It has no locks to drop.
    unsafe { WaitCallback::from_raw(sleep_and_count) }
}

/// # Safety
///
/// Called to wait for a page.
unsafe extern "C" fn sleep_and_count(_inode: *mut bindings::inode) {
    CALLBACKS.fetch_add(1, Relaxed);
    // SAFETY: The caller has set the task's state.
    unsafe { bindings::schedule() };
}

/// How often that was called.
pub(crate) fn callbacks() -> usize {
    CALLBACKS.load(Relaxed)
}
