// SPDX-License-Identifier: GPL-2.0

//! A pmem device that nobody else uses, whose pages tests take.

use super::{failed, Checked, File};
use crate::kern::{
    bdev::Claim,
    bindings,
    dax::{DaxDevice, DaxPlace, DaxReadGuard},
    error::eopnotsupp,
    fs::{Inode, Mapping},
    iomap::IomapOps,
    order::Order,
    page::{DevPage, FileBlock, FilePages, Frames, PageBlock, PageRun, Pfn},
    xa::{RawValue, TreeKey},
};
use core::ptr::{self, NonNull};
use kernel::{
    error::from_err_ptr,
    prelude::*,
    sync::atomic::{Atomic, Relaxed},
};

// SAFETY: Inodes and address spaces are used by many tasks at once and have their own locks; the
// wrappers change nothing that others see but under those or atomically.
unsafe impl Sync for Mapping {}
// SAFETY: As above.
unsafe impl Sync for Inode {}
// SAFETY: A table of functions, which are called from everywhere.
unsafe impl Sync for IomapOps {}
// SAFETY: It points to objects of the kernel, which have locks; the rest is atomic.
unsafe impl Sync for World {}

/// The fields of a `struct page` that must be the same again when nobody uses it.
type PageBits = [usize; 8];

/// The first page of the device that no failed test has left in some state.
static CLEAN: Atomic<usize> = Atomic::new(0);

/// The device and the filesystem. All that a test took of the device must be free again when this is
/// dropped, or the test has failed ([`World::check_clean`] says so before).
pub(crate) struct World {
    pub(super) mount: NonNull<bindings::vfsmount>,
    pub(super) dax: NonNull<bindings::dax_device>,
    claim: Claim,
    run: Frames,
    next: Atomic<usize>,
    pub(super) is_locked: fn(RawValue<'_>) -> bool,
}

impl World {
    /// Opens the device exclusively and mounts the filesystem. `is_locked` says whether a value of a
    /// file's tree is an entry that is locked.
    pub(crate) fn new(device: &CStr, is_locked: fn(RawValue<'_>) -> bool) -> Checked<Self> {
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
            // SAFETY: The device was just got, and has a page at least.
            let first = unsafe { DaxPlace::new(DaxDevice::from_raw(dax), 0) };
            first
                .access(&alive, usize::MAX >> 20, crate::kern::dax::Access::Normal)
                .map(|memory| memory.run().frames())
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
        self.run.pages
    }

    /// Pages of the device that no other part of the test has: the place on the device of the
    /// first of `pages`, whose frame is aligned to `order`. `None` when the device is too small.
    pub(crate) fn try_take(&self, pages: usize, order: Order) -> Option<usize> {
        let misaligned = self
            .run
            .first
            .to_bits()
            .wrapping_add(self.next.load(Relaxed))
            & (order.pages() - 1);
        let place = self.next.load(Relaxed) + ((order.pages() - misaligned) & (order.pages() - 1));
        if place + pages > self.run.pages {
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
        self.run.first.offset(place)
    }

    /// All pages of the device.
    fn all(&self) -> PageRun<'_> {
        // SAFETY: The device said that it has these. It is open exclusively, and nobody removes it while there
        // are tests.
        unsafe { PageRun::from_frames(self.run.first, self.run.pages) }
    }

    /// The page at a place on the device.
    pub(crate) fn page(&self, place: usize) -> DevPage<'_> {
        self.run(place, 1).first()
    }

    /// The pages from a place on the device on.
    pub(crate) fn run(&self, place: usize, pages: usize) -> PageRun<'_> {
        let run = self.all().from(place).map(|rest| rest.up_to(pages));
        run.filter(|run| run.pages() == pages)
            .expect("a test asks for pages that it has taken of the device")
    }

