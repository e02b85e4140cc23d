// SPDX-License-Identifier: GPL-2.0

//! Conditions that a test runs under: RCU, want of memory, signals.

use crate::kern::{bindings, page::DevFolio};
use kernel::{
    prelude::*,
    sync::rcu, //
};

/// Keeps the present task inside a grace period of RCU.
pub(crate) fn under_rcu<R>(work: impl FnOnce() -> R) -> R {
    let _guard = rcu::read_lock();
    work()
}

/// Has the `nth` allocation of this task fail, counted from 1, while `work` is done. Returns
/// whether it came to that.
pub(crate) fn with_failing_allocation<R>(nth: u32, work: impl FnOnce() -> R) -> (R, bool) {
    // SAFETY: Concerns this task only.
    unsafe { bindings::rdax_test_fail_nth(nth) };
    let result = work();
    // SAFETY: As above.
    let left = unsafe { bindings::rdax_test_left_nth() };
    // SAFETY: As above.
    unsafe { bindings::rdax_test_fail_nth(0) };
    (result, left == 0)
}

/// Has all allocations of this task fail while `work` is done.
pub(crate) fn without_memory<R>(work: impl FnOnce() -> R) -> R {
    // SAFETY: Concerns this task only.
    unsafe { bindings::rdax_test_fail_all(true) };
    let result = work();
    // SAFETY: As above.
    unsafe { bindings::rdax_test_fail_all(false) };
    result
}

/// Who asks for zeroes on a made-up filesystem of ext4 (`rdax_test_ext4_gives`).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ext4Zeroes {
    /// With `GFP_NOFS`.
    pub(crate) nofs: bool,
    /// With a handle of the journal.
    pub(crate) handle: bool,
    /// The driver is that of ext4.
    pub(crate) ext4: bool,
}

impl Ext4Zeroes {
    pub(crate) const OF_A_FILE: Self = Self {
        nofs: true,
        handle: true,
        ext4: true,
    };

    /// Whether these blocks are taken to be given to a file. Sleeps.
    pub(crate) fn gives(self, first: u64, blocks: u64) -> Result<bool> {
        // SAFETY: Makes what it reads, and concerns this task only.
        let gives = unsafe {
            bindings::rdax_test_ext4_gives(first, blocks, self.nofs, self.handle, self.ext4)
        };
        kernel::error::to_result(gives.min(0)).map(|()| gives != 0)
    }
}

/// Has no folio of zeroes to map while `work` is done.
pub(crate) fn without_zeroes<R>(work: impl FnOnce() -> R) -> R {
    // SAFETY: Only a switch.
    unsafe { bindings::rdax_test_withhold_zeroes(true) };
    let result = work();
    // SAFETY: As above.
    unsafe { bindings::rdax_test_withhold_zeroes(false) };
    result
}

/// Makes no page table of the lowest level while `work` is done.
pub(crate) fn without_tables<R>(work: impl FnOnce() -> R) -> R {
    // SAFETY: Only a switch.
    unsafe { bindings::rdax_test_withhold_tables(true) };
    let result = work();
    // SAFETY: As above.
    unsafe { bindings::rdax_test_withhold_tables(false) };
    result
}

/// Forgets the signals that came to this thread.
pub(crate) fn flush_signals() {
    // SAFETY: Concerns this task only.
    unsafe { bindings::rdax_test_flush_signals() };
}

/// A reference to a folio, of somebody who does input or output.
pub(crate) fn hold(folio: DevFolio<'_>) -> crate::kern::page::FolioRef {
    folio.get()
}
