//! error: cannot move out of `locked` because it is borrowed
// SPDX-License-Identifier: GPL-2.0

//! Pages that are mapped when the file has given them up.

use crate::{
    dax::tree::LockedEntry,
    kern::vm::{PteBatch, VmFault},
};

pub(crate) fn case(vmf: &mut VmFault<'_>, locked: LockedEntry<'_>) -> usize {
    let index = locked.first();
    let mut batch = PteBatch::new(index);
    if let Some(block) = locked.entry().block() {
        batch.add(index, block.run());
    }
    locked.remove();
    vmf.map_batch(&batch, true)
}
