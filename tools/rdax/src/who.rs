// SPDX-License-Identifier: GPL-2.0

//! `rdax who`: what waits for pages of a file or of a device, and who has them.

use crate::{
    ask::{self, Module},
    cli,
    device::{self, Block, Dax},
    mounts,
    output,
    processes::{self, Process, Unclear, Users, Wanted},
    size::{amount, nanoseconds, PAGE},
    system::System,
    table,
    uapi::{dev, wait, WaitRecord},
    waits::{is_for_unknown, Kind, Waits}, //
};
use anyhow::{bail, Context, Result};
use serde::Serialize;
use std::{
    fs::File,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
    process::ExitCode,
    thread,
    time::Duration, //
};

/// The offset of a wait for no page of a file.
const NOWHERE: u64 = u64::MAX;

/// The kind of call that waits, by its number in the ioctl.
pub fn waiter(kind: u32) -> &'static str {
    match kind {
        wait::LAYOUT => "truncate or the like",
        wait::WRITE => "write",
        wait::FAULT => "page fault",
        wait::EVICTION => "end of a file",
        wait::DEVICE => "unbind",
        _ => "other",
    }
}

/// What a device on the dax bus is for its users.
const CHARACTER: &str = "character";

pub fn comm(record: &WaitRecord) -> String {
    let name: Vec<u8> = record
        .comm
        .iter()
        .copied()
        .take_while(|&byte| byte != 0)
        .collect();
    String::from_utf8_lossy(&name).into_owned()
}

#[derive(Serialize)]
pub struct Wait {
    pid: i32,
    tid: i32,
    name: String,
    what: &'static str,
    waited_ns: u64,
    /// `major:minor`
    device: String,
    /// Of what kind of device that is the number.
    #[serde(skip_serializing_if = "Option::is_none")]
    device_type: Option<&'static str>,
    #[serde(flatten)]
    called: Option<Called>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inode: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    physical: Option<u64>,
    folio: u64,
    references: u32,
    mappings: u32,
}

impl Wait {
    pub fn of(record: &WaitRecord, called: Option<Called>) -> Self {
        Self {
            pid: record.pid,
            tid: record.tid,
            name: comm(record),
            what: waiter(record.kind),
            waited_ns: record.waited,
            device: format!("{}:{}", record.dev_major, record.dev_minor),
            device_type: match record.dev_type {
                dev::BLOCK => Some("block"),
                dev::CHARACTER => Some(CHARACTER),
                _ => None,
            },
            called,
            inode: Some(record.inode).filter(|&inode| inode != 0),
            offset: Some(record.offset).filter(|&offset| offset != NOWHERE),
            physical: Some(record.physical).filter(|&address| address != 0),
            folio: PAGE.checked_shl(record.order).unwrap_or(u64::MAX),
            references: record.references,
            mappings: record.maps,
        }
    }
}

/// What the kernel calls a device, by the keys of the other commands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Called {
    Blockdev(String),
    Chardev(String),
}

impl Called {
    fn name(&self) -> &str {
        match self {
            Self::Blockdev(name) | Self::Chardev(name) => name,
        }
    }

    /// Of the device that somebody waits for, if that can be said.
    fn of(system: &System, record: &WaitRecord) -> Option<Self> {
        let number = (record.dev_major, record.dev_minor);
        match record.dev_type {
            dev::BLOCK => Block::by_number(system, &format!("{}:{}", number.0, number.1))
                .map(|block| Self::Blockdev(block.name)),
            dev::CHARACTER => device::dax_devices(system)
                .into_iter()
                .find(|dax| dax.number == Some(number))
                .map(|dax| Self::Chardev(dax.name)),
            _ => None,
        }
    }
}

/// A process that has something of what is asked about.
#[derive(Serialize)]
struct User<'a> {
    #[serde(flatten)]
    process: &'a Process,
    /// Of which device, where one is asked about.
    #[serde(flatten)]
    called: Option<&'a Called>,
}

