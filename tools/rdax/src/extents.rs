// SPDX-License-Identifier: GPL-2.0

//! Where the bytes of a file lie on its device, and whether one page-table entry can map them.

use crate::size::amount;
use anyhow::{
    Context,
    Result, //
};
use rustix::{
    fd::AsFd,
    fs::{
        statx,
        AtFlags,
        StatxAttributes,
        StatxFlags, //
    },
    ioctl::{
        ioctl,
        Getter,
        Updater, //
    }, //
};
use std::fmt;

/// A piece of a file that is contiguous on the device. All are bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where in the file.
    pub logical: u64,
    /// Where on the device.
    pub physical: u64,
    pub length: u64,
    pub flags: u32,
}

#[cfg(test)]
impl Extent {
    /// An extent without flags.
    pub fn of(logical: u64, physical: u64, length: u64) -> Self {
        Self {
            logical,
            physical,
            length,
            flags: 0,
        }
    }
}

impl Extent {
    const LAST: u32 = 0x1;
    const UNWRITTEN: u32 = 0x800;
    const SHARED: u32 = 0x2000;
    /// Unknown, delayed, encoded, encrypted, not aligned, inline, tail.
    const NO_BLOCKS: u32 = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200 | 0x400;

    pub fn end(&self) -> u64 {
        self.logical.saturating_add(self.length)
    }

    /// Whether it has memory of its own.
    pub fn has_blocks(&self) -> bool {
        self.flags & Self::NO_BLOCKS == 0
    }
}

const COUNT: usize = 256;

/// `struct fiemap_extent`
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RawExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved: [u64; 2],
    flags: u32,
    reserved_too: [u32; 3],
}

/// `struct fiemap`, with room for extents.
#[repr(C)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [RawExtent; COUNT],
}

const FS_IOC_FIEMAP: u32 = 0xc020_660b;
const FIEMAP_SYNC: u32 = 1;

/// The file's extents, in order.
pub fn of(file: impl AsFd) -> Result<Vec<Extent>> {
    let mut found = Vec::new();
    let mut start = 0;
    // Ends with the last extent: every turn begins behind those of the turn before.
    loop {
        let mut map = Fiemap {
            start,
            length: u64::MAX - start,
            flags: FIEMAP_SYNC,
            mapped_extents: 0,
            extent_count: COUNT as u32,
            reserved: 0,
            extents: [RawExtent::default(); COUNT],
        };
        // SAFETY: The operation reads and writes a `struct fiemap` and as many extents behind it as
        // it says there is room for.
        unsafe { ioctl(&file, Updater::<FS_IOC_FIEMAP, Fiemap>::new(&mut map)) }
            .context("the filesystem does not tell where the file is")?;
        let mapped = map.extents.iter().take(map.mapped_extents as usize);
        let mut last = map.mapped_extents < COUNT as u32;
        for raw in mapped {
            let extent = Extent {
                logical: raw.logical,
                physical: raw.physical,
                length: raw.length,
                flags: raw.flags,
            };
            last |= raw.flags & Extent::LAST != 0 || extent.end() <= start;
            start = extent.end();
            found.push(extent);
        }
        if last {
            return Ok(found);
        }
    }
}

/// `struct fsxattr`
#[repr(C)]
struct Fsxattr {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    padding: [u8; 8],
}

const FS_IOC_FSGETXATTR: u32 = 0x801c_581f;

/// What the filesystem notes for a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    /// It is on XFS's realtime device.
    pub realtime: bool,
    /// The extent size hint, in bytes; 0: none.
    pub extent_size: u64,
}

/// Nothing where the filesystem does not tell.
pub fn attributes(file: impl AsFd) -> Attributes {
    const REALTIME: u32 = 1;
    // SAFETY: The operation writes a `struct fsxattr`.
    let attributes = unsafe { ioctl(file, Getter::<FS_IOC_FSGETXATTR, Fsxattr>::new()) };
    attributes.map_or_else(
        |_| Attributes::default(),
        |raw| Attributes {
            realtime: raw.flags & REALTIME != 0,
            extent_size: raw.extent_size.into(),
        },
    )
}

/// Whether the file is a DAX file; `None` if the filesystem does not tell.
pub fn is_dax(file: impl AsFd) -> Option<bool> {
    let status = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::empty()).ok()?;
    if !status.stx_attributes_mask.contains(StatxAttributes::DAX) {
        return None;
    }
    Some(status.stx_attributes.contains(StatxAttributes::DAX))
}

/// Why no single entry can map a range of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    NoBlocks,
    /// So many bytes into the range.
    Hole(u64),
    /// … is what has no memory of its own.
    Foreign(u64),
    /// … is a gap on the device.
    Gap(u64),
    /// So many bytes past a multiple.
    Misaligned {
        by: u64,
        size: u64,
    },
    Unwritten,
    Shared,
}

impl Obstacle {
    /// The kind of it, whatever the place.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NoBlocks => "holes",
            Self::Hole(_) => "partly holes",
            Self::Foreign(_) => "without memory of their own",
            Self::Gap(_) => "not contiguous on the device",
            Self::Misaligned { .. } => "not aligned on the device",
            Self::Unwritten => "allocated but never written",
            Self::Shared => "shared with another file",
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoBlocks => write!(f, "no blocks: a hole"),
            Self::Hole(at) => write!(f, "a hole {} into it", amount(*at)),
            Self::Foreign(at) => write!(f, "no memory of its own {} into it", amount(*at)),
            Self::Gap(at) => write!(f, "not contiguous {} into it", amount(*at)),
            Self::Misaligned { by, size } => write!(
                f,
                "{} past a physical multiple of {}",
                amount(*by),
                amount(*size)
            ),
            Self::Unwritten => write!(f, "its blocks are right, but not written yet"),
            Self::Shared => write!(f, "its blocks are right, but shared with another file"),
        }
    }
}

