// SPDX-License-Identifier: GPL-2.0

//! Redirection of kernel functions, for the files of adopted devices only.
//!
//! ftrace calls [`callback`] at the entry of every function of the table, and the callback sends
//! the call to the replacement if the file that the call is about lies on an adopted device. All
//! functions share one `struct ftrace_ops`, and so one trampoline: they are redirected and given
//! back together, and giving back waits for one grace period, not for one per function.
//!
//! The two most frequent functions, the first of the table, have a shorter way, because the way to
//! a callback costs more than the decision: ftrace calls `rdax_direct_call` (direct.c), which decides
//! in the same way. A function can be attached to by one such only: where somebody else is (BPF),
//! they are left to the callback like the others.
//!
//! C header: [`include/linux/ftrace.h`](srctree/include/linux/ftrace.h)

mod answer;
mod callback;
mod eviction;
mod handle;
mod in_flight;
mod original;

pub(crate) use answer::{prepare_answers, with_answer};
#[cfg(RDAX_TEST)]
pub(crate) use callback::Destination;
#[cfg(RDAX_TEST)]
pub(crate) use eviction::sees_evictions;
pub(crate) use handle::Handle;
use handle::SwitchState;
pub(super) use in_flight::{begin_in_module, end_in_module};
pub(crate) use in_flight::{quiesce, settle, InFlight, InModule};
pub(crate) use original::{call_original, call_original_for, end_original, is_sought, CALLERS};

use super::{
    bindings,
    members::Members,
    once::Once,
    prototypes, //
};
use core::{
    ffi::CStr,
    ptr, //
};
use kernel::{
    error::to_result,
    ffi::{
        c_char,
        c_ulong, //
    },
    prelude::*,
    sync::atomic::{Atomic, Relaxed},
    types::Opaque, //
};

kernel::sync::global_lock! {
    // SAFETY: Made ready when the module is loaded, before anything is redirected.
    /// Held while functions are redirected or given back: the core lets one have a function only.
    pub(crate) unsafe(uninit) static SWITCH: Mutex<()> = ();
}

/// How the superblock is found that a call is about: what the function's first argument is, if it is
/// not said to be another.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Key {
    /// `struct vm_fault *`
    VmFault,
    /// `struct kiocb *`
    Kiocb,
    /// `struct inode *`
    Inode,
    /// `struct inode *` of any file. The replacement serves those with entries while their
    /// filesystem is in use; it is not being unmounted. It may call the function, with
    /// [`call_original`].
    Evicted,
    /// `struct inode *`, which may be without DAX.
    AnyInode,
    /// `struct address_space *`
    Mapping,
    /// `struct address_space *` of any file, which may be without DAX, or of none.
    AnyMapping,
    /// `struct address_space *` of any file. As for `Evicted`.
    Truncated,
    /// `struct vm_area_struct *`, which may have no file, or one without DAX.
    Vma,
    /// As for `Vma`, but the mapped area is the sixth argument.
    SixthVma,
    /// As for `Vma`, but the mapped area is the second argument, whose protection changes: the fifth is the new
    /// one, the sixth are flags (`MM_CP_…`). Only what userfaultfd wants changed, and a protection with which nobody
    /// may access the memory, is about the set's files.
    ProtectedVma,
    /// As for `Vma`. The replacement calls the function on, past where it is redirected.
    SplitVma,
    /// As for `SplitVma`, but the mapped area is the second argument.
    ZappedVma,
    /// `struct mm_struct *`, of anybody. The replacement calls the function on, past where it is redirected.
    Mm,
    /// `pud_t *`, an entry that was taken for a broken one, of anybody. Only one that is not broken any more
    /// ([`rdax_pud_is_broken`](bindings::rdax_pud_is_broken)) is redirected.
    ClearedPud,
    /// `struct block_device *`, of any device: the replacement finds out whether one of the set is
    /// made of it, and calls the function on, with [`call_original`].
    BlockDevice,
    /// `struct block_device *` of the set. The replacement calls the function on, with [`call_original`].
    Member,
    /// `struct dax_device *`, of any device: the replacement finds out whether it is about a file of
    /// the set's, and calls the function on, with [`call_original`].
    DaxDevice,
    /// `struct folio *` that nothing keeps in its file. The function must return a
    /// `dax_entry_t`: for a folio that is in no file the call is answered with 0.
    Folio,
    /// `struct folio *` that the caller keeps in its file.
    LockedFolio,
    /// `struct super_block *`, with the kind of an error in the third argument. The call is only
    /// watched, and goes on.
    Error,
    /// `struct super_block *` that is about to be unmounted. The call is only watched, and goes on.
    Unmount,
    /// `struct super_block *`, one of whose active references is put. The replacement may call the function,
    /// with [`end_original`].
    Active,
}

