// SPDX-License-Identifier: GPL-2.0

//! The functions that serve in place of the kernel's: the C side of the DAX layer.
//!
//! Each function here has the signature of the kernel's function whose place it takes. It turns
//! pointers into references, numbers into types, calls the layer, and turns its answer back.
//!
//! C header: [`include/linux/dax.h`](srctree/include/linux/dax.h)

use super::{
    bdev::{BlockDevice, BlockDeviceName},
    bindings,
    dax::{DaxDevice, DaxPlace},
    dax_bus,
    error::eopnotsupp,
    fs::{ActiveSuperBlock, Inode, Mapping, PageIndex, PageRange},
    iomap::IomapOps,
    iov::{IovIter, Kiocb},
    order::Order,
    page::{DevFolio, KeptOwner, Pfn},
    redirect::{
        begin_in_flight,
        call_original,
        end_in_flight,
        target,
        InFlight,
        Key,
        Target, //
    },
    vm::{FaultCode, LockedVma, VmFault},
    wait::WaitCallback,
    xa::LeftLocked, //
};
use crate::dax::{
    adopt,
    devdax,
    fault,
    io,
    layout::{self, Patience, Unmount},
    poison::{self, Cookie},
    writeback, //
};
use core::ptr::{self, NonNull};
use kernel::{
    ffi::{c_int, c_uint, c_ulong},
    prelude::*, //
};

/// The registration on the dax bus.
pub(crate) type DaxDriver = dax_bus::Registration<devdax::DevDax>;

kernel::sync::global_lock! {
    // SAFETY: Made ready when the module is loaded, before the driver is registered.
    unsafe(uninit) static DAX_DEVICES: Mutex<dax_bus::List<devdax::DevDax>> = dax_bus::List::EMPTY;
}

impl dax_bus::Listed for devdax::DevDax {
    fn with_list<R>(f: impl FnOnce(&mut dax_bus::List<Self>) -> R) -> R {
        f(&mut DAX_DEVICES.lock())
    }
}

/// Makes the list of devices ready.
///
/// # Safety
///
/// To be called once, before the driver is registered.
pub(super) unsafe fn init() {
    // SAFETY: By this function's safety requirements.
    unsafe { DAX_DEVICES.init() };
}

/// A result as a function of the kernel returns it: 0 or an errno.
fn errno(result: Result) -> c_int {
    match result {
        Ok(()) => 0,
        Err(error) => error.to_errno(),
    }
}

/// # Safety
///
/// As of the kernel's function; the file is on an adopted device.
pub(super) unsafe extern "C" fn dax_iomap_fault(
    vmf: *mut bindings::vm_fault,
    order: c_uint,
    pfnp: *mut c_ulong,
    errp: *mut c_int,
    ops: *const bindings::iomap_ops,
) -> bindings::vm_fault_t {
    // SAFETY: By this function's safety requirements.
    let (fault, ops) = unsafe {
        (
            VmFault::from_raw(NonNull::new_unchecked(vmf)),
            IomapOps::from_raw(NonNull::new_unchecked(ops.cast_mut())),
        )
    };
    let outcome = fault::iomap_fault(fault, order, ops);
    if let (Some(pfn), false) = (outcome.pfn, pfnp.is_null()) {
        // SAFETY: By this function's safety requirements.
        unsafe { pfnp.write(pfn.to_bits() as c_ulong) };
    }
    if let (Some(error), false) = (outcome.error, errp.is_null()) {
        // SAFETY: By this function's safety requirements.
        unsafe { errp.write(error.to_errno()) };
    }
    if outcome.code == FaultCode::LATER {
        // SAFETY: By this function's safety requirements; nobody uses the fault any more.
        return unsafe {
            bindings::rdax_fault_later(vmf, Some(begin_in_flight), Some(end_in_flight))
        };
    }
    outcome.code.0
}

/// # Safety
///
/// As of the kernel's function; the file is on an adopted device.
pub(super) unsafe extern "C" fn dax_finish_sync_fault(
    vmf: *mut bindings::vm_fault,
    order: c_uint,
    pfn: c_ulong,
) -> bindings::vm_fault_t {
    // SAFETY: By this function's safety requirements.
    let vmf = unsafe { VmFault::from_raw(NonNull::new_unchecked(vmf)) };
    // The number is the one that `dax_iomap_fault` gave; it is only compared.
    fault::finish_sync_fault(vmf, order, Pfn::from_bits(pfn)).0
}

