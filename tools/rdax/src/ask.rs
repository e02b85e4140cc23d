// SPDX-License-Identifier: GPL-2.0

//! Asking the module, by `/dev/rdax` (`uapi/rdax.h`).

use crate::{
    module,
    output::word,
    system::System,
    uapi::{self, Map, MapRecord, WaitRecord, Waits},
};
use anyhow::{bail, Context, Result};
use rustix::{
    fd::{AsFd, AsRawFd},
    fs::OFlags,
    io::Errno,
    ioctl::{ioctl, opcode, Getter, Updater},
};
use std::{
    fs::File,
    io::{self, ErrorKind},
    os::unix::fs::OpenOptionsExt,
    path::Path, //
};

const VERSION: u32 = opcode::read::<u32>(uapi::TYPE as u8, uapi::NR_VERSION as u8);
const MAP: u32 = opcode::read_write::<Map>(uapi::TYPE as u8, uapi::NR_MAP as u8);
const WAITS: u32 = opcode::read_write::<Waits>(uapi::TYPE as u8, uapi::NR_WAITS as u8);

/// How the module that is installed takes the place of the one that is loaded.
const RELOAD: &str =
    "a module that was installed since is loaded when all devices are released: rmmod rdax, then \
                      modprobe rdax";

/// Records that are asked for at a time.
const ROOM: usize = 512;

/// The module's device, open.
pub struct Module(File);

/// What the module says of a file.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// In bytes.
    pub size: u64,
    /// Log2 of the pages.
    pub max_order: u32,
    pub records: Vec<MapRecord>,
}

impl Module {
    pub fn open(system: &System) -> Result<Self> {
        let file = match File::open(system.path("/dev/rdax")) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if module::is_loaded(system) {
                    bail!(
                        "there is no /dev/rdax: the module that is loaded is older than this command ({RELOAD}), or \
                         this /dev does not have it, as in a container"
                    );
                }
                bail!(
                    "the module rdax is not loaded; {}",
                    module::how_to_load(system)
                );
            }
            Err(error) => {
                return Err(error).context(
                    "/dev/rdax cannot be opened, though everybody may (mode 0666): ls -l /dev/rdax shows its mode",
                )
            }
        };
        // SAFETY: The operation writes a number.
        let version = unsafe { ioctl(&file, Getter::<VERSION, u32>::new()) }
            .context("/dev/rdax is not that of the module")?;
        if version != uapi::VERSION {
            bail!(
                "the module speaks version {version} of its interface, this command version {}: install both \
                 of the same version ({RELOAD})",
                uapi::VERSION
            );
        }
        Ok(Self(file))
    }

    /// How the file is held and mapped.
    pub fn map(&self, file: impl AsFd, path: &Path) -> Result<Answer> {
        let mut answer = Answer::default();
        let mut start = 0;
        // Ends with the file: a call that goes on where it began is an error.
        loop {
            let mut records = vec![MapRecord::default(); ROOM];
            let mut map = Map {
                fd: file.as_fd().as_raw_fd(),
                start,
                length: u64::MAX - start,
                records: records.as_mut_ptr() as u64,
                record_size: size_of::<MapRecord>() as u32,
                count: ROOM as u32,
                ..Map::default()
            };
            // SAFETY: The operation reads and writes a `struct rdax_map`, and writes as many records as
            // there is room for.
            match unsafe { ioctl(&self.0, Updater::<MAP, Map>::new(&mut map)) } {
                Ok(()) => (),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(explain(error, path)),
            }
            records.truncate(map.count as usize);
            answer.records.extend(records);
            answer.size = map.size;
            answer.max_order = map.max_order;
            if map.flags & uapi::MAP_END != 0 {
                return Ok(answer);
            }
            if map.next <= start {
                bail!("{}: the module does not get on", path.display());
            }
            start = map.next;
        }
    }

    /// The tasks that wait for others, for pages of a file or of any, as far as the caller may know; how many
    /// there are.
    pub fn waits(&self, file: Option<&File>) -> Result<Vec<WaitRecord>> {
        let mut room = ROOM;
        // Ends: it asks again only with more room, and not without end.
        loop {
            let mut records = vec![WaitRecord::default(); room];
            let mut waits = Waits {
                fd: file.map_or(-1, AsRawFd::as_raw_fd),
                records: records.as_mut_ptr() as u64,
                record_size: size_of::<WaitRecord>() as u32,
                count: room as u32,
                ..Waits::default()
            };
            // SAFETY: As for `map`.
            match unsafe { ioctl(&self.0, Updater::<WAITS, Waits>::new(&mut waits)) } {
                Ok(()) => (),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error).context("the module does not tell who waits"),
            }
            records.truncate(waits.count as usize);
            if waits.total as usize <= room || room >= 1 << 16 {
                return Ok(records);
            }
            room *= 2;
        }
    }
}