/// A function of the kernel, and what serves in its place.
///
/// # Invariants
///
/// The replacement is a function of the type that the named one has, and may be called wherever that may.
pub(crate) struct Target {
    name: &'static CStr,
    key: Key,
    replacement: *const (),
}

// SAFETY: `replacement` is the address of code and never dereferenced.
unsafe impl Sync for Target {}

impl Target {
    /// # Safety
    ///
    /// `replacement` is a function with the signature of the kernel's function `name`, and `key`
    /// describes its first argument, or the one that it names. Use [`target!`](crate::kern::redirect::target), which checks
    /// the signature.
    pub(crate) const unsafe fn new(name: &'static CStr, key: Key, replacement: *const ()) -> Self {
        Self {
            name,
            key,
            replacement,
        }
    }
}

/// A [`Target`]: `target!(dax_iomap_fault, Key::VmFault, replacement)`. The replacement is an
/// `unsafe extern "C" fn`. The kernel's function must be listed in `bindings.names` and in `prototypes`;
/// that both have the same signature is checked when the module is compiled.
macro_rules! target {
    ($name:ident, $key:expr, $replacement:path $(,)?) => {{
        const _: () = {
            // An array has one type: this compiles if the signatures are the same.
            let _ = [$crate::kern::bindings::$name, $replacement];
        };
        const NAME: &::core::ffi::CStr = {
            let name = ::core::concat!(::core::stringify!($name), "\0");
            ::core::assert!($crate::kern::prototypes::declares(name.as_bytes()));
            match ::core::ffi::CStr::from_bytes_with_nul(name.as_bytes()) {
                Ok(name) => name,
                Err(_) => ::core::panic!(),
            }
        };
        // SAFETY: The signatures were compared above. The key is a matter of reading the table.
        unsafe { $crate::kern::redirect::Target::new(NAME, $key, $replacement as *const ()) }
    }};
}
pub(crate) use target;

/// A table of functions that can be redirected together, and for whom: the members of a set of
/// block devices.
///
/// # Invariants
///
/// The routes are those of the targets, as many as there are. What ftrace calls is registered by the holder
/// of the only [`Handle`].
pub(crate) struct Redirection {
    /// One for each target, in the same order.
    routes: [Route; Self::MAX_TARGETS],
    ops: Opaque<bindings::ftrace_ops>,
    /// For the functions with the shorter way.
    #[cfg(CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS)]
    direct: Opaque<bindings::ftrace_ops>,
    /// For finding out which function is the one that cannot be redirected.
    probe: Opaque<bindings::ftrace_ops>,
    targets: &'static [Target],
    members: &'static Members,
    taken: Atomic<bool>,
}

// SAFETY: The `ftrace_ops` are used by the holder of the only `Handle`, and otherwise by ftrace,
// which has its own locks. The replacements are addresses of code and never dereferenced.
unsafe impl Sync for Redirection {}

/// The part of a target that [`callback`] needs.
///
/// # Invariants
///
/// The replacement is that of the target, and the entry 0 or where ftrace calls from for it.
struct Route {
    /// Where ftrace knows the function; 0 until it was looked up.
    entry: Atomic<usize>,
    replacement: *const (),
    key: Key,
}

impl Redirection {
    /// The most functions a table can have.
    const MAX_TARGETS: usize = 44;

    /// The functions that may have the shorter way: `dax_iomap_fault` and `dax_iomap_rw`, which
    /// must be the first of a table.
    const DIRECT: usize = 2;

