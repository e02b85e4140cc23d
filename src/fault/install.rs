// SPDX-License-Identifier: GPL-2.0

//! Installing: the entry becomes what the file has.

use super::{
    super::{
        folio::{self, AssociateError},
        layout,
        stats::Counter,
        tree::{self, LockedEntry}, //
    },
    lock::Target,
    resolve::{CopyOnWrite, FileMemory, New, Resolved},
    Failure, Fault, PMD,
};
use crate::kern::{
    dax::{Access, DaxReadGuard},
    entry::{Entry, Kind},
    order::Order,
    page::DevPage,
    vm,
    xa::Mark, //
};
use kernel::{
    pr_err_once,
    prelude::*, //
};

/// The result of installing: the page to map, and how.
pub(super) struct Installed<'l> {
    /// The page to map; zeroes if `None`.
    pub(super) page: Option<DevPage<'l>>,
    /// The filesystem was asked.
    pub(super) asked: bool,
    /// The metadata has to be durable first.
    pub(super) sync: bool,
    /// Blocks were allocated for the fault.
    pub(super) new: bool,
}

impl<'a, const ORDER: usize> Fault<'a, ORDER> {
    /// Makes the locked entry what the filesystem said that there is.
    #[inline(always)]
    pub(super) fn install<'l>(
        &self,
        target: &Target<'l, '_>,
        resolved: &Resolved<'_, 'l>,
    ) -> Result<Installed<'l>, Failure<'a>> {
        match resolved {
            Resolved::Hole(_) => Ok(self.install_zeroes(target.locked)),
            Resolved::Memory(memory) => self.install_memory(target, memory),
        }
    }

    fn install_zeroes<'l>(&self, locked: &'l LockedEntry<'_>) -> Installed<'l> {
        let page = match locked.entry().kind() {
            Kind::Data(block) => Some(block.nth(self.offset_in(locked))),
            Kind::Zero => None,
            Kind::Empty => {
                locked.set(Entry::zero(self.order()));
                None
            }
        };
        Installed {
            page,
            asked: true,
            sync: false,
            new: false,
        }
    }

    #[inline(always)]
    fn install_memory<'l>(
        &self,
        target: &Target<'l, '_>,
        memory: &FileMemory<'_, 'l>,
    ) -> Result<Installed<'l>, Failure<'a>> {
        // That the copy belongs to the file is not durable either, whatever the filesystem said before.
        let needs_sync = memory.needs_sync || memory.copy.is_some();
        let sync = self.write && self.vmf.is_sync() && needs_sync;
        let new = memory.new != New::None;
        // The memory that the entry has, unless it is to be another.
        let present = target
            .locked
            .entry()
            .block()
            .filter(|_| memory.copy.is_none());
        // Before the entry changes: on an error the filesystem takes back its unused blocks.
        let page = self.sound(
            present.unwrap_or(memory.block.pages()),
            self.offset_in(target.locked),
            // Of an answer for more, the filesystem may have overwritten a part only.
            memory.new == New::All && self.order() == Order::PTE,
        )?;
        if present.is_none() {
            self.replace(target, memory, sync)?;
            if self.write && (memory.copy.is_some() || new) {
                target.locked.change(|entry| entry.fresh());
            }
        } else if self.write {
            let locked = target.locked;
            // Of an entry that is larger the filesystem was not asked about all.
            if !memory.shared && locked.entry().order() <= target.size {
                locked.change(|entry| entry.writable());
            }
            if !sync {
                self.set_dirty(locked);
            }
        }
        Ok(Installed {
            page: Some(page),
            asked: true,
            sync,
            new: new && self.write,
        })
    }

    /// Makes the locked entry one of the memory.
    #[inline(always)]
    fn replace(
        &self,
        target: &Target<'_, '_>,
        memory: &FileMemory<'_, '_>,
        sync: bool,
    ) -> Result<(), Failure<'a>> {
        let locked = target.locked;
        let block = memory.block.pages();
        let old = locked.entry();
        if !self.device.may_map(block.pfn()) {
            pr_err_once!(
                "a file has memory of a device that is not adopted: adopt all devices of its filesystem\n"
            );
            return Err(self.fallback_or(Counter::FallbackExtent, EIO));
        }
        // Before its pages are counted as the entry's.
        let Some(own) = locked.takes(memory.block) else {
            return Err(self.fallback_or(Counter::FallbackExtent, EIO));
        };
        if memory.copy.is_some() || old.is_zero() {
            self.clear_way(locked, memory)?;
        }
        let associated = folio::associate(own.memory(), memory.shared);
        let association = associated.map_err(|error| match error {
            AssociateError::Smaller => self.fallback_or(Counter::FallbackConflict, EIO),
            AssociateError::Owned => self.fallback_or(Counter::FallbackConflict, EIO),
            AssociateError::Held(folio) => self.held_up(block.order(), folio),
            // The task is about to die; but an access in the kernel is repeated until it is told of
            // an error.
            AssociateError::Interrupted => self.fallback_or(Counter::FallbackConflict, EINTR),
        })?;
        if old.is_data() {
            layout::release_backing(locked, self.device);
        }
        let write = self.write;
        tree::set_memory(own, association, |entry| match write {
            // Blocks of its own, written: a copy was made of those that were not.
            true => entry.writable(),
            false => entry,
        });
        if self.write && !sync {
            self.set_dirty(locked);
            if memory.copy.is_some() {
                locked.mark(Mark::ToWrite);
            }
        }
        Ok(())
    }

    /// Makes sure that what is about to be mapped for writing is marked.
    #[inline]
    pub(super) fn set_dirty(&self, locked: &LockedEntry<'_>) {
        if !locked.is_dirty() {
            locked.mark(Mark::Dirty);
        }
        self.mapping.host().mark_dirty_pages();
    }

    /// Unmaps the old copy or the zeroes, and makes the copy if there is one to make.
    #[cold]
    fn clear_way(
        &self,
        locked: &LockedEntry<'_>,
        memory: &FileMemory<'_, '_>,
    ) -> Result<(), Failure<'a>> {
        // Neither zeroes nor the old copy may stay mapped.
        self.mapping.unmap(locked.range());
        if let Some(copy) = &memory.copy {
            self.copy(copy)
                .map_err(|error| self.fallback_or(Counter::FallbackExtent, error))?;
            // The filesystem puts the copy in the place of the old blocks now, and a sync of any file
            // may make that durable: data that was safe in the old blocks must be safe in the copy.
            layout::flush(memory.block.run());
        }
        Ok(())
    }

    /// Copies all of the order to its new place; zeroes where the source has no data.
    fn copy(&self, copy: &CopyOnWrite<'_>) -> Result {
        let pages = self.order().pages();
        if copy.from.is_some() {
            self.device.add(Counter::CowPages, pages as u64);
        }
        self.in_pieces(|offset, bytes| {
            let alive = DaxReadGuard::new();
            let to = copy.to.access(&alive, pages, Access::Normal)?;
            match copy.from {
                Some(from) => {
                    let from = from.access(&alive, pages, Access::Normal)?;
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
        // Ends: each round is for the bytes behind the last one's.
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
            vm::cond_resched();
        }
    }
}
