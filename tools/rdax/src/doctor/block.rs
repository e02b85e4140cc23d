// SPDX-License-Identifier: GPL-2.0

//! What a device needs to be adopted, and for large mappings.

use super::{
    filesystem::{filesystem, mounted},
    Findings,
};
use crate::{
    device::{self, Block, Dax, Mode},
    layout,
    mounts::{self, Mount},
    persist::{self, Adoption},
    size::{amount, GIB, PMD, PUD},
    superblock,
    system::System,
    waits::Waits,
};

pub(super) fn all(system: &System, found: &mut Findings) {
    let (blocks, _) = device::blocks(system);
    let blocks: Vec<Block> = blocks
        .into_iter()
        .filter(|block| block.mode != Mode::Devdax)
        .collect();
    let daxes = device::dax_devices(system);
    if blocks.is_empty() && daxes.is_empty() {
        found.problem(
            "devices",
            "there are no pmem and no dax devices",
            "ndctl list -N -i tells of namespaces that are not enabled; the kernel parameter \
             memmap=4G!8G makes a pmem0 of ordinary memory",
        );
    }
    for block in &blocks {
        whole_device(system, block, found);
    }
    for dax in &daxes {
        dax_device(system, dax, found);
    }
    for adoption in persist::all(system).missing(&blocks, &daxes) {
        stale(adoption, found);
    }
}

/// What is noted for the boot of another device, which had this name.
pub(super) fn stale_of(system: &System, name: &str, found: &mut Findings) {
    let (blocks, _) = device::blocks(system);
    let daxes = device::dax_devices(system);
    for adoption in persist::all(system).missing(&blocks, &daxes) {
        if adoption.device == name {
            stale(adoption, found);
        }
    }
}

fn stale(adoption: &Adoption, found: &mut Findings) {
    found.note_fix(
        &adoption.device,
        format!(
            "{}, which is to be adopted at boot: it is missing, or was made anew",
            adoption.missing()
        ),
        format!("rdax release --persist {} forgets it", adoption.identity()),
    );
}

/// Whether a device is adopted at boot.
fn at_boot(system: &System, name: &str, uuid: Option<&str>, found: &mut Findings) {
    let noted = persist::all(system);
    let by_name = |(_, adoption): &&(_, Adoption)| adoption.uuid.is_none();
    match noted.has(system, name) {
        Some(true) if uuid.is_some() && noted.of(system, name).iter().all(by_name) => found.note_fix(
            name,
            "will be adopted at every boot by its name, which another device may have then",
            format!("rdax adopt --persist {name} notes it by its namespace's UUID"),
        ),
        Some(true) => found.ok(name, "will be adopted at every boot"),
        Some(false) => found.note_fix(
            name,
            "is not adopted at boot",
            format!("rdax adopt --persist {name}"),
        ),
        None => found.note(
            name,
            "whether it is adopted at boot is not known: /etc/rdax.d cannot be read, or not all of it",
        ),
    }
    let twins = device::all_twins(system, name, uuid);
    if !twins.is_empty() {
        found.note(name, device::twins_text(&twins));
    }
}

/// Nothing on such a device says so.
const UNLESS_PART: &str = "unless it is the realtime or log device of an XFS that is not mounted";

