// SPDX-License-Identifier: GPL-2.0

//! The kernel module: whether it is there, and what it says.

use crate::system::{
    self,
    System,
    CONFIG, //
};
use anyhow::{
    bail,
    Context,
    Result, //
};
use std::{
    fs::{
        File,
        OpenOptions, //
    },
    io::{
        self,
        ErrorKind,
        Read,
        Seek,
        SeekFrom, //
    },
    os::unix::fs::OpenOptionsExt,
    path::Path,
    process::Stdio, //
};

/// The series of the kernel that the module is made for.
pub const SERIES: [&str; 2] = ["7.2", "7.3"];

/// The series of a release: `7.3` of `7.3.4+deb13-amd64`.
pub fn series(release: &str) -> &str {
    let end = release
        .match_indices(|c: char| !c.is_ascii_digit())
        .nth(1)
        .map_or(release.len(), |(at, _)| at);
    &release[..end]
}

/// Whether the module is made for this release.
pub fn is_supported(release: &str) -> bool {
    SERIES.contains(&series(release))
}

/// What to do where the kernel is of another series.
pub fn unsupported(release: &str) -> String {
    format!(
        "this is kernel {release}, but rdax is for the series {}: boot one of these \
         (on Debian 13: apt-get install -t trixie-backports linux-image-amd64)",
        SERIES.join(" and ")
    )
}

/// Whether the module is loaded.
pub fn is_loaded(system: &System) -> bool {
    system.is_dir("/sys/module/rdax")
}

/// The version of the module that is loaded.
pub fn version(system: &System) -> Option<String> {
    system.read("/sys/module/rdax/version").ok()
}

/// Whether there is a module to load for the kernel that runs.
pub fn is_installed(system: &System) -> bool {
    let release = system.release();
    ["/lib/modules", "/usr/lib/modules"].iter().any(|modules| {
        let list = system.read(format!("{modules}/{release}/modules.dep"));
        list.is_ok_and(|list| {
            list.lines().any(|line| {
                let path = line.split(':').next().unwrap_or_default();
                let name = path.rsplit('/').next().unwrap_or_default();
                name == "rdax.ko" || name.starts_with("rdax.ko.")
            })
        })
    })
}

/// Whether configfs is mounted where it is expected and has the module's directory.
pub fn has_config(system: &System) -> bool {
    system.is_dir(CONFIG)
}

/// How to load the module, or how to get one.
pub fn how_to_load(system: &System) -> String {
    let release = system.release();
    if !is_supported(&release) {
        unsupported(&release)
    } else if is_installed(system) {
        "load it with: modprobe rdax (or give --load)".to_owned()
    } else {
        format!(
            "it is not installed for kernel {release} either: with the package rdax-dkms run \
             dkms autoinstall; from the sources run make kdir && make && make install"
        )
    }
}

/// Has the module loaded and its directory in configfs there, or fails with what to do. With `load`
/// does what is missing.
pub fn require(system: &System, load: bool) -> Result<()> {
    if !is_loaded(system) {
        if !load {
            bail!("the module rdax is not loaded; {}", how_to_load(system));
        }
        let release = system.release();
        if !is_supported(&release) {
            bail!("the module rdax is not loaded; {}", unsupported(&release));
        }
        modprobe(system)?;
    }
    if !has_config(system) {
        if !load {
            bail!(
                "configfs is not mounted, so there is no {CONFIG}; mount it with: \
                 mount -t configfs configfs /sys/kernel/config (or give --load)"
            );
        }
        mount_config(system)?;
    }
    Ok(())
}

fn modprobe(system: &System) -> Result<()> {
    let mut log = Log::begin(system);
    let output = system::program("modprobe")
        .arg("rdax")
        .stdin(Stdio::null())
        .output()
        .context("modprobe cannot be run; is the package kmod installed?")?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim();
    let lines = log.said();
    let lines = lines.of_none().join("; ");
    let hint = if said.contains("Key was rejected") || said.contains("not permitted") {
        "; with Secure Boot a module must be signed with a key that the machine knows: dkms signs \
         with its own, which mokutil --import /var/lib/dkms/mok.pub enrols at the next boot"
            .to_owned()
    } else if !is_installed(system) {
        format!("; {}", how_to_load(system))
    } else {
        String::new()
    };
    let lines = if lines.is_empty() {
        String::new()
    } else {
        format!(" (the kernel says: {lines})")
    };
    bail!("the module rdax cannot be loaded: {said}{lines}{hint}");
}

