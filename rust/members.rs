// SPDX-License-Identifier: GPL-2.0

//! The set of block devices that were adopted.
//!
//! Changes take the only [`Writer`]; the question whether a file is on a member takes no lock and never
//! waits. A member holds its device's inode, so that the address by
//! which it is known is not used for another device.

use super::{
    bdev::{BlockDevice, Claim},
    bindings,
    once::Once,
    redirect,
};
use core::{
    cell::UnsafeCell,
    mem::{ManuallyDrop, MaybeUninit},
    ptr::{self, NonNull},
};
use kernel::{
    prelude::*,
    sync::atomic::{Atomic, Relaxed, Release},
};

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
///
/// # Invariants
///
/// A slot that is neither NULL nor [`Members::removed`] is the address of a device that stays claimed for as
/// long as it is here. Each is found by its hash, with no NULL in between.
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

    /// The word in the place of a device that was removed.
    const fn removed() -> *mut bindings::block_device {
        ptr::without_provenance_mut(1)
    }

    /// Where the search for `bdev` begins.
    #[inline(always)]
    fn home(bdev: *const bindings::block_device) -> usize {
        // Fibonacci hashing: the high bits depend on all bits of the address.
        (bdev as usize).wrapping_mul(bindings::MEMBER_FACTOR) >> (usize::BITS - SLOT_BITS)
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

/// The contents of a place of a table, for the KUnit tests.
#[cfg(RDAX_TEST)]
#[derive(Clone, Copy)]
pub(crate) enum TestSlot {
    /// The device that is looked for.
    Device,
    /// Another device.
    Other,
    /// The rest of a device that was removed.
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
        // SAFETY: The member has a reference; see below.
        let bdev = unsafe { BlockDevice::borrow(NonNull::new(member)?) };
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

    /// The value that is kept for the device.
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
        prepare: impl FnOnce(&BlockDevice, &D) -> Result,
    ) -> Result<D, (Member<D>, Error)> {
        let idle = match member.bdev.idle() {
            Ok(idle) => idle,
            Err(e) => return Err((member, e)),
        };
        if idle.claim.is_some() {
            if let Err(e) = prepare(member.device(), member.data()) {
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
        // neither. Those that come later do not find the device any more.
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
