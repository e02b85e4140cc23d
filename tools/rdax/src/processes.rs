// SPDX-License-Identifier: GPL-2.0

//! Which processes have a file mapped, open, or in an io_uring, as /proc tells.

use crate::{
    mounts,
    size::{PMD, PUD},
    system::System, //
};
use serde::Serialize;
use std::{
    fs::{self, Metadata},
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

/// What is looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// A file, by what `st_dev` and `st_ino` are.
    File {
        device: u64,
        inode: u64,
        path: PathBuf,
    },
    /// All that is on a device, by what `st_dev` is, and where that is mounted.
    Filesystem { device: u64, points: Vec<PathBuf> },
    /// A character device, by its number, and what `st_dev` and `st_ino` of its node are.
    Character { number: u64, node: (u64, u64) },
}

impl Wanted {
    pub fn file(status: &Metadata, path: PathBuf) -> Self {
        Self::File {
            device: status.dev(),
            inode: status.ino(),
            path,
        }
    }

    pub fn filesystem(device: u64, points: Vec<PathBuf>) -> Self {
        Self::Filesystem { device, points }
    }

    /// The device of this name and number.
    pub fn character(system: &System, name: &str, number: u64) -> Self {
        let node = fs::metadata(system.path(format!("/dev/{name}")));
        Self::Character {
            number,
            node: node.map_or((0, 0), |node| (node.dev(), node.ino())),
        }
    }

    /// Whether it is what is open.
    fn is(&self, status: &Metadata) -> bool {
        match self {
            Self::Character { number, .. } => {
                status.file_type().is_char_device() && status.rdev() == *number
            }
            _ => self.is_mapped(status.dev(), status.ino()),
        }
    }

    /// Whether it is what is mapped.
    fn is_mapped(&self, at: u64, number: u64) -> bool {
        match self {
            Self::File { device, inode, .. } => (*device, *inode) == (at, number),
            Self::Filesystem { device, .. } => *device == at,
            Self::Character { node, .. } => *node == (at, number),
        }
    }

    /// Whether it may have had this path before that was removed.
    fn may_have_been(&self, path: &Path) -> bool {
        match self {
            Self::File { path: own, .. } => own == path,
            Self::Filesystem { points, .. } => points.iter().any(|point| path.starts_with(point)),
            Self::Character { .. } => false,
        }
    }
}

/// A part of a file that a process has mapped. All are bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Vma {
    pub address: u64,
    pub length: u64,
    pub offset: u64,
    pub private: bool,
    pub path: String,
}

impl Vma {
    /// A line of `/proc/PID/maps`, if it is of a file that is wanted.
    fn parse(line: &str, wanted: &Wanted) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let rights = words.next()?;
        let offset = words.next()?;
        let (major, minor) = words.next()?.split_once(':')?;
        let inode: u64 = words.next()?.parse().ok()?;
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        let device = rustix::fs::makedev(hex(major)? as u32, hex(minor)? as u32);
        if inode == 0 || !wanted.is_mapped(device, inode) {
            return None;
        }
        let path = line.split_once('/').map_or("", |(_, path)| path);
        let start = hex(start)?;
        Some(Self {
            address: start,
            length: hex(end)?.checked_sub(start)?,
            offset: hex(offset)?,
            private: rights.ends_with('p'),
            path: format!("/{path}"),
        })
    }

    /// The largest size of an entry that can map some of it, by its address.
    pub fn largest(&self) -> u64 {
        let fits = |size: u64| {
            let past = self.offset % size;
            let first = if past == 0 { 0 } else { size - past };
            self.address.wrapping_sub(self.offset) % size == 0 && first + size <= self.length
        };
        if !self.private && fits(PUD) {
            PUD
        } else if fits(PMD) {
            PMD
        } else {
            crate::size::PAGE
        }
    }
}

/// A process that has to do with the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Process {
    pub pid: u32,
    pub name: String,
    pub mappings: Vec<Vma>,
    /// Descriptors.
    pub open: Vec<u32>,
    /// Descriptors of io_urings that the file is registered with.
    pub io_uring: Vec<u32>,
}

/// A process of which it cannot be seen whether an io_uring of it has the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Unclear {
    pub pid: u32,
    pub name: String,
}

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Users {
    pub processes: Vec<Process>,
    pub unclear: Vec<Unclear>,
    /// Processes that the caller may not look at.
    pub hidden: usize,
}

/// Looks at all processes.
pub fn find(system: &System, wanted: &Wanted) -> Users {
    let mut users = Users::default();
    for name in system.names("/proc") {
        let Ok(pid) = name.parse::<u32>() else {
            continue;
        };
        // This command has the file open itself.
        if pid == std::process::id() {
            continue;
        }
        let Some((process, is_clear)) = look_at(system, pid, wanted) else {
            users.hidden += 1;
            continue;
        };
        if !is_clear {
            users.unclear.push(Unclear {
                pid,
                name: process.name.clone(),
            });
        }
        if !process.mappings.is_empty() || !process.open.is_empty() || !process.io_uring.is_empty()
        {
            users.processes.push(process);
        }
    }
    users
}

