// SPDX-License-Identifier: GPL-2.0

//! Adoptions that are made at every boot: a file for each in `/etc/rdax.d`.
//!
//! The numbers in the names of pmem devices may change from one boot to the next, so a file also
//! says which namespace is meant, where that has an identity.

use crate::{
    device::Block,
    system::{
        System,
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
    path::PathBuf, //
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

    fn print(&self) -> String {
        let mut text = format!(
            "# Adopted by rdax at every boot; rdax release --persist {0} removes this file.\n\
             device={0}\n",
            self.device
        );
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

    fn file(name: &str) -> String {
        format!("{PERSISTENT}/{name}.conf")
    }

    /// Notes it, in place of what was noted for the device before.
    pub fn keep(&self, system: &System) -> Result<PathBuf> {
        let dir = system.path(PERSISTENT);
        fs::create_dir_all(&dir).with_context(|| format!("{PERSISTENT} cannot be made"))?;
        let file = Self::file(&self.device);
        let path = system.path(&file);
        // A boot sees the old file or the new one, whole.
        let new = path.with_extension("conf.new");
        fs::write(&new, self.print())
            .and_then(|()| fs::rename(&new, &path))
            .with_context(|| format!("{file} cannot be written"))?;
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

/// What is noted for the device of this name, which need not be there.
pub fn of(system: &System, name: &str) -> Option<(PathBuf, Adoption)> {
    let block = Block::find(system, name);
    all(system)
        .0
        .into_iter()
        .find(|(_, adoption)| match &block {
            Some(block) => adoption.is_for(block),
            None => adoption.device == name,
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