    /// The same, for files of the test.
    pub(crate) fn file_pages(&self, place: usize, pages: usize) -> FilePages<'_> {
        // SAFETY: The test's files are on the device, which is there as long as this value.
        unsafe { FilePages::new(self.run(place, pages), TreeKey::ANY) }
    }

    /// The pages of an entry of `order` that begin with this one, which are the device's.
    pub(crate) fn block_of(&self, first: DevPage<'_>, order: Order) -> PageBlock<'_> {
        let place = first.pfn().to_bits().wrapping_sub(self.run.first.to_bits());
        self.block(place, order).pages()
    }

    /// Pages of the device that an entry of `order` can have, whoever has them. `None` when it is too
    /// small.
    pub(crate) fn any_block(&self, order: Order) -> Option<FileBlock<'_>> {
        let misaligned = self.run.first.to_bits() & (order.pages() - 1);
        let place = (order.pages() - misaligned) & (order.pages() - 1);
        let block = self.all().block(place, order)?;
        // SAFETY: As in `file_pages`.
        Some(unsafe { FileBlock::new(block, TreeKey::ANY) })
    }

    /// The pages from a place on the device on that an entry of `order` can have.
    pub(crate) fn block(&self, place: usize, order: Order) -> FileBlock<'_> {
        let block = self
            .all()
            .block(place, order)
            .expect("a test asks for pages that it has taken of the device");
        // SAFETY: As in `file_pages`.
        unsafe { FileBlock::new(block, TreeKey::ANY) }
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
    pub(crate) fn leave(self) -> LeftWorld {
        self.next.store(CLEAN.load(Relaxed), Relaxed);
        LeftWorld(self.run)
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

    /// Puts zeroes on pages for a filesystem that gives them to a file.
    pub(crate) fn put_zeroes(&self, place: usize, pages: usize) -> Result {
        let (at, end) = (
            place << Order::PAGE_SHIFT,
            (place + pages) << Order::PAGE_SHIFT,
        );
        // SAFETY: The device is open, and its memory only the test's.
        kernel::error::to_result(unsafe {
            bindings::rdax_put_zeroes(self.bdev(), at as u64, end as u64, bindings::GFP_KERNEL)
        })
    }

    /// Has zeroes put on pages for a filesystem that gives them to no file, some of which may have failed.
    pub(crate) fn put_zeroes_for_metadata(&self, place: usize, pages: usize) -> Result {
        let sectors = |pages: usize| (pages << (Order::PAGE_SHIFT - 9)) as u64;
        // SAFETY: As above; nobody who gives blocks to files holds the device.
        kernel::error::to_result(unsafe {
            bindings::rdax_issue_zeroout(
                self.bdev(),
                sectors(place),
                sectors(pages),
                bindings::GFP_KERNEL,
                0,
                true,
            )
        })
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
        // The remains of a failed test must not make the next one fail.
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

/// The pages of a device that is not open any more.
///
/// # Invariants
///
/// The device has these frames. Nobody removes it while there are tests.
pub(crate) struct LeftWorld(Frames);

impl LeftWorld {
    /// The page at a place on the device.
    pub(crate) fn page(&self, place: usize) -> DevPage<'_> {
        // SAFETY: By the type invariant.
        let run = unsafe { PageRun::from_frames(self.0.first, self.0.pages) };
        run.nth(place)
            .expect("a test asks for pages that it has taken of the device")
    }
}

/// All of a `struct page`, to be compared.
pub(crate) fn page_bits(page: DevPage<'_>) -> PageBits {
    const { assert!(core::mem::size_of::<PageBits>() == core::mem::size_of::<bindings::page>()) };
    // SAFETY: A page of the device, all of whose bytes are initialised.
    unsafe { page.as_ptr().cast::<PageBits>().read_volatile() }
}

/// The page that is `pages` pages behind another one of the same page map.
pub(crate) fn page_behind(page: DevPage<'_>, pages: usize) -> DevPage<'_> {
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
pub(crate) fn is_free(page: DevPage<'_>) -> bool {
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
