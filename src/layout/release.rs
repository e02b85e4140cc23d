// SPDX-License-Identifier: GPL-2.0

//! Releasing what entries point to: writing it back, and taking it off its folio (spec, R5).

use super::super::{
    device::FileDevice,
    folio::{self, FolioReleaseBatch},
    poison,
    stats::Counter,
    tree::{EntryBatch, LockedEntry},
};
use crate::kern::{entry::Entry, order::Order, page::PageRun, trace, vm};

/// Bytes that are written back before others get the processor.
const FLUSH_CHUNK: usize = Order::PMD.bytes();

/// Calls `work` with offset and length, in bytes, of one piece of `pages` pages after the other, and
/// lets others have the processor between them (spec, R8). Sleeps.
pub(crate) fn in_chunks(pages: usize, mut work: impl FnMut(usize, usize)) {
    let all = pages << Order::PAGE_SHIFT;
    let mut done = 0;
    while done < all {
        let bytes = (all - done).min(FLUSH_CHUNK);
        work(done, bytes);
        done += bytes;
        if done < all {
            vm::cond_resched();
        }
    }
}

/// Writes back all of the memory of the pages. Sleeps.
pub(crate) fn flush(run: PageRun<'_>) {
    poison::for_each_good_run(run, |run| {
        in_chunks(run.pages(), |offset, bytes| run.write_back(offset, bytes));
    });
}

/// Lets go of what a locked entry points to, which is about to be replaced or removed: no page
/// table maps it writable any more, and what is dirty of it is written back first (spec, R5).
pub(crate) fn release_backing(locked: &LockedEntry<'_>, device: FileDevice<'_>) {
    let Some(block) = locked.entry().block() else {
        return;
    };
    if locked.is_dirty() {
        if trace::wants_removals() {
            trace::remove_flush(locked.mapping().host(), locked.range(), 1);
        }
        flush(block.run());
        device.inc(Counter::EntriesFlushedOnRemoval);
    }
    if let Some(association) = locked.detach() {
        folio::disassociate(association);
    }
}

/// The same for the entries of a batch, which are to be removed.
pub(super) fn release_batch(batch: &EntryBatch<'_>, device: FileDevice<'_>) {
    batch.pieces(true, |_, pages| flush(pages));
    let mut released = FolioReleaseBatch::new();
    let mut flushed = 0;
    batch.detach(|association, dirty| {
        flushed += u64::from(dirty);
        released.add(association);
    });
    drop(released);
    device.add(Counter::EntriesFlushedOnRemoval, flushed);
    if flushed != 0 && trace::wants_removals() {
        trace::remove_flush(batch.mapping().host(), batch.range(), flushed as usize);
    }
}

/// Unmaps a locked entry and lets go of what it points to; it is to be removed.
pub(super) fn unmap_and_release(locked: &LockedEntry<'_>) {
    let device = FileDevice::of(locked.mapping().host());
    locked.mapping().unmap(locked.range());
    release_backing(locked, device);
    device.inc(Counter::EntriesRemoved);
}

/// Unmaps and removes a locked entry.
pub(crate) fn discard(locked: LockedEntry<'_>) {
    unmap_and_release(&locked);
    locked.remove();
}

/// Makes a locked entry empty again, after what it was made for failed.
pub(crate) fn empty(locked: &LockedEntry<'_>) {
    let device = FileDevice::of(locked.mapping().host());
    locked.mapping().unmap(locked.range());
    release_backing(locked, device);
    locked.set(Entry::empty(locked.entry().order()));
}
