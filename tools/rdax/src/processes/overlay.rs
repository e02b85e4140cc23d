// SPDX-License-Identifier: GPL-2.0

//! What a process has through overlayfs: /proc tells the device and inode of the overlay, not those of the file below.

use super::{view::number, Own, Wanted};
use crate::{
    mounts::{self, Mount},
    system::System, //
};
use rustix::fs::{fstat, open, openat2, Mode, OFlags, ResolveFlags};
use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    path::{Path, PathBuf}, //
};

/// So many files of a process are looked for in the layers. Of others of it nothing is said.
const MOST: usize = 1024;

/// The overlays of a mount namespace, and of this command's own, that may have what is wanted.
#[derive(Default)]
pub(super) struct Overlays(Vec<Overlay>);

/// A file of an overlay: its device and its inode's number there, and its path.
pub(super) type Place = (u64, u64, String);

/// What was found of the files of a process, which may have each many times.
pub(super) type Known = BTreeMap<Place, Option<bool>>;

struct Overlay {
    mount: Mount,
    /// Those that are looked into, first the one that covers the others; nothing if it is not seen where they are.
    layers: Option<Vec<PathBuf>>,
}

impl Overlays {
    /// Those among the mounts of a namespace.
    pub(super) fn of(system: &System, mounts: &[Mount], own: &Own, wanted: &Wanted) -> Self {
        if !wanted.is_on_block_device() {
            return Self::default();
        }
        let of_root = own.device.map(number);
        // A descriptor may be from before it had mounts of its own.
        let overlays: BTreeMap<u64, &Mount> = mounts
            .iter()
            .chain(own.mounts.list())
            .filter(|mount| mount.kind == "overlay")
            .map(|mount| (mount.id, mount))
            .collect();
        let overlays = overlays.into_values().filter_map(|mount| {
            // Its layers are told as who has mounted it saw them.
            let is_own = own
                .mounts
                .list()
                .iter()
                .any(|own| own.device == mount.device);
            let layers = is_own.then(|| layers(system, mount, own)).flatten();
            let may_have = match &layers {
                Some(layers) => layers.iter().any(|(_, device)| *device == wanted.device()),
                // The root filesystem is there before all others.
                None => of_root.as_ref() != Some(&mount.device),
            };
            let paths = |layers: Vec<(PathBuf, u64)>| layers.into_iter().map(|(path, _)| path);
            may_have.then(|| Overlay {
                mount: mount.clone(),
                layers: layers.map(|layers| paths(layers).collect()),
            })
        });
        Self(overlays.collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether what is open on the mount of this number is what is wanted; the number of its inode there, and its
    /// path.
    pub(super) fn have_open(
        &self,
        mount: u64,
        inode: u64,
        path: &str,
        wanted: &Wanted,
        known: &mut Known,
    ) -> Answer<'_> {
        let found = self.0.iter().find(|overlay| overlay.mount.id == mount);
        found.map_or(Answer::Elsewhere, |overlay| {
            overlay.answer(inode, path, wanted, known)
        })
    }

    /// Whether what is mapped from this device is what is wanted.
    pub(super) fn have_mapped(
        &self,
        device: u64,
        inode: u64,
        path: &str,
        wanted: &Wanted,
        known: &mut Known,
    ) -> Answer<'_> {
        if self.0.is_empty() {
            return Answer::Elsewhere;
        }
        let device = number(device);
        let of_device = self.0.iter().filter(|found| found.mount.device == device);
        // As a rule the one that is mounted last counts, of those whose path is the longest.
        let found = of_device.max_by_key(|overlay| {
            let point = &overlay.mount.point;
            (Path::new(path).starts_with(point), point.as_os_str().len())
        });
        found.map_or(Answer::Elsewhere, |overlay| {
            overlay.answer(inode, path, wanted, known)
        })
    }
}

/// Whether a file is what is wanted.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer<'a> {
    /// It is on none of the overlays.
    Elsewhere,
    Yes,
    No,
    /// It cannot be said of this overlay.
    Unclear(&'a Path),
}

