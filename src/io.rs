// SPDX-License-Identifier: GPL-2.0

//! Reading, writing, zeroing, unsharing and comparing files without page faults (spec, section 6).
//!
//! The callers hold `i_rwsem`: shared to read, exclusive for everything else.
//!
//! What every read and write passes is inlined into one function; what few of them need is kept out of
//! it, so that it has neither to be passed nor to be prepared for.

use super::{
    device::FileDevice,
    layout::{self, Turns},
    poison,
    stats::Counter, //
};
use crate::kern::{
    dax::{Access, DaxReadGuard, Memory, Piece},
    error::{edeadlk, is_hwpoison},
    fs::{Inode, PageIndex, PageRange},
    iomap::{Ask, Extent, ExtentKind, IomapIter, IomapOps, IomapSpace},
    iov::{IovIter, Kiocb},
    memory::Stay,
    order::Order,
    page::DevFolio,
    vm,
    wait::Sleep, //
};
use kernel::prelude::*;

const PAGE: usize = Order::PTE.bytes();

/// Bytes that are copied or zeroed before others get the processor.
const CHUNK: usize = Order::PMD.bytes();

/// Where in its page a position is.
#[inline]
fn in_page(position: u64) -> usize {
    position as usize & (PAGE - 1)
}

/// What a memory error means to those who read and write files.
fn of_block(error: Error) -> Error {
    if is_hwpoison(error) {
        EIO
    } else {
        error
    }
}

/// The memory at `position` of the extent: of `bytes` bytes (at least one) as many as are contiguous
/// and may be done in one go.
#[inline(always)]
fn piece_at<'a>(
    extent: &Extent<'_, 'a>,
    alive: &'a DaxReadGuard,
    position: u64,
    bytes: u64,
    access: Access,
) -> Result<Piece<'a>> {
    let (device, place) = extent.place(position)?;
    let offset = in_page(position);
    // What is not the last piece ends with a page: the next one begins none in its middle.
    let bytes = bytes.min((CHUNK - offset) as u64) as usize;
    let pages = (offset + bytes).div_ceil(PAGE);
    let memory = device.access(alive, place, pages, access)?;
    Ok(memory.piece(offset, bytes))
}

/// Copies what the file had before a copy on write to `bytes` bytes at `position` of the new
/// memory, all in one page, which `to` begins with at `offset`. Zeroes where it had nothing.
fn fill_from_source(
    source: Option<Extent<'_, '_>>,
    to: Memory<'_>,
    offset: usize,
    position: u64,
    bytes: usize,
) -> Result {
    if bytes == 0 {
        return Ok(());
    }
    match source {
        None => to.zero(offset, bytes)?,
        Some(source) => {
            let alive = DaxReadGuard::new();
            let from = piece_at(&source, &alive, position, bytes as u64, Access::Normal)?.memory();
            to.copy_within(offset, &from, in_page(position), bytes)?;
        }
    }
    to.flush(offset, bytes);
    Ok(())
}

/// Why a change ends before its end.
enum Stop {
    /// Because of this.
    Error(Error),
    /// Somebody holds what the file would give up.
    Held(DevFolio),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// What it takes to wait for those who hold pages.
struct Others<'a> {
    stay: &'a Stay<'a>,
    turns: &'a Turns,
}

/// A walk over a file that changes it. What page tables and entries say of an extent is removed
/// before the extent is touched. Where that is shared, faults are kept out until the filesystem has put
/// the copy in its place: by the caller of those who zero and unshare.
struct Change<'a> {
    inode: &'a Inode,
    walk: IomapIter<'a>,
    nowait: bool,
}

impl<'a> Change<'a> {
    #[inline(always)]
    fn new(
        space: &'a mut IomapSpace,
        inode: &'a Inode,
        position: u64,
        len: u64,
        ask: Ask,
        ops: &'a IomapOps,
    ) -> Self {
        Self {
            inode,
            walk: IomapIter::new(space, inode, position, len, ask, ops),
            nowait: ask.is_nowait(),
        }
    }

