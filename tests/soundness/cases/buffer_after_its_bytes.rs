//! error: E0521
// SPDX-License-Identifier: GPL-2.0

//! A buffer of our own is kept in the place of the caller's.

use crate::kern::iov::IovIter;

pub(crate) fn case(iter: &mut IovIter<'_>) {
    let bytes = [0; 16];
    IovIter::over(&bytes, |own| core::mem::swap(iter, own));
}
