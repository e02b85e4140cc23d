// SPDX-License-Identifier: GPL-2.0

//! `rdax layout`: files that can be mapped by 1 GiB.
//!
//! A page-table entry for 1 GiB needs 1 GiB of contiguous memory that begins at a physical address, a
//! file offset and a virtual address that are multiples of 1 GiB. This is about the first two; the
//! address is for the program that maps the file to choose.

use crate::{
    ask,
    cli::LayoutCommand,
    device::{
        self,
        Block, //
    },
    extents::{
        self,
        Extent, //
    },
    module,
    mounts,
    output,
    size::{
        amount,
        GIB,
        MIB,
        PAGE, //
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
use rustix::{
    fs::{
        fallocate,
        linkat,
        AtFlags,
        FallocateFlags,
        OFlags,
        CWD, //
    },
    io::Errno, //
};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    fs::{
        File,
        OpenOptions, //
    },
    io::{
        self,
        IsTerminal, //
    },
    os::{
        fd::AsRawFd,
        linux::fs::MetadataExt,
        unix::fs::{
            FileExt,
            OpenOptionsExt, //
        }, //
    },
    path::Path,
    process::ExitCode, //
};

/// So many GiB are looked at one by one; no device is as large.
const MOST_GIBS: u64 = 1 << 20;

/// The filesystem that a file is on, and where its device's first byte lies in memory.
pub struct Place {
    pub block: Block,
    pub kind: String,
    pub start: u64,
}

impl Place {
    pub fn of(system: &System, file: &File) -> Result<Self> {
        let number = file.metadata()?.st_dev();
        let number = format!(
            "{}:{}",
            rustix::fs::major(number),
            rustix::fs::minor(number)
        );
        let block = Block::by_number(system, &number)
            .ok_or_else(|| anyhow!("the file is on no block device"))?;
        let mounts = mounts::of(system, &number);
        let kind = mounts
            .first()
            .map_or("unknown", |mount| &mount.kind)
            .to_owned();
        if block.namespace.is_none() {
            bail!(
                "{} is not a pmem device or a partition of one: where its blocks lie in memory is not \
                 known here",
                block.name
            );
        }
        let start = block.start(system).ok_or_else(|| match block.goes {
            true => anyhow!("{} {}", block.name, device::GOES),
            false => anyhow!(
                "the kernel does not tell where {} lies in memory: are you root?",
                block.name
            ),
        })?;
        Ok(Self { block, kind, start })
    }

    /// How to get a filesystem with places for so many pieces of 1 GiB.
    fn advice(&self, system: &System, wanted: u64) -> String {
        let past = self.start % GIB;
        if past != 0 {
            return format!(
                "The device's first byte is {} past a physical multiple of 1 GiB: unmount and \
                 release it, make the namespace with ndctl create-namespace -f -e {} -m fsdax -a 1G \
                 -M mem, which erases it, and have a partition begin on a multiple of 1 GiB.",
                amount(past),
                self.block.namespace.as_deref().unwrap_or("NAMESPACE"),
            );
        }
        let (name, size) = (&self.block.name, self.block.size);
        let is_partition = self.block.partition.is_some();
        let ext4 = ext4_room(size);
        let most = match self.kind.as_str() {
            "xfs" => xfs_room(size),
            _ => ext4,
        };
        let made = |command: String, room: u64| {
            format!("{command}, which erases it, makes one with room for {room} GiB.")
        };
        if wanted > most.max(ext4) {
            return format!(
                "On a device of {} there is room for {} GiB at most{}.",
                amount(size),
                most.max(ext4),
                match ext4 {
                    0 => String::new(),
                    _ => format!(", on an ext4 that {} makes", mkfs_ext4(name)),
                }
            );
        }
        if wanted > most {
            return format!(
                "XFS has room for {most} GiB at most on a device of {}; ext4 has more: {}",
                amount(size),
                made(mkfs_ext4(name), ext4)
            );
        }
        if self.kind != "xfs" {
            return format!(
                "Metadata or other files are in the way: {}",
                made(mkfs_ext4(name), ext4)
            );
        }
        match superblock::read(system, name) {
            Some(Superblock::Xfs(xfs)) => {
                if wanted <= xfs_places(size, xfs.group_size, xfs.stripe_unit) {
                    return format!(
                        "Other files are in the way, or what the filesystem keeps for itself: {}",
                        made(mkfs_xfs(name, size, is_partition), most)
                    );
                }
                format!(
                    "Its {} allocation groups of {} are too small: {}",
                    xfs.groups,
                    amount(xfs.group_size),
                    made(mkfs_xfs(name, size, is_partition), most)
                )
            }
            _ => made(mkfs_xfs(name, size, is_partition), most),
        }
    }
}

/// How many pieces of 1 GiB an XFS has places for, at least, on a device of this size whose first byte is on a multiple
/// of that.
///
/// A group has its metadata at its beginning, and keeps some free blocks for more: at its end, as it is filled from its
/// beginning, unless files are aligned to 1 GiB. The root directory's inodes, in the first group, are aligned so, too, and
/// begin a piece of their own then. A log has up to 2 GiB.
pub fn xfs_places(size: u64, group_size: u64, stripe_unit: u64) -> u64 {
    const LARGE_LOG: u64 = 1024 * GIB;
    let aligned = stripe_unit != 0 && stripe_unit % GIB == 0;
    let kept = if aligned { 0 } else { group_size / 64 };
    let (mut pieces, mut start) = (0, 0);
    // Ends: each turn is for the next group, and has more than 1 GiB.
    while start < size && group_size > GIB {
        let end = size.min(start + group_size) - kept.min(size - start);
        pieces += (end / GIB).saturating_sub(start / GIB + 1);
        start += group_size;
    }
    let log = u64::from(size > LARGE_LOG);
    pieces.saturating_sub(u64::from(aligned) + log)
}

/// The size of the groups and the stripe unit of an XFS for files of 1 GiB in one piece; `None` for a device that is too
/// small: mkfs.xfs wants two groups at least, and room for the log in the second.
fn xfs_geometry(size: u64) -> Option<(u64, u64)> {
    const SMALL: u64 = 2 * GIB + 256 * MIB;
    if size >= 4 * GIB {
        // Four groups, as mkfs.xfs makes by itself, or two where each takes much; but they cannot have more than 1 TiB.
        let groups = if size <= 8 * GIB { 2 } else { 4 };
        Some((size.div_ceil(groups * GIB).clamp(2, 512) * GIB, GIB))
    } else {
        // The first one has a piece, and room behind it for what it keeps.
        (size >= SMALL + 256 * MIB).then_some((SMALL, 2 * MIB))
    }
}

/// How many pieces of 1 GiB there is room for on an XFS that was made so.
fn xfs_room(size: u64) -> u64 {
    xfs_geometry(size).map_or(0, |(group, unit)| xfs_places(size, group, unit))
}

/// The same for ext4, which can have its metadata, 1/64 of the device and more, and the journal at the beginning.
fn ext4_room(size: u64) -> u64 {
    const SMALL: u64 = 32 * GIB;
    let metadata = match size {
        ..SMALL => 1,
        _ => 2 + size.div_ceil(64 * GIB),
    };
    (size / GIB).saturating_sub(metadata)
}

/// The command that makes an XFS with places for files of 1 GiB.
///
/// mkfs.xfs rounds the size of its groups up to the stripe unit, but not a number of groups that it is told (agcount) down,
/// and may then have more than fit: so it is told the size.
fn mkfs_xfs(name: &str, size: u64, is_partition: bool) -> String {
    let (group, unit) = xfs_geometry(size).unwrap_or((2 * GIB, GIB));
    let short = |bytes: u64| match bytes % GIB {
        0 => format!("{}g", bytes / GIB),
        _ => format!("{}m", bytes / MIB),
    };
    format!(
        "{} -d su={},sw=1,agsize={} /dev/{name}",
        make_xfs(is_partition),
        short(unit),
        short(group)
    )
}

/// How a command begins that makes an XFS. On a partition, one with reflink cannot be mounted with DAX.
pub fn make_xfs(is_partition: bool) -> &'static str {
    match is_partition {
        true => "mkfs.xfs -f -m reflink=0",
        false => "mkfs.xfs -f",
    }
}