    /// Sees that nobody holds what the first `bytes` bytes of the present extent are copied from, which the
    /// file gives up then. Whoever holds a page of it would go on to hold what the blocks are used for
    /// afterwards (spec, R2). Faults are kept out. Waits for a moment.
    fn let_nobody_hold(&self, others: &Others<'_>, bytes: u64) -> Result<(), Stop> {
        if !self.walk.extent().is_shared() {
            return Ok(());
        }
        let range = PageRange::of_len(self.walk.position(), bytes);
        match others.turns.busy_folio(others.stay, self.inode, range)? {
            Some(folio) => Err(Stop::Held(folio)),
            None => Ok(()),
        }
    }

    /// How many of the first `bytes` bytes of the present extent come before the first page that somebody
    /// holds, or is in one entry with that. Faults are kept out.
    fn free_bytes(&self, bytes: u64) -> u64 {
        let position = self.walk.position();
        let all = PageRange::of_len(position, bytes);
        let (mut free, mut busy) = (all.first, all.last);
        // Ends: each turn halves what is between the two.
        while free < busy {
            let middle = PageIndex::new(free.get() + (busy.get() - free.get()) / 2);
            let range = PageRange {
                first: all.first,
                last: middle,
            };
            match layout::busy_folio(self.inode.mapping(), range) {
                Some(_) => busy = middle,
                None => free = PageIndex::new(middle.get() + 1),
            }
        }
        busy.to_byte().saturating_sub(position).min(bytes)
    }

    /// To be called before the memory of the first `bytes` bytes of the present extent is touched,
    /// and with nobody holding what is given up for it.
    ///
    /// Errors: `EAGAIN` when that would take waiting for an entry, unmapping or flushing one, and
    /// the caller does not want to be made to wait.
    #[inline(always)]
    fn begin(&mut self, bytes: u64) -> Result {
        let extent = self.walk.extent();
        if extent.is_new() || extent.is_shared() {
            self.may_evict(bytes, false)?;
            let range = PageRange::of_len(self.walk.position(), bytes);
            evict(self.inode, range);
        } else if !self.inode.mapping().is_empty() {
            self.may_evict(bytes, true)?;
            let range = PageRange::of_len(self.walk.position(), bytes);
            layout::evict_zeroes(self.inode.mapping(), range);
        }
        Ok(())
    }

    /// Whether entries of the present extent, or with `zeroes` those that stand for holes, may be waited
    /// for and removed. Blocks that are new now are written ones the next time, and zeroes in their place
    /// are found then.
    #[inline(always)]
    fn may_evict(&self, bytes: u64, zeroes: bool) -> Result {
        let range = || PageRange::of_len(self.walk.position(), bytes);
        if self.nowait && layout::has_to_evict(self.inode.mapping(), range(), zeroes) {
            return Err(EAGAIN);
        }
        Ok(())
    }
}

/// Most writes change neither blocks nor what page tables say: this is off their way.
#[cold]
#[inline(never)]
fn evict(inode: &Inode, range: PageRange) {
    layout::evict_range(inode.mapping(), range);
}

/// Reads or writes a file (`dax_iomap_rw`) and returns the bytes done. Sleeps.
///
/// Errors, when nothing was done: `EFAULT` for a bad buffer, `EIO` for bad memory or what DAX
/// cannot do, `EINTR` for a fatal signal, `EAGAIN` with `IOCB_NOWAIT`, the filesystem's own.
#[inline(always)]
pub(crate) fn iomap_rw(iocb: &mut Kiocb, iter: &mut IovIter, ops: &IomapOps) -> Result<usize> {
    if iocb.is_atomic() {
        return Err(EIO);
    }
    let write = iter.is_source();
    let mut ask = if write { Ask::WRITE } else { Ask::READ };
    if iocb.is_nowait() {
        ask = ask.nowait();
    }
    let position = iocb.position();
    let (end, result) = {
        let inode = iocb.inode();
        let (end, result, counter) = if write {
            let (end, result) = write_file(inode, position, iter, ask, ops);
            (end, result, Counter::WriteBytes)
        } else {
            let (end, result) = read_file(inode, position, iter, ask, ops);
            (end, result, Counter::ReadBytes)
        };
        FileDevice::of(inode).add(counter, end - position);
        (end, result)
    };
    iocb.set_position(end);
    match (end - position, result) {
        (0, Err(error)) => Err(error),
        (done, _) => Ok(done as usize),
    }
}

