// SPDX-License-Identifier: GPL-2.0

//! Resolving: the entry, or else the filesystem, says what the file has.

use super::{
    super::{
        device,
        layout,
        poison,
        stats::Counter,
        tree::{Backing, LockedEntry, PrefaultEntries}, //
    },
    install::Installed,
    lock::Target,
    Failure, Fault,
};
use crate::kern::{
    dax::DaxPlace,
    error::{ehwpoison, is_hwpoison},
    iomap::{ExtentKind, IomapFlags, IomapIter, IomapOps, IomapSpace},
    order::Order,
    page::{DevFolio, DevPage, FileBlock, FilePages, PageBlock},
    vm, //
};
use kernel::prelude::*;

/// The most extents that a store makes an entry of 1 GiB of: 2 MiB each, on average.
const MOST_EXTENTS: usize = 512;

/// The filesystem, asked for pages from byte `start` of the file on.
pub(super) struct Query<'q> {
    pub(super) iter: IomapIter<'q>,
    pub(super) start: u64,
    /// A write that only asks what is there, for blocks that need no preparation.
    report_only: bool,
}

/// How many of the blocks the filesystem has allocated for this fault.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum New {
    None,
    Some,
    All,
}

/// A copy on write that is to be made.
pub(super) struct CopyOnWrite<'i> {
    pub(super) to: DaxPlace<'i>,
    /// Where the data still is; zeroes if `None`.
    pub(super) from: Option<DaxPlace<'i>>,
}

/// Memory that the file has.
pub(super) struct FileMemory<'i, 'l> {
    /// The pages of the entry.
    pub(super) block: FileBlock<'l>,
    /// The pages from the first of these on that are known to be the file's.
    pub(super) run: FilePages<'l>,
    pub(super) new: New,
    /// Other files have the blocks, too, or had them until now.
    pub(super) shared: bool,
    /// Metadata that is needed to find the data is not durable yet.
    pub(super) needs_sync: bool,
    pub(super) copy: Option<CopyOnWrite<'i>>,
}

/// The contents of the file at the wanted pages.
pub(super) enum Resolved<'i, 'l> {
    /// A hole of so many pages.
    Hole(usize),
    /// Memory.
    Memory(FileMemory<'i, 'l>),
}

impl Resolved<'_, '_> {
    /// Whether the memory is to become a copy of what the file has.
    pub(super) fn is_copied(&self) -> bool {
        matches!(self, Self::Memory(memory) if memory.copy.is_some())
    }
}

