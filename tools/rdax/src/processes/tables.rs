// SPDX-License-Identifier: GPL-2.0

//! Which threads have the same descriptors and the same root, so that these are read once.

use crate::system::System;
use std::{ffi::c_long, fs, process};

/// Whether two threads have the same of both; `None` if that cannot be told.
pub(super) type HaveSame = fn(u32, u32) -> Option<bool>;

/// Threads that were looked at, each with what no other one has.
pub(super) struct Tables {
    known: Vec<u32>,
    have_same: HaveSame,
}

/// So many are compared with each thread. Hardly a program has threads with tables of their own; those of one that
/// has more are looked at again.
const MOST: usize = 64;

impl Tables {
    pub(super) fn new(have_same: HaveSame) -> Self {
        Self {
            known: Vec::new(),
            have_same,
        }
    }

    /// Whether a thread's tables were seen before. They count as seen from now on.
    pub(super) fn have(&mut self, thread: u32) -> bool {
        let mut at = 0;
        // Ends: each turn is for the next one, or takes one away.
        while let Some(&known) = self.known.get(at) {
            match (self.have_same)(known, thread) {
                Some(true) => return true,
                Some(false) => at += 1,
                // One of the two has ended, and may have been read in part only.
                None => drop(self.known.swap_remove(at)),
            }
        }
        self.known.truncate(MOST - 1);
        self.known.push(thread);
        false
    }
}

/// How this system tells it.
pub(super) fn compare(system: &System) -> HaveSame {
    // Threads are numbered there as here.
    let own = fs::read_link(system.path("/proc/self")).ok();
    let is_own = own.is_some_and(|link| link.as_os_str() == process::id().to_string().as_str());
    match system.is_real() && is_own {
        true => have_same,
        false => |_, _| None,
    }
}

fn have_same(one: u32, other: u32) -> Option<bool> {
    // What they are in linux/kcmp.h: a table of descriptors, and a root with a working directory, which also has the
    // mounts: a thread that shares it cannot leave these.
    const FILES: c_long = 2;
    const FS: c_long = 3;
    Some(kcmp(one, other, FILES)? && kcmp(one, other, FS)?)
}

/// Whether two threads have the same of this type. A kernel may be configured without that.
#[cfg(target_arch = "x86_64")]
fn kcmp(one: u32, other: u32, kind: c_long) -> Option<bool> {
    const NUMBER: c_long = 312;
    unsafe extern "C" {
        fn syscall(number: c_long, ...) -> c_long;
    }
    // SAFETY: All are numbers; it only looks.
    match unsafe { syscall(NUMBER, one as c_long, other as c_long, kind, 0, 0) } {
        -1 => None,
        order => Some(order == 0),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn kcmp(_: u32, _: u32, _: c_long) -> Option<bool> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(have_same: HaveSame, threads: &[u32]) -> Vec<bool> {
        let mut tables = Tables::new(have_same);
        threads.iter().map(|thread| tables.have(*thread)).collect()
    }

    #[test]
    fn tables_are_read_once() {
        let by_tens: HaveSame = |one, other| Some(one / 10 == other / 10);
        assert_eq!(
            seen(by_tens, &[10, 11, 20, 12, 21]),
            [false, true, false, true, true]
        );
        assert_eq!(seen(|_, _| None, &[10, 11, 10]), [false; 3]);
        // The first one has ended: the second is read, and then known.
        let ended: HaveSame = |one, other| (one != 10 && other != 10).then_some(true);
        assert_eq!(seen(ended, &[10, 11, 12]), [false, false, true]);
        // However many there are.
        let many: Vec<u32> = (0..1000).collect();
        assert!(seen(|_, _| Some(false), &many).iter().all(|seen| !seen));
    }

    #[test]
    fn threads_of_this_program_have_the_same() {
        let own = process::id();
        assert_eq!(have_same(own, own), Some(true));
        assert_eq!(have_same(own, u32::MAX), None);
        // Descriptors are not shared with whoever started it.
        assert_ne!(
            have_same(own, std::os::unix::process::parent_id()),
            Some(true)
        );
    }
}
