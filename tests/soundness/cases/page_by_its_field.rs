//! error: E0423
// SPDX-License-Identifier: GPL-2.0

//! A page is made of an address.

use crate::kern::page::DevPage;

pub(crate) fn case(address: core::ptr::NonNull<crate::kern::bindings::page>) -> DevPage {
    DevPage(address)
}
