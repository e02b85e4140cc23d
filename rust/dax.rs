// SPDX-License-Identifier: GPL-2.0

//! DAX devices: from a place on a device to its memory.
//!
//! C header: [`include/linux/dax.h`](srctree/include/linux/dax.h)

use super::{
    bindings,
    iov::IovIter,
    order::Order,
    page::{DevPage, Frames, PageRun, Pfn}, //
};
use core::ptr::NonNull;
use kernel::{
    error::{code::*, to_result, Error, Result},
    types::Opaque, //
};

/// A DAX device, which a filesystem holds while it is mounted.
///
/// # Invariants
///
/// A reference to one is to a device that is alive for as long.
#[repr(transparent)]
pub(crate) struct DaxDevice(Opaque<bindings::dax_device>);

/// Keeps devices from being torn down (`dax_read_lock`, SRCU).
///
/// There is one such lock for all DAX devices of the machine, and the removal of any waits for all
/// holders. So nothing is waited for while this lives but what the driver does itself; least of all a
/// user's buffer, which he can have take for ever (userfaultfd, FUSE). A debug kernel complains of all
/// else, if the module was built with its checks.
///
/// # Invariants
///
/// `dax_read_lock` returned the number, for which the lock is held.
#[must_use = "the lock is dropped at once"]
pub(crate) struct DaxReadGuard(i32);

impl DaxReadGuard {
    /// Takes the lock. Does not sleep.
    #[inline]
    pub(crate) fn new() -> Self {
        // SAFETY: There is nothing to be held.
        let guard = Self(unsafe { bindings::dax_read_lock() });
        #[cfg(RDAX_CHECK)]
        // SAFETY: Counts for this task, which drops the guard.
        unsafe {
            bindings::rdax_non_block_start()
        };
        guard
    }
}

impl Drop for DaxReadGuard {
    #[inline]
    fn drop(&mut self) {
        #[cfg(RDAX_CHECK)]
        // SAFETY: Undoes what `new` did.
        unsafe {
            bindings::rdax_non_block_end()
        };
        // SAFETY: The number is what `dax_read_lock` returned.
        unsafe { bindings::dax_read_unlock(self.0) };
    }
}

/// Does what may sleep although a [`DaxReadGuard`] is held.
#[inline(always)]
fn sleeping<R>(work: impl FnOnce() -> R) -> R {
    #[cfg(RDAX_CHECK)]
    // SAFETY: A guard is held, and this is undone below.
    unsafe {
        bindings::rdax_non_block_end()
    };
    let result = work();
    #[cfg(RDAX_CHECK)]
    // SAFETY: As above.
    unsafe {
        bindings::rdax_non_block_start()
    };
    result
}

/// The purpose of an access to memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// To be read, written or mapped; poison is an error.
    Normal,
    /// To be overwritten by [`Piece::recover`], poison and all.
    Recovery,
}

/// A range of a device's memory, whole pages of it, while a [`DaxReadGuard`] is held.
///
/// # Invariants
///
/// `run` is the device's memory from page `page_offset` of it on, which the kernel has at `address`. It is
/// there for `'a`, for which the lock is held.
#[derive(Clone, Copy)]
pub(crate) struct DaxMemory<'a> {
    device: &'a DaxDevice,
    page_offset: usize,
    address: NonNull<u8>,
    run: PageRun<'a>,
}

/// Which device of DAX one is: to be compared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct DaxIdentity(usize);

impl DaxIdentity {
    /// Of a device; none for null.
    pub(super) fn of(device: *const bindings::dax_device) -> Option<Self> {
        (!device.is_null()).then_some(Self(device as usize))
    }
}

impl DaxDevice {
    /// # Safety
    ///
    /// The device stays alive for `'a`.
    #[inline]
    pub(crate) unsafe fn from_raw<'a>(device: NonNull<bindings::dax_device>) -> &'a Self {
        // SAFETY: The type is transparent; the caller vouches for the lifetime.
        unsafe { device.cast::<Self>().as_ref() }
    }

    #[inline]
    fn as_ptr(&self) -> *mut bindings::dax_device {
        self.0.get()
    }