fn mount_config(system: &System) -> Result<()> {
    if !system.is_real() {
        bail!("configfs cannot be mounted below another root");
    }
    rustix::mount::mount(
        "configfs",
        "/sys/kernel/config",
        "configfs",
        rustix::mount::MountFlags::empty(),
        None::<&std::ffi::CStr>,
    )
    .context("configfs cannot be mounted at /sys/kernel/config")?;
    if !has_config(system) {
        bail!("configfs is mounted now, but there is no {CONFIG}");
    }
    Ok(())
}

/// What the module says in the kernel's log from now on.
pub struct Log(io::Result<File>);

impl Log {
    pub fn begin(system: &System) -> Self {
        Self(open_log(&system.path("/dev/kmsg")))
    }

    /// What it has said since then, or since this was asked last.
    pub fn said(&mut self) -> Said {
        let mut said = Said::default();
        let log = match &mut self.0 {
            Ok(log) => log,
            Err(error) => {
                said.unread = Some(format!("/dev/kmsg: {error}"));
                return said;
            }
        };
        let mut record = [0; 8192];
        // Ends when there is no further record, or an error.
        loop {
            match log.read(&mut record) {
                Ok(0) => return said,
                Ok(length) => {
                    let text = String::from_utf8_lossy(record.get(..length).unwrap_or_default());
                    said.lines.extend(messages(&text).map(str::to_owned));
                }
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                    said.unread = Some("more was said since than it has room for".to_owned());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return said,
                Err(error) => {
                    said.unread = Some(format!("/dev/kmsg: {error}"));
                    return said;
                }
            }
        }
    }
}

fn open_log(path: &Path) -> io::Result<File> {
    let mut log = OpenOptions::new()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
        .open(path)?;
    log.seek(SeekFrom::End(0))?;
    Ok(log)
}

/// What is the module's of the records in a text, without its name; or the kernel's of a device of its driver's.
fn messages(records: &str) -> impl Iterator<Item = &str> {
    records.lines().filter_map(|line| {
        // What belongs to the record before begins with a space.
        let (_, text) = line.split_once(';').filter(|_| !line.starts_with(' '))?;
        let of_driver = || {
            text.strip_prefix("rdax ")
                .filter(|text| device_of(text).is_some())
        };
        text.strip_prefix("rdax: ").or_else(of_driver)
    })
}

/// The device that a line is about, and what is said of it.
fn device_of(line: &str) -> Option<(&str, &str)> {
    line.split_once(": ")
        .filter(|(name, _)| !name.is_empty() && !name.contains(char::is_whitespace))
}

/// Whether a line tells of a task that waits. What comes first there is its name, which anybody may choose.
fn is_of_task(line: &str) -> bool {
    line.contains(" s for others who use a page: ")
}

/// What the module has said.
#[derive(Default)]
pub struct Said {
    lines: Vec<String>,
    /// Why this is not all, if so.
    unread: Option<String>,
}

impl Said {
    #[cfg(test)]
    pub fn in_records(records: &str) -> Self {
        Self {
            lines: messages(records).map(str::to_owned).collect(),
            unread: None,
        }
    }

    /// What is about no device.
    fn of_none(&self) -> Vec<&str> {
        let lines = self.lines.iter().map(String::as_str);
        lines
            .filter(|line| !is_of_task(line) && device_of(line).is_none())
            .collect()
    }

    /// What is about this device, or has ended an adoption of it.
    pub fn of(&self, name: &str) -> Vec<&str> {
        let mut found = Vec::new();
        // What keeps all devices from being adopted is followed by that of which the adoption has ended.
        let mut of_none = Vec::new();
        for line in self.lines.iter().filter(|line| !is_of_task(line)) {
            let Some((device, text)) = device_of(line) else {
                of_none.push(line.as_str());
                continue;
            };
            let has_ended = text.starts_with("not adopted (");
            let before = match has_ended {
                true => std::mem::take(&mut of_none),
                false => Vec::new(),
            };
            if device != name {
                continue;
            }
            found.extend(before);
            // An error's number alone is no news.
            if !has_ended || !text.ends_with(')') {
                found.push(text);
            }
        }
        found
    }

    /// That this may not be all that was said of a device, with what to do.
    pub fn gap(&self, name: &str) -> Option<String> {
        let why = self.unread.as_ref()?;
        Some(format!(
            "the kernel's log, which may say why, cannot be read ({why}): look there with \
             dmesg | grep 'rdax: {name}: ', as root with CAP_SYSLOG"
        ))
    }
}

