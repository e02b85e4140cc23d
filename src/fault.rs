// SPDX-License-Identifier: GPL-2.0

//! Page faults (spec, section 4): check, grab, ask, install, insert, release.
//!
//! The caller is a filesystem that holds its `invalidate_lock` shared, which keeps truncate and
//! hole punch out. All orders take the same way, with the order as a parameter.

#[cfg(RDAX_CHECK)]
use super::check;
use super::{
    device::{self, FileDevice},
    entry::{Entry, Kind},
    folio::{self, AssociateError},
    layout,
    poison,
    sequence,
    stats::Counter,
    tree::{self, Ahead, Behind, GrabError, Locked, Neighbours, Place, Take, Window}, //
};
use crate::kern::{
    dax::{Access, DaxReadGuard},
    error::{ehwpoison, is_hwpoison},
    fs::{Mapping, PageIndex, PageRange},
    iomap::{Ask, ExtentKind, IomapIter, IomapOps, IomapSpace},
    memory::Stay,
    order::Order,
    page::{DevFolio, DevPage, Pfn},
    vm::{self, Around, FaultCode, Present, VmFault},
    wait,
    xa::Mark, //
};
use kernel::{
    pr_err_once,
    prelude::*, //
};

/// What became of a fault.
pub(crate) struct Outcome {
    /// For the core.
    pub(crate) code: FaultCode,
    /// For `dax_finish_sync_fault`, with [`FaultCode::NEED_SYNC`].
    pub(crate) pfn: Option<Pfn>,
    /// Why the filesystem or the device could not help.
    pub(crate) error: Option<Error>,
}

impl From<FaultCode> for Outcome {
    fn from(code: FaultCode) -> Self {
        Self {
            code,
            pfn: None,
            error: None,
        }
    }
}

/// Why a fault was not served by the order that was asked for.
enum Failure {
    /// A smaller order is to be tried, for a reason that is counted.
    Fallback(Counter),
    /// The filesystem or the device had an error.
    Error(Error),
    /// Somebody holds the page, in [`Fault::held`]: one that lost its last entry, or that the file would
    /// give up for a copy.
    Held,
    /// A larger entry stood in the way of a copy on write and is gone: try again.
    Again,
    /// More than what was accessed was asked for, and cannot be had: try again with that alone.
    Narrow,
    /// With this code.
    Code(FaultCode),
}

/// A fault of an order, and what follows from its flags. The order is the type's, so that nothing has
/// to be computed of it while a fault is served.
struct Fault<'a, const ORDER: usize> {
    vmf: &'a mut VmFault,
    device: FileDevice<'a>,
    mapping: &'a Mapping,
    /// What a new entry is to cover; larger than the order only for faults of a page.
    size: Order,
    index: PageIndex,
    /// The file is written, not a private copy.
    write: bool,
    /// The write comes next in a sequence of them.
    sequential: bool,
    /// Only what was accessed: more of it did not work.
    narrow: bool,
    /// What is to be waited for when the entry is unlocked, and what keeps it until then.
    held: Option<(DevFolio, Stay<'a>)>,
}

/// What is mapped, and what there is to say of it.
struct Answer {
    page: Option<DevPage>,
    sync: bool,
    new: bool,
}

/// Serves a page fault of `order` (`dax_iomap_fault`). Sleeps.
///
/// Held: the filesystem's `invalidate_lock`, shared.
#[inline(always)]
pub(crate) fn iomap_fault(vmf: &mut VmFault, order: u32, ops: &IomapOps) -> Outcome {
    let Some(order) = Order::of_level(order) else {
        return FaultCode::FALLBACK.into();
    };
    match order {
        Order::PTE => fault_of_order::<PTE>(vmf, ops),
        Order::PMD => fault_of_order::<PMD>(vmf, ops),
        _ => fault_of_order::<PUD>(vmf, ops),
    }
}

#[inline(always)]
fn fault_of_order<const ORDER: usize>(vmf: &mut VmFault, ops: &IomapOps) -> Outcome {
    let mapping = vmf.mapping();
    let device = FileDevice::of(mapping.host());
    let mut fault = Fault::<ORDER> {
        index: vmf.index(),
        write: vmf.is_write() && vmf.is_shared(),
        vmf,
        device,
        mapping,
        size: Order::from_bits(ORDER),
        sequential: false,
        narrow: false,
        held: None,
    };
    let outcome = match fault.serve(ops) {
        Ok(outcome) => outcome,
        Err(Failure::Fallback(reason)) => {
            device.inc(reason);
            FaultCode::FALLBACK.into()
        }
        Err(Failure::Code(code)) => code.into(),
        Err(Failure::Again | Failure::Narrow) => FaultCode::NOPAGE.into(),
        Err(Failure::Held) => fault.wait_for_held(),
        Err(Failure::Error(error)) => Outcome {
            code: code_of(error),
            pfn: None,
            error: Some(error),
        },
    };
    if outcome.code.with(FaultCode::FALLBACK) != outcome.code && outcome.code.is_error() {
        device.inc(Counter::FaultErrors);
    }
    outcome
}

