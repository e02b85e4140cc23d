// SPDX-License-Identifier: GPL-2.0

//! Device DAX: character devices whose memory is mapped whole (spec, section 9).
//!
//! The pages of a device are in folios of one size, the largest that its alignment allows, for as
//! long as it is bound. A fault is served by the largest entry that address, place in the device
//! and VMA allow: one of the folios' size, or else one of the last level for a single page.
//!
//! Lock order: a device's list of bad pages is taken below everything else.

use super::stats::{
    Counter,
    Stats, //
};
use crate::kern::{
    dax_bus::{Driver, Home, MemoryRange},
    fs::PageIndex,
    once::Once,
    order::Order,
    page::{DevFolio, PageRun, Pfn},
    page_table::{Insertion, TableMakers},
    vm::{self, FaultCode, Present, VmFault},
    waiting::{self, Waiting}, //
};
use core::ffi::CStr;
use kernel::{
    new_mutex,
    prelude::*,
    str::CString,
    sync::atomic::{Atomic, Relaxed},
    sync::Mutex, //
};

/// A device on the dax bus that is bound to this driver.
#[pin_data]
pub(crate) struct DevDax {
    name: CString,
    ranges: KVec<MemoryRange>,
    /// Of all folios.
    order: Order,
    stats: Stats,
    /// Large entries are not made where a table is.
    makers: TableMakers,
    any_poisoned: Atomic<bool>,
    #[pin]
    poisoned: Mutex<KVec<Pfn>>,
}

/// Where a fault happened.
pub(crate) struct FaultAddress {
    /// The virtual address in bytes.
    pub(crate) address: usize,
    /// The page of the device.
    pub(crate) index: PageIndex,
}

