// SPDX-License-Identifier: GPL-2.0

//! A pmem device that nobody else uses, and a filesystem in memory whose files lie on it.

use super::{failed, Checked};
use crate::kern::{
    bdev::Claim,
    bindings,
    check::complain,
    compat::this_module,
    dax::{
        DaxDevice,
        DaxReadGuard, //
    },
    entry_points,
    error::eopnotsupp,
    fs::{Inode, Mapping, PageIndex},
    iomap::IomapOps,
    iov::{IovIter, Kiocb},
    order::Order,
    page::{DevFolio, DevPage, PageBlock, PageRun, Pfn},
    vm::{FaultCode, VmFault},
    xa::RawValue, //
};
use core::{
    ffi::{c_int, c_void},
    marker::PhantomData,
    mem::MaybeUninit,
    ptr::{self, NonNull},
};
use kernel::{
    error::from_err_ptr,
    ffi::c_uint,
    new_mutex,
    prelude::*,
    sync::atomic::{Acquire, Atomic, Relaxed, Release},
    sync::{rcu, Mutex}, //
};

// SAFETY: Inodes and address spaces are used by many tasks at once and have their own locks; the
// wrappers change nothing that others see but under those or atomically.
unsafe impl Sync for Mapping {}
// SAFETY: As above.
unsafe impl Sync for Inode {}
// SAFETY: A table of functions, which are called from everywhere.
unsafe impl Sync for IomapOps {}
// SAFETY: What it points to is the kernel's and has locks; the rest is atomic.
unsafe impl Sync for World {}
// SAFETY: As above; the model is behind a lock.
unsafe impl Sync for File<'_> {}

/// What of a `struct page` must be the same again when nobody uses it.
type PageBits = [usize; 8];

/// The first page of the device that no failed test has left in some state.
static CLEAN: Atomic<usize> = Atomic::new(0);

/// The device and the filesystem. What a test took of the device must be free again when this is
/// dropped, or the test has failed ([`World::check_clean`] says so before).
pub(crate) struct World {
    mount: NonNull<bindings::vfsmount>,
    dax: NonNull<bindings::dax_device>,
    claim: Claim,
    run: PageRun,
    next: Atomic<usize>,
    is_locked: fn(RawValue) -> bool,
}

impl World {
    /// Opens the device exclusively and mounts the filesystem. `is_locked` says whether a value of a
    /// file's tree is an entry that is locked.
    pub(crate) fn new(device: &CStr, is_locked: fn(RawValue) -> bool) -> Checked<Self> {
        let claim = Claim::by_path(device)?;
        let mut offset = 0;
        // SAFETY: The device is open. No holder is entered, so none has to be removed.
        let dax = unsafe {
            bindings::fs_dax_get_by_bdev(
                claim.bdev().as_ptr(),
                &mut offset,
                ptr::null_mut(),
                ptr::null(),
            )
        };
        let dax = NonNull::new(dax).ok_or(eopnotsupp())?;
        let found = {
            let alive = DaxReadGuard::new();
            // SAFETY: The device was just got.
            let device = unsafe { DaxDevice::from_raw(dax) };
            device
                .access(
                    &alive,
                    0,
                    usize::MAX >> 20,
                    crate::kern::dax::Access::Normal,
                )
                .map(|memory| memory.run())
        };
        let mount = found.and_then(|found| {
            // SAFETY: The device is open.
            let mount = from_err_ptr(unsafe { bindings::rdax_test_mount(claim.bdev().as_ptr()) })?;
            Ok((found, NonNull::new(mount).ok_or(ENOMEM)?))
        });
        match mount {
            Ok((run, mount)) => Ok(Self {
                mount,
                dax,
                claim,
                run,
                next: Atomic::new(CLEAN.load(Relaxed)),
                is_locked,
            }),
            Err(error) => {
                // SAFETY: Got above.
                unsafe { bindings::fs_put_dax(dax.as_ptr(), ptr::null_mut()) };
                Err(error.into())
            }
        }
    }

    /// The number of pages that the device has.
    pub(crate) fn pages(&self) -> usize {
        self.run.pages()
    }

    /// Pages of the device that no other part of the test has: the place on the device of the
    /// first of `pages`, whose frame is aligned to `order`. `None` when the device is too small.
    pub(crate) fn try_take(&self, pages: usize, order: Order) -> Option<usize> {
        let misaligned = self
            .run
            .pfn()
            .to_bits()
            .wrapping_add(self.next.load(Relaxed))
            & (order.pages() - 1);
        let place = self.next.load(Relaxed) + ((order.pages() - misaligned) & (order.pages() - 1));
        if place + pages > self.run.pages() {
            return None;
        }
        self.next.store(place + pages, Relaxed);
        Some(place)
    }

    /// As [`World::try_take`], where the device is known to be large enough.
    pub(crate) fn take(&self, order: Order) -> Checked<usize> {
        self.take_many(order.pages(), order)
    }

    /// As [`World::try_take`], where the device is known to be large enough.
    pub(crate) fn take_many(&self, pages: usize, order: Order) -> Checked<usize> {
        self.try_take(pages, order)
            .ok_or_else(|| failed(file!(), line!(), fmt!("the device is too small")))
    }

    /// The frame at a place on the device.
    pub(crate) fn pfn(&self, place: usize) -> Pfn {
        self.run.pfn().offset(place)
    }

    /// The page at a place on the device.
    pub(crate) fn page(&self, place: usize) -> DevPage {
        self.run(place, 1).first()
    }

    /// The pages from a place on the device on.
    pub(crate) fn run(&self, place: usize, pages: usize) -> PageRun {
        let run = self.run.from(place).map(|rest| rest.up_to(pages));
        run.filter(|run| run.pages() == pages)
            .expect("a test asks for pages that it has taken of the device")
    }

    /// The pages of an entry of `order` that begin with this one, which are the device's.
    pub(crate) fn block_of(&self, first: DevPage, order: Order) -> PageBlock {
        let place = first.pfn().to_bits().wrapping_sub(self.run.pfn().to_bits());
        self.block(place, order)
    }

    /// Pages of the device that an entry of `order` can have, whoever has them. `None` when it is too
    /// small.
    pub(crate) fn any_block(&self, order: Order) -> Option<PageBlock> {
        let misaligned = self.run.pfn().to_bits() & (order.pages() - 1);
        let place = (order.pages() - misaligned) & (order.pages() - 1);
        self.run.block(place, order)
    }

