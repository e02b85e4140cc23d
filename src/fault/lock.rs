// SPDX-License-Identifier: GPL-2.0

//! The locked entry, and what is prefaulted with it.

use super::{
    super::{
        layout,
        stats::Counter,
        tree::{self, Created, LockError, LockedEntry, Prefault}, //
    },
    plan::Wanted,
    Failure, Fault,
};
use crate::kern::{
    entry::Kind,
    order::Order,
    vm::{FaultCode, Present}, //
};
use kernel::prelude::*;

/// The locked entry of a fault, and what was prefaulted with it.
pub(super) struct Target<'m> {
    pub(super) locked: LockedEntry<'m>,
    pub(super) prefault: Prefault<'m>,
    /// The order to install, if any: larger than the fault's order only for a page.
    pub(super) size: Order,
    /// The page table has an entry of the order at the address.
    pub(super) present: bool,
}

impl<'a, const ORDER: usize> Fault<'a, ORDER> {
    /// Locks the entry that is wanted, or creates it, and looks at the page table.
    #[inline(always)]
    pub(super) fn lock(&self, wanted: &Wanted) -> Result<Target<'a>, Failure<'a>> {
        let Created { locked, prefault } = tree::lock_or_create(self.mapping, &wanted.entry)
            .map_err(|error| match error {
                LockError::Conflict => Failure::Fallback(Counter::FallbackConflict),
                LockError::NoMemory => Failure::Error(ENOMEM),
                LockError::Killed => Failure::Error(EINTR),
            })?;
        let mut size = self.order();
        if locked.entry().kind() == Kind::Empty {
            size = locked.entry().order();
        }
        // With the entry locked, nobody else changes the page table here.
        let present = match self.vmf.present(self.order()) {
            Present::Smaller => return Err(Failure::Code(FaultCode::DONE)),
            Present::Larger => return Err(Failure::Code(FaultCode::NOPAGE)),
            Present::Nothing => false,
            Present::Mapped => true,
        };
        Ok(Target {
            locked,
            prefault,
            size,
            present,
        })
    }
}

impl Target<'_> {
    /// Removes the entry if the fault is tried again and would find it in its way.
    #[cold]
    pub(super) fn clear_way(self, failure: &Failure<'_>) {
        match failure {
            Failure::Again => layout::discard(self.locked),
            Failure::Narrow if self.locked.entry().kind() == Kind::Empty => self.locked.remove(),
            _ => (),
        }
    }

    /// The pages to ask the filesystem for: those to install, and those prefaulted behind them.
    #[inline(always)]
    pub(super) fn pages(&self) -> usize {
        let behind = self.prefault.entries.as_ref();
        self.size.pages() + behind.map_or(0, |entries| entries.pages())
    }
}
