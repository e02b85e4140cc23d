// SPDX-License-Identifier: GPL-2.0

//! Whose counters and switches apply to a file: those of the adopted device it is on.

use super::{
    adopt::{self, Device},
    stats::Counter, //
};
use crate::kern::{
    fs::Inode,
    memory::Stay,
    order::Order,
    page::Pfn, //
};

/// The device that a file is on.
///
/// Calls are redirected for adopted devices only, so there is one; if there should be none,
/// nothing is counted and the smallest order is used.
#[derive(Clone, Copy)]
pub(crate) struct Account<'a>(Option<&'a Device>);

impl<'a> Account<'a> {
    /// The account of a file's device.
    #[inline]
    pub(crate) fn of(inode: &'a Inode) -> Self {
        Self(adopt::device_for(inode))
    }

    /// Whether this is the first such call for the device in this tick of the clock.
    #[inline]
    pub(crate) fn is_first_in(self, tick: usize) -> bool {
        self.0.is_some_and(|device| device.is_first_in(tick))
    }

    /// Counts one.
    #[inline]
    pub(crate) fn inc(self, counter: Counter) {
        self.add(counter, 1);
    }

    /// Counts `n`.
    #[inline]
    pub(crate) fn add(self, counter: Counter, n: u64) {
        if let Some(device) = self.0 {
            device.stats().add(counter, n);
        }
    }

    /// Keeps the `struct page`s of the device's memory for whoever is going to sleep on a folio.
    #[inline]
    pub(crate) fn stay(self) -> Option<Stay<'a>> {
        self.0.map(|device| device.memory().stay())
    }

    /// Whether an entry may be made for a frame that the device has given.
    #[inline(always)]
    pub(crate) fn may_map(self, pfn: Pfn) -> bool {
        self.0.is_none_or(|device| device.may_map(pfn))
    }

    /// Whether a frame's memory is going away with its device.
    #[inline]
    pub(crate) fn is_gone(self, pfn: Pfn) -> bool {
        self.0.is_some_and(|device| device.memory().is_gone(pfn))
    }

    /// The largest order that faults on the device may be served by.
    #[inline]
    pub(crate) fn max_order(self) -> Order {
        self.0.map_or(Order::PTE, Device::max_order)
    }

    /// Log2 of the pages of the aligned block that a fault may map along with the accessed page.
    #[inline]
    pub(crate) fn fault_around(self) -> Order {
        self.0.map_or(Order::PTE, Device::fault_around)
    }

    /// The largest order of the entries that write faults in sequence make.
    #[inline]
    pub(crate) fn write_order(self) -> Order {
        self.0.map_or(Order::PTE, Device::write_order)
    }
}
