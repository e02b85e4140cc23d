// SPDX-License-Identifier: GPL-2.0

//! Calls of the kernel's own functions, and where they are sent.

use super::{File, World};
use crate::kern::{
    bindings,
    fs::Mapping,
    members::{Members, OnSuperBlock, TestSlot},
    memory,
    order::Order,
    page::DevFolio,
    redirect::{Destination, Key, Redirection}, //
};
use core::{
    ffi::{c_void, CStr},
    ptr::{self, NonNull}, //
};
use kernel::{
    error::{from_err_ptr, to_result},
    prelude::*, //
};

/// First arguments of functions that are called about a file.
struct Arguments {
    vma: bindings::vm_area_struct,
    vmf: bindings::vm_fault,
    iocb: bindings::kiocb,
    pud: bindings::pud_t,
}

impl Arguments {
    fn new(file: &File<'_>) -> Self {
        let mut arguments = Self {
            vma: pin_init::zeroed(),
            vmf: pin_init::zeroed(),
            iocb: pin_init::zeroed(),
            pud: pin_init::zeroed(),
        };
        arguments.vma.vm_file = file.raw();
        arguments.iocb.ki_filp = file.raw();
        arguments
    }

    /// The fault, in the VMA, which stay where they are while it is used.
    fn vmf(&mut self) -> *mut bindings::vm_fault {
        self.vmf.__bindgen_anon_1.vma = &raw mut self.vma;
        &raw mut self.vmf
    }
}

/// Where a call of a function of the table is sent that is about a file; for functions that take a
/// folio, about that one.
pub(crate) fn decide(
    redirection: &'static Redirection,
    number: usize,
    key: Key,
    file: &File<'_>,
    folio: DevFolio<'_>,
) -> Destination {
    let mut arguments = Arguments::new(file);
    let first = match key {
        Key::VmFault => arguments.vmf() as usize,
        Key::Kiocb => &raw const arguments.iocb as usize,
        Key::Vma | Key::SixthVma | Key::ProtectedVma | Key::SplitVma | Key::ZappedVma => {
            &raw const arguments.vma as usize
        }
        Key::Inode | Key::AnyInode | Key::Evicted => file.inode().as_ptr() as usize,
        Key::Truncated => file.mapping().as_ptr() as usize,
        Key::Mapping | Key::AnyMapping => file.mapping().as_ptr() as usize,
        Key::BlockDevice | Key::Member => file.world().bdev() as usize,
        Key::DaxDevice => file.world().raw_dax() as usize,
        Key::Folio | Key::LockedFolio => folio.as_ptr() as usize,
        // Of anybody.
        Key::Mm => 0,
        Key::ClearedPud => &raw const arguments.pud as usize,
        Key::Error | Key::Unmount | Key::Active => file.inode().super_block().as_ptr() as usize,
    };
    // SAFETY: Just made so.
    unsafe { redirection.decide(number, first) }
}

/// Where a call is sent that takes an entry of the third level with these bits for a broken one.
pub(crate) fn decide_for_pud(
    redirection: &'static Redirection,
    number: usize,
    bits: usize,
) -> Destination {
    let mut pud: bindings::pud_t = pin_init::zeroed();
    pud.pud = bits;
    // SAFETY: For functions with `Key::ClearedPud`, which is the caller's to see to.
    unsafe { redirection.decide(number, &raw const pud as usize) }
}

/// The same for a mapping of no file.
pub(crate) fn decide_without_file(redirection: &'static Redirection, number: usize) -> Destination {
    let vma: bindings::vm_area_struct = pin_init::zeroed();
    // SAFETY: For functions with `Key::Vma`, which is the caller's to see to; a VMA without a file.
    unsafe { redirection.decide(number, &raw const vma as usize) }
}

/// Where a call is sent that says that the file's device goes, when nothing is redirected in truth, while it is
/// told that devices go, and after that.
pub(crate) fn decide_while_watched(
    redirection: &'static Redirection,
    number: usize,
    file: &File<'_>,
) -> (Destination, Destination) {
    let device = file.world().bdev() as usize;
    // SAFETY: For functions with `Key::BlockDevice`, which is the caller's to see to; this is one.
    let decide = || unsafe { redirection.decide(number, device) };
    memory::set_watched(true);
    let before = decide();
    memory::set_watched(false);
    (before, decide())
}

/// Where the shorter way sends calls of `dax_iomap_fault` and `dax_iomap_rw` that are about a file,
/// with a table of adopted devices that has these places from the file's device on. Nothing may be
/// redirected meanwhile.
#[cfg(CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS)]
pub(crate) fn decide_directly(file: &File<'_>, places: &[TestSlot]) -> (Destination, Destination) {
    let mut arguments = Arguments::new(file);
    let members = Members::around(file.world().bdev(), places);
    let decide = |rw: bool, first: *mut c_void| {
        // SAFETY: The argument is what the function's would be, and the table is one.
        match unsafe { bindings::rdax_direct_decide(rw, first, (&raw const members).cast()) } {
            1 if !rw => Destination::Kernel,
            2 if rw => Destination::Kernel,
            3 if !rw => Destination::Ours,
            4 if rw => Destination::Ours,
            _ => Destination::Elsewhere,
        }
    };
    (
        decide(false, arguments.vmf().cast()),
        decide(true, (&raw mut arguments.iocb).cast()),
    )
}