/// Also whether all of its io_urings could be seen. `None` if it may not be looked at. One that has ended has
/// nothing.
fn look_at(system: &System, pid: u32, wanted: &Wanted) -> Option<(Process, bool)> {
    const RING: &str = "anon_inode:[io_uring]";
    let dir = format!("/proc/{pid}");
    let mut process = Process {
        pid,
        name: system.read(format!("{dir}/comm")).unwrap_or_default(),
        ..Process::default()
    };
    let maps = match system.read(format!("{dir}/maps")) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => return None,
        Err(_) => return Some((process, true)),
    };
    process.mappings = maps
        .lines()
        .filter_map(|line| Vma::parse(line, wanted))
        .collect();
    let has_mapped_ring = maps.lines().any(|line| line.ends_with(RING));
    let mut rings = 0;
    let mut is_clear = true;
    let fds = format!("{dir}/fd");
    for name in system.names(&fds) {
        let Ok(fd) = name.parse::<u32>() else {
            continue;
        };
        let path = system.path(format!("{fds}/{name}"));
        let target = fs::read_link(&path).unwrap_or_default();
        if target.as_os_str() == RING {
            rings += 1;
            let info = system
                .read(format!("{dir}/fdinfo/{name}"))
                .unwrap_or_default();
            let files = Ring::parse(&info).has(wanted, &process.mappings, &maps, |path| {
                // As this command sees it, or as the process does.
                let below = path.strip_prefix("/").unwrap_or(path);
                let places = [
                    system.path(path),
                    system.path(format!("{dir}/root")).join(below),
                ];
                places.iter().find_map(|path| fs::metadata(path).ok())
            });
            match files {
                Some(true) => process.io_uring.push(fd),
                Some(false) => (),
                None => is_clear = false,
            }
        } else if fs::metadata(&path).is_ok_and(|status| wanted.is(&status)) {
            process.open.push(fd);
        }
    }
    // The descriptor was closed, but not what it stands for, or is a registered one.
    is_clear &= rings > 0 || !has_mapped_ring;
    Some((process, is_clear))
}

/// What is registered with an io_uring, by what its fdinfo says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ring {
    /// While the ring is busy it says nothing.
    is_known: bool,
    files: Vec<String>,
    /// First and last address.
    buffers: Vec<(u64, u64)>,
}

impl Ring {
    fn parse(info: &str) -> Self {
        let mut ring = Self::default();
        let mut part = "";
        for line in info.lines() {
            let Some((name, value)) = line.split_once(':') else {
                continue;
            };
            if !name.starts_with(' ') {
                part = name;
                ring.is_known |= part == "UserFiles";
                continue;
            }
            let value = value.trim();
            match part {
                "UserFiles" => ring.files.push(mounts::unescape(value)),
                "UserBufs" => ring
                    .buffers
                    .extend(value.split_once('/').and_then(|(at, bytes)| {
                        let at = u64::from_str_radix(at.strip_prefix("0x")?, 16).ok()?;
                        let bytes: u64 = bytes.parse().ok()?;
                        Some((at, at.checked_add(bytes.checked_sub(1)?)?))
                    })),
                _ => (),
            }
        }
        ring
    }

    /// Whether what is wanted is among its files, or mapped where it has buffers; `None` if that cannot be said.
    /// `maps` are all mappings of the process.
    fn has(
        &self,
        wanted: &Wanted,
        mappings: &[Vma],
        maps: &str,
        stat: impl Fn(&Path) -> Option<Metadata>,
    ) -> Option<bool> {
        let mut is_clear = self.is_known;
        for file in &self.files {
            match file.strip_suffix(" (deleted)") {
                Some(path) => is_clear &= !wanted.may_have_been(Path::new(path)),
                None => match stat(Path::new(file)) {
                    Some(status) if wanted.is(&status) => return Some(true),
                    Some(_) => (),
                    // Sockets and the like have no path.
                    None => is_clear &= !file.starts_with('/'),
                },
            }
        }
        // Of the pages of files the kernel lets nobody make buffers.
        if let Wanted::Character { .. } = wanted {
            for &(first, last) in &self.buffers {
                let has =
                    |vma: &Vma| vma.address <= last && first - vma.address.min(first) < vma.length;
                if mappings.iter().any(has) {
                    return Some(true);
                }
                // What it was made of is not mapped any more.
                is_clear &= maps
                    .lines()
                    .filter_map(addresses)
                    .any(|(start, end)| start <= first && last < end);
            }
        }
        is_clear.then_some(false)
    }
}

