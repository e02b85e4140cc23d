// SPDX-License-Identifier: GPL-2.0

//! Where the paths lead that are told of the files of a process.

use super::{
    overlay::{Answer, Known, Overlays},
    Wanted,
};
use crate::{
    mounts::{self, Mount},
    system::System, //
};
use rustix::{
    fs::{openat2, Mode, OFlags, ResolveFlags, CWD},
    mount::{open_tree, OpenTreeFlags}, //
};
use std::{
    collections::HashMap,
    ffi::OsString,
    fs,
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
    rc::Rc, //
};

/// Mounts, by where they are: anybody may have a hundred thousand, and as many files in a ring.
#[derive(Default)]
pub(super) struct Mounts {
    list: Vec<Mount>,
    /// The first is the root directory.
    nodes: Vec<Node>,
    /// How many there are of each device.
    devices: HashMap<String, usize>,
}

/// A directory that something is mounted on, or below.
#[derive(Default)]
struct Node {
    below: HashMap<OsString, usize>,
    /// What is mounted on it, the first one first: places in the list.
    mounts: Vec<usize>,
    /// The same by devices: how many.
    devices: HashMap<String, usize>,
}

impl Mounts {
    pub(super) fn new(list: Vec<Mount>) -> Self {
        let mut nodes = vec![Node::default()];
        let mut devices = HashMap::new();
        for (place, mount) in list.iter().enumerate() {
            let mut at = 0;
            for name in names(&mount.point) {
                let new = nodes.len();
                let Some(node) = nodes.get_mut(at) else {
                    break;
                };
                at = *node.below.entry(name).or_insert(new);
                if at == new {
                    nodes.push(Node::default());
                }
            }
            if let Some(node) = nodes.get_mut(at) {
                node.mounts.push(place);
                *node.devices.entry(mount.device.clone()).or_default() += 1;
            }
            *devices.entry(mount.device.clone()).or_default() += 1;
        }
        Self {
            list,
            nodes,
            devices,
        }
    }

    pub(super) fn list(&self) -> &[Mount] {
        &self.list
    }

    /// The directories that a path goes through.
    fn through(&self, path: &str) -> Vec<&Node> {
        let mut through: Vec<&Node> = self.nodes.first().into_iter().collect();
        for name in names(Path::new(path)) {
            let next = through.last().and_then(|node| node.below.get(&name));
            let Some(node) = next.and_then(|at| self.nodes.get(*at)) else {
                break;
            };
            through.push(node);
        }
        through
    }

    /// Those that may have what is at this path, be they seen or below others; the last one is what is seen.
    fn above(&self, path: &str) -> impl DoubleEndedIterator<Item = &Mount> {
        let through = self.through(path).into_iter();
        let places = through.flat_map(|node| node.mounts.iter());
        places.filter_map(|place| self.list.get(*place))
    }

    /// The one that has what is seen at this path.
    pub(super) fn seen(&self, path: &str) -> Option<&Mount> {
        self.above(path).next_back()
    }

    /// How many of them are of this device.
    fn count(&self, path: &str, device: &str) -> usize {
        let through = self.through(path).into_iter();
        through.filter_map(|node| node.devices.get(device)).sum()
    }

    fn has(&self, device: &str) -> bool {
        self.devices.contains_key(device)
    }
}

fn names(path: &Path) -> impl Iterator<Item = OsString> + '_ {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        _ => None,
    })
}

/// What this command sees.
pub(super) struct Own {
    /// Which mounts these are.
    namespace: Option<PathBuf>,
    pub(super) mounts: Rc<Mounts>,
    root: PathBuf,
    /// What the root is on: `st_dev`.
    pub(super) device: Option<u64>,
}

impl Own {
    pub(super) fn of(system: &System) -> Self {
        let root = system.path("/");
        Self {
            namespace: fs::read_link(system.path("/proc/self/ns/mnt")).ok(),
            mounts: Rc::new(Mounts::new(mounts::all(system))),
            device: fs::metadata(&root).ok().map(|status| status.dev()),
            root,
        }
    }
}

/// What may be at the paths that are told of a thread's files: such a path begins at this command's root where the
/// file's mount is below that, and else at the root of the namespace that the mount is in.
#[derive(Default)]
pub(super) struct View<'a> {
    /// Where the path leads as a rule.
    first: PathBuf,
    /// Where else it may lead.
    other: Option<PathBuf>,
    /// Those of the first.
    mounts: Rc<Mounts>,
    /// Those of the other, unless they are the same.
    other_mounts: Rc<Mounts>,
    /// Those among the first that may have what is wanted.
    overlays: Option<&'a Overlays>,
    /// Whether the first are this command's own, which it may look below.
    are_own: bool,
}

impl<'a> View<'a> {
    pub(super) fn of(system: &System, thread: &str, own: &Own, overlays: &'a Overlays) -> Self {
        let root = system.path(format!("{thread}/root"));
        let namespace = fs::read_link(system.path(format!("{thread}/ns/mnt"))).ok();
        let has_same_mounts = namespace.is_some() && namespace == own.namespace;
        let identity = |path: &Path| {
            let status = fs::metadata(path).ok()?;
            Some((status.dev(), status.ino()))
        };
        let has_same_root = identity(&root).is_some() && identity(&root) == identity(&own.root);
        let own_mounts = Rc::clone(&own.mounts);
        let none = Rc::default();
        let (first, other, mounts, other_mounts) = match (has_same_mounts, has_same_root) {
            (true, true) => (own.root.clone(), None, own_mounts, none),
            (true, false) => (own.root.clone(), Some(root), own_mounts, none),
            (false, _) => {
                let mounts = mounts::in_file(system, &format!("{thread}/mountinfo"));
                let mounts = Rc::new(Mounts::new(mounts));
                (root, Some(own.root.clone()), mounts, own_mounts)
            }
        };
        Self {
            first,
            other,
            mounts,
            other_mounts,
            overlays: Some(overlays),
            are_own: has_same_mounts && system.is_real(),
        }
    }