    /// The pages from a place on the device on that an entry of `order` can have.
    pub(crate) fn block(&self, place: usize, order: Order) -> PageBlock {
        self.run
            .block(place, order)
            .expect("a test asks for pages that it has taken of the device")
    }

    /// The device.
    pub(crate) fn dax(&self) -> &DaxDevice {
        // SAFETY: The device is held by this value.
        unsafe { DaxDevice::from_raw(self.dax) }
    }

    /// Fills `pages` pages at a place on the device with a byte.
    pub(crate) fn fill(&self, place: usize, pages: usize, byte: u8) {
        for page in place..place + pages {
            // SAFETY: The device's memory, which only the test uses.
            unsafe {
                self.page(page)
                    .address()
                    .as_ptr()
                    .write_bytes(byte, Order::PTE.bytes())
            };
        }
    }

    /// The byte at `offset` after the begin of a place on the device.
    pub(crate) fn byte(&self, place: usize, offset: usize) -> u8 {
        let page = self.page(place + (offset >> Order::PAGE_SHIFT));
        // SAFETY: The device's memory, and inside of its page.
        unsafe {
            page.address()
                .as_ptr()
                .add(offset & (Order::PTE.bytes() - 1))
                .read_volatile()
        }
    }

    /// Writes a byte.
    pub(crate) fn set_byte(&self, place: usize, offset: usize, byte: u8) {
        let page = self.page(place + (offset >> Order::PAGE_SHIFT));
        // SAFETY: As above.
        unsafe {
            page.address()
                .as_ptr()
                .add(offset & (Order::PTE.bytes() - 1))
                .write_volatile(byte)
        };
    }

    /// The byte that [`World::fill_differently`] writes at an offset: no two pieces of some bytes that
    /// are near each other are alike.
    fn pattern(offset: usize) -> u8 {
        (offset.wrapping_mul(0x9e37_79b1) >> 16) as u8
    }

    /// Fills `pages` pages at a place on the device with bytes that differ.
    pub(crate) fn fill_differently(&self, place: usize, pages: usize) {
        for offset in 0..pages << Order::PAGE_SHIFT {
            self.set_byte(place, offset, Self::pattern(offset));
        }
    }

    /// Whether the bytes of a range are those that [`World::fill_differently`] wrote at the same
    /// offsets of another place.
    pub(crate) fn is_copy(&self, place: usize, from: usize, to: usize) -> bool {
        (from..to).all(|offset| self.byte(place, offset) == Self::pattern(offset))
    }

    /// Whether all bytes of a range are `byte`.
    pub(crate) fn is_filled(&self, place: usize, from: usize, to: usize, byte: u8) -> bool {
        (from..to).all(|offset| self.byte(place, offset) == byte)
    }