/// What an error of the filesystem or the device means to the core.
fn code_of(error: Error) -> FaultCode {
    if error == ENOMEM {
        FaultCode::OOM
    } else if is_hwpoison(error) {
        FaultCode::HWPOISON
    } else {
        FaultCode::SIGBUS
    }
}

const PTE: usize = Order::PTE.bits();
const PMD: usize = Order::PMD.bits();
const PUD: usize = Order::PUD.bits();

impl<const ORDER: usize> Fault<'_, ORDER> {
    /// What the page table is to map.
    #[inline(always)]
    fn order(&self) -> Order {
        Order::from_bits(ORDER)
    }

    #[inline(always)]
    fn serve(&mut self, ops: &IomapOps) -> Result<Outcome, Failure> {
        self.check()?;
        if self.order() == Order::PTE && self.write {
            // There is no way ahead where the filesystem cannot be asked what is there.
            self.sequential = sequence::is_next(self.mapping, self.index)
                && ops.for_looking(self.mapping.host()).is_some();
        }
        // Ends: to be told to narrow the fault happens once, and for a larger entry in the way it is
        // tried again a few times only; the core tries again after that.
        for _ in 0..4 {
            match self.serve_once(ops) {
                Err(Failure::Again) => vm::reschedule(),
                other => return other,
            }
        }
        if vm::fatal_signal() {
            return Err(Failure::Error(EINTR));
        }
        Err(Failure::Again)
    }

    /// What can be known without asking anybody; a fallback must be cheap.
    fn check(&self) -> Result<(), Failure> {
        let pages = self.mapping.host().size_pages();
        if self.index.get() >= pages {
            return Err(Failure::Code(FaultCode::SIGBUS));
        }
        let order = self.order();
        if order == Order::PTE {
            return Ok(());
        }
        // Without KSM nobody can be asked to unmap the largest entries before a mapping is moved.
        let movable = order <= Order::PMD || cfg!(CONFIG_KSM);
        let reason = if order > self.device.max_order() || !movable {
            Counter::FallbackMaxOrder
        } else if self.vmf.is_write() && !self.write
            || order > Order::PMD && !self.vmf.is_not_copied_by_fork()
        {
            // The core takes no reference for the copy of an entry of the third level.
            Counter::FallbackPrivate
        } else if (self.index.get() ^ (self.vmf.address() >> Order::PAGE_SHIFT))
            & (order.pages() - 1)
            != 0
        {
            Counter::FallbackAlignment
        } else if !self.vmf.vma_covers(order) {
            Counter::FallbackVma
        } else if order.last(self.index).get() >= pages {
            Counter::FallbackEof
        } else {
            return Ok(());
        };
        Err(Failure::Fallback(reason))
    }

    /// The pages that may be mapped along with the one that was accessed: an aligned block around
    /// it, as far as the VMA and the file go. `None` where each page is to be looked at by itself.
    fn block(&self) -> Option<PageRange> {
        let pages = self.device.fault_around().pages();
        if self.order() != Order::PTE
            || pages == 1
            || self.narrow
            || self.vmf.is_write() && (!self.write || self.vmf.is_sync())
            || self.vmf.is_random()
            || self.vmf.is_watched(self.write)
            || poison::was_seen()
        {
            return None;
        }
        let mut block = self.vmf.around(pages);
        let end = self.mapping.host().size_pages();
        block.last = block
            .last
            .min(PageIndex::new(end.saturating_sub(1)))
            .max(self.index);
        (block.first != block.last).then_some(block)
    }

    /// How far a new entry for a page, and those behind it, may go.
    fn ahead(&self) -> Option<Ahead> {
        if self.write && !self.sequential {
            return None;
        }
        let block = self.block()?;
        let rest = block.last.get() - self.index.get() + 1;
        let mut ahead = Ahead {
            block,
            order: Order::PTE,
            room: rest,
        };
        if self.write {
            ahead.order = self.device.write_order();
            if ahead.order > self.device.fault_around() {
                // One entry is mapped block by block then.
                let end = self.mapping.host().size_pages();
                ahead.room = end.saturating_sub(self.index.get()).max(1);
            }
        }
        Some(ahead)
    }

    /// Gets the entry, locked, and what there is to be with it.
    #[inline]
    fn grab<'m>(
        &mut self,
        mapping: &'m Mapping,
        dirty: bool,
        behind: &mut Behind<'m>,
    ) -> Result<Locked<'m>, Failure> {
        let this = &*self;
        let locked = tree::grab(
            mapping,
            self.index,
            self.order(),
            dirty,
            || this.ahead(),
            behind,
        )
        .map_err(|error| match error {
            GrabError::Conflict => Failure::Fallback(Counter::FallbackConflict),
            GrabError::NoMemory => Failure::Error(ENOMEM),
            GrabError::Killed => Failure::Error(EINTR),
        })?;
        self.size = self.order();
        if locked.entry().kind() == Kind::Empty {
            self.size = locked.entry().order();
        }
        Ok(locked)
    }

    fn serve_once(&mut self, ops: &IomapOps) -> Result<Outcome, Failure> {
        let order = self.order();
        // A store that has to be durable with its metadata is marked when that is.
        let dirty = self.write && !self.vmf.is_sync();
        let mut behind = Behind::none();
        let mut locked = self.grab(self.mapping, dirty, &mut behind)?;
        // With the entry locked, nobody else changes the page table here.
        let present = match self.vmf.present(order) {
            Present::Smaller => return Err(Failure::Code(FaultCode::DONE)),
            Present::Larger => return Err(Failure::Code(FaultCode::NOPAGE)),
            Present::Nothing => false,
            Present::Mapped => true,
        };

        let known = self.known(&mut locked)?;
        let asked = known.is_none();
        let answer = match known {
            Some(answer) => answer,
            None => match self.ask(&mut locked, &mut behind.window, ops) {
                Err(Failure::Again) => {
                    layout::discard(locked);
                    return Err(Failure::Again);
                }
                Err(Failure::Narrow) => {
                    self.narrow = true;
                    if locked.entry().kind() == Kind::Empty {
                        locked.remove();
                    }
                    return Err(Failure::Again);
                }
                other => other?,
            },
        };
        if dirty {
            self.mapping.host().mark_dirty_pages();
        }
        let mut major = FaultCode::DONE;
        if answer.new {
            vm::count_major_fault();
            major = FaultCode::MAJOR;
        }
        if let (true, Some(page)) = (answer.sync, answer.page) {
            self.device.inc(Counter::SyncFaults);
            return Ok(Outcome {
                code: FaultCode::NEED_SYNC.with(major),
                pfn: Some(page.pfn()),
                error: None,
            });
        }
        let code = match answer.page {
            Some(page) => self.insert(&locked, page, present)?,
            None => self.insert_zeroes()?,
        };
        if !code.is_error() {
            if ORDER == PTE && self.write && !locked.entry().is_of_one_page() {
                // Its other pages may be mapped ahead.
                locked.set(locked.entry().ahead());
            }
            self.insert_around(&locked, &behind, asked);
        }
        Ok(code.with(major).into())
    }

    /// What the entry itself says, if that is all there is to know: reading a data entry, and
    /// writing one that is writable, unless the store must find its metadata durable.
    ///
    /// The entry's lock keeps its memory: a device that goes away takes the entries with it.
    #[inline]
    fn known(&mut self, locked: &mut Locked<'_>) -> Result<Option<Answer>, Failure> {
        let entry = locked.entry();
        if !matches!(entry.kind(), Kind::Data(_))
            || self.write && (!entry.is_writable() || self.vmf.is_sync())
            || self.mapping.host().device_has_bad_blocks()
            || self.is_in_doubt()
        {
            return Ok(None);
        }
        Ok(Some(Answer {
            page: Some(self.sound(self.page_in(locked), false)?),
            sync: false,
            new: false,
        }))
    }

    /// Whether the filesystem may not stand by what it has said: it has reported an error, or was shut
    /// down. XFS does not report all that it is shut down for (an error of its log); so it is asked once
    /// in a tick of the clock, in a way that costs little.
    #[inline]
    fn is_in_doubt(&self) -> bool {
        let inode = self.mapping.host();
        if self.device.is_first_in(vm::tick()) && self.vmf.file().is_shut_down() {
            device::set_error(inode);
        }
        device::has_error(inode)
    }

    /// Makes sure that what is about to be mapped for writing is marked.
    #[inline]
    fn set_dirty(&self, locked: &mut Locked<'_>) {
        if !locked.is_dirty() {
            locked.mark(Mark::Dirty);
        }
        self.mapping.host().mark_dirty_pages();
    }

    /// The page to map, unless it, or another of the order, is known to be bad.
    #[inline]
    fn sound(&self, page: DevPage, new: bool) -> Result<DevPage, Failure> {
        if !page.is_poisoned() && (self.order() == Order::PTE || !poison::was_seen()) {
            return Ok(page);
        }
        // One bad page keeps the others from being mapped together with it.
        for at in 0..self.order().pages() {
            let page = DevPage::of(page.pfn().offset(at));
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

    /// Asks the filesystem for the stretch of the order and what lies behind in the window, and
    /// makes the entry say what it says.
    fn ask(
        &mut self,
        locked: &mut Locked<'_>,
        window: &mut Option<Window<'_>>,
        ops: &IomapOps,
    ) -> Result<Answer, Failure> {
        let start = self.size.first(self.index).to_byte();
        let pages = self.size.pages() + window.as_ref().map_or(0, Window::pages);
        // To be asked for writing, a filesystem prepares copies of what is shared, and drops those
        // that were not made; for pages that nobody has written to, none is made here, but one may
        // be under way in a write. So for more than was accessed it is only asked what is there,
        // which is all there is to know of blocks that need nothing.
        let peek = self.write && pages > self.order().pages();
        let ask = if self.write && !peek {
            Ask::WRITE
        } else {
            Ask::READ
        }
        .fault();
        let ops = match peek {
            true => ops
                .for_looking(self.mapping.host())
                .ok_or(Failure::Narrow)?,
            false => ops,
        };
        if !self.write {
            ops.note_reading(self.mapping.host());
        }
        let mut space = IomapSpace::new();
        let mut iter = IomapIter::new(
            &mut space,
            self.mapping.host(),
            start,
            (pages << Order::PAGE_SHIFT) as u64,
            ask,
            ops,
        );
        let mut behind = None;
        let answer = match iter.next() {
            Ok(true) if peek && !iter.extent().is_own() => Err(Failure::Narrow),
            Ok(true) => self.answer(locked, &mut iter, start, &mut behind),
            Ok(false) => Err(Failure::Error(EIO)),
            Err(_) if pages > self.order().pages() => return Err(Failure::Narrow),
            Err(error) => return Err(self.fallback_or(Counter::FallbackExtent, error)),
        };
        match answer {
            Ok(answer) => {
                let end = start + self.size.bytes() as u64;
                iter.advance(end.saturating_sub(iter.position()));
                match iter.finish() {
                    Ok(()) => {
                        if let (Some(window), Some((pages, place))) = (window, behind) {
                            window.fill(pages, place, self.write);
                        }
                        Ok(answer)
                    }
                    Err(error) => {
                        // The filesystem could not take over what was prepared: nothing of it may
                        // stay.
                        if answer.page.is_some() {
                            layout::empty(locked);
                        }
                        Err(Failure::Error(error))
                    }
                }
            }
            Err(failure) => {
                // Whatever the filesystem prepared is not used.
                iter.abandon();
                Err(failure)
            }
        }
    }

    /// What follows when there is less than a new entry needs.
    fn short(&self) -> Failure {
        if self.size != self.order() {
            Failure::Narrow
        } else {
            self.fallback_or(Counter::FallbackExtent, EIO)
        }
    }

    /// A smaller order when there is one, else an error.
    fn fallback_or(&self, reason: Counter, error: Error) -> Failure {
        if self.order() == Order::PTE {
            Failure::Error(error)
        } else {
            Failure::Fallback(reason)
        }
    }

    fn answer(
        &mut self,
        locked: &mut Locked<'_>,
        iter: &mut IomapIter<'_>,
        start: u64,
        behind: &mut Option<(usize, Place)>,
    ) -> Result<Answer, Failure> {
        let extent = iter.extent();
        let kind = extent.kind();
        let copy = self.write && extent.is_shared();
        match kind {
            ExtentKind::Mapped => self.answer_data(locked, iter, start, copy, behind),
            ExtentKind::Unwritten if copy => self.answer_data(locked, iter, start, copy, behind),
            ExtentKind::Hole | ExtentKind::Unwritten if !self.write => {
                self.answer_zeroes(locked, iter, behind)
            }
            _ => Err(self.fallback_or(Counter::FallbackExtent, EIO)),
        }
    }

    fn answer_zeroes(
        &mut self,
        locked: &mut Locked<'_>,
        iter: &IomapIter<'_>,
        behind: &mut Option<(usize, Place)>,
    ) -> Result<Answer, Failure> {
        if self.order() > Order::PMD {
            return Err(Failure::Fallback(Counter::FallbackHole));
        }
        if iter.available() < self.order().bytes() as u64 {
            return Err(self.fallback_or(Counter::FallbackExtent, EIO));
        }
        let page = match locked.entry().kind() {
            Kind::Data(_) => Some(self.page_in(locked)),
            Kind::Zero => None,
            Kind::Empty => {
                locked.set(Entry::zero(self.order()));
                None
            }
        };
        if page.is_none() {
            let pages = (iter.available() >> Order::PAGE_SHIFT) as usize;
            *behind = Some((pages.saturating_sub(self.order().pages()), Place::Hole));
        }
        Ok(Answer {
            page,
            sync: false,
            new: false,
        })
    }

    fn answer_data(
        &mut self,
        locked: &mut Locked<'_>,
        iter: &mut IomapIter<'_>,
        start: u64,
        copy: bool,
        behind: &mut Option<(usize, Place)>,
    ) -> Result<Answer, Failure> {
        let shared = iter.extent().is_shared();
        let present = matches!(locked.entry().kind(), Kind::Data(_));
        if copy && present {
            if let Some(folio) = layout::held(locked) {
                return Err(self.held_up(folio));
            }
            if locked.entry().order() > self.order() {
                return Err(Failure::Again);
            }
        }
        let (device, place) = iter
            .extent()
            .place(start)
            .map_err(|error| self.fallback_or(Counter::FallbackExtent, error))?;
        let mut new = iter.extent().is_new();
        let mut dirty = iter.extent().needs_sync();
        let available = iter.available();
        // For an entry larger than the order, `ask` has seen that nothing is shared.
        if available < self.size.bytes() as u64 && (shared || self.size != self.order()) {
            return Err(self.short());
        }

        let wanted = self
            .size
            .pages()
            .max((available >> Order::PAGE_SHIFT) as usize);
        // A device that goes away first waits for this guard, then for the locked entry.
        let (pfn, found) = device
            .access(&DaxReadGuard::new(), place, wanted, Access::Normal)
            .map(|memory| (memory.pfn(), memory.pages()))
            .map_err(|error| {
                if self.order() == Order::PTE && wanted > Order::PTE.pages() {
                    // What is wrong may be with one of the pages ahead.
                    return Failure::Narrow;
                }
                if is_hwpoison(error) {
                    self.device.inc(Counter::PoisonFaults);
                }
                self.fallback_or(Counter::FallbackExtent, error)
            })?;
        if found < self.size.pages() || !pfn.is_aligned(self.size) {
            return Err(self.short());
        }
        let mut all_new = new;
        if available < self.size.bytes() as u64 {
            self.merge(iter, start, &mut all_new, &mut new, &mut dirty)?;
        }
        if !shared && self.order() == Order::PTE {
            let size = self.size.pages();
            let pages = found.min((available >> Order::PAGE_SHIFT) as usize);
            *behind = Some((pages.saturating_sub(size), Place::Memory(pfn.offset(size))));
        }

        let sync = self.write && self.vmf.is_sync() && dirty;
        // Before anything is made of it: the filesystem takes back what was not used.
        let page = if !present || copy {
            DevPage::of(pfn.offset(self.offset_in(locked)))
        } else {
            self.page_in(locked)
        };
        let page = self.sound(page, all_new)?;
        if !present || copy {
            self.install(locked, iter, pfn, shared, copy, sync, start)?;
            if self.write && (copy || new) {
                locked.set(locked.entry().fresh());
            }
        } else if self.write {
            // Of an entry that is larger the filesystem was not asked about all.
            if !shared && locked.entry().order() <= self.size {
                locked.set(locked.entry().writable());
            }
            if !sync {
                self.set_dirty(locked);
            }
        }
        Ok(Answer {
            page: Some(page),
            sync,
            new: new && self.write,
        })
    }

    /// Asks on for the rest of the stretch: a file's extents are not merged for us, and a
    /// neighbour may lie right behind.
    ///
    /// A filesystem that has a transaction open around the fault has room in it for one allocation,
    /// so no other is asked for then.
    fn merge(
        &self,
        iter: &mut IomapIter<'_>,
        start: u64,
        all_new: &mut bool,
        new: &mut bool,
        dirty: &mut bool,
    ) -> Result<(), Failure> {
        let (device, address) = (iter.extent().device_key(), iter.extent().address(start));
        let end = start + self.size.bytes() as u64;
        let short = || self.fallback_or(Counter::FallbackExtent, EIO);
        while iter.position() + iter.available() < end {
            if *new && vm::in_transaction() {
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
            *all_new &= extent.is_new();
            *new |= extent.is_new();
            *dirty |= extent.needs_sync();
        }
        Ok(())
    }

    /// Makes the locked entry one of the extent's memory.
    #[allow(clippy::too_many_arguments)]
    #[inline(always)]
    fn install(
        &mut self,
        locked: &mut Locked<'_>,
        iter: &IomapIter<'_>,
        pfn: Pfn,
        shared: bool,
        copy: bool,
        sync: bool,
        start: u64,
    ) -> Result<(), Failure> {
        let order = self.size;
        let old = locked.entry().kind();
        if !self.device.may_map(pfn) {
            pr_err_once!(
                "a device was given memory of others since it was adopted; release it and adopt it again\n"
            );
            return Err(self.fallback_or(Counter::FallbackExtent, EIO));
        }
        if copy || old == Kind::Zero {
            self.clear_way(locked, iter, pfn, copy, start)?;
        }
        folio::associate(
            DevPage::of(pfn),
            order,
            self.mapping,
            locked.first(),
            shared,
        )
        .map_err(|error| match error {
            AssociateError::Smaller => self.fallback_or(Counter::FallbackConflict, EIO),
            AssociateError::Owned => self.fallback_or(Counter::FallbackConflict, EIO),
            AssociateError::Held(folio) => self.held_up(folio),
            // The task is about to die; but an access in the kernel is repeated until it is told of
            // an error.
            AssociateError::Interrupted => self.fallback_or(Counter::FallbackConflict, EINTR),
        })?;
        if matches!(old, Kind::Data(_)) {
            layout::let_go(locked, self.device);
        }
        let mut entry = Entry::data(pfn, order);
        if self.write {
            // Blocks of its own, written: a copy was made of those that were not.
            entry = entry.writable();
        }
        locked.set(entry);
        if self.write && !sync {
            self.set_dirty(locked);
            if copy {
                locked.mark(Mark::ToWrite);
            }
        }
        Ok(())
    }

    /// What follows when somebody holds a folio that lost its last entry, or would now: a smaller order
    /// does without its pages, and for a page alone the fault waits, when it has let go of the entry.
    #[cold]
    fn held_up(&mut self, folio: DevFolio) -> Failure {
        if self.size != self.order() {
            return Failure::Narrow;
        }
        if self.order() == Order::PTE {
            // The locked entry keeps the device until then.
            if let Some(stay) = self.device.stay() {
                self.held = Some((folio, stay));
                return Failure::Held;
            }
        }
        self.fallback_or(Counter::FallbackConflict, EIO)
    }

    /// Waits for the folio in [`Fault::held`], not for long, with nothing held but what the caller
    /// holds; then the access is tried again, for which the caller lets go of that as well. So this
    /// goes on as long as somebody holds the page, or until the task is killed.
    #[cold]
    fn wait_for_held(&mut self) -> Outcome {
        let waited = match self.held.take() {
            Some((folio, stay)) => wait::nap_until_idle(&stay, folio),
            None => Ok(()),
        };
        match waited {
            Ok(()) => FaultCode::NOPAGE.into(),
            // With `EINTR` the task is about to die; but an access in the kernel is repeated until it
            // is told of an error.
            Err(error) => Outcome {
                code: code_of(error),
                pfn: None,
                error: Some(error),
            },
        }
    }

    /// Takes what is mapped out of the way of the extent's memory, and makes that the copy which it
    /// is to be.
    #[cold]
    fn clear_way(
        &self,
        locked: &Locked<'_>,
        iter: &IomapIter<'_>,
        pfn: Pfn,
        copy: bool,
        start: u64,
    ) -> Result<(), Failure> {
        // Neither zeroes nor the old copy may stay mapped.
        self.mapping.unmap(locked.range());
        if copy {
            self.copy(iter, start)
                .map_err(|error| self.fallback_or(Counter::FallbackExtent, error))?;
            // The filesystem puts the copy in the place of the old blocks now, and whoever syncs any
            // file may make that durable: what was safe in the old ones must be safe in the copy.
            layout::flush(DevPage::of(pfn), self.size.pages());
        }
        Ok(())
    }

    /// Copies the whole stretch to its new place; zeroes where the source has no data.
    fn copy(&self, iter: &IomapIter<'_>, start: u64) -> Result {
        let pages = self.order().pages();
        let (device, place) = iter.extent().place(start)?;
        let source = match iter.copy_source() {
            Some(source) => Some(source.place(start)?),
            None => None,
        };
        if source.is_some() {
            self.device.add(Counter::CowPages, pages as u64);
        }
        self.in_pieces(|offset, bytes| {
            let alive = DaxReadGuard::new();
            let to = device.access(&alive, place, pages, Access::Normal)?;
            match source {
                Some((device, place)) => {
                    let from = device.access(&alive, place, pages, Access::Normal)?;
                    to.copy_within(offset, &from, offset, bytes)
                }
                None => to.zero(offset, bytes),
            }
        })
    }

    /// Works on all bytes of the order, but gives way to others now and then (spec, R8). `EINTR`
    /// when a fatal signal came.
    fn in_pieces(&self, work: impl Fn(usize, usize) -> Result) -> Result {
        // The tests have few folios of more than one piece otherwise.
        const PIECE: Order = Order::from_bits(if cfg!(RDAX_TEST) { 5 } else { PMD });

        let mut done = 0;
        loop {
            let bytes = (self.order().bytes() - done).min(PIECE.bytes());
            work(done, bytes)?;
            done += bytes;
            if done == self.order().bytes() {
                return Ok(());
            }
            if vm::fatal_signal() {
                return Err(EINTR);
            }
            vm::reschedule();
        }
    }

    /// The page that was accessed, or the first of the stretch, in a data entry that may be larger.
    fn page_in(&self, locked: &Locked<'_>) -> DevPage {
        match locked.entry().kind() {
            Kind::Data(pfn) => DevPage::of(pfn.offset(self.offset_in(locked))),
            // Not reached: the callers have looked.
            _ => DevPage::of(Pfn::from_bits(0)),
        }
    }

    /// Where that page is in the entry, in pages.
    fn offset_in(&self, locked: &Locked<'_>) -> usize {
        let index = self.order().first(self.index);
        index.get().wrapping_sub(locked.first().get())
    }

    /// Puts memory into the page table.
    #[inline]
    fn insert(
        &mut self,
        locked: &Locked<'_>,
        page: DevPage,
        present: bool,
    ) -> Result<FaultCode, Failure> {
        if self.vmf.wants_copy() {
            self.device.inc(Counter::PrivatePte);
            return Ok(self.vmf.give_page(page));
        }
        let write = self.write;
        let counter = self.counter(present);
        let folio = page.folio();
        #[cfg(RDAX_CHECK)]
        check::about_to_map(self.mapping, self.index, write);
        let inserted = match self.order() {
            Order::PTE => self.vmf.insert_page(page, write),
            order if folio.order() != order || locked.entry().order() != order => {
                // A larger folio, which the core maps whole or page by page only.
                return Err(Failure::Fallback(Counter::FallbackConflict));
            }
            Order::PMD => self.vmf.insert_pmd(folio, write),
            _ => self.vmf.insert_pud(folio, write),
        };
        if inserted.is_done() {
            self.device.inc(counter);
        }
        Ok(inserted.code())
    }

    /// Maps pages along with the one that was accessed, which is mapped: those behind it of which
    /// the filesystem has just told; or, when it was not asked, those around it that can be mapped
    /// without asking either.
    fn insert_around(&mut self, locked: &Locked<'_>, behind: &Behind<'_>, asked: bool) {
        if self.order() != Order::PTE || asked && behind.window.is_none() && self.size == Order::PTE
        {
            return;
        }
        let Some(block) = behind.block.or_else(|| self.block()) else {
            return;
        };
        let wanting = self.vmf.wanting(block);
        if wanting == 0 {
            return;
        }
        let mut around = Around::new(block.first);
        if locked.entry().order() != Order::PTE {
            Self::add(&mut around, block, wanting, locked.first(), locked.entry());
        }
        let neighbours;
        if !asked {
            neighbours = self.neighbours(&mut around, locked, behind.pages, block, wanting);
            if neighbours.marked {
                self.mapping.host().mark_dirty_pages();
            }
        } else if let Some(window) = &behind.window {
            let (first, pages, place) = window.filled();
            for at in 0..pages {
                let index = PageIndex::new(first.get() + at);
                if index > block.last || wanting >> (index.get() - block.first.get()) & 1 == 0 {
                    continue;
                }
                match place {
                    Place::Hole => around.add_zeroes(index),
                    Place::Memory(pfn) => around.add(index, DevPage::of(pfn.offset(at))),
                }
            }
        }
        #[cfg(RDAX_CHECK)]
        for index in around.iter() {
            check::about_to_map(self.mapping, index, self.write);
        }
        let mapped = self.vmf.map_around(&around, self.write);
        self.device.add(Counter::AroundPte, mapped as u64);
    }

    /// Adds those pages of an entry that are wanted in the block.
    #[inline]
    fn add(around: &mut Around, block: PageRange, wanting: usize, first: PageIndex, entry: Entry) {
        let Kind::Data(pfn) = entry.kind() else {
            return;
        };
        let begin = first.max(block.first).get();
        let end = entry.order().last(first).min(block.last).get();
        for at in begin..=end {
            if wanting >> (at - block.first.get()) & 1 != 0 {
                let page = DevPage::of(pfn.offset(at - first.get()));
                around.add(PageIndex::new(at), page);
            }
        }
    }

    /// Entries around the locked one that can be mapped as they are. For writing, these are dirty
    /// already, or lie in the `ahead` pages from the accessed one on and are made so.
    #[inline]
    fn neighbours<'l, 'm>(
        &self,
        around: &mut Around,
        locked: &'l Locked<'m>,
        ahead: usize,
        block: PageRange,
        wanting: usize,
    ) -> Neighbours<'l, 'm> {
        let write = self.write;
        let first = self.index;
        let end = self.index.get() + ahead;
        tree::lock_neighbours(locked, block, wanting, write, |at, entry, dirty| {
            let Some(page) = entry.page().filter(|_| !write || entry.is_writable()) else {
                return Take::Leave;
            };
            let mut take = Take::Have;
            if write && !dirty {
                if at < first || entry.order().last(at).get() >= end {
                    return Take::Leave;
                }
                take = Take::Mark;
            }
            if entry.is_of_one_page() {
                around.add(at, page);
            } else {
                Self::add(around, block, wanting, at, entry);
            }
            take
        })
    }

    fn insert_zeroes(&mut self) -> Result<FaultCode, Failure> {
        if self.vmf.wants_copy() {
            self.device.inc(Counter::PrivatePte);
            return Ok(self.vmf.give_zero_page());
        }
        if self.order() == Order::PTE {
            self.device.inc(Counter::ZeroPte);
            return Ok(self.vmf.insert_zero_page().code());
        }
        let inserted = self.vmf.insert_zero_pmd();
        let inserted = inserted.ok_or(Failure::Fallback(Counter::FallbackNomem))?;
        self.device.inc(Counter::ZeroPmd);
        Ok(inserted.code())
    }

    /// How this fault is counted, of an address where an entry was `present` or not.
    fn counter(&self, present: bool) -> Counter {
        match (self.order(), self.write, present) {
            (Order::PTE, false, _) => Counter::ReadPte,
            (Order::PTE, true, false) => Counter::WritePte,
            (Order::PTE, true, true) => Counter::MkwritePte,
            (Order::PMD, false, _) => Counter::ReadPmd,
            (Order::PMD, true, false) => Counter::WritePmd,
            (Order::PMD, true, true) => Counter::MkwritePmd,
            (_, false, _) => Counter::ReadPud,
            (_, true, false) => Counter::WritePud,
            (_, true, true) => Counter::MkwritePud,
        }
    }
}

/// Ends a synchronous fault (`dax_finish_sync_fault`): makes the metadata durable, then the entry
/// dirty and the mapping writable. Sleeps.
///
/// Held: the filesystem's `invalidate_lock`, shared.
pub(crate) fn finish_sync_fault(vmf: &mut VmFault, order: u32, pfn: Pfn) -> FaultCode {
    match Order::of_level(order) {
        Some(Order::PTE) => finish_of_order::<PTE>(vmf, pfn),
        Some(Order::PMD) => finish_of_order::<PMD>(vmf, pfn),
        Some(_) => finish_of_order::<PUD>(vmf, pfn),
        None => FaultCode::FALLBACK,
    }
}

fn finish_of_order<const ORDER: usize>(vmf: &mut VmFault, pfn: Pfn) -> FaultCode {
    let order = Order::from_bits(ORDER);
    let mapping = vmf.mapping();
    let device = FileDevice::of(mapping.host());
    let index = vmf.index();
    let start = order.first(index).to_byte();
    if vmf
        .file()
        .sync_range(start, start + order.bytes() as u64 - 1)
        .is_err()
    {
        device.inc(Counter::FaultErrors);
        return FaultCode::SIGBUS;
    }
    let mut fault = Fault::<ORDER> {
        vmf,
        device,
        mapping,
        size: order,
        index,
        write: true,
        sequential: false,
        narrow: true,
        held: None,
    };
    let mut locked = match tree::lock_present_killable(mapping, index) {
        Ok(Some(locked)) => locked,
        Ok(None) => return FaultCode::NOPAGE,
        // The task is about to die.
        Err(error) => return code_of(error),
    };
    let page = match locked.entry().kind() {
        Kind::Data(_) if locked.entry().order() >= order => fault.page_in(&locked),
        _ => return FaultCode::NOPAGE,
    };
    let present = match fault.vmf.present(order) {
        Present::Smaller | Present::Larger => return FaultCode::NOPAGE,
        Present::Nothing => false,
        Present::Mapped => true,
    };
    if page.pfn() != pfn {
        return FaultCode::NOPAGE;
    }
    fault.set_dirty(&mut locked);
    match fault.insert(&locked, page, present) {
        Ok(code) => code,
        Err(Failure::Code(code)) => code,
        Err(Failure::Error(error)) => code_of(error),
        // The same order would fail again.
        Err(_) if order > Order::PTE => FaultCode::FALLBACK,
        Err(_) => FaultCode::NOPAGE,
    }
}
