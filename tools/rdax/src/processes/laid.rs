// SPDX-License-Identifier: GPL-2.0

//! Processes for tests.

use super::{find, Users, Wanted};
use crate::system::System;
use std::{
    fs,
    os::unix::fs::{symlink, MetadataExt},
    path::{Path, PathBuf}, //
};

/// A system in a directory, of processes that are laid out in it.
pub(super) struct Laid(tempfile::TempDir);

impl Laid {
    pub(super) fn new() -> Self {
        let laid = Self(tempfile::tempdir().unwrap());
        laid.mount("self", "/");
        laid.link("mnt:[1]", "proc/self/ns/mnt");
        laid
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    pub(super) fn put(&self, path: &str, text: &str) -> PathBuf {
        let path = self.path(path);
        fs::write(&path, text).unwrap();
        path
    }

    pub(super) fn link(&self, to: impl AsRef<Path>, path: &str) {
        symlink(to, self.path(path)).unwrap();
    }

    /// The device that all of it is on is mounted there, and nothing else.
    pub(super) fn mount(&self, process: &str, point: &str) {
        let device = fs::metadata(self.0.path()).unwrap().dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let line = format!("40 22 {major}:{minor} / {point} rw - xfs /dev/pmem0 rw\n");
        self.put(&format!("proc/{process}/mountinfo"), &line);
    }

    pub(super) fn thread(&self, thread: &str, maps: &str) {
        self.put(&format!("proc/{thread}/comm"), "reader\n");
        self.put(&format!("proc/{thread}/maps"), maps);
    }

    /// A process with a ring that has a file of this path.
    pub(super) fn ring(&self, pid: &str, root: &str, namespace: &str, file: &str) {
        self.thread(pid, "");
        self.link(self.0.path().join(root), &format!("proc/{pid}/root"));
        self.link(namespace, &format!("proc/{pid}/ns/mnt"));
        self.link("anon_inode:[io_uring]", &format!("proc/{pid}/fd/5"));
        let info = format!("UserFiles:\t1\n    0: {file}\n");
        self.put(&format!("proc/{pid}/fdinfo/5"), &info);
    }

    pub(super) fn users(&self, wanted: &Wanted) -> Users {
        find(&System::new(self.0.path()), wanted)
    }

    /// Whether the ring has it.
    pub(super) fn has(&self, wanted: &Wanted) -> Option<bool> {
        let users = self.users(wanted);
        let has = users.processes.iter().any(|found| found.io_uring == [5]);
        match users.unclear.is_empty() {
            true => Some(has),
            false if has => panic!("{users:?}"),
            false => None,
        }
    }
}

pub(super) fn of(path: &Path) -> Wanted {
    Wanted::file(&fs::metadata(path).unwrap())
}