/// A block device, the filesystem on it, and its mounts.
pub(super) fn whole_device(system: &System, block: &Block, found: &mut Findings) {
    if let Some(what) = Waits::now(system).unbind(system, block) {
        found.problem(
            &block.name,
            what,
            format!(
                "rdax who {} says who uses it: end that, or wait; it can be adopted when it is bound again",
                block.name
            ),
        );
        return;
    }
    let mounts = mounts::of(system, &block.number);
    if !block_device(system, block, found) {
        return;
    }
    waits(system, &block.name, device::numbers(&block.number), found);
    let user = mounts::with_part(system, &block.name);
    let first = mounts.first().or(user.as_ref().map(|(_, mount)| mount));
    adoption(system, block, first, found);
    if let Some((part, mount)) = &user {
        found.note(
            &block.name,
            format!(
                "is the {part} of the {} that is mounted on {}",
                mount.kind,
                mount.point.display()
            ),
        );
        return;
    }
    // Where files can be mapped by 1 GiB, they should be.
    let on_gib = block.start(system).is_some_and(|start| start % PUD == 0);
    match superblock::look(system, &block.name) {
        Some(Some(superblock)) => filesystem(block, &superblock, on_gib, found),
        // Others have what is on it.
        Some(None) if block.others().is_some() => {}
        Some(None) if mounts.is_empty() => match superblock::is_blank(system, &block.name) {
            Some(true) => found.note_fix(
                &block.name,
                format!("there is no filesystem on it, {UNLESS_PART}"),
                on_gib
                    .then(|| layout::mkfs(&block.name, block.size, block.partition.is_some()))
                    .flatten()
                    .unwrap_or_else(|| mkfs(block))
                    + " (this erases what is on it)",
            ),
            _ => found.note(
                &block.name,
                format!(
                    "there is no filesystem on it that rdax knows, but something else: blkid -p /dev/{} may \
                     know what, {UNLESS_PART}",
                    block.name
                ),
            ),
        },
        Some(None) => {}
        None => found.note(&block.name, "what is on it is told to root only"),
    }
    for mount in &mounts {
        mounted(block, mount, found);
    }
}

/// The command that makes a filesystem which aligns files to 2 MiB.
fn mkfs(block: &Block) -> String {
    // XFS takes no device below 300 MiB, and with some sizes above has no room for its log.
    let (command, options) = match block.size {
        ..GIB => ("mkfs.ext4 -b 4096", "-E stride=512,stripe_width=512"),
        _ => (layout::make_xfs(block.partition.is_some()), "-d su=2m,sw=1"),
    };
    format!("{command} {options} /dev/{}", block.name)
}

/// Who waits for others who use its pages; whether anybody does.
fn waits(system: &System, name: &str, number: Option<(u32, u32)>, found: &mut Findings) -> bool {
    let text = Waits::now(system).for_device(name, number);
    let any = text.is_some();
    if let Some(text) = text {
        found.problem(
            name,
            text,
            "end the process that uses them, or what it does with them",
        );
    }
    any
}

/// Whether it is worth looking further.
fn block_device(system: &System, block: &Block, found: &mut Findings) -> bool {
    let name = &block.name;
    let namespace = block.namespace.as_deref().unwrap_or("NAMESPACE");
    match block.mode {
        Mode::Fsdax => {}
        Mode::Mapped => {
            found.note(
                name,
                "a device-mapper device: its mappings are as large as those below it allow, and \
                 where it lies in memory is not known here",
            );
            return true;
        }
        Mode::Sector | Mode::Raw | Mode::Devdax | Mode::Other if block.namespace.is_some() => {
            found.problem(
                name,
                format!("{namespace} is in mode {}, not fsdax", block.mode.name()),
                format!("ndctl create-namespace -f -e {namespace} -m fsdax -a 2M (this erases it)"),
            );
            return false;
        }
        _ => {
            found.problem(
                name,
                "is not persistent memory",
                "adopt a pmem device; rdax list shows them",
            );
            return false;
        }
    }
    found.ok(
        name,
        format!(
            "{namespace} is in mode fsdax, {}{}",
            amount(block.size),
            match block.map {
                Some("mem") => ", its page map in memory",
                Some("dev") => ", its page map on the device",
                _ => "",
            }
        ),
    );
    if block.is_dax_capable(system) == Some(false) {
        found.problem(
            name,
            "the kernel says that it is not capable of DAX",
            "see dmesg for nd_pmem",
        );
    }
    alignment(system, block, namespace, found);
    true
}