/// # Safety
///
/// As of the kernel's function; the file is on an adopted device.
unsafe extern "C" fn dax_layout_busy_page_range(
    mapping: *mut bindings::address_space,
    start: bindings::loff_t,
    end: bindings::loff_t,
) -> *mut bindings::page {
    // SAFETY: By this function's safety requirements.
    let mapping = unsafe { Mapping::from_raw(NonNull::new_unchecked(mapping)) };
    match layout::busy_folio(mapping, PageRange::of_bytes(start, end)) {
        Some(folio) => folio.head().as_ptr(),
        None => ptr::null_mut(),
    }
}

/// # Safety
///
/// As of the kernel's function; the file is on an adopted device.
unsafe extern "C" fn dax_layout_busy_page(
    mapping: *mut bindings::address_space,
) -> *mut bindings::page {
    // SAFETY: As of this function.
    unsafe { dax_layout_busy_page_range(mapping, 0, bindings::loff_t::MAX) }
}

/// # Safety
///
/// As of the kernel's function; the file is on an adopted device.
unsafe extern "C" fn dax_break_layout(
    inode: *mut bindings::inode,
    start: bindings::loff_t,
    end: bindings::loff_t,
    callback: Option<unsafe extern "C" fn(*mut bindings::inode)>,
) -> c_int {
    // SAFETY: By this function's safety requirements.
    let inode = unsafe { Inode::from_raw(NonNull::new_unchecked(inode)) };
    let patience = match callback {
        // SAFETY: By this function's safety requirements the filesystem's callback is as the kernel wants
        // it, and called in this task only.
        Some(callback) => Patience::Callback(unsafe { WaitCallback::from_raw(callback) }),
        None => Patience::None,
    };
    errno(layout::break_layout(
        inode,
        PageRange::of_bytes(start, end),
        patience,
    ))
}

/// # Safety
///
/// As of the kernel's function; the file is on an adopted device.
pub(super) unsafe extern "C" fn dax_break_layout_final(inode: *mut bindings::inode) {
    // SAFETY: By this function's safety requirements.
    unsafe {
        bindings::rdax_unpark(inode);
        layout::break_layout_final(Inode::from_raw(NonNull::new_unchecked(inode)));
    }
}

/// The last user of a file that has entries is gone. Its eviction waits until nobody holds its pages,
/// whoever it is that evicts it: he may be the one who is about to let go of them, when he comes to
/// it, or he has nothing to do with it. So the file is left alone until its pages are idle.
///
/// # Safety
///
/// As of the kernel's function; the file is on an adopted device, whose filesystem is in use.
unsafe extern "C" fn evict(inode: *mut bindings::inode) {
    /// # Safety
    ///
    /// The caller has a reference to the inode, which is on an adopted device.
    unsafe extern "C" fn is_held(inode: *mut bindings::inode) -> bool {
        // SAFETY: By this function's safety requirements.
        layout::is_held(unsafe { Inode::from_raw(NonNull::new_unchecked(inode)) })
    }
    // SAFETY: By this function's safety requirements nobody uses the inode, so that the reference it
    // gets is the only one; it is parked or put. `is_held` is called with a reference, as it wants.
    unsafe {
        bindings::rdax_revive(inode);
        if is_held(inode) && bindings::rdax_park(inode, Some(is_held)) {
            return;
        }
        layout::break_layout_final(Inode::from_raw(NonNull::new_unchecked(inode)));
        // Without entries it would be evicted by the kernel's own function by itself. Whatever may be left,
        // this is not called for it once more.
        call_original(|| bindings::iput(inode));
    }
}

/// A user of a filesystem is gone. After the last one it is unmounted: its files are evicted, which waits until
/// nobody holds their pages, with `s_umount`, which `sync` takes of each filesystem. So they are waited for before
/// that, with nothing held, by the system call that unmounts. Where a signal kills it, or the last user is
/// another one (who closes a file of a mount that was detached, or leaves a namespace; the thread that puts mounts
/// one after the other), a thread of the kernel waits in his place.
///
/// # Safety
///
/// As of the kernel's function; the filesystem is on an adopted device.
unsafe extern "C" fn deactivate_super(sb: *mut bindings::super_block) {
    /// # Safety
    ///
    /// An active reference to the superblock is the caller's; it is put.
    unsafe extern "C" fn when_idle(sb: *mut bindings::super_block) {
        // SAFETY: By this function's safety requirements.
        unsafe {
            layout::wait_for_holders(&ActiveSuperBlock::from_raw(sb), Unmount::Later);
            bindings::rdax_deactivate_super(sb);
        }
    }
    let mut in_flight = InFlight::enter();
    // SAFETY: By this function's safety requirements. Where it is put here, the superblock is not used any more.
    if unsafe { bindings::rdax_put_active_super(sb) } {
        return;
    }
    in_flight.pause(|| {
        // SAFETY: By this function's safety requirements. The reference is put once.
        unsafe {
            let who = match bindings::rdax_unmounts() {
                true => Unmount::Now,
                false => Unmount::Aside,
            };
            let idle = layout::wait_for_holders(&ActiveSuperBlock::from_raw(sb), who);
            if !idle
                && bindings::rdax_deactivate_later(
                    sb,
                    Some(when_idle),
                    Some(begin_in_flight),
                    Some(end_in_flight),
                )
            {
                return;
            }
            bindings::rdax_deactivate_super(sb);
        }
    });
}

