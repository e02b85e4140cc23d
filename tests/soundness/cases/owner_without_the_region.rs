//! error: E0599
// SPDX-License-Identifier: GPL-2.0

//! A folio gets an owner, and no lock is held.

use crate::kern::page::{DevFolio, EntryMemory};

pub(crate) fn case(folio: DevFolio<'_>, memory: EntryMemory<'_>) {
    let _ = folio.set_owner(memory);
}
