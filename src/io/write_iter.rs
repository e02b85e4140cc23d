// SPDX-License-Identifier: GPL-2.0

//! Walks over a file that change it.

use crate::{
    dax::layout::{self, Turns},
    kern::{
        fs::{Inode, PageIndex, PageRange},
        iomap::{IomapFlags, IomapIter, IomapOps, IomapSpace},
        memory::Stay,
        page::DevFolio,
    },
};
use kernel::prelude::*;

/// Why a change ends before its end.
pub(super) enum Stop<'s> {
    /// Because of this.
    Error(Error),
    /// Somebody holds what the file would give up.
    Held(DevFolio<'s>),
}

impl From<Error> for Stop<'_> {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// The means to wait for holders of pages.
pub(super) struct Others<'a> {
    pub(super) stay: &'a Stay<'a>,
    pub(super) turns: &'a Turns,
}

/// A walk over a file that changes it. What page tables and entries say of an extent is removed
/// before the extent is touched. Where that is shared, faults are kept out until the filesystem has put
/// the copy in its place: by the caller of those who zero and unshare.
pub(super) struct WriteIter<'a> {
    pub(super) inode: &'a Inode,
    pub(super) walk: IomapIter<'a>,
    pub(super) nowait: bool,
}

impl<'a> WriteIter<'a> {
    #[inline(always)]
    pub(super) fn new(
        space: &'a mut IomapSpace,
        inode: &'a Inode,
        position: u64,
        len: u64,
        ask: IomapFlags,
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
    pub(super) fn let_nobody_hold<'s>(
        &self,
        others: &Others<'s>,
        bytes: u64,
    ) -> Result<(), Stop<'s>> {
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
    pub(super) fn free_bytes(&self, bytes: u64) -> u64 {
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
    pub(super) fn begin(&mut self, bytes: u64) -> Result {
        if self.walk.extent().is_shared() {
            self.may_evict(bytes, false)?;
            let range = PageRange::of_len(self.walk.position(), bytes);
            evict(self.inode, range);
        } else if !self.inode.mapping().is_empty() {
            // Entries with memory have that of the blocks, which the file keeps: also where these are called
            // new. They may be so in part only (XFS converts unwritten blocks together with written ones
            // between them), or have been mapped since. If somebody holds a page, its entry is all that tells
            // whoever takes the blocks from the file.
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
    pub(super) fn may_evict(&self, bytes: u64, zeroes: bool) -> Result {
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
