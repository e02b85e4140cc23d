// SPDX-License-Identifier: GPL-2.0

//! Counters that every CPU keeps for itself.
//!
//! C header: [`include/linux/percpu.h`](srctree/include/linux/percpu.h)

use super::bindings;
use core::{
    arch::asm,
    ptr::NonNull, //
};
use kernel::{
    alloc::AllocError,
    prelude::*, //
};

/// `N` counters. Counting is one instruction on memory of the CPU's own; only reading looks at the
/// other CPUs' memory.
///
/// # Invariants
///
/// The pointer is the base of a per-CPU allocation of `N` `u64`, owned by this value.
pub(crate) struct Counters<const N: usize>(NonNull<u64>);

// SAFETY: The memory belongs to no thread.
unsafe impl<const N: usize> Send for Counters<N> {}

// SAFETY: Counting is a single instruction on the memory of the CPU that executes it, and reading
// is atomic.
unsafe impl<const N: usize> Sync for Counters<N> {}

impl<const N: usize> Counters<N> {
    /// Counters that are all 0. Sleeps. Fails for want of memory.
    pub(crate) fn new() -> Result<Self, AllocError> {
        // SAFETY: May be called wherever sleeping is allowed, which is the caller's to see to as
        // with any allocation.
        let base = unsafe { bindings::rdax_alloc_percpu_u64(N) };
        // INVARIANT: The helper allocates as many `u64` as it is told.
        NonNull::new(base).map(Self).ok_or(AllocError)
    }

    /// Adds `n` to the counter at `index`; one that does not exist is not counted. Needs nothing
    /// held and does not sleep.
    #[inline(always)]
    pub(crate) fn add(&self, index: usize, n: u64) {
        if index >= N {
            return;
        }
        let counter = self.0.as_ptr().wrapping_add(index);
        #[cfg(CONFIG_SMP)]
        // SAFETY: By the type invariant the sum of the CPU's base, which is in `gs`, and `counter`
        // is the address of this CPU's counter, and `index` is inside the allocation.
        unsafe {
            asm!("add qword ptr gs:[{}], {}", in(reg) counter, in(reg) n, options(nostack))
        };
        #[cfg(not(CONFIG_SMP))]
        // SAFETY: With a single CPU the allocation is plain memory. As above.
        unsafe {
            asm!("add qword ptr [{}], {}", in(reg) counter, in(reg) n, options(nostack))
        };
    }

    /// The sum over all CPUs of the counter at `index`, while they may be counting.
    pub(crate) fn sum(&self, index: usize) -> u64 {
        if index >= N {
            return 0;
        }
        // SAFETY: By the type invariant, and `index` is inside the allocation.
        unsafe { bindings::rdax_sum_percpu_u64(self.0.as_ptr().wrapping_add(index)) }
    }
}

impl<const N: usize> Drop for Counters<N> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the allocation is this value's own.
        unsafe { bindings::free_percpu(self.0.as_ptr().cast()) };
    }
}
