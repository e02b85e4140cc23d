// SPDX-License-Identifier: GPL-2.0

//! Block devices, and the set of those that were adopted.
//!
//! Whoever changes the set holds the only [`Writer`]; whoever asks whether a file is on a member
//! takes no lock and waits for nobody. A member holds its device's inode, so that the address by
//! which it is known is not used for another device.
//!
//! C header: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

use super::{
    bindings,
    fs::Inode,
    memory::{
        MemoryOwner,
        PageMapRange, //
    },
    once::Once,
    page::{PageRun, Pfn},
    redirect, //
};
use core::{
    cell::UnsafeCell,
    ffi::CStr,
    mem::{
        ManuallyDrop,
        MaybeUninit, //
    },
    ptr::{
        self,
        NonNull, //
    },
};
use kernel::{
    error::from_err_ptr,
    ffi::c_void,
    prelude::*, //
    sync::atomic::{Atomic, Relaxed, Release},
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
    unsafe fn from_raw(bdev: NonNull<bindings::block_device>) -> Self {
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

    /// The pages of a device that is capable of DAX that are contiguous from page `at` of it on, or some
    /// of them. `None` behind its end, and when it was removed.
    pub(crate) fn memory(&self, at: usize) -> Option<PageRun> {
        let mut pages = 0;
        // SAFETY: The device is valid.
        let first =
            unsafe { bindings::rdax_device_memory(self.0.as_ptr(), at as usize, &mut pages) };
        // The tests' device is of one piece; they see it as one of several.
        #[cfg(RDAX_TEST)]
        let pages = pages.min(1 << 15);
        // SAFETY: The frames are of the device's page map: the driver made both.
        (pages != 0).then(|| unsafe { PageRun::from_frames(Pfn::from_bits(first), pages) })
    }

    /// All of its memory, in contiguous pieces.
    pub(crate) fn page_runs(&self) -> impl Iterator<Item = PageRun> + '_ {
        let mut at = 0;
        core::iter::from_fn(move || {
            let run = self.memory(at)?;
            at += run.pages();
            Some(run)
        })
    }

    /// The range of a page map that the first page of a run is in.
    pub(crate) fn page_map(&self, run: PageRun) -> PageMapRange {
        let mut map: bindings::rdax_page_map = pin_init::zeroed();
        // SAFETY: By the invariant of `PageRun` the frame is one of a page map.
        unsafe { bindings::rdax_page_map(run.pfn().to_bits(), &mut map) };
        // SAFETY: These are the frames of that page map, among them the run's first.
        let all = unsafe { PageRun::from_frames(Pfn::from_bits(map.first), map.pages) };
        PageMapRange::new(all, MemoryOwner(map.owner as usize))
    }

    /// Who owns the page maps that go away with the device. One that is made of others has none.
    pub(crate) fn memory_owner(&self) -> MemoryOwner {
        // SAFETY: The device is valid.
        MemoryOwner(unsafe { bindings::rdax_memory_owner(self.0.as_ptr()) } as usize)
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
    fn idle(&self) -> Result<Idle> {
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

/// That a device is not mounted.
struct Idle {
    claim: Option<Claim>,
}

/// A block device that is open exclusively: nobody has it mounted or mounts it while this lives.
///
/// # Invariants
///
/// The pointer is an open file of a block device with [`HOLDER`] as its holder, owned by this
/// value.
pub(crate) struct Claim(NonNull<bindings::file>);

/// Its address is the holder of every claim. Claims of one device do not exclude each other;
/// taking them is for the holder of the [`Writer`].
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

    /// Whether this is the device's name in the kernel (`pmem0`, `pmem0p1`, `dm-3`).
    pub(crate) fn is_named(&self, name: &CStr) -> bool {
        let mut buffer = [0u8; Self::NAME_SIZE];
        // SAFETY: The buffer is as large as is said, and %pg takes a block device, which is open.
        // The result is a string as the size is not 0.
        let own = unsafe {
            bindings::snprintf(
                buffer.as_mut_ptr(),
                buffer.len(),
                c"%pg".as_char_ptr(),
                self.bdev().as_ptr(),
            );
            CStr::from_char_ptr(buffer.as_ptr())
        };
        own == name
    }

    /// Enough for the name of a disk (`DISK_NAME_LEN`) and a partition's number.
    const NAME_SIZE: usize = 64;

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

/// Something that lies on a mounted filesystem and keeps it mounted while it is borrowed.
///
/// # Safety
///
/// The superblock is valid, and stays mounted at least until all borrows of the value have ended.
pub(crate) unsafe trait OnSuperBlock {
    /// The superblock.
    fn super_block(&self) -> NonNull<bindings::super_block>;
}

/// Log2 of the size of the table. Twice as large as need be, so that looking for a device that is
/// not in it ends soon.
const SLOT_BITS: u32 = bindings::MEMBER_BITS;
const SLOTS: usize = 1 << SLOT_BITS;
const MAX_MEMBERS: usize = SLOTS / 2;

/// The addresses of the member devices: a hash table with linear probing. Null is a place that
/// ends a search; [`Members::removed`] one that does not.
#[repr(C)]
pub(crate) struct Members(
    [Atomic<*mut bindings::block_device>; SLOTS],
    /// Whether the filesystem on the device has reported an error since it was mounted.
    [Atomic<bool>; SLOTS],
);

/// Whether any filesystem has.
static ERRORS_SEEN: Atomic<bool> = Atomic::new(false);

impl Members {
    const fn new() -> Self {
        Self(
            [const { Atomic::new(ptr::null_mut()) }; SLOTS],
            [const { Atomic::new(false) }; SLOTS],
        )
    }

    /// What is left in the place of a device that was removed.
    const fn removed() -> *mut bindings::block_device {
        ptr::without_provenance_mut(1)
    }

    /// Where the search for `bdev` begins.
    #[inline(always)]
    fn home(bdev: *const bindings::block_device) -> usize {
        // Fibonacci hashing: the high bits depend on all bits of the address.
        (bdev as usize).wrapping_mul(bindings::MEMBER_FACTOR as usize) >> (usize::BITS - SLOT_BITS)
    }

    /// Where `bdev` is, if it is a member.
    #[inline(always)]
    fn find(&self, bdev: *const bindings::block_device) -> Option<usize> {
        if bdev.is_null() {
            return None;
        }
        let home = Self::home(bdev);
        // Pairs with `Writer::insert`, as below: whoever finds a member sees its data.
        let member = self.0[home].load_acquire();
        if ptr::eq(member, bdev) {
            return Some(home);
        }
        if member.is_null() {
            return None;
        }
        for step in 1..SLOTS {
            let place = (home + step) % SLOTS;
            let member = self.0[place].load_acquire();
            if ptr::eq(member, bdev) {
                return Some(place);
            }
            if member.is_null() {
                break;
            }
        }
        None
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        let is_member = |member: &Atomic<*mut bindings::block_device>| {
            let member = member.load(Relaxed);
            !member.is_null() && member != Self::removed()
        };
        !self.0.iter().any(is_member)
    }

    /// Whether the device is a member.
    pub(super) fn has_device(&self, bdev: *const bindings::block_device) -> bool {
        self.find(bdev).is_some()
    }

    /// Whether the superblock is on a member.
    ///
    /// # Safety
    ///
    /// `sb` is valid.
    #[inline(always)]
    pub(super) unsafe fn has(&self, sb: *const bindings::super_block) -> bool {
        // SAFETY: By the function's requirements.
        let bdev = unsafe { ptr::read_volatile(&raw const (*sb).s_bdev) };
        self.find(bdev).is_some()
    }

    /// Notes that the filesystem has reported an error, or is about to be unmounted.
    ///
    /// # Safety
    ///
    /// `sb` is valid.
    pub(super) unsafe fn set_error(&self, sb: *const bindings::super_block, error: bool) {
        // SAFETY: By the function's requirements.
        let bdev = unsafe { ptr::read_volatile(&raw const (*sb).s_bdev) };
        if let Some(place) = self.find(bdev) {
            self.1[place].store(error, Relaxed);
            if error {
                // Pairs with `has_error`: whoever sees that there was one sees which it was.
                ERRORS_SEEN.store(true, Release);
            }
        }
    }
}

/// What is in a place of a table, for the KUnit tests.
#[cfg(RDAX_TEST)]
#[derive(Clone, Copy)]
pub(crate) enum TestSlot {
    /// The device that is looked for.
    Device,
    /// Another device.
    Other,
    /// What is left of a device that was removed.
    Removed,
}

#[cfg(RDAX_TEST)]
impl Members {
    /// A table with these in the places from the device's home on, and nothing in all others.
    pub(super) fn around(bdev: *mut bindings::block_device, places: &[TestSlot]) -> Self {
        let members = Self::new();
        let home = Self::home(bdev);
        for (step, place) in places.iter().enumerate().take(SLOTS) {
            let member = match place {
                TestSlot::Device => bdev,
                TestSlot::Other => ptr::without_provenance_mut(!0xfff),
                TestSlot::Removed => Self::removed(),
            };
            members.0[(home + step) % SLOTS].store(member, Relaxed);
        }
        members
    }

    /// The number of places.
    pub(crate) const PLACES: usize = SLOTS;
}

/// A set of block devices, with a `D` for each.
///
/// # Invariants
///
/// Where `members` has a device, `data` is initialised.
pub(crate) struct Set<D> {
    members: Members,
    data: [UnsafeCell<MaybeUninit<D>>; SLOTS],
    taken: Atomic<bool>,
}

// SAFETY: Members' data are only shared, see `Writer::remove`, and `D` allows that.
unsafe impl<D: Send + Sync> Sync for Set<D> {}

impl<D: Send + Sync + 'static> Set<D> {
    /// An empty set.
    pub(crate) const fn new() -> Self {
        Self {
            members: Members::new(),
            data: [const { UnsafeCell::new(MaybeUninit::uninit()) }; SLOTS],
            taken: Atomic::new(false),
        }
    }

    /// The members' addresses.
    pub(crate) const fn members(&self) -> &Members {
        &self.members
    }

    /// Calls `f` for every member.
    #[cfg(RDAX_CHECK)]
    pub(crate) fn visit(&'static self, mut f: impl FnMut(&BlockDevice)) {
        // `Writer::remove` waits for this before it lets go of a device.
        let _in_flight = redirect::InFlight::enter();
        for member in &self.members.0 {
            // Pairs with `Writer::insert`.
            let bdev = member.load_acquire();
            if bdev == Members::removed() {
                continue;
            }
            if let Some(bdev) = NonNull::new(bdev) {
                // The reference is the member's.
                f(&ManuallyDrop::new(BlockDevice(bdev)));
            }
        }
    }

    /// The places that a member can have.
    pub(crate) fn places(&self) -> core::ops::Range<usize> {
        0..SLOTS
    }

    /// The member in a place, and its data.
    pub(crate) fn at<'a>(
        &'static self,
        place: usize,
        _in_flight: &'a redirect::InFlight,
    ) -> Option<(BlockDevice, &'a D)> {
        // Pairs with `Writer::insert`: the data are there.
        let member = self.members.0.get(place)?.load_acquire();
        if member == Members::removed() {
            return None;
        }
        // The reference is the member's.
        let bdev = ManuallyDrop::new(BlockDevice(NonNull::new(member)?));
        // SAFETY: By the type invariant. The call in flight began before the device was found, and
        // `Writer::remove` waits for it after it has taken the device off its place, and before it
        // gives up the reference.
        Some((bdev.get(), unsafe {
            (*self.data[place].get()).assume_init_ref()
        }))
    }

    /// The right to change the set, for the first who asks.
    pub(crate) fn writer(&'static self) -> Option<Writer<D>> {
        if self.taken.xchg(true, Relaxed) {
            return None;
        }
        Some(Writer {
            set: self,
            count: 0,
        })
    }

    /// Whether the filesystem that `of` is of has reported an error since it was mounted.
    #[inline]
    pub(crate) fn has_error(&'static self, of: &impl OnSuperBlock) -> bool {
        // Pairs with `set_error`.
        if !ERRORS_SEEN.load_acquire() {
            return false;
        }
        // SAFETY: The superblock is valid by the trait's requirements.
        let bdev = unsafe { (*of.super_block().as_ptr()).s_bdev };
        let place = self.members.find(bdev);
        place.is_some_and(|place| self.members.1[place].load(Relaxed))
    }

    /// Notes whether it has.
    #[cold]
    pub(crate) fn set_error(&'static self, of: &impl OnSuperBlock, error: bool) {
        // SAFETY: The superblock is valid by the trait's requirements.
        unsafe { self.members.set_error(of.super_block().as_ptr(), error) };
    }

    /// The data of the device that `of` is on, if that is a member. Needs nothing held; does not
    /// sleep.
    #[inline]
    pub(crate) fn get<'a>(&'static self, of: &'a impl OnSuperBlock) -> Option<&'a D> {
        // SAFETY: The superblock is valid by the trait's requirements.
        let bdev = unsafe { (*of.super_block().as_ptr()).s_bdev };
        let place = self.members.find(bdev)?;
        // SAFETY: By the type invariant. While `of` is borrowed the device is mounted and is not
        // removed from the set, see `Writer::remove`.
        Some(unsafe { (*self.data[place].get()).assume_init_ref() })
    }
}

/// A device's membership in a [`Set`]. It does not end by dropping this.
///
/// # Invariants
///
/// The device is a member, and its place is `place`.
#[must_use]
pub(crate) struct Member<D: 'static> {
    bdev: ManuallyDrop<BlockDevice>,
    set: &'static Set<D>,
    place: usize,
}

