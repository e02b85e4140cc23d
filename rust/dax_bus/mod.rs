// SPDX-License-Identifier: GPL-2.0

//! A driver on the dax bus, and the character devices of what is bound to it.
//!
//! This folder keeps the promises about lifetimes: what a file or a fault reaches stays until the
//! last of them is gone, and no fault is at work any more when a device's pages go. What a device
//! does is up to its [`Driver`].
//!
//! Lock order: the list of devices and a node's gate are never held together. Faults hold the gate for
//! reading, below `mmap_lock` or the VMA's lock; the page tables' locks and the logic's come below
//! it.
//!
//! C sources: `drivers/dax/bus.h`, `drivers/dax/dax-private.h`

mod file;
mod node;

pub(crate) use node::Home;

use super::{
    bindings,
    fs::PageIndex,
    order::Order,
    page::Pfn,
    redirect,
    vm::{FaultCode, VmFault}, //
};
use core::{
    ffi::CStr,
    marker::PhantomData,
    ptr::NonNull,
    slice, //
};
use file::FileCalls;
use kernel::{
    error::{from_err_ptr, to_result},
    ffi::{c_char, c_int, c_uint, c_ulong, c_void},
    prelude::*,
    str::CString,
    sync::{
        atomic::{Relaxed, Release},
        Arc, //
    }, //
};
use node::Node;

/// A contiguous part of a device's memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct MemoryRange {
    /// Where it is in the device.
    pub(crate) index: PageIndex,
    /// Its first frame.
    pub(crate) pfn: Pfn,
    /// Its length in pages.
    pub(crate) pages: usize,
}

/// A device that is being bound.
///
/// # Invariants
///
/// The bus has the device in the hands of the driver that it is being bound to, for as long as this is
/// there.
pub(crate) struct Candidate<'a> {
    raw: NonNull<bindings::dev_dax>,
    _bound: PhantomData<&'a ()>,
}

impl Candidate<'_> {
    /// The device's name, for messages.
    ///
    /// Errors: `ENOMEM`.
    pub(crate) fn name(&self) -> Result<CString> {
        // SAFETY: The device is alive and its name a string that does not change.
        let name = unsafe { CStr::from_char_ptr(bindings::rdax_dax_name(self.raw.as_ptr())) };
        Ok(CString::try_from(name)?)
    }

    /// The alignment in bytes that the device was made with.
    pub(crate) fn align(&self) -> usize {
        // SAFETY: The device is alive.
        unsafe { bindings::rdax_dax_align(self.raw.as_ptr()) }
    }

    /// The device's memory. It does not change while the device is bound.
    ///
    /// Errors: `ENOMEM`.
    pub(crate) fn ranges(&self) -> Result<KVec<MemoryRange>> {
        // SAFETY: The device is alive, and a device with a driver keeps its ranges.
        let n = unsafe { bindings::rdax_dax_nr_ranges(self.raw.as_ptr()) };
        let mut ranges = KVec::new();
        for i in 0..n {
            // SAFETY: As above, and `i` is less than the number of ranges.
            let range = unsafe { bindings::rdax_dax_range(self.raw.as_ptr(), i) };
            let range = MemoryRange {
                index: PageIndex::new(range.pgoff),
                pfn: Pfn::from_bits(range.pfn),
                pages: range.pages,
            };
            ranges.push(range, GFP_KERNEL)?;
        }
        Ok(ranges)
    }
}

