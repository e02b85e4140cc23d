// SPDX-License-Identifier: GPL-2.0

//! Block devices.
//!
//! C header: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

use super::{
    bindings,
    dax::DaxIdentity,
    fs::Inode,
    memory::{MemoryOwner, PageMapRange},
    page::{Frames, Pfn},
};
use core::{
    ffi::CStr,
    marker::PhantomData,
    mem::ManuallyDrop,
    ops::Deref,
    ptr::{self, NonNull},
};
use kernel::{
    error::from_err_ptr,
    ffi::c_void,
    prelude::*,
    sync::atomic::{Atomic, Relaxed},
};

/// A block device that exists, maybe removed but not forgotten: a reference to its inode.
///
/// # Invariants
///
/// The pointer is valid, and this value owns a reference to the device's inode.
pub(crate) struct BlockDevice(NonNull<bindings::block_device>);

// SAFETY: References to an inode may be given to and used by any thread.
unsafe impl Send for BlockDevice {}

// SAFETY: As above.
unsafe impl Sync for BlockDevice {}

impl BlockDevice {
    /// # Safety
    ///
    /// The device is open.
    pub(super) unsafe fn from_raw(bdev: NonNull<bindings::block_device>) -> Self {
        // SAFETY: An open device has an inode with a reference.
        unsafe { bindings::ihold((*(*bdev.as_ptr()).bd_mapping).host) };
        Self(bdev)
    }

    /// The device, as long as somebody else keeps it.
    ///
    /// # Safety
    ///
    /// The device is valid while the result is used.
    pub(super) unsafe fn borrow(bdev: NonNull<bindings::block_device>) -> ManuallyDrop<Self> {
        // The reference is the caller's.
        ManuallyDrop::new(Self(bdev))
    }

    #[cfg(RDAX_CHECK)]
    pub(super) fn as_ptr(&self) -> *mut bindings::block_device {
        self.0.as_ptr()
    }

    /// The device's number.
    pub(super) fn number(&self) -> bindings::dev_t {
        // SAFETY: By the type invariant; it does not change.
        unsafe { (*self.0.as_ptr()).bd_dev }
    }

    fn inode(&self) -> *mut bindings::inode {
        // SAFETY: By the type invariant.
        unsafe { (*(*self.0.as_ptr()).bd_mapping).host }
    }

    /// Whether the device was removed. It does not come back; another one of the same name may.
    pub(crate) fn is_gone(&self) -> bool {
        // SAFETY: The inode is valid; its place in the hash is read atomically.
        let hashed = unsafe { Atomic::from_ptr(&raw mut (*self.inode()).i_hash.pprev) };
        hashed.load(Relaxed).is_null()
    }

    /// The frames of a device that is capable of DAX that are contiguous from page `at` of it on, or some
    /// of them. `None` behind its end, and when it was removed.
    pub(crate) fn memory(&self, at: usize) -> Option<Frames> {
        // SAFETY: NULL, as no page map is wanted.
        unsafe { self.look_up(at, ptr::null_mut()) }
    }

    /// # Safety
    ///
    /// `map` is to be written to, or NULL.
    unsafe fn look_up(&self, at: usize, map: *mut bindings::rdax_page_map) -> Option<Frames> {
        let mut pages = 0;
        // SAFETY: The device is valid, and the rest is by this function's safety requirements.
        let first = unsafe { bindings::rdax_device_memory(self.0.as_ptr(), at, &mut pages, map) };
        // The tests' device is of one piece; they see it as one of several.
        #[cfg(RDAX_TEST)]
        let pages = pages.min(1 << 15);
        (pages != 0).then_some(Frames {
            first: Pfn::from_bits(first),
            pages,
        })
    }