/// The command that makes an ext4 with such places, which aligns other files to 2 MiB.
fn mkfs_ext4(name: &str) -> String {
    format!(
        "mkfs.ext4 -b 4096 -m 0 -O sparse_super2,^resize_inode -E \
         stride=512,stripe_width=512,num_backup_sb=0,packed_meta_blocks=1 -G 4096 /dev/{name}"
    )
}

/// The command that makes a filesystem with places for files of 1 GiB; `None` if none can have one on a device of this size.
pub fn mkfs(name: &str, size: u64, is_partition: bool) -> Option<String> {
    if xfs_room(size) > 0 {
        Some(mkfs_xfs(name, size, is_partition))
    } else if ext4_room(size) > 0 {
        Some(mkfs_ext4(name))
    } else {
        None
    }
}

/// A piece of a file and where it is in memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    logical: u64,
    address: u64,
    length: u64,
}

/// The pieces of a file, in order, that together are one physical GiB at its place; a list for each
/// GiB of which the file has all, in order. GiBs that the file has in another order are of no use
/// and left out.
fn whole_gibs(extents: &[Extent], start: u64) -> Vec<Vec<Piece>> {
    let mut parts: BTreeMap<u64, Vec<Piece>> = BTreeMap::new();
    for extent in extents.iter().filter(|extent| extent.has_blocks()) {
        let mut address = start.wrapping_add(extent.physical);
        let end = address.saturating_add(extent.length);
        let mut logical = extent.logical;
        while address < end {
            let length = end.min((address / GIB + 1).saturating_mul(GIB)) - address;
            parts.entry(address / GIB).or_default().push(Piece {
                logical,
                address,
                length,
            });
            address += length;
            logical += length;
        }
    }
    let mut candidates: Vec<Vec<Piece>> = parts.into_values().collect();
    candidates.sort_by_key(|pieces| pieces.first().map(|piece| piece.logical));
    let mut found: Vec<Vec<Piece>> = Vec::new();
    for pieces in candidates {
        let in_order = pieces.windows(2).all(|pair| {
            let [one, two] = pair else { return true };
            one.address + one.length == two.address
        });
        let whole = pieces.iter().map(|piece| piece.length).sum::<u64>() == GIB;
        let last = found.last().and_then(|pieces| pieces.last());
        let behind = last.is_none_or(|last| {
            pieces
                .first()
                .is_some_and(|first| last.logical < first.logical)
        });
        if in_order && whole && behind {
            found.push(pieces);
        }
    }
    found
}

