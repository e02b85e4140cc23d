// SPDX-License-Identifier: GPL-2.0

//! Block devices on persistent memory, and devices on the dax bus, as sysfs tells of them.

use crate::system::{
    name_of,
    System,
    CONFIG, //
};
use anyhow::{
    bail,
    Result, //
};
use serde::Serialize;
use std::{
    os::unix::fs::{
        FileTypeExt,
        MetadataExt, //
    },
    path::{
        Path,
        PathBuf, //
    }, //
};

/// What a namespace is used as; the names are those of ndctl.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    Fsdax,
    Devdax,
    Sector,
    Raw,
    /// Not a namespace's own device: one that is made of others.
    #[serde(rename = "dm")]
    Mapped,
    #[serde(rename = "unknown")]
    Other,
}

impl Mode {
    pub fn name(self) -> &'static str {
        match self {
            Self::Fsdax => "fsdax",
            Self::Devdax => "devdax",
            Self::Sector => "sector",
            Self::Raw => "raw",
            Self::Mapped => "dm",
            Self::Other => "unknown",
        }
    }
}

/// A block device.
#[derive(Debug, Clone)]
pub struct Block {
    /// The kernel's name, as in `/dev`.
    pub name: String,
    /// `major:minor`.
    pub number: String,
    pub mode: Mode,
    /// In bytes.
    pub size: u64,
    /// The name of the namespace, as ndctl has it.
    pub namespace: Option<String>,
    /// What identifies the namespace across reboots.
    pub uuid: Option<String>,
    /// The alignment that the namespace was made with, in bytes.
    pub align: Option<u64>,
    /// Where the page map is, as ndctl calls it: `mem` or `dev`.
    pub map: Option<&'static str>,
    /// The directory in sysfs of what it is on, and where on that it begins, in bytes.
    place: Option<(PathBuf, u64)>,
    /// Whether no driver has what it is on any more: it is being unbound, which may take long.
    pub goes: bool,
    /// Whether it was given to others, such as device mapper; their names.
    pub holders: Vec<String>,
    /// The partitions that it is divided into.
    pub partitions: Vec<String>,
    /// Its number, if it is a partition.
    pub partition: Option<u64>,
}

impl Block {
    /// The device of this name, if there is one.
    pub fn find(system: &System, name: &str) -> Option<Self> {
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            return None;
        }
        Self::at(system, &system.resolve(format!("/sys/class/block/{name}"))?)
    }

    /// What has it, and is to be adopted in its place.
    pub fn is_part_of(&self) -> Option<String> {
        let holders = self.holders.join(", ");
        (!holders.is_empty())
            .then(|| format!("it is part of {holders}; adopt that instead, or take it apart first"))
    }

    /// The same, or that it is divided.
    pub fn others(&self) -> Option<String> {
        let partitions = self.partitions.join(", ");
        let divided = (!partitions.is_empty())
            .then(|| format!("it has partitions; adopt these instead: {partitions}"));
        self.is_part_of().or(divided)
    }

    /// The device of this number (`major:minor`), if it is a block device.
    pub fn by_number(system: &System, number: &str) -> Option<Self> {
        Self::at(system, &system.resolve(format!("/sys/dev/block/{number}"))?)
    }

    fn at(system: &System, dir: &Path) -> Option<Self> {
        let name = name_of(dir);
        let number = system.read(dir.join("dev")).ok()?;
        let size = system.number(dir.join("size"))? * 512;
        let partition = system.number(dir.join("partition"));
        let (disk, offset) = if partition.is_some() {
            let start = system.number(dir.join("start"))?;
            (dir.parent()?.to_path_buf(), start * 512)
        } else {
            (dir.to_path_buf(), 0)
        };
        let mut block = Self {
            name,
            number,
            mode: Mode::Other,
            size,
            namespace: None,
            uuid: None,
            align: None,
            map: None,
            place: None,
            goes: false,
            holders: system.names(dir.join("holders")),
            partitions: partitions(system, dir),
            partition,
        };
        if system.is_dir(dir.join("dm")) {
            block.mode = Mode::Mapped;
        } else if let Some(parent) = system.resolve(disk.join("device")) {
            block.ask_namespace(system, &parent, offset);
        }
        if block.namespace.is_none() && is_pmem(&name_of(&disk)) {
            // A region that is unbound takes the attributes of what is in it away before anything is waited for,
            // and the kernel's driver of pmem alone calls disks so.
            block.goes = !system.exists(disk.join("device/driver"));
        }
        Some(block)
    }

    /// `dir` is what the disk's driver is bound to, `offset` where on the disk it begins, in bytes.
    ///
    /// Nothing is read here that takes the lock of a device of the nvdimm bus (`mode` of a namespace, `size`
    /// and `resource` of a page map): whoever unbinds it holds that, for as long as somebody uses a page.
    fn ask_namespace(&mut self, system: &System, dir: &Path, offset: u64) {
        let kind = system.read(dir.join("devtype")).unwrap_or_default();
        let text = |name: &str| {
            system
                .read(dir.join(name))
                .ok()
                .filter(|text| !text.is_empty())
        };
        self.mode = match kind.as_str() {
            "nd_pfn" => Mode::Fsdax,
            "nd_btt" => Mode::Sector,
            // It has a disk of its own, so nobody else has claimed it; DAX needs a page map, which the kernel
            // makes by itself then.
            kind if kind.starts_with("nd_namespace") => match self.is_dax_capable(system) {
                Some(true) => Mode::Fsdax,
                _ => Mode::Raw,
            },
            _ => return,
        };
        self.namespace = text("namespace").or_else(|| Some(name_of(dir)));
        self.uuid = text("uuid");
        self.align = system.number(dir.join("align"));
        self.map = match (kind.as_str(), self.mode) {
            ("nd_pfn", _) => match text("mode").as_deref() {
                Some("ram") => Some("mem"),
                Some("pmem") => Some("dev"),
                _ => None,
            },
            (_, Mode::Fsdax) => Some("mem"),
            _ => None,
        };
        self.goes = !system.exists(dir.join("driver"));
        self.place = Some((dir.to_path_buf(), offset));
    }

    /// The physical address of the first byte; only root is told, and nobody while it is unbound.
    pub fn start(&self, system: &System) -> Option<u64> {
        let (dir, offset) = self.place.as_ref()?;
        // Reading `resource` waits for whoever unbinds the device, which cannot be interrupted. The link goes
        // before anything is waited for.
        if !system.exists(dir.join("driver")) {
            return None;
        }
        // 0 is what those are told who may not know.
        system
            .number(dir.join("resource"))
            .filter(|&start| start != 0)
            .and_then(|start| start.checked_add(*offset))
    }

    /// Whether the kernel says that it can be used for DAX.
    pub fn is_dax_capable(&self, system: &System) -> Option<bool> {
        let disk = system.resolve(format!("/sys/class/block/{}", self.name))?;
        let disk = if self.partition.is_some() {
            disk.parent()?
        } else {
            &disk
        };
        Some(system.number(disk.join("queue/dax"))? == 1)
    }

    /// It, its partitions, and what is made of any of these, such as by device mapper.
    pub fn family(&self, system: &System) -> Vec<Self> {
        let mut family = vec![self.clone()];
        let mut number = 0;
        // Ends: each device is there once.
        while let Some(block) = family.get(number) {
            let others = [&block.partitions[..], &block.holders[..]].concat();
            for name in others {
                if family.iter().all(|known| known.name != name) {
                    family.extend(Self::find(system, &name));
                }
            }
            number += 1;
        }
        family
    }

    /// Its directory in configfs.
    pub fn config(&self) -> PathBuf {
        config(&self.name)
    }
}

