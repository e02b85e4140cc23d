// SPDX-License-Identifier: GPL-2.0

//! What differs in the `kernel` crate between the kernels that the module is built for, and nothing
//! else does: Kbuild asks the kernel's sources (`RDAX_HAVE_…`), not its number. `compat.h` is the same
//! for C.

use kernel::ThisModule;

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