impl DevDax {
    /// A device of this memory, which was made with an alignment of `align` bytes. Sleeps.
    ///
    /// Errors: `ENXIO` if there is no memory, `ENOMEM`.
    pub(crate) fn new(
        name: CString,
        ranges: KVec<MemoryRange>,
        align: usize,
    ) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            order: folio_order(&ranges, align).ok_or(ENXIO)?,
            name,
            ranges,
            stats: Stats::new()?,
            makers: TableMakers::new(),
            any_poisoned: Atomic::new(false),
            poisoned <- new_mutex!(KVec::new()),
        })
    }

    fn name(&self) -> &CStr {
        &self.name
    }

    /// The order that the core asks for, if entries of it can be used for this device at all. To be
    /// asked first; needs nothing held.
    #[inline]
    pub(crate) fn order_of_level(&self, order: u32) -> Option<Order> {
        let order = Order::of_level(order)?;
        if order == Order::PTE || order == self.order {
            return Some(order);
        }
        self.stats.add(Counter::FallbackMaxOrder, 1);
        None
    }

    /// Says in the log what was bound.
    pub(crate) fn announce(&self) {
        let pages = self
            .ranges
            .iter()
            .fold(0usize, |sum, range| sum.saturating_add(range.pages));
        pr_info!(
            "{}: {} MiB in folios of {} KiB\n",
            self.name(),
            pages >> (20 - Order::PAGE_SHIFT),
            self.order.bytes() >> 10
        );
    }

    /// Whether a mapping may be made that begins at page `index`. Nothing of its length, address or
    /// alignment is refused: what larger entries cannot map is mapped by smaller ones.
    ///
    /// Errors: `EINVAL`, and the log says why (seldom enough not to flood it).
    pub(crate) fn check_mapping(&self, shared: bool, index: PageIndex) -> Result {
        if !shared {
            if vm::ratelimit() {
                pr_info!(
                    "{}: a private mapping (MAP_PRIVATE) is refused: MAP_SHARED is wanted\n",
                    self.name()
                );
            }
            return Err(EINVAL);
        }
        if locate(&self.ranges, index).is_none() {
            if vm::ratelimit() {
                pr_info!(
                    "{}: a mapping from page {} on is refused: the device has no such page; \
                     offsets and lengths that are multiples of {} KiB inside it are mapped best\n",
                    self.name(),
                    index.get(),
                    self.order.bytes() >> 10
                );
            }
            return Err(EINVAL);
        }
        Ok(())
    }

    /// An address for a mapping of `len` bytes from page `index` on, such that entries of the
    /// folios' size can be used. `search` is asked for a free range at an address (0: anywhere) of a
    /// length in bytes; its error is handed on.
    pub(crate) fn choose_address(
        &self,
        address: usize,
        len: usize,
        index: PageIndex,
        search: impl Fn(usize, usize) -> Result<usize, usize>,
    ) -> usize {
        if address == 0 && self.order > Order::PTE && len >= self.order.bytes() {
            let align = self.order.bytes();
            if let (Some(pfn), Some(padded)) = (
                locate(&self.ranges, index).map(|(_, pfn)| pfn),
                len.checked_add(align - Order::PTE.bytes()),
            ) {
                if let Ok(found) = search(0, padded) {
                    let wanted = (pfn.to_bits() % self.order.pages()) << Order::PAGE_SHIFT;
                    return found.saturating_add(wanted.wrapping_sub(found) & (align - 1));
                }
            }
        }
        search(address, len).unwrap_or_else(|error| error)
    }

    /// Where in the device the memory of a frame is; `None` if it is not of this device.
    pub(crate) fn index_of(&self, pfn: Pfn) -> Option<PageIndex> {
        self.ranges.iter().find_map(|range| {
            let offset = pfn.to_bits().checked_sub(range.pfn.to_bits())?;
            let index = PageIndex::new(range.index.get().saturating_add(offset));
            (offset < range.pages).then_some(index)
        })
    }

    /// Notes that the memory of a frame is bad, and says where in the device it is.
    ///
    /// Errors: `ENXIO` if it is not of this device, `ENOMEM`.
    pub(crate) fn mark_poisoned(&self, pfn: Pfn) -> Result<PageIndex> {
        let index = self.index_of(pfn).ok_or(ENXIO)?;
        let mut poisoned = self.poisoned.lock();
        if !poisoned.contains(&pfn) {
            poisoned.push(pfn, GFP_KERNEL)?;
        }
        self.any_poisoned.store(true, Relaxed);
        Ok(index)
    }

    /// Whether one of the pages of the range of `order` from `first` on is bad. May sleep.
    #[inline]
    pub(crate) fn is_poisoned(&self, first: Pfn, order: Order) -> bool {
        self.any_poisoned.read_once()
            && self.poisoned.lock().iter().any(|bad| {
                bad.to_bits()
                    .checked_sub(first.to_bits())
                    .is_some_and(|offset| offset < order.pages())
            })
    }

    /// Waits until nobody has a reference to any page of the device's memory: those of mappings are gone, and those who
    /// pinned pages for input or output, or for longer, let them go. Says in the log what it waits
    /// for, and that it waits to those who ask, for the device of this number. Sleeps, and cannot be interrupted,
    /// as the memory's pages go next.
    ///
    /// Held: nothing, and no fault can happen any more.
    pub(crate) fn wait_until_idle<'p>(
        &self,
        device: u32,
        memory: impl Iterator<Item = PageRun<'p>> + Clone,
    ) {
        /// In milliseconds.
        const INTERVAL: u32 = 20;
        const FIRST_MESSAGE: u32 = 200;
        const NEXT_MESSAGE: u32 = 30_000;
        let mut waited = 0u32;
        let mut said = false;
        let mut waiting = None;
        for (number, folio) in self.folios(memory.clone()).enumerate() {
            if number % 4096 == 0 {
                vm::cond_resched();
            }
            // Ends when its users let go, which is for them to say: no reference is added.
            while folio.refcount() > 1 {
                waiting.get_or_insert_with(|| Waiting::for_character(device));
                waiting::note_at(folio, self.byte_of(folio.head().pfn()));
                let since = if said { NEXT_MESSAGE } else { FIRST_MESSAGE };
                if waited >= since {
                    pr_info!(
                        "{}: unbinding waits for {} folios of {} KiB that are in use (pinned), \
                         from byte {:#x} of the device on\n",
                        self.name(),
                        self.busy_folios(memory.clone()),
                        self.order.bytes() >> 10,
                        self.byte_of(folio.head().pfn())
                    );
                    said = true;
                    waited = 0;
                }
                vm::msleep(INTERVAL);
                waited = waited.saturating_add(INTERVAL);
            }
        }
        if said {
            pr_info!("{}: no folio is in use any more\n", self.name());
        }
    }

    fn folios<'p>(
        &self,
        memory: impl Iterator<Item = PageRun<'p>>,
    ) -> impl Iterator<Item = DevFolio<'p>> {
        let step = self.order.pages();
        memory.flat_map(move |run| {
            (0..run.pages())
                .step_by(step)
                .filter_map(move |at| Some(run.nth(at)?.folio()))
        })
    }

    fn busy_folios<'p>(&self, memory: impl Iterator<Item = PageRun<'p>>) -> usize {
        self.folios(memory)
            .enumerate()
            .filter(|(number, folio)| {
                if number % 4096 == 0 {
                    vm::cond_resched();
                }
                folio.refcount() > 1
            })
            .count()
    }

    fn byte_of(&self, pfn: Pfn) -> u64 {
        self.index_of(pfn).map_or(0, PageIndex::to_byte)
    }

    /// Writes the counters, a line "name value" for each, and returns the number of bytes.
    ///
    /// Errors: `ENOSPC` if the buffer is too small.
    pub(crate) fn print_stats(&self, buffer: &mut [u8]) -> Result<usize> {
        self.stats.snapshot().print_some(
            &[
                Counter::ReadPte,
                Counter::ReadPmd,
                Counter::ReadPud,
                Counter::WritePte,
                Counter::WritePmd,
                Counter::WritePud,
                Counter::FallbackAlignment,
                Counter::FallbackVma,
                Counter::FallbackEof,
                Counter::FallbackConflict,
                Counter::FallbackMaxOrder,
                Counter::FallbackPoison,
                Counter::FaultErrors,
                Counter::PoisonFaults,
            ],
            buffer,
        )
    }
}