    /// A file of `pages` pages, without any extent.
    pub(crate) fn file(&self, pages: usize) -> Checked<File<'_>> {
        File::new(self, pages)
    }

    /// Whether all that was taken of the device is free again: pages of their own, with refcount
    /// and map count 0, no owner and no share count (spec, R1 and R4).
    pub(crate) fn check_clean(&self) -> Checked {
        for place in CLEAN.load(Relaxed)..self.next.load(Relaxed) {
            if !is_free(self.page(place)) {
                let page = self.page(place);
                let folio = page.folio();
                return Err(failed(
                    file!(),
                    line!(),
                    fmt!(
                        "page {place} of the device is not free: order {}, refcount {}, \
                         map count {}, owner {:#x}, share {}",
                        folio.order().bits(),
                        folio.refcount(),
                        folio.mapcount(),
                        folio.owner(),
                        folio.share()
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Ends it with pages that are in use still, which the caller has to see free later.
    pub(crate) fn leave(self) {
        self.next.store(CLEAN.load(Relaxed), Relaxed);
    }

    /// Has the filesystem say that it is on this device, or on none.
    pub(crate) fn set_foreign(&self, foreign: bool) {
        let bdev = if foreign {
            ptr::null_mut()
        } else {
            self.bdev()
        };
        // SAFETY: The filesystem is mounted.
        unsafe { bindings::rdax_test_set_device(self.mount.as_ptr(), bdev) };
    }

    pub(super) fn raw_dax(&self) -> *mut bindings::dax_device {
        self.dax.as_ptr()
    }

    pub(super) fn bdev(&self) -> *mut bindings::block_device {
        self.claim.bdev().as_ptr()
    }

    /// Marks pages as bad, or takes the mark off.
    pub(crate) fn set_poison(&self, place: usize, poison: bool) {
        // SAFETY: A page of the device.
        unsafe { bindings::rdax_test_set_poison(self.page(place).as_ptr(), poison) };
    }

    /// Has the device know, or forget, that a page is bad.
    pub(crate) fn set_bad_blocks(&self, place: usize, bad: bool) -> Result {
        const SECTORS: usize = Order::PTE.bytes() / 512;
        // SAFETY: The device is open.
        kernel::error::to_result(unsafe {
            bindings::rdax_test_set_bad_blocks(
                self.claim.bdev().as_ptr(),
                (place * SECTORS) as u64,
                SECTORS as u64,
                bad,
            )
        })
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // What a failed test left must not make the next one fail.
        if self.check_clean().is_err() {
            CLEAN.store(self.next.load(Relaxed), Relaxed);
        }
        // SAFETY: Mounted and got by `new`; files are gone, as they borrow this value.
        unsafe {
            bindings::rdax_test_unmount(self.mount.as_ptr());
            bindings::fs_put_dax(self.dax.as_ptr(), ptr::null_mut());
        }
    }
}

/// All of a `struct page`, to be compared.
pub(crate) fn page_bits(page: DevPage) -> PageBits {
    const { assert!(core::mem::size_of::<PageBits>() == core::mem::size_of::<bindings::page>()) };
    // SAFETY: A page of the device, all of whose bytes are initialised.
    unsafe { page.as_ptr().cast::<PageBits>().read_volatile() }
}

/// The page that is `pages` pages behind another one of the same page map.
pub(crate) fn page_behind(page: DevPage, pages: usize) -> DevPage {
    let mut map: bindings::rdax_page_map = pin_init::zeroed();
    let pfn = page.pfn().to_bits();
    // SAFETY: By the invariant of `DevPage` the frame is one of a page map.
    unsafe { bindings::rdax_page_map(pfn, &mut map) };
    let behind = pfn.wrapping_add(pages);
    assert!(behind.wrapping_sub(map.first) < map.pages);
    // SAFETY: The frame is one of the same page map.
    unsafe { DevPage::of(Pfn::from_bits(behind)) }
}

/// Whether a page is one that nobody uses.
pub(crate) fn is_free(page: DevPage) -> bool {
    let folio = page.folio();
    folio.head() == page
        && folio.order() == Order::PTE
        && folio.refcount() == 0
        && folio.mapcount() == 0
        && folio.owner() == 0
        && folio.share() == 0
        // The word behind the flags holds the page map.
        && page_bits(page)[1] != 0
        && !page.is_poisoned()
}

/// What is at a place in a file.
#[derive(Clone, Copy)]
pub(crate) struct TestExtent {
    first: usize,
    pages: usize,
    kind: u32,
    flags: u32,
    place: usize,
    source: Option<usize>,
    elsewhere: bool,
}

impl TestExtent {
    fn new(first: usize, pages: usize, kind: u32, place: usize) -> Self {
        Self {
            first,
            pages,
            kind,
            flags: 0,
            place,
            source: None,
            elsewhere: false,
        }
    }

    /// `pages` pages of data from page `first` of the file on, at a place on the device.
    pub(crate) fn mapped(first: usize, pages: usize, place: usize) -> Self {
        Self::new(first, pages, bindings::IOMAP_MAPPED, place)
    }

    /// Blocks without data.
    pub(crate) fn unwritten(first: usize, pages: usize, place: usize) -> Self {
        Self::new(first, pages, bindings::IOMAP_UNWRITTEN, place)
    }

    /// Nothing.
    pub(crate) fn hole(first: usize, pages: usize) -> Self {
        Self::new(first, pages, bindings::IOMAP_HOLE, 0)
    }

    /// What DAX cannot serve.
    pub(crate) fn inline(first: usize, pages: usize) -> Self {
        Self::new(first, pages, bindings::IOMAP_INLINE, 0)
    }

    fn with(mut self, flag: u32) -> Self {
        self.flags |= flag;
        self
    }

    /// Allocated by the call that tells of it.
    pub(crate) fn new_blocks(self) -> Self {
        self.with(bindings::IOMAP_F_NEW)
    }

    /// Shared with other files.
    pub(crate) fn shared(self) -> Self {
        self.with(bindings::IOMAP_F_SHARED)
    }

    /// With metadata that is not durable.
    pub(crate) fn dirty(self) -> Self {
        self.with(bindings::IOMAP_F_DIRTY)
    }

    /// On another device, which is only named: whoever accesses it there crashes.
    pub(crate) fn elsewhere(mut self) -> Self {
        self.elsewhere = true;
        self
    }

    /// In the place of data that is to be copied from another place on the device.
    pub(crate) fn copy_of(mut self, place: usize) -> Self {
        self.source = Some(place);
        self
    }
}

/// Which of the filesystem's answers fails, counted from 0, and how.
#[derive(Clone, Copy)]
pub(crate) struct Failing {
    pub(crate) call: usize,
    pub(crate) error: Error,
}

/// A call of the filesystem's `iomap_end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) position: u64,
    pub(crate) length: u64,
    pub(crate) written: usize,
}

/// What became of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) order: u32,
    pub(crate) code: FaultCode,
    pub(crate) error: i32,
}

/// What the filesystem knows of a file.
struct ModelState {
    /// What is told to those who read.
    read: KVec<TestExtent>,
    /// What is told to those who write, or zero, or unshare.
    write: KVec<TestExtent>,
    begins: usize,
    ends: KVec<Ended>,
    asked: u32,
    fail_begin: Option<Failing>,
    fail_end: Option<Failing>,
    fail_sync: Option<Error>,
    make_table: bool,
    /// An address that somebody reads from when a call begins, 0 for none.
    accessed: usize,
    /// The fault that is under way, 0 if none is.
    under_way: usize,
    other_memory: bool,
    syncs: usize,
    synced: (i64, i64),
    faults: KVec<Fault>,
}

#[pin_data]
struct Model {
    #[pin]
    state: Mutex<ModelState>,
    dax: NonNull<bindings::dax_device>,
    evicted: Atomic<bool>,
    strict: Atomic<bool>,
    is_locked: fn(RawValue) -> bool,
}

impl Model {
    fn ops(&self) -> &'static IomapOps {
        let table = if self.strict.load(Relaxed) {
            &STRICT_OPS
        } else {
            &OPS
        };
        // SAFETY: The table is never changed.
        unsafe { IomapOps::from_raw(NonNull::from(&table.0)) }
    }

    /// Whether the entry that covers a byte of a file is locked.
    fn is_locked_at(&self, mapping: &Mapping, byte: bindings::loff_t) -> bool {
        let mut guard = mapping.tree().lock();
        guard
            .xas(PageIndex::of_byte(byte as u64))
            .load()
            .is_some_and(self.is_locked)
    }
}

/// A file on the device, open for reading and writing, whose extents a test makes up.
pub(crate) struct File<'w> {
    inode: NonNull<bindings::inode>,
    file: NonNull<bindings::file>,
    model: Pin<KBox<Model>>,
    world: &'w World,
}

impl<'w> File<'w> {
    fn new(world: &'w World, pages: usize) -> Checked<Self> {
        let model = KBox::pin_init(
            pin_init!(Model {
                state <- new_mutex!(ModelState {
                    read: KVec::new(),
                    write: KVec::new(),
                    begins: 0,
                    ends: KVec::new(),
                    asked: 0,
                    fail_begin: None,
                    fail_end: None,
                    fail_sync: None,
                    make_table: false,
                    accessed: 0,
                    under_way: 0,
                    other_memory: false,
                    syncs: 0,
                    synced: (0, -1),
                    faults: KVec::with_capacity(64, GFP_KERNEL).unwrap_or_default(),
                }),
                dax: world.dax,
                evicted: Atomic::new(false),
                strict: Atomic::new(false),
                is_locked: world.is_locked,
            }),
            GFP_KERNEL,
        )?;
        // SAFETY: The filesystem is mounted; the model outlives the inode, see `drop`.
        let inode = NonNull::new(unsafe {
            bindings::rdax_test_inode(
                world.mount.as_ptr(),
                (pages << Order::PAGE_SHIFT) as i64,
                ptr::from_ref::<Model>(&model).cast_mut().cast(),
            )
        })
        .ok_or(ENOMEM)?;
        // SAFETY: The inode is alive.
        let file = from_err_ptr(unsafe {
            bindings::rdax_test_file(world.mount.as_ptr(), inode.as_ptr(), &FILE_OPERATIONS.0)
        });
        match file.and_then(|file| NonNull::new(file).ok_or(ENOMEM)) {
            Ok(file) => Ok(Self {
                inode,
                file,
                model,
                world,
            }),
            Err(error) => {
                // SAFETY: The reference is ours.
                unsafe { bindings::iput(inode.as_ptr()) };
                Err(error.into())
            }
        }
    }

    /// The device.
    pub(crate) fn world(&self) -> &'w World {
        self.world
    }

    /// The file's inode.
    pub(crate) fn inode(&self) -> &Inode {
        // SAFETY: A reference is held.
        unsafe { Inode::from_raw(self.inode) }
    }

    /// The file's contents.
    pub(crate) fn mapping(&self) -> &Mapping {
        self.inode().mapping()
    }

    pub(super) fn raw(&self) -> *mut bindings::file {
        self.file.as_ptr()
    }

    /// The filesystem's callbacks.
    pub(crate) fn ops(&self) -> &IomapOps {
        self.model.ops()
    }

    /// Makes it a filesystem with an `iomap_next` of its own, which tells of every error of
    /// `iomap_end`. That of the kernel keeps those to itself that come after something was done.
    pub(crate) fn set_strict(&self) {
        self.model.strict.store(true, Relaxed);
    }

    /// The number of pages that entries cover (`nrpages`).
    pub(crate) fn nrpages(&self) -> usize {
        // SAFETY: The inode is alive; the test is not counting meanwhile.
        unsafe { (&raw const (*self.mapping().as_ptr()).nrpages).read_volatile() as usize }
    }

    /// Says what is in the file, to those who read and to those who write.
    pub(crate) fn set_extents(&self, extents: &[TestExtent]) -> Checked {
        self.set_extents_for_writing(extents)?;
        let mut state = self.model.state.lock();
        state.read.clear();
        state.read.extend_from_slice(extents, GFP_KERNEL)?;
        Ok(())
    }

    /// Says what is told to those who write.
    pub(crate) fn set_extents_for_writing(&self, extents: &[TestExtent]) -> Checked {
        let mut state = self.model.state.lock();
        state.write.clear();
        state.write.extend_from_slice(extents, GFP_KERNEL)?;
        Ok(())
    }

    /// Has a call of `iomap_begin` fail, counted from now on.
    pub(crate) fn fail_begin(&self, failing: Option<Failing>) {
        let mut state = self.model.state.lock();
        state.begins = 0;
        state.fail_begin = failing;
    }

    /// Has a call of `iomap_end` fail, counted from now on.
    pub(crate) fn fail_end(&self, failing: Option<Failing>) {
        let mut state = self.model.state.lock();
        state.ends.clear();
        state.fail_end = failing;
    }

    /// Makes the file one of a filesystem that can share blocks.
    pub(crate) fn can_share_blocks(&self) {
        // SAFETY: The inode is alive.
        unsafe { bindings::rdax_test_can_share_blocks(self.inode().as_ptr()) };
    }

    /// Has it forgotten how files of this filesystem are read, when no test uses one that can share blocks.
    pub(crate) fn forget_reading() {
        // SAFETY: Nothing that belongs to the filesystem is under way.
        unsafe { IomapOps::release() };
    }

    /// Has an address of the test's be read from in the next call of `iomap_begin`, as if another thread
    /// did.
    pub(crate) fn access_at_begin(&self, address: usize) {
        self.model.state.lock().accessed = address;
    }

    /// Has `fsync` fail.
    pub(crate) fn fail_sync(&self, error: Option<Error>) {
        self.model.state.lock().fail_sync = error;
    }

    /// Has another page be mapped, as by another thread, whenever a fault of 2 MiB has come.
    pub(crate) fn make_table(&self) {
        self.model.state.lock().make_table = true;
    }

    /// Has another page be mapped, as by another thread, during a fault of 2 MiB that waits now and
    /// does so until this returns.
    pub(crate) fn make_table_now(&self) {
        let fault = self.model.state.lock().under_way as *mut bindings::vm_fault;
        if !fault.is_null() {
            // SAFETY: The fault is under way.
            unsafe { bindings::rdax_test_make_table(fault) };
        }
    }

    /// Whether the inode has dirty pages to be written back by those who go through all inodes
    /// (`I_DIRTY_PAGES`), which is forgotten.
    pub(crate) fn take_dirty_pages(&self) -> bool {
        // SAFETY: The inode is alive.
        unsafe { bindings::rdax_test_take_dirty_pages(self.inode.as_ptr()) }
    }

    /// Has the next synchronous fault end as if other memory had been told of at its beginning.
    pub(crate) fn tell_of_other_memory(&self) {
        self.model.state.lock().other_memory = true;
    }

    /// Calls of `fsync`.
    pub(crate) fn syncs(&self) -> usize {
        self.model.state.lock().syncs
    }

    /// The first and the last byte that the last call of `fsync` was for.
    pub(crate) fn synced(&self) -> (i64, i64) {
        self.model.state.lock().synced
    }

    /// Calls of `iomap_begin` since they were counted anew.
    pub(crate) fn begins(&self) -> usize {
        self.model.state.lock().begins
    }

    /// Calls of `iomap_end` since they were counted anew.
    pub(crate) fn ends(&self) -> usize {
        self.model.state.lock().ends.len()
    }

    /// The first call of `iomap_end` since they were counted anew.
    pub(crate) fn first_end(&self) -> Option<Ended> {
        self.model.state.lock().ends.first().copied()
    }

    /// The last call of `iomap_end`.
    pub(crate) fn last_end(&self) -> Option<Ended> {
        self.model.state.lock().ends.last().copied()
    }

    /// The flags of the last call of `iomap_begin`.
    pub(crate) fn asked(&self) -> u32 {
        self.model.state.lock().asked
    }

    /// Forgets what faults there were.
    pub(crate) fn forget_faults(&self) {
        self.model.state.lock().faults.clear();
    }

    /// The faults of the file, the first 64 of them since they were forgotten.
    pub(crate) fn fault(&self, number: usize) -> Option<Fault> {
        self.model.state.lock().faults.get(number).copied()
    }

    /// The number of faults, no more than 64.
    pub(crate) fn faults(&self) -> usize {
        self.model.state.lock().faults.len()
    }

    /// The last fault.
    pub(crate) fn last_fault(&self) -> Option<Fault> {
        self.model.state.lock().faults.last().copied()
    }

    /// The size in bytes.
    pub(crate) fn set_size(&self, bytes: u64) {
        // SAFETY: The inode is alive.
        unsafe { bindings::rdax_test_set_size(self.inode.as_ptr(), bytes as i64) };
    }

    /// The number of names.
    pub(crate) fn set_links(&self, links: u32) {
        // SAFETY: As above.
        unsafe { bindings::rdax_test_set_links(self.inode.as_ptr(), links) };
    }

    /// Whether it is a file with DAX.
    pub(crate) fn set_dax(&self, dax: bool) {
        // SAFETY: As above.
        unsafe { bindings::rdax_test_set_dax(self.inode.as_ptr(), dax) };
    }

    /// Log2 of the block size.
    pub(crate) fn set_block_bits(&self, bits: u32) {
        // SAFETY: As above.
        unsafe { bindings::rdax_test_set_block_bits(self.inode.as_ptr(), bits) };
    }

    /// Sets the file's times to 0.
    pub(crate) fn forget_times(&self) {
        // SAFETY: As above.
        unsafe { bindings::rdax_test_forget_times(self.inode.as_ptr()) };
    }

    /// Whether the file's times were set since.
    pub(crate) fn has_times(&self) -> bool {
        // SAFETY: As above.
        unsafe { bindings::rdax_test_has_times(self.inode.as_ptr()) }
    }

    /// What write-back did wrong, which is forgotten.
    pub(crate) fn take_error(&self) -> i32 {
        // SAFETY: As above.
        unsafe { bindings::rdax_test_take_error(self.inode.as_ptr()) }
    }

    /// Reads or writes the file: calls `work` with what `read` and `write` make. `flags` are
    /// `IOCB_*`.
    pub(crate) fn transfer<R>(
        &self,
        position: u64,
        flags: u32,
        buffer: Buffer<'_>,
        work: impl FnOnce(&mut Kiocb, &mut IovIter) -> R,
    ) -> R {
        let mut iocb = MaybeUninit::<bindings::kiocb>::zeroed();
        let mut iter = MaybeUninit::<bindings::iov_iter>::zeroed();
        let mut kvec = MaybeUninit::<bindings::kvec>::zeroed();
        // SAFETY: The helpers fill in what they are given; the buffers live for the call, and user
        // memory is accessed as such.
        unsafe {
            bindings::rdax_test_kiocb(
                iocb.as_mut_ptr(),
                self.raw(),
                position as i64,
                flags as c_int,
            );
            match buffer {
                Buffer::Write(bytes) => bindings::rdax_test_iov_kernel(
                    iter.as_mut_ptr(),
                    kvec.as_mut_ptr(),
                    true,
                    bytes.as_ptr().cast_mut().cast(),
                    bytes.len(),
                ),
                Buffer::Read(bytes) => bindings::rdax_test_iov_kernel(
                    iter.as_mut_ptr(),
                    kvec.as_mut_ptr(),
                    false,
                    bytes.as_mut_ptr().cast(),
                    bytes.len(),
                ),
                Buffer::WriteUser(address, len) => {
                    bindings::rdax_test_iov_user(iter.as_mut_ptr(), true, address, len)
                }
                Buffer::ReadUser(address, len) => {
                    bindings::rdax_test_iov_user(iter.as_mut_ptr(), false, address, len)
                }
            }
            work(
                Kiocb::from_raw(NonNull::new_unchecked(iocb.as_mut_ptr())),
                IovIter::from_raw(NonNull::new_unchecked(iter.as_mut_ptr())),
            )
        }
    }
}

