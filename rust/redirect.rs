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

use super::{
    bdev::Members,
    bindings,
    compat::this_module,
    once::Once,
    page::DevFolio, //
};
use core::{
    ffi::CStr,
    ptr::{
        self,
        NonNull, //
    },
};
use kernel::{
    error::to_result,
    ffi::{
        c_char,
        c_int,
        c_ulong,
        c_void, //
    },
    prelude::*,
    sync::atomic::{Acquire, Atomic, Relaxed, Release},
    sync::rcu,
    time::{
        delay::fsleep,
        Delta, //
    },
    types::Opaque, //
};

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
    /// filesystem is in use; it is not being unmounted.
    Evicted,
    /// `struct address_space *`
    Mapping,
    /// `struct vm_area_struct *`, which may have no file, or one without DAX.
    Vma,
    /// As for `Vma`, but the mapped area is the sixth argument.
    SixthVma,
    /// As for `Vma`, but the mapped area is the second argument; the sixth are the flags of a change of
    /// protection (`MM_CP_…`), and only what userfaultfd wants changed is about the set's files.
    UserfaultVma,
    /// `struct block_device *`, of any device: the replacement finds out whether one of the set is
    /// made of it, and calls the function on, with [`call_on`].
    BlockDevice,
    /// `struct dax_device *`, of any device: the replacement finds out whether it is about a file of
    /// the set's, and calls the function on, with [`call_on`].
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
}

/// A function of the kernel, and what serves in its place.
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
/// `unsafe extern "C" fn`. The kernel's function must be listed in `bindings.names`; that both have
/// the same signature is checked when the module is compiled.
macro_rules! target {
    ($name:ident, $key:expr, $replacement:path $(,)?) => {{
        const _: () = {
            // An array has one type: this compiles if the signatures are the same.
            let _ = [$crate::kern::bindings::$name, $replacement];
        };
        const NAME: &::core::ffi::CStr = {
            let name = ::core::concat!(::core::stringify!($name), "\0");
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

/// Calls of replaced functions that may go on although nothing of the file is held: neither the
/// inode nor the mount.
static IN_FLIGHT: Atomic<usize> = Atomic::new(0);

/// A call that nothing but this value keeps the module waiting for. The replacements of functions
/// with [`Key::Folio`] hold one from their first statement to their last.
#[must_use]
pub(crate) struct InFlight(());

impl InFlight {
    // Each end of a call pairs with the look in `quiesce`: whoever sees that no call is left may change
    // and free what calls look at. That a call which begins later sees what was changed before comes
    // from the grace period there, so its count needs no order.
    #[inline]
    pub(crate) fn enter() -> Self {
        IN_FLIGHT.add(1, Relaxed);
        Self(())
    }

    /// A call that a value was made for and forgotten.
    ///
    /// # Safety
    ///
    /// There is such a value, and this is its end.
    pub(crate) unsafe fn resume() -> Self {
        Self(())
    }

    /// Does what may take as long as others like. Meanwhile this value keeps nobody waiting, and the
    /// module is kept by a reference.
    pub(crate) fn pause<R>(&mut self, work: impl FnOnce() -> R) -> R {
        let module = this_module().as_ptr();
        // SAFETY: The module is live. The call was redirected for an adopted device, whose directory
        // keeps the module; and who releases the last device waits for this value.
        unsafe { bindings::__module_get(module) };
        IN_FLIGHT.fetch_sub(1, Release);
        let result = work();
        // The module ends in `settle`, which waits for this value again.
        IN_FLIGHT.add(1, Relaxed);
        // SAFETY: The reference is the one from above.
        unsafe { bindings::module_put(module) };
        result
    }
}

impl Drop for InFlight {
    #[inline]
    fn drop(&mut self) {
        IN_FLIGHT.fetch_sub(1, Release);
    }
}

/// Waits until every call that was redirected before, and that is not about a mounted filesystem,
/// has left the module's code but for its last instructions. Sleeps, not interruptible.
///
/// Calls about a mounted filesystem are over when it is not mounted any more, which is for the
/// caller to see to.
pub(crate) fn quiesce() {
    // A task that was preempted between the decision to redirect it and the replacement's first
    // instruction gets on, and into `IN_FLIGHT` if it sleeps.
    // SAFETY: Called where sleeping is allowed.
    unsafe { bindings::synchronize_rcu_tasks() };
    // Pairs with the end of each call (`InFlight`).
    //
    // Ends: no call comes any more, and none waits for others while it is counted.
    while IN_FLIGHT.load(Acquire) != 0 {
        fsleep(Delta::from_millis(10));
    }
}

/// Waits until no task is in the module's code on behalf of a redirected function, when no more come.
/// Sleeps, not interruptible.
pub(crate) fn settle() {
    quiesce();
    // SAFETY: Called where sleeping is allowed, when no filesystem is mounted that has files which are
    // not evicted yet.
    unsafe { bindings::rdax_parking_end() };
    // The last instructions of those who were in flight.
    // SAFETY: Called where sleeping is allowed.
    unsafe { bindings::synchronize_rcu_tasks() };
}

/// A table of functions that can be redirected together, and for whom: the members of a set of
/// block devices.
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

/// What [`callback`] needs of a target.
struct Route {
    /// Where ftrace knows the function; 0 until it was looked up.
    entry: Atomic<usize>,
    replacement: *const (),
    key: Key,
}

/// The right to switch a [`Redirection`]; there is one.
pub(crate) struct Handle {
    redirection: &'static Redirection,
    state: State,
    /// The first functions have the shorter way.
    direct: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Off,
    On,
    /// ftrace is broken and did not let go of the functions. They stay with the kernel's own code
    /// only as long as no device is adopted.
    Stuck,
}

impl Redirection {
    /// The most functions a table can have.
    const MAX_TARGETS: usize = 32;

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
            state: State::Off,
            direct: false,
        })
    }

    /// Looks up where ftrace knows the functions, which stays so. Sleeps.
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
                "this kernel has no function {}: rdax supports series 7.2 and 7.3\n",
                missing.name
            );
            return Err(ENOENT);
        }
        for (route, entry) in self.routes.iter().zip(entries) {
            route.entry.store(entry, Relaxed);
        }
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