#[derive(Serialize)]
struct Report<'a> {
    /// What is asked about, if it is a device: it, its partitions, and what is made of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    devices: Vec<&'a Called>,
    waits: Vec<Wait>,
    /// Those of other users are told to root only.
    all_waits: bool,
    /// Devices that are asked about and whose drivers let go of them.
    unbinding: Vec<&'a str>,
    processes: Vec<User<'a>>,
    /// Those of which it cannot be seen whether an io_uring has it.
    unclear_processes: Vec<&'a Unclear>,
    hidden_processes: usize,
}

/// `all`: whether those of other users are told, too.
pub fn waits_text(waits: &[Wait], all: bool) -> String {
    const NOT_ALL: &str = "(waits of other users are told to root only)\n";
    if waits.is_empty() {
        return match all {
            true => "nobody waits\n".to_owned(),
            false => format!("none of your own tasks waits\n{NOT_ALL}"),
        };
    }
    let rows = waits.iter().map(|wait| {
        vec![
            wait.pid.to_string(),
            wait.name.clone(),
            wait.what.to_owned(),
            nanoseconds(wait.waited_ns),
            match (&wait.called, wait.device_type) {
                (Some(called), _) => called.name().to_owned(),
                (None, Some(CHARACTER)) => format!("char {}", wait.device),
                (None, _) => wait.device.clone(),
            },
            wait.inode.map_or("-".to_owned(), |inode| inode.to_string()),
            match (wait.offset, wait.physical) {
                (Some(offset), _) => format!("{offset:#x}"),
                // No file has it any more, or several have.
                (None, Some(address)) => format!("physical {address:#x}"),
                (None, None) => "-".to_owned(),
            },
            amount(wait.folio),
            wait.references.to_string(),
            wait.mappings.to_string(),
        ]
    });
    let header = [
        "PID",
        "NAME",
        "WAITS IN",
        "SINCE",
        "DEVICE",
        "INODE",
        "FOR OFFSET",
        "OF",
        "REFERENCES",
        "MAPPINGS",
    ];
    let mut text = table::plain(&header, &[0, 8, 9], rows.collect());
    if !all {
        text += NOT_ALL;
    }
    text
}

/// Descriptors for people: the first ones, and how many they are if these are not all. All rows of a table are as wide as
/// its widest, and anybody may have a million.
fn descriptors(fds: &[u32]) -> String {
    const MOST: usize = 8;
    let first: Vec<String> = fds.iter().take(MOST).map(u32::to_string).collect();
    match fds.len() {
        0 => "-".to_owned(),
        all if all > MOST => format!("{},... ({all})", first.join(",")),
        _ => first.join(","),
    }
}

/// Who has something of what is asked about: of each of its devices, or of the file.
#[derive(Default)]
struct Found {
    by_device: Vec<(Option<Called>, Users)>,
}

impl Found {
    fn of(system: &System, target: &Target) -> Option<Self> {
        let by_device = match target {
            Target::Everything => return None,
            Target::File(_, wanted) => vec![(None, processes::find(system, wanted))],
            Target::Devices(devices) => devices
                .iter()
                .map(|device| {
                    let users = processes::find(system, &device.wanted);
                    (Some(device.called.clone()), users)
                })
                .collect(),
        };
        Some(Self { by_device })
    }