/// The memory of a read or write.
pub(crate) enum Buffer<'a> {
    Write(&'a [u8]),
    Read(&'a mut [u8]),
    /// An address in user space and a length.
    WriteUser(usize, usize),
    ReadUser(usize, usize),
}

impl Drop for File<'_> {
    fn drop(&mut self) {
        // SAFETY: The file and the reference to the inode are this value's. Mappings of the file
        // borrow it, so this is the end of the inode, and the model may go.
        unsafe {
            bindings::rdax_test_close(self.file.as_ptr());
            bindings::iput(self.inode.as_ptr());
        }
        if !self.model.evicted.load(Acquire) {
            failed(
                file!(),
                line!(),
                fmt!("somebody still uses the file: its memory is given up"),
            );
            // Never to be freed.
            // SAFETY: The module stays as long as the file.
            unsafe { bindings::__module_get(this_module().as_ptr()) };
        }
    }
}

/// A table of functions for the core.
#[repr(transparent)]
struct Table<T>(T);

// SAFETY: The tables below are never written.
unsafe impl<T> Sync for Table<T> {}

static OPS: Table<bindings::iomap_ops> = Table(bindings::iomap_ops {
    iomap_begin: Some(begin),
    iomap_end: Some(end),
    iomap_next: None,
});

static STRICT_OPS: Table<bindings::iomap_ops> = Table(bindings::iomap_ops {
    iomap_begin: None,
    iomap_end: None,
    iomap_next: Some(strict_next),
});

