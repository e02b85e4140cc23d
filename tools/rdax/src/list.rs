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
    persist,
    size,
    superblock,
    system::{
        System,
        FAILED, //
    },
    table, //
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
    persistent: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    filesystem: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mountpoints: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dax: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_order: Option<String>,
    /// What an administrator should know.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

impl Entry {
    fn of_block(system: &System, block: &Block) -> Self {
        let mounts = mounts::of(system, &block.number);
        let mounted = mounts.first();
        Self {
            dev: block.namespace.clone(),
            mode: Some(block.mode.name().to_owned()),
            map: block.map,
            size: Some(block.size),
            uuid: block.uuid.clone(),
            align: block.align,
            resource: block.start,
            blockdev: Some(block.name.clone()),
            adopted: device::is_adopted(system, &block.name),
            persistent: persist::of(system, &block.name).is_some(),
            filesystem: match mounted {
                Some(mount) => Some(mount.kind.clone()),
                None => superblock::read(system, &block.name).map(|fs| fs.kind().to_owned()),
            },
            mountpoints: mounts
                .iter()
                .map(|mount| mount.point.display().to_string())
                .collect(),
            dax: mounted.map(|mount| mount.dax().unwrap_or("inode").to_owned()),
            max_order: system.read(block.config().join("max_order")).ok(),
            note: system.read(format!("{FAILED}/{}.failed", block.name)).ok(),
            ..Self::default()
        }
    }

    fn of_dax(system: &System, dax: &Dax) -> Self {
        Self {
            dev: dax.namespace.clone(),
            mode: Some(dax.mode().to_owned()),
            size: Some(dax.size),
            align: dax.align,
            resource: dax.start,
            chardev: Some(dax.name.clone()),
            target_node: dax.target_node,
            adopted: Some(dax.is_adopted()),
            driver: dax.driver.clone(),
            persistent: persist::of(system, &dax.name).is_some(),
            note: system
                .read(format!("{FAILED}/{}.failed", dax.name))
                .ok()
                .or_else(|| {
                    let advice = || format!("{}: {}", device::NO_DRIVER, dax.driver_advice());
                    dax.driver.is_none().then(advice)
                }),
            ..Self::default()
        }
    }

    /// A directory in configfs, or something that is to be adopted at boot, with no device.
    fn of_nothing(system: &System, name: &str) -> Self {
        Self {
            blockdev: Some(name.to_owned()),
            adopted: device::is_adopted(system, name),
            persistent: persist::of(system, name).is_some(),
            note: Some("there is no such device".to_owned()),
            ..Self::default()
        }
    }

    fn name(&self) -> &str {
        let name = self.blockdev.as_deref().or(self.chardev.as_deref());
        name.unwrap_or_default()
    }

    fn row(&self) -> Vec<String> {
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        vec![
            self.name().to_owned(),
            or_none(self.mode.clone()),
            or_none(self.size.map(size::amount)),
            or_none(self.align.map(size::amount)),
            match self.adopted {
                Some(true) => "yes",
                Some(false) => "no",
                None => "?",
            }
            .to_owned(),
            if self.persistent { "yes" } else { "no" }.to_owned(),
            or_none(self.max_order.clone()),
            or_none(self.filesystem.clone()),
            or_none(self.dax.clone()),
            or_none((!self.mountpoints.is_empty()).then(|| self.mountpoints.join(","))),
        ]
    }
}

fn entries(system: &System) -> Vec<Entry> {
    let (blocks, lost) = device::blocks(system);
    let daxes = device::dax_devices(system);
    let mut entries: Vec<Entry> = blocks
        .iter()
        // What daxctl calls a device has no block device of use.
        .filter(|block| block.mode != Mode::Devdax)
        .map(|block| Entry::of_block(system, block))
        .collect();
    entries.extend(daxes.iter().map(|dax| Entry::of_dax(system, dax)));
    entries.extend(lost.iter().map(|name| Entry::of_nothing(system, name)));
    for (_, adoption) in persist::all(system).0 {
        let there = blocks.iter().any(|block| adoption.is_for(block))
            || daxes.iter().any(|dax| dax.name == adoption.device)
            || lost.contains(&adoption.device);
        if !there {
            entries.push(Entry::of_nothing(system, &adoption.device));
        }
    }
    entries
}

/// Lists devices.
pub fn run(system: &System, arguments: &cli::List) -> Result<ExitCode> {
    let mut entries = entries(system);
    if !arguments.devices.is_empty() {
        let mut wanted = Vec::new();
        for given in &arguments.devices {
            let name = device::kernel_name(system, given);
            if !entries.iter().any(|entry| entry.name() == name) {
                bail!("{name}: there is no such pmem or dax device (rdax list)");
            }
            wanted.push(name);
        }
        entries.retain(|entry| wanted.iter().any(|name| name == entry.name()));
    }
    if arguments.json {
        output::json(&entries)?;
        return Ok(ExitCode::SUCCESS);
    }
    if entries.is_empty() {
        output::print(
            "There are no pmem and no dax devices. ndctl list -N -i tells of namespaces that are not \
             enabled; docs/guide.md says how to try rdax without pmem.\n",
        )?;
        return Ok(ExitCode::SUCCESS);
    }
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
    for entry in &entries {
        if let Some(note) = &entry.note {
            text += &format!("{}: {note}\n", entry.name());
        }
    }
    output::print(&text)?;
    for line in persist::all(system).1 {
        eprintln!("rdax: {line}");
    }
    Ok(ExitCode::SUCCESS)
}
