// SPDX-License-Identifier: GPL-2.0

//! Adoptions that are made at every boot: a file for each in `/etc/rdax.d`.
//!
//! The numbers in the names of pmem devices may change from one boot to the next, so a file says which
//! namespace is meant, and is called by that, where it has an identity.

use crate::{
    device::{
        Block,
        Dax, //
    },
    system::{
        self,
        System,
        FAILED,
        PERSISTENT, //
    }, //
};
use anyhow::{
    anyhow,
    bail,
    Context,
    Result, //
};
use std::{
    fs,
    io,
    path::{
        Path,
        PathBuf, //
    }, //
};

/// What an administrator may set for a device; the values are those of the files in configfs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Switches {
    pub max_order: Option<String>,
    pub fault_around: Option<String>,
    pub write_order: Option<String>,
}

impl Switches {
    /// Those that are set, with the name of each.
    pub fn set(&self) -> impl Iterator<Item = (&'static str, &str)> {
        [
            ("max_order", &self.max_order),
            ("fault_around", &self.fault_around),
            ("write_order", &self.write_order),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.as_deref()?)))
    }
}

/// An adoption that is made at every boot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Adoption {
    /// The name that the device had when this was noted.
    pub device: String,
    /// The identity of the namespace.
    pub uuid: Option<String>,
    /// The number of the partition of it, if it is one.
    pub partition: Option<u64>,
    pub switches: Switches,
}

impl Adoption {
    pub fn of_block(block: &Block, switches: &Switches) -> Self {
        Self {
            device: block.name.clone(),
            uuid: block.uuid.clone(),
            partition: block.partition,
            switches: switches.clone(),
        }
    }

    pub fn of_name(name: &str) -> Self {
        Self {
            device: name.to_owned(),
            ..Self::default()
        }
    }

    /// Whether this device is meant.
    pub fn is_for(&self, block: &Block) -> bool {
        match &self.uuid {
            Some(uuid) => block.uuid.as_ref() == Some(uuid) && block.partition == self.partition,
            None => block.name == self.device,
        }
    }

    fn parse(text: &str) -> Result<Self> {
        let mut adoption = Self::default();
        for line in text.lines() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (key, value) = line
                .split_once('=')
                .ok_or_else(|| anyhow!("'{line}' is no line of the form NAME=VALUE"))?;
            let value = value.trim().to_owned();
            match key.trim() {
                "device" => adoption.device = value,
                "uuid" => adoption.uuid = Some(value),
                "partition" => {
                    let number = value.parse();
                    adoption.partition =
                        Some(number.with_context(|| format!("'{line}' has no number"))?);
                }
                "max_order" => adoption.switches.max_order = Some(value),
                "fault_around" => adoption.switches.fault_around = Some(value),
                "write_order" => adoption.switches.write_order = Some(value),
                other => bail!("'{other}' is not known"),
            }
        }
        if adoption.device.is_empty() {
            bail!("there is no line device=NAME");
        }
        Ok(adoption)
    }

    /// Whether both are for the same device.
    fn is_for_same(&self, other: &Self) -> bool {
        match (&self.uuid, &other.uuid) {
            (Some(one), Some(another)) => one == another && self.partition == other.partition,
            (None, None) => self.device == other.device,
            _ => false,
        }
    }

    /// What it is for, when there is no such device.
    pub fn missing(&self) -> String {
        match (&self.uuid, self.partition) {
            (None, _) => "there is no such device".to_owned(),
            (Some(uuid), None) => format!("there is no device with the namespace {uuid}"),
            (Some(uuid), Some(number)) => {
                format!("there is no partition {number} on the namespace {uuid}")
            }
        }
    }

    fn print(&self) -> String {
        let name = self.uuid.as_ref().unwrap_or(&self.device);
        let mut text = format!(
            "# Adopted by rdax at every boot; rdax release --persist {name} removes this file.\n"
        );
        if self.uuid.is_some() {
            text += "# The namespace counts; this is the name that its device had before.\n";
        }
        text += &format!("device={}\n", self.device);
        if let Some(uuid) = &self.uuid {
            text += &format!("uuid={uuid}\n");
        }
        if let Some(number) = self.partition {
            text += &format!("partition={number}\n");
        }
        for (name, value) in self.switches.set() {
            text += &format!("{name}={value}\n");
        }
        text
    }

    fn file(&self) -> String {
        match (&self.uuid, self.partition) {
            (None, _) => format!("{PERSISTENT}/{}.conf", self.device),
            (Some(uuid), None) => format!("{PERSISTENT}/{uuid}.conf"),
            (Some(uuid), Some(number)) => format!("{PERSISTENT}/{uuid}p{number}.conf"),
        }
    }

    /// Notes it, in place of what was noted for the device before.
    pub fn keep(&self, system: &System) -> Result<PathBuf> {
        let file = self.file();
        let path = system.path(&file);
        let before = all(system).0;
        if let Some((_, other)) = before.iter().find(|(known, _)| *known == path) {
            if !self.is_for_same(other) {
                bail!(
                    "{file} is for another device ({}): give it another name, such as that with .conf",
                    other.uuid.as_ref().unwrap_or(&other.device)
                );
            }
        }
        let dir = system.path(PERSISTENT);
        fs::create_dir_all(&dir)
            .map_err(|error| anyhow!("{PERSISTENT} cannot be made: {}", system::reason(&error)))?;
        // A boot sees the old file or the new one, whole.
        let new = path.with_extension("conf.new");
        fs::write(&new, self.print())
            .and_then(|()| fs::rename(&new, &path))
            .map_err(|error| anyhow!("{file} cannot be written: {}", system::reason(&error)))?;
        for (other, adoption) in &before {
            if *other != path && self.is_for_same(adoption) {
                forget(other)?;
            }
        }
        Ok(path)
    }
}

