// SPDX-License-Identifier: GPL-2.0

//! Users of a file's pages other than its mappings.

use super::{
    super::{
        device::FileDevice,
        stats::Counter,
        tree::{self, Disposition, EntryBatch, Filter, LockedEntry, Visitor, WalkAction},
    },
    turns::{timed, Turns},
};
use crate::kern::{
    entry::Entry,
    fs::{Inode, Mapping, PageRange},
    page::{DevFolio, Pfn},
    wait,
    waiting::Waiter,
};
use kernel::prelude::*;

/// Looks for a folio with more references than page tables hold.
struct FindBusy<'a> {
    /// Its first frame: the entry may be removed at any time, and the device go.
    busy: Option<Pfn>,
    /// Pages that go away with this device are nobody's concern.
    spare: Option<FileDevice<'a>>,
}

impl Visitor for FindBusy<'_> {
    const ASKS_DIRTY: bool = false;
    const BATCHES: bool = false;

    #[inline(always)]
    fn look(&mut self, entry: Entry<'_>, _dirty: bool) -> WalkAction {
        let Some(page) = entry.page() else {
            return WalkAction::Next;
        };
        let folio = page.folio();
        if folio.is_held()
            && self
                .spare
                .is_none_or(|device| !device.is_gone(folio.head().pfn()))
        {
            self.busy = Some(folio.head().pfn());
            return WalkAction::Stop;
        }
        WalkAction::Next
    }

    fn work(&mut self, _batch: &EntryBatch<'_>) -> Disposition {
        // Not reached: nothing is to be worked on.
        Disposition::Clean(0)
    }
}

/// The first frame of the first folio of the range, in the order of the file, that somebody uses other than by
/// a mapping (`dax_layout_busy_page_range`). The range is unmapped first. Sleeps.
///
/// The caller keeps the folio from being gone, by a stay that he has had before
/// ([`Stay::folio`](crate::kern::memory::Stay::folio)).
pub(crate) fn busy_folio(mapping: &Mapping, range: PageRange) -> Option<Pfn> {
    find_busy(mapping, range, None)
}

pub(super) fn find_busy(
    mapping: &Mapping,
    range: PageRange,
    spare: Option<FileDevice<'_>>,
) -> Option<Pfn> {
    if mapping.is_empty() || !mapping.host().is_dax() {
        return None;
    }
    let range = tree::whole_entries(mapping, range);
    // First the page tables, then the counts: fast GUP is either seen by its reference, or sees
    // that the page is gone.
    mapping.unmap(range);
    let mut visitor = FindBusy { busy: None, spare };
    tree::walk(mapping, range, Filter::Any, &mut visitor);
    visitor.busy
}

/// Sees that nobody holds a page of the range, for a caller that writes it back with faults kept out: he does not
/// want stores until he has done something with the blocks, which is to take them from the file. He has waited
/// for those who hold pages, so that this finds nobody; or is one who exchanges what two files have, and has
/// not (spec, R2). For all others it does nothing. Waits for a moment.
///
/// Errors: `EBUSY` when somebody holds a page; `ERESTARTSYS` when a signal came, `EIO` when the device goes away.
pub(crate) fn refuse_if_held(inode: &Inode, range: PageRange) -> Result {
    if !inode.mapping().are_faults_out() {
        return Ok(());
    }
    let stay = FileDevice::of(inode).stay().ok_or(EIO)?;
    match Turns::new(Waiter::Layout).busy_folio(&stay, inode, range)? {
        Some(_) => Err(EBUSY),
        None => Ok(()),
    }
}

/// The folio of a locked entry that the file is about to give up, if somebody uses it other than by a
/// mapping. The entry is unmapped first, and as long as it is locked nobody maps it.
pub(crate) fn held<'l>(locked: &'l LockedEntry<'_>) -> Option<DevFolio<'l>> {
    let page = locked.entry().page()?;
    locked.mapping().unmap(locked.range());
    let folio = page.folio();
    folio.is_held().then_some(folio)
}

/// As [`held`], but who holds the folio for a moment only is waited for, with the entry locked, so that he is
/// the last. Sleeps.
pub(crate) fn held_for_long<'l>(
    locked: &'l LockedEntry<'_>,
    device: FileDevice<'_>,
) -> Option<DevFolio<'l>> {
    let folio = held(locked)?;
    if let Some(stay) = device.stay() {
        let mut left = Turns::OF_FAULT;
        device.inc(Counter::LayoutWaits);
        let idle = timed(device, || {
            wait::is_soon_idle(&stay, folio, &mut left, Turns::OF_FAULT / 4)
        });
        if idle == Ok(true) {
            return held(locked);
        }
    }
    Some(folio)
}

/// Whether somebody holds a page of a file that nobody uses any more, so that it is mapped by nobody.
/// Sleeps.
///
/// Without a stay, as nothing but the answer is kept: folios are looked at under the tree's lock, where their
/// entries are, and a device that goes keeps its pages until no entry points to them, and then for those who have
/// found one under that lock (`folio::wait_until_unused`, [`Retired`](crate::kern::memory::Retired)). A file that
/// the device does not find, because it is being evicted, removes its entries itself, with a stay
/// (`break_layout_final`); one that is parked is found.
pub(crate) fn is_held(inode: &Inode) -> bool {
    busy_folio(inode.mapping(), PageRange::ALL).is_some()
}
