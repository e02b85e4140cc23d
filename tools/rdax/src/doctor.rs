// SPDX-License-Identifier: GPL-2.0

//! `rdax doctor`: what adoption and large mappings need, and how to get what is missing.

use crate::{
    cli,
    device::{
        self,
        Block,
        Dax,
        Mode, //
    },
    extents::{
        self,
        Extent,
        Obstacle, //
    },
    module,
    mounts::{
        self,
        Mount, //
    },
    output,
    persist,
    size::{
        amount,
        GIB,
        PAGE,
        PMD,
        PUD, //
    },
    superblock::{
        self,
        Superblock, //
    },
    system::System, //
};
use anyhow::{
    anyhow,
    bail,
    Context,
    Result, //
};
use serde::Serialize;
use std::{
    fs::File,
    path::{
        Path,
        PathBuf, //
    },
    process::ExitCode, //
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    /// Good to know, or in the way of the largest mappings only.
    Note,
    Problem,
}

/// One line of the answer.
#[derive(Debug, Serialize)]
struct Finding {
    subject: String,
    status: Status,
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

/// What was found, one after the other.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, subject: &str, status: Status, text: impl Into<String>, fix: Option<String>) {
        self.0.push(Finding {
            subject: subject.to_owned(),
            status,
            text: text.into(),
            fix,
        });
    }

    fn ok(&mut self, subject: &str, text: impl Into<String>) {
        self.add(subject, Status::Ok, text, None);
    }

    fn note(&mut self, subject: &str, text: impl Into<String>) {
        self.add(subject, Status::Note, text, None);
    }

    fn note_fix(&mut self, subject: &str, text: impl Into<String>, fix: impl Into<String>) {
        self.add(subject, Status::Note, text, Some(fix.into()));
    }

    fn problem(&mut self, subject: &str, text: impl Into<String>, fix: impl Into<String>) {
        self.add(subject, Status::Problem, text, Some(fix.into()));
    }
}

/// What is asked about.
enum Target {
    All,
    Block(Block),
    Dax(Dax),
    /// A filesystem, by a directory in it.
    Mount(Mount),
    File(PathBuf, Mount),
}

impl Target {
    fn of(system: &System, given: Option<&str>) -> Result<Self> {
        let Some(given) = given else {
            return Ok(Self::All);
        };
        let name = device::kernel_name(system, given);
        // `/dev/pmem0` and `pmem0` are devices, `/mnt/pmem0` and `./pmem0` are not.
        let path = Path::new(given);
        if !given.contains('/') || path.starts_with("/dev") {
            if let Some(dax) = Dax::find(system, &name) {
                return Ok(Self::Dax(dax));
            }
            if let Some(block) = Block::find(system, &name) {
                return Ok(Self::Block(block));
            }
        }
        let path = if system.is_real() {
            std::path::absolute(path)?
        } else {
            path.to_path_buf()
        };
        let real = system.resolve(&path).ok_or_else(|| {
            anyhow!("{given}: there is no such device, directory or file (rdax list names devices)")
        })?;
        let mount = mounts::all(system)
            .into_iter()
            .filter(|mount| real.starts_with(&mount.point))
            // The one that was mounted last, where several are.
            .max_by_key(|mount| mount.point.components().count())
            .ok_or_else(|| anyhow!("{given}: is on no filesystem that is mounted here"))?;
        if system.is_dir(&real) {
            Ok(Self::Mount(mount))
        } else {
            Ok(Self::File(real, mount))
        }
    }
}

