// SPDX-License-Identifier: GPL-2.0

//! The functions that serve in place of the kernel's: the C side of the DAX layer.
//!
//! Each function here has the signature of the kernel's function whose place it takes. It turns
//! pointers into references, numbers into types, calls the layer, and turns its answer back.
//!
//! C header: [`include/linux/dax.h`](srctree/include/linux/dax.h)

use super::{
    dax_bus,
    redirect::{
        target,
        Key,
        Target, //
    },
};
use crate::dax::devdax;
use kernel::{
    ffi::c_int,
    prelude::*, //
};

pub(super) mod fault;
mod generic;
mod io;
pub(super) mod layout;
mod poison;

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

/// The functions that are redirected for files on adopted devices, the frequent ones first.
pub(crate) static TARGETS: [Target;
    38 + 2 * cfg!(CONFIG_UPROBES) as usize
        + cfg!(CONFIG_KSM) as usize
        + cfg!(CONFIG_MEMORY_FAILURE) as usize] = [
    target!(dax_iomap_fault, Key::VmFault, fault::dax_iomap_fault),
    target!(dax_iomap_rw, Key::Kiocb, io::dax_iomap_rw),
    // Of all files.
    target!(
        __filemap_add_folio,
        Key::AnyMapping,
        generic::filemap_add_folio
    ),
    #[cfg(CONFIG_UPROBES)]
    target!(uprobe_munmap, Key::Vma, generic::uprobe_munmap),
    target!(
        dax_writeback_mapping_range,
        Key::Mapping,
        io::dax_writeback_mapping_range
    ),
    target!(
        dax_finish_sync_fault,
        Key::VmFault,
        fault::dax_finish_sync_fault
    ),
    target!(
        blkdev_issue_zeroout,
        Key::Member,
        poison::blkdev_issue_zeroout
    ),
    target!(dax_break_layout, Key::Inode, layout::dax_break_layout),
    target!(
        dax_break_layout_final,
        Key::Inode,
        layout::dax_break_layout_final
    ),
    target!(evict, Key::Evicted, layout::evict),
    target!(
        truncate_pagecache_range,
        Key::Evicted,
        generic::truncate_pagecache_range
    ),
    target!(
        truncate_inode_pages,
        Key::Truncated,
        generic::truncate_inode_pages
    ),
    target!(
        dax_layout_busy_page_range,
        Key::Mapping,
        layout::dax_layout_busy_page_range
    ),
    target!(
        dax_layout_busy_page,
        Key::Mapping,
        layout::dax_layout_busy_page
    ),
    target!(
        dax_delete_mapping_range,
        Key::Mapping,
        layout::dax_delete_mapping_range
    ),
    target!(
        dax_delete_mapping_entry,
        Key::Mapping,
        layout::dax_delete_mapping_entry
    ),
    target!(
        dax_invalidate_mapping_entry_sync,
        Key::Mapping,
        layout::dax_invalidate_mapping_entry_sync
    ),
    target!(dax_zero_range, Key::Inode, io::dax_zero_range),
    target!(dax_truncate_page, Key::Inode, io::dax_truncate_page),
    target!(dax_file_unshare, Key::Inode, io::dax_file_unshare),
    target!(
        dax_dedupe_file_range_compare,
        Key::Inode,
        io::dax_dedupe_file_range_compare
    ),
    target!(
        filemap_write_and_wait_range,
        Key::Truncated,
        generic::filemap_write_and_wait_range
    ),
    target!(
        vma_adjust_trans_huge,
        Key::Vma,
        generic::vma_adjust_trans_huge
    ),
    target!(copy_huge_pud, Key::SixthVma, generic::copy_huge_pud),
    target!(change_huge_pud, Key::ProtectedVma, generic::change_huge_pud),
    target!(pud_clear_bad, Key::ClearedPud, generic::pud_clear_bad),
    target!(zap_huge_pud, Key::ZappedVma, generic::zap_huge_pud),
    target!(__split_huge_pud, Key::SplitVma, generic::split_huge_pud),
    target!(__pmd_alloc, Key::Mm, generic::pmd_alloc),
    #[cfg(CONFIG_KSM)]
    target!(ksm_madvise, Key::Vma, generic::ksm_madvise),
    #[cfg(CONFIG_UPROBES)]
    target!(uprobe_register, Key::AnyInode, generic::uprobe_register),
    target!(dax_synchronous, Key::DaxDevice, fault::dax_synchronous),
    target!(bdev_mark_dead, Key::BlockDevice, poison::bdev_mark_dead),
    #[cfg(CONFIG_MEMORY_FAILURE)]
    target!(
        dax_holder_notify_failure,
        Key::DaxDevice,
        poison::dax_holder_notify_failure
    ),
    // A filesystem that was shut down, or has another error, is not known any more to do what it said.
    target!(fserror_report, Key::Error, generic::watched_report),
    target!(fserror_unmount, Key::Unmount, generic::watched_unmount),
    target!(deactivate_super, Key::Active, layout::deactivate_super),
    target!(
        deactivate_locked_super,
        Key::Active,
        layout::deactivate_locked_super
    ),
    target!(dax_lock_folio, Key::Folio, poison::dax_lock_folio),
    target!(dax_unlock_folio, Key::LockedFolio, poison::dax_unlock_folio),
    target!(
        dax_lock_mapping_entry,
        Key::Mapping,
        poison::dax_lock_mapping_entry
    ),
    target!(
        dax_unlock_mapping_entry,
        Key::Mapping,
        poison::dax_unlock_mapping_entry
    ),
];