    /// Writes the cache lines of the pages' memory, `bytes` from `offset` on, as far as they have them,
    /// back to the device.
    #[inline]
    pub(crate) fn flush(&self, run: PageRun<'_>, offset: usize, bytes: usize) {
        let (address, bytes) = run.range(offset, bytes);
        // SAFETY: The device is alive, and by the invariant of `PageRun` the memory is there. Writing
        // back cache lines changes nothing.
        unsafe { bindings::dax_flush(self.as_ptr(), address.cast(), bytes) };
    }
}

/// A page of a device that is known to be one.
///
/// # Invariants
///
/// The device has a page with this number: it, or the filesystem that it is mounted for, has said so.
#[derive(Clone, Copy)]
pub(crate) struct DaxPlace<'d> {
    device: &'d DaxDevice,
    page: usize,
}

impl<'d> DaxPlace<'d> {
    /// # Safety
    ///
    /// The device has a page with this number.
    #[inline]
    pub(super) const unsafe fn new(device: &'d DaxDevice, page: usize) -> Self {
        // INVARIANT: By this function's safety requirements.
        Self { device, page }
    }

    /// The memory of up to `pages` pages from this one on; less when less is contiguous.
    ///
    /// Errors: `EHWPOISON` for poisoned memory, `ENXIO` when the device is gone, others of the
    /// driver.
    #[inline]
    pub(crate) fn access<'a>(
        self,
        _alive: &'a DaxReadGuard,
        pages: usize,
        access: Access,
    ) -> Result<DaxMemory<'a>>
    where
        'd: 'a,
    {
        let mut address = core::ptr::null_mut();
        let mut pfn = 0;
        // SAFETY: The device is alive and has the page, the read lock is held, the pointers are to locals.
        let got = unsafe {
            bindings::dax_direct_access(
                self.device.as_ptr(),
                self.page,
                pages as isize,
                match access {
                    Access::Normal => bindings::dax_access_mode_DAX_ACCESS,
                    Access::Recovery => bindings::dax_access_mode_DAX_RECOVERY_WRITE,
                },
                &mut address,
                &mut pfn,
            )
        };
        if got <= 0 {
            return Err(match got {
                0 => EIO,
                _ => Error::from_errno(got as i32),
            });
        }
        let address = NonNull::new(address.cast::<u8>()).ok_or(EIO)?;
        let pages = pages.clamp(1, got as usize);
        // SAFETY: The frames are of the device's page map: the driver made both. For `'a` the lock is held,
        // which a device that goes away waits for before its page map does.
        let run = unsafe { PageRun::from_frames(Pfn::from_bits(pfn), pages) };
        // INVARIANT: This is what the driver says.
        Ok(DaxMemory {
            device: self.device,
            page_offset: self.page,
            address,
            run,
        })
    }

    /// Zeroes the page and writes the zeroes back. Clears poison where the driver can.
    pub(crate) fn zero_page(self, _alive: &DaxReadGuard) -> Result {
        sleeping(|| {
            // SAFETY: The device is alive and has the page, and the read lock is held. The kernel takes
            // one page at a time.
            to_result(unsafe { bindings::dax_zero_page_range(self.device.as_ptr(), self.page, 1) })
        })
    }
}

/// A page of a device that the driver tells the failure of.
///
/// # Invariants
///
/// For `'d` the page map is there: the core has a reference to it while it tells of a failure.
#[cfg(CONFIG_MEMORY_FAILURE)]
#[derive(Clone, Copy)]
pub(crate) struct FailedPlace<'d>(DaxPlace<'d>);

#[cfg(CONFIG_MEMORY_FAILURE)]
impl<'d> FailedPlace<'d> {
    /// # Safety
    ///
    /// As the type invariant says.
    pub(super) const unsafe fn new(place: DaxPlace<'d>) -> Self {
        // INVARIANT: By this function's safety requirements.
        Self(place)
    }

    /// Up to `pages` pages from this one on; less when less is contiguous. Whether they are known to be bad by
    /// now makes no difference.
    ///
    /// Errors: as [`DaxPlace::access`].
    pub(crate) fn pages(self, pages: usize) -> Result<PageRun<'d>> {
        let alive = DaxReadGuard::new();
        let run = self.0.access(&alive, pages, Access::Recovery)?.run();
        let Frames { first, pages } = run.frames();
        // SAFETY: These frames have pages, which by the type invariant are there for `'d`.
        Ok(unsafe { PageRun::from_frames(first, pages) })
    }
}

