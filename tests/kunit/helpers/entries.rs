// SPDX-License-Identifier: GPL-2.0

//! Entries that a test stores by itself.

use crate::{
    dax::tree::{self},
    kern::{
        entry::Entry,
        testing::{Checked, File},
    },
    tests::helpers::*,
};
use kernel::prelude::*;

/// Puts an entry into the tree that points to no page that anybody could miss.
pub(crate) fn store(file: &File<'_>, index: usize, entry: Entry<'_>) -> Checked {
    let locked = lock(file, index, entry.order())?;
    check!(locked.entry() == Entry::empty(entry.order()));
    locked.set_of_test(entry);
    Ok(())
}

/// Takes it out again.
pub(crate) fn erase(file: &File<'_>, index: usize) -> Checked {
    match tree::lock_present(file.mapping(), at(index)) {
        Some(locked) => {
            locked.remove();
            Ok(())
        }
        None => Err(crate::kern::testing::failed(
            file!(),
            line!(),
            fmt!("nothing at {index}"),
        )),
    }
}