/// # Safety
///
/// As of the kernel's function; the file is on an adopted device.
unsafe extern "C" fn dax_delete_mapping_range(
    mapping: *mut bindings::address_space,
    start: bindings::loff_t,
    end: bindings::loff_t,
) {
    // SAFETY: By this function's safety requirements.
    let mapping = unsafe { Mapping::from_raw(NonNull::new_unchecked(mapping)) };
    layout::delete_range(mapping, PageRange::of_bytes(start, end));
}

/// # Safety
///
/// As of the kernel's function; the file is on an adopted device.
unsafe extern "C" fn dax_delete_mapping_entry(
    mapping: *mut bindings::address_space,
    index: c_ulong,
) -> c_int {
    // SAFETY: By this function's safety requirements.
    let mapping = unsafe { Mapping::from_raw(NonNull::new_unchecked(mapping)) };
    layout::delete_entry(mapping, PageIndex::new(index)).into()
}

/// # Safety
///
/// As of the kernel's function; the file is on an adopted device.
unsafe extern "C" fn dax_invalidate_mapping_entry_sync(
    mapping: *mut bindings::address_space,
    index: c_ulong,
) -> c_int {
    // SAFETY: By this function's safety requirements.
    let mapping = unsafe { Mapping::from_raw(NonNull::new_unchecked(mapping)) };
    layout::invalidate_entry(mapping, PageIndex::new(index)).into()
}

/// # Safety
///
/// As of the kernel's function; the file is on an adopted device.
unsafe extern "C" fn dax_writeback_mapping_range(
    mapping: *mut bindings::address_space,
    device: *mut bindings::dax_device,
    wbc: *mut bindings::writeback_control,
) -> c_int {
    let Some(device) = NonNull::new(device) else {
        return EIO.to_errno();
    };
    // SAFETY: By this function's safety requirements.
    let (mapping, device, request) = unsafe {
        (
            Mapping::from_raw(NonNull::new_unchecked(mapping)),
            DaxDevice::from_raw(device),
            writeback::Request {
                range: PageRange::of_bytes((*wbc).range_start, (*wbc).range_end),
                sync: (*wbc).sync_mode == bindings::writeback_sync_modes_WB_SYNC_ALL,
            },
        )
    };
    match writeback::writeback(mapping, device, &request) {
        Ok(pages) => {
            // SAFETY: By this function's safety requirements.
            unsafe { (*wbc).nr_to_write = (*wbc).nr_to_write.saturating_sub_unsigned(pages) };
            0
        }
        Err(error) => error.to_errno(),
    }
}

/// # Safety
///
/// As of the kernel's function; the file is on an adopted device.
unsafe extern "C" fn dax_iomap_rw(
    iocb: *mut bindings::kiocb,
    iter: *mut bindings::iov_iter,
    ops: *const bindings::iomap_ops,
) -> isize {
    // SAFETY: By this function's safety requirements.
    let (iocb, mut iter, ops) = unsafe {
        (
            Kiocb::from_raw(NonNull::new_unchecked(iocb)),
            IovIter::from_raw(NonNull::new_unchecked(iter)),
            IomapOps::from_raw(NonNull::new_unchecked(ops.cast_mut())),
        )
    };
    match io::iomap_rw(iocb, &mut iter, ops) {
        Ok(bytes) => bytes as isize,
        Err(error) => error.to_errno() as isize,
    }
}

/// Calls `work` with the flag behind a pointer that may be NULL.
///
/// # Safety
///
/// `did_zero` is NULL or valid.
unsafe fn with_flag(did_zero: *mut bool, work: impl FnOnce(&mut bool) -> Result) -> c_int {
    let mut zeroed = false;
    let result = work(&mut zeroed);
    if zeroed && !did_zero.is_null() {
        // SAFETY: By this function's safety requirements.
        unsafe { did_zero.write(true) };
    }
    errno(result)
}