/// Whether the kernel's driver of pmem calls a disk so.
fn is_pmem(disk: &str) -> bool {
    let number = disk.strip_prefix("pmem").unwrap_or_default();
    number.starts_with(|sign: char| sign.is_ascii_digit())
}

/// The directory in configfs of a block device's name.
pub fn config(name: &str) -> PathBuf {
    Path::new(CONFIG).join(name)
}

/// Whether the block device of this name is adopted; `None` if it cannot be said.
pub fn is_adopted(system: &System, name: &str) -> Option<bool> {
    if !system.is_dir(config(name)) {
        return Some(false);
    }
    Some(system.number(config(name).join("adopt"))? == 1)
}

/// All block devices of namespaces, their partitions, and whatever else has a directory in configfs;
/// and the names of directories for which there is no device.
pub fn blocks(system: &System) -> (Vec<Block>, Vec<String>) {
    let mut found = Vec::new();
    for name in system.names("/sys/class/block") {
        if let Some(block) = Block::find(system, &name) {
            if block.namespace.is_some() || block.goes || system.is_dir(block.config()) {
                found.push(block);
            }
        }
    }
    let mut lost = system.names(CONFIG);
    lost.retain(|name| {
        system.is_dir(config(name)) && found.iter().all(|block| &block.name != name)
    });
    (found, lost)
}

/// A device on the dax bus.
#[derive(Debug, Clone)]
pub struct Dax {
    pub name: String,
    /// In bytes.
    pub size: u64,
    pub align: Option<u64>,
    pub start: Option<u64>,
    pub target_node: Option<u64>,
    /// The namespace, unless the memory is of another kind.
    pub namespace: Option<String>,
    /// What identifies the namespace across reboots.
    pub uuid: Option<String>,
    /// The driver that it is bound to.
    pub driver: Option<String>,
    /// Of its character device.
    pub number: Option<(u32, u32)>,
}

/// Of a device whose driver lets go of it.
pub const GOES: &str = "is being unbound";

/// Of a device on the dax bus.
pub const NO_DRIVER: &str = "no driver has it, so nobody can open it";

/// The directory of the dax bus.
pub const DAX_BUS: &str = "/sys/bus/dax";

