// SPDX-License-Identifier: GPL-2.0

//! `rdax list`

use crate::{
    cli,
    device::{
        self,
        Block,
        Dax,
        Mode, //
    },
    mounts,
    output,
    persist::{
        self,
        Adoption,
        Noted, //
    },
    size,
    superblock,
    system::System,
    table,
    waits::Waits, //
};
use anyhow::{
    bail,
    Result, //
};
use serde::Serialize;
use std::process::ExitCode;

/// What is said of a device. The keys that ndctl and daxctl have, too, are theirs.
#[derive(Debug, Default, Serialize)]
struct Entry {
    #[serde(skip_serializing_if = "Option::is_none")]
    dev: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    map: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uuid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    align: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    blockdev: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chardev: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target_node: Option<u64>,
    adopted: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    driver: Option<String>,
    persistent: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    filesystem: Option<String>,
    /// Of a block device, where nowhere, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    mountpoints: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dax: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_order: Option<String>,
    /// What an administrator should know.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

impl Entry {
    fn of_block(system: &System, block: &Block, noted: &Noted, waits: &Waits) -> Self {
        let mounts = mounts::of(system, &block.number);
        let mounted = mounts.first();
        let adopted = device::is_adopted(system, &block.name);
        Self {
            dev: block.namespace.clone(),
            mode: Some(block.mode.name().to_owned()),
            map: block.map,
            size: Some(block.size),
            uuid: block.uuid.clone(),
            align: block.align,
            resource: block.start(system),
            blockdev: Some(block.name.clone()),
            adopted,
            persistent: noted.has(system, &block.name),
            filesystem: match mounted {
                Some(mount) => Some(mount.kind.clone()),
                None => superblock::read(system, &block.name).map(|fs| fs.kind().to_owned()),
            },
            mountpoints: Some(
                mounts
                    .iter()
                    .map(|mount| mount.point.display().to_string())
                    .collect(),
            ),
            dax: mounted.map(|mount| mount.dax().unwrap_or("inode").to_owned()),
            max_order: system.read(block.config().join("max_order")).ok(),
            note: waits
                .unbind(system, block)
                .or_else(|| waits.for_device(&block.name, device::numbers(&block.number)))
                .or_else(|| failure(system, &block.name, adopted)),
            ..Self::default()
        }
    }

    fn of_dax(system: &System, dax: &Dax, noted: &Noted, waits: &Waits) -> Self {
        Self {
            dev: dax.namespace.clone(),
            mode: Some(dax.mode().to_owned()),
            size: Some(dax.size),
            uuid: dax.uuid.clone(),
            align: dax.align,
            resource: dax.start,
            chardev: Some(dax.name.clone()),
            target_node: dax.target_node,
            adopted: Some(dax.is_adopted()),
            driver: dax.driver.clone(),
            persistent: noted.has(system, &dax.name),
            note: waits
                .for_device(&dax.name, dax.number)
                .or_else(|| failure(system, &dax.name, Some(dax.is_adopted())))
                .or_else(|| {
                    let advice = || format!("{}: {}", device::NO_DRIVER, dax.driver_advice());
                    dax.driver.is_none().then(advice)
                }),
            ..Self::default()
        }
    }

    /// A directory in configfs, with no device.
    fn of_directory(system: &System, name: &str) -> Self {
        Self {
            blockdev: Some(name.to_owned()),
            adopted: device::is_adopted(system, name),
            persistent: Some(false),
            note: Some("there is no such device".to_owned()),
            ..Self::default()
        }
    }

    /// Something that is to be adopted at boot, with no device: another one may have its name.
    fn of_adoption(adoption: &Adoption) -> Self {
        let name = Some(adoption.device.clone());
        let (blockdev, chardev) = match adoption.device.starts_with("dax") {
            true => (None, name),
            false => (name, None),
        };
        Self {
            uuid: adoption.uuid.clone(),
            blockdev,
            chardev,
            adopted: Some(false),
            persistent: Some(true),
            note: Some(format!(
                "{}, which is to be adopted at boot: rdax release --persist {} forgets it",
                adoption.missing(),
                adoption.identity()
            )),
            ..Self::default()
        }
    }

