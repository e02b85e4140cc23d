// SPDX-License-Identifier: GPL-2.0

//! Error codes that the `kernel` crate does not name, or not in every kernel.

use super::bindings;
use kernel::error::Error;

/// `EHWPOISON`: the memory has an error.
pub(crate) fn ehwpoison() -> Error {
    Error::from_errno(-(bindings::EHWPOISON as i32))
}

/// `EOPNOTSUPP`: what is asked for is not possible here.
pub(crate) fn eopnotsupp() -> Error {
    Error::from_errno(-(bindings::EOPNOTSUPP as i32))
}

/// `EDEADLK`: whoever waited would wait for himself.
pub(crate) fn edeadlk() -> Error {
    Error::from_errno(-(bindings::EDEADLK as i32))
}

/// `ECANCELED`: what was begun is not to be completed.
pub(crate) fn ecanceled() -> Error {
    Error::from_errno(-(bindings::ECANCELED as i32))
}

/// Whether the error is that of bad memory.
#[inline]
pub(crate) fn is_hwpoison(error: Error) -> bool {
    error.to_errno() == -(bindings::EHWPOISON as i32)
}