    /// The ranges of page maps that its memory is in: of page maps that go away with it the parts that are
    /// its memory, of those of others all of the range, once or several times.
    pub(crate) fn page_maps(&self) -> impl Iterator<Item = PageMapRange> + '_ {
        let own = self.memory_owner();
        let mut at = 0;
        core::iter::from_fn(move || {
            let look_up = || {
                let mut map: bindings::rdax_page_map = pin_init::zeroed();
                // SAFETY: The pointer is to a local.
                let frames = unsafe { self.look_up(at, &raw mut map) }?;
                at += frames.pages;
                let owner = MemoryOwner(map.owner);
                let all = Frames {
                    first: Pfn::from_bits(map.first),
                    pages: map.pages,
                };
                let range = if owner == own { frames } else { all };
                Some((range, owner, map.asynchronous))
            };
            // SAFETY: These are frames of that page map.
            unsafe { PageMapRange::find(look_up) }
        })
    }

    /// The owner of the page maps that go away with the device. A device made of others has none.
    pub(crate) fn memory_owner(&self) -> MemoryOwner {
        // SAFETY: The device is valid.
        MemoryOwner(unsafe { bindings::rdax_memory_owner(self.0.as_ptr()) } as usize)
    }

    /// The device of DAX behind it.
    pub(crate) fn dax(&self) -> Option<DaxIdentity> {
        // SAFETY: The device is valid.
        DaxIdentity::of(unsafe { bindings::rdax_dax_of(self.0.as_ptr()) })
    }

    /// Whether it is the same device.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.0 == other.0
    }

    /// Another reference.
    pub(crate) fn get(&self) -> Self {
        // SAFETY: By the type invariant.
        unsafe { bindings::ihold(self.inode()) };
        Self(self.0)
    }

    /// Calls `work` for every inode of the filesystems that hold the device: the one that is mounted on
    /// it, or whose further device it is. None is waited for that is being unmounted. Sleeps.
    pub(crate) fn visit_inodes(&self, mut work: impl FnMut(&Inode)) {
        /// # Safety
        ///
        /// The inode is referenced and its superblock mounted; `work` is a `W`.
        unsafe extern "C" fn visit<W: FnMut(&Inode)>(
            inode: *mut bindings::inode,
            work: *mut c_void,
        ) {
            // SAFETY: By this function's safety requirements.
            let (inode, work) = unsafe {
                (
                    Inode::from_raw(NonNull::new_unchecked(inode)),
                    &mut *work.cast::<W>(),
                )
            };
            work(inode);
        }
        fn visitor<W: FnMut(&Inode)>(
            _: &W,
        ) -> unsafe extern "C" fn(*mut bindings::inode, *mut c_void) {
            visit::<W>
        }
        let visit = visitor(&work);
        // SAFETY: The device is valid; the callback gets what it expects.
        unsafe {
            bindings::rdax_visit_inodes(self.0.as_ptr(), Some(visit), (&raw mut work).cast())
        };
    }

    /// Whether somebody opened the device exclusively, a mount for instance.
    fn is_held(&self) -> bool {
        // SAFETY: The device is valid; its holder is read atomically.
        let holder = unsafe { Atomic::from_ptr(&raw mut (*self.0.as_ptr()).bd_holder) };
        !holder.load(Relaxed).is_null()
    }

    /// Shows that nobody has the device mounted, and sees to it that nobody mounts it while the
    /// result lives. Sleeps.
    ///
    /// Errors: `EBUSY` if it is in use, or what opening a device fails with.
    pub(super) fn idle(&self) -> Result<Idle> {
        // SAFETY: By the type invariant.
        let dev = unsafe { (*self.0.as_ptr()).bd_dev };
        // Ends: there is a second round only for a device that has gone meanwhile, and that is the last.
        loop {
            // Nobody can open what is gone, so what is seen here stays so.
            if self.is_gone() {
                return if self.is_held() {
                    Err(EBUSY)
                } else {
                    Ok(Idle { claim: None })
                };
            }
            match Claim::by_number(dev) {
                Ok(claim) if claim.bdev() == self.0 => return Ok(Idle { claim: Some(claim) }),
                result => {
                    if !self.is_gone() {
                        return Err(result.err().unwrap_or(EBUSY));
                    }
                }
            }
        }
    }
}

impl Drop for BlockDevice {
    fn drop(&mut self) {
        // SAFETY: By the type invariant. The inode's last reference may be this one.
        unsafe { bindings::iput(self.inode()) };
    }
}

/// A block device that is about to go, and its name. Its driver has said so, and waits.
///
/// # Invariants
///
/// For `'a` the device is there, and so are the page maps of its memory's owner.
pub(crate) struct GoingDevice<'a> {
    device: ManuallyDrop<BlockDevice>,
    name: BlockDeviceName,
    _call: PhantomData<&'a ()>,
}

impl GoingDevice<'_> {
    /// # Safety
    ///
    /// As the type invariant says.
    pub(super) unsafe fn new(bdev: NonNull<bindings::block_device>) -> Self {
        // SAFETY: By this function's safety requirements the device is there.
        let (device, name) = unsafe { (BlockDevice::borrow(bdev), BlockDeviceName::of(bdev)) };
        // INVARIANT: By this function's safety requirements.
        Self {
            device,
            name,
            _call: PhantomData,
        }
    }

    /// The device's name.
    pub(crate) fn name(&self) -> &CStr {
        self.name.as_c_str()
    }
}