    fn name(&self) -> &str {
        let name = self.blockdev.as_deref().or(self.chardev.as_deref());
        name.unwrap_or_default()
    }

    fn row(&self) -> Vec<String> {
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let mountpoints = self
            .mountpoints
            .as_ref()
            .filter(|points| !points.is_empty());
        vec![
            self.name().to_owned(),
            or_none(self.mode.clone()),
            or_none(self.size.map(size::amount)),
            or_none(self.align.map(size::amount)),
            yes_or_no(self.adopted),
            yes_or_no(self.persistent),
            or_none(self.max_order.clone()),
            or_none(self.filesystem.clone()),
            or_none(self.dax.clone()),
            or_none(mountpoints.map(|points| points.join(","))),
        ]
    }
}

fn yes_or_no(is: Option<bool>) -> String {
    match is {
        Some(true) => "yes",
        Some(false) => "no",
        None => "?",
    }
    .to_owned()
}

/// Why an adoption at boot failed, unless it was made since.
fn failure(system: &System, name: &str, adopted: Option<bool>) -> Option<String> {
    match adopted {
        Some(true) => None,
        _ => persist::why_failed(system, name),
    }
}

fn entries(system: &System, noted: &Noted) -> Vec<Entry> {
    let waits = Waits::now(system);
    let (blocks, lost) = device::blocks(system);
    let daxes = device::dax_devices(system);
    let mut entries: Vec<Entry> = blocks
        .iter()
        // What daxctl calls a device has no block device of use.
        .filter(|block| block.mode != Mode::Devdax)
        .map(|block| Entry::of_block(system, block, noted, &waits))
        .collect();
    let of_dax = |dax| Entry::of_dax(system, dax, noted, &waits);
    entries.extend(daxes.iter().map(of_dax));
    // That a note for one is another's, too.
    for entry in &mut entries {
        let twins = device::twins(&blocks, &daxes, entry.name(), entry.uuid.as_deref());
        if entry.note.is_none() && !twins.is_empty() {
            entry.note = Some(device::twins_text(&twins));
        }
    }
    entries.extend(lost.iter().map(|name| Entry::of_directory(system, name)));
    let missing = noted.missing(&blocks, &daxes);
    entries.extend(missing.into_iter().map(Entry::of_adoption));
    entries
}

/// Lists devices.
pub fn run(system: &System, arguments: &cli::List) -> Result<ExitCode> {
    let noted = persist::all(system);
    let mut entries = entries(system, &noted);
    if !arguments.devices.is_empty() {
        let mut wanted = Vec::new();
        for given in &arguments.devices {
            let name = device::named(system, given)?;
            if !entries.iter().any(|entry| entry.name() == name) {
                bail!("{name}: there is no such pmem or dax device (rdax list)");
            }
            wanted.push(name);
        }
        entries.retain(|entry| wanted.iter().any(|name| name == entry.name()));
    }
    if arguments.json {
        output::json(&entries)?;
    } else if entries.is_empty() {
        output::print(
            "There are no pmem and no dax devices. ndctl list -N -i tells of namespaces that are not \
             enabled; docs/guide.md says how to try rdax without pmem.\n",
        )?;
    } else {
        output::print(&text(&entries))?;
    }
    noted.wrong.iter().for_each(output::complain);
    Ok(ExitCode::SUCCESS)
}

fn text(entries: &[Entry]) -> String {
    let header = [
        "DEVICE",
        "MODE",
        "SIZE",
        "ALIGN",
        "ADOPTED",
        "BOOT",
        "MAX",
        "FILESYSTEM",
        "DAX",
        "MOUNTED",
    ];
    let rows = entries.iter().map(Entry::row).collect();
    let mut text = table::plain(&header, &[2, 3], rows);
    for entry in entries {
        if let Some(note) = &entry.note {
            text += &format!("{}: {note}\n", entry.name());
        }
    }
    text
}
