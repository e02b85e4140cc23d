// SPDX-License-Identifier: GPL-2.0

//! Which processes have a file mapped, open, or in an io_uring, as /proc tells.

#[cfg(test)]
mod laid;
mod overlay;
mod ring;
mod tables;
mod view;

use self::{
    overlay::{Answer, Known, Overlays},
    ring::Ring,
    tables::{HaveSame, Tables},
    view::{Own, View}, //
};
use crate::{
    mounts,
    output::{harmless, shown},
    size::{PMD, PUD},
    system::System, //
};
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, Metadata},
    io::{self, BufRead, BufReader},
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf}, //
};

/// What is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// A file, by what `st_dev` and `st_ino` are.
    File { device: u64, inode: u64 },
    /// All that is on a device, by what `st_dev` is.
    Filesystem { device: u64 },
    /// A character device, by its number, and what `st_dev` and `st_ino` of its node are.
    Character { number: u64, node: (u64, u64) },
}

impl Wanted {
    pub fn file(status: &Metadata) -> Self {
        Self::File {
            device: status.dev(),
            inode: status.ino(),
        }
    }

    /// The device of this name and number.
    pub fn character(system: &System, name: &str, number: u64) -> Self {
        let node = fs::metadata(system.path(format!("/dev/{name}")));
        Self::Character {
            number,
            node: node.map_or((0, 0), |node| (node.dev(), node.ino())),
        }
    }

