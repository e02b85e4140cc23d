//! error: cannot move out of `stay` because it is borrowed
// SPDX-License-Identifier: GPL-2.0

//! A folio that is looked at when its device does not know of it any more.

use crate::{
    dax::{device::FileDevice, layout::Turns},
    kern::fs::{Inode, PageRange},
};
use kernel::prelude::*;

pub(crate) fn case(turns: &Turns, inode: &Inode) -> Result<i32> {
    let stay = FileDevice::of(inode).stay().ok_or(EIO)?;
    let folio = turns.busy_folio(&stay, inode, PageRange::ALL)?;
    drop(stay);
    Ok(folio.map_or(0, |folio| folio.refcount()))
}
