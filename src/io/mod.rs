// SPDX-License-Identifier: GPL-2.0

//! Reading, writing, zeroing, unsharing and comparing files without page faults (spec, section 6).
//!
//! The callers hold `i_rwsem`: shared to read, exclusive for everything else.
//!
//! The path that every read and write takes is inlined into one function; the rare cases are kept out of
//! line, so that the common one pays nothing for them.

mod dedupe;
mod read;
mod unshare;
mod write;
mod write_iter;
mod zero;

pub(crate) use dedupe::{dedupe_compare, Side};
pub(crate) use unshare::file_unshare;
pub(crate) use zero::{truncate_page, zero_range};

use super::{device::FileDevice, stats::Counter};
use crate::kern::{
    dax::{Access, DaxMemory, DaxReadGuard, Piece},
    error::is_hwpoison,
    iomap::{Extent, IomapFlags, IomapOps},
    iov::{IovIter, Kiocb},
    order::Order,
    vm,
};
use kernel::prelude::*;
use read::read_file;
use write::write_file;

const PAGE: usize = Order::PTE.bytes();

/// Bytes that are copied or zeroed before others get the processor.
const CHUNK: usize = Order::PMD.bytes();

/// Where in its page a position is.
#[inline]
fn in_page(position: u64) -> usize {
    position as usize & (PAGE - 1)
}

/// The error of a read or write for a memory error.
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
    let place = extent.place(position)?;
    let offset = in_page(position);
    // Every piece but the last ends with a page, so that none begins in the middle of one.
    let bytes = bytes.min((CHUNK - offset) as u64) as usize;
    let pages = (offset + bytes).div_ceil(PAGE);
    let memory = place.access(alive, pages, access)?;
    Ok(memory.piece(offset, bytes))
}

/// Copies what the file had before a copy on write to `bytes` bytes at `position` of the new
/// memory, all in one page, which `to` begins with at `offset`. Zeroes where it had nothing.
fn fill_from_source(
    source: Option<Extent<'_, '_>>,
    to: DaxMemory<'_>,
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

/// Reads or writes a file (`dax_iomap_rw`) and returns the bytes done. Sleeps.
///
/// Errors, when nothing was done: `EFAULT` for a bad buffer, `EIO` for bad memory or what DAX
/// cannot do, `EINTR` for a fatal signal, `EAGAIN` with `IOCB_NOWAIT`, the filesystem's own.
#[inline(always)]
pub(crate) fn iomap_rw(iocb: &mut Kiocb, iter: &mut IovIter<'_>, ops: &IomapOps) -> Result<usize> {
    if iocb.is_atomic() {
        return Err(EIO);
    }
    let write = iter.is_source();
    let mut ask = if write {
        IomapFlags::WRITE
    } else {
        IomapFlags::READ
    };
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
    match result {
        // A worker of the kernel writes for a block device that is made of the file. A loop device takes a write
        // that has ended early for a whole one, and its users would never know what they have lost. One that does
        // not wait is made again, whole, by who can.
        Err(error) if write && error == EAGAIN && vm::is_worker() => {
            return Err(if iocb.is_nowait() { error } else { EIO });
        }
        Err(error) if end == position => return Err(error),
        _ => (),
    }
    iocb.set_position(end);
    Ok((end - position) as usize)
}