/// # Safety
///
/// As of the kernel's function; the file is on an adopted device.
unsafe extern "C" fn dax_zero_range(
    inode: *mut bindings::inode,
    position: bindings::loff_t,
    len: bindings::loff_t,
    did_zero: *mut bool,
    ops: *const bindings::iomap_ops,
) -> c_int {
    if position < 0 || len < 0 {
        return EINVAL.to_errno();
    }
    // SAFETY: By this function's safety requirements.
    unsafe {
        let inode = Inode::from_raw(NonNull::new_unchecked(inode));
        let ops = IomapOps::from_raw(NonNull::new_unchecked(ops.cast_mut()));
        with_flag(did_zero, |zeroed| {
            io::zero_range(inode, position as u64, len as u64, ops, zeroed)
        })
    }
}

/// # Safety
///
/// As of the kernel's function; the file is on an adopted device.
unsafe extern "C" fn dax_truncate_page(
    inode: *mut bindings::inode,
    position: bindings::loff_t,
    did_zero: *mut bool,
    ops: *const bindings::iomap_ops,
) -> c_int {
    if position < 0 {
        return EINVAL.to_errno();
    }
    // SAFETY: By this function's safety requirements.
    unsafe {
        let inode = Inode::from_raw(NonNull::new_unchecked(inode));
        let ops = IomapOps::from_raw(NonNull::new_unchecked(ops.cast_mut()));
        with_flag(did_zero, |zeroed| {
            io::truncate_page(inode, position as u64, ops, zeroed)
        })
    }
}

/// # Safety
///
/// As of the kernel's function; the file is on an adopted device.
unsafe extern "C" fn dax_file_unshare(
    inode: *mut bindings::inode,
    position: bindings::loff_t,
    len: bindings::loff_t,
    ops: *const bindings::iomap_ops,
) -> c_int {
    if position < 0 || len <= 0 {
        return 0;
    }
    // SAFETY: By this function's safety requirements.
    let (inode, ops) = unsafe {
        (
            Inode::from_raw(NonNull::new_unchecked(inode)),
            IomapOps::from_raw(NonNull::new_unchecked(ops.cast_mut())),
        )
    };
    errno(io::file_unshare(inode, position as u64, len as u64, ops))
}

/// # Safety
///
/// As of the kernel's function; the files are on an adopted device.
unsafe extern "C" fn dax_dedupe_file_range_compare(
    source: *mut bindings::inode,
    source_position: bindings::loff_t,
    target: *mut bindings::inode,
    target_position: bindings::loff_t,
    len: bindings::loff_t,
    same: *mut bool,
    ops: *const bindings::iomap_ops,
) -> c_int {
    if source_position < 0 || target_position < 0 || len < 0 {
        return EINVAL.to_errno();
    }
    // SAFETY: By this function's safety requirements.
    let (source, target, ops) = unsafe {
        (
            Inode::from_raw(NonNull::new_unchecked(source)),
            Inode::from_raw(NonNull::new_unchecked(target)),
            IomapOps::from_raw(NonNull::new_unchecked(ops.cast_mut())),
        )
    };
    let source = io::Side {
        inode: source,
        position: source_position as u64,
    };
    let target = io::Side {
        inode: target,
        position: target_position as u64,
    };
    match io::dedupe_compare(&source, &target, len as u64, ops) {
        Ok(equal) => {
            // SAFETY: By this function's safety requirements.
            unsafe { same.write(equal) };
            0
        }
        Err(error) => error.to_errno(),
    }
}

/// The cookie that the core knows by a number.
///
/// # Safety
///
/// The number was given for the entry that covers `index`, and is given back once; so is what was left of
/// `kept` with it.
unsafe fn cookie_of(
    mapping: &Mapping,
    index: PageIndex,
    bits: usize,
    kept: Option<DevFolio>,
) -> Cookie {
    match bits {
        Cookie::FAILED => Cookie::Failed,
        Cookie::NOTHING => Cookie::Nothing,
        // SAFETY: By this function's safety requirements.
        bits => unsafe {
            Cookie::Locked(
                LeftLocked::from_bits(mapping.tree(), index, bits),
                kept.map(|folio| KeptOwner::from_left(folio)),
            )
        },
    }
}

/// # Safety
///
/// As of the kernel's function; the folio was in a file on an adopted device a moment ago.
unsafe extern "C" fn dax_lock_folio(folio: *mut bindings::folio) -> bindings::dax_entry_t {
    let mut in_flight = InFlight::enter();
    // SAFETY: By this function's safety requirements.
    let folio = unsafe { DevFolio::from_raw(NonNull::new_unchecked(folio)) };
    poison::lock_folio(folio, &mut in_flight).into_bits()
}

