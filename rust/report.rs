// SPDX-License-Identifier: GPL-2.0

//! A device by which user space asks, and the structures that it asks with.
//!
//! C headers: [`include/linux/miscdevice.h`](srctree/include/linux/miscdevice.h), `uapi/rdax.h`

use super::{
    bindings,
    compat::this_module,
    fs::{Mapping, PageIndex},
    order::Order,
    uapi, //
};
use core::mem::offset_of;
use kernel::{
    error::to_result,
    ioctl::{_IOC_NR, _IOC_SIZE, _IOC_TYPE},
    miscdevice::{MiscDevice, MiscDeviceOptions},
    prelude::*,
    transmute::{AsBytes, FromBytes},
    types::Opaque,
    uaccess::{UserPtr, UserSlice}, //
};

/// A device in `/dev` that everybody may open: what it may be asked depends on what the caller has open, and
/// who it is.
///
/// # Invariants
///
/// The device is registered, and its operations are `operations`, which keep the module while it is open.
#[pin_data(PinnedDrop)]
pub(crate) struct Device {
    #[pin]
    operations: Opaque<bindings::file_operations>,
    #[pin]
    device: Opaque<bindings::miscdevice>,
}

// SAFETY: It may be registered and removed by different threads.
unsafe impl Send for Device {}
// SAFETY: There is nothing that could be done with a reference.
unsafe impl Sync for Device {}

impl Device {
    const MODE: u16 = 0o666;

    /// Makes a device of this name. Sleeps.
    pub(crate) fn new<T: MiscDevice>(name: &'static CStr) -> impl PinInit<Self, Error> {
        let make = move |slot: *mut Self| {
            let mut raw = MiscDeviceOptions { name }.into_raw::<T>();
            // SAFETY: The slot is valid for writes, and stays where it is until the device is removed. The
            // operations are those that the kernel crate has made; not all kernels' have the owner.
            unsafe {
                let operations = (&raw mut (*slot).operations).cast::<bindings::file_operations>();
                operations.write(core::ptr::read(raw.fops));
                (*operations).owner = this_module().as_ptr();
                raw.fops = operations;
                raw.mode = Self::MODE;
                let device = (&raw mut (*slot).device).cast::<bindings::miscdevice>();
                device.write(raw);
                // INVARIANT: If this succeeds.
                to_result(bindings::misc_register(device))
            }
        };
        // SAFETY: The slot is initialised when and only when the closure returns `Ok`.
        unsafe { pin_init::pin_init_from_closure(make) }
    }
}

#[pinned_drop]
impl PinnedDrop for Device {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariant. Nobody has it open: that would keep the module.
        unsafe { bindings::misc_deregister(self.device.get()) };
    }
}

/// A call's number and argument.
#[derive(Clone, Copy)]
pub(crate) struct Call {
    number: u32,
    argument: usize,
}

impl Call {
    pub(crate) fn new(number: u32, argument: usize) -> Self {
        Self { number, argument }
    }

    /// The number among those of the device; `None` if it is another device's. The size that is part of
    /// it is not compared: that is how structures grow.
    pub(crate) fn number(self) -> Option<u32> {
        (_IOC_TYPE(self.number) == uapi::TYPE).then(|| _IOC_NR(self.number))
    }

    fn size(self) -> usize {
        _IOC_SIZE(self.number)
    }

    /// The caller's structure, of at least `least` bytes; the rest of it is zero. Sleeps.
    ///
    /// Errors: `EINVAL` if there is less, `E2BIG` if there is more than is known here that is not zero,
    /// `EFAULT`.
    pub(crate) fn read<T: Structure>(self, least: usize) -> Result<T> {
        let size = self.size();
        if size < least {
            return Err(EINVAL);
        }
        let mut value = T::default();
        let mut reader = UserSlice::new(UserPtr::from_addr(self.argument), size).reader();
        let known = size.min(size_of::<T>());
        reader.read_slice(value.as_bytes_mut().get_mut(..known).ok_or(EINVAL)?)?;
        let mut rest = [0u8; 64];
        // Ends: each turn takes some of what is left, at most what the number of a call has room for.
        while !reader.is_empty() {
            let some = reader.len().min(rest.len());
            let some = rest.get_mut(..some).ok_or(EINVAL)?;
            reader.read_slice(some)?;
            if some.iter().any(|byte| *byte != 0) {
                return Err(E2BIG);
            }
        }
        Ok(value)
    }

    /// Gives it back. Sleeps.
    ///
    /// Errors: `EFAULT`.
    pub(crate) fn write<T: Structure>(self, value: &T) -> Result {
        write_padded(self.argument, self.size(), value)
    }
}

/// Writes as much of a structure as `size` bytes of the caller's have room for, and zeroes behind it. Sleeps.
///
/// Errors: `EFAULT`.
fn write_padded<T: Structure>(address: usize, size: usize, value: &T) -> Result {
    let mut writer = UserSlice::new(UserPtr::from_addr(address), size).writer();
    let known = size.min(size_of::<T>());
    writer.write_slice(value.as_bytes().get(..known).ok_or(EINVAL)?)?;
    // Ends: each turn takes some of what is left.
    while !writer.is_empty() {
        let some = [0u8; 64];
        writer.write_slice(some.get(..writer.len().min(some.len())).ok_or(EINVAL)?)?;
    }
    Ok(())
}