/// What has to be cut out of a file so that only these pieces are left: ranges, the last one first;
/// and where it ends before that.
fn cuts(gibs: &[Vec<Piece>]) -> (Vec<(u64, u64)>, u64) {
    let mut kept: Vec<Piece> = gibs.iter().flatten().copied().collect();
    kept.sort_by_key(|piece| piece.logical);
    let mut gaps = Vec::new();
    let mut end = 0;
    for piece in kept {
        if end < piece.logical {
            gaps.push((end, piece.logical - end));
        }
        end = piece.logical + piece.length;
    }
    gaps.reverse();
    (gaps, end)
}

/// Allocates `size` bytes for an empty file, each GiB on a physical multiple of one.
///
/// The file is given more than it needs until enough of it is in place, and then everything else is
/// cut out of it, which moves no data.
fn lay_out(system: &System, file: &File, place: &Place, size: u64) -> Result<()> {
    let count = (size / GIB) as usize;
    let mut step = size;
    // Ends: each turn takes some of what is free, which gets less, or halves the step, which is
    // given up when it is small.
    let gibs = loop {
        match grow(file, place, step) {
            Ok(()) => step = step.min(GIB.max(size / 8)),
            // Some of it may have been allocated.
            Err(Errno::NOSPC) => step /= 2,
            Err(error) => return Err(error).context("blocks cannot be allocated"),
        }
        let gibs = whole_gibs(&extents::of(file)?, place.start);
        if gibs.len() >= count {
            break gibs;
        }
        if step < 16 * MIB {
            bail!(
                "there is room for {} GiB on physical multiples of 1 GiB. {}",
                gibs.len(),
                place.advice(system, count as u64)
            );
        }
    };
    let (gaps, end) = cuts(&gibs[..count]);
    file.set_len(end)?;
    for (offset, length) in gaps {
        fallocate(file, FallocateFlags::COLLAPSE_RANGE, offset, length)
            .context("what is not in place cannot be cut out")?;
    }
    Ok(())
}

