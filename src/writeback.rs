// SPDX-License-Identifier: GPL-2.0

//! Write-back of what user space wrote through mappings (spec, section 6).

use super::{
    account::Account,
    entry::Entry,
    stats::Counter,
    tree::{self, After, Locked, Step, Visitor, Which}, //
};
use crate::kern::{
    dax::{DaxDevice, DaxReadGuard},
    fs::{Mapping, PageRange},
    order::Order,
    page::DevPage,
    vm, //
};
use kernel::{
    pr_err_once,
    prelude::*, //
};

/// Bytes that are written back before others get the processor.
const FLUSH_CHUNK: usize = Order::PMD.bytes();

/// What a caller wants written back.
pub(crate) struct Request {
    /// The pages.
    pub(crate) range: PageRange,
    /// The caller waits for the result (`WB_SYNC_ALL`); nothing else is worth the work.
    pub(crate) sync: bool,
}

struct WriteBack<'a> {
    dax: &'a DaxDevice,
    device: Account<'a>,
    written: usize,
}

impl Visitor for WriteBack<'_> {
    const ASKS_DIRTY: bool = false;

    fn look(&mut self, entry: Entry, _dirty: bool) -> Step {
        match entry.page() {
            Some(_) => Step::Work,
            None => Step::Next,
        }
    }

    fn work(&mut self, locked: &mut Locked<'_>) -> After {
        let Some(page) = locked.entry().page() else {
            return After::Keep;
        };
        let order = locked.entry().order();
        self.protect(locked, page, order);
        // Only now: what is stored before this is in the cache lines, and what is stored later
        // faults first and finds the entry locked (spec, R5).
        let mut done = 0;
        while done < order.bytes() {
            let bytes = (order.bytes() - done).min(FLUSH_CHUNK);
            self.dax.flush(page, done, bytes);
            done += bytes;
            if done < order.bytes() {
                vm::reschedule();
            }
        }
        self.written += order.pages();
        let stats = self.device;
        stats.inc(Counter::WritebackEntries);
        stats.add(Counter::WritebackBytes, order.bytes() as u64);
        After::Clean
    }
}

impl WriteBack<'_> {
    fn protect(&self, locked: &Locked<'_>, page: DevPage, order: Order) {
        if page.folio().mapcount() == 0 {
            return;
        }
        if order > Order::PMD {
            // The core cannot write-protect what an entry of the third level maps.
            locked.mapping().unmap(locked.range());
        } else {
            locked
                .mapping()
                .write_protect(locked.first(), page.pfn(), order.pages());
        }
    }
}

/// Writes back the dirty entries of a range (`dax_writeback_mapping_range`) and returns the pages
/// that were. Sleeps.
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
    let _alive = DaxReadGuard::new();
    mapping.tag_for_writeback(request.range);
    let mut visitor = WriteBack {
        dax,
        device: Account::of(inode),
        written: 0,
    };
    tree::walk(mapping, request.range, Which::ToWrite, &mut visitor);
    Ok(visitor.written)
}