impl Handle {
    /// Redirects all functions of the table, or none. No change if they are redirected already.
    /// Sleeps.
    ///
    /// Errors, each with a line in the log that says what to do: `ENOENT` for a function that this
    /// kernel does not have, `EBUSY` if somebody else holds one, `ENODEV` if ftrace is broken.
    pub(crate) fn register(&mut self) -> Result {
        match self.state {
            State::On => return Ok(()),
            State::Stuck => {
                pr_err!("ftrace did not give the functions back before; reboot\n");
                return Err(ENODEV);
            }
            State::Off => (),
        }
        let this = self.redirection;
        this.find_entries()?;
        let _switch = SWITCH.lock();

        let mut entries: [c_ulong; Redirection::MAX_TARGETS] = [0; Redirection::MAX_TARGETS];
        for (entry, route) in entries.iter_mut().zip(&this.routes) {
            *entry = route.entry.read_once();
        }
        let entries = entries.get_mut(..this.targets.len()).ok_or(EINVAL)?;
        let (first, others) = entries.split_at_mut(Redirection::DIRECT);

        // SAFETY: This is the handle, and nothing is registered in this state.
        self.direct = unsafe { this.register_direct(first) }.is_ok();
        let entries = if self.direct { others } else { entries };

        // Permanent: if tracing could be switched off meanwhile (kernel.ftrace_enabled), adopted
        // files would be left to the kernel's own code.
        let flags = bindings::FTRACE_OPS_FL_IPMODIFY | bindings::FTRACE_OPS_FL_PERMANENT;
        // SAFETY: This is the handle, and `ops` is not registered in this state.
        let result = unsafe { this.register(this.ops.get(), callback, flags as c_ulong, entries) };
        let Err(error) = result else {
            self.state = State::On;
            return result;
        };
        self.unregister_direct();
        if error == EBUSY && self.state == State::Off {
            // SAFETY: As above.
            unsafe { this.explain_busy() };
        } else {
            pr_err!("ftrace did not take the functions: {}\n", error.to_errno());
        }
        result
    }

