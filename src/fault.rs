// SPDX-License-Identifier: GPL-2.0

//! Page faults (spec, section 4): check, grab, ask, install, insert, release.
//!
//! The caller is a filesystem that holds its `invalidate_lock` shared, which keeps truncate and
//! hole punch out. All orders take the same way, with the order as a parameter.

use super::{
    account::Account,
    entry::{Entry, Kind},
    folio::{self, AssociateError},
    layout,
    poison,
    stats::Counter,
    tree::{self, GrabError, Locked}, //
};
use crate::kern::{
    dax::{Access, DaxReadGuard, Memory},
    error::{ehwpoison, is_hwpoison},
    fs::{Mapping, PageIndex},
    iomap::{Ask, ExtentKind, IomapIter, IomapOps, IomapSpace},
    order::Order,
    page::{DevPage, Pfn},
    vm::{self, FaultCode, VmFault, ZeroFolio},
    xa::Mark, //
};
use kernel::prelude::*;

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
    /// A larger entry stood in the way of a copy on write and is gone: try again.
    Again,
    /// With this code.
    Code(FaultCode),
}

/// A fault, and what follows from its flags.
struct Fault<'a> {
    vmf: &'a mut VmFault,
    device: Account<'a>,
    mapping: &'a Mapping,
    order: Order,
    index: PageIndex,
    /// The file is written, not a private copy.
    write: bool,
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
pub(crate) fn iomap_fault(vmf: &mut VmFault, order: u32, ops: &IomapOps) -> Outcome {
    let Some(order) = Order::of_level(order) else {
        return FaultCode::FALLBACK.into();
    };
    let mapping = vmf.mapping();
    let device = Account::of(mapping.host());
    let mut fault = Fault {
        index: vmf.index(),
        write: vmf.is_write() && vmf.is_shared(),
        vmf,
        device,
        mapping,
        order,
    };
    let outcome = match fault.serve(ops) {
        Ok(outcome) => outcome,
        Err(Failure::Fallback(reason)) => {
            device.inc(reason);
            FaultCode::FALLBACK.into()
        }
        Err(Failure::Code(code)) => code.into(),
        Err(Failure::Again) => FaultCode::NOPAGE.into(),
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

impl Fault<'_> {
    fn serve(&mut self, ops: &IomapOps) -> Result<Outcome, Failure> {
        self.check()?;
        loop {
            match self.serve_once(ops) {
                Err(Failure::Again) => vm::reschedule(),
                other => return other,
            }
        }
    }

    /// What can be known without asking anybody; a fallback must be cheap.
    fn check(&self) -> Result<(), Failure> {
        let pages = self.mapping.host().size_pages();
        if self.index.get() >= pages {
            return Err(Failure::Code(FaultCode::SIGBUS));
        }
        let order = self.order;
        if order == Order::PTE {
            return Ok(());
        }
        let reason = if order > self.device.max_order() {
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

    fn serve_once(&mut self, ops: &IomapOps) -> Result<Outcome, Failure> {
        let order = self.order;
        // A store that has to be durable with its metadata is marked when that is.
        let dirty = self.write && !self.vmf.is_sync();
        let mut locked = match tree::grab(self.mapping, self.index, order, dirty) {
            Ok(locked) => locked,
            Err(GrabError::Conflict) => return Err(Failure::Fallback(Counter::FallbackConflict)),
            Err(GrabError::NoMemory) => return Err(Failure::Error(ENOMEM)),
        };
        // With the entry locked, nobody else changes the page table here.
        if order == Order::PTE {
            if self.vmf.pmd_is_huge() {
                return Err(Failure::Code(FaultCode::NOPAGE));
            }
        } else if self.vmf.has_table(order) {
            return Err(Failure::Code(FaultCode::DONE));
        }

        let answer = match self.known(&mut locked)? {
            Some(answer) => answer,
            None => match self.ask(&mut locked, ops) {
                Err(Failure::Again) => {
                    layout::discard(locked);
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
            Some(page) => self.insert(&locked, page)?,
            None => self.insert_zeroes()?,
        };
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
        {
            return Ok(None);
        }
        Ok(Some(Answer {
            page: Some(self.sound_page_in(locked, false)?),
            sync: false,
            new: false,
        }))
    }

    /// Makes sure that what is about to be mapped for writing is marked.
    #[inline]
    fn set_dirty(&self, locked: &mut Locked<'_>) {
        if !locked.is_dirty() {
            locked.mark(Mark::Dirty);
        }
        self.mapping.host().mark_dirty_pages();
    }

    /// The page to map, unless it is known to be bad.
    #[inline]
    fn sound_page_in(&self, locked: &Locked<'_>, new: bool) -> Result<DevPage, Failure> {
        let page = self.page_in(locked);
        if !page.is_poisoned() && (self.order == Order::PTE || !poison::was_seen()) {
            return Ok(page);
        }
        // One bad page keeps the others from being mapped together with it.
        for at in 0..self.order.pages() {
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

    /// Asks the filesystem for the stretch of the order, and makes the entry say what it says.
    fn ask(&mut self, locked: &mut Locked<'_>, ops: &IomapOps) -> Result<Answer, Failure> {
        let ask = if self.write { Ask::WRITE } else { Ask::READ }.fault();
        let start = self.order.first(self.index).to_byte();
        let mut space = IomapSpace::new();
        let mut iter = IomapIter::new(
            &mut space,
            self.mapping.host(),
            start,
            self.order.bytes() as u64,
            ask,
            ops,
        );
        let answer = match iter.next() {
            Ok(true) => self.answer(locked, &mut iter, start),
            Ok(false) => Err(Failure::Error(EIO)),
            Err(error) => return Err(self.fallback_or(Counter::FallbackExtent, error)),
        };
        match answer {
            Ok(answer) => {
                iter.advance(iter.left());
                match iter.finish() {
                    Ok(()) => Ok(answer),
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
                // Whatever the filesystem prepared is not used; an error of its own in saying so
                // does not make it worse.
                let _ = iter.finish();
                Err(failure)
            }
        }
    }

    /// A smaller order when there is one, else an error.
    fn fallback_or(&self, reason: Counter, error: Error) -> Failure {
        if self.order == Order::PTE {
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
    ) -> Result<Answer, Failure> {
        let extent = iter.extent();
        let kind = extent.kind();
        let copy = self.write && extent.is_shared();
        match kind {
            ExtentKind::Mapped => self.answer_data(locked, iter, start, copy),
            ExtentKind::Unwritten if copy => self.answer_data(locked, iter, start, copy),
            ExtentKind::Hole | ExtentKind::Unwritten if !self.write => {
                self.answer_zeroes(locked, iter)
            }
            _ => Err(self.fallback_or(Counter::FallbackExtent, EIO)),
        }
    }

    fn answer_zeroes(
        &mut self,
        locked: &mut Locked<'_>,
        iter: &IomapIter<'_>,
    ) -> Result<Answer, Failure> {
        if self.order > Order::PMD {
            return Err(Failure::Fallback(Counter::FallbackHole));
        }
        if iter.available() < self.order.bytes() as u64 {
            return Err(self.fallback_or(Counter::FallbackExtent, EIO));
        }
        let page = match locked.entry().kind() {
            Kind::Data(_) => Some(self.page_in(locked)),
            Kind::Zero => None,
            Kind::Empty => {
                locked.set(Entry::zero(self.order));
                None
            }
        };
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
    ) -> Result<Answer, Failure> {
        let shared = iter.extent().is_shared();
        let present = matches!(locked.entry().kind(), Kind::Data(_));
        if copy && present && locked.entry().order() > self.order {
            return Err(Failure::Again);
        }
        let (device, place) = iter
            .extent()
            .place(start)
            .map_err(|error| self.fallback_or(Counter::FallbackExtent, error))?;
        let mut new = iter.extent().is_new();
        let mut dirty = iter.extent().needs_sync();
        let available = iter.available();
        if available < self.order.bytes() as u64 && shared {
            return Err(self.fallback_or(Counter::FallbackExtent, EIO));
        }

        let alive = DaxReadGuard::new();
        let memory = device
            .access(&alive, place, self.order.pages(), Access::Normal)
            .map_err(|error| {
                if is_hwpoison(error) {
                    self.device.inc(Counter::PoisonFaults);
                }
                self.fallback_or(Counter::FallbackExtent, error)
            })?;
        if memory.pages() < self.order.pages() || !memory.pfn().is_aligned(self.order) {
            return Err(self.fallback_or(Counter::FallbackExtent, EIO));
        }
        if available < self.order.bytes() as u64 {
            self.merge(iter, start, &mut new, &mut dirty)?;
        }

        let sync = self.write && self.vmf.is_sync() && dirty;
        if !present || copy {
            self.install(locked, iter, &memory, shared, copy, sync, start)?;
        } else if self.write {
            if !shared {
                locked.set(locked.entry().writable());
            }
            if !sync {
                self.set_dirty(locked);
            }
        }
        Ok(Answer {
            page: Some(self.sound_page_in(locked, new)?),
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
        new: &mut bool,
        dirty: &mut bool,
    ) -> Result<(), Failure> {
        let address = iter.extent().address(start);
        let end = start + self.order.bytes() as u64;
        let short = || self.fallback_or(Counter::FallbackExtent, EIO);
        while iter.position() + iter.available() < end {
            if *new && vm::in_transaction() {
                return Err(short());
            }
            if vm::fatal_signal() {
                return Err(Failure::Code(FaultCode::NOPAGE));
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
                || extent.address(position) != address.wrapping_add(position - start)
            {
                return Err(short());
            }
            *new |= extent.is_new();
            *dirty |= extent.needs_sync();
        }
        Ok(())
    }

    /// Makes the locked entry one of the extent's memory.
    #[allow(clippy::too_many_arguments)]
    fn install(
        &mut self,
        locked: &mut Locked<'_>,
        iter: &IomapIter<'_>,
        memory: &Memory<'_>,
        shared: bool,
        copy: bool,
        sync: bool,
        start: u64,
    ) -> Result<(), Failure> {
        let order = self.order;
        let old = locked.entry();
        if copy || old.kind() == Kind::Zero {
            // Neither zeroes nor the old copy may stay mapped.
            self.mapping.unmap(locked.range());
        }
        if copy {
            self.copy(iter, memory, start)
                .map_err(|error| self.fallback_or(Counter::FallbackExtent, error))?;
            if sync {
                // No mark makes `fsync` look for it when the entry is not dirty.
                layout::flush(DevPage::of(memory.pfn()), order);
            }
        }
        folio::associate(
            DevPage::of(memory.pfn()),
            order,
            self.mapping,
            locked.first(),
            shared,
        )
        .map_err(|error| match error {
            AssociateError::Smaller => self.fallback_or(Counter::FallbackConflict, EIO),
            AssociateError::Owned => self.fallback_or(Counter::FallbackConflict, EIO),
            // The task is about to die.
            AssociateError::Interrupted => Failure::Code(FaultCode::NOPAGE),
        })?;
        layout::let_go(locked, self.device);
        let mut entry = Entry::data(memory.pfn(), order);
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

    /// Copies the whole stretch to its new place; zeroes where the source has no data.
    fn copy(&self, iter: &IomapIter<'_>, memory: &Memory<'_>, start: u64) -> Result {
        let Some(source) = iter.copy_source() else {
            return self.in_pieces(|offset, bytes| memory.zero(offset, bytes));
        };
        let (device, place) = source.place(start)?;
        let alive = DaxReadGuard::new();
        let from = device.access(&alive, place, self.order.pages(), Access::Normal)?;
        self.device
            .add(Counter::CowPages, self.order.pages() as u64);
        self.in_pieces(|offset, bytes| memory.copy_within(offset, &from, offset, bytes))
    }

    /// Works on all bytes of the order, but gives way to others now and then (spec, R8). `EINTR`
    /// when a fatal signal came.
    fn in_pieces(&self, work: impl Fn(usize, usize) -> Result) -> Result {
        let mut done = 0;
        loop {
            let bytes = (self.order.bytes() - done).min(Order::PMD.bytes());
            work(done, bytes)?;
            done += bytes;
            if done == self.order.bytes() {
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
        let index = self.order.first(self.index);
        let offset = index.get().wrapping_sub(locked.first().get());
        match locked.entry().kind() {
            Kind::Data(pfn) => DevPage::of(pfn.offset(offset)),
            // Not reached: the callers have looked.
            _ => DevPage::of(Pfn::from_bits(0)),
        }
    }

    /// Puts memory into the page table.
    fn insert(&mut self, locked: &Locked<'_>, page: DevPage) -> Result<FaultCode, Failure> {
        if self.vmf.wants_copy() {
            self.device.inc(Counter::PrivatePte);
            return Ok(self.vmf.give_page(page));
        }
        let write = self.write;
        let counter = self.counter();
        let folio = page.folio();
        let code = match self.order {
            Order::PTE => self.vmf.insert_page(page, write),
            order if folio.order() != order || locked.entry().order() != order => {
                // A larger folio, which the core maps whole or page by page only.
                return Err(Failure::Fallback(Counter::FallbackConflict));
            }
            Order::PMD => self.vmf.insert_pmd(folio, write),
            _ => self.vmf.insert_pud(folio, write),
        };
        self.device.inc(counter);
        Ok(code)
    }

    fn insert_zeroes(&mut self) -> Result<FaultCode, Failure> {
        if self.vmf.wants_copy() {
            self.device.inc(Counter::PrivatePte);
            return Ok(self.vmf.give_zero_page());
        }
        if self.order == Order::PTE {
            self.device.inc(Counter::ZeroPte);
            return Ok(self.vmf.insert_zero_page());
        }
        let zero = ZeroFolio::get().ok_or(Failure::Fallback(Counter::FallbackNomem))?;
        self.device.inc(Counter::ZeroPmd);
        Ok(self.vmf.insert_zero_pmd(zero))
    }

    /// How this fault is counted.
    fn counter(&self) -> Counter {
        let present = self.write && self.vmf.is_write_protect(self.order);
        match (self.order, self.write, present) {
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
    let Some(order) = Order::of_level(order) else {
        return FaultCode::FALLBACK;
    };
    let mapping = vmf.mapping();
    let device = Account::of(mapping.host());
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
    let mut fault = Fault {
        vmf,
        device,
        mapping,
        order,
        index,
        write: true,
    };
    let Some(mut locked) = tree::lock_present(mapping, index) else {
        return FaultCode::NOPAGE;
    };
    let page = match locked.entry().kind() {
        Kind::Data(_) if locked.entry().order() >= order => fault.page_in(&locked),
        _ => return FaultCode::NOPAGE,
    };
    let elsewhere = if order == Order::PTE {
        fault.vmf.pmd_is_huge()
    } else {
        fault.vmf.has_table(order)
    };
    if page.pfn() != pfn || elsewhere {
        return FaultCode::NOPAGE;
    }
    fault.set_dirty(&mut locked);
    match fault.insert(&locked, page) {
        Ok(code) => code,
        Err(_) => FaultCode::NOPAGE,
    }
}
