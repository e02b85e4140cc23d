//! error: E0308
// SPDX-License-Identifier: GPL-2.0

//! A word that was in no tree is unpacked, and a page had from it.

use crate::kern::entry::Entry;

pub(crate) fn case() {
    if let Some(page) = Entry::from_raw(0xdead_beef).0.page() {
        page.clear_poison();
    }
}
