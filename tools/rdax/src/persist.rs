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
    output::harmless,
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
    fs::{
        self,
        File,
        OpenOptions, //
    },
    io::{
        self,
        ErrorKind,
        Read,
        Write, //
    },
    os::unix::fs::OpenOptionsExt,
    path::{
        Path,
        PathBuf, //
    },
    process,
    time::{
        SystemTime,
        UNIX_EPOCH, //
    }, //
};

/// No file of ours is as large, in bytes.
const MOST: u64 = 1 << 16;

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

    /// These, and where they say nothing, the others.
    pub fn or(&self, others: &Self) -> Self {
        let or = |one: &Option<String>, other: &Option<String>| one.clone().or(other.clone());
        Self {
            max_order: or(&self.max_order, &others.max_order),
            fault_around: or(&self.fault_around, &others.fault_around),
            write_order: or(&self.write_order, &others.write_order),
        }
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

    pub fn of_dax(dax: &Dax) -> Self {
        Self {
            device: dax.name.clone(),
            uuid: dax.uuid.clone(),
            ..Self::default()
        }
    }

    /// Whether this device is meant.
    pub fn is_for(&self, block: &Block) -> bool {
        self.is_for_device(&block.name, block.uuid.as_deref(), block.partition)
    }

    pub fn is_for_dax(&self, dax: &Dax) -> bool {
        self.is_for_device(&dax.name, dax.uuid.as_deref(), None)
    }

    fn is_for_device(&self, name: &str, uuid: Option<&str>, partition: Option<u64>) -> bool {
        match &self.uuid {
            Some(own) => uuid == Some(own) && partition == self.partition,
            None => name == self.device,
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
            if value.is_empty() {
                bail!("'{line}' has no value");
            }
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

    /// Whether the other one is for the same device, which is there and has this name.
    fn is_for_same(&self, other: &Self) -> bool {
        match (&self.uuid, &other.uuid) {
            (Some(one), Some(another)) => one == another && self.partition == other.partition,
            (_, None) => self.device == other.device,
            (None, Some(_)) => false,
        }
    }

    /// What it is known by, whether the device is there or not: the namespace, and which partition of it; or
    /// the name, where that has none.
    pub fn identity(&self) -> String {
        match (&self.uuid, self.partition) {
            (None, _) => self.device.clone(),
            (Some(uuid), None) => uuid.clone(),
            (Some(uuid), Some(number)) => format!("{uuid}p{number}"),
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
        let mut text = format!(
            "# Adopted by rdax at every boot; rdax release --persist {} removes this file.\n",
            self.identity()
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
        format!("{PERSISTENT}/{}.conf", self.identity())
    }

    /// Notes it; and which files have noted the device before, of which a boot would go by the first.
    pub fn keep(&self, system: &System) -> Result<(PathBuf, Vec<PathBuf>)> {
        let file = self.file();
        let path = system.path(&file);
        let before = all(system).adoptions;
        if let Some((_, other)) = before.iter().find(|(known, _)| *known == path) {
            if !self.is_for_same(other) {
                bail!(
                    "{file} is for another device ({}): give it another name, such as that with .conf",
                    other.identity()
                );
            }
        }
        let dir = system.path(PERSISTENT);
        fs::create_dir_all(&dir)
            .and_then(|()| sync(dir.parent().unwrap_or(&dir)))
            .map_err(|error| anyhow!("{PERSISTENT} cannot be made: {}", system::reason(&error)))?;
        replace(&path, &self.print())
            .map_err(|error| anyhow!("{file} cannot be written: {}", system::reason(&error)))?;
        let others = before
            .into_iter()
            .filter(|(other, adoption)| *other != path && self.is_for_same(adoption))
            .map(|(other, _)| other)
            .collect();
        Ok((path, others))
    }
}

/// Puts a file of this text there. A boot sees the old one or the new one, whole, after a power cut, too.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    // Somebody else may do the same at this moment.
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |now| now.as_nanos());
    let new = path.with_extension(format!("conf.{}-{now}.new", process::id()));
    let mut file = OpenOptions::new().write(true).create_new(true).open(&new)?;
    let done = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&new, path));
    if done.is_err() {
        // Nothing can be done if it stays, and nobody reads it.
        let _ = fs::remove_file(&new);
    }
    done?;
    sync(path.parent().unwrap_or(path))
}

