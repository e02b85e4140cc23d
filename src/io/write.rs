// SPDX-License-Identifier: GPL-2.0

//! Writing files.

use super::{
    fill_from_source, in_page, of_block, piece_at,
    write_iter::{Others, Stop, WriteIter},
    CHUNK, PAGE,
};
use crate::{
    dax::{
        device::FileDevice,
        layout::{Again, Turns}, //
    },
    kern::{
        dax::{Access, DaxReadGuard},
        error::{edeadlk, is_hwpoison},
        fs::Inode,
        iomap::{Extent, ExtentKind, IomapFlags, IomapIter, IomapOps, IomapSpace},
        iov::IovIter,
        vm,
        wait::Sleep,
        waiting::Waiter,
    },
};
use kernel::prelude::*;

/// Writes from `position` on. Returns where it ended, and why, if that was an error.
#[inline(always)]
pub(super) fn write_file(
    inode: &Inode,
    position: u64,
    iter: &mut IovIter<'_>,
    ask: IomapFlags,
    ops: &IomapOps,
) -> (u64, Result) {
    let len = iter.len() as u64;
    let mut space = IomapSpace::new();
    let mut change = WriteIter::new(&mut space, inode, position, len, ask, ops);
    let result = loop {
        match change.walk.next() {
            Ok(true) => (),
            Ok(false) => break Ok(()),
            Err(error) => break Err(error),
        }
        if change.walk.extent().is_shared() {
            if let Err(error) = write_shared(&mut change.walk, inode, position, iter, ask, ops) {
                break Err(error);
            }
        } else if let Err(error) = write_extent(&mut change, iter, u64::MAX, Missing::Awaited) {
            change.walk.fail(of_block(error));
        }
    };
    (change.walk.position(), result)
}

/// Writes to the present extent of a walk, whose blocks are shared with other files: piece by piece,
/// with the file's faults kept out. One that made its own copy of a page meanwhile would copy over
/// what was written already, or be copied over.
///
/// A fault may have changed the blocks before the lock was taken, so the filesystem is asked again for each
/// piece. The walk's extent stays as it is until all of it was written: a filesystem that
/// was told of nothing written would take back the blocks that it has set aside for the copy, and
/// those of the next answer would lie elsewhere.
///
/// `start` is where the write began. After an error the walk is over.
#[cold]
#[inline(never)]
fn write_shared(
    walk: &mut IomapIter<'_>,
    inode: &Inode,
    start: u64,
    iter: &mut IovIter<'_>,
    ask: IomapFlags,
    ops: &IomapOps,
) -> Result {
    let Err(error) = write_pieces(walk, inode, start, iter, ask, ops) else {
        return Ok(());
    };
    walk.fail(of_block(error));
    // Blocks to which nothing was written are taken back, but not from under a fault that copies to them.
    // A task that is about to die leaves it, as a write that ends early leaves what is behind its end; and
    // so does one that does not wait.
    let out = match ask.is_nowait() {
        true => inode.mapping().try_invalidate_lock(),
        false => inode.mapping().invalidate_lock(),
    };
    match out {
        Ok(_out) => walk.next().map(|_| ()),
        Err(error) => Err(error),
    }
}

/// The most bytes that are copied to memory of ours before they are written.
const BOUNCE: usize = 16 * PAGE;

/// The pieces of [`write_shared`].
///
/// The buffers may be mappings of this file, so they are faulted in before. A write that takes its own
/// source out of the page tables goes on through memory of ours.
fn write_pieces(
    walk: &mut IomapIter<'_>,
    inode: &Inode,
    start: u64,
    iter: &mut IovIter<'_>,
    ask: IomapFlags,
    ops: &IomapOps,
) -> Result {
    if ask.is_nowait() {
        return Err(EAGAIN);
    }
    let mut bounce = KVVec::new();
    let turns = Turns::new(Waiter::Write);
    let mut left = walk.available();
    // Ends: each round writes at least a byte or returns, but for one, from which on the source is
    // memory of ours, of which at least a byte can be had and written; and for those that waited for
    // somebody who holds a page, which is for so long only.
    while left > 0 {
        if vm::fatal_signal() {
            return Err(EINTR);
        }
        let position = walk.position();
        let bytes = left.min((CHUNK - in_page(position)) as u64) as usize;
        let mut space = IomapSpace::new();
        // Not while a user's buffer is faulted in: a device that goes away waits for this.
        let stay;
        let (done, result) = if bounce.is_empty() {
            if iter.fault_in(bytes) == 0 {
                return Err(EFAULT);
            }
            stay = FileDevice::of(inode).stay().ok_or(EIO)?;
            let others = Others {
                stay: &stay,
                turns: &turns,
            };
            let mut change = WriteIter::new(&mut space, inode, position, left, ask, ops);
            write_piece(&mut change, &others, bytes, iter)
        } else {
            // Up to the end of a page, as all pieces but the last.
            let wanted = bytes.min(bounce.len() - in_page(position));
            let bytes = iter.copy_to(&mut bounce[..wanted]);
            if bytes == 0 {
                return Err(EFAULT);
            }
            stay = FileDevice::of(inode).stay().ok_or(EIO)?;
            let others = Others {
                stay: &stay,
                turns: &turns,
            };
            let (done, result) = IovIter::over(&bounce[..bytes], |iter| {
                let mut change = WriteIter::new(&mut space, inode, position, left, ask, ops);
                write_piece(&mut change, &others, bytes, iter)
            });
            iter.revert(bytes - done);
            (done, result)
        };
        walk.advance(done as u64);
        left -= done as u64;
        match result {
            Ok(()) if done != 0 => (),
            // The rest of the buffer is not there any more.
            Err(Stop::Error(error)) if error == EFAULT && done != 0 => (),
            Err(Stop::Error(error)) if error == EFAULT && bounce.is_empty() => {
                bounce = KVVec::from_elem(0u8, BOUNCE, GFP_KERNEL)?;
            }
            Err(Stop::Error(error)) => return Err(error),
            // Pages in a pipe are released when all of them were written.
            Err(Stop::Held(folio)) if iter.holds(folio, walk.position() - start) => {
                return Err(edeadlk());
            }
            Err(Stop::Held(folio)) => {
                let again = match walk.position() == start {
                    true => Again::Yes,
                    false => Again::No,
                };
                turns.let_others(&stay, folio, Sleep::Interruptible, inode, again)?;
            }
            // There is something to write.
            Ok(()) => return Err(EIO),
        }
        if left > 0 {
            vm::cond_resched();
        }
    }
    Ok(())
}