/// Reads from `position` on. Returns where it ended, and why, if that was an error.
#[inline(always)]
fn read_file(
    inode: &Inode,
    position: u64,
    iter: &mut IovIter,
    ask: Ask,
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
    let result = loop {
        match walk.next() {
            Ok(true) => (),
            Ok(false) => break Ok(()),
            Err(error) => break Err(error),
        }
        if let Err(error) = read_extent(&mut walk, iter) {
            walk.fail(of_block(error));
        }
    };
    (walk.position(), result)
}

#[inline(always)]
fn read_extent(walk: &mut IomapIter<'_>, iter: &mut IovIter) -> Result {
    let kind = walk.extent().kind();
    let mut left = walk.available();
    // Ends: each round reads at least a byte, or returns.
    while left > 0 {
        let (wanted, done) = match kind {
            ExtentKind::Mapped => {
                let alive = DaxReadGuard::new();
                let position = walk.position();
                let piece = piece_at(&walk.extent(), &alive, position, left, Access::Normal)?;
                if !piece.is_sound() {
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
            let more = read_to_missing(walk.extent(), walk.position(), rest, iter)?;
            walk.advance(more as u64);
            left -= more as u64;
        }
        vm::reschedule();
    }
    Ok(())
}

/// Writes up to `bytes` zeroes to the buffers, at least one.
#[inline(never)]
fn zero_buffer(iter: &mut IovIter, bytes: usize) -> Result<usize> {
    if vm::fatal_signal() {
        return Err(EINTR);
    }
    match iter.zero(bytes) {
        0 => Err(EFAULT),
        done => Ok(done),
    }
}

/// Goes on with a read of `bytes` bytes where the buffer is not there: has it there, which a user can
/// make take for ever, with nothing held. Returns how many bytes were read, at least one.
///
/// Whatever becomes of the buffer meanwhile, a page of the file is copied to memory of ours, and from
/// there to the buffer with page faults.
#[cold]
#[inline(never)]
fn read_to_missing(
    extent: Extent<'_, '_>,
    position: u64,
    bytes: u64,
    iter: &mut IovIter,
) -> Result<usize> {
    if vm::fatal_signal() {
        return Err(EINTR);
    }
    let wanted = bytes.min((PAGE - in_page(position)) as u64) as usize;
    let mut page = KVVec::from_elem(0u8, wanted, GFP_KERNEL)?;
    let there = {
        let alive = DaxReadGuard::new();
        let piece = piece_at(&extent, &alive, position, wanted as u64, Access::Normal)?;
        if !piece.is_sound() {
            return Err(EIO);
        }
        piece.read(&mut page)
    };
    if there == 0 {
        return Err(EIO);
    }
    match iter.copy_from(&page[..there]) {
        0 => Err(EFAULT),
        done => {
            iter.fault_in(bytes as usize - done);
            Ok(done)
        }
    }
}

/// Writes from `position` on. Returns where it ended, and why, if that was an error.
#[inline(always)]
fn write_file(
    inode: &Inode,
    position: u64,
    iter: &mut IovIter,
    ask: Ask,
    ops: &IomapOps,
) -> (u64, Result) {
    let len = iter.len() as u64;
    let mut space = IomapSpace::new();
    let mut change = Change::new(&mut space, inode, position, len, ask, ops);
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
/// What a fault has done before the lock was had is not known here, so the filesystem is asked once
/// more for each piece. The walk's extent stays as it is until all of it was written: a filesystem that
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
    iter: &mut IovIter,
    ask: Ask,
    ops: &IomapOps,
) -> Result {
    let Err(error) = write_pieces(walk, inode, start, iter, ask, ops) else {
        return Ok(());
    };
    walk.fail(of_block(error));
    // What nothing was written to is taken back, but not from under a fault that makes its copy there.
    // A task that is about to die leaves it, as a write that ends early leaves what is behind its end.
    match inode.mapping().keep_faults_out() {
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
    iter: &mut IovIter,
    ask: Ask,
    ops: &IomapOps,
) -> Result {
    if ask.is_nowait() {
        return Err(EAGAIN);
    }
    let mut bounce = KVVec::new();
    let mut turns = Turns::new();
    let mut left = walk.available();
    // Ends: each round writes at least a byte or returns, but for one, from which on the source is
    // memory of ours, of which at least a byte can be had and written; and for those that waited for
    // somebody who holds a page, which a signal ends.
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
            let mut change = Change::new(&mut space, inode, position, left, ask, ops);
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
                let mut change = Change::new(&mut space, inode, position, left, ask, ops);
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
            // What is in a pipe is let go when all of it was written.
            Err(Stop::Held(folio)) if iter.holds(folio, walk.position() - start) => {
                return Err(edeadlk());
            }
            Err(Stop::Held(folio)) => {
                turns.let_others(&stay, folio, Sleep::Interruptible, FileDevice::of(inode))?;
            }
            // There is something to write.
            Ok(()) => return Err(EIO),
        }
        if left > 0 {
            vm::reschedule();
        }
    }
    Ok(())
}

/// Writes up to `bytes` bytes where a walk begins, with the file's faults kept out. Buffers that are not
/// there are not faulted in. Returns how many it has written, and why there are no more, if that was an
/// error. The walk is over then.
///
/// The walk is one for all that will be written, so that the filesystem lays the blocks out for that.
fn write_piece(
    change: &mut Change<'_>,
    others: &Others<'_>,
    bytes: usize,
    iter: &mut IovIter,
) -> (usize, Result<(), Stop>) {
    let position = change.walk.position();
    let end = position + bytes as u64;
    let _out = match change.inode.mapping().keep_faults_out() {
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
            // What comes before that page need not wait.
            Err(Stop::Held(_)) => wanted = change.free_bytes(wanted),
            Err(_) => wanted = 0,
        }
        if wanted == 0 {
            change.walk.abandon();
            break held;
        }
        let written =
            iter.without_faults(|iter| write_extent(change, iter, wanted, Missing::Refused));
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
    // What was written in vain is still to be written.
    iter.revert((buffered - iter.len()).saturating_sub(done));
    (done, result)
}

/// What becomes of a write where its buffer is not there.
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
    change: &mut Change<'_>,
    iter: &mut IovIter,
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
        vm::reschedule();
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
/// Whatever becomes of the buffer meanwhile, up to the end of a page is copied to memory of ours, with
/// page faults, and from there to the file.
#[cold]
#[inline(never)]
fn write_from_missing(
    extent: Extent<'_, '_>,
    position: u64,
    bytes: u64,
    iter: &mut IovIter,
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
    iter: &mut IovIter,
) -> Option<(usize, usize)> {
    let alive = DaxReadGuard::new();
    let piece = piece_at(&extent, &alive, position, left, Access::Normal).ok()?;
    piece
        .is_sound()
        .then(|| (piece.bytes(), piece.copy_from(iter)))
}

/// The same for the new blocks of a shared extent, too, and for memory that is bad.
#[cold]
#[inline(never)]
fn write_with_care(
    extent: Extent<'_, '_>,
    source: Option<Extent<'_, '_>>,
    position: u64,
    left: u64,
    iter: &mut IovIter,
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

/// Zeroes a range of a file (`dax_zero_range`) and says whether anything had to be written. Sleeps.
pub(crate) fn zero_range(
    inode: &Inode,
    position: u64,
    len: u64,
    ops: &IomapOps,
    did_zero: &mut bool,
) -> Result {
    let device = FileDevice::of(inode);
    change_range(inode, position, len, Ask::ZERO, ops, |change, others| {
        zero_extent(change, others, device, did_zero)
    })
}

/// Calls `work` for each extent of a range, for those whose callers keep the file's faults out. Where
/// somebody holds what would be given up, they are let in until he does not, and the filesystem is asked
/// anew.
///
/// `work` returns how many bytes there are with nothing to be done, and has done nothing then. The
/// filesystem must not be told that they were done: it would take for data what it has set aside there,
/// be it long ago for a write that ended before it came to that.
fn change_range(
    inode: &Inode,
    position: u64,
    len: u64,
    ask: Ask,
    ops: &IomapOps,
    mut work: impl FnMut(&mut Change<'_>, &Others<'_>) -> Result<u64, Stop>,
) -> Result {
    let end = position.saturating_add(len);
    let mut turns = Turns::new();
    let mut at = position;
    // Ends with the range, with an error, or with the signal that ends the wait.
    while at < end {
        let stay = FileDevice::of(inode).stay().ok_or(EIO)?;
        let mut space = IomapSpace::new();
        let mut change = Change::new(&mut space, inode, at, end - at, ask, ops);
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
            None => vm::reschedule(),
        }
    }
    Ok(())
}

fn zero_extent(
    change: &mut Change<'_>,
    others: &Others<'_>,
    device: FileDevice<'_>,
    did_zero: &mut bool,
) -> Result<u64, Stop> {
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
                let (dax, place) = extent.place(position)?;
                if poison::was_seen() {
                    let piece = piece_at(&extent, &alive, position, 1, Access::Recovery)?;
                    piece.first(PAGE).make_writable();
                }
                dax.zero_page(&alive, place)?;
                let piece = piece_at(&extent, &alive, position, 1, Access::Normal)?;
                if !piece.is_sound() {
                    // The device has nothing against it, and its content is new.
                    piece.page().clear_poison();
                }
                PAGE
            } else {
                let bytes = (PAGE - offset).min(left as usize);
                let piece = piece_at(&extent, &alive, position, bytes as u64, Access::Normal)?;
                if !piece.is_sound() {
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
            vm::reschedule();
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
    change_range(inode, first, len, Ask::UNSHARE, ops, |change, others| {
        unshare_extent(change, others, device)
    })
}

fn unshare_extent(
    change: &mut Change<'_>,
    others: &Others<'_>,
    device: FileDevice<'_>,
) -> Result<u64, Stop> {
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
            if !from.first(bytes).is_sound() || !to.first(bytes).is_sound() {
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
            vm::reschedule();
        }
    }
    Ok(0)
}

/// One of the two places that are compared.
pub(crate) struct Side<'a> {
    pub(crate) inode: &'a Inode,
    /// In bytes.
    pub(crate) position: u64,
}

