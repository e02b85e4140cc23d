// SPDX-License-Identifier: GPL-2.0

//! Page faults (spec, section 4), a value handed on from step to step:
//!
//! 1. [`Wanted`] (`plan.rs`): what the fault wants, computed before anything is locked;
//! 2. [`Target`] (`lock.rs`): the locked entry, with [`PrefaultEntries`] behind it;
//! 3. [`Resolved`](resolve::Resolved) (`resolve.rs`): what the entry, or the filesystem, says of the pages;
//! 4. [`Installed`] (`install.rs`): what the entry has become, and the page to map;
//! 5. [`Outcome`] (`insert.rs`, `around.rs`): what was inserted into the page table.
//!
//! The caller is a filesystem that holds its `invalidate_lock` shared, which keeps truncate and
//! hole punch out. All orders take the same way, with the order as a parameter.

mod around;
mod insert;
mod install;
mod lock;
mod plan;
mod resolve;
mod sync;

pub(crate) use self::sync::finish_sync_fault;
use self::{
    install::Installed,
    lock::Target,
    plan::Wanted, //
};
use super::{
    device::FileDevice,
    layout,
    stats::Counter,
    tree::{self, PrefaultEntries}, //
};
use crate::kern::{
    error::is_hwpoison,
    fs::{Mapping, PageIndex},
    iomap::{IomapOps, IomapSpace},
    memory::Stay,
    order::Order,
    page::Pfn,
    trace::{self, Reason},
    vm::{self, FaultCode, VmFault},
    wait,
    waiting::{Waiter, Waiting}, //
};
use kernel::prelude::*;

const PTE: usize = Order::PTE.bits();
const PMD: usize = Order::PMD.bits();
const PUD: usize = Order::PUD.bits();

/// Serves a page fault of `order` (`dax_iomap_fault`). Sleeps.
///
/// Held: the filesystem's `invalidate_lock`, shared.
#[inline(always)]
pub(crate) fn iomap_fault<'f>(vmf: &'f mut VmFault<'f>, order: u32, ops: &IomapOps) -> Outcome {
    let Some(order) = Order::of_level(order) else {
        return FaultCode::FALLBACK.into();
    };
    match order {
        Order::PTE => Fault::<PTE>::new(vmf).outcome(ops),
        Order::PMD => Fault::<PMD>::new(vmf).outcome(ops),
        _ => Fault::<PUD>::new(vmf).outcome(ops),
    }
}

/// A fault of an order, and what follows from its flags. The order is the type's, so that nothing has
/// to be computed of it while a fault is served.
struct Fault<'a, const ORDER: usize> {
    vmf: &'a mut VmFault<'a>,
    device: FileDevice<'a>,
    mapping: &'a Mapping,
    index: PageIndex,
    /// The file is written, not a private copy.
    write: bool,
}

impl<'a, const ORDER: usize> Fault<'a, ORDER> {
    #[inline(always)]
    fn new(vmf: &'a mut VmFault<'a>) -> Self {
        let mapping = vmf.mapping();
        Self {
            index: vmf.index(),
            write: vmf.is_write() && vmf.is_shared(),
            vmf,
            device: FileDevice::of(mapping.host()),
            mapping,
        }
    }

    /// The order to map.
    #[inline(always)]
    fn order(&self) -> Order {
        Order::from_bits(ORDER)
    }

    #[inline(always)]
    fn outcome(mut self, ops: &IomapOps) -> Outcome {
        let device = self.device;
        let outcome = match self.serve(ops) {
            Ok(outcome) => outcome,
            // Nothing is smaller than a page, and the core takes that answer for a bug of its own.
            Err(Failure::Fallback(_)) if self.order() == Order::PTE => Outcome::failed(EIO),
            Err(Failure::Fallback(reason)) => {
                device.inc(reason);
                self.trace(FaultCode::FALLBACK, Some(reason));
                return FaultCode::FALLBACK.into();
            }
            Err(Failure::Code(code)) => code.into(),
            Err(Failure::Again | Failure::Narrow) => FaultCode::NOPAGE.into(),
            Err(Failure::Held(head, stay)) => {
                let _waiting = Waiting::for_file(Waiter::Fault, self.mapping.host());
                wait_for_held(self.vmf.is_nowait(), head, stay)
            }
            Err(Failure::Error(error)) => Outcome::failed(error),
        };
        if outcome.code.with(FaultCode::FALLBACK) != outcome.code && outcome.code.is_error() {
            device.inc(Counter::FaultErrors);
        }
        self.trace(outcome.code, None);
        outcome
    }

