// SPDX-License-Identifier: GPL-2.0

//! The character devices of bound devices: files, mappings and faults.

use super::{
    node::{
        Home,
        Node, //
    },
    Listed, //
};
use crate::kern::{
    bindings,
    compat::this_module,
    fs::PageIndex,
    once::Once,
    order::Order,
    vm::{FaultCode, LockedVma, VmFault}, //
};
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::{
    ffi::{c_int, c_uint, c_ulong},
    prelude::*,
    sync::{Arc, ArcBorrow}, //
};

/// The functions of the files and mappings of a driver's devices.
pub(super) struct FileCalls<D>(PhantomData<D>);

impl<D: Listed> FileCalls<D> {
    pub(super) const FILE: &'static bindings::file_operations = &bindings::file_operations {
        owner: this_module().as_ptr(),
        fop_flags: bindings::FOP_MMAP_SYNC,
        open: Some(open::<D>),
        release: Some(release::<D>),
        mmap_prepare: Some(mmap_prepare::<D>),
        get_unmapped_area: Some(get_unmapped_area::<D>),
        llseek: Some(bindings::noop_llseek),
        ..pin_init::zeroed()
    };

    const VM: &'static bindings::vm_operations_struct = &bindings::vm_operations_struct {
        open: Some(open_vma::<D>),
        may_split: Some(may_split_vma),
        mprotect: Some(protect_vma::<D>),
        fault: Some(fault::<D>),
        huge_fault: Some(huge_fault::<D>),
        pagesize: Some(pagesize::<D>),
        ..pin_init::zeroed()
    };
}

/// # Safety
///
/// Called by the core for a character device of this driver.
unsafe extern "C" fn open<D: Listed>(
    inode: *mut bindings::inode,
    file: *mut bindings::file,
) -> c_int {
    // By number and not by character device: as long as a file is open that was opened before the
    // device was bound anew, its inode leads here with the old one.
    // SAFETY: The inode is alive.
    let Some(node) = Node::<D>::find(unsafe { bindings::rdax_inode_rdev(inode) }) else {
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
unsafe extern "C" fn release<D: Listed>(
    _inode: *mut bindings::inode,
    file: *mut bindings::file,
) -> c_int {
    // SAFETY: `open` put it there, and this is the end of the file. The address space is not used
    // after this.
    drop(unsafe { Arc::<Node<D>>::from_raw((*file).private_data.cast_const().cast()) });
    0
}

/// The node of an open file.
///
/// # Safety
///
/// `open` was called for the file, which stays open for `'a`.
#[inline]
unsafe fn node_of<'a, D>(file: *mut bindings::file) -> ArcBorrow<'a, Node<D>> {
    // SAFETY: `open` put it there, and it stays as long as the file is open.
    unsafe { ArcBorrow::from_raw((*file).private_data.cast_const().cast()) }
}

/// # Safety
///
/// Called by the core for an open file.
unsafe extern "C" fn mmap_prepare<D: Listed>(desc: *mut bindings::vm_area_desc) -> c_int {
    // SAFETY: By this function's safety requirements.
    let (node, shared, index) = unsafe {
        (
            node_of::<D>((*desc).file),
            bindings::rdax_desc_is_shared(desc),
            PageIndex::new((*desc).pgoff),
        )
    };
    // Pairs with `bind`.
    if !node.open.load_acquire() {
        return ENXIO.to_errno();
    }
    if let Err(error) = node.device.check_mapping(shared, index) {
        return error.to_errno();
    }
    // SAFETY: The description is the core's and being filled in.
    unsafe {
        (*desc).vm_ops = FileCalls::<D>::VM;
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
unsafe extern "C" fn get_unmapped_area<D: Listed>(
    file: *mut bindings::file,
    address: c_ulong,
    len: c_ulong,
    pgoff: c_ulong,
    flags: c_ulong,
) -> c_ulong {
    // SAFETY: By this function's safety requirements.
    let node = unsafe { node_of::<D>(file) };
    // SAFETY: As the core calls it itself.
    let search = |address: usize, len: usize| unsafe {
        bindings::mm_get_unmapped_area(file, address, len, pgoff, flags)
    };
    // A failure is an errno, which is no multiple of a page.
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
unsafe extern "C" fn open_vma<D: Listed>(vma: *mut bindings::vm_area_struct) {
    // SAFETY: The VMA keeps its file open, and is not linked yet.
    unsafe {
        if node_of::<D>((*vma).vm_file).device.order() == Order::PUD {
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
    vma.start_write();
    vma.unmap_straddling(address);
    0
}

/// The core takes an entry of the third level for absent once nobody may access what it maps: a debugger's access
/// would fault for ever. It is taken away.
///
/// # Safety
///
/// Called by the core for a VMA that `mmap_prepare` was called for, before the protection of a part of it changes,
/// with the address space locked for writing.
unsafe extern "C" fn protect_vma<D: Listed>(
    vma: *mut bindings::vm_area_struct,
    start: c_ulong,
    end: c_ulong,
    flags: c_ulong,
) -> c_int {
    // SAFETY: By this function's safety requirements. The VMA keeps its file open, and has that part, in which
    // there are whole entries only once it was divided at its ends.
    unsafe {
        if flags & bindings::VM_ACCESSIBLE as c_ulong == 0
            && node_of::<D>((*vma).vm_file).device.order() == Order::PUD
        {
            LockedVma::from_raw(NonNull::new_unchecked(vma)).start_write();
            bindings::zap_vma_range(vma, start, end - start);
        }
    }
    0
}

/// # Safety
///
/// Called by the core for a VMA that `mmap_prepare` was called for.
unsafe extern "C" fn pagesize<D: Listed>(vma: *mut bindings::vm_area_struct) -> c_ulong {
    // SAFETY: The VMA keeps its file open.
    unsafe { node_of::<D>((*vma).vm_file) }
        .device
        .order()
        .bytes() as c_ulong
}

/// # Safety
///
/// Called by the core for a fault in a VMA that `mmap_prepare` was called for.
unsafe extern "C" fn fault<D: Listed>(vmf: *mut bindings::vm_fault) -> bindings::vm_fault_t {
    // SAFETY: As of this function.
    unsafe { huge_fault::<D>(vmf, 0) }
}

/// # Safety
///
/// Called by the core for a fault in a VMA that `mmap_prepare` was called for.
unsafe extern "C" fn huge_fault<D: Listed>(
    vmf: *mut bindings::vm_fault,
    order: c_uint,
) -> bindings::vm_fault_t {
    // SAFETY: The fault's VMA keeps its file open.
    let (node, vmf) = unsafe {
        (
            node_of::<D>((*(*vmf).__bindgen_anon_1.vma).vm_file),
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
    node.device.fault(&Home(&node), vmf, order).0
}
