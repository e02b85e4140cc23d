// SPDX-License-Identifier: GPL-2.0

//! Reads, writes, and write-back.

use super::errno;
use crate::{
    dax::{
        io,
        writeback, //
    },
    kern::{
        bindings,
        dax::DaxDevice,
        fs::{
            Inode,
            Mapping,
            PageRange, //
        },
        iomap::IomapOps,
        iov::{
            IovIter,
            Kiocb, //
        },
    }, //
};
use core::ptr::NonNull;
use kernel::{
    ffi::c_int,
    prelude::*, //
};

/// # Safety
///
/// As of the kernel's function; the file is on an adopted device.
pub(super) unsafe extern "C" fn dax_writeback_mapping_range(
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
pub(super) unsafe extern "C" fn dax_iomap_rw(
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
pub(super) unsafe extern "C" fn dax_zero_range(
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
pub(super) unsafe extern "C" fn dax_truncate_page(
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
pub(super) unsafe extern "C" fn dax_file_unshare(
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
pub(super) unsafe extern "C" fn dax_dedupe_file_range_compare(
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