/// The work for a device that is bound.
pub(crate) trait Driver: Send + Sync + Sized + 'static {
    /// A device of this memory, which was made with an alignment of `align` bytes. Sleeps.
    fn new(name: CString, ranges: KVec<MemoryRange>, align: usize) -> impl PinInit<Self, Error>;

    /// Says in the log what was bound.
    fn announce(&self);

    /// The order of all folios of the device.
    fn order(&self) -> Order;

    /// Where in the device the memory of a frame is; `None` if it is not of this device.
    fn index_of(&self, pfn: Pfn) -> Option<PageIndex>;

    /// Notes that the memory of a frame is bad: it must not be mapped again.
    fn mark_poisoned(&self, pfn: Pfn) -> Result;

    /// Whether a mapping may be made that begins at page `index`.
    fn check_mapping(&self, shared: bool, index: PageIndex) -> Result;

    /// An address for a mapping of `len` bytes from page `index` on. `search` is asked for a free range
    /// at an address (0: anywhere) of a length in bytes; its error is handed on.
    fn choose_address(
        &self,
        address: usize,
        len: usize,
        index: PageIndex,
        search: impl Fn(usize, usize) -> Result<usize, usize>,
    ) -> usize;

    /// The order that the core asks for, if entries of it can be used for this device at all. Asked
    /// before a fault, with nothing held.
    fn order_of_level(&self, order: u32) -> Option<Order>;

    /// Serves a fault by an entry of `order`, which [`Driver::order_of_level`] gave. Sleeps.
    ///
    /// Held: the device stays bound, and its folios are given their places by `home`.
    fn fault(&self, home: &Home<'_, Self>, vmf: &mut VmFault<'_>, order: Order) -> FaultCode;

    /// Waits until nobody has a reference to any page of the device of this number (`dev_t`). Sleeps, and
    /// cannot be interrupted, as the memory's pages go next.
    ///
    /// Held: nothing, and no fault can happen any more. `home` has the device's memory.
    fn wait_until_idle(&self, home: &Home<'_, Self>, number: u32);

    /// Writes the counters, a line "name value" for each, and returns the number of bytes.
    ///
    /// Errors: `ENOSPC` if the buffer is too small.
    fn print_stats(&self, buffer: &mut [u8]) -> Result<usize>;
}

/// A [`Driver`] with a list of the devices that are bound to it.
pub(crate) trait Listed: Driver {
    /// Calls `f` with the list, locked. Sleeps.
    fn with_list<R>(f: impl FnOnce(&mut List<Self>) -> R) -> R;
}

/// The devices that are bound to a driver.
pub(crate) struct List<D>(KVec<Arc<Node<D>>>);

impl<D> List<D> {
    /// No devices.
    pub(crate) const EMPTY: Self = Self(KVec::new());
}

/// The driver's registration on the bus.
pub(crate) struct Registration<D: Listed>(PhantomData<D>);

impl<D: Listed> Registration<D> {
    const CALLS: &'static bindings::rdax_dax_driver = &bindings::rdax_dax_driver {
        probe: Some(probe::<D>),
        remove: Some(remove::<D>),
        stats: Some(stats::<D>),
    };

    const PAGE_MAP: &'static bindings::dev_pagemap_ops = &bindings::dev_pagemap_ops {
        memory_failure: Some(memory_failure::<D>),
        folio_free: None,
        migrate_to_ram: None,
        folio_split: None,
    };

    /// Registers the driver. There is one. It takes no device by itself: the user names those it is
    /// for. Sleeps.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: The calls stay as long as the module.
        to_result(unsafe { bindings::rdax_dax_register(Self::CALLS) })?;
        Ok(Self(PhantomData))
    }
}

impl<D: Listed> Drop for Registration<D> {
    fn drop(&mut self) {
        // SAFETY: It was registered.
        unsafe { bindings::rdax_dax_unregister() };
        // Without devices, what was made for the list is left. Statics are not dropped.
        D::with_list(|list| drop(core::mem::take(&mut list.0)));
    }
}

fn errno(result: Result) -> c_int {
    match result {
        Ok(()) => 0,
        Err(error) => error.to_errno(),
    }
}

/// # Safety
///
/// Called by the bus, with its device.
unsafe extern "C" fn probe<D: Listed>(dev: *mut bindings::dev_dax) -> c_int {
    let Some(raw) = NonNull::new(dev) else {
        return ENODEV.to_errno();
    };
    let candidate = Candidate {
        raw,
        _bound: PhantomData,
    };
    errno(bind::<D>(&candidate))
}

