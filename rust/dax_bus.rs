// SPDX-License-Identifier: GPL-2.0

//! A driver on the dax bus, and the character devices of what is bound to it.
//!
//! This file keeps the promises about lifetimes: what a file or a fault reaches stays until the
//! last of them is gone, and no fault is at work any more when a device's pages go. What a device
//! does is said in [`devdax`].
//!
//! Lock order: `NODES` and a node's gate are never held together. Faults hold the gate for
//! reading, below `mmap_lock` or the VMA's lock; the page tables' locks and the logic's come below
//! it.
//!
//! C sources: `drivers/dax/bus.h`, `drivers/dax/dax-private.h`

use super::{
    bindings,
    error::eopnotsupp,
    fs::PageIndex,
    once::Once,
    order::Order,
    page::{DevFolio, DevPage, Pfn},
    percpu_rwsem::PercpuRwSemaphore,
    redirect,
    vm::{FaultCode, LockedVma, VmFault}, //
};
use crate::dax::devdax::{
    self,
    Device, //
};
use core::{
    ffi::CStr,
    marker::PhantomData,
    ptr::{self, NonNull},
    slice,
};
use kernel::{
    error::{from_err_ptr, to_result},
    ffi::{c_char, c_int, c_uint, c_ulong, c_void},
    prelude::*,
    str::CString,
    sync::atomic::{Atomic, Relaxed, Release},
    sync::{Arc, ArcBorrow}, //
};

/// A contiguous part of a device's memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Where it is in the device.
    pub(crate) index: PageIndex,
    /// Its first frame.
    pub(crate) pfn: Pfn,
    /// Its length in pages.
    pub(crate) pages: usize,
}

/// A device that is being bound.
pub(crate) struct Candidate<'a> {
    raw: NonNull<bindings::dev_dax>,
    _bound: PhantomData<&'a ()>,
}

impl Candidate<'_> {
    /// The device's name, for messages.
    ///
    /// Errors: `ENOMEM`.
    pub(crate) fn name(&self) -> Result<CString> {
        // SAFETY: The device is alive and its name a string that does not change.
        let name = unsafe { CStr::from_char_ptr(bindings::rdax_dax_name(self.raw.as_ptr())) };
        Ok(CString::try_from(name)?)
    }

    /// The alignment in bytes that the device was made with.
    pub(crate) fn align(&self) -> usize {
        // SAFETY: The device is alive.
        unsafe { bindings::rdax_dax_align(self.raw.as_ptr()) }
    }

    /// The device's memory. It does not change while the device is bound.
    ///
    /// Errors: `ENOMEM`.
    pub(crate) fn extents(&self) -> Result<KVec<Extent>> {
        // SAFETY: The device is alive, and a device with a driver keeps its ranges.
        let n = unsafe { bindings::rdax_dax_nr_ranges(self.raw.as_ptr()) };
        let mut extents = KVec::new();
        for i in 0..n {
            // SAFETY: As above, and `i` is less than the number of ranges.
            let range = unsafe { bindings::rdax_dax_range(self.raw.as_ptr(), i) };
            let extent = Extent {
                index: PageIndex::new(range.pgoff),
                pfn: Pfn::from_bits(range.pfn),
                pages: range.pages,
            };
            extents.push(extent, GFP_KERNEL)?;
        }
        Ok(extents)
    }
}

/// A device that is or was bound, as its files see it.
///
/// # Invariants
///
/// `inode` is a reference to the inode of the dax device, owned by this value. While `open` is
/// true the device is bound and its page map exists.
#[pin_data(PinnedDrop)]
struct Node {
    /// Held by all that rely on `open`.
    #[pin]
    gate: PercpuRwSemaphore,
    open: Atomic<bool>,
    inode: NonNull<bindings::inode>,
    devt: bindings::dev_t,
    cdev: Atomic<*mut bindings::cdev>,
    pgmap: Atomic<*mut bindings::dev_pagemap>,
    /// What the address space had before the device was bound.
    operations_before: Atomic<*mut bindings::address_space_operations>,
    #[pin]
    device: Device,
}

// SAFETY: The inode's reference may be dropped by any thread.
unsafe impl Send for Node {}

// SAFETY: Of the inode only its address space is used, which has its own locks.
unsafe impl Sync for Node {}