/// # Safety
///
/// As of the kernel's function; the folio is in a file on an adopted device.
unsafe extern "C" fn dax_unlock_folio(folio: *mut bindings::folio, cookie: bindings::dax_entry_t) {
    // SAFETY: By this function's safety requirements.
    let folio = unsafe { DevFolio::from_raw(NonNull::new_unchecked(folio)) };
    let Some(mapping) = NonNull::new(folio.owner() as *mut bindings::address_space) else {
        return;
    };
    // SAFETY: The folio's entry is locked, which keeps the file that owns it, and the folio its owner.
    let mapping = unsafe { Mapping::from_raw(mapping) };
    // SAFETY: The core gives back what `dax_lock_folio` gave, and the folio has its place in the file
    // since.
    let cookie = unsafe { cookie_of(mapping, folio.index(), cookie, Some(folio)) };
    poison::unlock_folio(mapping, cookie);
}

/// # Safety
///
/// As of the kernel's function; the file is on an adopted device.
unsafe extern "C" fn dax_lock_mapping_entry(
    mapping: *mut bindings::address_space,
    index: c_ulong,
    page: *mut *mut bindings::page,
) -> bindings::dax_entry_t {
    // SAFETY: By this function's safety requirements.
    let mapping = unsafe { Mapping::from_raw(NonNull::new_unchecked(mapping)) };
    let (cookie, found) = poison::lock_index(mapping, PageIndex::new(index));
    if let Some(found) = found {
        // SAFETY: By this function's safety requirements.
        unsafe { page.write(found.as_ptr()) };
    }
    cookie.into_bits()
}

/// # Safety
///
/// As of the kernel's function; the file is on an adopted device.
unsafe extern "C" fn dax_unlock_mapping_entry(
    mapping: *mut bindings::address_space,
    index: c_ulong,
    cookie: bindings::dax_entry_t,
) {
    // SAFETY: By this function's safety requirements.
    let mapping = unsafe { Mapping::from_raw(NonNull::new_unchecked(mapping)) };
    // SAFETY: The core gives back what `dax_lock_mapping_entry` gave for the index.
    let cookie = unsafe { cookie_of(mapping, PageIndex::new(index), cookie, None) };
    poison::unlock_index(mapping, cookie);
}

/// The device is about to go, and with it the pages of its memory: no entry may point to them, no
/// page table map them, and nobody hold them when it does. It may be one that adopted devices are made
/// of.
///
/// # Safety
///
/// As of the kernel's function.
unsafe extern "C" fn bdev_mark_dead(bdev: *mut bindings::block_device, surprise: bool) {
    let mut in_flight = InFlight::enter();
    // SAFETY: By this function's safety requirements; the disk goes after this only.
    let (device, name) = unsafe {
        let bdev = NonNull::new_unchecked(bdev);
        (BlockDevice::borrow(bdev), BlockDeviceName::of(bdev))
    };
    adopt::evict_device(&device, &name, &mut in_flight);
    in_flight.pause(|| {
        // SAFETY: By this function's safety requirements.
        call_original(|| unsafe { bindings::bdev_mark_dead(bdev, surprise) });
    });
}

/// Somebody has the driver put zeroes on blocks: XFS does for blocks that a file gets, and they may be bad.
///
/// # Safety
///
/// As of the kernel's function; the device is adopted.
unsafe extern "C" fn blkdev_issue_zeroout(
    bdev: *mut bindings::block_device,
    sector: bindings::sector_t,
    sectors: bindings::sector_t,
    gfp: bindings::gfp_t,
    flags: c_uint,
) -> c_int {
    InFlight::enter().pause(|| {
        // SAFETY: By this function's safety requirements.
        call_original(|| unsafe { bindings::rdax_issue_zeroout(bdev, sector, sectors, gfp, flags) })
    })
}

/// Memory of the device has failed. If it is in a file of an adopted device whose filesystem does not
/// know which that is, the layer does.
///
/// # Safety
///
/// As of the kernel's function.
#[cfg(CONFIG_MEMORY_FAILURE)]
unsafe extern "C" fn dax_holder_notify_failure(
    device: *mut bindings::dax_device,
    offset: u64,
    len: u64,
    flags: c_int,
) -> c_int {
    let mut in_flight = InFlight::enter();
    // A device that is about to go is no failure of a page.
    let goes = flags & bindings::mf_flags_MF_MEM_PRE_REMOVE as c_int != 0;
    if !goes {
        let made_up = flags & bindings::mf_flags_MF_SW_SIMULATED as c_int != 0;
        poison::note(
            // SAFETY: By this function's safety requirements.
            unsafe { failed_place(device, offset) },
            len.div_ceil(Order::PTE.bytes() as u64) as usize,
            made_up,
        );
    }
    let result = in_flight.pause(|| {
        // SAFETY: By this function's safety requirements.
        call_original(|| unsafe { bindings::dax_holder_notify_failure(device, offset, len, flags) })
    });
    if result != eopnotsupp().to_errno() || goes || len > Order::PTE.bytes() as u64 {
        return result;
    }
    // SAFETY: By this function's safety requirements.
    let place = unsafe { failed_place(device, offset) };
    if poison::notify_failure(&mut in_flight, place, flags) {
        0
    } else {
        result
    }
}

