// SPDX-License-Identifier: GPL-2.0

//! What is registered with an io_uring.

use super::{View, Vma, Wanted};
use crate::mounts;

/// What is registered with an io_uring, by what its fdinfo says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Ring {
    /// While the ring is busy it says nothing.
    is_known: bool,
    files: Vec<String>,
    /// First and last address.
    buffers: Vec<(u64, u64)>,
}

impl Ring {
    pub(super) fn parse(info: &str) -> Self {
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
    /// `ranges` are starts and ends of all mappings of the process, in order.
    pub(super) fn has(
        &self,
        wanted: &Wanted,
        mappings: &[Vma],
        ranges: &[(u64, u64)],
        view: &View<'_>,
    ) -> Option<bool> {
        // What cannot be said of so many files will not be of others: each may take long.
        const MOST: usize = 64;
        let mut is_clear = self.is_known;
        let mut unclear = 0;
        for file in &self.files {
            // By which of its links a file was opened, and so removed, does not matter. A name may end in this, too.
            if let Some(path) = file.strip_suffix(" (deleted)") {
                is_clear &= !view.may_have_been(path, wanted);
                continue;
            }
            match view.leads_to(file, wanted) {
                Some(true) => return Some(true),
                Some(false) => (),
                None if unclear >= MOST => return None,
                None => {
                    is_clear = false;
                    unclear += 1;
                }
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
                let below = ranges.partition_point(|&(start, _)| start <= first);
                let range = below.checked_sub(1).and_then(|at| ranges.get(at));
                is_clear &= range.is_some_and(|&(_, end)| last < end);
            }
        }
        is_clear.then_some(false)
    }
}

/// Start and end of a line of `/proc/PID/maps`.
pub(super) fn addresses(line: &str) -> Option<(u64, u64)> {
    let (start, end) = line.split_ascii_whitespace().next()?.split_once('-')?;
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    Some((hex(start)?, hex(end)?))
}

#[cfg(test)]
mod tests {
    use super::{
        super::laid::{of, Laid},
        *,
    };
    use std::fs;

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
            let ranges: Vec<_> = maps.lines().filter_map(addresses).collect();
            ring.has(&wanted, &mappings, &ranges, &View::default())
        };
        assert_eq!(has(0x2000, 0x2fff), Some(true));
        assert_eq!(has(0x0800, 0x1000), Some(true));
        assert_eq!(has(0x8000, 0x8fff), Some(false));
        // Nothing is mapped there any more.
        assert_eq!(has(0x5000, 0x5fff), None);
        assert_eq!(has(0x3000, 0x3fff), None);
    }

    /// Anybody may have so many of both, which are not to be compared each with each.
    #[test]
    fn many_buffers_and_mappings_are_looked_at_in_time() {
        const MAPPINGS: u64 = 65_530;
        let laid = Laid::new();
        let maps: Vec<String> = (1..=MAPPINGS)
            .map(|number| format!("{number:x}0000-{number:x}1000 rw-p 00000000 00:00 0\n"))
            .collect();
        laid.ring("77", "", "mnt:[1]", "socket:[5]");
        laid.thread("77", &maps.concat());
        let buffers: Vec<String> = (0..16384)
            .map(|number| format!("    {number}: 0x{MAPPINGS:x}0000/4096\n"))
            .collect();
        let info = format!("UserFiles:\t0\nUserBufs:\t16384\n{}", buffers.concat());
        laid.put("proc/77/fdinfo/5", &info);
        let wanted = Wanted::Character {
            number: rustix::fs::makedev(252, 0),
            node: (5, 7),
        };
        assert_eq!(laid.has(&wanted), Some(false));
    }
}