/// A regular file that is to be asked about. Nothing else is opened, whatever a link leads to at this moment: to open a
/// device may start what it stands for, such as a watchdog, and to open a pipe lets its writer go on.
pub fn open(path: &Path) -> Result<File> {
    let open = |path: &Path, flags: OFlags| {
        let mut options = File::options();
        options.read(true).custom_flags(flags.bits() as i32);
        options.open(path)
    };
    let opened = || -> io::Result<Option<File>> {
        let place = open(path, OFlags::PATH)?;
        if !place.metadata()?.is_file() {
            return Ok(None);
        }
        let again = format!("/proc/self/fd/{}", place.as_raw_fd());
        open(Path::new(&again), OFlags::NONBLOCK).map(Some)
    };
    let why = match opened() {
        Ok(Some(file)) => return Ok(file),
        Ok(None) => bail!("{} is no regular file", path.display()),
        Err(error) => match error.kind() {
            ErrorKind::NotFound => "there is no such file".to_owned(),
            ErrorKind::PermissionDenied => "it cannot be opened: you may not read it".to_owned(),
            ErrorKind::WouldBlock => "it cannot be opened: a process has a lease on it, and is asked to give that up: \
                                      try again; /proc/sys/fs/lease-break-time has the seconds until it is taken away"
                .to_owned(),
            _ => format!("it cannot be opened: {error}"),
        },
    };
    bail!("{}: {why}", path.display())
}

/// Why the module says nothing of a file.
fn explain(error: Errno, path: &Path) -> anyhow::Error {
    let as_word = word(path);
    let path = path.display();
    match error {
        Errno::NODEV => anyhow::anyhow!(
            "{path}: is no file on a device that is adopted; rdax list shows which are"
        ),
        Errno::OPNOTSUPP => anyhow::anyhow!(
            "{path}: is no DAX file, so it is not mapped from the device; rdax doctor {as_word} says why"
        ),
        error => anyhow::Error::new(error).context(format!("{path}: the module does not tell")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn numbers_of_calls_are_those_of_the_header() {
        assert_eq!(VERSION, 0x8004_da00);
        assert_eq!(MAP, 0xc040_da01);
        assert_eq!(WAITS, 0xc020_da02);
    }

    #[test]
    fn nothing_but_a_regular_file_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let (pipe, link, file) = ["pipe", "link", "file"]
            .map(|name| dir.path().join(name))
            .into();
        let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        std::fs::write(&file, "").unwrap();
        for other in [&*pipe, &*link, dir.path()] {
            let error = open(other).unwrap_err().to_string();
            assert!(error.contains("is no regular file"), "{error}");
        }
        assert!(open(&file).is_ok());
    }

    #[test]
    fn errors_are_sentences() {
        let path = Path::new("/mnt/f");
        assert!(explain(Errno::NODEV, path).to_string().contains("adopted"));
        assert!(explain(Errno::OPNOTSUPP, path)
            .to_string()
            .contains("no DAX file"));
    }
}
