// SPDX-License-Identifier: GPL-2.0

//! An answer for the core, which asks what is in an address space that has no entries.

use super::SWITCH;
use crate::kern::{
    bindings,
    compat::this_module,
    once::Once, //
};
use core::ptr::{
    self,
    NonNull, //
};
use kernel::{
    ffi::c_ulong,
    prelude::*,
    sync::atomic::{Atomic, Relaxed, Release},
    types::Opaque, //
};

/// The answer of `dax_lock_mapping_entry` for one address space that has no entries, during a call through
/// the core ([`with_answer`]).
///
/// # Invariants
///
/// The address space, unless NULL, and the page are those of the one caller of [`with_answer`] that there
/// is at a time, and stay until it returns.
pub(super) struct Answer {
    /// Where ftrace knows the function; 0 until it was looked up.
    entry: Atomic<usize>,
    mapping: Atomic<*mut bindings::address_space>,
    page: Atomic<*mut bindings::page>,
    /// The core has asked.
    given: Atomic<bool>,
    ops: Opaque<bindings::ftrace_ops>,
}

// SAFETY: The `ftrace_ops` is used by the holder of `SWITCH`, and otherwise by ftrace, which has its
// own locks.
unsafe impl Sync for Answer {}

pub(super) static ANSWER: Answer = Answer {
    entry: Atomic::new(0),
    mapping: Atomic::new(ptr::null_mut()),
    page: Atomic::new(ptr::null_mut()),
    given: Atomic::new(false),
    ops: Opaque::zeroed(),
};

impl Answer {
    #[inline]
    pub(super) fn is_for(&self, ip: c_ulong, mapping: usize) -> bool {
        ip == self.entry.read_once() && mapping == self.mapping.load_acquire() as usize
    }
}

/// Looks up what [`with_answer`] needs. Sleeps.
pub(crate) fn prepare_answers() -> Result {
    let names = [c"dax_lock_mapping_entry".as_char_ptr()];
    let mut entries: [c_ulong; 1] = [0];
    // SAFETY: Both arrays have one element, and the name is a valid C string.
    let found = unsafe { bindings::rdax_function_entries(names.as_ptr(), entries.as_mut_ptr(), 1) };
    if found != 1 {
        return Err(ENOENT);
    }
    ANSWER.entry.store(entries[0], Relaxed);
    Ok(())
}

/// Calls `work`, during which the core finds `page` at whatever index it asks `mapping` for. Whether
/// it has asked. Sleeps.
///
/// False, and `work` may have been called in vain, if the function cannot be redirected: somebody else
/// holds it, or there is no memory.
///
/// # Safety
///
/// The page stays while `work` is at work. Nobody else asks for entries of `mapping`, which is not
/// that of a file.
pub(crate) unsafe fn with_answer(
    mapping: NonNull<bindings::address_space>,
    page: NonNull<bindings::page>,
    work: impl FnOnce(),
) -> bool {
    let _switch = SWITCH.lock();
    let mut entry = [ANSWER.entry.load(Relaxed)];
    if entry[0] == 0 {
        return false;
    }
    ANSWER.page.store(page.as_ptr(), Relaxed);
    ANSWER.given.store(false, Relaxed);
    // Pairs with `is_for`: whoever is asked about the mapping finds the page.
    ANSWER.mapping.store(mapping.as_ptr(), Release);
    let ops = ANSWER.ops.get();
    // While functions are redirected for adopted devices, this fails with EBUSY, and their callback
    // has the answer.
    let flags = bindings::FTRACE_OPS_FL_IPMODIFY | bindings::FTRACE_OPS_FL_PERMANENT;
    // SAFETY: `ops` is not registered while nobody holds `SWITCH`, and lives forever.
    let own = unsafe {
        (*ops).func = Some(answers);
        (*ops).flags |= flags as c_ulong;
        let filter = bindings::ftrace_set_filter_ips(ops, entry.as_mut_ptr(), 1, 0, 1);
        filter == 0 && bindings::register_ftrace_function(ops) == 0
    };
    work();
    ANSWER.mapping.store(ptr::null_mut(), Relaxed);
    if own {
        // SAFETY: Registered above.
        if unsafe { bindings::unregister_ftrace_function(ops) } != 0 {
            // ftrace is broken, and may call on.
            pr_err!("ftrace did not give a function back; the module stays loaded until reboot\n");
            // SAFETY: The module is live, its own code is calling.
            unsafe { bindings::__module_get(this_module().as_ptr()) };
            ANSWER.entry.store(0, Relaxed);
            return ANSWER.given.load(Relaxed);
        }
    }
    // SAFETY: `ops` is not registered.
    unsafe { bindings::ftrace_free_filter(ops) };
    ANSWER.given.load(Relaxed)
}

/// Called by ftrace at the entry of `dax_lock_mapping_entry`.
///
/// # Safety
///
/// To be called by ftrace only.
unsafe extern "C" fn answers(
    ip: c_ulong,
    _parent_ip: c_ulong,
    _ops: *mut bindings::ftrace_ops,
    regs: *mut bindings::ftrace_regs,
) {
    let regs = regs.cast::<bindings::pt_regs>();
    // SAFETY: ftrace passes the registers of the call, and goes on at the address that it finds in
    // them (see `callback`).
    unsafe {
        if ANSWER.is_for(ip, (*regs).di) {
            (*regs).ip = answer as *const () as c_ulong;
        }
    }
}

/// Serves in place of `dax_lock_mapping_entry`. There is nothing to be locked, nor to unlock.
///
/// # Safety
///
/// As of the kernel's function; for the mapping of [`ANSWER`].
pub(super) unsafe extern "C" fn answer(
    _mapping: *mut bindings::address_space,
    _index: c_ulong,
    page: *mut *mut bindings::page,
) -> bindings::dax_entry_t {
    ANSWER.given.store(true, Relaxed);
    // SAFETY: By the function's requirements.
    unsafe { page.write(ANSWER.page.load(Relaxed)) };
    bindings::dax_entry_t::MAX
}
