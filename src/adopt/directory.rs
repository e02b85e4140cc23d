// SPDX-License-Identifier: GPL-2.0

//! How the user says whose files are served: directories of configfs (spec, section 8).
//!
//! `mkdir /sys/kernel/config/rdax/NAME` names a block device; writing 1 to the directory's `adopt`
//! hands it over, writing 0 gives it back. The other attributes are the device's counters and switches.

#[cfg(RDAX_TEST)]
use super::REGISTRY;
use super::{
    super::{
        device::{
            AdoptedDevice,
            Switches, //
        },
        stats::Snapshot, //
    },
    Registry, //
};
// Names that macros of the kernel crate expect where they are used.
#[allow(unused_imports)]
use crate::kern::compat::*;
use crate::kern::{
    configfs::{
        Directory,
        Kept, //
    },
    members::Member,
    once::Once,
    order::Order, //
};
use core::{
    ffi::CStr,
    fmt::Write, //
};
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
    sync::{
        atomic::Atomic,
        Arc,
        Mutex, //
    }, //
};

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
