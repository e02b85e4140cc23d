// SPDX-License-Identifier: GPL-2.0

//! Which devices' files this layer serves (spec, section 8).
//!
//! The kernel's functions are redirected while at least one device is adopted. How the user says which those are
//! is in `directory`.
//!
//! Lock order: a directory's `state`, then the `Registry`. Both are held across the opening of a
//! block device and across grace periods.

mod directory;

pub(crate) use directory::{
    subsystem,
    Root, //
};

use super::{
    device::{
        self,
        AdoptedDevice,
        Switches,
        DEVICES, //
    },
    folio,
    layout,
    poison, //
};
#[cfg(RDAX_TEST)]
use crate::kern::{
    bdev::BlockDevice,
    once::Once,
    order::Order, //
};
use crate::kern::{
    bdev::{
        Claim,
        GoingDevice, //
    },
    dax::DaxIdentity,
    entry_points,
    error::eopnotsupp,
    members::{
        Member,
        Writer, //
    },
    memory::Retired,
    redirect::{
        self,
        InFlight, //
    },
    trace,
    waiting::Waiting, //
};
use core::ffi::CStr;
use kernel::{
    new_mutex,
    prelude::*,
    str::CString,
    sync::{
        Arc,
        Mutex, //
    }, //
};

/// The kernel's functions, redirected for files on [`DEVICES`].
static REDIRECTION: redirect::Redirection =
    redirect::Redirection::new(&entry_points::TARGETS, DEVICES.members());

/// Has the files of all adopted devices let go of the memory of a device that goes away, and waits
/// until nobody uses it any more (`bdev_mark_dead`). It is that of the device itself, if that is
/// adopted, or of those that are made of it. Sleeps, and cannot be interrupted.
///
/// A device that still gives memory keeps its pages; only its entries are removed.
///
/// The call is in flight, but not while it waits.
pub(crate) fn evict_device(bdev: &GoingDevice<'_>, in_flight: &mut InFlight) {
    let owner = bdev.memory_owner();
    let stays = bdev.memory(0).is_some();
    // One after the other: what the next ones have mapped is there until they had their turn.
    for place in DEVICES.places() {
        let Some((member, device)) = DEVICES.at(place, in_flight) else {
            continue;
        };
        let goes = !stays && device.memory().is_owned_by(owner);
        if !goes && !member.is(bdev) {
            continue;
        }
        if member.is(bdev) {
            // Before anything is waited for.
            let name = bdev.name();
            pr_warn!(
                "{name}: is removed, and not adopted any more; adopt it anew when it is back\n"
            );
        }
        let memory = device.memory().clone();
        in_flight.pause(|| {
            // Before the entries are removed: whoever sleeps on a folio has the page map by this only.
            let retired = match goes {
                true => memory.retire_for(bdev),
                false => None,
            };
            let mut foreign = false;
            member.visit_inodes(|inode| match device::device_for(inode) {
                Some(_) => layout::evict_device_memory(inode, goes),
                None => foreign = true,
            });
            // A device of a filesystem that is on another one, which is not adopted, is not ours.
            if !goes || foreign {
                return;
            }
            let _waiting = Waiting::for_device(Some(bdev));
            for run in retired.iter().flat_map(Retired::runs) {
                folio::wait_until_unused(&[run]);
            }
        });
    }
}

/// Whether it is the device of DAX of an adopted device, on whose memory no store is durable before its host
/// has flushed it.
pub(crate) fn is_asynchronous(dax: DaxIdentity, in_flight: &InFlight) -> bool {
    DEVICES
        .places()
        .filter_map(|place| DEVICES.at(place, in_flight))
        // In the memory of one that has gone there may be another by now.
        .any(|(bdev, device)| device.asynchronous_dax() == Some(dax) && !bdev.is_gone())
}

/// The rights to change who is served.
struct Registry {
    devices: Writer<AdoptedDevice>,
    redirection: redirect::Handle,
}

impl Registry {
    fn new() -> Result<Arc<Mutex<Self>>> {
        let registry = Self {
            devices: DEVICES.writer().ok_or(EBUSY)?,
            redirection: REDIRECTION.handle().ok_or(EBUSY)?,
        };
        Arc::pin_init(new_mutex!(registry), GFP_KERNEL)
    }

