// SPDX-License-Identifier: GPL-2.0

//! Write-back of what user space wrote through mappings (spec, section 6).

use super::{
    device::FileDevice,
    layout,
    poison,
    stats::Counter,
    tree::{self, Disposition, EntryBatch, Filter, Visitor, WalkAction}, //
};
use crate::kern::{
    dax::DaxDevice,
    entry::Entry,
    fs::{Mapping, PageRange},
    order::Order,
    page::HolderLook,
    trace, //
};
use kernel::{
    pr_err_once,
    prelude::*, //
};

/// A caller's request to write back.
pub(crate) struct Request {
    /// The pages.
    pub(crate) range: PageRange,
    /// The caller waits for the result (`WB_SYNC_ALL`); nothing else is worth the work.
    pub(crate) sync: bool,
}

struct WriteBack<'a> {
    dax: &'a DaxDevice,
    device: FileDevice<'a>,
    /// Pages.
    written: usize,
    /// Of these, those that stayed dirty.
    held: usize,
    /// Somebody has stored to a page that was mapped ahead, which the file's times do not tell.
    stored: bool,
}

impl Visitor for WriteBack<'_> {
    const ASKS_DIRTY: bool = false;
    const BATCHES: bool = true;

    fn look(&mut self, entry: Entry<'_>, _dirty: bool) -> WalkAction {
        match entry.page() {
            Some(_) => WalkAction::Work,
            None => WalkAction::Next,
        }
    }

    fn work(&mut self, batch: &EntryBatch<'_>) -> Disposition {
        self.protect(batch);
        // Before the flush: who has let go by now has stored before.
        let held = held_of(batch);
        // Only now: what is stored before this is in the cache lines, and what is stored later
        // faults first and finds the entry locked (spec, R5).
        let mut pages = 0;
        batch.pieces(false, |_, piece| {
            poison::for_each_good_run(piece, |sound| {
                layout::in_chunks(sound.pages(), |offset, bytes| {
                    self.dax.flush(sound, offset, bytes);
                });
            });
            pages += piece.pages();
        });
        self.written += pages;
        if held != 0 {
            self.held += pages_of(batch, held);
        }
        let stats = self.device;
        stats.add(Counter::WritebackEntries, batch.len() as u64);
        stats.add(Counter::WritebackBytes, (pages << Order::PAGE_SHIFT) as u64);
        Disposition::Clean(held)
    }
}

/// A bit for each entry of the batch whose folio somebody holds beyond its mappings (a direct read, a
/// debugger): he may store without a fault as long as he does, so it stays dirty for the next
/// write-back.
fn held_of(batch: &EntryBatch<'_>) -> u64 {
    let mut held = 0;
    let mut look = HolderLook::new();
    for (at, (_, entry, _)) in batch.iter().enumerate() {
        let page = entry.page();
        if page.is_some_and(|page| look.is_held(page.folio())) {
            held |= 1 << at;
        }
    }
    held
}

/// The pages of the entries of a batch that have a bit.
#[cold]
fn pages_of(batch: &EntryBatch<'_>, bits: u64) -> usize {
    let mut pages = 0;
    for (at, (_, entry, _)) in batch.iter().enumerate() {
        if bits & 1 << at != 0 {
            pages += entry.order().pages();
        }
    }
    pages
}

impl WriteBack<'_> {
    /// Write-protects what page tables have of the batch.
    fn protect(&mut self, batch: &EntryBatch<'_>) {
        if !batch.is_mapped() {
            return;
        }
        let mapping = batch.mapping();
        // Several entries are smaller.
        let order = batch.first_order();
        if batch.has_ahead() {
            self.stored |= mapping.note_stores(batch.range(), order < Order::PMD);
        }
        if order > Order::PMD {
            // The core cannot write-protect what an entry of the third level maps.
            mapping.unmap(batch.range());
        } else {
            batch.pieces(false, |first, piece| {
                mapping.write_protect(first, piece.pfn(), piece.pages());
            });
        }
    }
}

/// Writes back the dirty entries of a range (`dax_writeback_mapping_range`) and returns the pages
/// that are clean since. Sleeps.
///
/// Pages that stay dirty are none of them: a sync takes what was written for progress, and comes to a file that it has
/// left dirty again and again until there is none, or until the clock's next tick.
///
/// `EIO` when the filesystem's blocks are not pages; errors are kept for `fsync` as well.
pub(crate) fn writeback(mapping: &Mapping, dax: &DaxDevice, request: &Request) -> Result<usize> {
    let inode = mapping.host();
    if inode.block_bits() as usize != Order::PAGE_SHIFT {
        pr_err_once!("write-back of a filesystem whose blocks are not pages\n");
        mapping.set_error(EIO);
        return Err(EIO);
    }
    if mapping.is_empty() || !request.sync {
        return Ok(0);
    }
    // The memory is there without `dax_read_lock`, under which nothing is waited for: a device that goes
    // away waits until each entry is unlocked, and takes it out.
    mapping.tag_for_writeback(request.range);
    let mut visitor = WriteBack {
        dax,
        device: FileDevice::of(inode),
        written: 0,
        held: 0,
        stored: false,
    };
    // Ends: the walk comes to each entry once, also to those that stay dirty and marked.
    tree::walk(mapping, request.range, Filter::ToWrite, &mut visitor);
    if visitor.held != 0 {
        inode.mark_dirty_pages();
    }
    if visitor.stored {
        inode.update_times();
    }
    if trace::wants_writeback() {
        trace::writeback(inode, request.range, visitor.written);
    }
    Ok(visitor.written - visitor.held)
}