fn grow(file: &File, place: &Place, step: u64) -> rustix::io::Result<()> {
    let begin = rustix::fs::fstat(file)?.st_size as u64;
    // ext4 allocates the most blocks it can in one piece, an odd number that leaves gaps.
    let part = if place.kind == "ext4" {
        step.min(64 * MIB)
    } else {
        step
    };
    let mut offset = begin;
    while offset < begin + step {
        fallocate(file, FallocateFlags::empty(), offset, part)?;
        offset += part;
    }
    Ok(())
}

/// A line that tells how much of all is done.
fn bar(what: &str, done: u64, all: u64) -> String {
    const WIDTH: u64 = 30;
    let filled = (done * WIDTH).checked_div(all).unwrap_or(WIDTH).min(WIDTH);
    format!(
        "{what}: [{}{}] {} of {}\x1b[K",
        "#".repeat(filled as usize),
        ".".repeat((WIDTH - filled) as usize),
        amount(done),
        amount(all)
    )
}

/// Without data, blocks read as holes, and a filesystem may not turn all of them into written ones
/// within one page fault.
fn write_zeroes(file: &File, size: u64) -> Result<()> {
    let zeroes = vec![0; 16 * MIB as usize];
    let show = io::stderr().is_terminal();
    let mut offset = 0;
    while offset < size {
        file.write_all_at(&zeroes, offset)?;
        offset += zeroes.len() as u64;
        if show {
            output::progress(&format!("\r{}", bar("writing zeroes", offset, size)));
        }
    }
    if show {
        output::progress("\r\x1b[K");
    }
    file.sync_all()?;
    Ok(())
}

fn refuse_realtime(file: &File) -> Result<()> {
    if extents::attributes(file).realtime {
        bail!("the file is on XFS's realtime device: where that lies is not known here");
    }
    Ok(())
}

/// A file without a name in the directory where it is to have this one.
fn unnamed(path: &Path) -> Result<File> {
    if path.symlink_metadata().is_ok() {
        bail!("{}: File exists", path.display());
    }
    let dir = match path.parent() {
        Some(dir) if dir != Path::new("") => dir,
        _ => Path::new("."),
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlags::TMPFILE.bits() as i32)
        .open(dir);
    file.map_err(|error| match error.raw_os_error() {
        Some(number) if number == Errno::OPNOTSUPP.raw_os_error() => anyhow!(
            "{}: its filesystem has no files without a name; ext4 and XFS are understood",
            path.display()
        ),
        _ => anyhow::Error::new(error).context(path.display().to_string()),
    })
}

/// Gives a file without a name this one, unless something else has it.
fn name(file: &File, path: &Path) -> Result<()> {
    let from = format!("/proc/self/fd/{}", file.as_raw_fd());
    linkat(CWD, from, CWD, path, AtFlags::SYMLINK_FOLLOW)
        .with_context(|| path.display().to_string())?;
    file.sync_all()?;
    Ok(())
}

/// Makes the file. It has no name before it is finished: nothing is left of it where that fails, or somebody ends
/// this.
fn create(system: &System, path: &Path, size: u64) -> Result<bool> {
    let file = unnamed(path)?;
    let made = || -> Result<Place> {
        let place = Place::of(system, &file)?;
        if !["ext4", "xfs"].contains(&place.kind.as_str()) {
            bail!(
                "{} is on {}; ext4 and XFS are understood",
                path.display(),
                place.kind
            );
        }
        refuse_realtime(&file)?;
        // Before anything is allocated and written.
        if extents::is_dax(&file) == Some(false) {
            bail!(
                "{} would not be a DAX file: mount the filesystem with -o dax=always, or give the \
                 directory the attribute with xfs_io -c 'chattr +x'",
                path.display()
            );
        }
        lay_out(system, &file, &place, size)?;
        write_zeroes(&file, size)?;
        Ok(place)
    };
    let place = made()?;
    name(&file, path)?;
    report(system, path, &file, &place, false)
}