// Without an owner: the tests keep the module.
static FILE_OPERATIONS: Table<bindings::file_operations> = Table(bindings::file_operations {
    fop_flags: bindings::FOP_MMAP_SYNC,
    mmap_prepare: Some(mmap_prepare),
    fsync: Some(fsync),
    ..pin_init::zeroed()
});

static VM_OPERATIONS: Table<bindings::vm_operations_struct> =
    Table(bindings::vm_operations_struct {
        fault: Some(small_fault),
        huge_fault: Some(huge_fault),
        pfn_mkwrite: Some(small_fault),
        page_mkwrite: Some(small_fault),
        ..pin_init::zeroed()
    });

/// # Safety
///
/// The inode is one of a [`File`], which outlives the result.
unsafe fn model_of<'a>(inode: *mut bindings::inode) -> &'a Model {
    // SAFETY: By this function's safety requirements.
    unsafe { &*bindings::rdax_test_private(inode).cast::<Model>() }
}

/// # Safety
///
/// Called by the tests' filesystem for an inode of a [`File`] that goes away.
#[no_mangle]
unsafe extern "C" fn rdax_test_evict(inode: *mut bindings::inode) {
    // SAFETY: By this function's safety requirements.
    unsafe {
        entry_points::dax_break_layout_final(inode);
        model_of(inode).evicted.store(true, Release);
    }
}

