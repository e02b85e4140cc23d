// SPDX-License-Identifier: GPL-2.0

//! Functions of the core that deal with files of any kind: what must be done for those with DAX is done first.

use crate::{
    dax::layout,
    kern::{
        bindings,
        error::eopnotsupp,
        fs::{
            Inode,
            Mapping,
            PageRange, //
        },
        order::Order,
        redirect::{
            begin_in_module,
            end_in_module,
            InModule, //
        },
        vm::LockedVma,
    }, //
};
use core::ptr::NonNull;
use kernel::{
    ffi::{
        c_int,
        c_ulong, //
    },
    prelude::*,
};

/// Somebody wants to put a probe into a file. The core reads the instruction through the page cache,
/// and a filesystem that has one for its other files (erofs) would get a folio in the tree of this one,
/// in place of an entry. It is refused, as the core refuses it for XFS and ext4.
///
/// # Safety
///
/// As of the kernel's function; the file is on an adopted device.
#[cfg(CONFIG_UPROBES)]
pub(super) unsafe extern "C" fn uprobe_register(
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
pub(super) unsafe extern "C" fn truncate_pagecache_range(
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
pub(super) unsafe extern "C" fn truncate_inode_pages(
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
pub(super) unsafe extern "C" fn filemap_write_and_wait_range(
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
pub(super) unsafe extern "C" fn filemap_add_folio(
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
pub(super) unsafe extern "C" fn watched_report(
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
pub(super) unsafe extern "C" fn watched_unmount(_sb: *mut bindings::super_block) {}

/// Called for every move of a mapping, before its page tables are moved. The core's move takes an
/// entry of the third level for a broken one and forgets it, and with it the folio's reference: such
/// entries have to be gone by then. For files with DAX the function itself does nothing.
///
/// # Safety
///
/// As of the kernel's function; the file is on an adopted device.
#[cfg(CONFIG_KSM)]
pub(super) unsafe extern "C" fn ksm_madvise(
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
pub(super) unsafe extern "C" fn vma_adjust_trans_huge(
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
pub(super) unsafe extern "C" fn uprobe_munmap(
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
            Some(begin_in_module),
            Some(end_in_module),
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
pub(super) unsafe extern "C" fn copy_huge_pud(
    _to_mm: *mut bindings::mm_struct,
    _from_mm: *mut bindings::mm_struct,
    _to: *mut bindings::pud_t,
    _from: *mut bindings::pud_t,
    _address: c_ulong,
    _vma: *mut bindings::vm_area_struct,
) -> c_int {
    0
}

/// Called when an entry of the third level is unmapped: nobody may make a table in its place before those are past
/// who may have seen it (`large_puds.c`).
///
/// # Safety
///
/// As of the kernel's function; the file is on an adopted device.
pub(super) unsafe extern "C" fn zap_huge_pud(
    tlb: *mut bindings::mmu_gather,
    vma: *mut bindings::vm_area_struct,
    entry: *mut bindings::pud_t,
    address: c_ulong,
) -> c_int {
    // SAFETY: By this function's safety requirements; what was begun is ended.
    unsafe {
        let removal = bindings::rdax_large_pud_begin_removal(vma, entry);
        let result = bindings::rdax_original_zap_huge_pud(tlb, vma, entry, address);
        bindings::rdax_large_pud_end_removal(vma, removal);
        result
    }
}

/// The same, when a part of what the entry maps is to be unmapped or changed.
///
/// # Safety
///
/// As of the kernel's function; the file is on an adopted device.
pub(super) unsafe extern "C" fn split_huge_pud(
    vma: *mut bindings::vm_area_struct,
    entry: *mut bindings::pud_t,
    address: c_ulong,
) {
    // SAFETY: As above.
    unsafe {
        let removal = bindings::rdax_large_pud_begin_removal(vma, entry);
        bindings::rdax_original_split_huge_pud(vma, entry, address);
        bindings::rdax_large_pud_end_removal(vma, removal);
    }
}

/// Called for a table of entries of the second level, which is made where there may have been an entry of 1 GiB.
/// Sleeps, killable.
///
/// # Safety
///
/// As of the kernel's function.
pub(super) unsafe extern "C" fn pmd_alloc(
    mm: *mut bindings::mm_struct,
    entry: *mut bindings::pud_t,
    address: c_ulong,
) -> c_int {
    let _in_module = InModule::enter();
    // SAFETY: By this function's safety requirements.
    unsafe { bindings::rdax_make_table(mm, entry, address) }
}

/// Called when the core is about to go through the table below an entry of the third level and finds that it is
/// neither a table nor empty.
///
/// `MADV_DONTNEED` and its like hold the VMA for reading only: when they have taken an entry of 1 GiB away, and
/// look whether there is a table, another thread's fault may have mapped the folio once more. The core expects
/// that of the second level, but here it takes the entry for a broken one and forgets it: the folio keeps its
/// reference for ever, and the processors what they know of the entry. It stays, as if the fault had come
/// afterwards; the caller goes on behind it.
///
/// # Safety
///
/// As of the kernel's function; the entry is not broken.
pub(super) unsafe extern "C" fn pud_clear_bad(_entry: *mut bindings::pud_t) {}

/// Called for an entry of the third level when userfaultfd changes what it protects, and when nobody may
/// access the memory any more.
///
/// The core does not expect such an entry in a VMA of userfaultfd, and warns of it. It is there when it was
/// mapped before userfaultfd came. To be protected it is split before; so it has nothing of which protection
/// could be taken.
///
/// An entry without any rights the core takes for absent on this level, and for one to be split on others: a
/// debugger's access would fault for ever, and a VMA that is divided in its middle lose its reference. It is
/// taken away, as in [`VmFault::vma_covers`](crate::kern::vm::VmFault::vma_covers) none is made.
///
/// # Safety
///
/// As of the kernel's function; the file is on an adopted device.
pub(super) unsafe extern "C" fn change_huge_pud(
    _tlb: *mut bindings::mmu_gather,
    vma: *mut bindings::vm_area_struct,
    _entry: *mut bindings::pud_t,
    address: c_ulong,
    _protection: bindings::pgprot_t,
    flags: c_ulong,
) -> c_int {
    if flags & bindings::MM_CP_USERFAULT == 0 {
        // SAFETY: By this function's safety requirements the VMA is locked, and has all that the entry maps.
        unsafe { bindings::zap_vma_range(vma, address, Order::PUD.bytes() as c_ulong) };
    }
    // As for an entry that was left as it is.
    1
}