/// The page at byte `offset` of a device.
///
/// # Safety
///
/// The device is alive for `'d`, and has that page.
#[cfg(CONFIG_MEMORY_FAILURE)]
unsafe fn failed_place<'d>(device: *mut bindings::dax_device, offset: u64) -> DaxPlace<'d> {
    // SAFETY: By this function's safety requirements.
    unsafe {
        let device = DaxDevice::from_raw(NonNull::new_unchecked(device));
        DaxPlace::new(device, PageIndex::of_byte(offset).get())
    }
}

/// Somebody wants to put a probe into a file. The core reads the instruction through the page cache,
/// and a filesystem that has one for its other files (erofs) would get a folio in the tree of this one,
/// in place of an entry. It is refused, as the core refuses it for XFS and ext4.
///
/// # Safety
///
/// As of the kernel's function; the file is on an adopted device.
#[cfg(CONFIG_UPROBES)]
unsafe extern "C" fn uprobe_register(
    _inode: *mut bindings::inode,
    _offset: bindings::loff_t,
    _counter: bindings::loff_t,
    _consumer: *mut bindings::uprobe_consumer,
) -> *mut bindings::uprobe {
    core::ptr::without_provenance_mut(EIO.to_errno() as usize)
}

/// Called when pages are cut off a file's cache. Filesystems mostly have broken the layout before, and
/// there is nothing then. XFS has not when it exchanges what two files have (`XFS_IOC_SWAPEXT`): it looks
/// whether something is left, and refuses then. The core would warn of each entry, and remove it.
///
/// # Safety
///
/// As of the kernel's function; the file is on an adopted device.
unsafe extern "C" fn truncate_pagecache_range(
    inode: *mut bindings::inode,
    start: bindings::loff_t,
    end: bindings::loff_t,
) {
    // SAFETY: By this function's safety requirements.
    let inode = unsafe { Inode::from_raw(NonNull::new_unchecked(inode)) };
    if let Some(range) = PageRange::within_bytes(start, end) {
        layout::cut(inode.mapping(), range, range == PageRange::ALL);
    }
}

/// As [`truncate_pagecache_range`]; ext4 calls this when it exchanges a file with its boot loader's
/// (`EXT4_IOC_SWAP_BOOT`), and does not look.
///
/// # Safety
///
/// As of the kernel's function; the file is on an adopted device.
unsafe extern "C" fn truncate_inode_pages(
    mapping: *mut bindings::address_space,
    start: bindings::loff_t,
) {
    // SAFETY: By this function's safety requirements.
    let mapping = unsafe { Mapping::from_raw(NonNull::new_unchecked(mapping)) };
    if let Some(range) = PageRange::within_bytes(start, -1) {
        layout::cut(mapping, range, false);
    }
}

/// Called by those who write files back and wait for it, other than for `fsync`. Those who exchange what files
/// have are among them.
///
/// # Safety
///
/// As of the kernel's function; the file is on an adopted device.
unsafe extern "C" fn filemap_write_and_wait_range(
    mapping: *mut bindings::address_space,
    start: bindings::loff_t,
    end: bindings::loff_t,
) -> c_int {
    if end < start {
        return 0;
    }
    // SAFETY: By this function's safety requirements.
    let inode = unsafe { Mapping::from_raw(NonNull::new_unchecked(mapping)) }.host();
    if let Err(error) = layout::refuse_if_held(inode, PageRange::of_bytes(start, end)) {
        return error.to_errno();
    }
    // SAFETY: By this function's safety requirements. What a file with DAX has is written back when the first
    // of them returns.
    let (written, before) = unsafe {
        (
            bindings::filemap_fdatawrite_range(mapping, start, end),
            bindings::filemap_check_errors(mapping),
        )
    };
    match written {
        0 => before,
        error => error,
    }
}

