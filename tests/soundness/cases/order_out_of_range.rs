//! error: E0423
// SPDX-License-Identifier: GPL-2.0

//! An order beyond those that there are: it is shifted by.

use crate::kern::order::Order;

pub(crate) fn case() -> usize {
    Order(200).pages()
}