impl Driver for DevDax {
    fn new(name: CString, ranges: KVec<MemoryRange>, align: usize) -> impl PinInit<Self, Error> {
        DevDax::new(name, ranges, align)
    }

    fn announce(&self) {
        DevDax::announce(self);
    }

    #[inline]
    fn order(&self) -> Order {
        self.order
    }

    fn index_of(&self, pfn: Pfn) -> Option<PageIndex> {
        DevDax::index_of(self, pfn)
    }

    fn mark_poisoned(&self, pfn: Pfn) -> Result {
        DevDax::mark_poisoned(self, pfn).map(drop)
    }

    fn check_mapping(&self, shared: bool, index: PageIndex) -> Result {
        DevDax::check_mapping(self, shared, index)
    }

    fn choose_address(
        &self,
        address: usize,
        len: usize,
        index: PageIndex,
        search: impl Fn(usize, usize) -> Result<usize, usize>,
    ) -> usize {
        DevDax::choose_address(self, address, len, index, search)
    }

    #[inline]
    fn order_of_level(&self, order: u32) -> Option<Order> {
        DevDax::order_of_level(self, order)
    }

    #[inline]
    fn fault(&self, home: &Home<'_, Self>, vmf: &mut VmFault<'_>, order: Order) -> FaultCode {
        fault(self, home, vmf, order)
    }

    fn wait_until_idle(&self, home: &Home<'_, Self>, number: u32) {
        DevDax::wait_until_idle(self, number, home.runs());
    }

    fn print_stats(&self, buffer: &mut [u8]) -> Result<usize> {
        DevDax::print_stats(self, buffer)
    }
}

/// The order of the folios for memory with an alignment of `align` bytes: the largest of a
/// page-table level for which every range begins and ends at a multiple of it. `None` without
/// memory.
pub(crate) fn folio_order(ranges: &[MemoryRange], align: usize) -> Option<Order> {
    if ranges.is_empty() || ranges.iter().any(|range| range.pages == 0) {
        return None;
    }
    let fits = |order: &Order| {
        order.bytes() <= align
            && ranges
                .iter()
                .all(|range| range.pfn.is_aligned(*order) && range.pages % order.pages() == 0)
    };
    [Order::PUD, Order::PMD]
        .into_iter()
        .find(fits)
        .or(Some(Order::PTE))
}

/// The range that a page of the device is in, and the page's frame. `None` past the device's end.
#[inline]
pub(crate) fn locate(ranges: &[MemoryRange], index: PageIndex) -> Option<(&MemoryRange, Pfn)> {
    ranges.iter().find_map(|range| {
        let offset = index.get().checked_sub(range.index.get())?;
        (offset < range.pages).then(|| (range, range.pfn.offset(offset)))
    })
}