/// Somebody puts a page of its own into a file's cache. In the tree of a file with DAX it would take the
/// place of an entry, which the core takes for what is left of such a page. ext4 does when it exchanges
/// what two files have (`EXT4_IOC_MOVE_EXT`) and only the second has DAX: nothing is unmapped then, and who
/// has mapped that file would keep the blocks that it gives away. It fails so before anything is exchanged.
///
/// # Safety
///
/// As of the kernel's function; the file is on an adopted device.
unsafe extern "C" fn filemap_add_folio(
    _mapping: *mut bindings::address_space,
    _folio: *mut bindings::folio,
    _index: c_ulong,
    _gfp: bindings::gfp_t,
    _shadow: *mut *mut core::ffi::c_void,
) -> c_int {
    eopnotsupp().to_errno()
}

/// In the place of what is only watched, for its signature.
///
/// # Safety
///
/// Not called.
unsafe extern "C" fn watched_report(
    _sb: *mut bindings::super_block,
    _inode: *mut bindings::inode,
    _kind: bindings::fserror_type,
    _position: bindings::loff_t,
    _len: u64,
    _error: c_int,
    _gfp: bindings::gfp_t,
) {
}

/// As [`watched_report`].
///
/// # Safety
///
/// Not called.
unsafe extern "C" fn watched_unmount(_sb: *mut bindings::super_block) {}

/// Called for every move of a mapping, before its page tables are moved. The core's move takes an
/// entry of the third level for a broken one and forgets it, and with it the folio's reference: such
/// entries have to be gone by then. For files with DAX the function itself does nothing.
///
/// # Safety
///
/// As of the kernel's function; the file is on an adopted device.
#[cfg(CONFIG_KSM)]
unsafe extern "C" fn ksm_madvise(
    vma: *mut bindings::vm_area_struct,
    start: c_ulong,
    end: c_ulong,
    _advice: c_int,
    _flags: *mut bindings::vm_flags_t,
) -> c_int {
    // SAFETY: By this function's safety requirements; the callback has seen the file.
    let vma = unsafe { LockedVma::from_raw(NonNull::new_unchecked(vma)) };
    layout::unmap_immovable(&vma, start, end);
    0
}

/// Called when a VMA is about to begin or end at another address (it is split, or gives a part to
/// its neighbour): no huge entry may reach over that. The core knows of entries of the second level
/// only, and takes what an entry of the third level maps for a table of such: it would read and
/// write the file's data as entries.
///
/// # Safety
///
/// As of the kernel's function; the file is on an adopted device.
unsafe extern "C" fn vma_adjust_trans_huge(
    vma: *mut bindings::vm_area_struct,
    start: c_ulong,
    end: c_ulong,
    next: *mut bindings::vm_area_struct,
) {
    // SAFETY: By this function's safety requirements; `next` maps the same file.
    unsafe {
        let vma = LockedVma::from_raw(NonNull::new_unchecked(vma));
        vma.unmap_straddling(start);
        vma.unmap_straddling(end);
        if let Some(next) = NonNull::new(next) {
            LockedVma::from_raw(next).unmap_straddling(end);
        }
    }
}

/// Called before a part of a VMA is unmapped. With it goes what the processor has noted in its entries:
/// stores to pages that were mapped ahead for writing, of which the file's times do not tell yet. Locks
/// are held here under which a filesystem cannot be asked for that, so it is done when the task leaves
/// the kernel.
///
/// # Safety
///
/// As of the kernel's function; the file is on an adopted device.
#[cfg(CONFIG_UPROBES)]
unsafe extern "C" fn uprobe_munmap(
    vma: *mut bindings::vm_area_struct,
    start: c_ulong,
    end: c_ulong,
) {
    // SAFETY: By this function's safety requirements; the VMA keeps the file open.
    unsafe {
        bindings::rdax_recalc_uprobes((*vma).vm_mm);
        if !bindings::rdax_may_have_stores((*(*vma).vm_file).f_mapping) {
            return;
        }
        if bindings::rdax_vma_stores(vma, start, end, true) & bindings::RDAX_STORED == 0 {
            return;
        }
        bindings::rdax_update_times_later(
            (*vma).vm_file,
            Some(begin_in_flight),
            Some(end_in_flight),
        );
    }
}

/// Called when `fork` copies the page tables of a VMA, for an entry of the third level. The core would
/// copy the entry without taking a reference for it. Nothing has to be copied: what such an entry maps
/// the child's faults find in the file, and no mark of the parent's (a guard page, write-protection by
/// userfaultfd) is ever in one, as the core splits it before.
///
/// # Safety
///
/// As of the kernel's function; the file is on an adopted device.
unsafe extern "C" fn copy_huge_pud(
    _to_mm: *mut bindings::mm_struct,
    _from_mm: *mut bindings::mm_struct,
    _to: *mut bindings::pud_t,
    _from: *mut bindings::pud_t,
    _address: c_ulong,
    _vma: *mut bindings::vm_area_struct,
) -> c_int {
    0
}

