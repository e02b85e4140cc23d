// SPDX-License-Identifier: GPL-2.0

//! What waits for pages of devices, told where that matters.

use crate::{
    ask::Module,
    device::{self, Block},
    output::harmless,
    size::nanoseconds,
    system::System,
    uapi::{dev, wait, WaitRecord},
    who::{comm, waiter}, //
};

/// Block devices and character devices are numbered apart, so that one of each may have the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Block,
    Character,
}

impl Kind {
    fn of(name: &str) -> Self {
        match name.starts_with("dax") {
            true => Self::Character,
            false => Self::Block,
        }
    }

    /// Whether somebody waits for a device of this kind and number.
    pub fn has(self, number: (u32, u32), wait: &WaitRecord) -> bool {
        let may_be = match self {
            // The module is older than that. Files are on block devices only; what goes may be either.
            _ if wait.dev_type == dev::UNKNOWN => {
                matches!(self, Self::Block) || wait.kind == wait::DEVICE
            }
            Self::Block => wait.dev_type == dev::BLOCK,
            Self::Character => wait.dev_type == dev::CHARACTER,
        };
        may_be && (wait.dev_major, wait.dev_minor) == number
    }
}

/// Whether it is for a device that goes, of which the module does not know which it is: no file has the page.
pub fn is_for_unknown(wait: &WaitRecord) -> bool {
    wait.kind == wait::DEVICE && (wait.dev_major, wait.dev_minor) == (0, 0)
}

/// Whether somebody waits for one of these.
fn has_any(family: &[Block], wait: &WaitRecord) -> bool {
    let mut numbers = family
        .iter()
        .filter_map(|block| device::numbers(&block.number));
    numbers.any(|number| Kind::Block.has(number, wait))
}

/// What is told of all waits, to be asked of for devices one by one.
#[derive(Default)]
pub struct Waits {
    pub records: Vec<WaitRecord>,
    /// Whether these are all: the module was asked, and those of others are told.
    pub all: bool,
}

impl Waits {
    /// None where the module does not tell of any. What tries again and again is not waited for.
    pub fn now(system: &System) -> Self {
        let found = Module::open(system).and_then(|module| module.waits(None));
        Self {
            all: found.is_ok() && system.has_admin(),
            records: found.unwrap_or_default(),
        }
    }

    /// What keeps the unbind of a block device from being over, if that is what happens to it.
    pub fn unbind(&self, system: &System, block: &Block) -> Option<String> {
        if !block.goes {
            return None;
        }
        let told = self.for_family(&block.name, &block.family(system));
        let may_be = || self.sentence(&block.name, is_for_unknown);
        match told.or_else(may_be) {
            Some(text) => Some(format!("{}: {text}", device::GOES)),
            None => self.unbind_without_wait(system, block),
        }
    }

    /// The same, if nobody is seen to wait for a page of it.
    pub fn unbind_without_wait(&self, system: &System, block: &Block) -> Option<String> {
        let family = block.family(system);
        let is_for_it = |wait: &WaitRecord| {
            wait.kind == wait::DEVICE && has_any(&family, wait) || is_for_unknown(wait)
        };
        if !block.goes || self.records.iter().any(is_for_it) {
            return None;
        }
        Some(match self.all {
            true => format!(
                "{}, and nobody waits for a page of it: its filesystem is busy with that, which may take an XFS \
                 with rmapbt very long, or it is over soon",
                device::GOES
            ),
            false => format!(
                "{}; rdax who {}, as root, says what that waits for",
                device::GOES,
                block.name
            ),
        })
    }

    /// That somebody waits for whoever has pages of this device, in a sentence with what to do.
    pub fn for_device(&self, name: &str, number: Option<(u32, u32)>) -> Option<String> {
        let number = number?;
        self.sentence(name, |wait| Kind::of(name).has(number, wait))
    }

    /// The same of any of these block devices.
    pub fn for_family(&self, name: &str, family: &[Block]) -> Option<String> {
        self.sentence(name, |wait| has_any(family, wait))
    }

