// SPDX-License-Identifier: GPL-2.0

//! Which devices' files this layer serves, and how the user says so (spec, section 8).
//!
//! `mkdir /sys/kernel/config/rdax/NAME` names a block device; writing 1 to the directory's `adopt`
//! hands it over, writing 0 gives it back. The kernel's functions are redirected while at least one
//! device is adopted.
//!
//! Lock order: a directory's `state`, then the `Registry`. Both are held across the opening of a
//! block device and across grace periods.

use super::{
    device::{
        self,
        AdoptedDevice,
        Switches,
        DEVICES, //
    },
    folio,
    layout,
    poison,
    stats::Snapshot, //
};
// Names that macros of the kernel crate expect where they are used.
#[allow(unused_imports)]
use crate::kern::compat::*;
use crate::kern::{
    bdev::{
        BlockDevice,
        BlockDeviceName,
        Claim, //
    },
    dax::DaxIdentity,
    configfs::{
        Directory,
        Kept, //
    },
    entry_points,
    error::eopnotsupp,
    members::{Member, Writer},
    once::Once,
    order::Order,
    redirect::{
        self,
        InFlight, //
    },
    trace,
    waiting::Waiting, //
};
use core::{ffi::CStr, fmt::Write};
use kernel::{
    configfs::{
        configfs_attrs,
        AttributeOperations,
        Group,
        GroupOperations,
        Subsystem, //
    },
    new_mutex,
    page::PAGE_SIZE,
    prelude::*,
    str::{
        CString,
        Formatter, //
    },
    sync::atomic::Atomic,
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
pub(crate) fn evict_device(bdev: &BlockDevice, name: &BlockDeviceName, in_flight: &mut InFlight) {
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
            let name = name.as_c_str();
            pr_warn!(
                "{name}: is removed, and not adopted any more; adopt it anew when it is back\n"
            );
        }
        let memory = device.memory().clone();
        in_flight.pause(|| {
            if goes {
                // Before the entries are removed: whoever sleeps on a folio has the page map by this
                // only.
                memory.retire(owner);
            }
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
            for range in memory.of(owner) {
                folio::wait_until_unused(&[range.run]);
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
        .any(|(_, device)| device.asynchronous_dax() == Some(dax))
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

        let device = AdoptedDevice::new(&claim.device(), switches)?;
        // Nobody mounts the device before `claim` is dropped, and then both are done.
        self.redirection.register().inspect_err(|e| {
            pr_err!("{name}: not adopted ({})\n", e.to_errno());
        })?;
        let member = self.devices.insert(&claim, device).inspect_err(|e| {
            pr_err!(
                "{name}: not adopted ({}); release another device first\n",
                e.to_errno()
            );
            self.switch_off_if_unused();
        })?;
        // The kernel's own code may have marked pages before.
        for run in member.device().page_runs() {
            poison::look_for_marks(run);
        }
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
        let result = self.devices.remove(member, |bdev| {
            for run in bdev.page_runs() {
                folio::dissolve_range(run).inspect_err(|_| held = true)?;
            }
            Ok(())
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

/// A directory: a device by its name.
#[pin_data]
pub(crate) struct DeviceName {
    name: CString,
    registry: Arc<Mutex<Registry>>,
    #[pin]
    state: Mutex<DirectoryState>,
}

struct DirectoryState {
    adoption: Option<Adoption>,
    switches: Switches,
    /// The counts at the time when the device was released.
    last: Snapshot,
}

struct Adoption {
    member: Member<AdoptedDevice>,
    /// The directory stays as long as the device is adopted.
    _kept: Kept,
}

type DeviceDirectory = Directory<DeviceName>;

impl DeviceName {
    fn new(name: &CStr, registry: Arc<Mutex<Registry>>) -> Result<impl PinInit<Self, Error>> {
        let name = CString::try_from(name)?;
        Ok(try_pin_init!(Self {
            name,
            registry,
            state <- new_mutex!(DirectoryState {
                adoption: None,
                switches: Switches::new(),
                last: Snapshot::ZERO,
            }),
        }))
    }

    fn adopt(&self, directory: &DeviceDirectory) -> Result {
        let mut state = self.state.lock();
        if let Some(adoption) = &state.adoption {
            if !adoption.member.device().is_gone() {
                return Ok(());
            }
            // The device was removed; another one may have its name now.
            self.release_locked(&mut state)?;
        }
        let kept = directory.keep()?;
        let member = self.registry.lock().adopt(&self.name, &state.switches)?;
        state.adoption = Some(Adoption {
            member,
            _kept: kept,
        });
        Ok(())
    }

    fn release(&self) -> Result {
        self.release_locked(&mut self.state.lock())
    }

    fn release_locked(&self, state: &mut DirectoryState) -> Result {
        let Some(Adoption {
            member,
            _kept: kept,
        }) = state.adoption.take()
        else {
            return Ok(());
        };
        match self.registry.lock().release(&self.name, member) {
            Ok(device) => {
                state.last = device.stats().snapshot();
                Ok(())
            }
            Err((member, e)) => {
                state.adoption = Some(Adoption {
                    member,
                    _kept: kept,
                });
                Err(e)
            }
        }
    }
}

/// The text written to an attribute, without the end of the line.
fn trim(page: &[u8]) -> &[u8] {
    page.strip_suffix(b"\n").unwrap_or(page)
}

fn print(page: &mut [u8; PAGE_SIZE], text: &str) -> Result<usize> {
    let mut formatter = Formatter::new(page);
    writeln!(formatter, "{text}").map_err(|_| ENOSPC)?;
    Ok(formatter.bytes_written())
}

/// `adopt`: 1 if the device of this name is adopted, else 0. An adopted device that was removed has
/// no name any more, but is adopted until it is released or another one of its name is adopted.
#[vtable]
impl AttributeOperations<0> for DeviceDirectory {
    type Data = DeviceDirectory;

    fn show(directory: &DeviceDirectory, page: &mut [u8; PAGE_SIZE]) -> Result<usize> {
        let state = directory.data().state.lock();
        let adopted = |adoption: &Adoption| !adoption.member.device().is_gone();
        print(
            page,
            if state.adoption.as_ref().is_some_and(adopted) {
                "1"
            } else {
                "0"
            },
        )
    }

    fn store(directory: &DeviceDirectory, page: &[u8]) -> Result {
        match trim(page) {
            b"0" => directory.data().release(),
            b"1" => directory.data().adopt(directory),
            _ => Err(EINVAL),
        }
    }
}

/// `stats`: what was counted since the device was adopted, a line "name value" for each counter.
#[vtable]
impl AttributeOperations<1> for DeviceDirectory {
    type Data = DeviceDirectory;

    fn show(directory: &DeviceDirectory, page: &mut [u8; PAGE_SIZE]) -> Result<usize> {
        let state = directory.data().state.lock();
        match &state.adoption {
            Some(adoption) => adoption.member.data().stats().snapshot().print(page),
            None => state.last.print(page),
        }
    }
}

/// The values of a switch: as it is shown, and what else it may be called. Capitals do not matter.
type Values = [(&'static str, &'static [&'static str], Order)];

/// The values of `max_order`.
const ORDERS: [(&str, &[&str], Order); 3] = [
    ("pte", &["4k"], Order::PTE),
    ("pmd", &["2m"], Order::PMD),
    ("pud", &["1g"], Order::PUD),
];

/// The values of `fault_around`, in bytes.
const BLOCKS: [(&str, &[&str], Order); 10] = [
    ("4096", &["4k"], Order::from_bits(0)),
    ("8192", &["8k"], Order::from_bits(1)),
    ("16384", &["16k"], Order::from_bits(2)),
    ("32768", &["32k"], Order::from_bits(3)),
    ("65536", &["64k"], Order::from_bits(4)),
    ("131072", &["128k"], Order::from_bits(5)),
    ("262144", &["256k"], Order::from_bits(6)),
    ("524288", &["512k"], Order::from_bits(7)),
    ("1048576", &["1m"], Order::from_bits(8)),
    ("2097152", &["2m"], Order::from_bits(9)),
];

/// The values of `write_order`: all below what an entry of the second level maps.
const WRITE_ORDERS: [(&str, &[&str], Order); 9] = [
    ("0", &[], Order::from_bits(0)),
    ("1", &[], Order::from_bits(1)),
    ("2", &[], Order::from_bits(2)),
    ("3", &[], Order::from_bits(3)),
    ("4", &[], Order::from_bits(4)),
    ("5", &[], Order::from_bits(5)),
    ("6", &[], Order::from_bits(6)),
    ("7", &[], Order::from_bits(7)),
    ("8", &[], Order::from_bits(8)),
];

impl DeviceName {
    /// Shows a switch by the name of its value.
    fn show_switch(
        &self,
        page: &mut [u8; PAGE_SIZE],
        values: &Values,
        which: impl Fn(&Switches) -> &Atomic<Order>,
    ) -> Result<usize> {
        let set = which(&self.state.lock().switches).read_once();
        let named = values.iter().find(|(.., order)| *order == set);
        print(page, named.map_or("", |(name, ..)| name))
    }

    /// Sets a switch to the value that is named, for now and for later adoptions.
    fn store_switch(
        &self,
        page: &[u8],
        switch: &str,
        values: &Values,
        which: impl Fn(&Switches) -> &Atomic<Order>,
    ) -> Result {
        let text = trim(page);
        let is_meant = |name: &str| name.as_bytes().eq_ignore_ascii_case(text);
        let named = values
            .iter()
            .find(|(name, others, _)| is_meant(name) || others.iter().any(|other| is_meant(other)));
        let Some((.., order)) = named else {
            let ends = values.first().zip(values.last());
            let (from, to) = ends.map_or(("", ""), |(first, last)| (first.0, last.0));
            let name: &CStr = &self.name;
            pr_err!("{name}: {switch} is {from} to {to}; it stays as it was\n");
            return Err(EINVAL);
        };

        let state = self.state.lock();
        which(&state.switches).write_once(*order);
        if let Some(adoption) = &state.adoption {
            which(adoption.member.data().switches()).write_once(*order);
        }
        Ok(())
    }
}

/// `max_order`: the largest order that the device's files are mapped with.
#[vtable]
impl AttributeOperations<2> for DeviceDirectory {
    type Data = DeviceDirectory;

    fn show(directory: &DeviceDirectory, page: &mut [u8; PAGE_SIZE]) -> Result<usize> {
        let name = directory.data();
        name.show_switch(page, &ORDERS, |switches| &switches.max_order)
    }

    fn store(directory: &DeviceDirectory, page: &[u8]) -> Result {
        let name = directory.data();
        name.store_switch(page, "max_order", &ORDERS, |switches| &switches.max_order)
    }
}

/// `fault_around`: the bytes of the aligned block that a fault of a page maps as far as that costs
/// little; 4096: nothing but the page.
#[vtable]
impl AttributeOperations<3> for DeviceDirectory {
    type Data = DeviceDirectory;

    fn show(directory: &DeviceDirectory, page: &mut [u8; PAGE_SIZE]) -> Result<usize> {
        let name = directory.data();
        name.show_switch(page, &BLOCKS, |switches| &switches.fault_around)
    }

    fn store(directory: &DeviceDirectory, page: &[u8]) -> Result {
        let name = directory.data();
        name.store_switch(page, "fault_around", &BLOCKS, |switches| {
            &switches.fault_around
        })
    }
}

/// `write_order`: the largest order of the folios that write faults of pages in sequence make.
#[vtable]
impl AttributeOperations<4> for DeviceDirectory {
    type Data = DeviceDirectory;

    fn show(directory: &DeviceDirectory, page: &mut [u8; PAGE_SIZE]) -> Result<usize> {
        let name = directory.data();
        name.show_switch(page, &WRITE_ORDERS, |switches| &switches.write_order)
    }

    fn store(directory: &DeviceDirectory, page: &[u8]) -> Result {
        let name = directory.data();
        name.store_switch(page, "write_order", &WRITE_ORDERS, |switches| {
            &switches.write_order
        })
    }
}

/// The directory of the subsystem.
#[pin_data]
pub(crate) struct Root {
    registry: Arc<Mutex<Registry>>,
}

#[vtable]
impl GroupOperations for Root {
    type Child = DeviceDirectory;

    fn make_group(&self, name: &CStr) -> Result<impl PinInit<Group<DeviceDirectory>, Error>> {
        let kind = configfs_attrs! {
            container: Group<DeviceDirectory>,
            data: DeviceDirectory,
            attributes: [
                adopt: 0,
                stats: 1,
                max_order: 2,
                fault_around: 3,
                write_order: 4,
            ],
        };
        Directory::group(name, kind, DeviceName::new(name, self.registry.clone())?)
    }
}

/// The subsystem in configfs; registered when it was initialised. For the module's initialisation,
/// once.
pub(crate) fn subsystem() -> impl PinInit<Subsystem<Root>, Error> {
    let kind = configfs_attrs! {
        container: Subsystem<Root>,
        data: Root,
        child: DeviceDirectory,
        attributes: [],
    };
    Subsystem::new(
        c"rdax",
        kind,
        try_pin_init!(Root {
            registry: {
                let registry = Registry::new()?;
                #[cfg(RDAX_TEST)]
                REGISTRY.populate(registry.clone());
                registry
            },
        }),
    )
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