/// Called when userfaultfd changes what it protects, for an entry of the third level, which the core
/// does not expect in such a VMA and warns of. It is there when it was mapped before userfaultfd came.
/// To be protected it is split before; so it has nothing of which protection could be taken.
///
/// # Safety
///
/// As of the kernel's function; the file is on an adopted device.
unsafe extern "C" fn change_huge_pud(
    _tlb: *mut bindings::mmu_gather,
    _vma: *mut bindings::vm_area_struct,
    _entry: *mut bindings::pud_t,
    _address: c_ulong,
    _protection: bindings::pgprot_t,
    _flags: c_ulong,
) -> c_int {
    // As for an entry that was left as it is.
    1
}

/// The functions that are redirected for files on adopted devices, the frequent ones first.
pub(crate) static TARGETS: [Target;
    32 + 2 * cfg!(CONFIG_UPROBES) as usize
        + cfg!(CONFIG_KSM) as usize
        + cfg!(CONFIG_MEMORY_FAILURE) as usize] = [
    target!(dax_iomap_fault, Key::VmFault, dax_iomap_fault),
    target!(dax_iomap_rw, Key::Kiocb, dax_iomap_rw),
    // Of all files.
    target!(__filemap_add_folio, Key::AnyMapping, filemap_add_folio),
    #[cfg(CONFIG_UPROBES)]
    target!(uprobe_munmap, Key::Vma, uprobe_munmap),
    target!(
        dax_writeback_mapping_range,
        Key::Mapping,
        dax_writeback_mapping_range
    ),
    target!(dax_finish_sync_fault, Key::VmFault, dax_finish_sync_fault),
    target!(blkdev_issue_zeroout, Key::BadMember, blkdev_issue_zeroout),
    target!(dax_break_layout, Key::Inode, dax_break_layout),
    target!(dax_break_layout_final, Key::Inode, dax_break_layout_final),
    target!(evict, Key::Evicted, evict),
    target!(
        truncate_pagecache_range,
        Key::Evicted,
        truncate_pagecache_range
    ),
    target!(truncate_inode_pages, Key::Truncated, truncate_inode_pages),
    target!(
        dax_layout_busy_page_range,
        Key::Mapping,
        dax_layout_busy_page_range
    ),
    target!(dax_layout_busy_page, Key::Mapping, dax_layout_busy_page),
    target!(
        dax_delete_mapping_range,
        Key::Mapping,
        dax_delete_mapping_range
    ),
    target!(
        dax_delete_mapping_entry,
        Key::Mapping,
        dax_delete_mapping_entry
    ),
    target!(
        dax_invalidate_mapping_entry_sync,
        Key::Mapping,
        dax_invalidate_mapping_entry_sync
    ),
    target!(dax_zero_range, Key::Inode, dax_zero_range),
    target!(dax_truncate_page, Key::Inode, dax_truncate_page),
    target!(dax_file_unshare, Key::Inode, dax_file_unshare),
    target!(
        dax_dedupe_file_range_compare,
        Key::Inode,
        dax_dedupe_file_range_compare
    ),
    target!(
        filemap_write_and_wait_range,
        Key::Truncated,
        filemap_write_and_wait_range
    ),
    target!(vma_adjust_trans_huge, Key::Vma, vma_adjust_trans_huge),
    target!(copy_huge_pud, Key::SixthVma, copy_huge_pud),
    target!(change_huge_pud, Key::UserfaultVma, change_huge_pud),
    #[cfg(CONFIG_KSM)]
    target!(ksm_madvise, Key::Vma, ksm_madvise),
    #[cfg(CONFIG_UPROBES)]
    target!(uprobe_register, Key::AnyInode, uprobe_register),
    target!(bdev_mark_dead, Key::BlockDevice, bdev_mark_dead),
    #[cfg(CONFIG_MEMORY_FAILURE)]
    target!(
        dax_holder_notify_failure,
        Key::DaxDevice,
        dax_holder_notify_failure
    ),
    // A filesystem that was shut down, or has another error, is not known any more to do what it said.
    target!(fserror_report, Key::Error, watched_report),
    target!(fserror_unmount, Key::Unmount, watched_unmount),
    target!(deactivate_super, Key::Active, deactivate_super),
    target!(dax_lock_folio, Key::Folio, dax_lock_folio),
    target!(dax_unlock_folio, Key::LockedFolio, dax_unlock_folio),
    target!(dax_lock_mapping_entry, Key::Mapping, dax_lock_mapping_entry),
    target!(
        dax_unlock_mapping_entry,
        Key::Mapping,
        dax_unlock_mapping_entry
    ),
];
