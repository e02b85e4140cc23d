// SPDX-License-Identifier: GPL-2.0

//! The locked entry, and what is prefaulted with it.

use super::{
    super::{
        layout,
        stats::Counter,
        tree::{LockError, LockedEntry}, //
    },
    Failure, Fault,
};
use crate::kern::{
    order::Order,
    vm::{FaultCode, Present}, //
};
use kernel::prelude::*;

/// The locked entry of a fault, and what to do about it.
pub(super) struct Target<'l, 'm> {
    pub(super) locked: &'l LockedEntry<'m>,
    /// The order to install, if any: larger than the fault's order only for a page.
    pub(super) size: Order,
    /// The page table has an entry of the order at the address.
    pub(super) present: bool,
}

impl From<LockError> for Failure<'_> {
    fn from(error: LockError) -> Self {
        match error {
            LockError::Conflict => Failure::Fallback(Counter::FallbackConflict),
            LockError::NoMemory => Failure::Error(ENOMEM),
            LockError::Killed => Failure::Error(EINTR),
        }
    }
}

impl<'a, const ORDER: usize> Fault<'a, ORDER> {
    /// The target of the fault, unless the page table shows that there is nothing left to do.
    #[inline(always)]
    pub(super) fn target<'l>(
        &self,
        locked: &'l LockedEntry<'a>,
    ) -> Result<Target<'l, 'a>, Failure<'a>> {
        let mut size = self.order();
        if locked.entry().is_empty() {
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
            size,
            present,
        })
    }
}

impl Failure<'_> {
    /// Removes the entry if the fault is tried again and would find it in its way.
    #[cold]
    pub(super) fn clear_way(&self, locked: LockedEntry<'_>) {
        match self {
            Failure::Again => layout::discard(locked),
            Failure::Narrow if locked.entry().is_empty() => locked.remove(),
            _ => (),
        }
    }
}