/// Compares `len` bytes of two files (`dax_dedupe_file_range_compare`). Sleeps.
pub(crate) fn dedupe_compare(a: &Side<'_>, b: &Side<'_>, len: u64, ops: &IomapOps) -> Result<bool> {
    FileDevice::of(a.inode).inc(Counter::DedupeCompares);
    let (mut space_a, mut space_b) = (IomapSpace::new(), IomapSpace::new());
    let mut left = IomapIter::new(&mut space_a, a.inode, a.position, len, Ask::READ, ops);
    let mut right = IomapIter::new(&mut space_b, b.inode, b.position, len, Ask::READ, ops);
    loop {
        match (left.next(), right.next()) {
            (Ok(true), Ok(true)) => (),
            (Ok(false), Ok(false)) => return Ok(true),
            (left_next, right_next) => {
                if matches!(left_next, Ok(true)) {
                    let _ = left.finish();
                }
                if matches!(right_next, Ok(true)) {
                    let _ = right.finish();
                }
                left_next?;
                right_next?;
                return Err(EIO);
            }
        }
        match compare_extents(&mut left, &mut right) {
            Ok(true) => (),
            other => {
                let result = other.map_err(of_block);
                left.finish()?;
                right.finish()?;
                return result;
            }
        }
    }
}

