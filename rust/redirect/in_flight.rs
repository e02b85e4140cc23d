// SPDX-License-Identifier: GPL-2.0

//! Calls that were redirected and are not over.

use crate::kern::{
    bindings,
    compat::this_module, //
};
use kernel::{
    sync::atomic::{Acquire, Atomic, Relaxed, Release},
    time::{
        delay::fsleep,
        Delta, //
    }, //
};

/// Calls of replaced functions that may go on although nothing of the file is held: neither the
/// inode nor the mount.
static IN_FLIGHT: Atomic<usize> = Atomic::new(0);

/// A call that nothing but this value keeps the module waiting for. The replacements of functions
/// with [`Key::Folio`](super::Key::Folio) hold one from their first statement to their last.
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
        // SAFETY: The module is live: a directory keeps it while functions are redirected, and whoever gives
        // them back has that directory, and waits for this value.
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

/// For C, where something is done later for a call: it begins.
///
/// # Safety
///
/// [`end_in_flight`] is called afterwards.
pub(in crate::kern) unsafe extern "C" fn begin_in_flight() {
    core::mem::forget(InFlight::enter());
}

/// The same: it ends.
///
/// # Safety
///
/// A value was forgotten for the call that ends here.
pub(in crate::kern) unsafe extern "C" fn end_in_flight() {
    // SAFETY: By this function's safety requirements.
    drop(unsafe { InFlight::resume() });
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
    // SAFETY: As above.
    unsafe { bindings::rdax_large_puds_end() };
    // The last instructions of those who were in flight.
    // SAFETY: Called where sleeping is allowed.
    unsafe { bindings::synchronize_rcu_tasks() };
}