/// Has what was changed in a directory stay.
fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// What a regular file says. Of a pipe nobody knows when, or whether, there is something to read.
fn read(path: &Path) -> io::Result<String> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
        .open(path)?;
    let invalid = |why| io::Error::new(ErrorKind::InvalidData, why);
    if !file.metadata()?.is_file() {
        return Err(invalid("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MOST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST {
        return Err(invalid("it is too large for a file of this kind"));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What is to be adopted at boot.
#[derive(Debug, Default)]
pub struct Noted {
    pub adoptions: Vec<(PathBuf, Adoption)>,
    /// What is wrong with what cannot be understood.
    pub wrong: Vec<String>,
    /// Whether there may be more that cannot be seen.
    pub is_part: bool,
}

impl Noted {
    /// What is noted for the device of this name; for what there is no device with this name, by its identity.
    pub fn of(&self, system: &System, name: &str) -> Vec<&(PathBuf, Adoption)> {
        let device = (Block::find(system, name), Dax::find(system, name));
        let is_meant = |adoption: &Adoption| match &device {
            (Some(block), _) => adoption.is_for(block),
            (None, Some(dax)) => adoption.is_for_dax(dax),
            (None, None) => adoption.identity() == name,
        };
        self.adoptions
            .iter()
            .filter(|(_, adoption)| is_meant(adoption))
            .collect()
    }

    /// The same, and what a device of this name that is there no more was; fails if it may be one or another.
    pub fn meant(&self, system: &System, name: &str) -> Result<Vec<&(PathBuf, Adoption)>> {
        let found = self.of(system, name);
        let is_there = || Block::find(system, name).is_some() || Dax::find(system, name).is_some();
        if !found.is_empty() || is_there() {
            return Ok(found);
        }
        let found: Vec<_> = self
            .adoptions
            .iter()
            .filter(|(_, adoption)| {
                adoption.device == name || adoption.uuid.as_deref() == Some(name)
            })
            .collect();
        let mut identities: Vec<String> = found
            .iter()
            .map(|(_, adoption)| adoption.identity())
            .collect();
        identities.sort();
        identities.dedup();
        if identities.len() > 1 {
            bail!(
                "{name}: this may be one of {}: give one of these",
                identities.join(", ")
            );
        }
        Ok(found)
    }

    /// What is noted for devices that are not there.
    pub fn missing(&self, blocks: &[Block], daxes: &[Dax]) -> Vec<&Adoption> {
        let is_there = |adoption: &Adoption| {
            blocks.iter().any(|block| adoption.is_for(block))
                || daxes.iter().any(|dax| adoption.is_for_dax(dax))
        };
        let adoptions = self.adoptions.iter().map(|(_, adoption)| adoption);
        adoptions.filter(|adoption| !is_there(adoption)).collect()
    }

    /// Whether something is noted for the device of this name; `None` if that cannot be said.
    pub fn has(&self, system: &System, name: &str) -> Option<bool> {
        match (self.of(system, name).is_empty(), self.is_part) {
            (false, _) => Some(true),
            (true, false) => Some(false),
            (true, true) => None,
        }
    }
}

/// All that is noted.
pub fn all(system: &System) -> Noted {
    let mut noted = Noted::default();
    let names = match system.try_names(PERSISTENT) {
        Ok(names) => names,
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            let reason = system::reason(&error);
            noted
                .wrong
                .push(format!("{PERSISTENT} cannot be read: {reason}"));
            noted.is_part = true;
            Vec::new()
        }
    };
    for name in names {
        if !name.as_encoded_bytes().ends_with(b".conf") {
            continue;
        }
        let file = format!("{PERSISTENT}/{}", name.to_string_lossy());
        let path = system.path(PERSISTENT).join(&name);
        let text = match read(&path) {
            Ok(text) => text,
            // It was forgotten since.
            Err(_) if fs::symlink_metadata(&path).is_err() => continue,
            Err(error) => {
                let text = format!("{file} cannot be read: {}", system::reason(&error));
                noted.wrong.push(harmless(&text, &[]));
                // Of what is no such file, a boot makes nothing either.
                noted.is_part |= error.kind() != ErrorKind::InvalidData && may_be_file(&path);
                continue;
            }
        };
        match Adoption::parse(&text) {
            Ok(adoption) => noted.adoptions.push((path, adoption)),
            Err(error) => noted.wrong.push(harmless(&format!("{file}: {error}"), &[])),
        }
    }
    noted
}

/// Whether a path leads to a regular file, as far as that can be said.
fn may_be_file(path: &Path) -> bool {
    use rustix::io::Errno;
    match fs::metadata(path) {
        Ok(status) => status.is_file(),
        // A link that leads nowhere, however often it is followed.
        Err(error) => ![Errno::NOENT, Errno::NOTDIR, Errno::LOOP, Errno::NAMETOOLONG]
            .map(|errno| Some(errno.raw_os_error()))
            .contains(&error.raw_os_error()),
    }
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
    let text = read(&failure(system, name)).ok()?;
    let text = text.trim();
    let text = text.strip_prefix(&format!("{name}: ")).unwrap_or(text);
    Some(format!("at boot: {text}"))
}

/// Removes a file, for good.
pub fn forget(path: &Path) -> Result<()> {
    let removed = match fs::remove_file(path) {
        // Somebody else has, at the same time.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    };
    let removed = removed.and_then(|()| sync(path.parent().unwrap_or(path)));
    removed.map_err(|error| {
        anyhow!(
            "{} cannot be removed: {}",
            path.display(),
            system::reason(&error)
        )
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
        let (path, _) = adoption.keep(&system).unwrap();
        let noted = all(&system);
        assert_eq!(noted.adoptions, [(path, adoption)]);
        assert!(noted.wrong.is_empty() && !noted.is_part);
    }

    fn adoption(device: &str, uuid: &str) -> Adoption {
        Adoption {
            uuid: Some(uuid.to_owned()),
            ..named(device)
        }
    }

    fn named(device: &str) -> Adoption {
        Adoption {
            device: device.to_owned(),
            ..Adoption::default()
        }
    }

    #[test]
    fn two_devices_of_the_same_name_have_a_file_each() {
        let dir = tempfile::tempdir().unwrap();
        let system = System::new(dir.path());
        // It had this name at another boot.
        let (one, _) = adoption("pmem0", "1111").keep(&system).unwrap();
        let (other, others) = adoption("pmem0", "2222").keep(&system).unwrap();
        assert!(others.is_empty());
        assert_ne!(one, other);
        assert_eq!(all(&system).adoptions.len(), 2);
        // Noted again under another name, it still has one, but for one of an administrator's, which is told.
        let mine = one.with_file_name("mine.conf");
        fs::rename(&one, &mine).unwrap();
        let (_, others) = adoption("pmem1", "1111").keep(&system).unwrap();
        assert_eq!(others, [mine.clone()]);
        forget(&mine).unwrap();
        assert_eq!(all(&system).adoptions.len(), 2);
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
            ("device=pmem0\nuuid=\n", "'uuid=' has no value"),
        ] {
            let error = Adoption::parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(
            Adoption::parse("# a comment\n\n device = pmem3 \n").unwrap(),
            named("pmem3")
        );
    }
}
