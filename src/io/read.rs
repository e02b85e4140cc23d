// SPDX-License-Identifier: GPL-2.0

//! Reading files.

use super::{in_page, of_block, piece_at, CHUNK, PAGE};
use crate::{
    dax::device::FileDevice,
    kern::{
        dax::{Access, DaxReadGuard},
        fs::{BlocksKept, Inode},
        iomap::{Extent, ExtentKind, IomapFlags, IomapIter, IomapOps, IomapSpace},
        iov::IovIter,
        vm,
    },
};
use kernel::prelude::*;

/// Reads from `position` on. Returns where it ended, and why, if that was an error.
#[inline(always)]
pub(super) fn read_file(
    inode: &Inode,
    position: u64,
    iter: &mut IovIter<'_>,
    ask: IomapFlags,
    ops: &IomapOps,
) -> (u64, Result) {
    ops.note_reading(inode);
    let mut len = iter.len() as u64;
    let size = inode.size();
    if position >= size {
        return (position, Ok(()));
    }
    len = len.min(size - position);
    let mut space = IomapSpace::new();
    let mut walk = IomapIter::new(&mut space, inode, position, len, ask, ops);
    let nowait = ask.is_nowait();
    // Ends: each round reads at least a byte, but for the last.
    let result = loop {
        let kept = match FileDevice::keep_blocks(inode, nowait) {
            Ok(kept) => kept,
            Err(error) => {
                if walk.position() != position {
                    let _ = walk.finish();
                }
                break Err(error);
            }
        };
        match walk.next() {
            Ok(true) => (),
            Ok(false) => break Ok(()),
            Err(error) => break Err(error),
        }
        if let Err(error) = read_extent(&mut walk, iter, kept) {
            walk.fail(of_block(error));
        }
    };
    (walk.position(), result)
}

/// Reads from the present extent: all of it, or a piece, when its blocks can be given up after that.
#[inline(always)]
fn read_extent(
    walk: &mut IomapIter<'_>,
    iter: &mut IovIter<'_>,
    mut kept: Option<BlocksKept<'_>>,
) -> Result {
    let kind = walk.extent().kind();
    if kind != ExtentKind::Mapped {
        // The buffer may be waited for, and there are no blocks.
        kept = None;
    }
    let piece_only = kept.is_some();
    let mut left = walk.available();
    // Ends: each round reads at least a byte, or returns.
    while left > 0 {
        let (wanted, done) = match kind {
            ExtentKind::Mapped => {
                let alive = DaxReadGuard::new();
                let position = walk.position();
                let piece = piece_at(&walk.extent(), &alive, position, left, Access::Normal)?;
                if piece.has_hwpoison() {
                    return Err(EIO);
                }
                (piece.bytes(), piece.copy_to(iter))
            }
            ExtentKind::Hole | ExtentKind::Unwritten => {
                let wanted = left.min(CHUNK as u64) as usize;
                let done = zero_buffer(iter, wanted)?;
                (done, done)
            }
            ExtentKind::Other => return Err(EIO),
        };
        walk.advance(done as u64);
        left -= done as u64;
        if left == 0 {
            break;
        }
        if done < wanted {
            let rest = (wanted - done) as u64;
            let more = read_to_missing(walk.extent(), walk.position(), rest, iter, kept.take())?;
            walk.advance(more as u64);
            left -= more as u64;
        }
        drop(kept.take());
        vm::cond_resched();
        if piece_only {
            break;
        }
    }
    Ok(())
}

/// Writes up to `bytes` zeroes to the buffers, at least one.
#[inline(never)]
fn zero_buffer(iter: &mut IovIter<'_>, bytes: usize) -> Result<usize> {
    if vm::fatal_signal() {
        return Err(EINTR);
    }
    match iter.zero(bytes) {
        0 => Err(EFAULT),
        done => Ok(done),
    }
}

/// The bytes that are copied by way of memory of ours when there is no page for that. To wait for one with
/// the blocks kept would hold up who stores to them.
const LITTLE: usize = 256;

/// Goes on with a read of `bytes` bytes where the buffer is not there: has it there, which a user can
/// make take for ever, with nothing held. Returns how many bytes were read, at least one.
///
/// A page of the file, or a little of it if no memory is free at once, is copied to a bounce buffer, and from
/// there to the caller's with page faults enabled: progress does not depend on what becomes of that buffer.
#[cold]
#[inline(never)]
fn read_to_missing(
    extent: Extent<'_, '_>,
    position: u64,
    bytes: u64,
    iter: &mut IovIter<'_>,
    kept: Option<BlocksKept<'_>>,
) -> Result<usize> {
    if vm::fatal_signal() {
        return Err(EINTR);
    }
    let wanted = bytes.min((PAGE - in_page(position)) as u64) as usize;
    let mut little = [0u8; LITTLE];
    let mut page = KVec::from_elem(0u8, wanted, GFP_NOWAIT | __GFP_NOWARN).unwrap_or_default();
    let room = match page.is_empty() {
        true => &mut little[..wanted.min(LITTLE)],
        false => &mut page[..],
    };
    let there = {
        let alive = DaxReadGuard::new();
        let piece = piece_at(&extent, &alive, position, room.len() as u64, Access::Normal)?;
        if piece.has_hwpoison() {
            return Err(EIO);
        }
        piece.read(room)
    };
    drop(kept);
    if there == 0 {
        return Err(EIO);
    }
    match iter.copy_from(&room[..there]) {
        0 => Err(EFAULT),
        done => {
            iter.fault_in(bytes as usize - done);
            Ok(done)
        }
    }
}
