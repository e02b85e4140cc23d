// SPDX-License-Identifier: GPL-2.0

//! Where the system keeps what this program reads and writes.
//!
//! All of it is below one root, `/` but for tests, which lay out a tree of their own.

use crate::output;
use std::{
    env,
    ffi::OsString,
    fs::{
        self,
        OpenOptions, //
    },
    io::{
        self,
        Write, //
    },
    path::{
        Path,
        PathBuf, //
    },
    process::Command, //
};

/// The module's directory in configfs.
pub const CONFIG: &str = "/sys/kernel/config/rdax";

/// Where adoptions are noted that are to be made at every boot.
pub const PERSISTENT: &str = "/etc/rdax.d";

/// Where it is noted why an adoption at boot failed.
pub const FAILED: &str = "/run/rdax";

/// A program of the system. udev gives what it runs a search path of its own, or none: in an initial file
/// system, /usr/sbin is not in it.
pub fn program(name: &str) -> Command {
    let known = env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from);
    let all = env::split_paths(&known)
        .filter(|dir| dir.is_absolute())
        .chain(usual);
    let mut command = Command::new(name);
    if let Ok(path) = env::join_paths(all) {
        command.env("PATH", path);
    }
    command
}

/// The system, as far as its files tell.
pub struct System {
    root: PathBuf,
}

impl System {
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_path_buf(),
        }
    }

    /// Whether it is the one that this program runs on, not a test's.
    pub fn is_real(&self) -> bool {
        self.root == Path::new("/")
    }

    /// Where an absolute path is.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    pub fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.path(path).exists()
    }

    pub fn is_dir(&self, path: impl AsRef<Path>) -> bool {
        self.path(path).is_dir()
    }

    /// The content of a file, without the white space around it.
    pub fn read(&self, path: impl AsRef<Path>) -> io::Result<String> {
        let bytes = fs::read(self.path(path))?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// The number that a file has, decimal or with `0x`.
    pub fn number(&self, path: impl AsRef<Path>) -> Option<u64> {
        let text = self.read(path).ok()?;
        match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).ok(),
            None => text.parse().ok(),
        }
    }

    /// Writes to a file that is there, in one system call, as attributes want it.
    pub fn write(&self, path: impl AsRef<Path>, text: &str) -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(self.path(path))?;
        file.write_all(text.as_bytes())
    }

    /// The names in a directory, in the order of their numbers; none if there is no such directory.
    pub fn names(&self, path: impl AsRef<Path>) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.path(path))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort_by_cached_key(|name| in_order(name));
        names
    }

    /// The same, all of them, whatever they are; fails if the directory cannot be read.
    pub fn try_names(&self, path: impl AsRef<Path>) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.path(path))? {
            names.push(entry?.file_name());
        }
        names.sort_by_cached_key(|name| in_order(&name.to_string_lossy()));
        Ok(names)
    }

    /// Where a path leads once all links are followed, as a path of the system.
    pub fn resolve(&self, path: impl AsRef<Path>) -> Option<PathBuf> {
        let root = fs::canonicalize(&self.root).ok()?;
        let real = fs::canonicalize(self.path(path)).ok()?;
        Some(Path::new("/").join(real.strip_prefix(root).ok()?))
    }

    /// Whether this process has `CAP_SYS_ADMIN`, and not just in a user namespace of its own.
    pub fn has_admin(&self) -> bool {
        const CAP_SYS_ADMIN: u32 = 21;
        let status = self.read("/proc/self/status").unwrap_or_default();
        let users = self.read("/proc/self/uid_map").unwrap_or_default();
        if !users.split_ascii_whitespace().eq(["0", "0", "4294967295"]) {
            return false;
        }
        let effective = status
            .lines()
            .find_map(|line| line.strip_prefix("CapEff:"))
            .and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
        effective.is_some_and(|set| set & (1 << CAP_SYS_ADMIN) != 0)
    }

    /// The release of the kernel that runs.
    pub fn release(&self) -> String {
        self.read("/proc/sys/kernel/osrelease").unwrap_or_default()
    }
}

/// An error of the system, without its number.
pub fn reason(error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::PermissionDenied {
        return "permission denied; run rdax as root".to_owned();
    }
    output::without_numbers(&error.to_string())
}

/// A key by which `pmem10` comes after `pmem9`.
fn in_order(name: &str) -> Vec<(String, u64)> {
    let mut parts = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let (text, tail) = rest.split_at(digits);
        let end = tail
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (number, tail) = tail.split_at(end);
        parts.push((text.to_owned(), number.parse().unwrap_or(0)));
        rest = tail;
    }
    parts
}

/// The last part of a path, as text.
pub fn name_of(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_the_order_of_their_numbers() {
        let mut names = vec!["pmem10", "pmem9", "dm-3", "pmem9p1", "pmem1s"];
        names.sort_by_cached_key(|name| in_order(name));
        assert_eq!(names, ["dm-3", "pmem1s", "pmem9", "pmem9p1", "pmem10"]);
    }

    #[test]
    fn numbers_may_be_hexadecimal() {
        let dir = tempfile::tempdir().unwrap();
        let system = System::new(dir.path());
        fs::write(dir.path().join("a"), "0x140000000\n").unwrap();
        fs::write(dir.path().join("b"), "4096\n").unwrap();
        fs::write(dir.path().join("c"), "none\n").unwrap();
        assert_eq!(system.number("/a"), Some(0x1_4000_0000));
        assert_eq!(system.number("/b"), Some(4096));
        assert_eq!(system.number("/c"), None);
        assert_eq!(system.number("/d"), None);
    }
}