    #[inline(always)]
    fn trace(&self, result: FaultCode, why: Option<Counter>) {
        if trace::wants_faults() {
            let reason = why.map_or(Reason::None, reason_of);
            trace::fault(self.vmf, self.order(), result, reason);
        }
    }

    #[inline(always)]
    fn serve(&mut self, ops: &IomapOps) -> Result<Outcome, Failure<'a>> {
        self.check()?;
        let mut wanted = self.wanted(ops);
        // Ends: to be told to narrow the fault happens once, and for a larger entry in the way it is
        // tried again a few times only; the core tries again after that.
        for _ in 0..4 {
            match self.serve_once(&wanted, ops) {
                Err(Failure::Narrow) => wanted = self.narrowed(),
                Err(Failure::Again) => (),
                other => return other,
            }
            vm::cond_resched();
        }
        if vm::fatal_signal() {
            return Err(Failure::Error(EINTR));
        }
        Err(Failure::Again)
    }

    fn serve_once(&mut self, wanted: &Wanted, ops: &IomapOps) -> Result<Outcome, Failure<'a>> {
        let result = tree::lock_or_create(self.mapping, &wanted.entry);
        // It stays where it is: each step would move what is large.
        let created = match &result {
            Ok(created) => created,
            Err(error) => return Err((*error).into()),
        };
        let prefault = created.prefault;
        let mut behind = match self.order() {
            Order::PTE => PrefaultEntries::new(&created.locked, prefault),
            _ => None,
        };
        if let Some(behind) = &mut behind {
            behind.insert(&created.locked);
        }
        let target = self.target(&created.locked)?;
        let installed = match self.known(&target)? {
            Some(installed) => installed,
            None => match self.ask(&target, &mut behind, ops) {
                Ok(installed) => installed,
                Err(failure) => {
                    drop(behind);
                    if let Ok(created) = result {
                        failure.clear_way(created.locked);
                    }
                    return Err(failure);
                }
            },
        };
        self.insert(&target, prefault, behind.as_ref(), wanted, &installed)
    }

    /// Asks the filesystem of the pages of the order and of those that are prefaulted, and makes the
    /// entries what it says.
    fn ask<'l>(
        &self,
        target: &Target<'l, '_>,
        behind: &mut Option<PrefaultEntries<'l, '_>>,
        ops: &IomapOps,
    ) -> Result<Installed<'l>, Failure<'a>> {
        if self.order() > Order::PMD && self.write && target.locked.entry().block().is_none() {
            self.look_for_blocks(target, ops)?;
        }
        let mut space = IomapSpace::new();
        let prefaulted = behind.as_ref().map_or(0, PrefaultEntries::pages);
        let mut query = self.query(target, prefaulted, &mut space, ops)?;
        let answer = match self.resolve(target, &mut query) {
            Ok(resolved) => self
                .install(target, &resolved)
                .map(|installed| (installed, resolved)),
            Err(failure) => Err(failure),
        };
        let mut iter = query.iter;
        match answer {
            Ok((installed, resolved)) => {
                // Reads that do not hold the pages come to their end before the blocks go.
                let _given_up = match resolved.is_copied() {
                    false => None,
                    true => match FileDevice::give_up_blocks(self.mapping.host()) {
                        Ok(given_up) => Some(given_up),
                        Err(error) => {
                            layout::empty(target.locked);
                            iter.abandon();
                            return Err(Failure::Error(error));
                        }
                    },
                };
                let end = query.start + target.size.bytes() as u64;
                iter.advance(end.saturating_sub(iter.position()));
                match iter.finish_copied() {
                    Ok(()) => {
                        if let Some(behind) = behind {
                            self.fill(target, behind, &resolved);
                        }
                        Ok(installed)
                    }
                    Err(error) => {
                        // The filesystem could not take over what was prepared: nothing of it may
                        // stay.
                        if installed.page.is_some() {
                            layout::empty(target.locked);
                        }
                        Err(Failure::Error(error))
                    }
                }
            }
            Err(failure) => {
                // The filesystem takes back the blocks it has prepared.
                iter.abandon();
                Err(failure)
            }
        }
    }

    /// A smaller order when there is one, else an error.
    fn fallback_or(&self, reason: Counter, error: Error) -> Failure<'a> {
        if self.order() == Order::PTE {
            Failure::Error(error)
        } else {
            Failure::Fallback(reason)
        }
    }
}

