// SPDX-License-Identifier: GPL-2.0

//! A device that is or was bound, for as long as its files need it.

use super::{
    Candidate,
    Listed, //
};
use crate::kern::{
    bindings,
    error::eopnotsupp,
    fs::PageIndex,
    once::Once,
    order::Order,
    page::{DevFolio, Frames, PageBlock, PageRun, Pfn},
    percpu_rwsem::PercpuRwSemaphore,
    redirect, //
};
use core::ptr::{self, NonNull};
use kernel::{
    ffi::c_int,
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc, //
    }, //
};

/// A table of functions for the core.
#[repr(transparent)]
struct Table<T>(T);

// SAFETY: The tables are never written.
unsafe impl<T> Sync for Table<T> {}

/// Of a device's memory there is nothing to write back, nor to forget.
static ADDRESS_SPACE_OPERATIONS: Table<bindings::address_space_operations> =
    Table(bindings::address_space_operations {
        dirty_folio: Some(bindings::noop_dirty_folio),
        ..pin_init::zeroed()
    });

/// A device that is or was bound, as its files see it.
///
/// # Invariants
///
/// `inode` is a reference to the inode of the dax device, owned by this value. While `open` is
/// true the device is bound and its page map exists. `memory` is what the device is made of, in pieces that are
/// not empty; it has pages while there is a page map.
#[pin_data(PinnedDrop)]
pub(super) struct Node<D> {
    /// Held by all that rely on `open`.
    #[pin]
    pub(super) gate: PercpuRwSemaphore,
    pub(super) open: Atomic<bool>,
    inode: NonNull<bindings::inode>,
    pub(super) devt: bindings::dev_t,
    pub(super) cdev: Atomic<*mut bindings::cdev>,
    pub(super) pgmap: Atomic<*mut bindings::dev_pagemap>,
    memory: KVec<Frames>,
    /// The state of the address space before the device was bound.
    operations_before: Atomic<*mut bindings::address_space_operations>,
    #[pin]
    pub(super) device: D,
}

// SAFETY: The inode's reference may be dropped by any thread.
unsafe impl<D: Send> Send for Node<D> {}

// SAFETY: Of the inode only its address space is used, which has its own locks.
unsafe impl<D: Sync> Sync for Node<D> {}

impl<D: Listed> Node<D> {
    pub(super) fn new(candidate: &Candidate<'_>) -> Result<Arc<Self>> {
        let ranges = candidate.ranges()?;
        let mut memory = KVec::new();
        for range in ranges.iter().filter(|range| range.pages != 0) {
            let frames = Frames {
                first: range.pfn,
                pages: range.pages,
            };
            memory.push(frames, GFP_KERNEL)?;
        }
        let name = candidate.name()?;
        let align = candidate.align();
        // SAFETY: The device is alive.
        let (inode, devt) = unsafe {
            (
                bindings::rdax_dax_inode(candidate.raw.as_ptr()),
                bindings::rdax_dax_devt(candidate.raw.as_ptr()),
            )
        };
        let inode = DaxInode(NonNull::new(inode).ok_or(ENODEV)?);
        Arc::pin_init(
            try_pin_init!(Self {
                gate <- PercpuRwSemaphore::new(),
                open: Atomic::new(false),
                devt,
                cdev: Atomic::new(ptr::null_mut()),
                pgmap: Atomic::new(ptr::null_mut()),
                memory,
                operations_before: Atomic::new(ptr::null_mut()),
                device <- D::new(name, ranges, align),
                // INVARIANT: The reference is taken over. Last, as nothing after it fails.
                inode: inode.into_raw(),
            }? Error),
            GFP_KERNEL,
        )
    }

    /// The address space that the device's mappings are in.
    pub(super) fn mapping(&self) -> *mut bindings::address_space {
        // SAFETY: By the type invariant the inode is alive.
        unsafe { (*self.inode.as_ptr()).i_mapping }
    }

    /// Has the core find the address space's operations where it looks for those of a folio that
    /// says where it is.
    pub(super) fn take_address_space(&self) {
        // SAFETY: By the type invariant the inode is alive. The tables stay: this one until it is
        // given back, which is before the driver goes. They do not change, so whoever reads the
        // address needs no order.
        unsafe {
            let operations = Atomic::from_ptr((&raw mut (*self.mapping()).a_ops).cast());
            self.operations_before.store(
                operations.xchg(
                    ptr::from_ref(&ADDRESS_SPACE_OPERATIONS.0).cast_mut(),
                    Relaxed,
                ),
                Relaxed,
            );
        }
    }

    /// Undoes [`Node::take_address_space`]. Nobody maps or holds the device's memory any more.
    pub(super) fn give_address_space(&self) {
        // SAFETY: As above.
        unsafe {
            Atomic::from_ptr((&raw mut (*self.mapping()).a_ops).cast())
                .store(self.operations_before.load(Relaxed), Relaxed);
        }
    }

    pub(super) fn list(this: &Arc<Self>) -> Result {
        Ok(D::with_list(|list| list.0.push(this.clone(), GFP_KERNEL))?)
    }

    pub(super) fn unlist(&self) {
        D::with_list(|list| list.0.retain(|node| !ptr::eq::<Self>(&**node, self)));
    }

    pub(super) fn find(devt: bindings::dev_t) -> Option<Arc<Self>> {
        D::with_list(|list| list.0.iter().find(|node| node.devt == devt).cloned())
    }

