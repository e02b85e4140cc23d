// SPDX-License-Identifier: GPL-2.0

//! Calls that are made again because somebody holds a page: since when a task has tried.
//!
//! Everything here is a hint. It may be lost, or stem from a call that was given up: it decides only how
//! long one attempt waits.

use crate::kern::{
    fs::Mapping,
    once::Once,
    vm, //
};
use kernel::sync::atomic::Atomic;

/// Log2 of the number of tasks that are remembered.
const SLOT_BITS: u32 = 6;

/// How long a call is remembered that was not made again, in milliseconds.
const FORGOTTEN_AFTER: u32 = 10_000;

const HALF: u32 = usize::BITS / 2;
const TIME_MASK: usize = (1 << HALF) - 1;

/// A task's first try of a call, and its last: the upper half of each identifies the task. Which file had to
/// be waited for last. Since when it is in a loop ([`in_loop`]).
struct Slot {
    first: Atomic<usize>,
    last: Atomic<usize>,
    file: Atomic<usize>,
    in_loop: Atomic<usize>,
}

static SLOTS: [Slot; 1 << SLOT_BITS] = [const {
    Slot {
        first: Atomic::new(0),
        last: Atomic::new(0),
        file: Atomic::new(0),
        in_loop: Atomic::new(0),
    }
}; 1 << SLOT_BITS];

/// How long ago this task tried, in milliseconds.
#[derive(Clone, Copy)]
pub(super) struct Tries {
    pub(super) first: u32,
    pub(super) last: u32,
}

/// The slot of this task, and what identifies it there.
fn own() -> (&'static Slot, usize) {
    let key = vm::this_task().wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (
        &SLOTS[key >> (usize::BITS - SLOT_BITS)],
        key << SLOT_BITS & !TIME_MASK,
    )
}

/// What this task has tried up to now.
pub(super) fn so_far() -> Option<Tries> {
    let (slot, key) = own();
    let (first, last) = (slot.first.read_once(), slot.last.read_once());
    if first & !TIME_MASK != key || last & !TIME_MASK != key {
        return None;
    }
    let now = vm::now_ms();
    let tries = Tries {
        first: now.wrapping_sub(first as u32),
        last: now.wrapping_sub(last as u32),
    };
    (tries.last < FORGOTTEN_AFTER).then_some(tries)
}

/// Notes that this task has tried in vain, because of a page of the file.
pub(super) fn note(mapping: &Mapping) {
    let before = so_far();
    let (slot, key) = own();
    let now = key | vm::now_ms() as usize;
    if before.is_none() {
        slot.first.write_once(now);
    }
    slot.last.write_once(now);
    slot.file.write_once(mapping.key());
}

/// The same, for a call that can neither be made again nor get out of its filesystem's loop ([`in_loop`]).
pub(super) fn note_in_loop(mapping: &Mapping) {
    let before = in_loop();
    note(mapping);
    if before.is_none() {
        let (slot, key) = own();
        slot.in_loop.write_once(key | vm::now_ms() as usize);
    }
}

/// For how long this task has been in such a loop, in milliseconds. One that has not tried for a second is out
/// of it, by another way than [`end_loop`].
pub(super) fn in_loop() -> Option<u32> {
    const CEASED: u32 = 1000;

    so_far().filter(|tries| tries.last < CEASED)?;
    let (slot, key) = own();
    let since = slot.in_loop.read_once();
    (since & !TIME_MASK == key).then(|| vm::now_ms().wrapping_sub(since as u32))
}

/// Notes that it gets out of it.
pub(super) fn end_loop() {
    let (slot, key) = own();
    if slot.in_loop.read_once() & !TIME_MASK == key {
        slot.in_loop.write_once(0);
    }
}

/// Notes that this task need not wait for pages of the file any more, and returns what it has tried if that was
/// because of them.
pub(super) fn end(mapping: &Mapping) -> Option<Tries> {
    let tries = so_far()?;
    let (slot, _) = own();
    if slot.file.read_once() != mapping.key() {
        return None;
    }
    slot.last.write_once(0);
    end_loop();
    Some(tries)
}
