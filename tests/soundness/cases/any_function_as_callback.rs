//! error: E0423
// SPDX-License-Identifier: GPL-2.0

//! A function that drops a reference is called to wait, again and again.

use crate::kern::{bindings, wait::WaitCallback};

pub(crate) fn case() -> WaitCallback {
    WaitCallback(bindings::iput)
}