    /// Whether it is on a filesystem of this machine's, whose device is a block device. The node of a character device
    /// may be anywhere.
    fn is_on_block_device(&self) -> bool {
        !matches!(self, Self::Character { .. })
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
            Self::File { device, inode } => (*device, *inode) == (at, number),
            Self::Filesystem { device } => *device == at,
            Self::Character { node, .. } => *node == (at, number),
        }
    }

    /// What it is on: `st_dev`.
    fn device(&self) -> u64 {
        match self {
            Self::File { device, .. } | Self::Filesystem { device } => *device,
            Self::Character { node, .. } => node.0,
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
        let (vma, device, inode) = Self::of_file(line)?;
        wanted.is_mapped(device, inode).then_some(vma)
    }

    /// The same of a device whose node is another one, such as a container's.
    fn of_other_node(system: &System, thread: &str, line: &str, wanted: &Wanted) -> Option<Self> {
        let Wanted::Character { .. } = wanted else {
            return None;
        };
        let (vma, ..) = Self::of_file(line)?;
        // Nobody has such a device mapped privately.
        if vma.private {
            return None;
        }
        // Each thread has a directory of its own there, too, which is not listed.
        let (id, end) = (thread.rsplit('/').next()?, vma.address + vma.length);
        let file = format!("/proc/{id}/map_files/{:x}-{end:x}", vma.address);
        let status = fs::metadata(system.path(file)).ok()?;
        wanted.is(&status).then_some(vma)
    }

    /// A line of `/proc/PID/maps`, if it is of a file, and what `st_dev` and `st_ino` of that are.
    fn of_file(line: &str) -> Option<(Self, u64, u64)> {
        let mut words = line.split_ascii_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let rights = words.next()?;
        let offset = words.next()?;
        let (major, minor) = words.next()?.split_once(':')?;
        let inode: u64 = words.next()?.parse().ok()?;
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        let device = rustix::fs::makedev(hex(major)? as u32, hex(minor)? as u32);
        if inode == 0 {
            return None;
        }
        let path = line.split_once('/').map_or("", |(_, path)| path);
        let start = hex(start)?;
        let vma = Self {
            address: start,
            length: hex(end)?.checked_sub(start)?,
            offset: hex(offset)?,
            private: rights.ends_with('p'),
            path: format!("/{path}"),
        };
        Some((vma, device, inode))
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

/// A process of which it cannot be seen whether an io_uring of it has the file; or, of what it has through an overlay,
/// whether that is the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Unclear {
    pub pid: u32,
    pub name: String,
    /// Where the overlay is mounted, as the process sees it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlay: Option<String>,
}

impl Unclear {
    /// A line for people.
    pub fn text(&self) -> String {
        let (pid, name) = (self.pid, harmless(&self.name, &[]));
        if let Some(point) = &self.overlay {
            return format!(
                "(whether {name} ({pid}) has it through the overlay on {} cannot be seen: what it has there was copied \
                 up, renamed or removed, or where the layers are is not seen here)\n",
                harmless(point, &[])
            );
        }
        format!(
            "(whether an io_uring of {name} ({pid}) has it cannot be seen: it is busy, closed but mapped, or \
             has what was deleted, unmapped or mounted over since, or is elsewhere in its mounts)\n"
        )
    }

    /// Of what nothing is seen in any process.
    pub const UNSEEN: &str =
        "(an io_uring that is neither open nor mapped is in no file of /proc)\n";
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
    let own = Own::of(system);
    let have_same = tables::compare(system);
    let mut namespaces = Namespaces::default();
    let mut users = Users::default();
    for name in system.names("/proc") {
        let Ok(pid) = name.parse::<u32>() else {
            continue;
        };
        // This command has the file open itself.
        if pid == std::process::id() {
            continue;
        }
        let Some((process, unclear)) =
            look_at(system, pid, wanted, &own, have_same, &mut namespaces)
        else {
            users.hidden += 1;
            continue;
        };
        users.unclear.extend(unclear);
        if !process.mappings.is_empty() || !process.open.is_empty() || !process.io_uring.is_empty()
        {
            users.processes.push(process);
        }
    }
    users
}

/// What an io_uring is called, open or mapped.
const RING: &str = "anon_inode:[io_uring]";

/// What is mapped, without the text of it: a process may have many mappings, each of a file with a path of some KiB.
#[derive(Default)]
struct Maps {
    /// Those of what is wanted.
    mappings: Vec<Vma>,
    /// Starts and ends of all, in order.
    ranges: Vec<(u64, u64)>,
    /// Each ring has its parts mapped at offsets which tell what they are: how many of each.
    rings: BTreeMap<u64, usize>,
    /// Where what is mapped may be what is wanted.
    unclear: BTreeSet<PathBuf>,
}

impl Maps {
    fn of(
        system: &System,
        thread: &str,
        wanted: &Wanted,
        overlays: &Overlays,
        known: &mut Known,
    ) -> io::Result<Self> {
        let mut file = BufReader::new(File::open(system.path(format!("{thread}/maps")))?);
        let (mut maps, mut line) = (Self::default(), Vec::new());
        // Ends with the file: each turn takes a line of it, and there are no more than a process may have mappings.
        while file.read_until(b'\n', &mut line)? != 0 {
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end_matches('\n');
            maps.add(system, thread, text, wanted);
            maps.add_overlaid(text, wanted, overlays, known);
            line.clear();
        }
        Ok(maps)
    }

    fn add_overlaid(
        &mut self,
        line: &str,
        wanted: &Wanted,
        overlays: &Overlays,
        known: &mut Known,
    ) {
        if overlays.is_empty() {
            return;
        }
        let Some((vma, device, inode)) = Vma::of_file(line) else {
            return;
        };
        match overlays.have_mapped(device, inode, &vma.path, wanted, known) {
            Answer::Yes => self.mappings.push(vma),
            Answer::Unclear(point) => drop(self.unclear.insert(point.to_owned())),
            Answer::No | Answer::Elsewhere => (),
        }
    }

    fn add(&mut self, system: &System, thread: &str, line: &str, wanted: &Wanted) {
        self.ranges.extend(ring::addresses(line));
        if line.ends_with(RING) {
            let offset = line.split_ascii_whitespace().nth(2).unwrap_or_default();
            let offset = u64::from_str_radix(offset, 16).unwrap_or_default();
            *self.rings.entry(offset).or_default() += 1;
        }
        let vma =
            Vma::parse(line, wanted).or_else(|| Vma::of_other_node(system, thread, line, wanted));
        self.mappings.extend(vma);
    }
}

/// The mounts of one namespace on which a descriptor is not just asked what it stands for.
#[derive(Default)]
struct Namespace {
    /// Those that are somebody else's, who may not answer.
    remote: BTreeSet<u64>,
    overlays: Overlays,
}

/// Those that were looked at.
#[derive(Default)]
struct Namespaces(BTreeMap<PathBuf, Namespace>);

impl Namespaces {
    /// That of a thread, as far as it can be seen; nothing if it does not matter for what is wanted.
    fn of(&mut self, system: &System, thread: &str, wanted: &Wanted, own: &Own) -> &Namespace {
        let namespace = match wanted.is_on_block_device() {
            true => fs::read_link(system.path(format!("{thread}/ns/mnt"))).unwrap_or_default(),
            false => PathBuf::new(),
        };
        self.0.entry(namespace).or_insert_with_key(|namespace| {
            if namespace.as_os_str().is_empty() {
                return Namespace::default();
            }
            let mounts = mounts::in_file(system, &format!("{thread}/mountinfo"));
            let remote = mounts.iter().filter(|mount| mount.is_remote());
            Namespace {
                remote: remote.map(|mount| mount.id).collect(),
                overlays: Overlays::of(system, &mounts, own, wanted),
            }
        })
    }
}

impl Namespace {
    /// Whether a descriptor is on one of these mounts and what is wanted; nothing if it is to be asked itself.
    fn answer(
        &self,
        system: &System,
        thread: &str,
        fd: &str,
        path: &Path,
        wanted: &Wanted,
        known: &mut Known,
    ) -> Answer<'_> {
        if self.remote.is_empty() && self.overlays.is_empty() || !path.is_absolute() {
            return Answer::Elsewhere;
        }
        let info = system.read(format!("{thread}/fdinfo/{fd}"));
        let info = info.unwrap_or_default();
        let number = |name: &str| -> Option<u64> {
            let value = info.lines().find_map(|line| line.strip_prefix(name));
            value.and_then(|value| value.trim().parse().ok())
        };
        match (number("mnt_id:"), number("ino:")) {
            (Some(mount), _) if self.remote.contains(&mount) => Answer::No,
            (Some(mount), Some(inode)) => {
                let path = path.to_string_lossy();
                self.overlays.have_open(mount, inode, &path, wanted, known)
            }
            _ => Answer::Elsewhere,
        }
    }
}

