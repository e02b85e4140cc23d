// SPDX-License-Identifier: GPL-2.0

//! Entries that a test puts behind a new one.

use crate::{
    dax::tree::{LockedEntry, PrefaultLimits},
    kern::{
        order::Order,
        testing::{Checked, File},
    },
    tests::helpers::*,
};

/// The pages of the block that faults map by default.
pub(crate) const BLOCK: usize = 16;

pub(crate) fn order(bits: usize) -> Order {
    Order::from_bits(bits)
}

/// How far a fault of a file that is long enough may go by itself.
pub(crate) fn ahead(index: usize, largest: Order) -> PrefaultLimits {
    let block = range(index & !(BLOCK - 1), index | (BLOCK - 1));
    PrefaultLimits {
        block,
        order: largest,
        room: block.last.get() - index + 1,
    }
}

/// Pages that were written to, from `first` to before `end`.
pub(crate) fn write_pages(file: &File<'_>, place: usize, first: usize, end: usize) -> Checked {
    for index in first..end {
        put(file, index, Order::PTE, place + index, true)?;
    }
    Ok(())
}

/// A window behind page 16 of a file, which is locked as well.
pub(crate) fn window<'f>(
    file: &'f File<'_>,
    write: bool,
    largest: Order,
) -> Checked<(LockedEntry<'f>, Prefault<'f>)> {
    let Created { locked, prefault } =
        lock_with_prefault(file, BLOCK, write, ahead(BLOCK, largest))?;
    check!(prefault.entries.is_some());
    Ok((locked, prefault))
}
