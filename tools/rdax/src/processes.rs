// SPDX-License-Identifier: GPL-2.0

//! Which processes have a file mapped, open, or in an io_uring, as /proc tells.

use crate::{
    mounts::{self, Mount},
    size::{PMD, PUD},
    system::System, //
};
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, Metadata},
    io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
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

/// A process of which it cannot be seen whether an io_uring of it has the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Unclear {
    pub pid: u32,
    pub name: String,
}

impl Unclear {
    /// A line for people.
    pub fn text(&self) -> String {
        let Self { pid, name } = self;
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
    let mut users = Users::default();
    for name in system.names("/proc") {
        let Ok(pid) = name.parse::<u32>() else {
            continue;
        };
        // This command has the file open itself.
        if pid == std::process::id() {
            continue;
        }
        let Some((process, is_clear)) = look_at(system, pid, wanted, &own) else {
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
fn look_at(system: &System, pid: u32, wanted: &Wanted, own: &Own) -> Option<(Process, bool)> {
    const RING: &str = "anon_inode:[io_uring]";
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
    let mut maps = String::new();
    let mut lives = dir.as_str();
    for thread in &threads {
        match system.read(format!("{thread}/maps")) {
            Ok(text) => (maps, lives) = (text, thread),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return None,
            Err(_) => (),
        }
        if !maps.is_empty() {
            break;
        }
    }
    process.mappings = maps
        .lines()
        .filter_map(|line| {
            Vma::parse(line, wanted).or_else(|| Vma::of_other_node(system, lives, line, wanted))
        })
        .collect();
    // Each has its parts mapped at offsets which tell what they are.
    let mut mapped: BTreeMap<&str, usize> = BTreeMap::new();
    for line in maps.lines().filter(|line| line.ends_with(RING)) {
        let offset = line.split_ascii_whitespace().nth(2).unwrap_or_default();
        *mapped.entry(offset).or_default() += 1;
    }
    let mapped = mapped.into_values().max().unwrap_or(0);
    let mut rings = BTreeSet::new();
    let mut is_clear = true;
    // Each may have a table of files, and mounts, of its own.
    for thread in &threads {
        let mut view = None;
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
                let view = view.get_or_insert_with(|| View::of(system, thread, own));
                match Ring::parse(&info).has(wanted, &process.mappings, &maps, view) {
                    Some(true) => process.io_uring.push(fd),
                    Some(false) => (),
                    None => is_clear = false,
                }
            } else if fs::metadata(&path).is_ok_and(|status| wanted.is(&status)) {
                process.open.push(fd);
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
    Some((process, is_clear))
}

/// What this command sees.
struct Own {
    /// Which mounts these are.
    namespace: Option<PathBuf>,
    mounts: Vec<Mount>,
    root: PathBuf,
}

impl Own {
    fn of(system: &System) -> Self {
        Self {
            namespace: fs::read_link(system.path("/proc/self/ns/mnt")).ok(),
            mounts: mounts::all(system),
            root: system.path("/"),
        }
    }
}

/// What may be at the paths that are told of a thread's files: such a path begins at this command's root where the
/// file's mount is below that, and else at the root of the namespace that the mount is in.
#[derive(Default)]
struct View {
    /// Where the path leads as a rule.
    first: PathBuf,
    /// Where else it may lead.
    other: Option<PathBuf>,
    /// Those of the first.
    mounts: Vec<Mount>,
    /// Those of the other, unless they are the same.
    other_mounts: Vec<Mount>,
}

impl View {
    fn of(system: &System, thread: &str, own: &Own) -> Self {
        let root = system.path(format!("{thread}/root"));
        let namespace = fs::read_link(system.path(format!("{thread}/ns/mnt"))).ok();
        let has_same_mounts = namespace.is_some() && namespace == own.namespace;
        let identity = |path: &Path| {
            let status = fs::metadata(path).ok()?;
            Some((status.dev(), status.ino()))
        };
        let has_same_root = identity(&root).is_some() && identity(&root) == identity(&own.root);
        let own_mounts = own.mounts.clone();
        let (first, other, mounts, other_mounts) = match (has_same_mounts, has_same_root) {
            (true, true) => (own.root.clone(), None, own_mounts, Vec::new()),
            (true, false) => (own.root.clone(), Some(root), own_mounts, Vec::new()),
            (false, _) => {
                let mounts = mounts::in_file(system, &format!("{thread}/mountinfo"));
                (root, Some(own.root.clone()), mounts, own_mounts)
            }
        };
        Self {
            first,
            other,
            mounts,
            other_mounts,
        }
    }

    /// Whether what is wanted has this path; `None` if that cannot be said.
    fn leads_to(&self, path: &str, wanted: &Wanted) -> Option<bool> {
        let Some(below) = path.strip_prefix('/') else {
            // Sockets and the like have no path.
            return Some(false);
        };
        let is_wanted = |root: &Path| {
            let status = fs::metadata(root.join(below)).ok()?;
            Some((wanted.is(&status), status.dev()))
        };
        let first = is_wanted(&self.first);
        if let Some((true, _)) = first {
            // What is seen there may have been mounted over what the ring has.
            return (!self.may_hide_another(path, wanted)).then_some(true);
        }
        let other = self.other.as_deref().and_then(is_wanted);
        if other.is_some_and(|(is_wanted, _)| is_wanted) {
            return None;
        }
        // Or the other way round.
        let (_, device) = first?;
        (!self.may_hide(path, wanted, device)).then_some(false)
    }

    /// Whether what is wanted, and is seen at this path, may hide something else. What lies below where something
    /// is mounted does not count in the filesystem of the root, and in one without a device such as a tmpfs:
    /// otherwise nothing could be said of any mount.
    fn may_hide_another(&self, path: &str, wanted: &Wanted) -> bool {
        let number = number(wanted.device());
        let points = above(&self.mounts, path).map(|mount| &mount.point);
        let last = points.max_by_key(|point| point.as_os_str().len());
        let counts = |mount: &&Mount| {
            let is_last = Some(&mount.point) == last;
            let is_root = mount.point == Path::new("/");
            mount.device == number || !is_root && (is_last || !mount.device.starts_with("0:"))
        };
        let mut over = above(&self.mounts, path).filter(counts);
        match wanted {
            Wanted::Filesystem { .. } => over.any(|mount| mount.device != number),
            // One of them has what is seen.
            _ => over.count() > 1,
        }
    }

    /// Whether what is seen at this path, and is on `device`, may hide what is wanted.
    fn may_hide(&self, path: &str, wanted: &Wanted, device: u64) -> bool {
        let number = number(wanted.device());
        // One of them has what is seen.
        let seen = usize::from(device == wanted.device());
        [&self.mounts, &self.other_mounts]
            .into_iter()
            .any(|mounts| {
                let mounts = above(mounts, path);
                mounts.filter(|mount| mount.device == number).count() > seen
            })
    }

    /// Whether what is wanted may have had this path before that was removed.
    fn may_have_been(&self, path: &str, wanted: &Wanted) -> bool {
        let points = self.points(wanted);
        // What is unmounted, but not closed, has no path that tells anything.
        points.is_empty()
            || points
                .iter()
                .any(|point| Path::new(path).starts_with(point))
    }

    /// Where that is mounted which has what is wanted.
    fn points(&self, wanted: &Wanted) -> Vec<&Path> {
        let number = number(wanted.device());
        let mounts = self.mounts.iter().chain(&self.other_mounts);
        let mounts = mounts.filter(|mount| mount.device == number);
        mounts.map(|mount| mount.point.as_path()).collect()
    }
}

/// `major:minor`
fn number(device: u64) -> String {
    format!(
        "{}:{}",
        rustix::fs::major(device),
        rustix::fs::minor(device)
    )
}

/// The mounts that may have what is at this path, be they seen or below others.
fn above<'a>(mounts: &'a [Mount], path: &'a str) -> impl Iterator<Item = &'a Mount> {
    mounts
        .iter()
        .filter(move |mount| Path::new(path).starts_with(&mount.point))
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
    fn has(&self, wanted: &Wanted, mappings: &[Vma], maps: &str, view: &View) -> Option<bool> {
        let mut is_clear = self.is_known;
        for file in &self.files {
            // By which of its links a file was opened, and so removed, does not matter. A name may end in this, too.
            if let Some(path) = file.strip_suffix(" (deleted)") {
                is_clear &= !view.may_have_been(path, wanted);
                continue;
            }
            match view.leads_to(file, wanted) {
                Some(true) => return Some(true),
                Some(false) => (),
                None => is_clear = false,
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
    use std::os::unix::fs::symlink;

    fn wanted() -> Wanted {
        Wanted::File {
            device: rustix::fs::makedev(259, 1),
            inode: 131,
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

    /// A system in a directory, of processes that are laid out in it.
    struct Laid(tempfile::TempDir);

    impl Laid {
        fn new() -> Self {
            let laid = Self(tempfile::tempdir().unwrap());
            laid.mount("self", "/");
            laid.link("mnt:[1]", "proc/self/ns/mnt");
            laid
        }

        fn path(&self, path: &str) -> PathBuf {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            path
        }

        fn put(&self, path: &str, text: &str) -> PathBuf {
            let path = self.path(path);
            fs::write(&path, text).unwrap();
            path
        }

        fn link(&self, to: impl AsRef<Path>, path: &str) {
            symlink(to, self.path(path)).unwrap();
        }

        /// The device that all of it is on is mounted there, and nothing else.
        fn mount(&self, process: &str, point: &str) {
            let device = fs::metadata(self.0.path()).unwrap().dev();
            let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
            let line = format!("40 22 {major}:{minor} / {point} rw - xfs /dev/pmem0 rw\n");
            self.put(&format!("proc/{process}/mountinfo"), &line);
        }

        fn thread(&self, thread: &str, maps: &str) {
            self.put(&format!("proc/{thread}/comm"), "reader\n");
            self.put(&format!("proc/{thread}/maps"), maps);
        }

        /// A process with a ring that has a file of this path.
        fn ring(&self, pid: &str, root: &str, namespace: &str, file: &str) {
            self.thread(pid, "");
            self.link(self.0.path().join(root), &format!("proc/{pid}/root"));
            self.link(namespace, &format!("proc/{pid}/ns/mnt"));
            self.link("anon_inode:[io_uring]", &format!("proc/{pid}/fd/5"));
            let info = format!("UserFiles:\t1\n    0: {file}\n");
            self.put(&format!("proc/{pid}/fdinfo/5"), &info);
        }

        fn users(&self, wanted: &Wanted) -> Users {
            find(&System::new(self.0.path()), wanted)
        }

        /// Whether the ring has it.
        fn has(&self, wanted: &Wanted) -> Option<bool> {
            let users = self.users(wanted);
            let has = users.processes.iter().any(|found| found.io_uring == [5]);
            match users.unclear.is_empty() {
                true => Some(has),
                false if has => panic!("{users:?}"),
                false => None,
            }
        }
    }

    fn of(path: &Path) -> Wanted {
        Wanted::file(&fs::metadata(path).unwrap())
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
    fn a_ring_without_descriptor_is_unclear() {
        let file = |laid: &Laid| of(&laid.put("mnt/f", ""));
        let ring = |at: u32| {
            format!(
                "{at}000-{at}800 rw-s 00000000 00:0e 12 anon_inode:[io_uring]\n\
                 {at}800-{at}900 rw-s 10000000 00:0e 12 anon_inode:[io_uring]\n"
            )
        };
        // Besides one that has a descriptor, which is the same one in each thread.
        for (count, expected) in [(1, Some(false)), (2, None)] {
            let laid = Laid::new();
            let wanted = file(&laid);
            laid.put("mnt/g", "");
            laid.ring("77", "", "mnt:[1]", "/mnt/g");
            let maps: String = (1..=count).map(ring).collect();
            laid.thread("77", &maps);
            for path in ["fd/5", "root", "ns/mnt"] {
                let to = fs::read_link(laid.path(&format!("proc/77/{path}"))).unwrap();
                laid.link(to, &format!("proc/77/task/78/{path}"));
            }
            laid.put("proc/77/task/78/fdinfo/5", "UserFiles:\t1\n    0: /mnt/g\n");
            assert_eq!(laid.has(&wanted), expected, "{count}");
        }
        // One that is not even mapped, and works.
        let laid = Laid::new();
        let wanted = file(&laid);
        laid.thread("77", "");
        assert_eq!(laid.has(&wanted), Some(false));
        laid.put("proc/77/task/78/comm", "iou-sqp-77\n");
        assert_eq!(laid.has(&wanted), None);
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

    #[test]
    fn files_of_a_ring_are_known_by_their_identity() {
        for (path, expected) in [
            ("/mnt/f", Some(true)),
            ("/mnt/link", Some(true)),
            ("/mnt/g", Some(false)),
            ("socket:[5]", Some(false)),
            ("/mnt/none", None),
            // A link of it, perhaps.
            ("/mnt/f (deleted)", None),
            ("/mnt/unlinked (deleted)", None),
            ("/memory:none (deleted)", Some(false)),
        ] {
            let laid = Laid::new();
            laid.mount("self", "/mnt");
            let file = laid.put("mnt/f", "");
            laid.put("mnt/g", "");
            fs::hard_link(&file, laid.path("mnt/link")).unwrap();
            laid.ring("77", "", "mnt:[1]", path);
            assert_eq!(laid.has(&of(&file)), expected, "{path}");
        }
    }

    #[test]
    fn files_of_a_ring_are_looked_up_in_its_mounts() {
        // In a container, with another file at the same path here.
        let laid = Laid::new();
        let (inner, outer) = (laid.put("inner/mnt/f", ""), laid.put("mnt/f", ""));
        laid.mount("77", "/mnt");
        laid.ring("77", "inner", "mnt:[2]", "/mnt/f");
        assert_eq!(laid.has(&of(&inner)), Some(true));
        // Nobody is accused for a file of the same path, nor is it denied: it may have it from here.
        assert_eq!(laid.has(&of(&outer)), None);
        assert_eq!(laid.has(&of(&laid.put("mnt/g", ""))), Some(false));
    }

    #[test]
    fn files_of_a_ring_in_a_changed_root_are_looked_up_here() {
        let laid = Laid::new();
        let (inner, outer) = (laid.put("inner/mnt/f", ""), laid.put("mnt/f", ""));
        laid.ring("77", "inner", "mnt:[1]", "/mnt/f");
        assert_eq!(laid.has(&of(&outer)), Some(true));
        assert_eq!(laid.has(&of(&inner)), None);
    }

    #[test]
    fn what_is_mounted_over_a_file_hides_it() {
        let laid = Laid::new();
        laid.put("mnt/f", "");
        laid.ring("77", "", "mnt:[1]", "/mnt/f");
        // The file is on another device, which is mounted there, too, below what is seen.
        let wanted = Wanted::File {
            device: rustix::fs::makedev(259, 7),
            inode: 131,
        };
        let info = |point: &str| {
            let line = format!("41 22 259:7 / {point} rw - xfs /dev/pmem0 rw\n");
            laid.put("proc/self/mountinfo", &line);
        };
        info("/mnt");
        assert_eq!(laid.has(&wanted), None);
        assert_eq!(
            laid.has(&Wanted::Filesystem {
                device: wanted.device()
            }),
            None
        );
        info("/elsewhere");
        assert_eq!(laid.has(&wanted), Some(false));
    }

    #[test]
    fn what_is_mounted_over_a_file_is_not_taken_for_it() {
        let laid = Laid::new();
        let (file, other) = (laid.put("mnt/p/f", ""), laid.put("mnt/x/f", ""));
        laid.ring("77", "", "mnt:[1]", "/mnt/p/f");
        let device = number(fs::metadata(&file).unwrap().dev());
        let mounts = |mounts: &[(&str, &str)]| {
            let line = |(number, point): &(&str, &str)| {
                format!("41 22 {number} / {point} rw - xfs /dev/pmem0 rw\n")
            };
            let lines: String = mounts.iter().map(line).collect();
            laid.put("proc/self/mountinfo", &lines);
        };
        let filesystem = Wanted::Filesystem {
            device: fs::metadata(&file).unwrap().dev(),
        };
        let all = || [of(&file), of(&other), filesystem].map(|wanted| laid.has(&wanted));
        let known = [Some(true), Some(false), Some(true)];
        mounts(&[("0:1", "/"), (&device, "/mnt/p"), (&device, "/mnt/x")]);
        assert_eq!(all(), known);
        // A file of the same filesystem, over the file.
        mounts(&[("0:1", "/"), (&device, "/mnt/p"), (&device, "/mnt/p/f")]);
        assert_eq!(all(), [None, None, Some(true)]);
        // A filesystem over another, at the same place and further below.
        for point in ["/mnt/p", "/mnt"] {
            mounts(&[("0:1", "/"), ("259:7", point), (&device, "/mnt/p")]);
            assert_eq!(all(), [None, Some(false), None], "{point}");
        }
        // One without a device, at the same place and further above.
        mounts(&[("0:1", "/"), ("0:9", "/mnt/p"), (&device, "/mnt/p")]);
        assert_eq!(all(), [None, Some(false), None]);
        mounts(&[("0:1", "/"), ("0:9", "/mnt"), (&device, "/mnt/p")]);
        assert_eq!(all(), known);
        // The same filesystem once more, elsewhere.
        mounts(&[("0:1", "/"), ("259:7", "/mnt/x"), (&device, "/mnt/p")]);
        assert_eq!(all(), known);
        // One that is the root's.
        mounts(&[(&device, "/"), (&device, "/mnt/p/f")]);
        assert_eq!(all(), [None, None, Some(true)]);
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
            ring.has(&wanted, &mappings, maps, &View::default())
        };
        assert_eq!(has(0x2000, 0x2fff), Some(true));
        assert_eq!(has(0x0800, 0x1000), Some(true));
        assert_eq!(has(0x8000, 0x8fff), Some(false));
        // Nothing is mapped there any more.
        assert_eq!(has(0x5000, 0x5fff), None);
        assert_eq!(has(0x3000, 0x3fff), None);
    }
}
