// SPDX-License-Identifier: GPL-2.0

//! Waiting for a file's pages, and removing its entries.

use super::errno;
use crate::{
    dax::layout::{
        self,
        Patience,
        Unmount, //
    },
    kern::{
        bindings,
        fs::{
            ActiveSuperBlock,
            Inode,
            Mapping,
            PageIndex,
            PageRange, //
        },
        redirect::{
            begin_in_module,
            call_original,
            end_in_module,
            end_original,
            InFlight, //
        },
        wait::WaitCallback,
    }, //
};
use core::ptr::{
    self,
    NonNull, //
};
use kernel::ffi::{
    c_int,
    c_ulong, //
};

/// # Safety
///
/// As of the kernel's function; the file is on an adopted device.
pub(super) unsafe extern "C" fn dax_layout_busy_page_range(
    mapping: *mut bindings::address_space,
    start: bindings::loff_t,
    end: bindings::loff_t,
) -> *mut bindings::page {
    // SAFETY: By this function's safety requirements.
    let mapping = unsafe { Mapping::from_raw(NonNull::new_unchecked(mapping)) };
    match layout::busy_folio(mapping, PageRange::of_bytes(start, end)) {
        Some(head) => head.page_address(),
        None => ptr::null_mut(),
    }
}

/// # Safety
///
/// As of the kernel's function; the file is on an adopted device.
pub(super) unsafe extern "C" fn dax_layout_busy_page(
    mapping: *mut bindings::address_space,
) -> *mut bindings::page {
    // SAFETY: As of this function.
    unsafe { dax_layout_busy_page_range(mapping, 0, bindings::loff_t::MAX) }
}

/// # Safety
///
/// As of the kernel's function; the file is on an adopted device.
pub(super) unsafe extern "C" fn dax_break_layout(
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
pub(in crate::kern) unsafe extern "C" fn dax_break_layout_final(inode: *mut bindings::inode) {
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
pub(super) unsafe extern "C" fn evict(inode: *mut bindings::inode) {
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
pub(super) unsafe extern "C" fn deactivate_super(sb: *mut bindings::super_block) {
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
            if !idle && deactivate_later(sb, false) {
                return;
            }
            // The last reference goes by `deactivate_locked_super`.
            bindings::rdax_deactivate_super(sb);
        }
    });
}

/// The same, by a task that has locked the superblock (`s_umount`), which this drops: a mount that fails, a
/// thaw, and whoever else puts the last reference. That is the only function by which a filesystem ends, so that it
/// is here that nobody ends one with the lock while a page of it is held, whoever has come and gone before.
///
/// # Safety
///
/// As of the kernel's function; the filesystem is on an adopted device.
pub(super) unsafe extern "C" fn deactivate_locked_super(sb: *mut bindings::super_block) {
    let mut in_flight = InFlight::enter();
    // SAFETY: By this function's safety requirements. Where it is not the last one, the reference is put here; the
    // superblock is there as long as it is locked.
    unsafe {
        if bindings::rdax_put_active_super(sb) {
            bindings::rdax_unlock_super(sb);
            return;
        }
    }
    in_flight.pause(|| {
        // SAFETY: By this function's safety requirements. The reference is put once.
        unsafe {
            if !layout::has_holders(&ActiveSuperBlock::from_raw(sb)) || !deactivate_later(sb, true)
            {
                end_original(sb, || bindings::deactivate_locked_super(sb));
            }
        }
    });
}

/// Has a thread of the kernel wait until nobody holds a page of the filesystem, and put an active reference to
/// it. Whether there is memory for that.
///
/// # Safety
///
/// The reference is the caller's, and not his any more if this is true; neither is the superblock's lock, which he
/// may have (`locked`).
unsafe fn deactivate_later(sb: *mut bindings::super_block, locked: bool) -> bool {
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
    // SAFETY: By this function's safety requirements.
    unsafe {
        bindings::rdax_deactivate_later(
            sb,
            locked,
            Some(when_idle),
            Some(begin_in_module),
            Some(end_in_module),
        )
    }
}

/// # Safety
///
/// As of the kernel's function; the file is on an adopted device.
pub(super) unsafe extern "C" fn dax_delete_mapping_range(
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
pub(super) unsafe extern "C" fn dax_delete_mapping_entry(
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
pub(super) unsafe extern "C" fn dax_invalidate_mapping_entry_sync(
    mapping: *mut bindings::address_space,
    index: c_ulong,
) -> c_int {
    // SAFETY: By this function's safety requirements.
    let mapping = unsafe { Mapping::from_raw(NonNull::new_unchecked(mapping)) };
    layout::invalidate_entry(mapping, PageIndex::new(index)).into()
}