/// All that are noted, and what is wrong with files that cannot be understood.
pub fn all(system: &System) -> (Vec<(PathBuf, Adoption)>, Vec<String>) {
    let (mut found, mut wrong) = (Vec::new(), Vec::new());
    for name in system.names(PERSISTENT) {
        if !name.ends_with(".conf") {
            continue;
        }
        let file = format!("{PERSISTENT}/{name}");
        let read = system.read(&file).map_err(anyhow::Error::from);
        match read.and_then(|text| Adoption::parse(&text)) {
            Ok(adoption) => found.push((system.path(&file), adoption)),
            Err(error) => wrong.push(format!("{file}: {error}")),
        }
    }
    (found, wrong)
}

/// Where it is noted why the adoption of a device at boot failed.
pub fn failure(system: &System, name: &str) -> PathBuf {
    system.path(format!("{FAILED}/{name}.failed"))
}

/// Notes it.
pub fn note_failure(system: &System, name: &str, why: &str) -> io::Result<()> {
    let path = failure(system, name);
    fs::create_dir_all(path.parent().unwrap_or(&path))?;
    fs::write(&path, format!("{why}\n"))
}

/// Why the adoption of a device at boot failed.
pub fn why_failed(system: &System, name: &str) -> Option<String> {
    let text = fs::read_to_string(failure(system, name)).ok()?;
    let text = text.trim();
    let text = text.strip_prefix(&format!("{name}: ")).unwrap_or(text);
    Some(format!("at boot: {text}"))
}

/// Removes a file.
pub fn forget(path: &Path) -> Result<()> {
    fs::remove_file(path).map_err(|error| {
        anyhow!(
            "{} cannot be removed: {}",
            path.display(),
            system::reason(&error)
        )
    })
}

/// What is noted for the device of this name, or for the namespace of this identity, which need not be there.
pub fn of(system: &System, name: &str) -> Option<(PathBuf, Adoption)> {
    let block = Block::find(system, name);
    let is_there = block.is_some() || Dax::find(system, name).is_some();
    all(system)
        .0
        .into_iter()
        .find(|(_, adoption)| match (&block, &adoption.uuid) {
            (Some(block), _) => adoption.is_for(block),
            (None, Some(uuid)) => uuid == name || !is_there && adoption.device == name,
            (None, None) => adoption.device == name,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let system = System::new(dir.path());
        let adoption = Adoption {
            device: "pmem0p1".to_owned(),
            uuid: Some("fd65c71f-299d-4b11-9a9f-92d92a164afb".to_owned()),
            partition: Some(1),
            switches: Switches {
                max_order: Some("pmd".to_owned()),
                fault_around: None,
                write_order: Some("4".to_owned()),
            },
        };
        let path = adoption.keep(&system).unwrap();
        let (found, wrong) = all(&system);
        assert_eq!(found, [(path, adoption)]);
        assert!(wrong.is_empty());
    }

    fn adoption(device: &str, uuid: &str) -> Adoption {
        Adoption {
            uuid: Some(uuid.to_owned()),
            ..Adoption::of_name(device)
        }
    }

    #[test]
    fn two_devices_of_the_same_name_have_a_file_each() {
        let dir = tempfile::tempdir().unwrap();
        let system = System::new(dir.path());
        // It had this name at another boot.
        let one = adoption("pmem0", "1111").keep(&system).unwrap();
        let other = adoption("pmem0", "2222").keep(&system).unwrap();
        assert_ne!(one, other);
        assert_eq!(all(&system).0.len(), 2);
        // Noted again under another name, or in a file of an administrator's, it still has one.
        fs::rename(&one, one.with_file_name("mine.conf")).unwrap();
        adoption("pmem1", "1111").keep(&system).unwrap();
        assert_eq!(all(&system).0.len(), 2);
        // Nobody's is overwritten.
        fs::rename(&other, &one).unwrap();
        let error = adoption("pmem1", "1111").keep(&system).unwrap_err();
        assert!(
            error.to_string().contains("another device (2222)"),
            "{error}"
        );
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (text, part) in [
            ("", "device=NAME"),
            ("pmem0", "NAME=VALUE"),
            ("device=pmem0\ncolour=red\n", "colour"),
            ("device=pmem0p1\npartition=first", "number"),
        ] {
            let error = Adoption::parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(
            Adoption::parse("# a comment\n\n device = pmem3 \n").unwrap(),
            Adoption::of_name("pmem3")
        );
    }
}