/// # Safety
///
/// Called for an inode of a [`File`], as a filesystem is.
unsafe extern "C" fn begin(
    inode: *mut bindings::inode,
    position: bindings::loff_t,
    length: bindings::loff_t,
    flags: c_uint,
    iomap: *mut bindings::iomap,
    source: *mut bindings::iomap,
) -> c_int {
    // SAFETY: By this function's safety requirements.
    let (model, iomap, source) = unsafe { (model_of(inode), &mut *iomap, &mut *source) };
    let accessed = core::mem::take(&mut model.state.lock().accessed);
    if accessed != 0 {
        let mut value = 0;
        // SAFETY: User memory, accessed as such; whether it is there, the test will see.
        unsafe { bindings::rdax_test_load(accessed, &mut value) };
    }
    let mut state = model.state.lock();
    let call = state.begins;
    state.begins += 1;
    state.asked = flags;
    if let Some(failing) = state.fail_begin.filter(|failing| failing.call == call) {
        return failing.error.to_errno();
    }
    let changes = bindings::IOMAP_WRITE | bindings::IOMAP_ZERO | bindings::IOMAP_UNSHARE;
    let extents = if flags & changes != 0 {
        &state.write
    } else {
        &state.read
    };
    let page = position as usize >> Order::PAGE_SHIFT;
    let here = extents
        .iter()
        .find(|extent| extent.first <= page && page < extent.first + extent.pages);
    let end = (position as u64).saturating_add(length as u64);
    let fill = |map: &mut bindings::iomap, extent: &TestExtent, place: usize| {
        map.type_ = extent.kind as u16;
        map.flags = extent.flags as u16;
        map.offset = (extent.first << Order::PAGE_SHIFT) as i64;
        map.length = (extent.pages << Order::PAGE_SHIFT) as u64;
        map.addr = (place << Order::PAGE_SHIFT) as u64;
        map.dax_dev = match extent.elsewhere {
            false => model.dax.as_ptr(),
            true => NonNull::dangling().as_ptr(),
        };
    };
    match here {
        Some(extent) => {
            fill(iomap, extent, extent.place);
            if extent.kind == bindings::IOMAP_HOLE {
                iomap.addr = u64::MAX;
            }
            if let Some(place) = extent.source {
                fill(source, extent, place);
                source.type_ = bindings::IOMAP_MAPPED as u16;
                source.flags = 0;
            }
        }
        None => {
            let next = extents
                .iter()
                .map(|extent| extent.first)
                .filter(|first| *first > page)
                .min()
                .map_or(end, |first| (first << Order::PAGE_SHIFT) as u64);
            let first = (page << Order::PAGE_SHIFT) as u64;
            iomap.type_ = bindings::IOMAP_HOLE as u16;
            iomap.offset = first as i64;
            iomap.length = next.saturating_sub(first);
            iomap.addr = u64::MAX;
            iomap.dax_dev = model.dax.as_ptr();
        }
    }
    0
}

/// # Safety
///
/// Called for an inode of a [`File`], as a filesystem is.
unsafe extern "C" fn end(
    inode: *mut bindings::inode,
    position: bindings::loff_t,
    length: bindings::loff_t,
    written: isize,
    _flags: c_uint,
    _iomap: *mut bindings::iomap,
) -> c_int {
    // SAFETY: By this function's safety requirements.
    let model = unsafe { model_of(inode) };
    let mut state = model.state.lock();
    let call = state.ends.len();
    let ended = Ended {
        position: position as u64,
        length: length as u64,
        written: written as usize,
    };
    if state.ends.push(ended, GFP_KERNEL).is_err() {
        return ENOMEM.to_errno();
    }
    match state.fail_end.filter(|failing| failing.call == call) {
        Some(failing) => failing.error.to_errno(),
        None => 0,
    }
}

/// # Safety
///
/// Called for an inode of a [`File`], as a filesystem is.
unsafe extern "C" fn strict_next(
    iter: *const bindings::iomap_iter,
    iomap: *mut bindings::iomap,
    source: *mut bindings::iomap,
) -> c_int {
    // SAFETY: By this function's safety requirements.
    unsafe {
        let (inode, flags) = ((*iter).inode, (*iter).flags);
        if (*iomap).length != 0 {
            let start = (*iter).iter_start_pos;
            let done = (*iter).pos - start;
            let length = done + (*iter).len as i64;
            let ret = end(inode, start, length, done as isize, flags, iomap);
            if ret < 0 {
                return ret;
            }
            let ret = bindings::iomap_iter_continue(iter, iomap, source, 0);
            if ret <= 0 {
                return ret;
            }
        }
        let ret = begin(inode, (*iter).pos, (*iter).len as i64, flags, iomap, source);
        if ret < 0 {
            ret
        } else {
            1
        }
    }
}

/// # Safety
///
/// Called by the core for a [`File`].
unsafe extern "C" fn fsync(
    file: *mut bindings::file,
    start: bindings::loff_t,
    end: bindings::loff_t,
    _datasync: c_int,
) -> c_int {
    // SAFETY: By this function's safety requirements.
    let (inode, model) = unsafe {
        let inode = (*file).f_inode;
        let model = model_of(inode);
        (Inode::from_raw(NonNull::new_unchecked(inode)), model)
    };
    // Write-back would wait for it.
    if model.is_locked_at(inode.mapping(), start) {
        complain();
    }
    let mut state = model.state.lock();
    state.syncs += 1;
    state.synced = (start, end);
    state.fail_sync.map_or(0, |error| error.to_errno())
}

