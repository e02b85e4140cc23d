// SPDX-License-Identifier: GPL-2.0

//! `rdax who`: what waits for pages of a file or of a device, and who has them.

use crate::{
    ask::{self, Module},
    cli,
    device::{self, Block, Dax},
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
struct Wait {
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
    inode: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    physical: Option<u64>,
    folio: u64,
    references: u32,
    mappings: u32,
}

impl From<&WaitRecord> for Wait {
    fn from(record: &WaitRecord) -> Self {
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
            inode: record.inode,
            offset: Some(record.offset).filter(|&offset| offset != NOWHERE),
            physical: Some(record.physical).filter(|&address| address != 0),
            folio: PAGE.checked_shl(record.order).unwrap_or(u64::MAX),
            references: record.references,
            mappings: record.maps,
        }
    }
}

#[derive(Serialize)]
struct Report<'a> {
    waits: Vec<Wait>,
    /// Those of other users are told to root only.
    all_waits: bool,
    /// Devices that are asked about and whose drivers let go of them.
    unbinding: Vec<&'a str>,
    processes: &'a [Process],
    /// Those of which it cannot be seen whether an io_uring has it.
    unclear_processes: &'a [Unclear],
    hidden_processes: usize,
}

/// `all`: whether those of other users are told, too.
pub fn waits_text(waits: &[WaitRecord], all: bool) -> String {
    const NOT_ALL: &str = "(waits of other users are told to root only)\n";
    if waits.is_empty() {
        return match all {
            true => "nobody waits\n".to_owned(),
            false => format!("none of your own tasks waits\n{NOT_ALL}"),
        };
    }
    let rows = waits.iter().map(Wait::from).map(|wait| {
        vec![
            wait.pid.to_string(),
            wait.name,
            wait.what.to_owned(),
            nanoseconds(wait.waited_ns),
            match wait.device_type {
                Some(CHARACTER) => format!("char {}", wait.device),
                _ => wait.device,
            },
            if wait.inode == 0 {
                "-".to_owned()
            } else {
                wait.inode.to_string()
            },
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

/// `waited`: somebody waits, so that somebody has a page.
fn users_text(users: &Users, waited: bool) -> String {
    let mut rows = Vec::new();
    for process in &users.processes {
        let mapped: u64 = process.mappings.iter().map(|vma| vma.length).sum();
        let list = |fds: &[u32]| {
            let fds: Vec<String> = fds.iter().map(u32::to_string).collect();
            if fds.is_empty() {
                "-".to_owned()
            } else {
                fds.join(",")
            }
        };
        rows.push(vec![
            process.pid.to_string(),
            process.name.clone(),
            if mapped == 0 {
                "-".to_owned()
            } else {
                amount(mapped)
            },
            list(&process.open),
            list(&process.io_uring),
        ]);
    }
    let mut text = if rows.is_empty() {
        let mut text = "no process has it mapped, open, or in an io_uring\n".to_owned();
        text += Unclear::UNSEEN;
        if waited && users.hidden == 0 {
            text += "(whoever has a page of it has unmapped and closed it since: it lies in a pipe, for \
                     vmsplice, or a transfer is not over, of which /proc does not tell)\n";
        }
        text
    } else {
        table::plain(
            &["PID", "NAME", "MAPPED", "OPEN AS", "IO_URING"],
            &[0],
            rows,
        )
    };
    text.extend(users.unclear.iter().map(Unclear::text));
    if users.hidden != 0 {
        text += &format!("({} processes may not be looked at)\n", users.hidden);
    }
    text
}

/// What is asked about.
enum Target {
    File(File),
    /// By its number, and whether its driver lets go of it.
    Device(Kind, (u32, u32), bool),
    Everything,
}

impl Target {
    /// And what its users are to be looked for by.
    fn of(system: &System, given: Option<&str>) -> Result<(Self, Option<Wanted>)> {
        let Some(given) = given else {
            return Ok((Self::Everything, None));
        };
        // `pmem0` is the device wherever this is called, as for the other commands; `./pmem0` is not.
        if !given.contains('/') {
            if let Some(found) = Self::device(system, given)? {
                return Ok(found);
            }
        }
        let path = Path::new(given);
        if let Ok(status) = path.metadata() {
            let kind = status.file_type();
            if kind.is_file() {
                let file = ask::open(path)?;
                return Ok((Self::File(file), Some(Wanted::file(&status))));
            }
            if !kind.is_block_device() && !kind.is_char_device() {
                bail!("{given}: is neither a file nor a device");
            }
        }
        Self::device(system, given)?
            .with_context(|| format!("{given}: there is no such file or device"))
    }

    /// The device that somebody calls `given`, if there is one.
    fn device(system: &System, given: &str) -> Result<Option<(Self, Option<Wanted>)>> {
        let name = device::kernel_name(system, given);
        if let Some(dax) = Dax::find(system, &name) {
            let (major, minor) = dax.number.context("the kernel does not tell its number")?;
            let wanted = Wanted::character(system, &name, rustix::fs::makedev(major, minor));
            let goes = dax.driver.is_none();
            let device = Self::Device(Kind::Character, (major, minor), goes);
            return Ok(Some((device, Some(wanted))));
        }
        let Some(block) = Block::find(system, &name) else {
            return Ok(None);
        };
        let others = [&block.partitions[..], &block.holders[..]].concat();
        if !others.is_empty() {
            output::complain(format_args!(
                "{name}: this says nothing of {0}, which have their own: rdax who {0}",
                others.join(" ")
            ));
        }
        let (major, minor) =
            device::numbers(&block.number).context("the kernel's number of it is none")?;
        let wanted = Wanted::Filesystem {
            device: rustix::fs::makedev(major, minor),
        };
        let device = Self::Device(Kind::Block, (major, minor), block.goes);
        Ok(Some((device, Some(wanted))))
    }

    /// The block devices that it is about and whose driver lets go of them.
    fn going(&self, system: &System) -> Result<Vec<Block>> {
        let of_number =
            |number: (u32, u32)| Block::by_number(system, &format!("{}:{}", number.0, number.1));
        let mut found: Vec<Block> = match self {
            Self::Everything => device::blocks(system).0,
            Self::Device(Kind::Block, number, _) => of_number(*number).into_iter().collect(),
            Self::Device(Kind::Character, ..) => Vec::new(),
            Self::File(file) => {
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
            Self::File(file) => module.waits(Some(file)),
            Self::Everything => module.waits(None),
            Self::Device(kind, number, goes) => {
                let mut waits = module.waits(None)?;
                waits.retain(|wait| kind.has(*number, wait) || *goes && is_for_unknown(wait));
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
    let (target, wanted) = Target::of(system, arguments.target.as_deref())?;
    let module = Module::open(system)?;
    let found = waits(&target, &module)?;
    let all = system.has_admin();
    let going = target.going(system)?;
    let users = wanted
        .as_ref()
        .map(|wanted| processes::find(system, wanted));
    if arguments.json {
        let none = Users::default();
        let users = users.as_ref().unwrap_or(&none);
        output::json(&Report {
            waits: found.iter().map(Wait::from).collect(),
            all_waits: all,
            unbinding: going.iter().map(|block| block.name.as_str()).collect(),
            processes: &users.processes,
            unclear_processes: &users.unclear,
            hidden_processes: users.hidden,
        })?;
    } else {
        let mut text = waits_text(&found, all);
        // Those of which the table has no wait.
        let waits = Waits {
            records: found,
            all,
        };
        for block in &going {
            if let Some(what) = waits.unbind_without_wait(block) {
                text += &format!("{}: {what}\n", block.name);
            }
        }
        if let Some(users) = &users {
            text += "\n";
            text += &users_text(users, !waits.records.is_empty());
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
        let text = waits_text(&[record()], true);
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
        let text = waits_text(&[nowhere], true);
        assert!(text.contains("physical 0x101400000"), "{text}");
        assert_eq!(Wait::from(&nowhere).offset, None);
        assert_eq!(waits_text(&[], true), "nobody waits\n");
        for waits in [&[][..], &[record()]] {
            let text = waits_text(waits, false);
            assert!(text.contains("told to root only"), "{text}");
            assert!(!text.contains("nobody"), "{text}");
        }
    }

    #[test]
    fn users_are_told() {
        let users = Users {
            processes: vec![Process {
                pid: 7,
                name: "reader".to_owned(),
                open: vec![3, 4],
                ..Process::default()
            }],
            unclear: vec![Unclear {
                pid: 8,
                name: "ring".to_owned(),
            }],
            hidden: 2,
        };
        let text = users_text(&users, true);
        assert!(text.contains("reader") && text.contains("3,4"), "{text}");
        assert!(text.contains("io_uring of ring (8)"), "{text}");
        let nobody = Users::default();
        assert!(users_text(&nobody, true).contains("pipe"));
        assert!(!users_text(&nobody, false).contains("pipe"));
        assert!(text.contains("2 processes may not be looked at"), "{text}");
    }
}