    /// Whether what is wanted has this path; `None` if that cannot be said.
    pub(super) fn leads_to(&self, path: &str, wanted: &Wanted) -> Option<bool> {
        let Some(below) = path.strip_prefix('/') else {
            // Sockets and the like have no path.
            return Some(false);
        };
        let seen = self.mounts.seen(path);
        if wanted.is_on_block_device() && seen.is_some_and(Mount::is_remote) {
            // Nobody may answer.
            return (!self.may_hide(path, wanted, 0)).then_some(false);
        }
        if let Some((overlays, mount)) = self.overlays.filter(|all| !all.is_empty()).zip(seen) {
            let inode = || Some(fs::metadata(self.first.join(below)).ok()?.ino());
            let inode = inode().unwrap_or(0);
            match overlays.have_open(mount.id, inode, path, wanted, &mut Known::new()) {
                Answer::Elsewhere => (),
                Answer::Yes => return Some(true),
                Answer::No => return Some(false),
                Answer::Unclear(_) => return None,
            }
        }
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

    /// Whether what is wanted, and is seen at this path, may hide something else. In the filesystem of the root, and
    /// in one without a device such as a tmpfs, nothing else is there unless that is seen: otherwise nothing could be
    /// said of any mount.
    fn may_hide_another(&self, path: &str, wanted: &Wanted) -> bool {
        let number = number(wanted.device());
        let last = self.mounts.seen(path).map(|mount| &mount.point);
        let counts = |mount: &&Mount| {
            let is_last = Some(&mount.point) == last;
            let is_root = mount.point == Path::new("/");
            mount.device == number
                || !is_root && (is_last || !mount.device.starts_with("0:"))
                || self.are_own && is_there(mount, path)
        };
        let mut over = self.mounts.above(path).filter(counts);
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
            .any(|mounts| mounts.count(path, &number) > seen)
    }

    /// Whether what is wanted may have had this path before that was removed.
    pub(super) fn may_have_been(&self, path: &str, wanted: &Wanted) -> bool {
        let number = number(wanted.device());
        let mounts = [&self.mounts, &self.other_mounts];
        // What is unmounted, but not closed, has no path that tells anything.
        mounts.iter().all(|mounts| !mounts.has(&number))
            || mounts.iter().any(|mounts| mounts.count(path, &number) != 0)
    }
}

/// `major:minor`
pub(super) fn number(device: u64) -> String {
    format!(
        "{}:{}",
        rustix::fs::major(device),
        rustix::fs::minor(device)
    )
}

/// Whether something has this path in what is mounted there, below what is mounted over that in turn. This is for root
/// to see: others are told that nothing has.
fn is_there(mount: &Mount, path: &str) -> bool {
    let look = || -> Option<()> {
        let below = Path::new(path).strip_prefix(&mount.point).ok()?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let alone = open_tree(CWD, &mount.point, flags).ok()?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        openat2(alone, below, flags, Mode::empty(), resolve).ok()?;
        Some(())
    };
    look().is_some()
}

#[cfg(test)]
mod tests {
    use super::{
        super::laid::{of, Laid},
        *,
    };

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
    fn nobody_who_may_not_answer_is_asked_for_a_path() {
        let laid = Laid::new();
        let file = laid.put("mnt/nfs/f", "");
        laid.ring("77", "", "mnt:[1]", "/mnt/nfs/f");
        assert_eq!(laid.has(&of(&file)), Some(true));
        laid.put(
            "proc/self/mountinfo",
            "40 22 259:7 / / rw - xfs /dev/pmem0 rw\n\
             77 40 0:50 / /mnt/nfs rw - nfs4 server:/ rw\n",
        );
        // It is not looked for there.
        assert_eq!(laid.has(&of(&file)), Some(false));
        // It may be below the mount.
        let below = Wanted::File {
            device: rustix::fs::makedev(259, 7),
            inode: 131,
        };
        assert_eq!(laid.has(&below), None);
    }

    /// Anybody may have so many of both in a user namespace of their own, which are not to be compared each with each.
    #[test]
    fn many_mounts_and_files_are_looked_at_in_time() {
        let laid = Laid::new();
        let file = laid.put("mnt/f", "");
        laid.put("mnt/g", "");
        laid.ring("77", "", "mnt:[2]", "/mnt/g");
        let other = "41 22 0:77 / /mnt rw - tmpfs tmpfs rw\n".repeat(100_000);
        laid.put("proc/77/mountinfo", &other);
        for (path, expected) in [("/mnt/g", Some(false)), ("/mnt/g (deleted)", None)] {
            let files = format!("    0: {path}\n").repeat(32_768);
            laid.put("proc/77/fdinfo/5", &format!("UserFiles:\t32768\n{files}"));
            assert_eq!(laid.has(&of(&file)), expected, "{path}");
        }
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
}