    /// Gives back the functions that have the shorter way. Sleeps.
    fn unregister_direct(&mut self) {
        if !self.direct {
            return;
        }
        self.direct = false;
        // SAFETY: This is the handle, and it is registered.
        if let Err(error) = unsafe { self.redirection.unregister_direct() } {
            self.stuck(error);
        }
    }

    /// What may still be called must stay.
    fn stuck(&mut self, error: Error) {
        // SAFETY: The module is live, its own code is calling.
        unsafe { bindings::__module_get(this_module().as_ptr()) };
        pr_err!(
            "ftrace did not give the functions back ({}); the module stays loaded until reboot\n",
            error.to_errno()
        );
        self.state = State::Stuck;
    }

    /// Gives all functions of the table back, and waits until no task is in the module's code on
    /// their behalf. No device may be in the set. Sleeps.
    pub(crate) fn unregister(&mut self) {
        if self.state != State::On {
            return;
        }
        self.state = State::Off;
        let switch = SWITCH.lock();
        self.unregister_direct();
        // SAFETY: This is the handle, and `ops` is registered.
        if let Err(error) = unsafe { self.redirection.unregister(self.redirection.ops.get()) } {
            self.stuck(error);
        }
        drop(switch);
        if self.state == State::Stuck {
            return;
        }
        settle();
    }
}

/// The bytes of the call at a function's entry.
const CALL_SIZE: c_ulong = bindings::MCOUNT_INSN_SIZE as c_ulong;

/// The flags of a change of protection that userfaultfd wants.
const USERFAULT_CHANGES: c_ulong = bindings::MM_CP_USERFAULT;

type Callback =
    unsafe extern "C" fn(c_ulong, c_ulong, *mut bindings::ftrace_ops, *mut bindings::ftrace_regs);

/// What `rdax_direct_call` asks when another device is where the one of the call would be first.
///
/// # Safety
///
/// `members` is a [`Members`].
#[no_mangle]
unsafe extern "C" fn rdax_is_member(members: *const c_void, bdev: *const c_void) -> bool {
    // SAFETY: By the function's requirements.
    unsafe { &*members.cast::<Members>() }.has_device(bdev.cast())
}

/// The callback of a probe.
extern "C" fn nothing(
    _ip: c_ulong,
    _parent_ip: c_ulong,
    _ops: *mut bindings::ftrace_ops,
    _regs: *mut bindings::ftrace_regs,
) {
}

/// What a folio without a file is answered by: no entry was locked.
extern "C" fn no_entry() -> c_ulong {
    0
}