/// Compares as much as both present extents have and advances both walks by it.
fn compare_extents(a: &mut IomapIter<'_>, b: &mut IomapIter<'_>) -> Result<bool> {
    let mut left = a.available().min(b.available());
    let has_data = |walk: &IomapIter<'_>| match walk.extent().kind() {
        ExtentKind::Hole | ExtentKind::Unwritten => Ok(false),
        ExtentKind::Mapped => Ok(true),
        ExtentKind::Other => Err(EIO),
    };
    match (has_data(a)?, has_data(b)?) {
        (true, true) => (),
        (false, false) => {
            a.advance(left);
            b.advance(left);
            return Ok(true);
        }
        _ => return Ok(false),
    }
    while left > 0 {
        if vm::fatal_signal() {
            return Err(EINTR);
        }
        let bytes = {
            let alive = DaxReadGuard::new();
            let in_a = piece_at(&a.extent(), &alive, a.position(), left, Access::Normal)?;
            let in_b = piece_at(&b.extent(), &alive, b.position(), left, Access::Normal)?;
            let bytes = in_a.bytes().min(in_b.bytes());
            let (in_a, in_b) = (in_a.first(bytes), in_b.first(bytes));
            if !in_a.is_sound() || !in_b.is_sound() {
                return Err(EIO);
            }
            if !in_a.equals(&in_b) {
                return Ok(false);
            }
            bytes as u64
        };
        a.advance(bytes);
        b.advance(bytes);
        left -= bytes;
        if left > 0 {
            vm::reschedule();
        }
    }
    Ok(true)
}