/// The records that a caller has room for.
pub(crate) struct Records {
    address: usize,
    size: usize,
    room: u32,
    written: u32,
}

impl Records {
    /// The largest that a record may be.
    const LARGEST: usize = 4096;

    /// Room for `room` records of `size` bytes each, at least `least`.
    ///
    /// Errors: `EINVAL` for another size.
    pub(crate) fn new(address: u64, size: u32, room: u32, least: usize) -> Result<Self> {
        let size = size as usize;
        if size < least || size > Self::LARGEST || size % align_of::<u64>() != 0 {
            return Err(EINVAL);
        }
        Ok(Self {
            address: address as usize,
            size,
            room,
            written: 0,
        })
    }

    /// Whether there is no room left.
    pub(crate) fn is_full(&self) -> bool {
        self.written >= self.room
    }

    /// How many were written.
    pub(crate) fn written(&self) -> u32 {
        self.written
    }

    /// Writes one, if there is room. Sleeps.
    ///
    /// Errors: `EFAULT`.
    pub(crate) fn push<T: Structure>(&mut self, record: &T) -> Result {
        if self.is_full() {
            return Ok(());
        }
        let behind = (self.written as usize)
            .checked_mul(self.size)
            .ok_or(EFAULT)?;
        let address = self.address.checked_add(behind).ok_or(EFAULT)?;
        write_padded(address, self.size, record)?;
        self.written += 1;
        Ok(())
    }
}

/// A structure that is copied to and from user space byte by byte.
pub(crate) trait Structure: AsBytes + FromBytes + Default {}

/// That a structure of `rdax.rs` is that of `rdax.h`.
macro_rules! structure {
    ($name:ident = $c:ident: $($field:ident)*) => {
        const _: () = {
            assert!(size_of::<uapi::$name>() == size_of::<bindings::$c>());
            let mut end = 0;
            $(
                let at = offset_of!(uapi::$name, $field);
                assert!(at == offset_of!(bindings::$c, $field));
                // No padding, which would not be initialised.
                assert!(at == end);
                let value: &uapi::$name = &pin_init::zeroed();
                end += size_of_val(&value.$field);
            )*
            assert!(end == size_of::<uapi::$name>());
        };
        // SAFETY: All fields are numbers, and there is nothing between them.
        unsafe impl AsBytes for uapi::$name {}
        // SAFETY: As above.
        unsafe impl FromBytes for uapi::$name {}
        // SAFETY: As above.
        unsafe impl pin_init::Zeroable for uapi::$name {}
        impl Structure for uapi::$name {}
    };
}

structure!(Map = rdax_map: fd flags start length records record_size count next size max_order reserved);
structure!(MapRecord = rdax_map_record: offset length physical kind flags order why why_mapped maps whole
    references vmas reserved);
structure!(Waits = rdax_waits: fd flags records record_size count total reserved);
structure!(WaitRecord = rdax_wait_record: waited inode offset physical kind dev_major dev_minor pid tid order
    references maps comm dev_type reserved);

/// A number by itself.
#[repr(transparent)]
#[derive(Default)]
pub(crate) struct Number(pub(crate) u32);

// SAFETY: A number.
unsafe impl AsBytes for Number {}
// SAFETY: As above.
unsafe impl FromBytes for Number {}
impl Structure for Number {}

/// That both files have the same numbers.
macro_rules! same {
    ($($rust:path = $c:ident;)*) => {
        $(const _: () = assert!($rust as u64 == bindings::$c as u64);)*
    };
}

same! {
    uapi::VERSION = RDAX_VERSION_NOW;
    uapi::TYPE = RDAX_IOC_TYPE;
    uapi::MAP_END = RDAX_MAP_END;
    uapi::kind::UNTOUCHED = RDAX_KIND_UNTOUCHED;
    uapi::kind::EMPTY = RDAX_KIND_EMPTY;
    uapi::kind::HOLE = RDAX_KIND_HOLE;
    uapi::kind::DATA = RDAX_KIND_DATA;
    uapi::flag::DIRTY = RDAX_MAP_DIRTY;
    uapi::flag::SHARED = RDAX_MAP_SHARED;
    uapi::flag::LOCKED = RDAX_MAP_LOCKED;
    uapi::why::EXTENT = RDAX_WHY_EXTENT;
    uapi::why::DEVICE = RDAX_WHY_DEVICE;
    uapi::why::ADDRESS = RDAX_WHY_ADDRESS;
    uapi::why::END_OF_MAPPING = RDAX_WHY_END_OF_MAPPING;
    uapi::why::END_OF_FILE = RDAX_WHY_END_OF_FILE;
    uapi::why::PRIVATE = RDAX_WHY_PRIVATE;
    uapi::why::MAX_ORDER = RDAX_WHY_MAX_ORDER;
    uapi::why::SMALLER = RDAX_WHY_SMALLER;
    uapi::why::UNMAPPED = RDAX_WHY_UNMAPPED;
    uapi::wait::LAYOUT = RDAX_WAIT_LAYOUT;
    uapi::wait::WRITE = RDAX_WAIT_WRITE;
    uapi::wait::FAULT = RDAX_WAIT_FAULT;
    uapi::wait::EVICTION = RDAX_WAIT_EVICTION;
    uapi::wait::DEVICE = RDAX_WAIT_DEVICE;
    uapi::dev::UNKNOWN = RDAX_DEV_UNKNOWN;
    uapi::dev::BLOCK = RDAX_DEV_BLOCK;
    uapi::dev::CHARACTER = RDAX_DEV_CHARACTER;
    bindings::RDAX_MAP_SIZE_VER0 = RDAX_MAP_SIZE_VER0;
}

