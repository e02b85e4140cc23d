// SPDX-License-Identifier: GPL-2.0

//! The differences of the `kernel` crate between the kernels that the module is built for, and nothing
//! else does: Kbuild asks the kernel's sources (`RDAX_HAVE_…`), not its number. `compat.h` is the same
//! for C.

use kernel::{
    prelude::*,
    ThisModule, //
};

/// Macros of the `kernel` crate name it where they are used.
#[cfg(not(RDAX_HAVE_THIS_MODULE_FN))]
pub(crate) use crate::THIS_MODULE;

/// This module, as the kernel knows it.
#[inline]
pub(crate) const fn this_module() -> &'static ThisModule {
    #[cfg(RDAX_HAVE_THIS_MODULE_FN)]
    return kernel::module::this_module::<crate::LocalModule>();
    #[cfg(not(RDAX_HAVE_THIS_MODULE_FN))]
    return &THIS_MODULE;
}

#[cfg(RDAX_HAVE_SRCU)]
pub(crate) use kernel::sync::{srcu::Guard as SrcuGuard, Srcu};
#[cfg(not(RDAX_HAVE_SRCU))]
pub(crate) use own_srcu::{Srcu, SrcuGuard};

/// Makes an [`Srcu`]. Sleeps. Fails for want of memory.
pub(crate) fn new_srcu() -> impl PinInit<Srcu, Error> {
    #[cfg(RDAX_HAVE_SRCU)]
    return kernel::new_srcu!("rdax_stays");
    #[cfg(not(RDAX_HAVE_SRCU))]
    return Srcu::new();
}

/// `kernel::sync::Srcu`, as far as it is used here.
#[cfg(not(RDAX_HAVE_SRCU))]
mod own_srcu {
    use crate::kern::bindings;
    use core::ptr::NonNull;
    use kernel::{
        prelude::*,
        types::NotThreadSafe, //
    };

    /// # Invariants
    ///
    /// The pointer is to an initialised `srcu_struct` of this value's own.
    pub(crate) struct Srcu(NonNull<bindings::rdax_srcu>);

    // SAFETY: SRCU may be used by all threads at once, and ended by any.
    unsafe impl Send for Srcu {}
    // SAFETY: As above.
    unsafe impl Sync for Srcu {}

    impl Srcu {
        pub(super) fn new() -> impl PinInit<Self, Error> {
            let make = |slot: *mut Self| {
                // SAFETY: May be called by whoever may sleep.
                let raw = NonNull::new(unsafe { bindings::rdax_srcu_new() }).ok_or(ENOMEM)?;
                // SAFETY: The slot is valid for writes.
                unsafe { slot.write(Self(raw)) };
                Ok(())
            };
            // SAFETY: The slot is initialised when and only when the closure returns `Ok`.
            unsafe { pin_init::pin_init_from_closure(make) }
        }

        pub(crate) fn read_lock(&self) -> SrcuGuard<'_> {
            SrcuGuard {
                srcu: self,
                // SAFETY: By the type's invariant.
                index: unsafe { bindings::rdax_srcu_read_lock(self.0.as_ptr()) },
                _not_send: NotThreadSafe,
            }
        }

        /// Waits for all who read now. Sleeps.
        pub(crate) fn synchronize(&self) {
            // SAFETY: By the type's invariant.
            unsafe { bindings::rdax_srcu_synchronize(self.0.as_ptr()) }
        }
    }

    impl Drop for Srcu {
        fn drop(&mut self) {
            // SAFETY: By the type's invariant; guards borrow the value, so none is left.
            unsafe { bindings::rdax_srcu_free(self.0.as_ptr()) }
        }
    }

    #[must_use = "reading ends at once"]
    pub(crate) struct SrcuGuard<'a> {
        srcu: &'a Srcu,
        index: i32,
        _not_send: NotThreadSafe,
    }

    impl Drop for SrcuGuard<'_> {
        fn drop(&mut self) {
            // SAFETY: The guard stands for what `read_lock` took.
            unsafe { bindings::rdax_srcu_read_unlock(self.srcu.0.as_ptr(), self.index) }
        }
    }
}