/// Writes up to `bytes` bytes where a walk begins, with the file's faults kept out. Buffers that are not
/// there are not faulted in. Returns how many it has written, and why there are no more, if that was an
/// error. The walk is over then.
///
/// The walk is one for all that will be written, so that the filesystem lays the blocks out for that.
fn write_piece<'s>(
    change: &mut WriteIter<'_>,
    others: &Others<'s>,
    bytes: usize,
    iter: &mut IovIter<'_>,
) -> (usize, Result<(), Stop<'s>>) {
    let position = change.walk.position();
    let end = position + bytes as u64;
    let _out = match change.inode.mapping().invalidate_lock() {
        Ok(out) => out,
        Err(error) => return (0, Err(error.into())),
    };
    let buffered = iter.len();
    let result = loop {
        match change.walk.next_copied() {
            Ok(true) => (),
            Ok(false) => break Ok(()),
            Err(error) => break Err(error.into()),
        }
        let from = change.walk.position();
        let mut wanted = change.walk.available().min(end - from);
        let held = change.let_nobody_hold(others, wanted);
        match held {
            Ok(()) => (),
            // The pages before that one need not wait.
            Err(Stop::Held(_)) => wanted = change.free_bytes(wanted),
            Err(_) => wanted = 0,
        }
        if wanted == 0 {
            change.walk.abandon();
            break held;
        }
        let written =
            iter.pagefault_disabled(|iter| write_extent(change, iter, wanted, Missing::Refused));
        match written {
            Ok(()) => {
                let at = change.walk.position();
                // There may be more to write, but not in this piece; or less than there was to write
                // is there, and the next would be nothing.
                if at == end || at != from + wanted || held.is_err() {
                    break change.walk.finish_copied().map_err(Stop::from).and(held);
                }
            }
            Err(error) => change.walk.fail(of_block(error)),
        }
    };
    let done = (change.walk.position() - position) as usize;
    // Bytes that were written in vain are still to be written.
    iter.revert((buffered - iter.len()).saturating_sub(done));
    (done, result)
}

/// The way a write goes on where its buffer is not present.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    /// It is had there, and the write goes on.
    Awaited,
    /// The write ends: faults are kept out.
    Refused,
}

/// Writes to the present extent, at most `bytes` bytes. One whose buffer is awaited is the file's own.
#[inline(always)]
fn write_extent(
    change: &mut WriteIter<'_>,
    iter: &mut IovIter<'_>,
    bytes: u64,
    missing: Missing,
) -> Result {
    match change.walk.extent().kind() {
        ExtentKind::Mapped => (),
        // For those that keep faults out.
        ExtentKind::Unwritten
            if missing == Missing::Refused && change.walk.extent().is_shared() => {}
        _ => return Err(EIO),
    }
    let mut left = change.walk.available().min(bytes);
    change.begin(left)?;
    let walk = &mut change.walk;
    // Ends: each round writes at least a byte, or returns.
    while left > 0 {
        let (extent, position) = (walk.extent(), walk.position());
        let own = missing == Missing::Awaited || !extent.is_shared();
        let piece = match own {
            true => overwrite(extent, position, left, iter),
            false => None,
        };
        let (wanted, done) = match piece {
            Some(piece) => piece,
            None if missing == Missing::Awaited => (left.min(PAGE as u64) as usize, 0),
            None => write_with_care(extent, walk.copy_source(), position, left, iter)?,
        };
        walk.advance(done as u64);
        left -= done as u64;
        if left == 0 {
            break;
        }
        if done < wanted {
            match missing {
                Missing::Refused if done == 0 => return Err(why_nothing()),
                Missing::Refused => return Ok(()),
                Missing::Awaited => (),
            }
            let rest = (wanted - done) as u64;
            let more = write_from_missing(walk.extent(), walk.position(), rest, iter)?;
            walk.advance(more as u64);
            left -= more as u64;
        }
        vm::cond_resched();
    }
    Ok(())
}

