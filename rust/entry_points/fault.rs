// SPDX-License-Identifier: GPL-2.0

//! Page faults.

use crate::{
    dax::{
        adopt,
        fault, //
    },
    kern::{
        bindings,
        dax::DaxIdentity,
        iomap::IomapOps,
        order::Order,
        page::Pfn,
        redirect::{
            begin_in_module,
            call_original,
            end_in_module,
            InFlight, //
        },
        vm::{
            FaultCode,
            VmFault, //
        },
    }, //
};
use core::ptr::NonNull;
use kernel::ffi::{
    c_int,
    c_uint,
    c_ulong, //
};

/// # Safety
///
/// As of the kernel's function; the file is on an adopted device.
pub(in crate::kern) unsafe extern "C" fn dax_iomap_fault(
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
    // A table is to be made in the place of an entry of 1 GiB that somebody may still have seen.
    let is_for_table = order as usize == Order::PUD.bits()
        && outcome.code == FaultCode::FALLBACK
        // SAFETY: By this function's safety requirements; a fault of this order has its entry.
        && unsafe { bindings::rdax_table_is_for_later(vmf) };
    if is_for_table || outcome.code == FaultCode::LATER {
        // SAFETY: By this function's safety requirements; nobody uses the fault any more.
        return unsafe {
            bindings::rdax_fault_later(
                vmf,
                is_for_table,
                Some(begin_in_module),
                Some(end_in_module),
            )
        };
    }
    outcome.code.0
}

/// # Safety
///
/// As of the kernel's function; the file is on an adopted device.
pub(in crate::kern) unsafe extern "C" fn dax_finish_sync_fault(
    vmf: *mut bindings::vm_fault,
    order: c_uint,
    pfn: c_ulong,
) -> bindings::vm_fault_t {
    // SAFETY: By this function's safety requirements.
    let vmf = unsafe { VmFault::from_raw(NonNull::new_unchecked(vmf)) };
    // The number is the one that `dax_iomap_fault` gave; it is only compared.
    fault::finish_sync_fault(vmf, order, Pfn::from_bits(pfn)).0
}

/// Whether files on a device may be mapped with `MAP_SYNC` (`dax_synchronous`). The kernel's own answer is
/// sometimes that of a device that was there before.
///
/// # Safety
///
/// As of the kernel's function.
pub(super) unsafe extern "C" fn dax_synchronous(device: *mut bindings::dax_device) -> bool {
    let mut in_flight = InFlight::enter();
    if DaxIdentity::of(device).is_some_and(|dax| adopt::is_asynchronous(dax, &in_flight)) {
        return false;
    }
    in_flight.pause(|| {
        // SAFETY: By this function's safety requirements.
        call_original(|| unsafe { bindings::dax_synchronous(device) })
    })
}