impl Overlay {
    fn answer(&self, inode: u64, path: &str, wanted: &Wanted, known: &mut Known) -> Answer<'_> {
        // The number of the mount is no worse than that of its device: each has its own.
        let place = (self.mount.id, inode, path.to_owned());
        let has = match known.get(&place) {
            Some(has) => *has,
            None if known.len() >= MOST => None,
            None => {
                let has = self.has(inode, path, wanted);
                known.insert(place, has);
                has
            }
        };
        match has {
            Some(true) => Answer::Yes,
            Some(false) => Answer::No,
            None => Answer::Unclear(&self.mount.point),
        }
    }

    /// `None` if it cannot be said: it was copied up, renamed, or removed since it was opened, or the layers are
    /// not seen.
    fn has(&self, inode: u64, path: &str, wanted: &Wanted) -> Option<bool> {
        // An inode has the number of that in the layer which it was made of, but for some bits at the top that
        // tell which layer that is. One that was copied up keeps the number it had.
        let same = |one: u64| one as u32 == inode as u32;
        let may_be = || match wanted {
            Wanted::File { inode, .. } => same(*inode),
            _ => true,
        };
        let found = self.layers.as_ref().zip(self.below(path));
        let Some((layers, below)) = found else {
            return (!may_be()).then_some(false);
        };
        let found: Vec<_> = layers
            .iter()
            .filter_map(|layer| identity(layer, &below))
            .collect();
        let is_wanted = |(device, inode): &(u64, u64)| wanted.is_mapped(*device, *inode);
        match found.first() {
            Some(first) if is_wanted(first) && same(first.1) => Some(true),
            Some(first) if !is_wanted(first) && same(first.1) => Some(false),
            _ if found.iter().any(is_wanted) || may_be() => None,
            _ => Some(false),
        }
    }

    /// Where something is in a layer.
    fn below(&self, path: &str) -> Option<PathBuf> {
        let below = Path::new(path).strip_prefix(&self.mount.point).ok()?;
        Some(self.mount.root.strip_prefix("/").ok()?.join(below))
    }
}

/// Device and inode of what has this path in a layer. A layer ends where something is mounted on it, and those who use
/// the overlay may have made links there, which lead anywhere.
fn identity(layer: &Path, below: &Path) -> Option<(u64, u64)> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let layer = open_layer(layer)?;
    let found = openat2(layer, below, flags, Mode::empty(), resolve).ok()?;
    let status = fstat(found).ok()?;
    Some((status.st_dev, status.st_ino))
}

fn open_layer(path: &Path) -> Option<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open(path, flags, Mode::empty()).ok()
}

/// The layers of an overlay, first the one that covers the others, each with its device; nothing unless all are seen
/// here.
fn layers(system: &System, mount: &Mount, own: &Own) -> Option<Vec<(PathBuf, u64)>> {
    let mut names = Vec::new();
    for option in &mount.options {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        let value = mounts::unescape(value);
        match name {
            "upperdir" => names.insert(0, value),
            "lowerdir" => names.extend(parts(&value)),
            "lowerdir+" | "datadir+" => names.push(value),
            _ => (),
        }
    }
    let all = names.iter().map(|name| {
        let path = Path::new(name);
        // Nobody may answer there.
        if !path.is_absolute() || own.mounts.seen(name).is_some_and(Mount::is_remote) {
            return None;
        }
        let path = system.path(path);
        let device = fstat(open_layer(&path)?).ok()?.st_dev;
        Some((path, device))
    });
    all.collect::<Option<Vec<_>>>()
        .filter(|all| !all.is_empty())
}

/// The directories of `lowerdir`: between colons, of which those that are part of a name have a backslash.
fn parts(value: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut signs = value.chars();
    while let Some(sign) = signs.next() {
        let sign = match sign {
            ':' => {
                parts.push(String::new());
                continue;
            }
            '\\' => signs.next().unwrap_or(sign),
            _ => sign,
        };
        parts
            .last_mut()
            .into_iter()
            .for_each(|part| part.push(sign));
    }
    // Two colons are before those that have only data.
    parts.retain(|part| !part.is_empty());
    parts
}

#[cfg(test)]
mod tests {
    use super::{
        super::laid::{of, Laid},
        *,
    };
    use crate::processes::Users;
    use std::{fs, os::unix::fs::MetadataExt};

    /// A process that has, on an overlay of two layers, a file of this path open and mapped.
    fn users(laid: &Laid, path: &str, inode: u64, wanted: &Wanted, layers: &str) -> Users {
        let overlay = format!("77 40 0:91 /sub /mnt/o rw - overlay overlay rw,{layers}\n");
        laid.put("proc/self/mountinfo", &overlay);
        laid.put("proc/7/mountinfo", &overlay);
        for link in ["proc/7/ns/mnt", "proc/7/fd/3"] {
            // Of the time before.
            let _ = fs::remove_file(laid.path(link));
        }
        laid.link("mnt:[2]", "proc/7/ns/mnt");
        laid.thread(
            "7",
            &format!("7f0000200000-7f0000600000 rw-s 00000000 00:5b {inode} {path}\n"),
        );
        laid.link(path, "proc/7/fd/3");
        laid.put("proc/7/fdinfo/3", &format!("mnt_id:\t77\nino:\t{inode}\n"));
        laid.users(wanted)
    }

    fn number(path: &Path) -> u64 {
        fs::metadata(path).unwrap().ino()
    }

    const LAYERS: &str = "lowerdir=/top:/db,upperdir=/up,workdir=/work";

