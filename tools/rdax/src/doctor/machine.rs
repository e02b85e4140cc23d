// SPDX-License-Identifier: GPL-2.0

//! What the machine and the module need.

use super::Findings;
use crate::{module, system::System};

/// The kernel, the processor, and the module.
pub(super) fn machine(system: &System, found: &mut Findings) {
    let release = system.release();
    if module::is_supported(&release) {
        found.ok(
            "kernel",
            format!("{release} is of a series that rdax supports"),
        );
    } else {
        let series = module::SERIES.join(" and ");
        found.problem(
            "kernel",
            format!("{release} is of no series that rdax supports ({series})"),
            "boot one of these; on Debian 13: apt-get install -t trixie-backports \
             linux-image-amd64",
        );
    }
    let flags = system.read("/proc/cpuinfo").unwrap_or_default();
    let flags = flags
        .lines()
        .find(|line| line.starts_with("flags"))
        .unwrap_or_default();
    if flags.split_whitespace().any(|flag| flag == "pdpe1gb") {
        if system.is_dir("/sys/kernel/mm/ksm") {
            found.ok("1 GiB", "processor and kernel have mappings of 1 GiB");
        } else {
            found.note(
                "1 GiB",
                "the kernel was built without CONFIG_KSM: rdax maps by 2 MiB at most",
            );
        }
    } else {
        found.note("1 GiB", "the processor has no pages of 1 GiB (pdpe1gb)");
    }
    the_module(system, found);
}

fn the_module(system: &System, found: &mut Findings) {
    if module::is_loaded(system) {
        let version = module::version(system).unwrap_or_default();
        found.ok("module", format!("rdax {version} is loaded"));
        if !module::has_config(system) {
            found.problem(
                "configfs",
                "is not mounted",
                "mount -t configfs configfs /sys/kernel/config",
            );
        }
        return;
    }
    let release = system.release();
    if !module::is_supported(&release) {
        // That is the problem, and told already: there is nothing to install.
        found.note("module", format!("there is none for {release}"));
    } else if module::is_installed(system) {
        found.problem("module", "rdax is not loaded", "modprobe rdax");
    } else {
        found.problem(
            "module",
            format!("rdax is not installed for {release}"),
            "with the package rdax-dkms: dkms autoinstall; from the sources: make kdir && make && \
             make install",
        );
    }
    if let Some(why) = only_signed(system) {
        found.note_fix(
            "signature",
            format!("{why}: the kernel takes signed modules only"),
            "dkms signs; its key is enrolled by mokutil --import /var/lib/dkms/mok.pub and a reboot",
        );
    }
}

/// Why the kernel would take only signed modules, if so.
fn only_signed(system: &System) -> Option<&'static str> {
    if system
        .read("/sys/module/module/parameters/sig_enforce")
        .ok()?
        == "Y"
    {
        return Some("module.sig_enforce is set");
    }
    let lockdown = system
        .read("/sys/kernel/security/lockdown")
        .unwrap_or_default();
    if lockdown.contains("[integrity]") || lockdown.contains("[confidentiality]") {
        return Some("the kernel is locked down (Secure Boot)");
    }
    None
}
