// SPDX-License-Identifier: GPL-2.0

//! What a filesystem says of itself at its beginning, mounted or not.

use crate::system::System;
use std::{
    fs::File,
    io::{
        ErrorKind,
        Read,
        Seek,
        SeekFrom, //
    },
    os::unix::fs::FileExt, //
};

/// A filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Superblock {
    Xfs(Xfs),
    Ext4(Ext4),
    Erofs { block_size: u64 },
}

/// Sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Xfs {
    pub block_size: u64,
    /// Of an allocation group.
    pub group_size: u64,
    pub groups: u64,
    /// The stripe unit; 0: none.
    pub stripe_unit: u64,
    pub reflink: bool,
    pub realtime: bool,
}

/// Sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ext4 {
    pub block_size: u64,
    /// What RAID stride the allocator was told; 0: none.
    pub stride: u64,
    /// With bigalloc, the cluster's size.
    pub cluster_size: Option<u64>,
}

impl Superblock {
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Xfs(_) => "xfs",
            Self::Ext4(_) => "ext4",
            Self::Erofs { .. } => "erofs",
        }
    }

    /// In bytes.
    pub fn block_size(&self) -> u64 {
        match self {
            Self::Xfs(xfs) => xfs.block_size,
            Self::Ext4(ext4) => ext4.block_size,
            Self::Erofs { block_size } => *block_size,
        }
    }

    /// What the first bytes of a device say.
    fn parse(bytes: &[u8; SIZE]) -> Option<Self> {
        if bytes.starts_with(b"XFSB") {
            return Some(Self::Xfs(Xfs::parse(bytes)?));
        }
        let second = bytes.get(1024..)?;
        if little(second, 56, 2)? == 0xef53 {
            return Some(Self::Ext4(Ext4::parse(second)?));
        }
        if little(second, 0, 4)? == 0xe0f5_e1e2 {
            let block_size = 1u64.checked_shl(little(second, 12, 1)? as u32)?;
            return Some(Self::Erofs { block_size });
        }
        None
    }
}

impl Xfs {
    fn parse(bytes: &[u8]) -> Option<Self> {
        const WITH_FEATURES: u64 = 5;
        const REFLINK: u64 = 1 << 2;
        let block_size = big(bytes, 4, 4)?;
        let features = if big(bytes, 100, 2)? & 0xf == WITH_FEATURES {
            big(bytes, 212, 4)?
        } else {
            0
        };
        Some(Self {
            block_size,
            group_size: big(bytes, 84, 4)?.checked_mul(block_size)?,
            groups: big(bytes, 88, 4)?,
            stripe_unit: big(bytes, 184, 4)?.checked_mul(block_size)?,
            reflink: features & REFLINK != 0,
            realtime: big(bytes, 16, 8)? != 0,
        })
    }
}

impl Ext4 {
    fn parse(bytes: &[u8]) -> Option<Self> {
        const BIGALLOC: u64 = 0x200;
        let size = |log: u64| 1024u64.checked_shl(log as u32).filter(|_| log < 32);
        let block_size = size(little(bytes, 24, 4)?)?;
        let bigalloc = little(bytes, 100, 4)? & BIGALLOC != 0;
        Some(Self {
            block_size,
            stride: little(bytes, 356, 2)?.checked_mul(block_size)?,
            cluster_size: if bigalloc {
                Some(size(little(bytes, 28, 4)?)?)
            } else {
                None
            },
        })
    }
}

/// As much as all of them need.
const SIZE: usize = 2048;

fn number(
    bytes: &[u8],
    at: usize,
    length: usize,
) -> Option<impl DoubleEndedIterator<Item = u64> + '_> {
    Some(bytes.get(at..at + length)?.iter().map(|&byte| byte.into()))
}

fn little(bytes: &[u8], at: usize, length: usize) -> Option<u64> {
    Some(
        number(bytes, at, length)?
            .rev()
            .fold(0, |sum, byte| (sum << 8) | byte),
    )
}

fn big(bytes: &[u8], at: usize, length: usize) -> Option<u64> {
    Some(number(bytes, at, length)?.fold(0, |sum, byte| (sum << 8) | byte))
}