    fn layered() -> (Laid, PathBuf, PathBuf) {
        let laid = Laid::new();
        laid.put("up/x", "");
        laid.put("top/x", "");
        let (file, other) = (laid.put("db/sub/f", ""), laid.put("db/sub/g", ""));
        (laid, file, other)
    }

    #[test]
    fn who_has_a_file_through_an_overlay_is_named() {
        for layers in [LAYERS, "lowerdir+=/top,lowerdir+=/db,upperdir=/up"] {
            let (laid, file, _) = layered();
            let found = users(&laid, "/mnt/o/f", number(&file), &of(&file), layers);
            assert!(found.unclear.is_empty(), "{found:?}");
            let process = &found.processes[0];
            assert_eq!(process.open, [3]);
            assert_eq!(process.mappings[0].path, "/mnt/o/f");
        }
        // Of a layer that is told by bits at the top.
        let (laid, file, _) = layered();
        let inode = number(&file) | (1 << 62);
        let found = users(&laid, "/mnt/o/f", inode, &of(&file), LAYERS);
        assert_eq!(found.processes.len(), 1, "{found:?}");
        // All that is on the device.
        let (laid, file, _) = layered();
        let device = fs::metadata(&file).unwrap().dev();
        let wanted = Wanted::Filesystem { device };
        let found = users(&laid, "/mnt/o/f", number(&file), &wanted, LAYERS);
        assert_eq!(found.processes.len(), 1, "{found:?}");
    }

    #[test]
    fn who_has_another_file_of_an_overlay_is_not() {
        let (laid, file, other) = layered();
        let found = users(&laid, "/mnt/o/g", number(&other), &of(&file), LAYERS);
        assert_eq!(found, Users::default());
        // One that covers it.
        let (laid, file, _) = layered();
        let over = laid.put("up/sub/f", "");
        let found = users(&laid, "/mnt/o/f", number(&over), &of(&file), LAYERS);
        assert_eq!(found, Users::default());
        let found = users(&laid, "/mnt/o/f", number(&over), &of(&over), LAYERS);
        assert_eq!(found.processes.len(), 1, "{found:?}");
    }

    #[test]
    fn what_cannot_be_seen_of_an_overlay_is_told() {
        // Copied up since it was opened, or before.
        let (laid, file, _) = layered();
        let over = laid.put("up/sub/f", "");
        for wanted in [&file, &over] {
            let found = users(&laid, "/mnt/o/f", number(&file), &of(wanted), LAYERS);
            assert!(found.processes.is_empty(), "{found:?}");
            assert_eq!(found.unclear.len(), 1, "{found:?}");
            let text = found.unclear[0].text();
            assert!(
                text.contains("reader (7)") && text.contains("/mnt/o"),
                "{text}"
            );
        }
        // Removed there, or renamed; or the layers are elsewhere.
        for (path, layers) in [
            ("/mnt/o/f (deleted)", LAYERS),
            ("/mnt/o/renamed/f", LAYERS),
            ("/mnt/o/f", "lowerdir=top:db,upperdir=/up"),
            ("/mnt/o/f", "lowerdir=/none:/db"),
        ] {
            let (laid, file, other) = layered();
            let found = users(&laid, path, number(&file), &of(&file), layers);
            assert!(
                found.processes.is_empty() && found.unclear.len() == 1,
                "{path}: {found:?}"
            );
            // It is another one, by its number.
            let found = users(&laid, path, number(&other), &of(&file), layers);
            let expected = usize::from(path == "/mnt/o/f" && layers == LAYERS);
            assert_eq!(found.unclear.len(), expected, "{path}: {found:?}");
        }
    }

    #[test]
    fn links_in_a_layer_lead_nowhere() {
        let (laid, file, _) = layered();
        let other = laid.put("up/other/f", "");
        laid.link("other", "up/sub");
        let found = users(&laid, "/mnt/o/f", number(&file), &of(&other), LAYERS);
        assert_eq!(found, Users::default());
    }

    #[test]
    fn directories_of_an_option() {
        assert_eq!(parts("/a:/b"), ["/a", "/b"]);
        assert_eq!(parts("/a\\:b:/c::/d"), ["/a:b", "/c", "/d"]);
        assert!(parts("").is_empty());
    }

    /// Anybody may have as many, which are not all looked for.
    #[test]
    fn many_files_of_an_overlay_are_looked_at_in_time() {
        let (laid, file, _) = layered();
        let found = users(&laid, "/mnt/o/f", number(&file), &of(&file), LAYERS);
        assert_eq!(found.processes.len(), 1);
        let lines: Vec<String> = (0..65530u64)
            .map(|at| {
                format!(
                    "{at:x}000-{at:x}800 rw-s 00000000 00:5b {} /mnt/o/{at}\n",
                    at + 5
                )
            })
            .collect();
        laid.thread("7", &lines.concat());
        let found = laid.users(&of(&file));
        assert_eq!(found.unclear.len(), 1, "{found:?}");
    }
}