/// Also what of it could not be seen. `None` if it may not be looked at. One that has ended has nothing.
fn look_at(
    system: &System,
    pid: u32,
    wanted: &Wanted,
    own: &Own,
    have_same: HaveSame,
    namespaces: &mut Namespaces,
) -> Option<(Process, Vec<Unclear>)> {
    let dir = format!("/proc/{pid}");
    let mut process = Process {
        pid,
        name: system.read(format!("{dir}/comm")).unwrap_or_default(),
        ..Process::default()
    };
    // The process's own directory is that of its first thread, which may have ended.
    let mut threads = vec![dir.clone()];
    for name in system.names(format!("{dir}/task")) {
        if name != pid.to_string() {
            threads.push(format!("{dir}/task/{name}"));
        }
    }
    // All threads that live have the same.
    let mut maps = Maps::default();
    let mut known = Known::new();
    for thread in &threads {
        let overlays = &namespaces.of(system, thread, wanted, own).overlays;
        match Maps::of(system, thread, wanted, overlays, &mut known) {
            Ok(read) => maps = read,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return None,
            Err(_) => (),
        }
        if !maps.ranges.is_empty() {
            break;
        }
    }
    process.mappings = maps.mappings;
    let mapped = maps.rings.into_values().max().unwrap_or(0);
    let mut rings = BTreeSet::new();
    let mut is_clear = true;
    let mut overlays = maps.unclear;
    // Each may have a table of files, and mounts, of its own.
    let mut tables = Tables::new(have_same);
    for thread in &threads {
        let id = thread.rsplit('/').next().and_then(|id| id.parse().ok());
        if id.is_some_and(|id| tables.have(id)) {
            continue;
        }
        let mut view = None;
        let namespace = namespaces.of(system, thread, wanted, own);
        let fds = format!("{thread}/fd");
        for name in system.names(&fds) {
            let Ok(fd) = name.parse::<u32>() else {
                continue;
            };
            let path = system.path(format!("{fds}/{name}"));
            let target = fs::read_link(&path).unwrap_or_default();
            if target.as_os_str() == RING {
                rings.insert(fd);
                let info = system
                    .read(format!("{thread}/fdinfo/{name}"))
                    .unwrap_or_default();
                let view =
                    view.get_or_insert_with(|| View::of(system, thread, own, &namespace.overlays));
                match Ring::parse(&info).has(wanted, &process.mappings, &maps.ranges, view) {
                    Some(true) => process.io_uring.push(fd),
                    Some(false) => (),
                    None => is_clear = false,
                }
                continue;
            }
            match namespace.answer(system, thread, &name, &target, wanted, &mut known) {
                Answer::Yes => process.open.push(fd),
                Answer::No => (),
                Answer::Unclear(point) => drop(overlays.insert(point.to_owned())),
                Answer::Elsewhere => {
                    if fs::metadata(&path).is_ok_and(|status| wanted.is(&status)) {
                        process.open.push(fd);
                    }
                }
            }
        }
    }
    for fds in [&mut process.open, &mut process.io_uring] {
        fds.sort_unstable();
        fds.dedup();
    }
    // A descriptor was closed, but not what it stands for, or is a registered one. The kernel's threads for a ring
    // tell of one that is not even mapped.
    let works = || {
        threads.iter().any(|thread| {
            let name = system.read(format!("{thread}/comm")).unwrap_or_default();
            name.starts_with("iou-sqp-") || name.starts_with("iou-wrk-")
        })
    };
    is_clear &= mapped <= rings.len() && (!rings.is_empty() || !works());
    let of_ring = (!is_clear).then_some(None);
    let of_overlays = overlays.into_iter().map(|point| Some(shown(&point)));
    let unclear = of_ring
        .into_iter()
        .chain(of_overlays)
        .map(|overlay| Unclear {
            pid,
            name: process.name.clone(),
            overlay,
        });
    let unclear = unclear.collect();
    Some((process, unclear))
}

