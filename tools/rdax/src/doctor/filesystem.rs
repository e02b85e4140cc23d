// SPDX-License-Identifier: GPL-2.0

//! What a filesystem needs: how it was made, and how it is mounted.

use super::Findings;
use crate::{
    device::Block,
    layout,
    mounts::Mount,
    output::word,
    size::{amount, GIB, PAGE, PMD},
    superblock::Superblock,
};
use std::path::Path;

/// `on_gib`: whether the device begins on 1 GiB.
pub(super) fn filesystem(
    block: &Block,
    superblock: &Superblock,
    on_gib: bool,
    found: &mut Findings,
) {
    let name = &block.name;
    let is_partition = block.partition.is_some();
    let make_xfs = layout::make_xfs(is_partition);
    let kind = superblock.kind();
    if superblock.block_size() != PAGE {
        let fix = match superblock {
            Superblock::Xfs(_) => format!("{make_xfs} -b size=4k -d su=2m,sw=1 /dev/{name}"),
            Superblock::Ext4(_) => {
                format!("mkfs.ext4 -b 4096 -E stride=512,stripe_width=512 /dev/{name}")
            }
            Superblock::Erofs { .. } => "mkfs.erofs -b 4096 IMAGE DIR".to_owned(),
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
                        "{make_xfs} -d su=2m,sw=1 /dev/{name} (this erases it); or for one \
                         directory, before its files are written: xfs_io -c 'extsize 2m' DIR"
                    ),
                );
            } else {
                found.ok(name, format!("XFS aligns files to {}", amount(unit)));
            }
            let places = layout::xfs_places(block.size, xfs.group_size, unit);
            if places == 0 && on_gib && block.size >= GIB {
                let text = format!(
                    "XFS has {} allocation groups of {}: there is hardly room for 1 GiB mappings",
                    xfs.groups,
                    amount(xfs.group_size)
                );
                match layout::mkfs(name, block.size, is_partition) {
                    Some(command) => {
                        found.note_fix(name, text, format!("{command} (this erases it)"));
                    }
                    None => found.note(
                        name,
                        format!("{text}, nor on a device of {}", amount(block.size)),
                    ),
                }
            }
            if xfs.reflink && is_partition {
                found.problem(
                    name,
                    "XFS with reflink takes no partition for DAX",
                    format!("{make_xfs} -d su=2m,sw=1 /dev/{name} (this erases it)"),
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

pub(super) fn mounted(block: &Block, mount: &Mount, found: &mut Findings) {
    let point = word(&mount.point);
    let subject = mount.point.display().to_string();
    let again = if mount.root == Path::new("/") {
        format!(
            "umount {point}, mount -o dax=always /dev/{} {point}",
            block.name
        )
    } else {
        // What is mounted there must not become all of the filesystem.
        format!(
            "this is {} of /dev/{}: unmount all that is mounted of that, mount it with dax=always added to its \
             options, and bind this again",
            mount.root.display(),
            block.name
        )
    };
    match mount.dax() {
        Some("always") => found.ok(&subject, "mounted with dax=always"),
        Some("never") => found.problem(
            &subject,
            "mounted with dax=never: no file is mapped directly",
            again,
        ),
        _ => found.note_fix(
            &subject,
            "mounted without dax=always: only files that have the attribute are DAX files",
            format!("{again}; or for files that are made from now on: xfs_io -c 'chattr +x' DIR"),
        ),
    }
}