impl<D> Member<D> {
    /// The device.
    pub(crate) fn device(&self) -> &BlockDevice {
        &self.bdev
    }

    /// What is kept for the device.
    pub(crate) fn data(&self) -> &D {
        // SAFETY: By the type invariants of `Member` and `Set`. The data stay where they are as
        // long as this value exists.
        unsafe { (*self.set.data[self.place].get()).assume_init_ref() }
    }
}

/// The right to change a [`Set`]; there is one.
pub(crate) struct Writer<D: 'static> {
    set: &'static Set<D>,
    count: usize,
}

impl<D: Send + Sync + 'static> Writer<D> {
    /// How many devices are members.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Makes the device a member.
    ///
    /// Errors: `ENOSPC` if there are too many, `EEXIST` if it is one.
    pub(crate) fn insert(&mut self, claim: &Claim, data: D) -> Result<Member<D>> {
        let bdev = claim.bdev();
        let members = &self.set.members;

        if members.find(bdev.as_ptr()).is_some() {
            return Err(EEXIST);
        }
        if self.count >= MAX_MEMBERS {
            return Err(ENOSPC);
        }
        let home = Members::home(bdev.as_ptr());
        for step in 0..SLOTS {
            let place = (home + step) % SLOTS;
            let member = members.0[place].load(Relaxed);
            if !member.is_null() && member != Members::removed() {
                continue;
            }
            // SAFETY: There is no device at this place, so nobody looks at the data.
            unsafe { (*self.set.data[place].get()).write(data) };
            // SAFETY: The claim is an open file of the device.
            let device = unsafe { BlockDevice::from_raw(bdev) };
            members.1[place].store(false, Relaxed);
            // Pairs with those who search, in `Members::find` and `Set::at`.
            //
            // INVARIANT: The data were initialised above.
            members.0[place].store(bdev.as_ptr(), Release);
            self.count += 1;
            return Ok(Member {
                bdev: ManuallyDrop::new(device),
                set: self.set,
                place,
            });
        }
        Err(ENOSPC)
    }

    /// Ends a membership and returns the data. Sleeps, for some time.
    ///
    /// `prepare` is called before, while nobody can mount the device; unless that was removed.
    ///
    /// Errors: `EBUSY` and others if the device is in use, or what `prepare` says; it stays a member.
    pub(crate) fn remove(
        &mut self,
        member: Member<D>,
        prepare: impl FnOnce(&BlockDevice) -> Result,
    ) -> Result<D, (Member<D>, Error)> {
        let idle = match member.bdev.idle() {
            Ok(idle) => idle,
            Err(e) => return Err((member, e)),
        };
        if idle.claim.is_some() {
            if let Err(e) = prepare(&member.bdev) {
                return Err((member, e));
            }
        }
        let members = &self.set.members;
        members.0[member.place].store(Members::removed(), Relaxed);
        self.count -= 1;

        // A search that comes here goes on to the next place. If that ends it, it may end here.
        let mut place = member.place;
        while members.0[(place + 1) % SLOTS].load(Relaxed).is_null()
            && members.0[place].load(Relaxed) == Members::removed()
        {
            members.0[place].store(ptr::null_mut(), Relaxed);
            place = (place + SLOTS - 1) % SLOTS;
        }

        // Nobody has a superblock of the device that is mounted; what is left are calls that hold
        // neither.
        redirect::quiesce();
        // SAFETY: There was data here by the type invariant of `Member`, and no reference to it is
        // left: those that `Set::get` and `Set::get_for` gave out lasted no longer than the mount or
        // a call that is over, and those of `Member::data` no longer than `member`, which nobody has borrowed.
        let data = unsafe { (*self.set.data[member.place].get()).assume_init_read() };
        drop(idle);
        drop(ManuallyDrop::into_inner(member.bdev));
        Ok(data)
    }
}