impl<'a> DaxMemory<'a> {
    /// The pages.
    #[inline]
    pub(crate) fn run(&self) -> PageRun<'a> {
        self.run
    }

    /// Contiguous bytes.
    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        self.run.bytes()
    }

    /// The bytes from `offset` on, as many of `bytes` as there are.
    #[inline]
    pub(crate) fn piece(&self, offset: usize, bytes: usize) -> Piece<'a> {
        let offset = offset.min(self.bytes().saturating_sub(1));
        // INVARIANT: The offset is in the memory, and no more is taken than follows.
        Piece {
            memory: *self,
            offset,
            bytes: bytes.min(self.bytes() - offset),
        }
    }

    /// The address of a range, if it is in the memory.
    #[inline]
    fn range(&self, offset: usize, bytes: usize) -> Option<*mut u8> {
        let end = offset.checked_add(bytes)?;
        (end <= self.bytes()).then(|| self.address.as_ptr().wrapping_add(offset))
    }

    /// Copies `bytes` bytes from other memory. `EIO` when the source has a memory error.
    pub(crate) fn copy_within(
        &self,
        offset: usize,
        source: &DaxMemory<'_>,
        source_offset: usize,
        bytes: usize,
    ) -> Result {
        let (Some(to), Some(from)) = (
            self.range(offset, bytes),
            source.range(source_offset, bytes),
        ) else {
            return Err(EIO);
        };
        // SAFETY: Both ranges are device memory, there while the read lock is held.
        let left = unsafe { bindings::copy_mc_to_kernel(to.cast(), from.cast(), bytes as u32) };
        if left != 0 {
            return Err(EIO);
        }
        Ok(())
    }

    /// Zeroes a range, without writing it back.
    pub(crate) fn zero(&self, offset: usize, bytes: usize) -> Result {
        let address = self.range(offset, bytes).ok_or(EIO)?;
        // SAFETY: The range is device memory, there while the read lock is held.
        unsafe { core::ptr::write_bytes(address, 0, bytes) };
        Ok(())
    }

    /// Writes the cache lines of a range back to the device.
    pub(crate) fn flush(&self, offset: usize, bytes: usize) {
        if let Some(address) = self.range(offset, bytes) {
            // SAFETY: As in `zero`.
            unsafe { bindings::dax_flush(self.device.as_ptr(), address.cast(), bytes) };
        }
    }
}

/// Bytes of a device's memory that are copied in one go. They need not begin or end with a page.
///
/// # Invariants
///
/// `offset` is in the memory, and `bytes` bytes from there on are. So all of it is there for `'a`, by the
/// invariant of [`DaxMemory`].
#[derive(Clone, Copy)]
pub(crate) struct Piece<'a> {
    memory: DaxMemory<'a>,
    offset: usize,
    bytes: usize,
}

