// SPDX-License-Identifier: GPL-2.0

//! Which filesystems have places for files that are mapped by 1 GiB, and how many.

use crate::size::{GIB, MIB};

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
pub(super) fn xfs_room(size: u64) -> u64 {
    xfs_geometry(size).map_or(0, |(group, unit)| xfs_places(size, group, unit))
}

/// The same for ext4, which can have its metadata, 1/64 of the device and more, and the journal at the beginning.
pub(super) fn ext4_room(size: u64) -> u64 {
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
pub(super) fn mkfs_xfs(name: &str, size: u64, is_partition: bool) -> String {
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
pub(super) fn mkfs_ext4(name: &str) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size::PAGE;
    use std::{fs::File, path::Path};

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
}
