// SPDX-License-Identifier: GPL-2.0

//! The locks that keep the blocks of files from being given up.

use super::Inode;
use crate::kern::bindings;
use core::ptr::NonNull;
use kernel::{
    error::{
        code::*,
        to_result,
        Result, //
    },
    types::NotThreadSafe, //
};
/// The locks that keep the blocks of the files on one device while they are copied from.
///
/// # Invariants
///
/// The pointer is from `rdax_blocks_new`, and this value's own.
pub(crate) struct BlockLocks(NonNull<bindings::rdax_blocks>);

// SAFETY: It points to locks, which all tasks may use.
unsafe impl Send for BlockLocks {}
// SAFETY: As above.
unsafe impl Sync for BlockLocks {}

impl BlockLocks {
    /// Locks for one more device. Sleeps. Fails for want of memory.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: It takes nothing.
        let locks = unsafe { bindings::rdax_blocks_new() };
        // INVARIANT: It was made just now.
        Ok(Self(NonNull::new(locks).ok_or(ENOMEM)?))
    }

    /// Keeps the blocks that the filesystem says a file has, from now on, from being given up by a page
    /// fault that makes a copy of them, as long as the result lives. Whoever has it neither lets page faults
    /// happen nor waits for more than the filesystem's answer. Sleeps, unless `nowait`.
    ///
    /// Errors: `EAGAIN` with `nowait`, `EINTR` for a fatal signal.
    #[inline]
    pub(crate) fn keep<'a>(&'a self, inode: &'a Inode, nowait: bool) -> Result<BlocksKept<'a>> {
        // SAFETY: The locks and the inode are alive.
        to_result(unsafe {
            bindings::rdax_blocks_lock_shared(self.0.as_ptr(), inode.as_ptr(), nowait)
        })?;
        Ok(BlocksKept {
            locks: self,
            inode,
            _not_send: NotThreadSafe,
        })
    }

    /// Waits until nobody copies from the blocks of the file, and keeps others from beginning, while the
    /// filesystem puts a copy in their place. Sleeps.
    ///
    /// Errors: `EINTR` for a fatal signal.
    pub(crate) fn give_up<'a>(&'a self, inode: &'a Inode) -> Result<BlocksGivenUp<'a>> {
        // SAFETY: The locks and the inode are alive.
        to_result(unsafe { bindings::rdax_blocks_lock(self.0.as_ptr(), inode.as_ptr()) })?;
        Ok(BlocksGivenUp {
            locks: self,
            inode,
            _not_send: NotThreadSafe,
        })
    }
}

impl Drop for BlockLocks {
    fn drop(&mut self) {
        // SAFETY: By the type invariant. Whoever has one of them locked borrows this value.
        unsafe { bindings::rdax_blocks_free(self.0.as_ptr()) };
    }
}

/// The blocks of a file stay its own while this lives, as far as page faults go.
#[must_use = "the blocks may go at once"]
pub(crate) struct BlocksKept<'a> {
    locks: &'a BlockLocks,
    inode: &'a Inode,
    _not_send: NotThreadSafe,
}

impl Drop for BlocksKept<'_> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: Locked by [`BlockLocks::keep`], by this task.
        unsafe {
            bindings::rdax_blocks_unlock_shared(self.locks.0.as_ptr(), self.inode.as_ptr());
        }
    }
}

/// Nobody copies from the blocks of a file by [`BlocksKept`] while this lives.
#[must_use = "readers are let in at once"]
pub(crate) struct BlocksGivenUp<'a> {
    locks: &'a BlockLocks,
    inode: &'a Inode,
    _not_send: NotThreadSafe,
}

impl Drop for BlocksGivenUp<'_> {
    fn drop(&mut self) {
        // SAFETY: Locked by [`BlockLocks::give_up`], by this task.
        unsafe { bindings::rdax_blocks_unlock(self.locks.0.as_ptr(), self.inode.as_ptr()) };
    }
}