    fn users(&self) -> Vec<User<'_>> {
        let each = self.by_device.iter().flat_map(|(called, users)| {
            users.processes.iter().map(|process| User {
                process,
                called: called.as_ref(),
            })
        });
        each.collect()
    }

    /// Each once, though it was looked at for every device.
    fn unclear(&self) -> Vec<&Unclear> {
        let mut unclear: Vec<&Unclear> = Vec::new();
        for one in self.by_device.iter().flat_map(|(_, users)| &users.unclear) {
            if unclear.iter().all(|known| *known != one) {
                unclear.push(one);
            }
        }
        unclear
    }

    fn hidden(&self) -> usize {
        let each = self.by_device.iter().map(|(_, users)| users.hidden);
        each.max().unwrap_or(0)
    }

    /// `waited`: somebody waits, so that somebody has a page.
    fn text(&self, waited: bool) -> String {
        let several = self.by_device.len() > 1;
        let mut rows = Vec::new();
        for User { process, called } in self.users() {
            let mapped: u64 = process.mappings.iter().map(|vma| vma.length).sum();
            let mut row = vec![
                process.pid.to_string(),
                process.name.clone(),
                if mapped == 0 {
                    "-".to_owned()
                } else {
                    amount(mapped)
                },
                descriptors(&process.open),
                descriptors(&process.io_uring),
            ];
            if several {
                row.insert(2, called.map_or("-", Called::name).to_owned());
            }
            rows.push(row);
        }
        let mut text = if rows.is_empty() {
            let called = self
                .by_device
                .iter()
                .filter_map(|(called, _)| called.as_ref());
            let names: Vec<&str> = called.map(Called::name).collect();
            let what = match several {
                true => format!("any of {}", names.join(", ")),
                false => "it".to_owned(),
            };
            let mut text = format!("no process has {what} mapped, open, or in an io_uring\n");
            text += Unclear::UNSEEN;
            if waited && self.hidden() == 0 {
                text += "(whoever has a page of it has unmapped and closed it since: it lies in a pipe, for \
                         vmsplice, or a transfer is not over, of which /proc does not tell)\n";
            }
            text
        } else {
            let mut header = vec!["PID", "NAME", "MAPPED", "OPEN AS", "IO_URING"];
            if several {
                header.insert(2, "DEVICE");
            }
            table::plain(&header, &[0], rows)
        };
        text.extend(self.unclear().into_iter().map(Unclear::text));
        let hidden = self.hidden();
        if hidden != 0 {
            text += &format!("({hidden} processes may not be looked at)\n");
        }
        text
    }
}

/// A device that is asked about.
struct Device {
    called: Called,
    kind: Kind,
    number: (u32, u32),
    /// Whether its driver lets go of it.
    goes: bool,
    /// What its users are looked for by.
    wanted: Wanted,
}

impl Device {
    fn of_dax(system: &System, dax: &Dax) -> Result<Self> {
        let (major, minor) = dax.number.with_context(|| {
            format!(
                "{}: the kernel does not tell its number; rdax list {0}",
                dax.name
            )
        })?;
        Ok(Self {
            called: Called::Chardev(dax.name.clone()),
            kind: Kind::Character,
            number: (major, minor),
            goes: dax.driver.is_none(),
            wanted: Wanted::character(system, &dax.name, rustix::fs::makedev(major, minor)),
        })
    }

    fn of_block(block: &Block) -> Option<Self> {
        let (major, minor) = device::numbers(&block.number)?;
        Some(Self {
            called: Called::Blockdev(block.name.clone()),
            kind: Kind::Block,
            number: (major, minor),
            goes: block.goes,
            wanted: Wanted::Filesystem {
                device: rustix::fs::makedev(major, minor),
            },
        })
    }

    fn has(&self, wait: &WaitRecord) -> bool {
        self.kind.has(self.number, wait) || self.goes && is_for_unknown(wait)
    }
}

/// What is asked about.
enum Target {
    File(File, Wanted),
    /// One, its partitions, and what is made of them.
    Devices(Vec<Device>),
    Everything,
}

impl Target {
    fn of(system: &System, given: Option<&str>) -> Result<Self> {
        let Some(given) = given else {
            return Ok(Self::Everything);
        };
        // `pmem0` is the device wherever this is called, as for the other commands; `./pmem0` is not.
        if !given.contains('/') {
            if let Some(found) = Self::devices(system, given)? {
                return Ok(found);
            }
        }
        let path = Path::new(given);
        if let Ok(status) = path.metadata() {
            let kind = status.file_type();
            if kind.is_file() {
                let file = ask::open(path)?;
                // What was opened, whatever has the path now.
                let wanted = Wanted::file(&file.metadata()?);
                return Ok(Self::File(file, wanted));
            }
            if !kind.is_block_device() && !kind.is_char_device() {
                bail!("{given}: is neither a file nor a device");
            }
        }
        Self::devices(system, given)?
            .with_context(|| format!("{given}: there is no such file or device"))
    }