/// Called by ftrace at the entry of every function of the table. Every fault, read and write of
/// every DAX file comes through here, so it takes no lock, allocates nothing and calls nobody
/// (but for folios, which come here only when memory has failed).
///
/// # Safety
///
/// To be called by ftrace only, for an `ops` that [`Redirection::register`] set up.
unsafe extern "C" fn callback(
    ip: c_ulong,
    _parent_ip: c_ulong,
    ops: *mut bindings::ftrace_ops,
    regs: *mut bindings::ftrace_regs,
) {
    // SAFETY: `private` was set to a `Redirection` in static memory.
    let this = unsafe { &*(*ops).private.cast::<Redirection>() };
    let mut routes = this.routes.iter();
    let Some(route) = routes.find(|route| route.entry.read_once() == ip) else {
        return;
    };

    // With DYNAMIC_FTRACE_WITH_ARGS on x86, `ftrace_regs` is a `pt_regs` with the registers in it
    // that carry arguments, and the instruction pointer may be written.
    let regs = regs.cast::<bindings::pt_regs>();
    // SAFETY: ftrace passes the registers of the call. By the requirements of `Target::new`, the
    // argument that the key is about is a valid pointer to what it says. A file, an inode and a superblock
    // are alive while a function is called for them.
    let ours = unsafe {
        let first = (*regs).di;
        let inode = match route.key {
            Key::VmFault => {
                let vmf = first as *const bindings::vm_fault;
                (*(*(*(*vmf).__bindgen_anon_1.vma).vm_file).f_mapping).host
            }
            Key::Kiocb => {
                let iocb = first as *const bindings::kiocb;
                (*(*(*iocb).ki_filp).f_mapping).host
            }
            Key::Vma | Key::SixthVma | Key::UserfaultVma => {
                let vma = match route.key {
                    Key::SixthVma => (*regs).r9,
                    Key::UserfaultVma if (*regs).r9 & USERFAULT_CHANGES == 0 => return,
                    Key::UserfaultVma => (*regs).si,
                    _ => first,
                };
                let file = (*(vma as *const bindings::vm_area_struct)).vm_file;
                if file.is_null() {
                    return;
                }
                let host = (*(*file).f_mapping).host;
                // The function is not one of DAX alone.
                if host.is_null() || (*host).i_flags & bindings::S_DAX == 0 {
                    return;
                }
                host
            }
            Key::Inode => first as *mut bindings::inode,
            Key::Evicted => {
                let inode = first as *mut bindings::inode;
                if (*inode).i_flags & bindings::S_DAX == 0
                    || (*inode).i_data.i_pages.xa_head.is_null()
                    || (*(*inode).i_sb).s_flags & bindings::SB_ACTIVE as c_ulong == 0
                {
                    return;
                }
                inode
            }
            Key::Mapping => {
                if ANSWER.is_for(ip, first as usize) {
                    (*regs).ip = answer as *const () as c_ulong;
                    return;
                }
                (*(first as *const bindings::address_space)).host
            }
            Key::Folio | Key::LockedFolio => return this.redirect_folio(route, regs),
            Key::BlockDevice | Key::DaxDevice => return this.redirect_device(route, regs),
            Key::Error | Key::Unmount => return this.note(route, regs),
        };
        !inode.is_null() && this.members.has((*inode).i_sb)
    };
    if ours {
        // SAFETY: As above; ftrace goes on at the address that it finds here.
        unsafe { (*regs).ip = route.replacement as c_ulong };
    }
}

kernel::sync::global_lock! {
    // SAFETY: Made ready when the module is loaded, before anything is redirected.
    /// Held while functions are redirected or given back: the core lets one have a function only.
    pub(crate) unsafe(uninit) static SWITCH: Mutex<()> = ();
}

