// SPDX-License-Identifier: GPL-2.0

//! Calls that were redirected and are not over.

use crate::kern::{
    bindings,
    compat::this_module, //
};
use kernel::{
    ffi::c_int,
    sync::atomic::{Acquire, Atomic, Relaxed, Release},
    time::{
        delay::fsleep,
        Delta, //
    }, //
};

/// Calls that are in the module's code and about no device.
static IN_MODULE: Atomic<usize> = Atomic::new(0);

/// A call of a replaced function that may look at what adopted devices have although nothing of a file is held: neither
/// the inode nor the mount. The replacements of functions with [`Key::Folio`](super::Key::Folio) hold one from their
/// first statement to their last.
///
/// # Invariants
///
/// A section of readers of `rdax_calls` (SRCU) is open, with this index.
#[must_use]
pub(crate) struct InFlight(c_int);

impl InFlight {
    // SRCU orders it: a call is over for those who wait in `quiesce`, with all that it has looked at, or it sees what they
    // have changed before.
    #[inline]
    pub(crate) fn enter() -> Self {
        // INVARIANT: It is begun here.
        // SAFETY: There are no requirements; it is ended once, by `pause` or when this is dropped.
        Self(unsafe { bindings::rdax_calls_enter() })
    }

    /// Does what may take as long as others like. Meanwhile this value keeps nobody waiting, and the
    /// module is kept by a reference.
    pub(crate) fn pause<R>(&mut self, work: impl FnOnce() -> R) -> R {
        let module = this_module().as_ptr();
        // SAFETY: The module is live: a directory keeps it while functions are redirected, and whoever gives
        // them back has that directory, and waits for this value.
        unsafe { bindings::__module_get(module) };
        // SAFETY: By the type invariant; `work` has no borrow of this.
        unsafe { bindings::rdax_calls_leave(self.0) };
        let result = work();
        // The module ends in `settle`, which waits for this value again.
        //
        // INVARIANT: It is begun anew.
        // SAFETY: As in `enter`.
        self.0 = unsafe { bindings::rdax_calls_enter() };
        // SAFETY: The reference is the one from above.
        unsafe { bindings::module_put(module) };
        result
    }
}

impl Drop for InFlight {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant; this is the end.
        unsafe { bindings::rdax_calls_leave(self.0) };
    }
}

/// A call that nothing but this value keeps the module waiting for, which looks at nothing that adopted devices have:
/// releasing one of several does not wait for it.
#[must_use]
pub(crate) struct InModule(());

impl InModule {
    // Its end pairs with the look in `settle`.
    #[inline]
    pub(crate) fn enter() -> Self {
        IN_MODULE.add(1, Relaxed);
        Self(())
    }
}

impl Drop for InModule {
    #[inline]
    fn drop(&mut self) {
        IN_MODULE.fetch_sub(1, Release);
    }
}

/// For C, where something is done later for a call: it begins.
///
/// # Safety
///
/// [`end_in_module`] is called afterwards.
pub(in crate::kern) unsafe extern "C" fn begin_in_module() {
    core::mem::forget(InModule::enter());
}

/// The same: it ends.
///
/// # Safety
///
/// A value was forgotten for the call that ends here.
pub(in crate::kern) unsafe extern "C" fn end_in_module() {
    drop(InModule(()));
}

/// Waits until every call that is in flight now, and that is not about a mounted filesystem, is over or paused. Sleeps,
/// not interruptible.
///
/// Calls about a mounted filesystem are over when it is not mounted any more, which is for the caller to see to. A task
/// that is redirected now, and in flight only later, is not waited for: it sees what the caller has changed before. Nor
/// are those that come meanwhile, so this ends, whatever others do: no call waits for others while it is in flight.
pub(crate) fn quiesce() {
    // SAFETY: Called where sleeping is allowed, by nobody who is in flight.
    unsafe { bindings::rdax_calls_synchronize() };
}

/// Waits until no task is in the module's code on behalf of a redirected function, when no more come.
/// Sleeps, not interruptible.
pub(crate) fn settle() {
    // A task that was preempted between the decision to redirect it and the replacement's first
    // instruction gets on, and into `IN_MODULE` or in flight if it sleeps.
    // SAFETY: Called where sleeping is allowed.
    unsafe { bindings::synchronize_rcu_tasks() };
    quiesce();
    // Pairs with the end of each call (`InModule`).
    //
    // Ends: no call comes any more, and none waits for others but for a grace period, as this does.
    while IN_MODULE.load(Acquire) != 0 {
        fsleep(Delta::from_millis(10));
    }
    // SAFETY: Called where sleeping is allowed, when no filesystem is mounted that has files which are
    // not evicted yet.
    unsafe { bindings::rdax_parking_end() };
    // SAFETY: As above.
    unsafe { bindings::rdax_large_puds_end() };
    // The last instructions of those who were in flight.
    // SAFETY: Called where sleeping is allowed.
    unsafe { bindings::synchronize_rcu_tasks() };
}