/// What to do about a line of the module's.
pub fn advice(line: &str) -> Option<&'static str> {
    const KNOWN: [(&str, &str); 12] = [
        (
            "in use; unmount it first",
            "it is mounted (perhaps in another mount namespace), or part of a device-mapper device \
             or RAID, or some program has it for itself",
        ),
        (
            "use that one's own name",
            "give the name that the kernel has for it; rdax list shows the names",
        ),
        (
            "not capable of DAX",
            "rdax list shows its mode; ndctl create-namespace -f -e NAMESPACE -m fsdax makes it \
             fsdax, and erases it",
        ),
        (
            "this kernel has no function",
            "boot a kernel of a series that is supported",
        ),
        (
            "is in use by somebody else",
            "another driver has the memory: /proc/iomem says which",
        ),
        (
            "is held by somebody else",
            "disable the live patch, or unload the module, that redirects the function, then try \
             again",
        ),
        (
            "were held by somebody else",
            "whoever it was has let go since: try again",
        ),
        (
            "somebody still reads or writes its pages",
            "a transfer goes on (O_DIRECT, io_uring, a pipe): end it, then release the device again",
        ),
        (
            "ftrace did not give the functions back before",
            "reboot",
        ),
        (
            "ftrace did not take ext4's",
            "somebody else has them (a live patch, another module): have it let go, then adopt again",
        ),
        (
            "ftrace did not",
            "ftrace is broken; an earlier warning in dmesg says why",
        ),
        (
            "release another device first",
            "64 devices are adopted, which is the most",
        ),
    ];
    KNOWN
        .iter()
        .find(|(part, _)| line.contains(part))
        .map(|(_, what)| *what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_series_of_a_release() {
        assert_eq!(series("7.3.4+deb13-amd64"), "7.3");
        assert_eq!(series("6.12.48+deb13-amd64"), "6.12");
        assert_eq!(series("7.2+deb14-amd64"), "7.2");
        assert_eq!(series("7.2"), "7.2");
        assert_eq!(series(""), "");
        assert!(is_supported("7.2.11+deb13-cloud-amd64"));
        assert!(!is_supported("7.30.1"));
        assert!(!is_supported("6.12.48+deb13-amd64"));
    }

    #[test]
    fn records_of_the_log() {
        let records = "3,1042,15268,-;rdax: pmem0: in use; unmount it first\n SUBSYSTEM=block\n";
        assert_eq!(
            Said::in_records(records).of("pmem0"),
            ["in use; unmount it first"]
        );
        for other in ["pmem", "pmem1", "pmem00", "in use", ""] {
            assert!(Said::in_records(records).of(other).is_empty(), "{other}");
        }
        let driver = "4,1,1,-;rdax dax0.0: 0x140000000-0x17fffffff is in use by somebody else\n SUBSYSTEM=dax\n\
                      3,2,2,-;rdax dax0.0: probe with driver rdax failed with error -16\n";
        assert_eq!(
            Said::in_records(driver).of("dax0.0"),
            [
                "0x140000000-0x17fffffff is in use by somebody else",
                "probe with driver rdax failed with error -16"
            ]
        );
        for none in [
            "6,1043,15269,-;xfs: mounting\n",
            "6,1043,15269,-;xfs: rdax: pmem0: mounting\n",
            "6,1043,15269,-;rdaxes: pmem0: mounting\n",
            "",
            ";",
            ";rdax: ",
            " a=b;rdax: pmem0: x",
        ] {
            let found = Said::in_records(none);
            assert!(found.of("pmem0").is_empty(), "{none}");
        }
        let loading = "5,1,1,-;rdax: module verification failed: signature missing\n\
                       3,2,2,-;rdax: pmem0: in use\n";
        assert_eq!(
            Said::in_records(loading).of_none(),
            ["module verification failed: signature missing"]
        );
    }

    #[test]
    fn that_there_may_be_more_is_told() {
        assert_eq!(Said::in_records("").gap("pmem0"), None);
        let mut denied = Log(Err(io::Error::from_raw_os_error(1)));
        let gap = denied.said().gap("pmem0").unwrap();
        for part in ["Operation not permitted", "CAP_SYSLOG", "dmesg"] {
            assert!(gap.contains(part), "{gap}");
        }
    }

    #[test]
    fn what_the_module_says_has_an_answer() {
        for (line, part) in [
            ("pmem0: in use; unmount it first", "device-mapper"),
            (
                "pmem2: not capable of DAX; adopt a pmem device in fsdax mode",
                "erases",
            ),
            (
                "ftrace did not give the functions back before; reboot",
                "reboot",
            ),
            ("ftrace did not take the functions: -16", "broken"),
            (
                "ftrace did not take ext4's ext4_ext_map_blocks and ext4_issue_zeroout (-16), and without them users",
                "have it let go",
            ),
            ("0x1-0x2 is in use by somebody else", "/proc/iomem"),
        ] {
            assert!(
                advice(line).is_some_and(|text| text.contains(part)),
                "{line}"
            );
        }
        assert_eq!(advice("pmem0: adopted"), None);
    }
}
