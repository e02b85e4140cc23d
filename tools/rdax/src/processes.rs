// SPDX-License-Identifier: GPL-2.0

//! Which processes have a file mapped, open, or in an io_uring, as /proc tells.

use crate::{
    mounts,
    size::{PMD, PUD},
    system::System, //
};
use serde::Serialize;
use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// What is looked for: a file, or all that is on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// As `st_dev` has it.
    pub device: u64,
    /// All files if there is none.
    pub inode: Option<u64>,
    /// The file's path, or where the device's filesystem is mounted.
    pub paths: Vec<PathBuf>,
}

impl Wanted {
    fn is(&self, device: u64, inode: u64) -> bool {
        self.device == device && self.inode.is_none_or(|wanted| wanted == inode)
    }

    /// Whether a path, as /proc has it, is one of them.
    fn has_path(&self, path: &str) -> bool {
        let path = Path::new(path.strip_suffix(" (deleted)").unwrap_or(path));
        match self.inode {
            Some(_) => self.paths.iter().any(|wanted| wanted == path),
            None => self.paths.iter().any(|wanted| path.starts_with(wanted)),
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
        if inode == 0 || !wanted.is(device, inode) {
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

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Users {
    pub processes: Vec<Process>,
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
        match look_at(system, pid, wanted) {
            Some(process)
                if !process.mappings.is_empty()
                    || !process.open.is_empty()
                    || !process.io_uring.is_empty() =>
            {
                users.processes.push(process);
            }
            Some(_) => (),
            None => users.hidden += 1,
        }
    }
    users
}

/// `None` if it may not be looked at. One that has ended has nothing.
fn look_at(system: &System, pid: u32, wanted: &Wanted) -> Option<Process> {
    let dir = format!("/proc/{pid}");
    let mut process = Process {
        pid,
        name: system.read(format!("{dir}/comm")).unwrap_or_default(),
        ..Process::default()
    };
    match system.read(format!("{dir}/maps")) {
        Ok(text) => {
            process.mappings = text
                .lines()
                .filter_map(|line| Vma::parse(line, wanted))
                .collect();
        }
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => return None,
        Err(_) => return Some(process),
    }
    let fds = format!("{dir}/fd");
    for name in system.names(&fds) {
        let Ok(fd) = name.parse::<u32>() else {
            continue;
        };
        let path = system.path(format!("{fds}/{name}"));
        let target = fs::read_link(&path).unwrap_or_default();
        if target.as_os_str() == "anon_inode:[io_uring]" {
            let info = system
                .read(format!("{dir}/fdinfo/{name}"))
                .unwrap_or_default();
            if registered(&info).any(|path| wanted.has_path(&path)) {
                process.io_uring.push(fd);
            }
        } else if fs::metadata(&path).is_ok_and(|status| wanted.is(status.dev(), status.ino())) {
            process.open.push(fd);
        }
    }
    Some(process)
}

/// The files that are registered with an io_uring, by what its fdinfo says.
fn registered(info: &str) -> impl Iterator<Item = String> + '_ {
    info.lines()
        .skip_while(|line| !line.starts_with("UserFiles:"))
        .skip(1)
        .take_while(|line| !line.starts_with("UserBufs:"))
        .filter_map(|line| Some(mounts::unescape(line.split_once(": ")?.1.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Wanted {
        Wanted {
            device: rustix::fs::makedev(259, 1),
            inode: Some(131),
            paths: vec![PathBuf::from("/mnt/a file")],
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
    fn files_of_a_ring() {
        let info = "pos:\t0\nSqMask:\t0x7\nUserFiles:\t2\n    0: /mnt/b\n    1: /mnt/a\\040file\n\
                    UserBufs:\t0\nPollList:\n";
        let found: Vec<String> = registered(info).collect();
        assert_eq!(found, ["/mnt/b", "/mnt/a file"]);
        assert!(wanted().has_path("/mnt/a file"));
        assert!(!wanted().has_path("/mnt/a file 2"));
        assert_eq!(registered("UserFiles:\t0\nUserBufs:\t0\n").count(), 0);
    }
}
