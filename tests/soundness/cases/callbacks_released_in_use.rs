//! error: E0624
// SPDX-License-Identifier: GPL-2.0

//! A filesystem's module is let go while its callbacks are used.

pub(crate) fn case() {
    crate::kern::iomap::IomapOps::release();
}