fn bind<D: Listed>(candidate: &Candidate<'_>) -> Result {
    let node = Node::<D>::new(candidate)?;
    let order = node.device.order();
    let fits =
        |range: &MemoryRange| range.pfn.is_aligned(order) && range.pages % order.pages() == 0;
    if !candidate.ranges()?.iter().all(fits) {
        return Err(EINVAL);
    }
    if let Err(error) = redirect::prepare_answers() {
        pr_warn!(
            "of memory failures the kernel will tell by its own means ({})\n",
            error.to_errno()
        );
    }
    let raw = candidate.raw.as_ptr();

    // The page map points to the node, so that one keeps the other.
    // SAFETY: The device is alive, and `drop_node` takes what `into_raw` gave.
    to_result(unsafe {
        bindings::rdax_dax_keep(
            raw,
            Arc::into_raw(node.clone()).cast_mut().cast(),
            Some(drop_node::<D>),
        )
    })?;
    // SAFETY: The device is alive; the node stays until the page map is gone. The device's ranges
    // are multiples of folios of this order.
    let pgmap = from_err_ptr(unsafe {
        bindings::rdax_dax_map(
            raw,
            order.bits() as c_uint,
            Registration::<D>::PAGE_MAP,
            Arc::as_ptr(&node).cast_mut().cast(),
        )
    })?;

    node.pgmap.store(pgmap, Relaxed);
    node.take_address_space();

    // Pairs with `mmap_prepare`: whoever finds it open sees the page map.
    //
    // INVARIANT: The device is bound and has a page map.
    node.open.store(true, Release);
    if let Err(error) = Node::list(&node) {
        node.open.store(false, Relaxed);
        node.give_address_space();
        return Err(error);
    }
    // SAFETY: The device is alive. The data are passed to `remove` and `stats` only, while the
    // device is bound.
    let cdev = from_err_ptr(unsafe {
        bindings::rdax_dax_publish(
            raw,
            pgmap,
            FileCalls::<D>::FILE,
            Arc::as_ptr(&node).cast_mut().cast(),
        )
    });
    match cdev {
        Ok(cdev) => {
            node.cdev.store(cdev, Relaxed);
            node.device.announce();
            Ok(())
        }
        Err(error) => {
            node.unlist();
            node.close();
            node.give_address_space();
            Err(error)
        }
    }
}

/// # Safety
///
/// Called by the driver core with what was given to `rdax_dax_keep`, once.
unsafe extern "C" fn drop_node<D: Listed>(data: *mut c_void) {
    // SAFETY: By this function's safety requirements this is what `into_raw` gave.
    drop(unsafe { Arc::<Node<D>>::from_raw(data.cast_const().cast()) });
}

/// # Safety
///
/// Called by the bus, with its device and what was given to `rdax_dax_publish`.
unsafe extern "C" fn remove<D: Listed>(dev: *mut bindings::dev_dax, data: *mut c_void) {
    // SAFETY: The node is kept until the page map is gone, which comes after this.
    let node = unsafe { &*data.cast::<Node<D>>() };
    node.unlist();
    node.close();
    // SAFETY: The device is bound, and this is its character device.
    unsafe { bindings::rdax_dax_retire(dev, node.cdev.load(Relaxed)) };
    // INVARIANT: The page map goes after this.
    node.device.wait_until_idle(&Home(node), node.devt);
    node.give_address_space();
}

/// # Safety
///
/// Called for a device that is bound, with what was given to `rdax_dax_publish`. `buffer` has
/// `size` bytes.
unsafe extern "C" fn stats<D: Listed>(
    data: *mut c_void,
    buffer: *mut c_char,
    size: usize,
) -> isize {
    // SAFETY: By this function's safety requirements.
    let (node, buffer) = unsafe {
        (
            &*data.cast::<Node<D>>(),
            slice::from_raw_parts_mut(buffer.cast::<u8>(), size),
        )
    };
    match node.device.print_stats(buffer) {
        Ok(bytes) => bytes as isize,
        Err(error) => error.to_errno() as isize,
    }
}

/// # Safety
///
/// Called by the core for a page map that was made in `bind`, with a reference to it.
unsafe extern "C" fn memory_failure<D: Listed>(
    pgmap: *mut bindings::dev_pagemap,
    pfn: c_ulong,
    nr_pages: c_ulong,
    flags: c_int,
) -> c_int {
    // SAFETY: The page map's owner is the node, which is kept until the page map is gone.
    let node = unsafe { &*(*pgmap).owner.cast::<Node<D>>() };
    let made_up = flags & bindings::mf_flags_MF_SW_SIMULATED as c_int != 0;
    let mut result = Ok(());
    for offset in 0..nr_pages {
        let pfn = Pfn::from_bits(pfn.saturating_add(offset));
        if let Err(error) = node.fail(pfn, made_up, flags) {
            result = Err(error);
        }
    }
    errno(result)
}
