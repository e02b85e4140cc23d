// SPDX-License-Identifier: GPL-2.0

//! Whether a task writes pages one behind the other, which is what makes looking ahead worth its
//! while (spec, section 10).
//!
//! What is remembered is a hint: it may be lost, or be somebody else's, and nothing but the number of
//! faults depends on it.

use crate::kern::{
    fs::{Mapping, PageIndex},
    once::Once,
    order::Order,
    vm, //
};
use kernel::sync::atomic::Atomic;

/// Log2 of the number of sequences that are remembered.
const SLOT_BITS: u32 = 8;

/// How far behind the last fault one may be to count as the next: what is mapped ahead does not
/// fault.
const REACH: usize = 16;

/// The last faults: which task, file and stretch of the file in the upper half, the page in the
/// lower one.
static LAST: [Atomic<usize>; 1 << SLOT_BITS] = [const { Atomic::new(0) }; 1 << SLOT_BITS];

const HALF: u32 = usize::BITS / 2;
const PAGE_MASK: usize = (1 << HALF) - 1;

/// Notes a fault that writes to a page, and returns whether it comes next in a sequence of such
/// faults of this task. A sequence begins anew every 2 MiB, so that a task may follow several in
/// one file. Does not sleep.
#[inline]
pub(crate) fn is_next(mapping: &Mapping, index: PageIndex) -> bool {
    let index = index.get();
    let who = vm::this_task() ^ (mapping.key() >> 3) ^ (index >> Order::PMD.bits() << 40);
    let key = who.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let slot = &LAST[key >> (usize::BITS - SLOT_BITS)];
    let last = slot.read_once();
    let now = (key & !PAGE_MASK) | (index & PAGE_MASK);
    slot.write_once(now);
    // The same upper half, and a page that is a little further on.
    now.wrapping_sub(last).wrapping_sub(1) < REACH
}
