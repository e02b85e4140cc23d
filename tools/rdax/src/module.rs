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
    let lines = log.lines().join("; ");
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
pub struct Log(Option<File>);

impl Log {
    pub fn begin(system: &System) -> Self {
        Self(open_log(&system.path("/dev/kmsg")))
    }

    /// The module's lines since then, or since they were asked for last.
    pub fn lines(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        let Some(log) = &mut self.0 else {
            return lines;
        };
        let mut record = [0; 8192];
        // Ends when there is no further record, or an error.
        loop {
            match log.read(&mut record) {
                Ok(0) => return lines,
                Ok(length) => {
                    let text = String::from_utf8_lossy(record.get(..length).unwrap_or_default());
                    lines.extend(message(&text).map(str::to_owned));
                }
                // Records were overwritten before they were read.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return lines,
            }
        }
    }
}

fn open_log(path: &Path) -> Option<File> {
    let mut log = OpenOptions::new()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
        .open(path)
        .ok()?;
    log.seek(SeekFrom::End(0)).ok()?;
    Some(log)
}

/// The text of a record, if it is the module's.
fn message(record: &str) -> Option<&str> {
    let (_, text) = record.split_once(';')?;
    let line = text.lines().next()?;
    line.strip_prefix("rdax: ")
}

/// What to do about a line of the module's.
pub fn advice(line: &str) -> Option<&'static str> {
    const KNOWN: [(&str, &str); 10] = [
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
        assert_eq!(
            message("3,1042,15268,-;rdax: pmem0: in use; unmount it first\n SUBSYSTEM=block\n"),
            Some("pmem0: in use; unmount it first")
        );
        assert_eq!(message("6,1043,15269,-;xfs: mounting\n"), None);
        assert_eq!(message(""), None);
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
        ] {
            assert!(
                advice(line).is_some_and(|text| text.contains(part)),
                "{line}"
            );
        }
        assert_eq!(advice("pmem0: adopted"), None);
    }
}
