// SPDX-License-Identifier: GPL-2.0

//! Zeroing parts of files.

use super::{
    fill_from_source, in_page, of_block, piece_at,
    write_iter::{Others, Stop, WriteIter},
    CHUNK, PAGE,
};
use crate::{
    dax::{device::FileDevice, layout::Turns, poison, stats::Counter},
    kern::{
        dax::{Access, DaxReadGuard},
        fs::Inode,
        iomap::{ExtentKind, IomapFlags, IomapOps, IomapSpace},
        vm,
        waiting::Waiter,
    },
};
use kernel::prelude::*;

/// Zeroes a range of a file (`dax_zero_range`) and says whether anything had to be written. Sleeps.
pub(crate) fn zero_range(
    inode: &Inode,
    position: u64,
    len: u64,
    ops: &IomapOps,
    did_zero: &mut bool,
) -> Result {
    let device = FileDevice::of(inode);
    change_range(
        inode,
        position,
        len,
        IomapFlags::ZERO,
        ops,
        |change, others| zero_extent(change, others, device, did_zero),
    )
}

/// Calls `work` for each extent of a range, for those whose callers keep the file's faults out. Where
/// somebody holds what would be given up, they are let in until he does not, and the filesystem is asked
/// anew.
///
/// `work` returns how many bytes there are with nothing to be done, and has done nothing then. The
/// filesystem must not be told that they were done: it would take for data what it has set aside there,
/// be it long ago for a write that ended before it came to that.
pub(super) fn change_range(
    inode: &Inode,
    position: u64,
    len: u64,
    ask: IomapFlags,
    ops: &IomapOps,
    mut work: impl for<'s> FnMut(&mut WriteIter<'_>, &Others<'s>) -> Result<u64, Stop<'s>>,
) -> Result {
    let end = position.saturating_add(len);
    let turns = Turns::new(Waiter::Write);
    let mut at = position;
    // Ends with the range, with an error, or with the signal that ends the wait.
    while at < end {
        let stay = FileDevice::of(inode).stay().ok_or(EIO)?;
        let mut space = IomapSpace::new();
        let mut change = WriteIter::new(&mut space, inode, at, end - at, ask, ops);
        let (nothing, folio) = loop {
            if !change.walk.next_copied()? {
                return Ok(());
            }
            let others = Others {
                stay: &stay,
                turns: &turns,
            };
            match work(&mut change, &others) {
                Ok(0) => (),
                Ok(nothing) => break (nothing, None),
                Err(Stop::Error(error)) => change.walk.fail(of_block(error)),
                Err(Stop::Held(folio)) => break (0, Some(folio)),
            }
        };
        at = change.walk.position() + nothing;
        change.walk.abandon();
        match folio {
            Some(folio) => turns.let_faults_in(&stay, folio, inode)?,
            None => vm::cond_resched(),
        }
    }
    Ok(())
}

fn zero_extent<'s>(
    change: &mut WriteIter<'_>,
    others: &Others<'s>,
    device: FileDevice<'_>,
    did_zero: &mut bool,
) -> Result<u64, Stop<'s>> {
    let mut left = change.walk.available();
    match change.walk.source().kind() {
        ExtentKind::Hole | ExtentKind::Unwritten => return Ok(left),
        ExtentKind::Mapped => (),
        ExtentKind::Other => return Err(EIO.into()),
    }
    let copy = change.walk.extent().is_shared();
    change.let_nobody_hold(others, left)?;
    change.begin(left)?;
    let walk = &mut change.walk;
    while left > 0 {
        // Parts of pages are zeroed by those who are about to die, too. ext4 zeroes what is behind the
        // new end of a file before it takes the blocks behind that, also after a write that a signal
        // has ended; when that fails it leaves the blocks, and the file in its list of orphans.
        if left >= PAGE as u64 && vm::fatal_signal() {
            return Err(EINTR.into());
        }
        let position = walk.position();
        let offset = in_page(position);
        let done = {
            let alive = DaxReadGuard::new();
            let extent = walk.extent();
            if offset == 0 && left >= PAGE as u64 {
                let place = extent.place(position)?;
                if poison::was_seen() {
                    let piece = piece_at(&extent, &alive, position, 1, Access::Recovery)?;
                    piece.first(PAGE).make_writable();
                }
                place.zero_page(&alive)?;
                let piece = piece_at(&extent, &alive, position, 1, Access::Normal)?;
                if piece.has_hwpoison() {
                    // The device has nothing against it, and its content is new.
                    piece.page().clear_poison();
                }
                PAGE
            } else {
                let bytes = (PAGE - offset).min(left as usize);
                let piece = piece_at(&extent, &alive, position, bytes as u64, Access::Normal)?;
                if piece.has_hwpoison() {
                    return Err(EIO.into());
                }
                let memory = piece.memory();
                if copy {
                    let source = walk.copy_source();
                    let end = offset + bytes;
                    let head = position - offset as u64;
                    fill_from_source(source, memory, 0, head, offset)?;
                    fill_from_source(source, memory, end, head + end as u64, PAGE - end)?;
                }
                memory.zero(offset, bytes)?;
                memory.flush(offset, bytes);
                bytes
            }
        };
        device.add(Counter::ZeroedBytes, done as u64);
        walk.advance(done as u64);
        left -= done as u64;
        *did_zero = true;
        if left > 0 && walk.position() % CHUNK as u64 == 0 {
            vm::cond_resched();
        }
    }
    Ok(0)
}

/// Zeroes from `position` to the end of its block (`dax_truncate_page`). Sleeps.
pub(crate) fn truncate_page(
    inode: &Inode,
    position: u64,
    ops: &IomapOps,
    did_zero: &mut bool,
) -> Result {
    let block = 1u64 << inode.block_bits();
    match position & (block - 1) {
        0 => Ok(()),
        offset => zero_range(inode, position, block - offset, ops, did_zero),
    }
}
