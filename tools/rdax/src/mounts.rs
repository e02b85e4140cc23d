// SPDX-License-Identifier: GPL-2.0

//! What is mounted.

use crate::{device, output::word, system::System};
use std::{
    ffi::OsString,
    fs,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf}, //
};

/// A mount, from a line of `mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// What `fdinfo` calls it.
    pub id: u64,
    /// `major:minor` of what the filesystem is on.
    pub device: String,
    /// What of the filesystem is mounted: `/` for all, a directory of it for a bind mount of that.
    pub root: PathBuf,
    pub point: PathBuf,
    pub kind: String,
    pub source: String,
    /// The filesystem's options.
    pub options: Vec<String>,
}

impl Mount {
    /// Of names nothing is lost, whatever bytes they are of.
    fn parse(line: &[u8]) -> Option<Self> {
        let text = |word: &[u8]| String::from_utf8_lossy(word).into_owned();
        let path = |word: &[u8]| PathBuf::from(OsString::from_vec(unescaped(word)));
        let mut words = line.split(|&byte| byte == b' ');
        let id = text(words.next()?).parse().ok()?;
        let device = text(words.nth(1)?);
        let root = path(words.next()?);
        let point = path(words.next()?);
        // Options of the mount, and what there may be more.
        words.find(|&word| word == b"-")?;
        Some(Self {
            id,
            device,
            root,
            point,
            kind: text(words.next()?),
            source: String::from_utf8_lossy(&unescaped(words.next()?)).into_owned(),
            options: text(words.next()?).split(',').map(str::to_owned).collect(),
        })
    }

    /// Whether what it has is somebody's who may not answer: a server's, or a process's.
    pub fn is_remote(&self) -> bool {
        const KINDS: [&str; 7] = ["9p", "afs", "ceph", "cifs", "lustre", "ocfs2", "smb3"];
        // `nfs4`, `fuseblk`, `fuse.sshfs`.
        let starts = ["nfs", "fuse"];
        KINDS.contains(&self.kind.as_str())
            || starts.iter().any(|start| self.kind.starts_with(start))
    }

    /// The value of an option of the filesystem.
    pub fn option(&self, name: &str) -> Option<&str> {
        let values = self.options.iter();
        values
            .filter_map(|option| option.strip_prefix(name)?.strip_prefix('='))
            .next()
    }

    /// `always`, `inode`, `never`, or nothing where the option was not given.
    pub fn dax(&self) -> Option<&str> {
        self.options.iter().find_map(|option| {
            if option == "dax" {
                Some("always")
            } else {
                option.strip_prefix("dax=")
            }
        })
    }
}

/// Spaces and the like are written as octal numbers.
pub fn unescape(text: &str) -> String {
    String::from_utf8_lossy(&unescaped(text.as_bytes())).into_owned()
}

fn unescaped(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let digits = bytes.get(at + 1..at + 4).filter(|_| byte == b'\\');
        let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(number) => {
                out.push(number);
                at += 4;
            }
            None => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}

/// All mounts that this process sees.
pub fn all(system: &System) -> Vec<Mount> {
    in_file(system, "/proc/self/mountinfo")
}

/// The mounts that a file of `/proc` tells.
pub fn in_file(system: &System, path: &str) -> Vec<Mount> {
    let text = fs::read(system.path(path)).unwrap_or_default();
    let lines = text.split(|&byte| byte == b'\n');
    lines.filter_map(Mount::parse).collect()
}

/// Where the filesystem on a block device (`major:minor`) is mounted.
pub fn of(system: &System, device: &str) -> Vec<Mount> {
    let mut mounts = all(system);
    mounts.retain(|mount| mount.device == device);
    mounts
}

/// What a block device of this name is for a filesystem that is mounted and is on another one, and where that is.
pub fn with_part(system: &System, name: &str) -> Option<(&'static str, Mount)> {
    const PARTS: [(&str, &str); 2] = [("rtdev", "realtime device"), ("logdev", "log")];
    all(system).into_iter().find_map(|mount| {
        let is_named = |option: &str| {
            let path = mount.option(option);
            path.is_some_and(|path| device::kernel_name(system, path) == name)
        };
        let part = PARTS.iter().find(|(option, _)| is_named(option));
        part.map(|(_, what)| *what).map(|what| (what, mount))
    })
}

/// What to do, so that a device which is mounted is adopted.
pub fn how_to_adopt(name: &str, mount: &Mount) -> String {
    if mount.point == Path::new("/") {
        return format!(
            "rdax adopt --persist {name} notes it for the boot; update-initramfs -u, and reboot"
        );
    }
    let point = word(&mount.point);
    format!("umount {point}, rdax adopt {name}, and mount it again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line() {
        let line = "36 25 259:0 / /mnt/a\\040b rw,relatime shared:1 master:2 - xfs /dev/pmem0 \
                    rw,attr2,dax=always,inode64";
        let mount = Mount::parse(line.as_bytes()).unwrap();
        assert_eq!(mount.device, "259:0");
        assert_eq!(mount.root, PathBuf::from("/"));
        assert_eq!(mount.point, PathBuf::from("/mnt/a b"));
        assert_eq!(mount.kind, "xfs");
        assert_eq!(mount.source, "/dev/pmem0");
        assert_eq!(mount.dax(), Some("always"));
    }

    #[test]
    fn a_point_is_quoted_as_it_is() {
        let mut line = b"36 25 259:0 / /mnt/a\\012b\xff".to_vec();
        line.extend(b" rw - xfs /dev/pmem0 rw");
        let mount = Mount::parse(&line).unwrap();
        assert_eq!(
            how_to_adopt("pmem0", &mount),
            "umount $'/mnt/a\\012b\\377', rdax adopt pmem0, and mount it again"
        );
    }

    #[test]
    fn kinds_of_the_option() {
        let with = |options: &str| {
            Mount::parse(format!("1 1 259:0 / /mnt rw - ext4 /dev/pmem0 {options}").as_bytes())
                .unwrap()
                .dax()
                .map(str::to_owned)
        };
        assert_eq!(with("rw,dax").as_deref(), Some("always"));
        assert_eq!(with("rw,dax=inode").as_deref(), Some("inode"));
        assert_eq!(with("rw,dax=never").as_deref(), Some("never"));
        assert_eq!(with("rw"), None);
    }

    #[test]
    fn lines_that_are_none() {
        assert_eq!(Mount::parse(b""), None);
        assert_eq!(Mount::parse(b"36 25 259:0 / /mnt - xfs"), None);
    }
}