/// `rdax doctor`
pub fn run(system: &System, arguments: &cli::Doctor) -> Result<ExitCode> {
    let target = Target::of(system, arguments.target.as_deref())?;
    let mut found = Findings::default();
    machine(system, &mut found);
    match target {
        Target::All => all(system, &mut found),
        Target::Block(block) => whole_device(system, &block, &mut found),
        Target::Dax(dax) => dax_device(&dax, &mut found),
        Target::Mount(mount) => {
            let block = device_of(system, &mount)?;
            whole_device(system, &block, &mut found);
        }
        Target::File(path, mount) => {
            let block = device_of(system, &mount)?;
            whole_device(system, &block, &mut found);
            file(system, &path, &block, &mount, &mut found)?;
        }
    }
    let problems = found
        .0
        .iter()
        .filter(|finding| finding.status == Status::Problem);
    let problems = problems.count();
    if arguments.json {
        output::json(&found.0)?;
    } else {
        print(&found, problems)?;
    }
    Ok(if problems == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn print(found: &Findings, problems: usize) -> Result<()> {
    let mut out = String::new();
    for finding in &found.0 {
        let status = match finding.status {
            Status::Ok => "ok",
            Status::Note => "note",
            Status::Problem => "PROBLEM",
        };
        out += &format!("{status:<8} {}: {}\n", finding.subject, finding.text);
        if let Some(fix) = &finding.fix {
            out += &format!("{:<8}   {fix}\n", "");
        }
    }
    out += &match problems {
        0 => "Nothing is in the way.\n".to_owned(),
        1 => "There is 1 problem.\n".to_owned(),
        more => format!("There are {more} problems.\n"),
    };
    output::print(&out)?;
    Ok(())
}

fn device_of(system: &System, mount: &Mount) -> Result<Block> {
    Block::by_number(system, &mount.device).ok_or_else(|| {
        anyhow!(
            "{} is {} on {}, which is no block device",
            mount.point.display(),
            mount.kind,
            mount.source
        )
    })
}

/// The kernel, the processor, and the module.
fn machine(system: &System, found: &mut Findings) {
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
    if module::is_installed(system) {
        found.problem("module", "rdax is not loaded", "modprobe rdax");
    } else {
        let release = system.release();
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

fn all(system: &System, found: &mut Findings) {
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
        dax_device(dax, found);
    }
}

/// A block device, the filesystem on it, and its mounts.
fn whole_device(system: &System, block: &Block, found: &mut Findings) {
    let mounts = mounts::of(system, &block.number);
    if !block_device(system, block, found) {
        return;
    }
    adoption(system, block, &mounts, found);
    match superblock::read(system, &block.name) {
        Some(superblock) => filesystem(block, &superblock, found),
        None if mounts.is_empty() => found.note_fix(
            &block.name,
            "there is no filesystem that rdax knows (or it may not be read)",
            format!("mkfs.xfs -d su=2m,sw=1 /dev/{}", block.name),
        ),
        None => {}
    }
    for mount in &mounts {
        mounted(block, mount, found);
    }
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
    let Some(start) = block.start else {
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

fn adoption(system: &System, block: &Block, mounts: &[Mount], found: &mut Findings) {
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
        Some(false) => {
            let fix = match mounts.first() {
                Some(mount) => {
                    let point = mount.point.display();
                    format!("umount {point}, rdax adopt {name}, and mount it again")
                }
                None => format!("rdax adopt {name} (--load loads the module, too)"),
            };
            found.problem(name, "is not adopted", fix);
        }
        None => found.note(name, "whether it is adopted is told to root only"),
    }
    if block.namespace.is_some() {
        if persist::of(system, name).is_some() {
            found.ok(name, "will be adopted at every boot");
        } else {
            found.note_fix(
                name,
                "is not adopted at boot",
                format!("rdax adopt --persist {name}"),
            );
        }
    }
}

fn filesystem(block: &Block, superblock: &Superblock, found: &mut Findings) {
    let name = &block.name;
    let kind = superblock.kind();
    if superblock.block_size() != PAGE {
        let fix = match superblock {
            Superblock::Xfs(_) => format!("mkfs.xfs -f -b size=4k -d su=2m,sw=1 /dev/{name}"),
            Superblock::Ext4(_) => {
                format!("mkfs.ext4 -b 4096 -E stride=512,stripe_width=512 /dev/{name}")
            }
            Superblock::Erofs { .. } => "mkfs.erofs -b 4096 …".to_owned(),
        };
        found.problem(
            name,
            format!(
                "the blocks of its {kind} have {}, not the 4 KiB of a page, so it cannot be mounted \
                 with DAX",
                amount(superblock.block_size())
            ),
            format!("{fix} (this erases it)"),
        );
        return;
    }
    found.ok(
        name,
        format!("the blocks of its {kind} have the size of a page"),
    );
    match superblock {
        Superblock::Xfs(xfs) => {
            let unit = xfs.stripe_unit;
            if unit == 0 || unit % PMD != 0 {
                let has = if unit == 0 {
                    "no stripe unit".to_owned()
                } else {
                    amount(unit)
                };
                found.note_fix(
                    name,
                    format!("XFS was not told to align files to 2 MiB (su: {has})"),
                    format!(
                        "mkfs.xfs -f -d su=2m,sw=1 /dev/{name} (this erases it); or for one \
                         directory, before its files are written: xfs_io -c 'extsize 2m' DIR"
                    ),
                );
            } else {
                found.ok(name, format!("XFS aligns files to {}", amount(unit)));
            }
            if xfs.group_size < 2 * GIB && block.size >= 2 * GIB {
                found.note_fix(
                    name,
                    format!(
                        "XFS has {} allocation groups of {}: there is hardly room for 1 GiB mappings",
                        xfs.groups,
                        amount(xfs.group_size)
                    ),
                    format!(
                        "mkfs.xfs -f -d su=1g,sw=1,agcount={} /dev/{name} (this erases it)",
                        (block.size / (2 * GIB)).max(1)
                    ),
                );
            }
            if xfs.reflink && block.partition.is_some() {
                found.problem(
                    name,
                    "XFS with reflink takes no partition for DAX",
                    format!("mkfs.xfs -f -m reflink=0 -d su=2m,sw=1 /dev/{name} (this erases it)"),
                );
            }
            if xfs.realtime {
                found.note(
                    name,
                    "XFS has a realtime device; adopt that, too, if it may go away",
                );
            }
        }
        Superblock::Ext4(ext4) => {
            let unit = ext4.cluster_size.unwrap_or(ext4.stride);
            if unit == 0 || unit % PMD != 0 {
                found.note_fix(
                    name,
                    "ext4 was not told to align files to 2 MiB (stride, stripe_width)",
                    format!(
                        "mkfs.ext4 -b 4096 -E stride=512,stripe_width=512 /dev/{name} (this erases \
                         it); for new files: tune2fs -E stride=512,stripe_width=512 /dev/{name} and \
                         mount it again"
                    ),
                );
            } else {
                found.ok(name, format!("ext4 aligns files to {}", amount(unit)));
            }
        }
        Superblock::Erofs { .. } => {}
    }
}

fn mounted(block: &Block, mount: &Mount, found: &mut Findings) {
    let point = mount.point.display();
    let subject = point.to_string();
    match mount.dax() {
        Some("always") => found.ok(&subject, "mounted with dax=always"),
        Some("never") => found.problem(
            &subject,
            "mounted with dax=never: no file is mapped directly",
            format!(
                "umount {point}, mount -o dax=always /dev/{} {point}",
                block.name
            ),
        ),
        _ => found.note_fix(
            &subject,
            "mounted without dax=always: only files that have the attribute are DAX files",
            format!(
                "umount {point}, mount -o dax=always /dev/{} {point}; or for files that are made \
                 from now on: xfs_io -c 'chattr +x' DIR",
                block.name
            ),
        ),
    }
}

/// How many ranges of a file one entry can map, and what is in the way of how many others.
struct Tally {
    good: u64,
    all: u64,
    bad: Vec<(&'static str, u64)>,
    /// The first that is in the way of a range.
    first: Option<(u64, Obstacle)>,
}

impl Tally {
    fn of(extents: &[Extent], start: u64, length: u64, size: u64) -> Self {
        let mut tally = Self {
            good: 0,
            all: length / size,
            bad: Vec::new(),
            first: None,
        };
        for number in 0..tally.all {
            match extents::examine(extents, start, number * size, size).0 {
                Ok(()) => tally.good += 1,
                Err(obstacle) => {
                    tally.first.get_or_insert((number * size, obstacle));
                    let kind = obstacle.kind();
                    match tally.bad.iter_mut().find(|(known, _)| *known == kind) {
                        Some((_, count)) => *count += 1,
                        None => tally.bad.push((kind, 1)),
                    }
                }
            }
        }
        tally
    }

    /// In a sentence.
    fn text(&self, size: u64) -> String {
        let unit = amount(size);
        if self.good == self.all {
            return format!(
                "all of its {} ranges of {unit} can be mapped by one entry",
                self.all
            );
        }
        let bad: Vec<String> = self
            .bad
            .iter()
            .map(|(kind, count)| format!("{count} {kind}"))
            .collect();
        let first = self.first.map_or(String::new(), |(offset, obstacle)| {
            format!(" (the first at {}: {obstacle})", amount(offset))
        });
        format!(
            "{} of its {} ranges of {unit} can be mapped by one entry; {}{first}",
            self.good,
            self.all,
            bad.join(", ")
        )
    }

    fn has(&self, wanted: &Obstacle) -> bool {
        self.bad.iter().any(|(kind, _)| *kind == wanted.kind())
    }
}

fn file(
    system: &System,
    path: &Path,
    block: &Block,
    mount: &Mount,
    found: &mut Findings,
) -> Result<()> {
    let subject = path.display().to_string();
    let file = File::open(system.path(path)).with_context(|| subject.clone())?;
    let status = file.metadata()?;
    if !status.is_file() {
        bail!("{subject} is no regular file");
    }
    match extents::is_dax(&file) {
        Some(true) => found.ok(&subject, "is a DAX file"),
        Some(false) => found.problem(
            &subject,
            "is not a DAX file: it is mapped through the page cache",
            "mount with -o dax=always; or give its directory the attribute (xfs_io -c 'chattr +x') \
             and copy the file anew",
        ),
        None => {}
    }
    if extents::attributes(&file).realtime {
        found.note(
            &subject,
            "is on XFS's realtime device: where that lies is not known here",
        );
        return Ok(());
    }
    let length = status.len();
    if length < PMD {
        found.note(
            &subject,
            format!(
                "has {}: it is mapped by pages, as it ends before 2 MiB",
                amount(length)
            ),
        );
        return Ok(());
    }
    if length % PMD != 0 {
        found.note_fix(
            &subject,
            format!(
                "its last {} are mapped by pages, as it ends there",
                amount(length % PMD)
            ),
            "truncate -s %2M FILE makes it a multiple of 2 MiB, if its user does not mind",
        );
    }
    let Some(start) = block.start else {
        return Ok(());
    };
    let extents = extents::of(&file)?;
    let tally = Tally::of(&extents, start, length, PMD);
    let text = tally.text(PMD);
    if tally.good == tally.all {
        found.ok(&subject, text);
    } else {
        found.problem(&subject, text, small_fix(&tally, mount));
    }
    if length >= PUD {
        let tally = Tally::of(&extents, start, length, PUD);
        let text = tally.text(PUD);
        if tally.good == tally.all {
            found.ok(&subject, text);
        } else if tally.has(&Obstacle::Unwritten) && tally.bad.len() == 1 {
            found.note_fix(&subject, text, "write the whole file once");
        } else {
            found.note_fix(
                &subject,
                text,
                "rdax layout create PATH SIZE makes a file that can; copy the data there",
            );
        }
    }
    Ok(())
}

/// What makes more of a file be mapped by 2 MiB.
fn small_fix(tally: &Tally, mount: &Mount) -> String {
    let mut fixes = Vec::new();
    let is_misplaced = tally.bad.iter().any(|(kind, _)| {
        [
            Obstacle::Gap(0).kind(),
            Obstacle::Misaligned { by: 0, size: 0 }.kind(),
        ]
        .contains(kind)
    });
    if is_misplaced {
        fixes.push(match mount.kind.as_str() {
            "xfs" => {
                "copy it to where XFS aligns (mkfs.xfs -d su=2m,sw=1, or a directory with xfs_io -c \
                 'extsize 2m'), best after fallocate"
            }
            "ext4" => {
                "copy it to an ext4 that aligns (mkfs.ext4 -b 4096 -E stride=512,stripe_width=512), \
                 best after fallocate"
            }
            _ => "copy it to a filesystem that aligns",
        });
    }
    if tally.has(&Obstacle::NoBlocks) || tally.has(&Obstacle::Hole(0)) {
        fixes.push("fill the holes with fallocate, or write them");
    }
    if tally.has(&Obstacle::Unwritten) {
        fixes.push("write it once; until then reads see a hole, and the first stores convert it");
    }
    if tally.has(&Obstacle::Shared) {
        fixes.push("a copy without reflink (cp --reflink=never) is not shared");
    }
    if fixes.is_empty() {
        fixes.push("copy the file to a filesystem with blocks of its own");
    }
    fixes.join("; ")
}

fn dax_device(dax: &Dax, found: &mut Findings) {
    let name = &dax.name;
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
    if dax.is_adopted() {
        found.ok(name, "is adopted");
    } else {
        found.note_fix(
            name,
            format!(
                "is served by {}",
                dax.driver.as_deref().unwrap_or("no driver")
            ),
            format!("rdax adopt {name}"),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size::MIB;

    #[test]
    fn ranges_are_counted_by_what_is_in_their_way() {
        let extents = [
            Extent::of(0, 0, PMD),
            // 1 MiB beside, and then a hole.
            Extent::of(PMD, 2 * PMD + MIB, 2 * PMD),
        ];
        let tally = Tally::of(&extents, GIB, 4 * PMD, PMD);
        assert_eq!((tally.good, tally.all), (1, 4));
        assert_eq!(
            tally.text(PMD),
            "1 of its 4 ranges of 2 MiB can be mapped by one entry; 2 not aligned on the device, \
             1 holes (the first at 2 MiB: 1 MiB past a physical multiple of 2 MiB)"
        );
        assert!(tally.has(&Obstacle::NoBlocks));
        assert!(!tally.has(&Obstacle::Shared));
        let tally = Tally::of(&extents, GIB, PMD, PMD);
        assert_eq!(
            tally.text(PMD),
            "all of its 1 ranges of 2 MiB can be mapped by one entry"
        );
    }
}
