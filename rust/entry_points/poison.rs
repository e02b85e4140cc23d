// SPDX-License-Identifier: GPL-2.0

//! Bad memory and devices that go: the functions that memory-failure and block devices call.

use crate::{
    dax::{
        adopt,
        poison::{
            self,
            Cookie, //
        },
    },
    kern::{
        bdev::GoingDevice,
        bindings,
        dax::{
            DaxDevice,
            DaxPlace,
            FailedPlace, //
        },
        error::eopnotsupp,
        fs::{
            Mapping,
            PageIndex, //
        },
        memory,
        order::Order,
        page::{
            DevFolio,
            KeptOwner, //
        },
        redirect::{
            call_original,
            InFlight, //
        },
        xa::LeftLocked,
    }, //
};
use core::ptr::NonNull;
use kernel::ffi::{
    c_int,
    c_uint,
    c_ulong, //
};

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
    kept: Option<DevFolio<'_>>,
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
pub(super) unsafe extern "C" fn dax_lock_folio(
    folio: *mut bindings::folio,
) -> bindings::dax_entry_t {
    let mut in_flight = InFlight::enter();
    // SAFETY: By this function's safety requirements.
    let folio = unsafe { DevFolio::from_raw(NonNull::new_unchecked(folio)) };
    poison::lock_folio(folio, &mut in_flight).into_bits()
}

/// # Safety
///
/// As of the kernel's function; the folio is in a file on an adopted device.
pub(super) unsafe extern "C" fn dax_unlock_folio(
    folio: *mut bindings::folio,
    cookie: bindings::dax_entry_t,
) {
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
pub(super) unsafe extern "C" fn dax_lock_mapping_entry(
    mapping: *mut bindings::address_space,
    index: c_ulong,
    page: *mut *mut bindings::page,
) -> bindings::dax_entry_t {
    // SAFETY: By this function's safety requirements.
    let mapping = unsafe { Mapping::from_raw(NonNull::new_unchecked(mapping)) };
    let (cookie, found) = poison::lock_index(mapping, PageIndex::new(index));
    if let Some(found) = found {
        // SAFETY: By this function's safety requirements.
        unsafe { page.write(found.page_address()) };
    }
    cookie.into_bits()
}

/// # Safety
///
/// As of the kernel's function; the file is on an adopted device.
pub(super) unsafe extern "C" fn dax_unlock_mapping_entry(
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
pub(super) unsafe extern "C" fn bdev_mark_dead(bdev: *mut bindings::block_device, surprise: bool) {
    let mut in_flight = InFlight::enter();
    // SAFETY: By this function's safety requirements; the disk, and what the driver has of it, goes after this
    // only.
    let device = unsafe { GoingDevice::new(NonNull::new_unchecked(bdev)) };
    adopt::evict_device(&device, &mut in_flight);
    in_flight.pause(|| {
        memory::retire_rest(&device);
        // SAFETY: By this function's safety requirements.
        call_original(|| unsafe { bindings::bdev_mark_dead(bdev, surprise) });
    });
}

/// Somebody has the driver put zeroes on blocks: XFS and ext4 do for blocks that a file gets, and they may be bad.
///
/// # Safety
///
/// As of the kernel's function; the device is adopted.
pub(super) unsafe extern "C" fn blkdev_issue_zeroout(
    bdev: *mut bindings::block_device,
    sector: bindings::sector_t,
    sectors: bindings::sector_t,
    gfp: bindings::gfp_t,
    flags: c_uint,
) -> c_int {
    InFlight::enter().pause(|| {
        // SAFETY: By this function's safety requirements.
        call_original(|| unsafe {
            bindings::rdax_issue_zeroout(bdev, sector, sectors, gfp, flags, poison::was_seen())
        })
    })
}

/// Memory of the device has failed. If it is in a file of an adopted device whose filesystem does not
/// know which that is, the layer does.
///
/// # Safety
///
/// As of the kernel's function.
#[cfg(CONFIG_MEMORY_FAILURE)]
pub(super) unsafe extern "C" fn dax_holder_notify_failure(
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
/// The device is alive for `'d`, and has that page, whose page map is there as long.
#[cfg(CONFIG_MEMORY_FAILURE)]
unsafe fn failed_place<'d>(device: *mut bindings::dax_device, offset: u64) -> FailedPlace<'d> {
    // SAFETY: By this function's safety requirements.
    unsafe {
        let device = DaxDevice::from_raw(NonNull::new_unchecked(device));
        FailedPlace::new(DaxPlace::new(device, PageIndex::of_byte(offset).get()))
    }
}