/// What `dax_lock_mapping_entry` answers for one address space that has no entries, while somebody
/// asks by way of the core ([`with_answer`]).
struct Answer {
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

static ANSWER: Answer = Answer {
    entry: Atomic::new(0),
    mapping: Atomic::new(ptr::null_mut()),
    page: Atomic::new(ptr::null_mut()),
    given: Atomic::new(false),
    ops: Opaque::zeroed(),
};

impl Answer {
    #[inline]
    fn is_for(&self, ip: c_ulong, mapping: usize) -> bool {
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
        if ANSWER.is_for(ip, (*regs).di as usize) {
            (*regs).ip = answer as *const () as c_ulong;
        }
    }
}

/// Serves in place of `dax_lock_mapping_entry`. There is nothing to be locked, nor to unlock.
///
/// # Safety
///
/// As of the kernel's function; for the mapping of [`ANSWER`].
unsafe extern "C" fn answer(
    _mapping: *mut bindings::address_space,
    _index: c_ulong,
    page: *mut *mut bindings::page,
) -> bindings::dax_entry_t {
    ANSWER.given.store(true, Relaxed);
    // SAFETY: By the function's requirements.
    unsafe { page.write(ANSWER.page.load(Relaxed)) };
    bindings::dax_entry_t::MAX
}

/// A task that is in [`call_on`]; on its stack.
struct Caller {
    task: *mut bindings::task_struct,
    /// The number of a frame that [`call_on_for`] was given, until it was found.
    sought: Atomic<usize>,
    next: *mut Caller,
}

/// No frame.
const NOTHING: usize = usize::MAX;

/// All of them.
///
/// # Invariants
///
/// Each is valid as long as it is in the list, which changes under [`CALLERS`]'s lock.
pub(crate) struct Callers(*mut Caller);

// SAFETY: What is in the list is looked at under its lock, and a task is only compared.
unsafe impl Send for Callers {}

kernel::sync::global_lock! {
    // SAFETY: Made ready when the module is loaded, before anything is redirected.
    pub(super) unsafe(uninit) static CALLERS: SpinLock<Callers> = Callers(ptr::null_mut());
}

/// Calls `look` with the current task's [`Caller`], if it is in [`call_on`]. Does not sleep.
fn with_caller<R>(look: impl FnOnce(&Caller) -> R) -> Option<R> {
    // SAFETY: Looks at the current task.
    let current = unsafe { bindings::rdax_current() };
    let callers = CALLERS.lock();
    let mut caller = callers.0;
    // SAFETY: By the type invariant of `Callers`.
    while let Some(this) = unsafe { caller.as_ref() } {
        if ptr::eq(this.task, current) {
            return Some(look(this));
        }
        caller = this.next;
    }
    None
}

/// Whether the current task is in [`call_on`].
#[inline]
pub(crate) fn is_calling_on() -> bool {
    with_caller(|_| ()).is_some()
}

/// Calls a function of a table with [`Key::BlockDevice`] or [`Key::DaxDevice`] from its replacement,
/// without being redirected. Others may do so meanwhile, however long it takes. Sleeps if the
/// function does.
pub(crate) fn call_on<R>(function: impl FnOnce() -> R) -> R {
    call_on_for(NOTHING, function).0
}

/// The same, and of what the function looks for on its way, only the frame `sought` is to be found
/// ([`is_sought`]). Returns whether it was, too.
pub(crate) fn call_on_for<R>(sought: usize, function: impl FnOnce() -> R) -> (R, bool) {
    let mut caller = Caller {
        // SAFETY: Looks at the current task.
        task: unsafe { bindings::rdax_current() },
        sought: Atomic::new(sought),
        next: ptr::null_mut(),
    };
    let this = &raw mut caller;
    {
        let mut callers = CALLERS.lock();
        // SAFETY: It is this function's own until it is in the list.
        unsafe { (*this).next = callers.0 };
        // INVARIANT: It is taken off the list below, where it is valid still.
        callers.0 = this;
    }
    let result = function();
    let mut callers = CALLERS.lock();
    let mut link: *mut *mut Caller = &raw mut callers.0;
    // SAFETY: By the type invariant of `Callers`; this one is in the list, which the lock allows to
    // change.
    unsafe {
        // Ends: this one is in the list.
        while *link != this {
            link = &raw mut (**link).next;
        }
        *link = (*this).next;
    }
    drop(callers);
    (result, caller.sought.read_once() == NOTHING)
}

/// Whether a frame may be given to whoever asks for what is in a place: if that is a function that
/// [`call_on_for`] has called, only the one that it looks for, once.
pub(crate) fn is_sought(frame: usize) -> bool {
    let found = with_caller(|caller| {
        caller.sought.read_once() == NOTHING
            || caller.sought.cmpxchg(frame, NOTHING, Relaxed).is_ok()
    });
    found.unwrap_or(true)
}

impl Redirection {
    /// The callback's part for devices, which are seldom asked about.
    ///
    /// # Safety
    ///
    /// `regs` are the registers of a call of the function, whose first argument is a device.
    #[cold]
    unsafe fn redirect_device(&self, route: &Route, regs: *mut bindings::pt_regs) {
        if is_calling_on() || route.key == Key::BlockDevice && self.members.is_empty() {
            return;
        }
        // SAFETY: ftrace goes on at the address that it finds here.
        unsafe { (*regs).ip = route.replacement as c_ulong };
    }

    /// The callback's part for calls that are only watched: what a filesystem says of itself.
    ///
    /// # Safety
    ///
    /// `regs` are the registers of a call of the function, whose first argument is a superblock.
    #[cold]
    unsafe fn note(&self, route: &Route, regs: *const bindings::pt_regs) {
        // SAFETY: By the function's requirements.
        unsafe {
            let sb = (*regs).di as *const bindings::super_block;
            if route.key == Key::Unmount {
                self.members.set_error(sb, false);
            } else if (*regs).dx as u32 == bindings::fserror_type_FSERR_METADATA
                && (*sb).s_flags & bindings::SB_ACTIVE as c_ulong != 0
            {
                // A shutdown is one.
                self.members.set_error(sb, true);
            }
        }
    }