    fn adopt(&mut self, name: &CStr, switches: &Switches) -> Result<Member<AdoptedDevice>> {
        let path = CString::try_from_fmt(fmt!("/dev/{name}"))?;
        let claim = Claim::by_path(&path).map_err(|e| match e {
            EBUSY => {
                pr_err!("{name}: in use; unmount it first\n");
                EBUSY
            }
            ENOENT | ENOTDIR | ENOTBLK | ENXIO | ENODEV => {
                pr_err!("{name}: there is no block device /dev/{name}\n");
                ENODEV
            }
            e => {
                pr_err!("{name}: cannot be opened ({})\n", e.to_errno());
                e
            }
        })?;
        if !claim.is_named(name) {
            pr_err!("{name}: /dev/{name} is another device; use that one's own name\n");
            return Err(ENODEV);
        }
        if !claim.supports_dax() {
            pr_err!("{name}: not capable of DAX; adopt a pmem device in fsdax mode\n");
            return Err(eopnotsupp());
        }

        // Nobody mounts the device before `claim` is dropped, and then both are done.
        self.redirection.register().inspect_err(|e| {
            pr_err!("{name}: not adopted ({})\n", e.to_errno());
        })?;
        // The memory is told that its device goes from the beginning.
        let device = AdoptedDevice::new(&claim.device(), switches).inspect_err(|e| {
            pr_err!("{name}: not adopted ({})\n", e.to_errno());
            self.switch_off_if_unused();
        })?;
        let member = self.devices.insert(&claim, device).inspect_err(|e| {
            pr_err!(
                "{name}: not adopted ({}); release another device first\n",
                e.to_errno()
            );
            self.switch_off_if_unused();
        })?;
        // The kernel's own code may have marked pages before.
        let _ = member.data().with_runs(member.device(), |run| {
            poison::look_for_marks(run);
            Ok(())
        });
        pr_info!("{name}: adopted\n");
        trace::adopt(member.device(), true);
        Ok(member)
    }

    fn switch_off_if_unused(&mut self) {
        if self.devices.count() == 0 {
            self.redirection.unregister();
        }
    }

    fn release(
        &mut self,
        name: &CStr,
        member: Member<AdoptedDevice>,
    ) -> Result<AdoptedDevice, (Member<AdoptedDevice>, Error)> {
        let mut held = false;
        let bdev = member.device().get();
        let result = self.devices.remove(member, |bdev, device| {
            device.with_runs(bdev, |run| {
                folio::dissolve_range(run).inspect_err(|_| held = true)
            })
        });
        match &result {
            Ok(_) => {
                self.switch_off_if_unused();
                pr_info!("{name}: released\n");
                trace::adopt(&bdev, false);
            }
            Err(_) if held => {
                pr_err!(
                    "{name}: somebody still reads or writes its pages; release it again later\n"
                );
            }
            Err((_, e)) if *e == EBUSY => {
                pr_err!("{name}: in use; unmount it first\n");
            }
            Err((_, e)) => pr_err!("{name}: cannot be released ({})\n", e.to_errno()),
        }
        result
    }
}

/// The registry, for the KUnit tests, which have no directories.
#[cfg(RDAX_TEST)]
static REGISTRY: kernel::sync::SetOnce<Arc<Mutex<Registry>>> = kernel::sync::SetOnce::new();

/// The functions that are redirected, for the KUnit tests.
#[cfg(RDAX_TEST)]
pub(crate) fn redirection() -> &'static redirect::Redirection {
    &REDIRECTION
}

/// A device that the KUnit tests adopted. It stays adopted until it is released.
#[cfg(RDAX_TEST)]
pub(crate) struct Adopted {
    member: Member<AdoptedDevice>,
    name: CString,
}

#[cfg(RDAX_TEST)]
impl Adopted {
    /// Adopts a device as a directory of this name would. Sleeps.
    pub(crate) fn new(name: &CStr) -> Result<Self> {
        let registry = REGISTRY.as_ref().ok_or(ENODEV)?;
        // Nothing may fail once the device is adopted: a membership does not end by being dropped.
        let kept = CString::try_from(name)?;
        let member = registry.lock().adopt(name, &Switches::new())?;
        Ok(Self { member, name: kept })
    }

    /// Releases it as a directory would. Sleeps.
    pub(crate) fn release(self) -> Result<(), (Self, Error)> {
        let Self { member, name } = self;
        let Some(registry) = REGISTRY.as_ref() else {
            return Err((Self { member, name }, ENODEV));
        };
        match registry.lock().release(&name, member) {
            Ok(_) => Ok(()),
            Err((member, error)) => Err((Self { member, name }, error)),
        }
    }

    /// The device, as far as it is known.
    pub(crate) fn device(&self) -> &AdoptedDevice {
        self.member.data()
    }

    /// The block device, for others who look for its memory.
    pub(crate) fn block_device(&self) -> BlockDevice {
        self.member.device().get()
    }

    /// As if all of its memory were going away.
    pub(crate) fn retire(&self) {
        let owner = self.member.device().memory_owner();
        self.member.data().retire(owner);
    }

    /// As the directory's `max_order`.
    pub(crate) fn set_max_order(&self, order: Order) {
        self.member.data().switches().max_order.write_once(order);
    }

    /// As the directory's `fault_around`.
    pub(crate) fn set_fault_around(&self, order: Order) {
        self.member.data().switches().fault_around.write_once(order);
    }

    /// As the directory's `write_order`.
    pub(crate) fn set_write_order(&self, order: Order) {
        self.member.data().switches().write_order.write_once(order);
    }

    /// Sets all of them as they are in a new directory.
    pub(crate) fn set_defaults(&self) {
        let new = Switches::new();
        self.set_max_order(new.max_order.read_once());
        self.set_fault_around(new.fault_around.read_once());
        self.set_write_order(new.write_order.read_once());
    }
}
