// SPDX-License-Identifier: GPL-2.0

//! Questions of user space about files and waits: `/dev/rdax` (`docs/ioctl.md`).
//!
//! Everybody may open the device. What is told of a file is told to whoever shows that he may read it, by a
//! descriptor; what is told of others, and of the machine's memory, to the administrator.

pub(crate) mod map;
mod waits;

// The kernel crate's macros expect these names in scope, in some series.
#[allow(unused_imports)]
use crate::kern::compat::*;
use crate::kern::{
    report::{Call, Device, Number},
    uapi, //
};
use kernel::{
    error::code::*,
    fs::File,
    miscdevice::{MiscDevice, MiscDeviceRegistration},
    prelude::*, //
};

/// Somebody who has the device open.
struct Asker;

#[vtable]
impl MiscDevice for Asker {
    type Ptr = KBox<Self>;

    fn open(_file: &File, _device: &MiscDeviceRegistration<Self>) -> Result<KBox<Self>> {
        Ok(KBox::new(Self, GFP_KERNEL)?)
    }

    fn ioctl(_asker: &Self, _file: &File, number: u32, argument: usize) -> Result<isize> {
        let call = Call::new(number, argument);
        match call.number() {
            Some(uapi::NR_VERSION) => call.write(&Number(uapi::VERSION)),
            Some(uapi::NR_MAP) => map::answer(call),
            Some(uapi::NR_WAITS) => waits::answer(call),
            _ => Err(ENOTTY),
        }?;
        Ok(0)
    }
}

/// The device; registered when it was initialised.
pub(crate) fn device() -> impl PinInit<Device, Error> {
    Device::new::<Asker>(c"rdax")
}
