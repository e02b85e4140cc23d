// SPDX-License-Identifier: GPL-2.0

//! Copying blocks that a file shares.

use super::{
    in_page, piece_at,
    write_iter::{Others, Stop, WriteIter},
    zero::change_range,
    PAGE,
};
use crate::{
    dax::{device::FileDevice, stats::Counter},
    kern::{
        dax::{Access, DaxReadGuard},
        fs::Inode,
        iomap::{IomapFlags, IomapOps},
        vm,
    },
};
use kernel::prelude::*;

/// Gives a file blocks of its own for what it shares in the range (`dax_file_unshare`). Sleeps.
pub(crate) fn file_unshare(inode: &Inode, position: u64, len: u64, ops: &IomapOps) -> Result {
    let size = inode.size();
    if position >= size {
        return Ok(());
    }
    let first = position - in_page(position) as u64;
    let end = position
        .saturating_add(len)
        .min(size)
        .next_multiple_of(PAGE as u64);
    let device = FileDevice::of(inode);
    let len = end - first;
    change_range(
        inode,
        first,
        len,
        IomapFlags::UNSHARE,
        ops,
        |change, others| unshare_extent(change, others, device),
    )
}

fn unshare_extent<'s>(
    change: &mut WriteIter<'_>,
    others: &Others<'s>,
    device: FileDevice<'_>,
) -> Result<u64, Stop<'s>> {
    let mut left = change.walk.available();
    if !change.walk.extent().is_shared() || change.walk.copy_source().is_none() {
        // Its own already, or without data to copy.
        return Ok(left);
    }
    change.let_nobody_hold(others, left)?;
    change.begin(left)?;
    let walk = &mut change.walk;
    while left > 0 {
        if vm::fatal_signal() {
            return Err(EINTR.into());
        }
        let position = walk.position();
        let done = {
            let alive = DaxReadGuard::new();
            let source = walk.copy_source().ok_or(EIO)?;
            let from = piece_at(&source, &alive, position, left, Access::Normal)?;
            let to = piece_at(&walk.extent(), &alive, position, left, Access::Normal)?;
            let bytes = from.bytes().min(to.bytes());
            if from.first(bytes).has_hwpoison() || to.first(bytes).has_hwpoison() {
                return Err(EIO.into());
            }
            to.memory().copy_within(0, &from.memory(), 0, bytes)?;
            to.memory().flush(0, bytes);
            bytes
        };
        device.add(Counter::CowPages, done.div_ceil(PAGE) as u64);
        walk.advance(done as u64);
        left -= done as u64;
        if left > 0 {
            vm::cond_resched();
        }
    }
    Ok(0)
}
