// SPDX-License-Identifier: GPL-2.0

//! How much of a file can be mapped by large entries.

use super::Findings;
use crate::{
    ask,
    device::Block,
    extents::{self, Extent, Obstacle},
    mounts::Mount,
    size::{amount, PMD, PUD},
    system::System,
};
use anyhow::{bail, Result};
use std::path::Path;

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
        let mut number = 0;
        while number < tally.all {
            let mut count = 1;
            match extents::examine(extents, start, number * size, size).0 {
                Ok(()) => tally.good += 1,
                Err(obstacle) => {
                    if obstacle == Obstacle::NoBlocks {
                        // Up to the next extent at once: a sparse file may be larger than any device.
                        count = extents::hole_at(extents, number * size)
                            .map_or(tally.all - number, |hole| (hole / size).max(1));
                    }
                    tally.first.get_or_insert((number * size, obstacle));
                    let kind = obstacle.kind();
                    match tally.bad.iter_mut().find(|(known, _)| *known == kind) {
                        Some((_, known)) => *known += count,
                        None => tally.bad.push((kind, count)),
                    }
                }
            }
            number += count;
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

pub(super) fn file(
    system: &System,
    path: &Path,
    block: &Block,
    mount: &Mount,
    found: &mut Findings,
) -> Result<()> {
    let subject = path.display().to_string();
    let file = ask::open(&system.path(path))?;
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
    let Some(start) = block.start(system) else {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size::{GIB, MIB};

    #[test]
    fn a_sparse_file_larger_than_any_device_is_counted_at_once() {
        let end = 7 << 60;
        let tally = Tally::of(&[Extent::of(end - PMD, 0, PMD)], 0, end + 2 * PMD, PMD);
        assert_eq!((tally.good, tally.all), (1, end / PMD + 2));
        assert_eq!(tally.bad, [("holes", tally.all - 1)]);
    }

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