impl Deref for GoingDevice<'_> {
    type Target = BlockDevice;

    fn deref(&self) -> &BlockDevice {
        &self.device
    }
}

/// The kernel's name of a block device: `pmem0`, `pmem0p1`, `dm-3`.
pub(crate) struct BlockDeviceName([u8; Self::SIZE]);

impl BlockDeviceName {
    /// Enough for the name of a disk (`DISK_NAME_LEN`) and a partition's number.
    const SIZE: usize = 64;

    /// # Safety
    ///
    /// The device is open, or being removed: its disk is there.
    pub(super) unsafe fn of(bdev: NonNull<bindings::block_device>) -> Self {
        let mut name = [0; Self::SIZE];
        // SAFETY: The buffer is as large as is said, and %pg takes a block device whose disk is there.
        unsafe {
            bindings::snprintf(
                name.as_mut_ptr(),
                name.len(),
                c"%pg".as_char_ptr(),
                bdev.as_ptr(),
            )
        };
        Self(name)
    }

    pub(crate) fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or_default()
    }
}

/// That a device is not mounted.
pub(super) struct Idle {
    pub(super) claim: Option<Claim>,
}

/// A block device that is open exclusively: nobody has it mounted or mounts it while this lives.
///
/// # Invariants
///
/// The pointer is an open file of a block device with [`HOLDER`] as its holder, owned by this
/// value.
pub(crate) struct Claim(NonNull<bindings::file>);

/// Its address is the holder of every claim. Claims of one device do not exclude each other;
/// taking them is for the holder of the [`Writer`](super::members::Writer).
static HOLDER: u8 = 0;

impl Claim {
    fn holder() -> *mut kernel::ffi::c_void {
        ptr::from_ref(&HOLDER).cast_mut().cast()
    }

    /// Opens the device that `path` leads to. Sleeps.
    ///
    /// Errors: `EBUSY` if it is in use; `ENOENT`, `ENXIO` and others if there is no such device.
    pub(crate) fn by_path(path: &CStr) -> Result<Self> {
        // SAFETY: The path is a valid string, and the holder's address is nobody else's.
        Self::from_result(unsafe {
            bindings::bdev_file_open_by_path(
                path.as_char_ptr(),
                bindings::BLK_OPEN_READ,
                Self::holder(),
                ptr::null(),
            )
        })
    }

    fn by_number(dev: bindings::dev_t) -> Result<Self> {
        // SAFETY: The holder's address is nobody else's.
        Self::from_result(unsafe {
            bindings::bdev_file_open_by_dev(
                dev,
                bindings::BLK_OPEN_READ,
                Self::holder(),
                ptr::null(),
            )
        })
    }

    fn from_result(file: *mut bindings::file) -> Result<Self> {
        // INVARIANT: The file was opened just now.
        Ok(Self(NonNull::new(from_err_ptr(file)?).ok_or(ENODEV)?))
    }

    pub(super) fn bdev(&self) -> NonNull<bindings::block_device> {
        // SAFETY: By the type invariant; a block device's file has a device.
        unsafe { NonNull::new_unchecked(bindings::file_bdev(self.0.as_ptr())) }
    }

    /// The device.
    pub(crate) fn device(&self) -> BlockDevice {
        // SAFETY: By the type invariant the device is open.
        unsafe { BlockDevice::from_raw(self.bdev()) }
    }

    /// Whether this is the device's name in the kernel.
    pub(crate) fn is_named(&self, name: &CStr) -> bool {
        // SAFETY: The device is open.
        unsafe { BlockDeviceName::of(self.bdev()) }.as_c_str() == name
    }

    /// Whether a filesystem on the device could be mounted with DAX, as far as the device goes.
    /// Sleeps.
    pub(crate) fn supports_dax(&self) -> bool {
        let mut offset = 0;
        // SAFETY: The device is open. No holder is entered, so none has to be removed.
        unsafe {
            let dax = bindings::fs_dax_get_by_bdev(
                self.bdev().as_ptr(),
                &mut offset,
                ptr::null_mut(),
                ptr::null(),
            );
            bindings::fs_put_dax(dax, ptr::null_mut());
            !dax.is_null()
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // SAFETY: By the type invariant. The claim ends at once, not when the file is freed.
        unsafe { bindings::bdev_fput(self.0.as_ptr()) };
    }
}
