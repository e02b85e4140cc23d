// SPDX-License-Identifier: GPL-2.0

//! Read-write semaphores that cost a reader next to nothing, and a writer much.
//!
//! C header: [`include/linux/percpu-rwsem.h`](srctree/include/linux/percpu-rwsem.h)

use super::bindings;
use core::marker::PhantomData;
use kernel::{
    error::to_result,
    prelude::*,
    types::{
        NotThreadSafe,
        Opaque, //
    }, //
};

/// A per-CPU read-write semaphore.
///
/// # Invariants
///
/// The semaphore is initialised.
#[pin_data(PinnedDrop)]
pub(crate) struct PercpuRwSemaphore {
    #[pin]
    sem: Opaque<bindings::percpu_rw_semaphore>,
}

// SAFETY: The semaphore may be freed by any thread.
unsafe impl Send for PercpuRwSemaphore {}

// SAFETY: It is made for being used by many.
unsafe impl Sync for PercpuRwSemaphore {}

impl PercpuRwSemaphore {
    /// A semaphore that nobody holds. Sleeps. Fails for want of memory.
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            // SAFETY: The pointer is to memory for a semaphore that stays where it is.
            sem <- Opaque::try_ffi_init(|sem| to_result(unsafe {
                bindings::rdax_percpu_init_rwsem(sem)
            })),
        })
    }

    /// Takes the semaphore together with other readers. Sleeps while there is a writer.
    #[inline]
    pub(crate) fn read(&self) -> ReadGuard<'_> {
        // SAFETY: By the type invariant.
        unsafe { bindings::rdax_percpu_down_read(self.sem.get()) };
        ReadGuard {
            sem: self,
            _not_send: PhantomData,
        }
    }

    /// Waits until all readers have left and runs `f` while there are none. Sleeps, at least for a
    /// grace period of RCU.
    pub(crate) fn write<R>(&self, f: impl FnOnce() -> R) -> R {
        // SAFETY: By the type invariant.
        unsafe { bindings::percpu_down_write(self.sem.get()) };
        let result = f();
        // SAFETY: By the type invariant, and it was taken above.
        unsafe { bindings::percpu_up_write(self.sem.get()) };
        result
    }
}

#[pinned_drop]
impl PinnedDrop for PercpuRwSemaphore {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariant. Nobody holds it, as that would borrow this value.
        unsafe { bindings::percpu_free_rwsem(self.sem.get()) };
    }
}

/// The semaphore is held for reading.
pub(crate) struct ReadGuard<'a> {
    sem: &'a PercpuRwSemaphore,
    _not_send: PhantomData<NotThreadSafe>,
}

impl Drop for ReadGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant, and this value stands for it being held.
        unsafe { bindings::rdax_percpu_up_read(self.sem.sem.get()) };
    }
}