impl<'a> Piece<'a> {
    /// The memory that the bytes are of.
    #[inline]
    pub(crate) fn memory(&self) -> DaxMemory<'a> {
        self.memory
    }

    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Only the first `bytes` bytes, or all if there are no more.
    #[inline]
    pub(crate) fn first(&self, bytes: usize) -> Self {
        // INVARIANT: A part of a piece is one, too.
        Self {
            bytes: bytes.min(self.bytes),
            ..*self
        }
    }

    #[inline]
    fn address(&self) -> *mut u8 {
        self.memory.address.as_ptr().wrapping_add(self.offset)
    }

    /// # Safety
    ///
    /// The offset, from the start of the memory, is one of the piece's.
    #[inline]
    unsafe fn page_of(&self, offset: usize) -> DevPage<'a> {
        let pfn = self.memory.run.pfn().offset(offset >> Order::PAGE_SHIFT);
        // SAFETY: By the type invariant the offset, which is in the piece, is in the memory's run.
        unsafe { DevPage::of(pfn) }
    }

    /// The page that the first byte is in.
    #[inline]
    pub(crate) fn page(&self) -> DevPage<'a> {
        // SAFETY: The first byte is in the memory, also when the piece has none.
        unsafe { self.page_of(self.offset) }
    }

    /// Whether a page of it is marked as bad.
    #[inline]
    pub(crate) fn has_hwpoison(&self) -> bool {
        let in_page = self.offset & (Order::PTE.bytes() - 1);
        if in_page.wrapping_add(self.bytes) <= Order::PTE.bytes() {
            return self.page().is_poisoned();
        }
        self.sound_bytes() != self.bytes
    }

    /// The bytes up to the first page that is marked as bad.
    pub(crate) fn sound_bytes(&self) -> usize {
        let mut at = self.offset;
        while at < self.offset + self.bytes {
            // SAFETY: The offset is the piece's.
            if unsafe { self.page_of(at) }.is_poisoned() {
                return at - self.offset;
            }
            at = (at | (Order::PTE.bytes() - 1)) + 1;
        }
        self.bytes
    }

    /// Makes the pages of it that are known to be bad ready to be overwritten whole, if it is whole
    /// pages. Sleeps.
    pub(crate) fn make_writable(&self) {
        let page = Order::PTE.bytes();
        if (self.offset | self.bytes) & (page - 1) == 0 {
            // The kernel's locks of its direct map, which nobody holds who waits for others.
            sleeping(|| {
                for at in (self.offset..self.offset + self.bytes).step_by(page) {
                    // SAFETY: The offset is the piece's.
                    unsafe { self.page_of(at) }.make_writable();
                }
            });
        }
    }

    /// Copies from `iter` to here, past the cache where the device has one to care about, with page
    /// faults disabled. Returns the bytes copied: fewer when the source is not there, none when a fatal
    /// signal waits.
    #[inline]
    pub(crate) fn copy_from(&self, iter: &mut IovIter<'_>) -> usize {
        // SAFETY: By the type invariant the range is the device's memory, which is there while the
        // read lock is held. Others may map and change it: it is only ever copied.
        unsafe {
            bindings::rdax_copy_from_iter(
                self.address().cast(),
                self.bytes,
                iter.as_ptr(),
                bindings::dax_write_cache_enabled(self.memory.device.as_ptr()),
            ) as usize
        }
    }

    /// Copies from here to `iter`, stopping at memory errors, with page faults disabled. Returns the
    /// bytes copied: fewer when the target is not there, none when a fatal signal waits.
    #[inline]
    pub(crate) fn copy_to(&self, iter: &mut IovIter<'_>) -> usize {
        // SAFETY: As in `copy_from`.
        unsafe {
            bindings::rdax_copy_to_iter(self.address().cast(), self.bytes, iter.as_ptr()) as usize
        }
    }

    /// Copies from here to memory of ours, stopping at memory errors. Returns the bytes copied.
    pub(crate) fn read(&self, to: &mut [u8]) -> usize {
        let bytes = self.bytes.min(to.len());
        let to = to.as_mut_ptr().cast();
        // SAFETY: As in `copy_from`, for the source; the slice has room for so much.
        let left = unsafe { bindings::copy_mc_to_kernel(to, self.address().cast(), bytes as u32) };
        bytes - left
    }

    /// Overwrites poisoned memory with what `iter` gives, if the driver can. Returns the bytes
    /// copied.
    pub(crate) fn recover(&self, iter: &mut IovIter<'_>) -> usize {
        let page = self.memory.page_offset + (self.offset >> Order::PAGE_SHIFT);
        sleeping(|| {
            // SAFETY: As in `copy_from`; `page` is the page on the device that the first byte is in.
            iter.pagefault_disabled(|iter| unsafe {
                bindings::dax_recovery_write(
                    self.memory.device.as_ptr(),
                    page,
                    self.address().cast(),
                    self.bytes,
                    iter.as_ptr(),
                ) as usize
            })
        })
    }

    /// Whether the bytes are those of another piece.
    pub(crate) fn equals(&self, other: &Piece<'_>) -> bool {
        if self.bytes != other.bytes {
            return false;
        }
        let (a, b) = (self.address().cast(), other.address().cast());
        // SAFETY: As in `copy_from`, for both. The content may change meanwhile, so it is compared in
        // C and no Rust reference to it is made.
        unsafe { bindings::memcmp(a, b, self.bytes) == 0 }
    }
}