/// The filesystem on the block device of this name; `None` if there is none that is known, or if it
/// may not be read.
///
/// Nothing if there is none that is known; `None` for what may not be read.
pub fn look(system: &System, name: &str) -> Option<Option<Superblock>> {
    match File::open(system.path(format!("/dev/{name}"))) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => None,
        _ => Some(read(system, name)),
    }
}

/// Whether a device begins and ends with zeroes, where others note what they have on it. `None` if it cannot be
/// read.
pub fn is_blank(system: &System, name: &str) -> Option<bool> {
    const EDGE: u64 = 1 << 20;
    let mut device = File::open(system.path(format!("/dev/{name}"))).ok()?;
    let size = device.seek(SeekFrom::End(0)).ok()?;
    for start in [0, size.saturating_sub(EDGE)] {
        let mut bytes = Vec::new();
        device.seek(SeekFrom::Start(start)).ok()?;
        device.by_ref().take(EDGE).read_to_end(&mut bytes).ok()?;
        if bytes.iter().any(|byte| *byte != 0) {
            return Some(false);
        }
    }
    Some(true)
}

/// As [`look`], of what may be read.
pub fn read(system: &System, name: &str) -> Option<Superblock> {
    let device = File::open(system.path(format!("/dev/{name}"))).ok()?;
    let mut bytes = [0; SIZE];
    device.read_exact_at(&mut bytes, 0).ok()?;
    Superblock::parse(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
        bytes[at..at + value.len()].copy_from_slice(value);
    }

    #[test]
    fn xfs() {
        let mut bytes = [0; SIZE];
        put(&mut bytes, 0, b"XFSB");
        put(&mut bytes, 4, &4096u32.to_be_bytes());
        put(&mut bytes, 84, &65536u32.to_be_bytes());
        put(&mut bytes, 88, &4u32.to_be_bytes());
        put(&mut bytes, 100, &0xb4a5u16.to_be_bytes());
        put(&mut bytes, 184, &512u32.to_be_bytes());
        put(&mut bytes, 212, &0xfu32.to_be_bytes());
        let Some(Superblock::Xfs(xfs)) = Superblock::parse(&bytes) else {
            panic!("not taken for XFS");
        };
        assert_eq!(xfs.block_size, 4096);
        assert_eq!(xfs.group_size, 256 << 20);
        assert_eq!(xfs.groups, 4);
        assert_eq!(xfs.stripe_unit, 2 << 20);
        assert!(xfs.reflink && !xfs.realtime);
    }

    #[test]
    fn ext4() {
        let mut bytes = [0; SIZE];
        put(&mut bytes, 1024 + 24, &2u32.to_le_bytes());
        put(&mut bytes, 1024 + 28, &9u32.to_le_bytes());
        put(&mut bytes, 1024 + 56, &0xef53u16.to_le_bytes());
        put(&mut bytes, 1024 + 356, &512u16.to_le_bytes());
        let expected = Ext4 {
            block_size: 4096,
            stride: 2 << 20,
            cluster_size: None,
        };
        assert_eq!(Superblock::parse(&bytes), Some(Superblock::Ext4(expected)));
        put(&mut bytes, 1024 + 100, &0x200u32.to_le_bytes());
        let Some(Superblock::Ext4(ext4)) = Superblock::parse(&bytes) else {
            panic!("not taken for ext4");
        };
        assert_eq!(ext4.cluster_size, Some(512 << 10));
        // What nobody can have.
        put(&mut bytes, 1024 + 24, &99u32.to_le_bytes());
        assert_eq!(Superblock::parse(&bytes), None);
    }

    #[test]
    fn others() {
        let mut bytes = [0; SIZE];
        assert_eq!(Superblock::parse(&bytes), None);
        put(&mut bytes, 1024, &0xe0f5_e1e2u32.to_le_bytes());
        put(&mut bytes, 1024 + 12, &[12]);
        assert_eq!(
            Superblock::parse(&bytes),
            Some(Superblock::Erofs { block_size: 4096 })
        );
    }
}