/// How many bytes are a hole from `offset` on, before an extent; `None`: all.
pub fn hole_at(extents: &[Extent], offset: u64) -> Option<u64> {
    let next = extents.partition_point(|extent| extent.end() <= offset);
    extents
        .get(next)
        .map(|extent| extent.logical.saturating_sub(offset))
}

/// Whether one entry can map `size` bytes of the file from `offset` on, or why not; and where they
/// begin in memory. `start` is the physical address of the device's first byte.
pub fn examine(
    extents: &[Extent],
    start: u64,
    offset: u64,
    size: u64,
) -> (Result<(), Obstacle>, Option<u64>) {
    let end = offset.saturating_add(size);
    let first = extents.partition_point(|extent| extent.end() <= offset);
    let mut pieces = extents
        .iter()
        .skip(first)
        .take_while(|extent| extent.logical < end)
        .map(|extent| {
            let skip = offset.saturating_sub(extent.logical);
            Extent {
                logical: extent.logical + skip,
                physical: extent.physical.wrapping_add(skip),
                length: extent.length - skip,
                flags: extent.flags,
            }
        })
        .peekable();
    let Some(&begin) = pieces.peek() else {
        return (Err(Obstacle::NoBlocks), None);
    };
    let address = start.wrapping_add(begin.physical);
    let (mut at, mut physical, mut flags) = (offset, begin.physical, 0);
    for piece in pieces {
        let into = at - offset;
        let obstacle = if piece.logical != at {
            Some(Obstacle::Hole(into))
        } else if !piece.has_blocks() {
            Some(Obstacle::Foreign(into))
        } else if piece.physical != physical {
            Some(Obstacle::Gap(into))
        } else {
            None
        };
        if let Some(obstacle) = obstacle {
            return (Err(obstacle), Some(address));
        }
        at = piece.end();
        physical = physical.wrapping_add(piece.length);
        flags |= piece.flags;
    }
    let result = if at < end {
        Err(Obstacle::Hole(at - offset))
    } else if address % size != 0 {
        let by = address % size;
        Err(Obstacle::Misaligned { by, size })
    } else if flags & Extent::UNWRITTEN != 0 {
        Err(Obstacle::Unwritten)
    } else if flags & Extent::SHARED != 0 {
        Err(Obstacle::Shared)
    } else {
        Ok(())
    };
    (result, Some(address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size::{
        GIB,
        MIB,
        PAGE,
        PMD, //
    };

    fn extent(logical: u64, physical: u64, length: u64) -> Extent {
        Extent {
            logical,
            physical,
            length,
            flags: 0,
        }
    }

    #[test]
    fn adjacent_extents_are_one() {
        let extents = [extent(0, PMD, MIB), extent(MIB, PMD + MIB, 3 * MIB)];
        for offset in [0, PMD] {
            let (result, address) = examine(&extents, GIB, offset, PMD);
            assert_eq!(result, Ok(()));
            assert_eq!(address, Some(GIB + PMD + offset));
        }
    }

    #[test]
    fn the_device_counts() {
        let extents = [extent(0, PMD, PMD)];
        let (result, address) = examine(&extents, GIB + PAGE, 0, PMD);
        assert_eq!(
            result,
            Err(Obstacle::Misaligned {
                by: PAGE,
                size: PMD
            })
        );
        assert_eq!(address, Some(GIB + PMD + PAGE));
        // What is not aligned on the device may be in memory.
        let extents = [extent(0, PMD - PAGE, PMD)];
        assert_eq!(examine(&extents, GIB + PAGE, 0, PMD).0, Ok(()));
    }

    #[test]
    fn holes() {
        assert_eq!(examine(&[], 0, 0, PMD), (Err(Obstacle::NoBlocks), None));
        let extents = [extent(MIB, 0, MIB), extent(PMD, PMD, MIB)];
        assert_eq!(examine(&extents, 0, 0, PMD).0, Err(Obstacle::Hole(0)));
        assert_eq!(examine(&extents, 0, PMD, PMD).0, Err(Obstacle::Hole(MIB)));
        assert_eq!(
            examine(&extents, 0, 2 * PMD, PMD).0,
            Err(Obstacle::NoBlocks)
        );
    }

    #[test]
    fn gaps() {
        let extents = [extent(0, 0, MIB), extent(MIB, PMD, MIB)];
        assert_eq!(examine(&extents, 0, 0, PMD).0, Err(Obstacle::Gap(MIB)));
    }

    #[test]
    fn kinds_of_blocks() {
        let with = |flags| {
            let extents = [Extent {
                flags,
                ..extent(0, 0, PMD)
            }];
            examine(&extents, 0, 0, PMD).0
        };
        assert_eq!(with(Extent::LAST), Ok(()));
        assert_eq!(with(Extent::UNWRITTEN), Err(Obstacle::Unwritten));
        assert_eq!(with(Extent::SHARED), Err(Obstacle::Shared));
        assert_eq!(with(0x4), Err(Obstacle::Foreign(0)));
    }

    #[test]
    fn a_range_inside_an_extent() {
        let extents = [extent(0, 3 * GIB, 5 * GIB)];
        let (result, address) = examine(&extents, GIB, 2 * GIB, GIB);
        assert_eq!((result, address), (Ok(()), Some(6 * GIB)));
    }

    #[test]
    fn texts() {
        let misaligned = Obstacle::Misaligned {
            by: 136 * MIB,
            size: GIB,
        };
        assert_eq!(
            misaligned.to_string(),
            "136 MiB past a physical multiple of 1 GiB"
        );
    }
}