/// The first frame of what an entry of `order` maps for a fault at `place`, or why there can be
/// none. `covers` says whether the VMA has all of it.
///
/// For [`Order::PTE`] the only reason is that the device ends before.
#[inline]
pub(crate) fn choose(
    ranges: &[MemoryRange],
    order: Order,
    place: &FaultAddress,
    covers: impl FnOnce() -> bool,
) -> Result<Pfn, Counter> {
    let (range, pfn) = locate(ranges, place.index).ok_or(Counter::FallbackEof)?;
    if order == Order::PTE {
        return Ok(pfn);
    }
    let within = order.pages() - 1;
    let into = pfn.to_bits() & within;
    if (place.address >> Order::PAGE_SHIFT) & within != into {
        return Err(Counter::FallbackAlignment);
    }
    if !covers() {
        return Err(Counter::FallbackVma);
    }
    // The frames of the whole range have to be the range's.
    let offset = place
        .index
        .get()
        .checked_sub(range.index.get())
        .and_then(|offset| offset.checked_sub(into))
        .ok_or(Counter::FallbackEof)?;
    if range.pages.saturating_sub(offset) < order.pages() {
        return Err(Counter::FallbackEof);
    }
    Ok(range.pfn.offset(offset))
}

/// The page of the device that the folio with first frame `head` begins at, when an entry of `order`
/// for a fault at `place` maps from the frame `first` of it on.
#[inline]
pub(crate) fn begin_of(head: Pfn, order: Order, place: &FaultAddress, first: Pfn) -> PageIndex {
    let into_entry = (place.address >> Order::PAGE_SHIFT) & (order.pages() - 1);
    let into_folio = first.to_bits().wrapping_sub(head.to_bits());
    PageIndex::new(
        place
            .index
            .get()
            .wrapping_sub(into_entry)
            .wrapping_sub(into_folio),
    )
}

/// Serves a fault by an entry of `order`, which [`DevDax::order_of_level`] gave. Sleeps.
///
/// SIGBUS is for what is past the device's end, and for bad memory.
///
/// Held: the device stays bound, and its folios are given their places by `home`.
#[inline]
pub(crate) fn fault(
    device: &DevDax,
    home: &Home<'_, DevDax>,
    vmf: &mut VmFault<'_>,
    order: Order,
) -> FaultCode {
    let place = FaultAddress {
        address: vmf.address(),
        index: vmf.index(),
    };
    let refused = |reason| {
        device.stats.add(reason, 1);
        if order == Order::PTE {
            FaultCode::SIGBUS
        } else {
            FaultCode::FALLBACK
        }
    };
    let first = match choose(&device.ranges, order, &place, || vmf.vma_covers(order)) {
        Ok(first) => first,
        Err(_) if order == Order::PTE => return refused(Counter::FaultErrors),
        Err(reason) => return refused(reason),
    };
    if device.is_poisoned(first, order) {
        if order == Order::PTE {
            device.stats.add(Counter::PoisonFaults, 1);
            return FaultCode::HWPOISON;
        }
        return refused(Counter::FallbackPoison);
    }
    if order != Order::PTE && vmf.present(order) == Present::Smaller {
        return refused(Counter::FallbackConflict);
    }

    let write = vmf.is_write();
    // Not so for what `choose` gives: it is all of the device's.
    let Some(block) = home.block(first, order) else {
        return refused(Counter::FaultErrors);
    };
    let page = block.first();
    let folio = page.folio();
    home.place(folio, begin_of(folio.head().pfn(), order, &place, first));
    let (inserted, read, written) = match order {
        Order::PUD => (
            vmf.insert_pud(folio, write),
            Counter::ReadPud,
            Counter::WritePud,
        ),
        Order::PMD => (
            vmf.insert_pmd_unless_made(&device.makers, folio, write),
            Counter::ReadPmd,
            Counter::WritePmd,
        ),
        _ => (
            vmf.insert_page_by_table(&device.makers, page, write),
            Counter::ReadPte,
            Counter::WritePte,
        ),
    };
    if matches!(inserted, Insertion::Yielded | Insertion::Unfit) {
        return refused(Counter::FallbackConflict);
    }
    let code = inserted.code();
    let counter = if code.is_error() {
        Counter::FaultErrors
    } else if write {
        written
    } else {
        read
    };
    device.stats.add(counter, 1);
    code
}
