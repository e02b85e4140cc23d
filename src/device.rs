// SPDX-License-Identifier: GPL-2.0

//! An adopted device: its memory, counters and switches, and how a file finds it.
//!
//! The lowest room of the layer: all others may ask it, and it asks none of them but the counters.
//! Which devices are adopted is decided in `adopt`.

use super::stats::{
    Counter,
    Stats, //
};
#[cfg(RDAX_TEST)]
use crate::kern::memory::MemoryOwner;
use crate::kern::{
    bdev::BlockDevice,
    dax::DaxIdentity,
    fs::{
        BlockLocks,
        BlocksGivenUp,
        BlocksKept,
        Inode,
        Mapping, //
    },
    members::{
        OnSuperBlock,
        Set, //
    },
    memory::{
        DeviceMemory,
        PageMapRange, //
        Stay,
    },
    once::Once,
    order::Order,
    page::{PageBlock, PageRun, Pfn},
    redirect::InFlight, //
};
use kernel::{
    prelude::*,
    sync::{
        atomic::Atomic,
        Arc, //
    }, //
};

/// The adopted devices.
pub(super) static DEVICES: Set<AdoptedDevice> = Set::new();

/// An adopted device.
pub(crate) struct AdoptedDevice {
    stats: Stats,
    switches: Switches,
    memory: Arc<DeviceMemory>,
    /// Which device of DAX it is, if stores to some of its memory last only when a host has flushed them.
    asynchronous_dax: Option<DaxIdentity>,
    blocks: BlockLocks,
    /// The tick in which it was last asked whether the filesystem was shut down.
    asked: Atomic<usize>,
}

/// What is known of the memory of a device.
struct Memory {
    /// It may go away. Of other devices it is all of theirs: a device that is made of them (device mapper) may
    /// get other parts of them while it is in use.
    memory: Arc<DeviceMemory>,
    /// Stores to some of it last only when a host has flushed them.
    asynchronous: bool,
}

/// The memory of a device. One that is being removed does not tell any more.
fn memory_of(bdev: &BlockDevice) -> Result<Memory> {
    let own = bdev.memory_owner();
    let mut asynchronous = false;
    let memory = DeviceMemory::new(|| {
        let mut ranges: KVec<PageMapRange> = KVec::new();
        asynchronous = false;
        for range in bdev.page_maps() {
            asynchronous |= range.asynchronous;
            if range.owner != own && ranges.iter().any(|known| known.has(range.first())) {
                continue;
            }
            ranges.push(range, GFP_KERNEL)?;
        }
        Ok(ranges)
    })?;
    Ok(Memory {
        memory: Arc::new(memory, GFP_KERNEL)?,
        asynchronous,
    })
}

/// The settings that an administrator can change.
pub(super) struct Switches {
    pub(super) max_order: Atomic<Order>,
    pub(super) fault_around: Atomic<Order>,
    pub(super) write_order: Atomic<Order>,
}

impl Switches {
    /// Log2 of the pages of the block that is mapped around a fault, as the core's default.
    const FAULT_AROUND: Order = Order::from_bits(4);

    /// With this, `fsync` flushes at most four pages for one that was written to.
    const WRITE_ORDER: Order = Order::from_bits(2);

    pub(super) fn new() -> Self {
        Self {
            max_order: Atomic::new(Order::PUD),
            fault_around: Atomic::new(Self::FAULT_AROUND),
            write_order: Atomic::new(Self::WRITE_ORDER),
        }
    }

    fn copy(&self) -> Self {
        Self {
            max_order: Atomic::new(self.max_order.read_once()),
            fault_around: Atomic::new(self.fault_around.read_once()),
            write_order: Atomic::new(self.write_order.read_once()),
        }
    }
}

