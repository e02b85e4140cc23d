// SPDX-License-Identifier: GPL-2.0

//! Comparing files.

use super::{of_block, piece_at};
use crate::{
    dax::{device::FileDevice, stats::Counter},
    kern::{
        dax::{Access, DaxReadGuard},
        fs::Inode,
        iomap::{ExtentKind, IomapFlags, IomapIter, IomapOps, IomapSpace},
        vm,
    },
};
use kernel::prelude::*;

/// One of the two places that are compared.
pub(crate) struct Side<'a> {
    pub(crate) inode: &'a Inode,
    /// In bytes.
    pub(crate) position: u64,
}

/// Compares `len` bytes of two files (`dax_dedupe_file_range_compare`). Sleeps.
pub(crate) fn dedupe_compare(a: &Side<'_>, b: &Side<'_>, len: u64, ops: &IomapOps) -> Result<bool> {
    FileDevice::of(a.inode).inc(Counter::DedupeCompares);
    let (mut space_a, mut space_b) = (IomapSpace::new(), IomapSpace::new());
    let mut left = IomapIter::new(
        &mut space_a,
        a.inode,
        a.position,
        len,
        IomapFlags::READ,
        ops,
    );
    let mut right = IomapIter::new(
        &mut space_b,
        b.inode,
        b.position,
        len,
        IomapFlags::READ,
        ops,
    );
    loop {
        match (left.next(), right.next()) {
            (Ok(true), Ok(true)) => (),
            (Ok(false), Ok(false)) => return Ok(true),
            (left_next, right_next) => {
                if matches!(left_next, Ok(true)) {
                    let _ = left.finish();
                }
                if matches!(right_next, Ok(true)) {
                    let _ = right.finish();
                }
                left_next?;
                right_next?;
                return Err(EIO);
            }
        }
        match compare_extents(&mut left, &mut right) {
            Ok(true) => (),
            other => {
                let result = other.map_err(of_block);
                left.finish()?;
                right.finish()?;
                return result;
            }
        }
    }
}

/// Compares as much as both present extents have and advances both walks by it.
fn compare_extents(a: &mut IomapIter<'_>, b: &mut IomapIter<'_>) -> Result<bool> {
    let mut left = a.available().min(b.available());
    let has_data = |walk: &IomapIter<'_>| match walk.extent().kind() {
        ExtentKind::Hole | ExtentKind::Unwritten => Ok(false),
        ExtentKind::Mapped => Ok(true),
        ExtentKind::Other => Err(EIO),
    };
    match (has_data(a)?, has_data(b)?) {
        (true, true) => (),
        (false, false) => {
            a.advance(left);
            b.advance(left);
            return Ok(true);
        }
        _ => return Ok(false),
    }
    while left > 0 {
        if vm::fatal_signal() {
            return Err(EINTR);
        }
        let bytes = {
            let alive = DaxReadGuard::new();
            let in_a = piece_at(&a.extent(), &alive, a.position(), left, Access::Normal)?;
            let in_b = piece_at(&b.extent(), &alive, b.position(), left, Access::Normal)?;
            let bytes = in_a.bytes().min(in_b.bytes());
            let (in_a, in_b) = (in_a.first(bytes), in_b.first(bytes));
            if in_a.has_hwpoison() || in_b.has_hwpoison() {
                return Err(EIO);
            }
            if !in_a.equals(&in_b) {
                return Ok(false);
            }
            bytes as u64
        };
        a.advance(bytes);
        b.advance(bytes);
        left -= bytes;
        if left > 0 {
            vm::cond_resched();
        }
    }
    Ok(true)
}