    /// Lets nobody in any more, and waits for those who are inside.
    pub(super) fn close(&self) {
        self.gate.write(|| self.open.store(false, Relaxed));
    }

    /// The memory of a frame has failed, or somebody says so to see what happens (`made_up`): those who
    /// map it are told, and lose their mappings of it. Memory that has failed is not mapped again. `flags` are
    /// those of the memory failure (`MF_*`). Sleeps.
    ///
    /// Errors: `ENXIO` if it is not of this device; `EOPNOTSUPP`, and nobody was told, if only the core
    /// can; `ENOMEM` if the failure cannot be noted.
    pub(super) fn fail(&self, pfn: Pfn, made_up: bool, flags: c_int) -> Result {
        let index = self.device.index_of(pfn).ok_or(ENXIO)?;
        let noted = if made_up {
            Ok(())
        } else {
            // Faults that did not see the mark are over when this returns.
            self.gate.write(|| self.device.mark_poisoned(pfn))
        };
        if !self.kill_procs(pfn, index, flags) {
            return Err(eopnotsupp());
        }
        self.unmap_page(index);
        noted
    }

    /// Has the core tell those who map a page of the device that it has failed, with its address, and
    /// take the mappings away by which they do. False if the core could not be asked.
    ///
    /// The core has a way of its own for devices, which tells of the folio's first page. Here it is
    /// asked to tell of a page of a file, of which it then wants to know what is there: it finds the
    /// folio, and marks its first page as it always does (a device's tails may be one in memory).
    #[cfg(CONFIG_MEMORY_FAILURE)]
    fn kill_procs(&self, pfn: Pfn, index: PageIndex, flags: c_int) -> bool {
        // The page map is there while the core calls `memory_failure`.
        let home = Home(self);
        let Some(block) = home.block(pfn, Order::PTE) else {
            return true;
        };
        let folio = block.first().folio();
        if folio.owner() == 0 {
            // Nobody has mapped it yet.
            return true;
        }
        // SAFETY: The page map is there while the core calls `memory_failure`, and the inode as long as
        // this node. Of an address space of a device no entries are asked for otherwise.
        unsafe {
            let mapping = NonNull::new_unchecked(self.mapping());
            let head = NonNull::new_unchecked(folio.head().as_ptr());
            redirect::with_answer(mapping, head, || {
                bindings::mf_dax_kill_procs(mapping.as_ptr(), index.get(), 1, flags);
            })
        }
    }

    #[cfg(not(CONFIG_MEMORY_FAILURE))]
    fn kill_procs(&self, _pfn: Pfn, _index: PageIndex, _flags: c_int) -> bool {
        true
    }

    /// Removes all mappings of a page of the device. Sleeps.
    fn unmap_page(&self, index: PageIndex) {
        // SAFETY: By the type invariant the inode is alive.
        unsafe {
            bindings::unmap_mapping_range(
                self.mapping(),
                index.to_byte() as i64,
                Order::PTE.bytes() as i64,
                0,
            )
        };
    }
}

#[pinned_drop]
impl<D> PinnedDrop for Node<D> {
    fn drop(self: Pin<&mut Self>) {
        drop(DaxInode(self.inode));
    }
}

/// A device that is bound, for as long as its folios may be given a place.
///
/// # Invariants
///
/// The node's device has a page map for as long as this lives.
pub(crate) struct Home<'a, D>(pub(super) &'a Node<D>);

impl<D: Listed> Home<'_, D> {
    /// The pages of the device that begin at a frame and can be the memory of an entry of `order`. `None`
    /// if they are not all of one contiguous part of it.
    #[inline]
    pub(crate) fn block(&self, first: Pfn, order: Order) -> Option<PageBlock<'_>> {
        self.runs().find_map(|run| {
            let at = first.to_bits().wrapping_sub(run.pfn().to_bits());
            run.block(at, order)
        })
    }

    /// All pages of the device, in contiguous pieces.
    #[inline]
    pub(crate) fn runs(&self) -> impl Iterator<Item = PageRun<'_>> + Clone {
        // SAFETY: By the invariant of the node the device is made of these, and they are not empty. By that of
        // this type they have pages, as long as it is borrowed.
        let run = |frames: &Frames| unsafe { PageRun::from_frames(frames.first, frames.pages) };
        self.0.memory.iter().map(run)
    }

    /// Has a folio of the device say that it begins at page `index` of it. The core asks this of
    /// whatever is mapped: two processes wait for one futex if they find the same place, and who is
    /// to be told of a memory failure is looked for there. It stays said until the page map goes.
    #[inline]
    pub(crate) fn place(&self, folio: DevFolio<'_>, index: PageIndex) {
        if folio.page_map() != self.0.pgmap.read_once() as usize {
            return;
        }
        // SAFETY: The folio is of the node's page map, which the node stays for, and with it the
        // inode that the address space is in.
        unsafe { folio.set_place(NonNull::new_unchecked(self.0.mapping()), index) };
    }
}

/// A reference to an inode.
///
/// # Invariants
///
/// The value owns one of the references that the inode counts.
struct DaxInode(NonNull<bindings::inode>);

impl DaxInode {
    fn into_raw(self) -> NonNull<bindings::inode> {
        let inode = self.0;
        core::mem::forget(self);
        inode
    }
}

impl Drop for DaxInode {
    fn drop(&mut self) {
        // SAFETY: The reference is owned.
        unsafe { bindings::iput(self.0.as_ptr()) };
    }
}
