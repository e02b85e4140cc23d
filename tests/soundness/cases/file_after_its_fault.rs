//! error: lifetime may not live long enough
// SPDX-License-Identifier: GPL-2.0

//! The file that a fault is in is kept when the fault is over.

use crate::kern::{fs::File, vm::VmFault};

pub(crate) fn case(fault: &VmFault<'_>) -> &'static File {
    fault.file()
}
