// SPDX-License-Identifier: GPL-2.0

//! `rdax who`: what waits for pages of a file or of a device, and who has them.

use crate::{
    ask::{self, Module},
    cli,
    device::{self, Block},
    mounts,
    output,
    processes::{self, Process, Users, Wanted},
    size::{amount, nanoseconds, PAGE},
    system::System,
    table,
    uapi::{wait, WaitRecord}, //
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
fn waiter(kind: u32) -> &'static str {
    match kind {
        wait::LAYOUT => "truncate or the like",
        wait::WRITE => "write",
        wait::FAULT => "page fault",
        wait::EVICTION => "end of a file",
        wait::DEVICE => "unbind",
        _ => "other",
    }
}

fn name_of(record: &WaitRecord) -> String {
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
            name: name_of(record),
            what: waiter(record.kind),
            waited_ns: record.waited,
            device: format!("{}:{}", record.dev_major, record.dev_minor),
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
    processes: &'a [Process],
    hidden_processes: usize,
}

fn waits_text(waits: &[WaitRecord]) -> String {
    if waits.is_empty() {
        return "nobody waits\n".to_owned();
    }
    let rows = waits.iter().map(Wait::from).map(|wait| {
        vec![
            wait.pid.to_string(),
            wait.name,
            wait.what.to_owned(),
            nanoseconds(wait.waited_ns),
            wait.device,
            if wait.inode == 0 {
                "-".to_owned()
            } else {
                wait.inode.to_string()
            },
            wait.offset
                .map_or("-".to_owned(), |offset| format!("{offset:#x}")),
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
    table::plain(&header, &[0, 8, 9], rows.collect())
}

fn users_text(users: &Users) -> String {
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
        "no process has it mapped, open, or in an io_uring\n".to_owned()
    } else {
        table::plain(
            &["PID", "NAME", "MAPPED", "OPEN AS", "IO_URING"],
            &[0],
            rows,
        )
    };
    if users.hidden != 0 {
        text += &format!("({} processes may not be looked at)\n", users.hidden);
    }
    text
}

/// What is asked about.
enum Target {
    File(File),
    /// By its number.
    Device(u32, u32),
    Everything,
}

impl Target {
    /// And what its users are to be looked for by.
    fn of(system: &System, given: Option<&str>) -> Result<(Self, Option<Wanted>)> {
        let Some(given) = given else {
            return Ok((Self::Everything, None));
        };
        let path = Path::new(given);
        if let Ok(status) = path.metadata() {
            if status.is_file() {
                let file = ask::open(path)?;
                let wanted = Wanted {
                    device: status.dev(),
                    inode: Some(status.ino()),
                    paths: vec![path.canonicalize().unwrap_or_else(|_| path.to_path_buf())],
                };
                return Ok((Self::File(file), Some(wanted)));
            }
            if status.is_dir() || !status.file_type().is_block_device() && given.contains('/') {
                bail!("{given}: is neither a file nor a device");
            }
        }
        let name = device::kernel_name(system, given);
        let Some(block) = Block::find(system, &name) else {
            bail!("{given}: there is no such file or device");
        };
        let (major, minor) = numbers(&block.number).context("the kernel's number of it is none")?;
        let mounts = mounts::of(system, &block.number);
        let wanted = Wanted {
            device: rustix::fs::makedev(major, minor),
            inode: None,
            paths: mounts.into_iter().map(|mount| mount.point).collect(),
        };
        Ok((Self::Device(major, minor), Some(wanted)))
    }

    fn waits(&self, module: &Module) -> Result<Vec<WaitRecord>> {
        match self {
            Self::File(file) => module.waits(Some(file)),
            Self::Everything => module.waits(None),
            Self::Device(major, minor) => {
                let mut waits = module.waits(None)?;
                waits.retain(|wait| (wait.dev_major, wait.dev_minor) == (*major, *minor));
                Ok(waits)
            }
        }
    }
}

fn numbers(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
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
    let users = wanted
        .as_ref()
        .map(|wanted| processes::find(system, wanted));
    if arguments.json {
        let none = Users::default();
        let users = users.as_ref().unwrap_or(&none);
        output::json(&Report {
            waits: found.iter().map(Wait::from).collect(),
            processes: &users.processes,
            hidden_processes: users.hidden,
        })?;
    } else {
        let mut text = waits_text(&found);
        if let Some(users) = &users {
            text += "\n";
            text += &users_text(users);
        }
        output::print(&text)?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> WaitRecord {
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
        let text = waits_text(&[record()]);
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
            ..record()
        };
        assert_eq!(Wait::from(&nowhere).offset, None);
        assert_eq!(waits_text(&[]), "nobody waits\n");
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
            hidden: 2,
        };
        let text = users_text(&users);
        assert!(text.contains("reader") && text.contains("3,4"), "{text}");
        assert!(text.contains("2 processes may not be looked at"), "{text}");
    }

    #[test]
    fn numbers_of_devices() {
        assert_eq!(numbers("259:1"), Some((259, 1)));
        assert_eq!(numbers("pmem0"), None);
    }
}