const _: () = {
    use kernel::ioctl::{_IOR, _IOWR};
    let version = _IOR::<u32>(uapi::TYPE, uapi::NR_VERSION);
    assert!(version == bindings::UAPI_IOC_VERSION);
    assert!(_IOWR::<uapi::Map>(uapi::TYPE, uapi::NR_MAP) == bindings::UAPI_IOC_MAP);
    assert!(_IOWR::<uapi::Waits>(uapi::TYPE, uapi::NR_WAITS) == bindings::UAPI_IOC_WAITS);
};

/// The least that structures may have: what the first version of each had.
pub(crate) mod least {
    use super::bindings;

    pub(crate) const MAP: usize = bindings::RDAX_MAP_SIZE_VER0 as usize;
    pub(crate) const MAP_RECORD: usize = bindings::RDAX_MAP_RECORD_SIZE_VER0 as usize;
    pub(crate) const WAITS: usize = bindings::RDAX_WAITS_SIZE_VER0 as usize;
    pub(crate) const WAIT_RECORD: usize = bindings::RDAX_WAIT_RECORD_SIZE_VER0 as usize;
}

/// Whether the caller has `CAP_SYS_ADMIN`.
pub(crate) fn is_admin() -> bool {
    // SAFETY: Looks at the current task.
    unsafe { bindings::rdax_is_admin() }
}

/// Whether a signal waits for this task.
pub(crate) fn signal() -> bool {
    // SAFETY: Looks at the current task.
    unsafe { bindings::rdax_signal_pending() }
}

/// The mappings of processes that pages of a file are part of.
pub(crate) struct VmaLook {
    pub(crate) vmas: u32,
    /// One has them at an address that does not agree with their place in the file.
    pub(crate) address: bool,
    /// One begins or ends within.
    pub(crate) ends: bool,
    /// One is private, or cannot be mapped by the third level for what fork copies.
    pub(crate) copied: bool,
}

impl VmaLook {
    /// Looks at the mappings of the part of this order that `index` is in, but at no more than `most`.
    /// Sleeps.
    ///
    /// Errors: `EINTR` for a fatal signal.
    pub(crate) fn at(mapping: &Mapping, index: PageIndex, order: Order, most: u32) -> Result<Self> {
        let mut look: bindings::rdax_vma_look = Default::default();
        // SAFETY: The address space is alive.
        to_result(unsafe {
            bindings::rdax_look_at_vmas(
                mapping.as_ptr(),
                order.first(index).get(),
                order.pages(),
                most,
                &mut look,
            )
        })?;
        Ok(Self {
            vmas: look.vmas,
            address: look.address,
            ends: look.ends,
            copied: look.copied,
        })
    }
}

/// How many entries of page tables map zeroes in a hole.
pub(crate) struct Zeroes {
    whole: u32,
    /// For each page of 2 MiB.
    small: KVVec<u32>,
}

impl Zeroes {
    /// Room for them. Sleeps.
    ///
    /// Errors: `ENOMEM`.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            whole: 0,
            small: KVVec::from_elem(0, Order::PMD.pages(), GFP_KERNEL)?,
        })
    }

    /// Counts those of the 2 MiB that `index` is in, in no more than `most` mappings of processes. Sleeps.
    ///
    /// Errors: `EINTR` for a fatal signal.
    pub(crate) fn count(&mut self, mapping: &Mapping, index: PageIndex, most: u32) -> Result {
        // SAFETY: The address space is alive, and there is room for the pages of 2 MiB.
        to_result(unsafe {
            bindings::rdax_count_zeroes(
                mapping.as_ptr(),
                Order::PMD.first(index).get(),
                most,
                &mut self.whole,
                self.small.as_mut_ptr(),
            )
        })
    }

    /// Those that map all of the 2 MiB at once.
    pub(crate) fn whole(&self) -> u32 {
        self.whole
    }

    /// Those that map single pages from `index` on, as many as an entry of this order has.
    pub(crate) fn small(&self, index: PageIndex, order: Order) -> u32 {
        let pages = self.small.iter().skip(index.get() % Order::PMD.pages());
        pages
            .take(order.pages())
            .fold(0, |sum, maps| sum.saturating_add(*maps))
    }
}
