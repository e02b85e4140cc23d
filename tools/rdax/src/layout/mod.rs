// SPDX-License-Identifier: GPL-2.0

//! `rdax layout`: files that can be mapped by 1 GiB.
//!
//! A page-table entry for 1 GiB needs 1 GiB of contiguous memory that begins at a physical address, a
//! file offset and a virtual address that are multiples of 1 GiB. This is about the first two; the
//! address is for the program that maps the file to choose.

mod pieces;
mod room;

pub use self::room::{make_xfs, mkfs, xfs_places};
use self::{
    pieces::{cuts, whole_gibs},
    room::{ext4_room, mkfs_ext4, mkfs_xfs, xfs_room}, //
};
use crate::{
    ask,
    cli::LayoutCommand,
    device::{
        self,
        Block, //
    },
    extents::{
        self, //
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
            .ok_or_else(|| {
                anyhow!("the file is on no block device: this is for ext4 and XFS on a pmem device (rdax list)")
            })?;
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
        bail!(
            "{}: File exists; remove it first, or give another name",
            path.display()
        );
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
    physical: Option<u64>,
    /// The same, as it was called first.
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
                physical: address,
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
        output::shown(path),
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
            .physical
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
}