/// The outcome of a fault.
pub(crate) struct Outcome {
    /// For the core.
    pub(crate) code: FaultCode,
    /// For `dax_finish_sync_fault`, with [`FaultCode::NEED_SYNC`].
    pub(crate) pfn: Option<Pfn>,
    /// Why the filesystem or the device could not help.
    pub(crate) error: Option<Error>,
}

impl Outcome {
    fn failed(error: Error) -> Self {
        Self {
            code: code_of(error),
            pfn: None,
            error: Some(error),
        }
    }
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
enum Failure<'a> {
    /// A smaller order is to be tried, for a reason that is counted.
    Fallback(Counter),
    /// The filesystem or the device had an error.
    Error(Error),
    /// Somebody holds the folio that begins at this frame, which lost its last entry, or which the file would
    /// give up for a copy. The fault waits for it when the entry is unlocked; the stay keeps the folio until then.
    Held(Pfn, Stay<'a>),
    /// A larger entry stood in the way of a copy on write and is gone: try again.
    Again,
    /// The prefaulted pages cannot be had: try again with the accessed one alone.
    Narrow,
    /// With this code.
    Code(FaultCode),
}

/// A counter of fallbacks, for tracing.
fn reason_of(counter: Counter) -> Reason {
    match counter {
        Counter::FallbackAlignment => Reason::Alignment,
        Counter::FallbackVma => Reason::Vma,
        Counter::FallbackEof => Reason::Eof,
        Counter::FallbackPrivate => Reason::Private,
        Counter::FallbackExtent => Reason::Extent,
        Counter::FallbackHole => Reason::Hole,
        Counter::FallbackConflict => Reason::Conflict,
        Counter::FallbackMaxOrder => Reason::MaxOrder,
        Counter::FallbackPoison => Reason::Poison,
        Counter::FallbackNomem => Reason::Nomem,
        _ => Reason::None,
    }
}

/// The code by which the core knows an error of the filesystem or the device.
fn code_of(error: Error) -> FaultCode {
    if error == ENOMEM {
        FaultCode::OOM
    } else if is_hwpoison(error) {
        FaultCode::HWPOISON
    } else {
        FaultCode::SIGBUS
    }
}

/// Waits a short time for a folio that somebody holds, if the fault may wait. Only the callers' locks are
/// held meanwhile; they drop them before the access is tried again. So the task keeps trying until nobody
/// holds the folio, or until it is killed.
#[cold]
fn wait_for_held(nowait: bool, head: Pfn, stay: Stay<'_>) -> Outcome {
    let waited = match nowait {
        true => Ok(()),
        false => stay
            .folio(head)
            .and_then(|folio| wait::nap_until_idle(&stay, folio)),
    };
    match waited {
        Ok(()) => FaultCode::LATER.into(),
        // With `EINTR` the task is about to die; but an access in the kernel is repeated until it
        // is told of an error.
        Err(error) => Outcome::failed(error),
    }
}
