// SPDX-License-Identifier: GPL-2.0

//! Planning: what a fault wants, as far as it is known before anything is locked.

use super::{
    super::{
        poison,
        sequence,
        stats::Counter,
        tree::{self, PrefaultLimits}, //
    },
    Failure, Fault,
};
use crate::kern::{
    fs::{PageIndex, PageRange},
    iomap::IomapOps,
    order::Order,
    vm::{FaultCode, PteBatch}, //
};

/// The entry that a fault wants, and the pages beyond.
pub(super) struct Wanted {
    /// The entry, and how far to prefault.
    pub(super) entry: tree::Wanted,
    /// Map the accessed page only: more did not work.
    pub(super) alone: bool,
}

impl<'a, const ORDER: usize> Fault<'a, ORDER> {
    /// Checks whether the order can serve the fault at all. A fallback must be cheap.
    pub(super) fn check(&self) -> Result<(), Failure<'a>> {
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
        let reason = if order > self.device.max_order(self.mapping) || !movable {
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
        } else if order > Order::PMD && self.vmf.has_too_many_puds() {
            // They come and go faster than can be remembered.
            Counter::FallbackNomem
        } else {
            return Ok(());
        };
        Err(Failure::Fallback(reason))
    }

    /// The plan of a first try: as much as can be had along with the accessed page.
    #[inline(always)]
    pub(super) fn wanted(&self, ops: &IomapOps) -> Wanted {
        // To prefault for a write, the filesystem has to be asked what is there.
        let prefault = if self.order() != Order::PTE
            || self.write
                && !(sequence::is_next(self.mapping, self.index, self.reach())
                    && ops.read_ops_for(self.mapping.host()).is_some())
        {
            None
        } else {
            self.prefault_limits()
        };
        Wanted {
            entry: tree::Wanted {
                index: self.index,
                order: self.order(),
                // A store that has to be durable with its metadata is marked when that is.
                dirty: self.write && !self.vmf.is_sync(),
                prefault,
            },
            alone: false,
        }
    }

    /// The most pages between two faults of a sequence.
    #[inline(always)]
    fn reach(&self) -> usize {
        self.device.fault_around().pages().max(PteBatch::MAX)
    }

    /// The plan when that cannot be had: the accessed page only.
    #[cold]
    pub(super) fn narrowed(&self) -> Wanted {
        Wanted {
            entry: tree::Wanted {
                index: self.index,
                order: self.order(),
                dirty: self.write && !self.vmf.is_sync(),
                prefault: None,
            },
            alone: true,
        }
    }

    /// The pages that may be mapped along with the one that was accessed: an aligned block around
    /// it, as far as the VMA and the file go. `None` where each page is to be looked at by itself.
    pub(super) fn block(&self) -> Option<PageRange> {
        let pages = self.device.fault_around().pages();
        if self.order() != Order::PTE
            || pages == 1
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

    /// How far a new entry for a page, and the entries behind it, may go.
    fn prefault_limits(&self) -> Option<PrefaultLimits> {
        let block = self.block()?;
        let rest = block.last.get() - self.index.get() + 1;
        let mut limits = PrefaultLimits {
            block,
            order: Order::PTE,
            room: rest,
        };
        if self.write {
            limits.order = self.device.write_order();
            if limits.order > self.device.fault_around() {
                // One entry is mapped block by block then.
                let end = self.mapping.host().size_pages();
                limits.room = end.saturating_sub(self.index.get()).max(1);
            }
        }
        Some(limits)
    }
}