fn alignment(system: &System, block: &Block, namespace: &str, found: &mut Findings) {
    let name = &block.name;
    let Some(start) = block.start(system) else {
        found.note(name, "where it lies in memory is told to root only");
        return;
    };
    let what = if block.partition.is_some() {
        "partition"
    } else {
        "data"
    };
    let at = format!("its {what} begins at physical {start:#x}");
    let past = |size| amount(start % size);
    let remake = |align: &str| {
        if block.partition.is_some() {
            format!("have the partition begin on a multiple of {align} (parted -a none, unit b)")
        } else {
            let map = if align == "1G" { " -M mem" } else { "" };
            // Or it would stay adopted while it is taken apart.
            let first = match device::is_adopted(system, name) {
                Some(false) => String::new(),
                _ => format!("rdax release {name}, then "),
            };
            format!(
                "{first}ndctl create-namespace -f -e {namespace} -m fsdax -a {align}{map} (this \
                 erases it)"
            )
        }
    };
    if start % PMD != 0 {
        found.problem(
            name,
            format!("{at}, {} past a multiple of 2 MiB", past(PMD)),
            remake("2M"),
        );
    } else if start % PUD != 0 {
        found.note_fix(
            name,
            format!(
                "{at}, {} past a multiple of 1 GiB: files find room for 1 GiB mappings only where \
                 the filesystem lays them out for it",
                past(PUD)
            ),
            format!(
                "rdax layout create PATH SIZE makes such files; or: {}",
                remake("1G")
            ),
        );
    } else {
        found.ok(name, format!("{at}, a multiple of 1 GiB"));
    }
    if block.size < GIB {
        found.note(
            name,
            format!("{} have no room for 1 GiB mappings", amount(block.size)),
        );
    }
}

fn adoption(system: &System, block: &Block, mount: Option<&Mount>, found: &mut Findings) {
    let name = &block.name;
    match device::is_adopted(system, name) {
        Some(true) => {
            found.ok(name, "is adopted");
            let max_order = system.read(block.config().join("max_order"));
            let order = match max_order.as_deref() {
                Ok("pte") => Some("4 KiB"),
                Ok("pmd") => Some("2 MiB"),
                _ => None,
            };
            if let Some(order) = order {
                found.note_fix(
                    name,
                    format!("max_order lets files be mapped by {order} at most"),
                    format!("rdax adopt --max-order 1G {name}"),
                );
            }
        }
        Some(false) => match block.others() {
            Some(others) => found.note(name, format!("is not adopted: {others}")),
            None => {
                if let Some(why) = persist::why_failed(system, name) {
                    found.note(name, why);
                }
                let fix = match mount {
                    Some(mount) => mounts::how_to_adopt(name, mount),
                    None => format!("rdax adopt {name} (--load loads the module, too)"),
                };
                found.problem(name, "is not adopted", fix);
            }
        },
        None => found.note(name, "whether it is adopted is told to root only"),
    }
    if block.namespace.is_some() {
        at_boot(system, name, block.uuid.as_deref(), found);
    }
}

pub(super) fn dax_device(system: &System, dax: &Dax, found: &mut Findings) {
    let name = &dax.name;
    // It is being unbound, and has no driver any more.
    if waits(system, name, dax.number, found) {
        return;
    }
    if dax.mode() == "system-ram" {
        found.note(name, "is ordinary memory");
        return;
    }
    let align = dax.align.unwrap_or(0);
    if align % PMD != 0 || align == 0 {
        found.note_fix(
            name,
            format!("its alignment is {}: it is mapped by pages", amount(align)),
            format!(
                "ndctl create-namespace -f -e {} -m devdax -a 2M (this erases it)",
                dax.namespace.as_deref().unwrap_or("NAMESPACE")
            ),
        );
    } else {
        found.ok(name, format!("its alignment is {}", amount(align)));
    }
    match dax.driver.as_deref() {
        Some(_) if dax.is_adopted() => found.ok(name, "is adopted"),
        Some(driver) => found.note_fix(
            name,
            format!("is served by {driver}"),
            format!("rdax adopt {name}"),
        ),
        None => found.problem(name, device::NO_DRIVER, dax.driver_advice()),
    }
    at_boot(system, name, dax.uuid.as_deref(), found);
}