/// `dax_layout_busy_page`, as a filesystem calls it.
pub(crate) fn call_busy_page<'f>(file: &'f File<'_>) -> Option<DevFolio<'f>> {
    // SAFETY: The address space is alive.
    let page = unsafe { bindings::dax_layout_busy_page(file.mapping().as_ptr()) };
    // SAFETY: A page of the device.
    NonNull::new(page).map(|page| unsafe { DevFolio::from_raw(page.cast()) })
}

/// `dax_break_layout` of a whole file, without waiting.
pub(crate) fn call_break_layout(file: &File<'_>) -> Result {
    // SAFETY: The inode is alive.
    to_result(unsafe { bindings::dax_break_layout(file.inode().as_ptr(), 0, i64::MAX, None) })
}

/// `invalidate_inode_pages2_range` of a whole file, which calls `dax_invalidate_mapping_entry_sync`.
/// `EBUSY` when something stays.
pub(crate) fn call_invalidate(file: &File<'_>) -> Result {
    // SAFETY: The address space is alive.
    to_result(unsafe {
        bindings::invalidate_inode_pages2_range(file.mapping().as_ptr(), 0, usize::MAX)
    })
}

/// `dax_holder_notify_failure`, as a driver calls it about `pages` pages from a place on the device.
/// The errno, or 0.
#[cfg(CONFIG_MEMORY_FAILURE)]
pub(crate) fn call_notify_failure(world: &World, place: usize, pages: usize, removal: bool) -> i32 {
    let flags = if removal {
        bindings::mf_flags_MF_MEM_PRE_REMOVE as i32
    } else {
        0
    };
    let bytes = |pages: usize| (pages * Order::PTE.bytes()) as u64;
    // SAFETY: The device is alive.
    unsafe {
        bindings::dax_holder_notify_failure(world.raw_dax(), bytes(place), bytes(pages), flags)
    }
}

/// The same about one page, as for somebody who makes a failure up.
#[cfg(CONFIG_MEMORY_FAILURE)]
pub(crate) fn call_notify_injection(world: &World, place: usize) -> i32 {
    let flags = bindings::mf_flags_MF_SW_SIMULATED as i32;
    let page = Order::PTE.bytes() as u64;
    // SAFETY: The device is alive.
    unsafe {
        bindings::dax_holder_notify_failure(world.raw_dax(), place as u64 * page, page, flags)
    }
}

/// `dax_writeback_mapping_range` of a whole file, and what it took off the number of pages that may
/// be written.
pub(crate) fn call_writeback(file: &File<'_>) -> Result<i64> {
    const PAGES: i64 = 1 << 40;
    let mut wbc: bindings::writeback_control = pin_init::zeroed();
    wbc.nr_to_write = PAGES as isize;
    wbc.range_end = i64::MAX;
    wbc.sync_mode = bindings::writeback_sync_modes_WB_SYNC_ALL;
    // SAFETY: The address space and the device are alive.
    to_result(unsafe {
        bindings::dax_writeback_mapping_range(
            file.mapping().as_ptr(),
            file.world().raw_dax(),
            &mut wbc,
        )
    })?;
    Ok(PAGES - wbc.nr_to_write as i64)
}

/// Gives a folio another owner's bits, as those who are no file have them, while `work` is done.
pub(crate) fn with_anonymous_owner<R>(
    folio: DevFolio<'_>,
    mapping: &Mapping,
    work: impl FnOnce() -> R,
) -> R {
    let field = {
        let folio = folio.as_ptr();
        // SAFETY: The folio is valid; nobody else uses it.
        unsafe { &raw mut (*folio).__bindgen_anon_1.__bindgen_anon_1.mapping }
    };
    let marked = (mapping.as_ptr() as usize | bindings::FOLIO_MAPPING_ANON as usize) as *mut _;
    // SAFETY: As above.
    let old = unsafe { field.replace(marked) };
    let result = work();
    // SAFETY: As above.
    unsafe { field.write(old) };
    result
}

/// A block device that somebody else has open exclusively.
pub(crate) struct HeldByOther(NonNull<bindings::file>);

static OTHER: u8 = 0;

impl HeldByOther {
    /// Opens it as a mount does. `EBUSY` when somebody has it.
    pub(crate) fn new(path: &CStr) -> Result<Self> {
        // SAFETY: The path is a string, and the holder's address is nobody else's.
        let file = unsafe {
            bindings::bdev_file_open_by_path(
                path.as_char_ptr(),
                bindings::BLK_OPEN_READ,
                ptr::from_ref(&OTHER).cast_mut().cast(),
                ptr::null(),
            )
        };
        Ok(Self(NonNull::new(from_err_ptr(file)?).ok_or(ENODEV)?))
    }
}

impl Drop for HeldByOther {
    fn drop(&mut self) {
        // SAFETY: The file is this value's.
        unsafe { bindings::bdev_fput(self.0.as_ptr()) };
    }
}
