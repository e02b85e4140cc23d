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

/// The number of tasks that are remembered.
const SLOTS: usize = 64;

/// How long a call is remembered that was not made again, in milliseconds.
const FORGOTTEN_AFTER: u32 = 10_000;

/// A task that has not tried for so long is out of a filesystem's loop, in milliseconds.
const CEASED: u32 = 1000;

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

static TASKS: [Slot; SLOTS] = [const {
    Slot {
        first: Atomic::new(0),
        last: Atomic::new(0),
        file: Atomic::new(0),
        in_loop: Atomic::new(0),
    }
}; SLOTS];

/// When any task tried last.
static LATEST: Atomic<u32> = Atomic::new(0);

/// How long ago this task tried, in milliseconds.
#[derive(Clone, Copy)]
pub(crate) struct Tries {
    pub(crate) first: u32,
    pub(crate) last: u32,
}

/// The identity of this task.
fn own_key() -> usize {
    vm::this_task().wrapping_mul(0x9e37_79b9_7f4a_7c15) & !TIME_MASK
}

/// The slot of this task. Two tasks have the same one only if both took it at the same moment, and then until the
/// next try of the one whose it is not.
fn own(key: usize) -> Option<&'static Slot> {
    TASKS
        .iter()
        .find(|slot| slot.first.read_once() & !TIME_MASK == key)
}

/// The tries of this task up to now.
pub(crate) fn so_far() -> Option<Tries> {
    // Before the clock, which must not be behind it.
    let latest = LATEST.read_once();
    let now = vm::now_ms();
    if now.wrapping_sub(latest) >= FORGOTTEN_AFTER {
        return None;
    }
    let key = own_key();
    let slot = own(key)?;
    let (first, last) = (slot.first.read_once(), slot.last.read_once());
    if first & !TIME_MASK != key || last & !TIME_MASK != key {
        return None;
    }
    let tries = Tries {
        first: now.wrapping_sub(first as u32),
        last: now.wrapping_sub(last as u32),
    };
    (tries.last < FORGOTTEN_AFTER).then_some(tries)
}

/// Notes that this task has tried in vain, because of a page of the file.
pub(super) fn note(mapping: &Mapping) {
    let before = so_far();
    let (key, now) = (own_key(), vm::now_ms());
    // However many tasks try, one that is in a loop is not forgotten in favour of others.
    let age = |slot: &&Slot| {
        let last = slot.last.read_once() as u32;
        match vm::now_ms().wrapping_sub(last) {
            age if age < CEASED && slot.in_loop.read_once() != 0 => 0,
            age => age,
        }
    };
    let Some(slot) = own(key).or_else(|| TASKS.iter().max_by_key(age)) else {
        return;
    };
    let tried = key | now as usize;
    if before.is_none() {
        slot.first.write_once(tried);
    }
    slot.last.write_once(tried);
    slot.file.write_once(mapping.key());
    LATEST.write_once(now);
}

/// The same, for a call that can neither be made again nor get out of its filesystem's loop ([`in_loop`]).
pub(crate) fn note_in_loop(mapping: &Mapping) {
    let before = in_loop();
    note(mapping);
    let key = own_key();
    if let (None, Some(slot)) = (before, own(key)) {
        slot.in_loop.write_once(key | vm::now_ms() as usize);
    }
}

/// For how long this task has been in such a loop, in milliseconds. One that has not tried for a while is out
/// of it, by another way than [`end_loop`].
pub(crate) fn in_loop() -> Option<u32> {
    so_far().filter(|tries| tries.last < CEASED)?;
    let key = own_key();
    let since = own(key)?.in_loop.read_once();
    (since & !TIME_MASK == key).then(|| vm::now_ms().wrapping_sub(since as u32))
}

/// Notes that it gets out of it.
pub(super) fn end_loop() {
    if let Some(slot) = own(own_key()) {
        slot.in_loop.write_once(0);
    }
}

/// Notes that this task need not wait for pages of the file any more, and returns what it has tried if that was
/// because of them.
pub(super) fn end(mapping: &Mapping) -> Option<Tries> {
    let tries = so_far()?;
    let slot = own(own_key())?;
    if slot.file.read_once() != mapping.key() {
        return None;
    }
    slot.last.write_once(0);
    end_loop();
    Some(tries)
}