/// # Safety
///
/// Called by the core for a [`File`].
unsafe extern "C" fn mmap_prepare(desc: *mut bindings::vm_area_desc) -> c_int {
    // SAFETY: The description is the core's and being filled in.
    unsafe { (*desc).vm_ops = &VM_OPERATIONS.0 };
    0
}

/// # Safety
///
/// Called by the core for a mapping of a [`File`].
unsafe extern "C" fn small_fault(vmf: *mut bindings::vm_fault) -> bindings::vm_fault_t {
    // SAFETY: By this function's safety requirements.
    unsafe { huge_fault(vmf, 0) }
}

/// # Safety
///
/// Called by the core for a mapping of a [`File`].
unsafe extern "C" fn huge_fault(
    raw: *mut bindings::vm_fault,
    order: c_uint,
) -> bindings::vm_fault_t {
    // SAFETY: By this function's safety requirements.
    let inode = unsafe {
        VmFault::from_raw(NonNull::new_unchecked(raw))
            .mapping()
            .host()
            .as_ptr()
    };
    // SAFETY: The inode is alive, and one of a `File`.
    let model = unsafe {
        bindings::rdax_test_lock_faults_shared(inode);
        model_of(inode)
    };
    if order as usize == Order::PMD.bits() && model.state.lock().make_table {
        // SAFETY: The fault is under way.
        unsafe { bindings::rdax_test_make_table(raw) };
    }
    model.state.lock().under_way = raw as usize;
    let (mut pfn, mut error) = (usize::MAX, 0);
    // SAFETY: The fault is under way.
    let mut code = FaultCode(unsafe {
        entry_points::dax_iomap_fault(
            raw,
            order,
            &raw mut pfn,
            &raw mut error,
            ptr::from_ref(model.ops()).cast(),
        )
    });
    model.state.lock().under_way = 0;
    let note = |code| {
        let mut state = model.state.lock();
        if state.faults.len() < state.faults.capacity() {
            let fault = Fault { order, code, error };
            let _ = state.faults.push(fault, GFP_KERNEL);
        }
    };
    note(code);
    if code == FaultCode::LATER {
        // As of those to whom the lock of the address space is not given back.
        code = FaultCode::NOPAGE;
    }
    if code.0 & FaultCode::NEED_SYNC.0 != 0 {
        let other = core::mem::take(&mut model.state.lock().other_memory);
        let pfn = pfn + (usize::from(other) << order);
        // SAFETY: The fault is under way.
        code = FaultCode(unsafe { entry_points::dax_finish_sync_fault(raw, order, pfn) });
        note(code);
    }
    // SAFETY: Taken above.
    unsafe { bindings::rdax_test_unlock_faults_shared(inode) };
    code.0
}

/// What a page table has for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapped {
    pub(crate) order: usize,
    pub(crate) pfn: usize,
    pub(crate) writable: bool,
    pub(crate) dirty: bool,
}

/// What the page table of this task has for an address.
pub(crate) fn mapped_at(address: usize) -> Option<Mapped> {
    let (mut order, mut pfn) = (0, 0);
    // SAFETY: The pointers are to locals.
    let flags = unsafe { bindings::rdax_test_mapping(address, &mut order, &mut pfn) };
    let has = |flag| flags & flag != 0;
    has(bindings::TEST_PRESENT).then(|| Mapped {
        order: order as usize,
        pfn,
        writable: has(bindings::TEST_WRITABLE),
        dirty: has(bindings::TEST_DIRTY),
    })
}

/// What is counted of mapped pages: those of files in this task, and of the node of a frame those that
/// are mapped, and that are mapped by 2 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) resident: isize,
    pub(crate) mapped: isize,
    pub(crate) mapped_by_pmd: isize,
}

impl Counts {
    /// What they are now. The task has an address space.
    pub(crate) fn now(page: DevPage) -> Self {
        let mut counts = bindings::rdax_test_counts::default();
        // SAFETY: By the invariant of `DevPage` the frame has a page.
        unsafe { bindings::rdax_test_count(page.pfn().to_bits(), &mut counts) };
        Self {
            resident: counts.resident,
            mapped: counts.mapped,
            mapped_by_pmd: counts.mapped_by_pmd,
        }
    }

    /// How many more there are than there were.
    pub(crate) fn since(page: DevPage, before: Self) -> Self {
        let now = Self::now(page);
        Self {
            resident: now.resident - before.resident,
            mapped: now.mapped - before.mapped,
            mapped_by_pmd: now.mapped_by_pmd - before.mapped_by_pmd,
        }
    }
}

/// How a file is mapped.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Share {
    /// `MAP_SHARED`
    Shared,
    /// `MAP_PRIVATE`
    Private,
    /// `MAP_SHARED_VALIDATE | MAP_SYNC`
    Sync,
}

/// A mapping of a file into the address space of the test, which it is the first to have when it
/// makes one.
pub(crate) struct View<'f> {
    address: usize,
    pages: usize,
    first: usize,
    _file: PhantomData<&'f File<'f>>,
    _not_send: PhantomData<*mut c_void>,
}

/// Where mappings are made: far enough from each other for the largest.
static NEXT_ADDRESS: Atomic<usize> = Atomic::new(0);

impl<'f> View<'f> {
    /// Maps `pages` pages from page `first` of the file on, to be read and written, at an address
    /// that agrees with the place in the file modulo [`Order::PUD`] when `shift` is 0; else at one
    /// that is `shift` pages off.
    pub(crate) fn new(
        file: &'f File<'_>,
        first: usize,
        pages: usize,
        share: Share,
        shift: usize,
    ) -> Checked<Self> {
        const BASE: usize = 16 << 40;
        const SLOTS: usize = 4096;
        let slot = NEXT_ADDRESS.fetch_add(1, Relaxed) % SLOTS;
        let address = BASE
            + slot * 8 * Order::PUD.bytes()
            + (((first & (Order::PUD.pages() - 1)) + shift) << Order::PAGE_SHIFT);
        // SAFETY: The task is one of the tests, without an address space of its own.
        let mapped = unsafe {
            kernel::error::to_result(bindings::rdax_test_attach_mm())?;
            bindings::rdax_test_map(
                file.raw(),
                address,
                pages << Order::PAGE_SHIFT,
                first << Order::PAGE_SHIFT,
                share == Share::Private,
                share == Share::Sync,
            )
        };
        if mapped != address {
            return Err(failed(
                file!(),
                line!(),
                fmt!("mmap: {}, wanted {address:#x}", mapped as isize),
            ));
        }
        Ok(Self {
            address,
            pages,
            first,
            _file: PhantomData,
            _not_send: PhantomData,
        })
    }