/// Start and end of a line of `/proc/PID/maps`.
fn addresses(line: &str) -> Option<(u64, u64)> {
    let (start, end) = line.split_ascii_whitespace().next()?.split_once('-')?;
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    Some((hex(start)?, hex(end)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Wanted {
        Wanted::File {
            device: rustix::fs::makedev(259, 1),
            inode: 131,
            path: PathBuf::from("/mnt/a file"),
        }
    }

    #[test]
    fn a_line_of_maps() {
        let line = "7f0000200000-7f0000600000 rw-s 00200000 103:00001 131            /mnt/a file";
        let vma = Vma::parse(line, &wanted()).unwrap();
        assert_eq!(
            (vma.address, vma.length, vma.offset, vma.private),
            (0x7f00_0020_0000, 4 << 20, 2 << 20, false)
        );
        assert_eq!(vma.path, "/mnt/a file");
        for other in [
            "7f0000200000-7f0000600000 rw-s 00200000 103:00001 132 /mnt/b",
            "7f0000200000-7f0000600000 rw-s 00200000 103:00002 131 /mnt/b",
            "7f0000200000-7f0000600000 rw-p 00000000 00:00 0",
            "",
        ] {
            assert_eq!(Vma::parse(other, &wanted()), None, "{other}");
        }
    }

    #[test]
    fn the_largest_size_of_an_address() {
        let vma = |address, length, offset, private| Vma {
            address,
            length,
            offset,
            private,
            path: String::new(),
        };
        let page = crate::size::PAGE;
        assert_eq!(vma(PUD, PUD, 0, false).largest(), PUD);
        assert_eq!(vma(PUD, PUD, 0, true).largest(), PMD);
        assert_eq!(vma(PUD, PUD, PMD, false).largest(), PMD);
        assert_eq!(vma(PUD + PMD, PUD, PMD, false).largest(), PMD);
        assert_eq!(vma(PMD + page, PUD, 0, false).largest(), page);
        assert_eq!(vma(PMD + page, PMD, page, false).largest(), page);
    }

    #[test]
    fn what_is_registered_with_a_ring() {
        let info = "pos:\t0\nSqMask:\t0x7\nUserFiles:\t2\n    0: /mnt/b\n    1: /mnt/a\\040file\n\
                    UserBufs:\t2\n    0: <none>\n    1: 0x1000/4096\nPollList:\n";
        let ring = Ring::parse(info);
        assert_eq!(ring.files, ["/mnt/b", "/mnt/a file"]);
        assert_eq!(ring.buffers, [(0x1000, 0x1fff)]);
        assert!(ring.is_known);
        let none = Ring::parse("UserFiles:\t0\nUserBufs:\t0\n");
        assert!(none.is_known && none.files.is_empty() && none.buffers.is_empty());
        // One that is busy.
        assert!(!Ring::parse("pos:\t0\nSqMask:\t0x7\n").is_known);
    }

    #[test]
    fn files_of_a_ring_are_known_by_their_identity() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other, link) = (
            dir.path().join("1"),
            dir.path().join("2"),
            dir.path().join("l"),
        );
        fs::write(&one, "").unwrap();
        fs::write(&other, "").unwrap();
        fs::hard_link(&one, &link).unwrap();
        let wanted = Wanted::file(&fs::metadata(&one).unwrap(), one.clone());
        let has = |files: &[String]| {
            let ring = Ring {
                is_known: true,
                files: files.to_vec(),
                buffers: Vec::new(),
            };
            ring.has(&wanted, &[], "", |path| fs::metadata(path).ok())
        };
        let text = |path: &PathBuf| path.display().to_string();
        assert_eq!(has(&[text(&other), text(&link)]), Some(true));
        assert_eq!(has(&[text(&other)]), Some(false));
        assert_eq!(has(&["socket:[5]".to_owned()]), Some(false));
        // A file that had the path before: perhaps it is the one.
        assert_eq!(has(&[text(&one) + " (deleted)"]), None);
        assert_eq!(has(&[text(&other) + " (deleted)"]), Some(false));
    }

    #[test]
    fn buffers_of_a_ring_are_known_by_what_is_mapped() {
        let wanted = Wanted::Character {
            number: rustix::fs::makedev(252, 0),
            node: (5, 7),
        };
        let maps = "1000-3000 rw-s 00000000 00:05 7 /dev/dax0.0\n8000-9000 rw-p 00000000 00:00 0\n";
        let mappings: Vec<Vma> = maps
            .lines()
            .filter_map(|line| Vma::parse(line, &wanted))
            .collect();
        assert_eq!(mappings.len(), 1);
        let has = |first, last| {
            let ring = Ring {
                is_known: true,
                files: Vec::new(),
                buffers: vec![(first, last)],
            };
            ring.has(&wanted, &mappings, maps, |_| None)
        };
        assert_eq!(has(0x2000, 0x2fff), Some(true));
        assert_eq!(has(0x0800, 0x1000), Some(true));
        assert_eq!(has(0x8000, 0x8fff), Some(false));
        // Nothing is mapped there any more.
        assert_eq!(has(0x5000, 0x5fff), None);
        assert_eq!(has(0x3000, 0x3fff), None);
    }
}