/// Why nothing was copied.
#[cold]
fn why_nothing() -> Error {
    if vm::fatal_signal() {
        EINTR
    } else {
        EFAULT
    }
}

/// Goes on with a write of `bytes` bytes to an extent that is the file's own where the buffer is not
/// there, or the memory is bad: has the buffer there, which a user can make take for ever, with nothing
/// held. Returns how many bytes were written, at least one.
///
/// Up to the end of a page is copied to a bounce buffer with page faults enabled, and from there to the file:
/// progress does not depend on what becomes of the caller's buffer.
#[cold]
#[inline(never)]
fn write_from_missing(
    extent: Extent<'_, '_>,
    position: u64,
    bytes: u64,
    iter: &mut IovIter<'_>,
) -> Result<usize> {
    if vm::fatal_signal() {
        return Err(EINTR);
    }
    let wanted = bytes.min((PAGE - in_page(position)) as u64) as usize;
    let mut page = KVVec::from_elem(0u8, wanted, GFP_KERNEL)?;
    let there = iter.copy_to(&mut page);
    if there == 0 {
        return Err(EFAULT);
    }
    let result = IovIter::over(&page[..there], |page| {
        write_with_care(extent, None, position, there as u64, page)
    });
    let done = result.map_or(0, |(_, done)| done);
    iter.revert(there - done);
    match result {
        Err(error) => Err(error),
        Ok((_, 0)) => Err(why_nothing()),
        Ok((_, done)) => {
            iter.fault_in(bytes as usize - done);
            Ok(done)
        }
    }
}

/// Writes a piece of up to `left` bytes to memory that is sound and the file's own, as far as the
/// buffer is there. Returns the bytes that were to be done and those that were, or nothing when that
/// takes [`write_with_care`].
#[inline(always)]
fn overwrite(
    extent: Extent<'_, '_>,
    position: u64,
    left: u64,
    iter: &mut IovIter<'_>,
) -> Option<(usize, usize)> {
    let alive = DaxReadGuard::new();
    let piece = piece_at(&extent, &alive, position, left, Access::Normal).ok()?;
    (!piece.has_hwpoison()).then(|| (piece.bytes(), piece.copy_from(iter)))
}

/// The same for the new blocks of a shared extent, too, and for memory that is bad.
#[cold]
#[inline(never)]
fn write_with_care(
    extent: Extent<'_, '_>,
    source: Option<Extent<'_, '_>>,
    position: u64,
    left: u64,
    iter: &mut IovIter<'_>,
) -> Result<(usize, usize)> {
    let offset = in_page(position);
    let copy = extent.is_shared();
    let alive = DaxReadGuard::new();
    let mut recover = false;
    let mut piece = match piece_at(&extent, &alive, position, left, Access::Normal) {
        Err(error) if is_hwpoison(error) => {
            recover = true;
            piece_at(&extent, &alive, position, left, Access::Recovery)?
        }
        other => other?,
    };
    let sound = piece.sound_bytes();
    let mut marked = false;
    if !recover && sound < piece.bytes() {
        // Up to a page that is marked as bad, then that one alone: written whole it is as good as
        // the device says. A part of it would keep what was lost.
        marked = sound == 0;
        piece = piece.first(if marked { PAGE } else { sound });
        if marked && (offset != 0 || piece.bytes() < PAGE) {
            return Err(EIO);
        }
    }
    let memory = piece.memory();
    if copy {
        let head = position - offset as u64;
        fill_from_source(source, memory, 0, head, offset)?;
    }
    let done = if recover || marked {
        piece.make_writable();
        let done = piece.recover(iter);
        if done == 0 {
            if iter.copy_to(&mut [0]) == 0 {
                return Err(EFAULT);
            }
            iter.revert(1);
            // Not whole pages, or the driver could not clear it.
            return Err(EIO);
        }
        if marked && done == PAGE {
            piece.page().clear_poison();
        }
        done
    } else {
        piece.copy_from(iter)
    };
    let end = position + done as u64;
    if copy && done != 0 && in_page(end) != 0 {
        // Also where the source of a longer write was bad: the new page must not show what its
        // memory held before.
        let rest = PAGE - in_page(end);
        if let Err(error) = fill_from_source(source, memory, offset + done, end, rest) {
            iter.revert(done);
            return Err(error);
        }
    }
    Ok((piece.bytes(), done))
}
