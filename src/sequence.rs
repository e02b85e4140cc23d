// SPDX-License-Identifier: GPL-2.0

//! Detects tasks that write pages in sequence: prefaulting for a write pays only there (spec, section
//! 10).
//!
//! The table is a hint. An entry may be lost or belong to another task; only the number of faults
//! depends on it.

use crate::kern::{
    fs::{Mapping, PageIndex},
    once::Once,
    order::Order,
    vm, //
};
use kernel::sync::atomic::Atomic;

/// Log2 of the number of sequences that are remembered.
const SLOT_BITS: u32 = 8;

/// The last faults: the upper half identifies the task, the file and the 2 MiB of it, the lower half is
/// the page.
static LAST: [Atomic<usize>; 1 << SLOT_BITS] = [const { Atomic::new(0) }; 1 << SLOT_BITS];

const HALF: u32 = usize::BITS / 2;
const PAGE_MASK: usize = (1 << HALF) - 1;

/// Notes a fault that writes to a page, and returns whether it comes next in a sequence of such
/// faults of this task: at most `reach` pages behind the last one, as pages that were mapped ahead
/// do not fault. A sequence starts anew every 2 MiB, so that a task may follow several in one file.
/// Does not sleep.
#[inline]
pub(crate) fn is_next(mapping: &Mapping, index: PageIndex, reach: usize) -> bool {
    let index = index.get();
    let writer = vm::this_task() ^ (mapping.key() >> 3) ^ (index >> Order::PMD.bits() << 40);
    let key = writer.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let slot = &LAST[key >> (usize::BITS - SLOT_BITS)];
    let last = slot.read_once();
    let now = (key & !PAGE_MASK) | (index & PAGE_MASK);
    slot.write_once(now);
    // The same upper half, and a page that is a little further on.
    now.wrapping_sub(last).wrapping_sub(1) < reach
}