#[cfg(test)]
mod tests {
    use super::{
        laid::{of, Laid},
        *,
    };

    fn wanted() -> Wanted {
        Wanted::File {
            device: rustix::fs::makedev(259, 1),
            inode: 131,
        }
    }

    #[test]
    fn nobody_who_may_not_answer_is_asked() {
        let laid = Laid::new();
        let file = laid.put("file", "");
        laid.thread("7", "");
        laid.link("mnt:[1]", "proc/7/ns/mnt");
        laid.put(
            "proc/7/mountinfo",
            "40 22 259:0 / / rw - xfs /dev/pmem0 rw\n\
             77 40 0:50 / /mnt/nfs rw shared:1 - nfs4 server:/ rw\n\
             78 40 0:51 / /mnt/ssh rw - fuse.sshfs server: rw\n",
        );
        for (fd, mount) in [(3, 77), (4, 40), (5, 78), (6, 79)] {
            laid.link(&file, &format!("proc/7/fd/{fd}"));
            let info = format!("pos:\t0\nflags:\t0100002\nmnt_id:\t{mount}\nino:\t131\n");
            laid.put(&format!("proc/7/fdinfo/{fd}"), &info);
        }
        let users = laid.users(&of(&file));
        assert_eq!(users.processes[0].open, [4, 6]);
        // The node of a character device may be anywhere.
        let null = Wanted::Character {
            number: fs::metadata("/dev/null").unwrap().rdev(),
            node: (0, 0),
        };
        laid.link("/dev/null", "proc/7/fd/9");
        laid.put("proc/7/fdinfo/9", "mnt_id:\t77\n");
        assert_eq!(laid.users(&null).processes[0].open, [9]);
    }

    #[test]
    fn a_name_begins_no_line() {
        let unclear = Unclear {
            pid: 8,
            name: "a\nok: b".to_owned(),
            overlay: None,
        };
        assert_eq!(unclear.text().lines().count(), 1);
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
    fn threads_are_looked_at_when_the_first_has_ended() {
        let laid = Laid::new();
        let file = laid.put("mnt/f", "");
        let wanted = of(&file);
        let status = fs::metadata(&file).unwrap();
        let line = format!(
            "7f0000200000-7f0000600000 rw-s 00000000 {:x}:{:x} {} /mnt/f\n",
            rustix::fs::major(status.dev()),
            rustix::fs::minor(status.dev()),
            status.ino()
        );
        laid.thread("77", "");
        laid.thread("77/task/77", "");
        laid.thread("77/task/78", &line);
        laid.link(&file, "proc/77/task/78/fd/4");
        let users = laid.users(&wanted);
        assert_eq!(users.processes.len(), 1, "{users:?}");
        assert_eq!(users.processes[0].mappings.len(), 1, "{users:?}");
        assert_eq!(users.processes[0].open, [4]);
    }

    #[test]
    fn a_device_is_mapped_whatever_its_node_is() {
        let laid = Laid::new();
        let maps = "7f0000200000-7f0000400000 rw-s 00000000 00:05 9 /dev/dax0.0\n";
        laid.thread("77", "");
        laid.thread("77/task/78", maps);
        laid.link("/dev/null", "proc/78/map_files/7f0000200000-7f0000400000");
        let null = |number| Wanted::Character {
            number,
            node: (5, 7),
        };
        let users = laid.users(&null(fs::metadata("/dev/null").unwrap().rdev()));
        assert_eq!(users.processes.len(), 1, "{users:?}");
        assert!(laid.users(&null(1)).processes.is_empty());
    }

    #[test]
    fn threads_may_have_files_of_their_own() {
        let laid = Laid::new();
        let (file, other) = (laid.put("mnt/f", ""), laid.put("mnt/g", ""));
        laid.thread("77", "1000-2000 rw-p 00000000 00:00 0\n");
        for (thread, to) in [
            ("77", &other),
            ("77/task/77", &other),
            ("77/task/78", &file),
            ("77/task/79", &file),
        ] {
            laid.link(to, &format!("proc/{thread}/fd/3"));
        }
        let users = laid.users(&of(&file));
        assert_eq!(users.processes.len(), 1, "{users:?}");
        assert_eq!(users.processes[0].open, [3]);
    }
}