impl Dax {
    pub fn find(system: &System, name: &str) -> Option<Self> {
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            return None;
        }
        let dir = system.resolve(format!("{DAX_BUS}/devices/{name}"))?;
        let above = dir.parent()?;
        Some(Self {
            name: name.to_owned(),
            size: system.number(dir.join("size"))?,
            align: system.number(dir.join("align")),
            start: system
                .number(dir.join("resource"))
                .filter(|&start| start != 0),
            target_node: system.number(dir.join("target_node")),
            namespace: system.read(above.join("namespace")).ok(),
            uuid: system
                .read(above.join("uuid"))
                .ok()
                .filter(|uuid| !uuid.is_empty()),
            driver: system
                .resolve(dir.join("driver"))
                .map(|driver| name_of(&driver)),
            number: system
                .read(dir.join("dev"))
                .ok()
                .and_then(|text| numbers(&text)),
        })
    }

    pub fn is_adopted(&self) -> bool {
        self.driver.as_deref() == Some("rdax")
    }

    /// What to do where no driver has it.
    pub fn driver_advice(&self) -> String {
        let name = &self.name;
        format!(
            "rdax adopt {name}; or, for the kernel's own driver, modprobe device_dax and \
             echo {name} >{DAX_BUS}/drivers/device_dax/bind"
        )
    }

    /// `devdax`, or `system-ram` where the memory is ordinary memory, as daxctl has it.
    pub fn mode(&self) -> &'static str {
        match self.driver.as_deref() {
            Some("kmem") => "system-ram",
            _ => "devdax",
        }
    }
}

/// Those of these devices of which what identifies this one is said, too: the kernel takes the copy of a namespace.
pub fn twins(blocks: &[Block], daxes: &[Dax], name: &str, uuid: Option<&str>) -> Vec<String> {
    let Some(uuid) = uuid else {
        return Vec::new();
    };
    let this = blocks.iter().find(|block| block.name == name);
    let partition = this.and_then(|block| block.partition);
    let blocks = blocks
        .iter()
        .map(|block| (&block.name, &block.uuid, block.partition));
    let daxes = daxes.iter().map(|dax| (&dax.name, &dax.uuid, None));
    blocks
        .chain(daxes)
        .filter(|(other, known, number)| {
            *other != name && known.as_deref() == Some(uuid) && *number == partition
        })
        .map(|(other, ..)| other.clone())
        .collect()
}

/// The same of all devices.
pub fn all_twins(system: &System, name: &str, uuid: Option<&str>) -> Vec<String> {
    twins(&blocks(system).0, &dax_devices(system), name, uuid)
}

/// What is said of a device that has twins.
pub fn twins_text(twins: &[String]) -> String {
    format!(
        "its namespace has the same UUID as that of {}: what is noted of one for the boot is of all; ndctl \
         create-namespace -f -e NAMESPACE makes one anew, with another, and erases it",
        twins.join(", ")
    )
}

/// The numbers in `major:minor`.
pub fn numbers(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// All devices on the dax bus.
pub fn dax_devices(system: &System) -> Vec<Dax> {
    system
        .names(format!("{DAX_BUS}/devices"))
        .iter()
        .filter_map(|name| Dax::find(system, name))
        .collect()
}

/// The kernel's name of the block device that a node is.
fn name_of_node(system: &System, path: &Path) -> Option<String> {
    let status = path.metadata().ok()?;
    let number = status.rdev();
    let number = format!(
        "{}:{}",
        rustix::fs::major(number),
        rustix::fs::minor(number)
    );
    let is_block = status.file_type().is_block_device();
    is_block
        .then(|| Block::by_number(system, &number))?
        .map(|block| block.name)
}

/// The partitions of the disk that has this directory in sysfs.
fn partitions(system: &System, disk: &Path) -> Vec<String> {
    let mut names = system.names(disk);
    names.retain(|name| system.exists(disk.join(name).join("partition")));
    names.sort();
    names
}

/// The kernel's name of the device that somebody calls `given`: a name, a path in `/dev`, a link.
pub fn kernel_name(system: &System, given: &str) -> String {
    let path = if given.contains('/') {
        PathBuf::from(given)
    } else {
        Path::new("/dev").join(given)
    };
    // By its number, whatever the node is called.
    if let Some(name) = system
        .is_real()
        .then(|| name_of_node(system, &path))
        .flatten()
    {
        return name;
    }
    // A link such as /dev/disk/by-uuid/… leads to the device's own name.
    match system.resolve(&path) {
        Some(real) if real.starts_with("/dev") => name_of(&real),
        _ if given.starts_with("/dev/") => name_of(Path::new(given)),
        // What has the path of something else is not meant for the device of the same name.
        _ => given.to_owned(),
    }
}

/// As [`kernel_name`], where nothing but a device can be meant.
///
/// Errors: a path that does not lead to a device.
pub fn named(system: &System, given: &str) -> Result<String> {
    let name = kernel_name(system, given);
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        bail!("{given}: there is no such device (rdax list)");
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_devices() {
        assert_eq!(numbers("259:1"), Some((259, 1)));
        assert_eq!(numbers("pmem0"), None);
    }

    #[test]
    fn names_of_pmem_disks() {
        let are = ["pmem0", "pmem12s", "pmem0.1"];
        assert!(are.into_iter().all(is_pmem));
        assert!(!["pmem", "sda", "pmemory", "dm-0"].into_iter().any(is_pmem));
    }
}