impl AdoptedDevice {
    /// The device behind `bdev`, with counters that are 0. Sleeps. Fails for want of memory.
    pub(super) fn new(bdev: &BlockDevice, switches: &Switches) -> Result<Self> {
        let Memory {
            memory,
            asynchronous,
        } = memory_of(bdev)?;
        Ok(Self {
            stats: Stats::new()?,
            switches: switches.copy(),
            memory,
            asynchronous_dax: bdev.dax().filter(|_| asynchronous),
            blocks: BlockLocks::new()?,
            asked: Atomic::new(0),
        })
    }

    /// The device's counters.
    #[inline(always)]
    pub(crate) fn stats(&self) -> &Stats {
        &self.stats
    }

    /// The device's settings. They may change at any time.
    #[inline(always)]
    pub(super) fn switches(&self) -> &Switches {
        &self.switches
    }

    /// The memory, which may go away.
    #[inline(always)]
    pub(super) fn memory(&self) -> &Arc<DeviceMemory> {
        &self.memory
    }

    /// Calls `work` with the pages of the device, the memory of which `bdev` has, piece by piece. They stay
    /// meanwhile; those that go away are left out. Sleeps if `work` does.
    pub(super) fn with_runs(
        &self,
        bdev: &BlockDevice,
        mut work: impl FnMut(PageRun<'_>) -> Result,
    ) -> Result {
        let mut at = 0;
        // Ends: each turn is for the memory behind the last one's.
        while let Some(frames) = bdev.memory(at) {
            let stay = self.memory.stay();
            let Ok(run) = stay.run(frames) else {
                at += frames.pages;
                continue;
            };
            at += run.pages();
            work(run)?;
        }
        Ok(())
    }

    /// Whether the files of the device may have a frame that is not of its memory: the filesystem has further
    /// devices, and that is one of them which is adopted, too. Sleeps.
    #[cold]
    fn has_from_others(&self, pfn: Pfn) -> bool {
        let in_flight = InFlight::enter();
        DEVICES
            .places()
            .filter_map(|place| DEVICES.at(place, &in_flight))
            .any(|(_, other)| self.memory.share(&other.memory, pfn))
    }

    /// Which device of DAX it is, if no store to it is durable before its host has flushed it.
    pub(super) fn asynchronous_dax(&self) -> Option<DaxIdentity> {
        self.asynchronous_dax
    }

    /// As if all of its memory that is `owner`'s were going away.
    #[cfg(RDAX_TEST)]
    pub(crate) fn retire(&self, owner: MemoryOwner) {
        self.memory.retire(owner);
    }
}

/// The adopted device that `of` lies on. Takes no lock and does not sleep; `None` only if the call was
/// not redirected.
#[inline]
pub(crate) fn device_for<'a>(of: &'a impl OnSuperBlock) -> Option<&'a AdoptedDevice> {
    DEVICES.get(of)
}

/// Whether the filesystem of `of` has reported an error since it was mounted: what it said before may
/// be true no longer.
#[inline]
pub(crate) fn has_error(of: &impl OnSuperBlock) -> bool {
    DEVICES.has_error(of)
}

/// Notes that the filesystem of `of` was found to be shut down.
pub(crate) fn set_error(of: &impl OnSuperBlock) {
    DEVICES.set_error(of, true);
}

/// Forgets the error, for tests.
#[cfg(RDAX_TEST)]
pub(crate) fn forget_error(of: &impl OnSuperBlock) {
    DEVICES.set_error(of, false);
}

/// Calls `f` for every adopted device.
#[cfg(RDAX_CHECK)]
pub(crate) fn visit(mut f: impl FnMut(&BlockDevice, &AdoptedDevice)) {
    // A device is not let go of before this is over.
    let in_flight = InFlight::enter();
    for place in DEVICES.places() {
        if let Some((bdev, device)) = DEVICES.at(place, &in_flight) {
            f(&bdev, device);
        }
    }
}

/// The adopted device that a file is on.
///
/// Calls are redirected for adopted devices only, so there is one; if there should be none,
/// nothing is counted and the smallest order is used.
#[derive(Clone, Copy)]
pub(crate) struct FileDevice<'a>(Option<&'a AdoptedDevice>);