kernel::sync::global_lock! {
    // SAFETY: Made ready when the module is loaded, before the driver is registered.
    unsafe(uninit) static NODES: Mutex<KVec<Arc<Node>>> = KVec::new();
}

/// Makes the list of devices ready.
///
/// # Safety
///
/// To be called once, before the driver is registered.
pub(super) unsafe fn init() {
    // SAFETY: By this function's safety requirements.
    unsafe { NODES.init() };
}

impl Node {
    fn new(candidate: &Candidate<'_>) -> Result<Arc<Self>> {
        let extents = candidate.extents()?;
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
                operations_before: Atomic::new(ptr::null_mut()),
                device <- Device::new(name, extents, align),
                // INVARIANT: The reference is taken over. Last, as nothing after it fails.
                inode: inode.into_raw(),
            }? Error),
            GFP_KERNEL,
        )
    }

    /// The address space that the device's mappings are in.
    fn mapping(&self) -> *mut bindings::address_space {
        // SAFETY: By the type invariant the inode is alive.
        unsafe { (*self.inode.as_ptr()).i_mapping }
    }

    /// Has the core find the address space's operations where it looks for those of a folio that
    /// says where it is.
    fn take_address_space(&self) {
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
    fn give_address_space(&self) {
        // SAFETY: As above.
        unsafe {
            Atomic::from_ptr((&raw mut (*self.mapping()).a_ops).cast())
                .store(self.operations_before.load(Relaxed), Relaxed);
        }
    }

    fn list(this: &Arc<Self>) -> Result {
        Ok(NODES.lock().push(this.clone(), GFP_KERNEL)?)
    }

    fn unlist(&self) {
        NODES.lock().retain(|node| !ptr::eq::<Self>(&**node, self));
    }

    fn find(devt: bindings::dev_t) -> Option<Arc<Self>> {
        NODES.lock().iter().find(|node| node.devt == devt).cloned()
    }

    /// Lets nobody in any more, and waits for those who are inside.
    fn close(&self) {
        self.gate.write(|| self.open.store(false, Relaxed));
    }

    /// The memory of a frame has failed, or somebody says so to see what happens (`made_up`): those who
    /// map it are told, and lose their mappings of it. What has failed is not mapped again. `flags` are
    /// those of the memory failure (`MF_*`). Sleeps.
    ///
    /// Errors: `ENXIO` if it is not of this device; `EOPNOTSUPP`, and nobody was told, if only the core
    /// can; `ENOMEM` if the failure cannot be noted.
    fn fail(&self, pfn: Pfn, made_up: bool, flags: c_int) -> Result {
        let index = self.device.index_of(pfn).ok_or(ENXIO)?;
        let noted = if made_up {
            Ok(())
        } else {
            // Faults that did not see the mark are over when this returns.
            self.gate.write(|| self.device.mark_poisoned(pfn)).map(drop)
        };
        if !self.tell(pfn, index, flags) {
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
    fn tell(&self, pfn: Pfn, index: PageIndex, flags: c_int) -> bool {
        let folio = DevPage::of(pfn).folio();
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
    fn tell(&self, _pfn: Pfn, _index: PageIndex, _flags: c_int) -> bool {
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
impl PinnedDrop for Node {
    fn drop(self: Pin<&mut Self>) {
        drop(DaxInode(self.inode));
    }
}

/// A device that is bound, for as long as its folios may be given a place.
pub(crate) struct Home<'a>(&'a Node);

impl Home<'_> {
    /// Has a folio of the device say that it begins at page `index` of it. The core asks this of
    /// whatever is mapped: two processes wait for one futex if they find the same place, and who is
    /// to be told of a memory failure is looked for there. It stays said until the page map goes.
    #[inline]
    pub(crate) fn place(&self, folio: DevFolio, index: PageIndex) {
        if folio.page_map() != self.0.pgmap.read_once() as usize {
            return;
        }
        // SAFETY: The folio is of the node's page map, which the node stays for, and with it the
        // inode that the address space is in.
        unsafe { folio.set_place(NonNull::new_unchecked(self.0.mapping()), index) };
    }
}

/// A reference to an inode.
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

/// The driver's registration on the bus.
pub(crate) struct Registration(());

static DRIVER: bindings::rdax_dax_driver = bindings::rdax_dax_driver {
    probe: Some(probe),
    remove: Some(remove),
    stats: Some(stats),
};

impl Registration {
    /// Registers the driver. There is one. It takes no device by itself: the user names those it is
    /// for. Sleeps.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: The calls stay as long as the module.
        to_result(unsafe { bindings::rdax_dax_register(&DRIVER) })?;
        Ok(Self(()))
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // SAFETY: It was registered.
        unsafe { bindings::rdax_dax_unregister() };
        // Without devices, what was made for the list is left. Statics are not dropped.
        drop(core::mem::take(&mut *NODES.lock()));
    }
}

fn errno(result: Result) -> c_int {
    match result {
        Ok(()) => 0,
        Err(error) => error.to_errno(),
    }
}

/// # Safety
///
/// Called by the bus, with its device.
unsafe extern "C" fn probe(dev: *mut bindings::dev_dax) -> c_int {
    let Some(raw) = NonNull::new(dev) else {
        return ENODEV.to_errno();
    };
    let candidate = Candidate {
        raw,
        _bound: PhantomData,
    };
    errno(bind(&candidate))
}

fn bind(candidate: &Candidate<'_>) -> Result {
    let node = Node::new(candidate)?;
    if let Err(error) = redirect::prepare_answers() {
        pr_warn!(
            "of memory failures the kernel will tell by its own means ({})\n",
            error.to_errno()
        );
    }
    let raw = candidate.raw.as_ptr();

    // The page map points to the node, so that one keeps the other.
    // SAFETY: The device is alive, and `drop_node` takes what `into_raw` gave.
    to_result(unsafe {
        bindings::rdax_dax_keep(
            raw,
            Arc::into_raw(node.clone()).cast_mut().cast(),
            Some(drop_node),
        )
    })?;
    // SAFETY: The device is alive; the node stays until the page map is gone. The device's extents
    // are multiples of folios of this order.
    let pgmap = from_err_ptr(unsafe {
        bindings::rdax_dax_map(
            raw,
            node.device.order().bits() as c_uint,
            &PAGE_MAP_OPERATIONS,
            Arc::as_ptr(&node).cast_mut().cast(),
        )
    })?;

    node.pgmap.store(pgmap, Relaxed);
    node.take_address_space();

    // Pairs with `mmap`: whoever finds it open sees the page map.
    //
    // INVARIANT: The device is bound and has a page map.
    node.open.store(true, Release);
    if let Err(error) = Node::list(&node) {
        node.open.store(false, Relaxed);
        node.give_address_space();
        return Err(error);
    }
    // SAFETY: The device is alive. The data are passed to `remove` and `stats` only, while the
    // device is bound.
    let cdev = from_err_ptr(unsafe {
        bindings::rdax_dax_publish(
            raw,
            pgmap,
            &FILE_OPERATIONS.0,
            Arc::as_ptr(&node).cast_mut().cast(),
        )
    });
    match cdev {
        Ok(cdev) => {
            node.cdev.store(cdev, Relaxed);
            node.device.announce();
            Ok(())
        }
        Err(error) => {
            node.unlist();
            node.close();
            node.give_address_space();
            Err(error)
        }
    }
}

/// # Safety
///
/// Called by the driver core with what was given to `rdax_dax_keep`, once.
unsafe extern "C" fn drop_node(data: *mut c_void) {
    // SAFETY: By this function's safety requirements this is what `into_raw` gave.
    drop(unsafe { Arc::<Node>::from_raw(data.cast_const().cast()) });
}

/// # Safety
///
/// Called by the bus, with its device and what was given to `rdax_dax_publish`.
unsafe extern "C" fn remove(dev: *mut bindings::dev_dax, data: *mut c_void) {
    // SAFETY: The node is kept until the page map is gone, which comes after this.
    let node = unsafe { &*data.cast::<Node>() };
    node.unlist();
    node.close();
    // SAFETY: The device is bound, and this is its character device.
    unsafe { bindings::rdax_dax_retire(dev, node.cdev.load(Relaxed)) };
    node.device.wait_until_idle();
    node.give_address_space();
}

/// # Safety
///
/// Called for a device that is bound, with what was given to `rdax_dax_publish`. `buffer` has
/// `size` bytes.
unsafe extern "C" fn stats(data: *mut c_void, buffer: *mut c_char, size: usize) -> isize {
    // SAFETY: By this function's safety requirements.
    let (node, buffer) = unsafe {
        (
            &*data.cast::<Node>(),
            slice::from_raw_parts_mut(buffer.cast::<u8>(), size),
        )
    };
    match node.device.print_stats(buffer) {
        Ok(bytes) => bytes as isize,
        Err(error) => error.to_errno() as isize,
    }
}

static PAGE_MAP_OPERATIONS: bindings::dev_pagemap_ops = bindings::dev_pagemap_ops {
    memory_failure: Some(memory_failure),
    folio_free: None,
    migrate_to_ram: None,
    folio_split: None,
};

/// # Safety
///
/// Called by the core for a page map that was made in `bind`, with a reference to it.
unsafe extern "C" fn memory_failure(
    pgmap: *mut bindings::dev_pagemap,
    pfn: c_ulong,
    nr_pages: c_ulong,
    flags: c_int,
) -> c_int {
    // SAFETY: The page map's owner is the node, which is kept until the page map is gone.
    let node = unsafe { &*(*pgmap).owner.cast::<Node>() };
    let made_up = flags & bindings::mf_flags_MF_SW_SIMULATED as c_int != 0;
    let mut result = Ok(());
    for offset in 0..nr_pages {
        let pfn = Pfn::from_bits(pfn.saturating_add(offset));
        if let Err(error) = node.fail(pfn, made_up, flags) {
            result = Err(error);
        }
    }
    errno(result)
}

/// A table of functions for the core.
#[repr(transparent)]
struct Table<T>(T);

// SAFETY: The tables below are never written.
unsafe impl<T> Sync for Table<T> {}

/// Of a device's memory there is nothing to write back, nor to forget.
static ADDRESS_SPACE_OPERATIONS: Table<bindings::address_space_operations> =
    Table(bindings::address_space_operations {
        dirty_folio: Some(bindings::noop_dirty_folio),
        ..pin_init::zeroed()
    });

static FILE_OPERATIONS: Table<bindings::file_operations> = Table(bindings::file_operations {
    owner: super::compat::this_module().as_ptr(),
    fop_flags: bindings::FOP_MMAP_SYNC,
    open: Some(open),
    release: Some(release),
    mmap_prepare: Some(mmap_prepare),
    get_unmapped_area: Some(get_unmapped_area),
    llseek: Some(bindings::noop_llseek),
    ..pin_init::zeroed()
});

static VM_OPERATIONS: Table<bindings::vm_operations_struct> =
    Table(bindings::vm_operations_struct {
        open: Some(open_vma),
        may_split: Some(may_split_vma),
        fault: Some(fault),
        huge_fault: Some(huge_fault),
        pagesize: Some(pagesize),
        ..pin_init::zeroed()
    });

/// # Safety
///
/// Called by the core for a character device of this driver.
unsafe extern "C" fn open(inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
    // By number and not by character device: as long as a file is open that was opened before the
    // device was bound anew, its inode leads here with the old one.
    // SAFETY: The inode is alive.
    let Some(node) = Node::find(unsafe { bindings::rdax_inode_rdev(inode) }) else {
        return ENXIO.to_errno();
    };
    // SAFETY: The file is being opened, and nobody else sees it. The node has a reference to the
    // inode of the address space, and the file one to the node.
    unsafe {
        (*file).f_mapping = node.mapping();
        (*file).private_data = Arc::into_raw(node).cast_mut().cast();
    }
    0
}

/// # Safety
///
/// Called by the core for a file that `open` was called for, when nobody uses it any more.
unsafe extern "C" fn release(_inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
    // SAFETY: `open` put it there, and this is the end of the file. The address space is not used
    // after this.
    drop(unsafe { Arc::<Node>::from_raw((*file).private_data.cast_const().cast()) });
    0
}

/// The node of an open file.
///
/// # Safety
///
/// `open` was called for the file, which stays open for `'a`.
#[inline]
unsafe fn node_of<'a>(file: *mut bindings::file) -> ArcBorrow<'a, Node> {
    // SAFETY: `open` put it there, and it stays as long as the file is open.
    unsafe { ArcBorrow::from_raw((*file).private_data.cast_const().cast()) }
}

/// # Safety
///
/// Called by the core for an open file.
unsafe extern "C" fn mmap_prepare(desc: *mut bindings::vm_area_desc) -> c_int {
    // SAFETY: By this function's safety requirements.
    let (node, shared, index) = unsafe {
        (
            node_of((*desc).file),
            bindings::rdax_desc_is_shared(desc),
            PageIndex::new((*desc).pgoff),
        )
    };
    // Pairs with `probe`.
    if !node.open.load_acquire() {
        return ENXIO.to_errno();
    }
    if let Err(error) = node.device.check_mapping(shared, index) {
        return error.to_errno();
    }
    // SAFETY: The description is the core's and being filled in.
    unsafe {
        (*desc).vm_ops = &VM_OPERATIONS.0;
        if node.device.order() == Order::PUD {
            // Moved into another mapping there would be no call of `open_vma`.
            bindings::rdax_desc_keep_apart(desc);
        }
    }
    0
}

/// # Safety
///
/// Called by the core for an open file, in the task that maps it.
unsafe extern "C" fn get_unmapped_area(
    file: *mut bindings::file,
    address: c_ulong,
    len: c_ulong,
    pgoff: c_ulong,
    flags: c_ulong,
) -> c_ulong {
    // SAFETY: By this function's safety requirements.
    let node = unsafe { node_of(file) };
    // SAFETY: As the core calls it itself.
    let search = |address: usize, len: usize| unsafe {
        bindings::mm_get_unmapped_area(file, address, len, pgoff, flags)
    };
    // What cannot be had is an errno, which is no multiple of a page.
    node.device
        .choose_address(address, len, PageIndex::new(pgoff), |address, len| {
            let found = search(address, len);
            if found & (Order::PTE.bytes() - 1) == 0 {
                Ok(found)
            } else {
                Err(found)
            }
        }) as c_ulong
}

/// The core's move of a mapping takes an entry of the third level for a broken one and forgets it,
/// and with it the folio's reference. Such entries have to be gone before; faults are kept out by
/// then.
///
/// # Safety
///
/// Called by the core for a VMA that is made of one that `mmap_prepare` was called for, by moving
/// it, by splitting it or by `fork`.
unsafe extern "C" fn open_vma(vma: *mut bindings::vm_area_struct) {
    // SAFETY: The VMA keeps its file open, and is not linked yet.
    unsafe {
        if node_of((*vma).vm_file).device.order() == Order::PUD {
            bindings::rdax_vma_unmap_moved(vma);
        }
    }
}

/// The core takes what an entry of the third level maps for a table when it splits a VMA there.
///
/// # Safety
///
/// Called by the core for a VMA that `mmap_prepare` was called for, before it is split at an
/// address, with the address space locked for writing.
unsafe extern "C" fn may_split_vma(vma: *mut bindings::vm_area_struct, address: c_ulong) -> c_int {
    // SAFETY: By this function's safety requirements.
    let vma = unsafe { LockedVma::from_raw(NonNull::new_unchecked(vma)) };
    vma.without_faults();
    vma.unmap_straddling(address as usize);
    0
}

/// # Safety
///
/// Called by the core for a VMA that `mmap_prepare` was called for.
unsafe extern "C" fn pagesize(vma: *mut bindings::vm_area_struct) -> c_ulong {
    // SAFETY: The VMA keeps its file open.
    unsafe { node_of((*vma).vm_file) }.device.order().bytes() as c_ulong
}

/// # Safety
///
/// Called by the core for a fault in a VMA that `mmap_prepare` was called for.
unsafe extern "C" fn fault(vmf: *mut bindings::vm_fault) -> bindings::vm_fault_t {
    // SAFETY: As of this function.
    unsafe { huge_fault(vmf, 0) }
}

/// # Safety
///
/// Called by the core for a fault in a VMA that `mmap_prepare` was called for.
unsafe extern "C" fn huge_fault(
    vmf: *mut bindings::vm_fault,
    order: c_uint,
) -> bindings::vm_fault_t {
    // SAFETY: The fault's VMA keeps its file open.
    let (node, vmf) = unsafe {
        (
            node_of((*(*vmf).__bindgen_anon_1.vma).vm_file),
            VmFault::from_raw(NonNull::new_unchecked(vmf)),
        )
    };
    let Some(order) = node.device.order_of_level(order) else {
        return FaultCode::FALLBACK.0;
    };
    let _inside = node.gate.read();
    if !node.open.read_once() {
        return FaultCode::SIGBUS.0;
    }
    devdax::fault(&node.device, &Home(&node), vmf, order).0
}