    /// The device that somebody calls `given`, if there is one, and what belongs to it.
    fn devices(system: &System, given: &str) -> Result<Option<Self>> {
        let name = device::kernel_name(system, given);
        if let Some(dax) = Dax::find(system, &name) {
            return Ok(Some(Self::Devices(vec![Device::of_dax(system, &dax)?])));
        }
        let Some(block) = Block::find(system, &name) else {
            return Ok(None);
        };
        let mut family = block.family(system);
        // The files of an XFS are on its own device by their numbers, wherever their blocks are.
        for mount in mounts::all(system) {
            let is_named = |path: &str| {
                let name = device::kernel_name(system, path);
                family.iter().any(|block| block.name == name)
            };
            if mount.option("rtdev").is_some_and(is_named)
                && family.iter().all(|block| block.number != mount.device)
            {
                family.extend(Block::by_number(system, &mount.device));
            }
        }
        let devices: Vec<Device> = family.iter().filter_map(Device::of_block).collect();
        if devices.is_empty() {
            bail!("{name}: the kernel does not tell its number");
        }
        Ok(Some(Self::Devices(devices)))
    }

    /// The block devices that it is about and whose driver lets go of them.
    fn going(&self, system: &System) -> Result<Vec<Block>> {
        let of_number =
            |number: (u32, u32)| Block::by_number(system, &format!("{}:{}", number.0, number.1));
        let mut found: Vec<Block> = match self {
            Self::Everything => device::blocks(system).0,
            Self::Devices(devices) => devices
                .iter()
                .filter(|device| device.kind == Kind::Block)
                .filter_map(|device| of_number(device.number))
                .collect(),
            Self::File(file, _) => {
                let number = file.metadata()?.dev();
                let number = (rustix::fs::major(number), rustix::fs::minor(number));
                of_number(number).into_iter().collect()
            }
        };
        found.retain(|block| block.goes);
        Ok(found)
    }

    fn waits(&self, module: &Module) -> Result<Vec<WaitRecord>> {
        match self {
            Self::File(file, _) => module.waits(Some(file)),
            Self::Everything => module.waits(None),
            Self::Devices(devices) => {
                let mut waits = module.waits(None)?;
                waits.retain(|wait| devices.iter().any(|device| device.has(wait)));
                Ok(waits)
            }
        }
    }
}

/// A task that tries again and again is not always seen.
fn waits(target: &Target, module: &Module) -> Result<Vec<WaitRecord>> {
    const PAUSE: Duration = Duration::from_millis(15);
    for _ in 0..4 {
        let found = target.waits(module)?;
        if !found.is_empty() {
            return Ok(found);
        }
        thread::sleep(PAUSE);
    }
    Ok(Vec::new())
}

