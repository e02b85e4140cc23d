//! error: E0624
// SPDX-License-Identifier: GPL-2.0

//! A number is taken for a word of a tree.

use crate::kern::xa::RawValue;

pub(crate) fn case() -> RawValue {
    RawValue::from_word(0xdead_beef)
}
