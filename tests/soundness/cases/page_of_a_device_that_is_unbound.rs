//! error: cannot move out of `home` because it is borrowed
// SPDX-License-Identifier: GPL-2.0

//! Pages of a character device, which may have no page map when the fault is over.

use crate::{
    dax::devdax::DevDax,
    kern::{dax_bus::Home, order::Order, page::Pfn},
};

pub(crate) fn case(home: Home<'_, DevDax>, first: Pfn) -> bool {
    let block = home.block(first, Order::PTE);
    drop(home);
    block.is_some_and(|block| block.first().is_poisoned())
}