    /// As `madvise(MADV_RANDOM)`.
    pub(crate) fn set_random(&self) {
        // SAFETY: Mapped by `new`, in this task.
        unsafe { bindings::rdax_test_set_random(self.address) };
    }

    /// The address of a page of the file.
    pub(crate) fn address(&self, page: usize) -> usize {
        self.address + ((page - self.first) << Order::PAGE_SHIFT)
    }

    /// Reads the begin of a page of the file.
    pub(crate) fn load(&self, page: usize) -> Result<u64> {
        let mut value = 0;
        // SAFETY: User memory, accessed as such.
        kernel::error::to_result(unsafe {
            bindings::rdax_test_load(self.address(page), &mut value)
        })?;
        Ok(value)
    }

    /// Writes to the begin of a page of the file.
    pub(crate) fn store(&self, page: usize, value: u64) -> Result {
        // SAFETY: User memory, accessed as such.
        kernel::error::to_result(unsafe { bindings::rdax_test_store(self.address(page), value) })
    }

    /// What the page table has for a page of the file.
    pub(crate) fn mapped(&self, page: usize) -> Option<Mapped> {
        mapped_at(self.address(page))
    }

    /// Takes what maps some pages of the file away again, as `madvise(MADV_DONTNEED)`.
    pub(crate) fn forget(&self, page: usize, pages: usize) {
        // SAFETY: Mapped by `new`, in this task.
        unsafe { bindings::rdax_test_drop(self.address(page), pages << Order::PAGE_SHIFT) };
    }

    /// Makes a page of the file, beside which another is mapped by an entry of the lowest level, a
    /// guard page, or has nothing there again.
    pub(crate) fn set_guard(&self, page: usize, guard: bool) {
        // SAFETY: Mapped by `new`, in this task, and nothing is counted for what is there.
        unsafe { bindings::rdax_test_guard(self.address(page), guard) };
    }

    /// Whether the entry of the lowest level for a page is soft-dirty.
    pub(crate) fn is_soft_dirty(&self, page: usize) -> bool {
        // SAFETY: Mapped by `new`, in this task.
        unsafe { bindings::rdax_test_soft_dirty(self.address(page)) }
    }

    /// Has stores told from one another, as after a write to `clear_refs`, or not any more.
    pub(crate) fn track_stores(&self, track: bool) {
        // SAFETY: Mapped by `new`, in this task.
        unsafe { bindings::rdax_test_track_stores(self.address, track) };
    }

    /// Pins a page of the file as direct I/O does.
    pub(crate) fn pin(&self, page: usize, write: bool) -> Option<Pinned> {
        self.try_pin(page, write, false)
    }

    /// Pins for as long as the user likes, which DAX does not allow.
    pub(crate) fn pin_longterm(&self, page: usize) -> Option<Pinned> {
        self.try_pin(page, true, true)
    }

    fn try_pin(&self, page: usize, write: bool, longterm: bool) -> Option<Pinned> {
        // SAFETY: User memory.
        NonNull::new(unsafe { bindings::rdax_test_pin(self.address(page), write, longterm) })
            .map(Pinned)
    }
}

impl Drop for View<'_> {
    fn drop(&mut self) {
        // SAFETY: Mapped by `new`, in this task.
        unsafe { bindings::rdax_test_unmap(self.address, self.pages << Order::PAGE_SHIFT) };
    }
}

/// A page that is pinned.
pub(crate) struct Pinned(NonNull<bindings::page>);

// SAFETY: A pin may be dropped by anybody.
unsafe impl Send for Pinned {}

// SAFETY: It gives nothing to do but to drop it.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// The frame of the page.
    pub(crate) fn pfn(&self) -> usize {
        // SAFETY: Only device memory is mapped by the tests.
        unsafe { DevPage::from_raw(self.0) }.pfn().to_bits()
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: Pinned once.
        unsafe { bindings::rdax_test_unpin(self.0.as_ptr()) };
    }
}

/// Keeps the present task inside a grace period of RCU.
pub(crate) fn under_rcu<R>(work: impl FnOnce() -> R) -> R {
    let _guard = rcu::read_lock();
    work()
}

/// Has the `nth` allocation of this task fail, counted from 1, while `work` is done. Returns
/// whether it came to that.
pub(crate) fn with_failing_allocation<R>(nth: u32, work: impl FnOnce() -> R) -> (R, bool) {
    // SAFETY: Concerns this task only.
    unsafe { bindings::rdax_test_fail_nth(nth) };
    let result = work();
    // SAFETY: As above.
    let left = unsafe { bindings::rdax_test_left_nth() };
    // SAFETY: As above.
    unsafe { bindings::rdax_test_fail_nth(0) };
    (result, left == 0)
}

/// Has all allocations of this task fail while `work` is done.
pub(crate) fn without_memory<R>(work: impl FnOnce() -> R) -> R {
    // SAFETY: Concerns this task only.
    unsafe { bindings::rdax_test_fail_all(true) };
    let result = work();
    // SAFETY: As above.
    unsafe { bindings::rdax_test_fail_all(false) };
    result
}

/// Has no folio of zeroes to map while `work` is done.
pub(crate) fn without_zeroes<R>(work: impl FnOnce() -> R) -> R {
    // SAFETY: Only a switch.
    unsafe { bindings::rdax_test_withhold_zeroes(true) };
    let result = work();
    // SAFETY: As above.
    unsafe { bindings::rdax_test_withhold_zeroes(false) };
    result
}

/// Forgets the signals that came to this thread.
pub(crate) fn flush_signals() {
    // SAFETY: Concerns this task only.
    unsafe { bindings::rdax_test_flush_signals() };
}

/// A reference to a folio, of somebody who does input or output.
pub(crate) fn hold(folio: DevFolio) -> crate::kern::page::FolioRef {
    folio.get()
}