    pub(crate) const fn new(targets: &'static [Target], members: &'static Members) -> Self {
        assert!(targets.len() <= Self::MAX_TARGETS);
        assert!(matches!(targets[0].key, Key::VmFault) && matches!(targets[1].key, Key::Kiocb));
        let mut routes = [const {
            Route {
                entry: Atomic::new(0),
                replacement: ptr::null(),
                key: Key::Inode,
            }
        }; Self::MAX_TARGETS];
        let mut i = 0;
        while i < targets.len() {
            routes[i].replacement = targets[i].replacement;
            routes[i].key = targets[i].key;
            i += 1;
        }
        Self {
            routes,
            ops: Opaque::zeroed(),
            #[cfg(CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS)]
            direct: Opaque::zeroed(),
            probe: Opaque::zeroed(),
            targets,
            members,
            taken: Atomic::new(false),
        }
    }

    /// The handle, for the first who asks.
    pub(crate) fn handle(&'static self) -> Option<Handle> {
        if self.taken.xchg(true, Relaxed) {
            return None;
        }
        Some(Handle {
            redirection: self,
            state: SwitchState::Off,
            direct: false,
            ext4: false,
        })
    }

    /// Looks up where ftrace knows the functions, which stays so, and whether they are those that the
    /// module was made for. Sleeps.
    fn find_entries(&self) -> Result {
        if self.routes[0].entry.load(Relaxed) != 0 {
            return Ok(());
        }
        let mut names: [*const c_char; Self::MAX_TARGETS] = [ptr::null(); Self::MAX_TARGETS];
        let mut entries: [c_ulong; Self::MAX_TARGETS] = [0; Self::MAX_TARGETS];

        for (name, target) in names.iter_mut().zip(self.targets) {
            *name = target.name.as_char_ptr();
        }
        // SAFETY: Both arrays have room for as many elements as are asked for, and the names are
        // valid C strings.
        let found = unsafe {
            bindings::rdax_function_entries(
                names.as_ptr(),
                entries.as_mut_ptr(),
                self.targets.len() as c_int,
            )
        };
        if found < 0 {
            return to_result(found);
        }
        if let Some(missing) = self.targets.get(found as usize) {
            pr_err!(
                "this kernel has no function {}: rdax was tested with series {}\n",
                missing.name,
                env!("RDAX_SERIES")
            );
            return Err(ENOENT);
        }
        prototypes::check()?;
        for (route, entry) in self.routes.iter().zip(entries) {
            route.entry.store(entry, Relaxed);
        }
        let behind = |key| {
            let mut routes = self.routes.iter();
            let route = routes.find(|route| route.key == key);
            route.map_or(0, |route| route.entry.load(Relaxed) as c_ulong + CALL_SIZE)
        };
        // SAFETY: Nothing is redirected yet, and these are the functions that are meant.
        unsafe {
            bindings::rdax_large_puds_begin(
                behind(Key::ZappedVma),
                behind(Key::SplitVma),
                behind(Key::Mm),
            )
        };
        Ok(())
    }

    /// Has ftrace call `func` with `ops` at the entries.
    ///
    /// # Safety
    ///
    /// The caller holds the handle, `ops` is one of this value's and not registered.
    unsafe fn register(
        &'static self,
        ops: *mut bindings::ftrace_ops,
        func: Callback,
        flags: c_ulong,
        entries: &mut [c_ulong],
    ) -> Result {
        // SAFETY: Nobody else uses `ops` while it is not registered. It lives forever.
        unsafe {
            (*ops).func = Some(func);
            (*ops).private = ptr::from_ref(self).cast_mut().cast();
            (*ops).flags |= flags;
            to_result(bindings::ftrace_set_filter_ips(
                ops,
                entries.as_mut_ptr(),
                entries.len() as u32,
                0,
                1,
            ))?;
            let result = to_result(bindings::register_ftrace_function(ops));
            if result.is_err() {
                bindings::ftrace_free_filter(ops);
            }
            result
        }
    }

    /// Stops what [`Redirection::register`] started, and waits until nobody is in the trampoline.
    ///
    /// # Safety
    ///
    /// The caller holds the handle, and `ops` is registered.
    unsafe fn unregister(&'static self, ops: *mut bindings::ftrace_ops) -> Result {
        // SAFETY: By the function's requirements.
        unsafe {
            to_result(bindings::unregister_ftrace_function(ops))?;
            bindings::ftrace_free_filter(ops);
        }
        Ok(())
    }

