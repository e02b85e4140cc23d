// SPDX-License-Identifier: GPL-2.0

//! Inodes, their address spaces, and positions in a file.

mod blocks;
mod file;
mod inode;
mod mapping;
mod range;
mod super_block;

pub(crate) use blocks::{BlockLocks, BlocksGivenUp, BlocksKept};
pub(crate) use file::{File, FileRef};
pub(crate) use inode::{Inode, InodeRef};
pub(crate) use mapping::Mapping;
pub(crate) use range::{PageIndex, PageRange};
pub(crate) use super_block::ActiveSuperBlock;