    fn sentence(&self, name: &str, is_meant: impl Fn(&WaitRecord) -> bool) -> Option<String> {
        let found: Vec<&WaitRecord> = self.records.iter().filter(|wait| is_meant(wait)).collect();
        let longest = found.iter().max_by_key(|wait| wait.waited)?;
        let others = match found.len() {
            1 => String::new(),
            2 => " and another".to_owned(),
            more => format!(" and {} others", more - 1),
        };
        Some(format!(
            "{} ({}){others} has waited for {} ({}) for somebody who uses its pages: rdax who {name}",
            harmless(&comm(longest), &[]),
            longest.pid,
            nanoseconds(longest.waited),
            waiter(longest.kind),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::who::{tests::record, waits_text, Wait};

    #[test]
    fn waits_of_a_device_are_pointed_to() {
        let shorter = WaitRecord {
            waited: 5,
            ..record()
        };
        let waits = Waits {
            records: vec![shorter, record()],
            all: true,
        };
        let text = waits.for_device("pmem0", Some((259, 1))).unwrap();
        for part in [
            "truncate (42) and another has waited",
            "12.5 s",
            "rdax who pmem0",
        ] {
            assert!(text.contains(part), "no '{part}' in: {text}");
        }
        assert_eq!(waits.for_device("pmem1", Some((259, 2))), None);
        let mut named = record();
        named.comm[..3].copy_from_slice(b"a\nb");
        let records = vec![named];
        let text = Waits { records, all: true }.for_device("pmem0", Some((259, 1)));
        assert!(!text.unwrap().contains('\n'));
        assert_eq!(waits.for_device("dax1.0", None), None);
    }

    #[test]
    fn an_unbind_is_told_with_what_it_waits_for() {
        let dir = tempfile::tempdir().unwrap();
        let system = System::new(dir.path());
        let disk = dir.path().join("sys/devices/pmem1");
        std::fs::create_dir_all(&disk).unwrap();
        std::fs::create_dir_all(dir.path().join("sys/class/block")).unwrap();
        std::fs::write(disk.join("dev"), "259:1\n").unwrap();
        std::fs::write(disk.join("size"), "2048\n").unwrap();
        let link = dir.path().join("sys/class/block/pmem1");
        std::os::unix::fs::symlink(disk, link).unwrap();
        let block = Block::find(&system, "pmem1").unwrap();
        assert!(block.goes);
        let told = |waits: &[WaitRecord], all: bool| {
            let records = waits.to_vec();
            Waits { records, all }.unbind(&system, &block).unwrap()
        };
        let unbind = WaitRecord {
            kind: wait::DEVICE,
            dev_type: dev::BLOCK,
            ..record()
        };
        // That of a page that no file has is of no device that is known.
        let unknown = WaitRecord {
            dev_type: dev::UNKNOWN,
            dev_major: 0,
            dev_minor: 0,
            ..unbind
        };
        for wait in [unbind, unknown] {
            let text = told(&[wait], true);
            assert!(text.contains("has waited for 12.5 s (unbind)"), "{text}");
        }
        let other = WaitRecord {
            dev_minor: 2,
            ..unbind
        };
        for waits in [&[][..], &[other]] {
            assert!(told(waits, true).contains("filesystem is busy with that"));
            assert!(told(waits, false).contains("as root"));
        }
        // Its partition's filesystem has the page.
        let part = dir.path().join("sys/devices/pmem1/pmem1p1");
        std::fs::create_dir_all(&part).unwrap();
        for (name, text) in [
            ("dev", "259:2"),
            ("size", "8"),
            ("start", "8"),
            ("partition", "1"),
        ] {
            std::fs::write(part.join(name), text).unwrap();
        }
        let link = dir.path().join("sys/class/block/pmem1p1");
        std::os::unix::fs::symlink(part, link).unwrap();
        let block = Block::find(&system, "pmem1").unwrap();
        let records = vec![other];
        let text = Waits { records, all: true }
            .unbind(&system, &block)
            .unwrap();
        assert!(text.contains("has waited for 12.5 s (unbind)"), "{text}");
    }

    /// Which of two devices with the same number a wait is told of: the block device, the character device.
    fn told_of(kind: u32, dev_type: u32) -> [bool; 2] {
        let record = WaitRecord {
            kind,
            dev_type,
            ..record()
        };
        let waits = Waits {
            records: vec![record],
            all: true,
        };
        ["pmem1", "dax1.0"].map(|name| waits.for_device(name, Some((259, 1))).is_some())
    }

    #[test]
    fn block_and_character_devices_are_told_apart() {
        assert_eq!(told_of(wait::LAYOUT, dev::BLOCK), [true, false]);
        assert_eq!(told_of(wait::DEVICE, dev::BLOCK), [true, false]);
        assert_eq!(told_of(wait::DEVICE, dev::CHARACTER), [false, true]);
        // By a module that does not tell.
        assert_eq!(told_of(wait::LAYOUT, dev::UNKNOWN), [true, false]);
        assert_eq!(told_of(wait::DEVICE, dev::UNKNOWN), [true, true]);
        let record = WaitRecord {
            dev_type: dev::CHARACTER,
            ..record()
        };
        let text = waits_text(&[Wait::of(&record, None)], true);
        assert!(text.contains("char 259:1"), "{text}");
    }
}