#[derive(Serialize)]
struct Gib {
    offset: u64,
    mappable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource: Option<u64>,
}

#[derive(Serialize)]
struct Report {
    path: String,
    size: u64,
    filesystem: String,
    blockdev: String,
    /// The physical address of the device's first byte.
    resource: u64,
    mappable: bool,
    notes: Vec<String>,
    gibs: Vec<Gib>,
}

/// What is said of a file apart from its GiBs, and whether it is in the way.
fn notes(system: &System, file: &File, place: &Place, size: u64) -> Vec<(String, bool)> {
    let mut notes = Vec::new();
    let mut note = |text: String, is_bad: bool| notes.push((text, is_bad));
    if extents::is_dax(file) == Some(false) {
        note(
            "not a DAX file: mount with -o dax=always, or give it the attribute with xfs_io -c \
             'chattr +x'"
                .to_owned(),
            true,
        );
    }
    let name = &place.block.name;
    let alone = "the kernel's own code maps files by 2 MiB at most";
    if !module::has_config(system) {
        note(format!("the module rdax is not loaded: {alone}"), false);
    } else if device::is_adopted(system, name) != Some(true) {
        note(format!("{name} is not adopted: {alone}"), false);
    } else {
        let max_order = system
            .read(place.block.config().join("max_order"))
            .unwrap_or_default();
        if max_order != "pud" {
            note(format!("max_order of {name} forbids it: {max_order}"), true);
        }
    }
    if size == 0 {
        note("the file is empty".to_owned(), true);
    }
    notes
}

/// Prints what is to be said of each GiB; whether all is well.
fn report(system: &System, path: &Path, file: &File, place: &Place, json: bool) -> Result<bool> {
    let size = file.metadata()?.len();
    let extents = extents::of(file)?;
    let notes = notes(system, file, place, size);
    let whole = size / GIB + u64::from(size % GIB > GIB - PAGE);
    if whole > MOST_GIBS {
        bail!(
            "{}: is a sparse file of {}, larger than any device: not looked at",
            path.display(),
            amount(size)
        );
    }
    let gibs: Vec<Gib> = (0..whole)
        .map(|number| {
            let (result, address) = extents::examine(&extents, place.start, number * GIB, GIB);
            Gib {
                offset: number * GIB,
                mappable: result.is_ok(),
                reason: result.err().map(|obstacle| obstacle.to_string()),
                resource: address,
            }
        })
        .collect();
    let good = notes.iter().all(|(_, is_bad)| !is_bad)
        && gibs.iter().all(|gib| gib.mappable)
        && whole * GIB >= size;
    if json {
        let report = Report {
            path: path.display().to_string(),
            size,
            filesystem: place.kind.clone(),
            blockdev: place.block.name.clone(),
            resource: place.start,
            mappable: good,
            notes: notes.into_iter().map(|(text, _)| text).collect(),
            gibs,
        };
        output::json(&report)?;
        return Ok(good);
    }
    let mut out = format!(
        "{}: {}, {} on {}, whose first byte is at physical {:#x}\n",
        path.display(),
        amount(size),
        place.kind,
        place.block.name,
        place.start
    );
    for (text, _) in notes {
        out += &format!("{text}\n");
    }
    for (number, gib) in gibs.iter().enumerate() {
        let answer = match &gib.reason {
            Some(reason) => format!("no: {reason}"),
            None => "yes".to_owned(),
        };
        let at = gib
            .resource
            .map_or(String::new(), |address| format!(" (physical {address:#x})"));
        out += &format!("GiB {number}: {answer}{at}\n");
    }
    if whole * GIB < size {
        let rest = amount(size - whole * GIB);
        out += &format!("the last {rest}: no: the file ends before 1 GiB\n");
    }
    output::print(&out)?;
    Ok(good)
}

