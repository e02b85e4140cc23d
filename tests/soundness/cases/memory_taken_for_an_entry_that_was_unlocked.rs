//! error: because it is borrowed
// SPDX-License-Identifier: GPL-2.0

//! Memory that a locked entry takes is kept until the entry is unlocked, and put into it then.

use crate::{
    dax::tree::{self, LockedEntry},
    kern::page::{FileBlock, NewAssociation},
};

pub(crate) fn case<'l>(own: LockedEntry<'l>, block: FileBlock<'l>, association: NewAssociation<'l>) {
    let Some(memory) = own.takes(block) else {
        return;
    };
    drop(own);
    tree::set_memory(memory, association, |entry| entry);
}