impl<'a> FileDevice<'a> {
    /// The device of a file.
    #[inline]
    pub(crate) fn of(inode: &'a Inode) -> Self {
        Self(device_for(inode))
    }

    /// Whether this is the first such call for the device in this tick of the clock.
    #[inline]
    pub(crate) fn is_first_in(self, tick: usize) -> bool {
        self.0.is_some_and(|device| {
            device.asked.read_once() != tick && {
                device.asked.write_once(tick);
                true
            }
        })
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
            device.stats.add(counter, n);
        }
    }

    /// Keeps the `struct page`s of the device's memory for a task that is going to sleep on a folio.
    #[inline]
    pub(crate) fn stay(self) -> Option<Stay<'a>> {
        self.0.map(|device| device.memory.stay())
    }

    /// Keeps the blocks of a file as long as the result lives ([`BlockLocks::keep`]). `None` where files
    /// cannot share blocks, so that none are given up. Sleeps, unless `nowait`.
    ///
    /// Errors: `EAGAIN` with `nowait`, `EINTR` for a fatal signal.
    #[inline]
    pub(crate) fn keep_blocks(inode: &'a Inode, nowait: bool) -> Result<Option<BlocksKept<'a>>> {
        if !inode.may_share_blocks() {
            return Ok(None);
        }
        let device = device_for(inode).ok_or(EIO)?;
        device.blocks.keep(inode, nowait).map(Some)
    }

    /// Waits until nobody copies from the blocks of a file ([`BlockLocks::give_up`]). Sleeps.
    ///
    /// Errors: `EINTR` for a fatal signal.
    pub(crate) fn give_up_blocks(inode: &'a Inode) -> Result<BlocksGivenUp<'a>> {
        let device = device_for(inode).ok_or(EIO)?;
        device.blocks.give_up(inode)
    }

    /// Whether an entry may be made for a frame that a file has: memory of no adopted device would not be waited
    /// for when it goes away. Sleeps.
    #[inline(always)]
    pub(crate) fn may_map(self, pfn: Pfn) -> bool {
        self.0
            .is_none_or(|device| device.memory.has(pfn) || device.has_from_others(pfn))
    }

    /// Whether memory errors may be known of the pages of an entry of `inode`, which is locked
    /// ([`Inode::may_have_bad_blocks`]).
    #[inline(always)]
    pub(crate) fn may_have_bad_blocks(self, inode: &Inode, block: PageBlock<'_>) -> bool {
        self.0
            .is_some_and(|device| inode.may_have_bad_blocks(block, &device.memory))
    }

    /// Whether a frame's memory is going away with its device.
    #[inline]
    pub(crate) fn is_gone(self, pfn: Pfn) -> bool {
        self.0.is_some_and(|device| device.memory.is_gone(pfn))
    }

    /// Whether some of the device's memory is going away, or is gone ([`DeviceMemory::went`]).
    pub(crate) fn went(self, ago: u32) -> bool {
        self.0.is_some_and(|device| device.memory.went(ago))
    }

    /// The largest order that faults on a file of the device may be served by. May change at any time.
    #[inline]
    pub(crate) fn max_order(self, mapping: &Mapping) -> Order {
        let order = self.switch(|switches| &switches.max_order);
        // Reclaim does not expect entries of the third level, and warns of them. Files of erofs are looked at.
        if order > Order::PMD && mapping.is_looked_at_by_reclaim() {
            return Order::PMD;
        }
        order
    }

    /// Log2 of the pages of the aligned block that a fault may map along with the accessed page. May
    /// change at any time.
    #[inline]
    pub(crate) fn fault_around(self) -> Order {
        self.switch(|switches| &switches.fault_around)
    }

    /// The largest order of the entries that write faults in sequence make. May change at any time.
    #[inline]
    pub(crate) fn write_order(self) -> Order {
        self.switch(|switches| &switches.write_order)
    }

    #[inline(always)]
    fn switch(self, which: impl FnOnce(&Switches) -> &Atomic<Order>) -> Order {
        self.0
            .map_or(Order::PTE, |device| which(&device.switches).read_once())
    }
}