    /// Has ftrace call `rdax_direct_call` at the first entries.
    ///
    /// Errors: `EBUSY` when somebody else has attached something to one of the functions that does
    /// not go together with that.
    ///
    /// # Safety
    ///
    /// The caller holds the handle, and nothing is registered.
    #[cfg(CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS)]
    unsafe fn register_direct(&'static self, entries: &mut [c_ulong]) -> Result {
        let (Some(fault), Some(rw), Some(&entry)) =
            (self.targets.first(), self.targets.get(1), entries.first())
        else {
            return Err(EINVAL);
        };
        let ops = self.direct.get();
        // SAFETY: Nobody comes through `rdax_direct_call`, nor uses `ops`, while that is not
        // registered, and the caller is the only one to register it. The entries are those of the
        // functions that it is made for, and both have replacements of the same signature.
        unsafe {
            bindings::rdax_direct_set(&bindings::rdax_direct {
                members: ptr::from_ref(self.members).cast(),
                fault_return: entry + CALL_SIZE,
                fault_to: fault.replacement as c_ulong,
                rw_to: rw.replacement as c_ulong,
            });
            (*ops).flags |= bindings::FTRACE_OPS_FL_PERMANENT as c_ulong;
            to_result(bindings::ftrace_set_filter_ips(
                ops,
                entries.as_mut_ptr(),
                entries.len() as u32,
                0,
                1,
            ))?;
            let result = to_result(bindings::register_ftrace_direct(ops, Self::direct_call()));
            if result.is_err() {
                bindings::ftrace_free_filter(ops);
            }
            result
        }
    }

    /// Stops what [`Redirection::register_direct`] started. Somebody may still be on the way.
    ///
    /// # Safety
    ///
    /// The caller holds the handle, and it is registered.
    #[cfg(CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS)]
    unsafe fn unregister_direct(&'static self) -> Result {
        // SAFETY: By the function's requirements.
        to_result(unsafe {
            bindings::unregister_ftrace_direct(self.direct.get(), Self::direct_call(), true)
        })
    }

    #[cfg(CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS)]
    fn direct_call() -> c_ulong {
        bindings::rdax_direct_call as *const () as c_ulong
    }

    #[cfg(not(CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS))]
    unsafe fn register_direct(&'static self, _entries: &mut [c_ulong]) -> Result {
        Err(super::error::eopnotsupp())
    }

    #[cfg(not(CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS))]
    unsafe fn unregister_direct(&'static self) -> Result {
        Ok(())
    }

    /// Says why the functions could not be redirected.
    ///
    /// # Safety
    ///
    /// The caller holds the handle, and nothing is registered.
    unsafe fn explain_busy(&'static self) {
        for (target, route) in self.targets.iter().zip(&self.routes) {
            let mut entry = [route.entry.read_once()];
            // SAFETY: By the function's requirements; `probe` is not registered.
            let result = unsafe {
                self.register(
                    self.probe.get(),
                    nothing,
                    bindings::FTRACE_OPS_FL_IPMODIFY as c_ulong,
                    &mut entry,
                )
            };
            if result == Err(EBUSY) {
                pr_err!(
                    "{} is held by somebody else, a live patch (see /sys/kernel/livepatch) or another module; its line in /sys/kernel/tracing/enabled_functions may say who; have it let go and adopt again\n",
                    target.name
                );
                return;
            }
            // SAFETY: Registered above.
            if result.is_err() || unsafe { self.unregister(self.probe.get()) }.is_err() {
                return;
            }
        }
        pr_err!("the kernel's DAX functions were held by somebody else; adopt again\n");
    }
}

/// The bytes of the call at a function's entry.
const CALL_SIZE: c_ulong = bindings::MCOUNT_INSN_SIZE as c_ulong;

type Callback =
    unsafe extern "C" fn(c_ulong, c_ulong, *mut bindings::ftrace_ops, *mut bindings::ftrace_regs);

/// The callback of a probe.
extern "C" fn nothing(
    _ip: c_ulong,
    _parent_ip: c_ulong,
    _ops: *mut bindings::ftrace_ops,
    _regs: *mut bindings::ftrace_regs,
) {
}