impl<'a, const ORDER: usize> Fault<'a, ORDER> {
    /// The answer of the entry itself, if it is enough: for a read of a data entry, and for a write of
    /// a writable one, unless the store must find its metadata durable.
    ///
    /// The entry's lock keeps its memory: a device that goes away takes the entries with it.
    #[inline]
    pub(super) fn known<'l>(
        &self,
        target: &Target<'l, '_>,
    ) -> Result<Option<Installed<'l>>, Failure<'a>> {
        let entry = target.locked.entry();
        let Some(block) = entry.block() else {
            return Ok(None);
        };
        if self.write && (!entry.is_writable() || self.vmf.is_sync())
            || self.device.may_have_bad_blocks(self.mapping.host(), block)
            || self.is_in_doubt()
        {
            return Ok(None);
        }
        let page = self.sound(block, self.offset_in(target.locked), false)?;
        Ok(Some(Installed {
            page: Some(page),
            asked: false,
            sync: false,
            new: false,
        }))
    }

    /// Whether the filesystem's earlier answers may be wrong: it has reported an error, or was shut down.
    /// XFS does not report every shutdown (an error of its log), so it is asked once in a tick of the
    /// clock, which costs little.
    #[inline]
    fn is_in_doubt(&self) -> bool {
        let inode = self.mapping.host();
        if self.device.is_first_in(vm::tick()) && self.vmf.file().is_shut_down() {
            device::set_error(inode);
        }
        device::has_error(inode)
    }

    /// The page to map, which has this number in its block, unless it, or another of the order, is known
    /// to be bad.
    #[inline]
    pub(super) fn sound<'p>(
        &self,
        block: PageBlock<'p>,
        first: usize,
        new: bool,
    ) -> Result<DevPage<'p>, Failure<'a>> {
        let page = block.nth(first);
        if !page.is_poisoned() && (self.order() == Order::PTE || !poison::was_seen()) {
            return Ok(page);
        }
        // One bad page keeps the others from being mapped together with it.
        for at in 0..self.order().pages() {
            let page = block.nth(first + at);
            if !page.is_poisoned() {
                continue;
            }
            if new {
                // The filesystem has just overwritten it.
                page.clear_poison();
                continue;
            }
            self.device.inc(Counter::PoisonFaults);
            return Err(self.fallback_or(Counter::FallbackPoison, ehwpoison()));
        }
        Ok(page)
    }

    /// Where the page that was accessed, or the first of the order, is in an entry that may be larger, in
    /// pages.
    #[inline]
    pub(super) fn offset_in(&self, locked: &LockedEntry<'_>) -> usize {
        let index = self.order().first(self.index);
        index.get().wrapping_sub(locked.first().get())
    }

    /// Asks the filesystem for the pages to install and those prefaulted behind them. Its answer is about the first
    /// extent there. The walk has to be finished or abandoned.
    #[inline(always)]
    pub(super) fn query<'q>(
        &self,
        target: &Target<'_, '_>,
        prefaulted: usize,
        space: &'q mut IomapSpace,
        ops: &'q IomapOps,
    ) -> Result<Query<'q>, Failure<'a>>
    where
        'a: 'q,
    {
        let start = target.size.first(self.index).to_byte();
        let pages = target.size.pages() + prefaulted;
        // To be asked for writing, a filesystem prepares copies of what is shared, and drops those
        // that were not made; for pages that nobody has written to, none is made here, but one may
        // be under way in a write. So for more than was accessed it is only asked what is there,
        // which is all there is to know of blocks that need nothing.
        let report_only = self.write && pages > self.order().pages();
        let ask = if self.write && !report_only {
            IomapFlags::WRITE
        } else {
            IomapFlags::READ
        }
        .fault();
        let ops = match report_only {
            true => ops
                .read_ops_for(self.mapping.host())
                .ok_or(Failure::Narrow)?,
            false => ops,
        };
        if !self.write {
            ops.note_reading(self.mapping.host());
        }
        let mut iter = IomapIter::new(
            space,
            self.mapping.host(),
            start,
            (pages << Order::PAGE_SHIFT) as u64,
            ask,
            ops,
        );
        match iter.next() {
            Ok(true) => Ok(Query {
                iter,
                start,
                report_only,
            }),
            Ok(false) => {
                iter.abandon();
                Err(Failure::Error(EIO))
            }
            Err(_) if pages > self.order().pages() => Err(Failure::Narrow),
            Err(error) => Err(self.fallback_or(Counter::FallbackExtent, error)),
        }
    }

    /// Sees that the file has blocks which can be mapped by the order, before a filesystem is asked for 1 GiB to store
    /// to: it would allocate what is missing, and write zeroes to what was never written, for a byte that somebody
    /// stores. Nothing is changed. Blocks in more than [`MOST_EXTENTS`] will not do. Where a filesystem cannot be asked
    /// what is there, it is taken to be. Sleeps.
    ///
    /// Errors: [`Failure::Fallback`].
    #[inline(never)]
    pub(super) fn look_for_blocks(
        &self,
        target: &Target<'_, '_>,
        ops: &IomapOps,
    ) -> Result<(), Failure<'a>> {
        let Some(ops) = ops.read_ops_for(self.mapping.host()) else {
            return Ok(());
        };
        let mut space = IomapSpace::new();
        let start = target.size.first(self.index).to_byte();
        let mut iter = IomapIter::new(
            &mut space,
            self.mapping.host(),
            start,
            target.size.bytes() as u64,
            IomapFlags::READ.fault(),
            ops,
        );
        let mut before = None;
        let mut extents = 0;
        // Ends: each round is for the extent behind the last one's, and there are so many rounds.
        let result = loop {
            match iter.next() {
                Ok(true) => (),
                // Over; or an error, of which the fault is told when it asks in earnest.
                _ => break Ok(()),
            }
            let (extent, position) = (iter.extent(), iter.position());
            match extent.kind() {
                ExtentKind::Mapped | ExtentKind::Unwritten => (),
                ExtentKind::Hole => break Err(Failure::Fallback(Counter::FallbackHole)),
                _ => break Err(Failure::Fallback(Counter::FallbackExtent)),
            }
            let at = (
                extent.device_key(),
                extent.address(position).wrapping_sub(position),
            );
            let fits = match before {
                Some(before) => before == at,
                None => iter
                    .pages_for(target.locked.slot(), start, target.size.pages())
                    .is_ok_and(|run| run.block(0, target.size).is_some()),
            };
            extents += 1;
            if !fits || extents > MOST_EXTENTS || vm::fatal_signal() {
                break Err(Failure::Fallback(Counter::FallbackExtent));
            }
            before = Some(at);
            vm::cond_resched();
            let available = iter.available();
            iter.advance(available);
        };
        iter.abandon();
        result
    }

    /// Reads the filesystem's answer.
    pub(super) fn resolve<'q, 'l>(
        &self,
        target: &Target<'l, '_>,
        query: &mut Query<'q>,
    ) -> Result<Resolved<'q, 'l>, Failure<'a>> {
        let extent = query.iter.extent();
        if query.report_only && !extent.is_own() {
            return Err(Failure::Narrow);
        }
        let kind = extent.kind();
        let copy = self.write && extent.is_shared();
        match kind {
            ExtentKind::Mapped => self.resolve_memory(target, query, copy),
            ExtentKind::Unwritten if copy => self.resolve_memory(target, query, copy),
            ExtentKind::Hole | ExtentKind::Unwritten if !self.write => {
                self.resolve_hole(&query.iter)
            }
            _ => Err(self.fallback_or(Counter::FallbackExtent, EIO)),
        }
    }

    fn resolve_hole<'q, 'l>(&self, iter: &IomapIter<'_>) -> Result<Resolved<'q, 'l>, Failure<'a>> {
        if self.order() > Order::PMD {
            return Err(Failure::Fallback(Counter::FallbackHole));
        }
        if iter.available() < self.order().bytes() as u64 {
            return Err(self.fallback_or(Counter::FallbackExtent, EIO));
        }
        let pages = (iter.available() >> Order::PAGE_SHIFT) as usize;
        Ok(Resolved::Hole(pages))
    }

    fn resolve_memory<'q, 'l>(
        &self,
        target: &Target<'l, '_>,
        query: &mut Query<'q>,
        copy: bool,
    ) -> Result<Resolved<'q, 'l>, Failure<'a>> {
        let Query { iter, start, .. } = query;
        let start = *start;
        let shared = iter.extent().is_shared();
        let locked = target.locked;
        let size = target.size;
        if copy && locked.entry().is_data() {
            // Larger orders do without.
            let held = match self.order() {
                Order::PTE => layout::held_for_long(locked, self.device),
                _ => layout::held(locked),
            };
            if let Some(folio) = held {
                return Err(self.held_up(size, folio));
            }
            if locked.entry().order() > self.order() {
                return Err(Failure::Again);
            }
        }
        let place = iter
            .extent()
            .place(start)
            .map_err(|error| self.fallback_or(Counter::FallbackExtent, error))?;
        let mut new = New::None;
        if iter.extent().is_new() {
            new = New::All;
        }
        let mut needs_sync = iter.extent().needs_sync();
        let available = iter.available();
        // For an entry larger than the order, it was seen that nothing is shared.
        if available < size.bytes() as u64 && (shared || size != self.order()) {
            return Err(self.short(size));
        }

        let wanted = size.pages().max((available >> Order::PAGE_SHIFT) as usize);
        let run = iter
            .pages_for(locked.slot(), start, wanted)
            .map_err(|error| {
                if self.order() == Order::PTE && wanted > Order::PTE.pages() {
                    // The error may be about one of the pages ahead.
                    return Failure::Narrow;
                }
                if is_hwpoison(error) {
                    self.device.inc(Counter::PoisonFaults);
                }
                self.fallback_or(Counter::FallbackExtent, error)
            })?;
        let Some(block) = run.block(0, size) else {
            return Err(self.short(size));
        };
        let copy = match copy {
            true => Some(CopyOnWrite {
                to: place,
                from: match iter.copy_source() {
                    Some(source) => Some(
                        source
                            .place(start)
                            .map_err(|error| self.fallback_or(Counter::FallbackExtent, error))?,
                    ),
                    None => None,
                },
            }),
            false => None,
        };
        if available < size.bytes() as u64 {
            (new, needs_sync) = self.merge(query, size)?;
        }
        Ok(Resolved::Memory(FileMemory {
            block,
            run: run.up_to((available >> Order::PAGE_SHIFT) as usize),
            new,
            shared,
            needs_sync,
            copy,
        }))
    }

    /// The failure when there is less than a new entry needs.
    fn short(&self, size: Order) -> Failure<'a> {
        if size != self.order() {
            Failure::Narrow
        } else {
            self.fallback_or(Counter::FallbackExtent, EIO)
        }
    }

    /// Asks for the rest of the order: nobody merges a file's extents for us, and the next one may lie
    /// right behind on the device. Returns whether the blocks of all are new, and whether any needs a sync.
    ///
    /// A filesystem that has a transaction open around the fault has room in it for one allocation,
    /// so no other is asked for then.
    fn merge(&self, query: &mut Query<'_>, size: Order) -> Result<(New, bool), Failure<'a>> {
        let Query { iter, start, .. } = query;
        let start = *start;
        let (device, address) = (iter.extent().device_key(), iter.extent().address(start));
        let end = start + size.bytes() as u64;
        let short = || self.fallback_or(Counter::FallbackExtent, EIO);
        let mut new = iter.extent().is_new();
        let mut all_new = new;
        let mut needs_sync = iter.extent().needs_sync();
        // Ends: each round is for the extent behind the last one's.
        while iter.position() + iter.available() < end {
            if new && vm::in_transaction() {
                return Err(short());
            }
            if vm::fatal_signal() {
                return Err(short());
            }
            let available = iter.available();
            iter.advance(available);
            match iter.next() {
                Ok(true) => (),
                _ => return Err(short()),
            }
            let extent = iter.extent();
            let position = iter.position();
            if extent.kind() != ExtentKind::Mapped
                || extent.is_shared()
                || extent.device_key() != device
                || extent.address(position) != address.wrapping_add(position - start)
            {
                return Err(short());
            }
            all_new &= extent.is_new();
            new |= extent.is_new();
            needs_sync |= extent.needs_sync();
        }
        let new = match (all_new, new) {
            (true, _) => New::All,
            (_, true) => New::Some,
            _ => New::None,
        };
        Ok((new, needs_sync))
    }

    /// The failure when somebody holds a folio that lost its last entry, or would now. A smaller order
    /// does without its pages; for a page alone the fault waits, when the entry is unlocked.
    #[cold]
    pub(super) fn held_up(&self, size: Order, folio: DevFolio<'_>) -> Failure<'a> {
        if size != self.order() {
            return Failure::Narrow;
        }
        if self.order() == Order::PTE {
            // The locked entry keeps the device until then.
            if let Some(stay) = self.device.stay() {
                return Failure::Held(folio.head().pfn(), stay);
            }
        }
        self.fallback_or(Counter::FallbackConflict, EIO)
    }

    /// Fills the entries that were prefaulted, as far as the answer goes.
    #[inline(always)]
    pub(super) fn fill<'l>(
        &self,
        target: &Target<'l, '_>,
        behind: &mut PrefaultEntries<'l, '_>,
        resolved: &Resolved<'_, 'l>,
    ) {
        let size = target.size.pages();
        let (pages, backing) = match resolved {
            Resolved::Hole(_) if target.locked.entry().page().is_some() => return,
            Resolved::Hole(pages) => (pages.saturating_sub(self.order().pages()), Backing::Hole),
            Resolved::Memory(memory) if memory.shared || self.order() != Order::PTE => return,
            Resolved::Memory(memory) => match memory.run.from(size) {
                Some(behind) => (behind.pages(), Backing::Memory(behind)),
                None => return,
            },
        };
        behind.fill(pages, backing, self.write);
    }
}