/// `rdax layout`
pub fn run(system: &System, command: &LayoutCommand) -> Result<ExitCode> {
    let good = match command {
        LayoutCommand::Create { path, size } => create(system, path, *size)?,
        LayoutCommand::Check { path, json } => {
            let file = ask::open(path)?;
            if !file.metadata()?.is_file() {
                bail!("{} is no regular file", path.display());
            }
            refuse_realtime(&file)?;
            report(system, path, &file, &Place::of(system, &file)?, *json)?
        }
    };
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_grows() {
        let line = |done| bar("writing", done, 3 * GIB);
        assert_eq!(
            line(GIB),
            "writing: [##########....................] 1 GiB of 3 GiB\u{1b}[K"
        );
        assert!(line(0).contains("[..............................] 0 bytes of 3 GiB"));
        assert!(line(3 * GIB).contains("[##############################]"));
        assert!(bar("writing", 0, 0).contains("[##############################]"));
    }

    #[test]
    fn a_file_has_its_name_when_it_is_finished() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let one = unnamed(&path).unwrap();
        let other = unnamed(&path).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        one.write_all_at(b"one", 0).unwrap();
        name(&one, &path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        // What has it keeps it.
        let error = name(&other, &path).unwrap_err();
        assert!(format!("{error:#}").contains("File exists"), "{error:#}");
        assert!(unnamed(&path).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
    }

    /// How many GiB on multiples of 1 GiB have these free ranges, in blocks.
    fn free_gibs(ranges: &[(u64, u64)]) -> u64 {
        const BLOCKS: u64 = GIB / PAGE;
        let whole =
            |&(start, end): &(u64, u64)| (end / BLOCKS).saturating_sub(start.div_ceil(BLOCKS));
        ranges.iter().map(whole).sum()
    }

    fn output(program: &str, arguments: &[&str], image: &Path) -> String {
        let done = crate::system::program(program)
            .args(arguments)
            .arg(image)
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{program} {arguments:?}: {error}");
        String::from_utf8(done.stdout).unwrap()
    }

    /// Makes a filesystem of this size by this command, and returns its directory and image.
    fn made(command: &str, size: u64) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        File::create(&image).unwrap().set_len(size).unwrap();
        let words: Vec<&str> = command.split(' ').collect();
        let (device, words) = words.split_last().unwrap();
        assert_eq!(*device, "/dev/pmem0");
        output(words[0], &words[1..], &image);
        (dir, image)
    }

    const SIZES: [u64; 15] = [
        2304, 2560, 3022, 3072, 4096, 5120, 6144, 7168, 8192, 9700, 11264, 12289, 24576, 65536,
        131_072,
    ];

    #[test]
    fn xfs_has_the_room_that_is_told() {
        let sizes = SIZES.map(|size| size * MIB).into_iter().skip(1);
        for size in sizes.chain([4096 * GIB]) {
            let (group, _) = xfs_geometry(size).unwrap();
            let (_dir, image) = made(&mkfs_xfs("pmem0", size, false), size);
            let free = output("xfs_db", &["-r", "-c", "freesp -d"], &image);
            // Group, block in it, blocks.
            let ranges: Vec<(u64, u64)> = free
                .lines()
                .filter_map(|line| {
                    let words = line.split_whitespace().map(str::parse);
                    match words.collect::<Result<Vec<u64>, _>>().ok()?[..] {
                        [number, at, length] => {
                            let start = number * (group / PAGE) + at;
                            Some((start, start + length))
                        }
                        _ => None,
                    }
                })
                .collect();
            let (found, told) = (free_gibs(&ranges), xfs_room(size));
            assert_eq!(found, told, "{} MiB: {free}", size / MIB);
            assert!(told > 0);
        }
    }

    #[test]
    fn ext4_has_the_room_that_is_told() {
        for size in SIZES.map(|size| size * MIB).into_iter().chain([2 * GIB]) {
            let (_dir, image) = made(&mkfs_ext4("pmem0"), size);
            let free = output("dumpe2fs", &[], &image);
            let mut ranges: Vec<(u64, u64)> = Vec::new();
            for list in free
                .lines()
                .filter_map(|line| line.trim().strip_prefix("Free blocks: "))
            {
                for range in list.split(", ").filter(|range| range.contains('-')) {
                    let (start, last) = range.split_once('-').unwrap();
                    let (start, end) = (start.parse().unwrap(), last.parse::<u64>().unwrap() + 1);
                    match ranges.last_mut() {
                        Some(before) if before.1 == start => before.1 = end,
                        _ => ranges.push((start, end)),
                    }
                }
            }
            let (found, told) = (free_gibs(&ranges), ext4_room(size));
            assert!(
                told > 0 && told <= found,
                "{} MiB: {found}, not {told}",
                size / MIB
            );
            assert!(
                size > 32 * GIB || told == found,
                "{} MiB: {found}, not {told}",
                size / MIB
            );
        }
    }

    #[test]
    fn a_small_device_gets_what_it_has_room_for() {
        assert_eq!(mkfs("pmem0", GIB, false), None);
        assert!(mkfs("pmem0", 2 * GIB, false)
            .unwrap()
            .starts_with("mkfs.ext4"));
        assert!(mkfs("pmem0", 3 * GIB, false)
            .unwrap()
            .contains("su=2m,sw=1,agsize=2304m"));
        assert!(mkfs("pmem0", 6 * GIB, false)
            .unwrap()
            .contains("su=1g,sw=1,agsize=3g"));
        for size in [3, 6] {
            let command = mkfs("pmem0p1", size * GIB, true).unwrap();
            assert!(command.starts_with("mkfs.xfs -f -m reflink=0 -d su="));
        }
        // As an older version advised, and mkfs.xfs by itself.
        assert_eq!(xfs_places(3 * GIB, 2 * GIB, GIB), 0);
        // What it keeps for itself is in the only place that there is.
        assert_eq!(xfs_places(3 * GIB, 2 * GIB, 2 * MIB), 0);
        assert_eq!(xfs_places(3 * GIB, 768 * MIB, 2 * MIB), 0);
    }

    #[test]
    fn an_extent_has_whole_gibs_and_rests() {
        // From half a GiB on, three GiB: two of them whole.
        let extents = [Extent::of(0, GIB / 2, 3 * GIB)];
        let gibs = whole_gibs(&extents, 0);
        assert_eq!(gibs.len(), 2);
        assert_eq!(gibs[0][0].logical, GIB / 2);
        let (gaps, end) = cuts(&gibs);
        assert_eq!(gaps, [(0, GIB / 2)]);
        assert_eq!(end, 2 * GIB + GIB / 2);
    }

    #[test]
    fn a_gib_of_several_extents() {
        let part = 128 * MIB;
        // Each on the device behind the one before, with something else between them in the file.
        let extents: Vec<Extent> = (0..8)
            .map(|number| Extent::of(number * 2 * part, GIB + number * part, part))
            .collect();
        let gibs = whole_gibs(&extents, 4 * GIB);
        assert_eq!(gibs.len(), 1);
        let (gaps, end) = cuts(&gibs);
        assert_eq!(gaps.len(), 7);
        assert_eq!(gaps[0], (13 * part, part));
        assert_eq!(end, 15 * part);
    }

    #[test]
    fn gibs_in_another_order_are_left_out() {
        let half = GIB / 2;
        // The second half comes first.
        assert!(whole_gibs(&[Extent::of(0, half, half), Extent::of(half, 0, half)], 0).is_empty());
        // Two GiB, the later one first: one of them can be kept.
        let swapped = [Extent::of(0, 2 * GIB, GIB), Extent::of(GIB, GIB, GIB)];
        assert_eq!(whole_gibs(&swapped, 0).len(), 2);
        // Interleaved: only one of them.
        let mixed = [
            Extent::of(0, 2 * GIB, half),
            Extent::of(half, GIB, half),
            Extent::of(GIB, 2 * GIB + half, half),
            Extent::of(GIB + half, GIB + half, half),
        ];
        assert_eq!(whole_gibs(&mixed, 0).len(), 1);
    }

    #[test]
    fn what_has_no_blocks_is_no_use() {
        let delayed = Extent {
            flags: 0x4,
            ..Extent::of(0, 0, GIB)
        };
        assert!(whole_gibs(&[delayed], 0).is_empty());
    }
}
