// SPDX-License-Identifier: GPL-2.0

//! Error codes that the `kernel` crate does not name.

use super::bindings;
use kernel::error::Error;

/// `EHWPOISON`: the memory has an error.
pub(crate) fn ehwpoison() -> Error {
    Error::from_errno(-(bindings::EHWPOISON as i32))
}

/// Whether the error is that of bad memory.
#[inline]
pub(crate) fn is_hwpoison(error: Error) -> bool {
    error.to_errno() == -(bindings::EHWPOISON as i32)
}