/// Shows who waits, and who has the pages.
pub fn run(system: &System, arguments: &cli::Who) -> Result<ExitCode> {
    let target = Target::of(system, arguments.target.as_deref())?;
    let module = Module::open(system)?;
    let records = waits(&target, &module)?;
    let found: Vec<Wait> = records
        .iter()
        .map(|record| Wait::of(record, Called::of(system, record)))
        .collect();
    let all = system.has_admin();
    let going = target.going(system)?;
    let users = Found::of(system, &target);
    if arguments.json {
        let users = users.unwrap_or_default();
        output::json(&Report {
            devices: match &target {
                Target::Devices(devices) => devices.iter().map(|device| &device.called).collect(),
                _ => Vec::new(),
            },
            waits: found,
            all_waits: all,
            unbinding: going.iter().map(|block| block.name.as_str()).collect(),
            processes: users.users(),
            unclear_processes: users.unclear(),
            hidden_processes: users.hidden(),
        })?;
    } else {
        let mut text = waits_text(&found, all);
        // Those of which the table has no wait.
        let waits = Waits { records, all };
        for block in &going {
            if let Some(what) = waits.unbind_without_wait(system, block) {
                text += &format!("{}: {what}\n", block.name);
            }
        }
        if let Some(users) = &users {
            text += "\n";
            text += &users.text(!waits.records.is_empty());
        }
        output::print(&text)?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn record() -> WaitRecord {
        let mut record = WaitRecord {
            waited: 12_500_000_000,
            inode: 131,
            offset: 0x20_0000,
            kind: wait::LAYOUT,
            dev_major: 259,
            dev_minor: 1,
            pid: 42,
            tid: 43,
            order: 9,
            references: 1,
            ..WaitRecord::default()
        };
        record.comm[..8].copy_from_slice(b"truncate");
        record
    }

    #[test]
    fn waits_are_told() {
        let text = waits_text(&[Wait::of(&record(), None)], true);
        for part in [
            "42",
            "truncate or the like",
            "12.5 s",
            "259:1",
            "131",
            "0x200000",
            "2 MiB",
        ] {
            assert!(text.contains(part), "no '{part}' in:\n{text}");
        }
        let nowhere = WaitRecord {
            offset: NOWHERE,
            physical: 0x1_0140_0000,
            ..record()
        };
        let nowhere = Wait::of(&nowhere, None);
        assert_eq!(nowhere.offset, None);
        let text = waits_text(&[nowhere], true);
        assert!(text.contains("physical 0x101400000"), "{text}");
        assert_eq!(waits_text(&[], true), "nobody waits\n");
        for waits in [&[][..], &[Wait::of(&record(), None)]] {
            let text = waits_text(waits, false);
            assert!(text.contains("told to root only"), "{text}");
            assert!(!text.contains("nobody"), "{text}");
        }
    }

    /// One process, and one that is not clear.
    fn users() -> Users {
        Users {
            processes: vec![Process {
                pid: 7,
                name: "reader".to_owned(),
                open: vec![3, 4],
                ..Process::default()
            }],
            unclear: vec![Unclear {
                pid: 8,
                name: "ring".to_owned(),
                overlay: None,
            }],
            hidden: 2,
        }
    }

    #[test]
    fn users_are_told() {
        let of = |users| Found {
            by_device: vec![(None, users)],
        };
        let text = of(users()).text(true);
        assert!(text.contains("reader") && text.contains("3,4"), "{text}");
        assert!(text.contains("io_uring of ring (8)"), "{text}");
        assert!(text.contains("2 processes may not be looked at"), "{text}");
        assert!(of(Users::default()).text(true).contains("pipe"));
        assert!(!of(Users::default()).text(false).contains("pipe"));
    }

    #[test]
    fn descriptors_are_no_wider_than_a_table() {
        assert_eq!(descriptors(&[]), "-");
        assert_eq!(descriptors(&[1, 2, 3, 4, 5, 6, 7, 8]), "1,2,3,4,5,6,7,8");
        let all: Vec<u32> = (1..=500_000).collect();
        assert_eq!(descriptors(&all), "1,2,3,4,5,6,7,8,... (500000)");
    }

    /// A disk with a partition that device mapper has made something of, and another disk.
    fn disks() -> (tempfile::TempDir, System) {
        let dir = tempfile::tempdir().unwrap();
        let class = dir.path().join("sys/class/block");
        let numbers = dir.path().join("sys/dev/block");
        for dir in [&class, &numbers] {
            std::fs::create_dir_all(dir).unwrap();
        }
        for (path, number) in [
            ("pmem1", "259:1"),
            ("pmem1/pmem1p1", "259:2"),
            ("pmem1/pmem1p2", "259:3"),
            ("dm-0", "252:0"),
            ("pmem10", "259:10"),
            ("pmem2", "259:20"),
        ] {
            let at = dir.path().join("sys/devices").join(path);
            std::fs::create_dir_all(at.join("holders")).unwrap();
            let put = |name: &str, text: &str| std::fs::write(at.join(name), text).unwrap();
            put("dev", number);
            put("size", "8");
            if path.contains('/') {
                put("partition", "1");
                put("start", "8");
            }
            let name = path.rsplit('/').next().unwrap();
            std::os::unix::fs::symlink(&at, class.join(name)).unwrap();
            std::os::unix::fs::symlink(&at, numbers.join(number)).unwrap();
        }
        std::fs::create_dir_all(dir.path().join("proc/self")).unwrap();
        std::fs::write(
            dir.path().join("proc/self/mountinfo"),
            "40 22 259:10 / /mnt rw - xfs /dev/pmem10 rw,rtdev=/dev/pmem2\n",
        )
        .unwrap();
        let holder = "sys/devices/pmem1/pmem1p2/holders/dm-0";
        std::fs::create_dir(dir.path().join(holder)).unwrap();
        let system = System::new(dir.path());
        (dir, system)
    }

    #[test]
    fn a_disk_answers_for_its_partitions() {
        let (_dir, system) = disks();
        let wait = |major: u32, minor: u32| WaitRecord {
            dev_type: dev::BLOCK,
            dev_major: major,
            dev_minor: minor,
            ..record()
        };
        let all = [
            (wait(259, 1), "pmem1"),
            (wait(259, 2), "pmem1p1"),
            (wait(259, 3), "pmem1p2"),
            (wait(252, 0), "dm-0"),
            (wait(259, 10), "pmem10"),
        ];
        for (target, expected) in [
            ("pmem1", &["pmem1", "pmem1p1", "pmem1p2", "dm-0"][..]),
            ("pmem1p1", &["pmem1p1"]),
            ("pmem1p2", &["pmem1p2", "dm-0"]),
            ("pmem10", &["pmem10"]),
            // The realtime device of what is on another one.
            ("pmem2", &["pmem2", "pmem10"]),
        ] {
            let Target::Devices(devices) = Target::of(&system, Some(target)).unwrap() else {
                panic!("{target} is no device");
            };
            let names: Vec<&str> = devices.iter().map(|device| device.called.name()).collect();
            assert_eq!(names, expected);
            for (wait, name) in &all {
                let is_meant = devices.iter().any(|device| device.has(wait));
                assert_eq!(is_meant, expected.contains(name), "{target}: {name}");
            }
        }
        // Each is named.
        let waits = all.map(|(wait, _)| Wait::of(&wait, Called::of(&system, &wait)));
        let text = waits_text(&waits, true);
        for name in ["pmem1p1", "pmem1p2", "dm-0", "pmem10"] {
            assert!(text.contains(&format!(" {name} ")), "{text}");
        }
        let json = serde_json::to_value(&waits[1]).unwrap();
        assert_eq!(
            (&json["blockdev"], &json["device"]),
            (&"pmem1p1".into(), &"259:2".into())
        );
        let gone = wait(259, 77);
        let gone = Wait::of(&gone, Called::of(&system, &gone));
        assert!(waits_text(&[gone], true).contains("259:77"));
    }

    #[test]
    fn who_has_which_of_several_devices_is_told() {
        let called = |name: &str| Some(Called::Blockdev(name.to_owned()));
        let found = Found {
            by_device: vec![
                (called("pmem1"), Users::default()),
                (called("pmem1p1"), users()),
                (called("pmem1p2"), users()),
            ],
        };
        let text = found.text(false);
        for part in ["DEVICE", "pmem1p1 ", "pmem1p2 ", "2 processes may"] {
            assert!(text.contains(part), "no '{part}' in:\n{text}");
        }
        assert_eq!(text.matches("io_uring of ring (8)").count(), 1, "{text}");
        let json = serde_json::to_value(found.users()).unwrap();
        assert_eq!(json[1]["blockdev"], "pmem1p2");
        assert_eq!(json[1]["pid"], 7);
        let nobody = Found {
            by_device: vec![
                (called("pmem1"), Users::default()),
                (called("pmem1p1"), Users::default()),
            ],
        };
        let text = nobody.text(false);
        assert!(text.contains("has any of pmem1, pmem1p1 mapped"), "{text}");
    }
}