    /// The callback's part for folios.
    ///
    /// # Safety
    ///
    /// `regs` are the registers of a call of the function, whose first argument is a folio.
    #[cold]
    unsafe fn redirect_folio(&self, route: &Route, regs: *mut bindings::pt_regs) {
        // SAFETY: By the function's requirements.
        let destination = match unsafe { self.has_folio((*regs).di as *const bindings::folio) } {
            Some(true) => route.replacement,
            Some(false) => return,
            // Whoever were asked would answer this, at this moment. If the call went on, the folio
            // could appear meanwhile in a file of the other's.
            None if route.key == Key::Folio => no_entry as *const (),
            None => return,
        };
        // SAFETY: As above; ftrace goes on at the address that it finds here.
        unsafe { (*regs).ip = destination as c_ulong };
    }

    /// Whether the folio is in a file of ours; `None` if it is in none.
    ///
    /// # Safety
    ///
    /// `folio` is a folio of device memory, or was one a moment ago.
    unsafe fn has_folio(&self, folio: *const bindings::folio) -> Option<bool> {
        let _guard = rcu::read_lock();
        // SAFETY: By the function's requirements.
        let folio = unsafe { DevFolio::from_raw(NonNull::new(folio.cast_mut())?) };
        let mapping = NonNull::new(folio.owner_unless_tail() as *mut bindings::address_space)?;
        if mapping.as_ptr() as usize & bindings::FOLIO_MAPPING_FLAGS as usize != 0 {
            return Some(false);
        }
        // SAFETY: The folio's mapping may change at any moment, but is cleared before the inode that
        // it lies in is freed, and that is after a grace period; the same goes for the superblock.
        // The low bits tell other things than mappings apart.
        unsafe {
            let host = ptr::read_volatile(&raw const (*mapping.as_ptr()).host);
            Some(!host.is_null() && self.members.has((*host).i_sb))
        }
    }
}

/// Where a call goes, for the KUnit tests.
#[cfg(RDAX_TEST)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Destination {
    /// To the kernel's function, as it was.
    Kernel,
    /// To what serves in its place.
    Ours,
    /// Nowhere: the answer is that no entry was locked.
    NoEntry,
    /// Somewhere else, which is wrong.
    Elsewhere,
}

#[cfg(RDAX_TEST)]
impl Redirection {
    /// The functions' names and what their first arguments are.
    pub(crate) fn targets(&self) -> impl Iterator<Item = (&'static CStr, Key)> {
        self.targets.iter().map(|target| (target.name, target.key))
    }

    /// Where ftrace's callback sends a call of the function with this number in the table.
    ///
    /// # Safety
    ///
    /// `first` is what the function's key says, whichever argument that is about.
    pub(crate) unsafe fn decide(&'static self, number: usize, first: usize) -> Destination {
        let Some(route) = self.routes.get(number) else {
            return Destination::Elsewhere;
        };
        let entry = route.entry.read_once();
        let mut regs: bindings::pt_regs = pin_init::zeroed();
        match route.key {
            Key::SixthVma => regs.r9 = first as c_ulong,
            Key::UserfaultVma => {
                regs.si = first as c_ulong;
                regs.r9 = USERFAULT_CHANGES;
            }
            _ => regs.di = first as c_ulong,
        }
        regs.dx = bindings::fserror_type_FSERR_METADATA as c_ulong;
        regs.ip = entry as c_ulong;
        let ops: Opaque<bindings::ftrace_ops> = Opaque::zeroed();
        // SAFETY: As ftrace would call it; `ops` is this function's own.
        unsafe {
            (*ops.get()).private = ptr::from_ref(self).cast_mut().cast();
            callback(entry as c_ulong, 0, ops.get(), (&raw mut regs).cast());
        }
        let ip = regs.ip as usize;
        if ip == entry {
            Destination::Kernel
        } else if ip == route.replacement as usize {
            Destination::Ours
        } else if ip == no_entry as *const () as usize {
            Destination::NoEntry
        } else {
            Destination::Elsewhere
        }
    }
}
