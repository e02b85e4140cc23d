// SPDX-License-Identifier: GPL-2.0

//! The tree: finding, locking, waiting for and removing entries (spec, section 3).
//!
//! An entry's lock is a bit of its word in the tree. It is taken and dropped under the tree's lock
//! and held across calls into the filesystem. Lock order: the filesystem's `invalidate_lock`, an
//! entry's lock, the tree's lock. A task that has an entry locked waits for no other one: a fault and a
//! walk lock more of them only where nobody has ([`PrefaultEntries`], [`AroundEntries`],
//! [`EntryBatch`]).

mod around;
mod create;
mod locked;
mod prefault;
mod walk;

pub(crate) use self::{
    around::{lock_around, AroundAction, AroundEntries},
    create::{lock_or_create, LockError, Wanted},
    locked::{lock_present, lock_present_killable, set_memory, unlock_left, LockedEntry},
    prefault::{Backing, Prefault, PrefaultEntries, PrefaultLimits},
    walk::{walk, whole_entries, Disposition, EntryBatch, Filter, Visitor, WalkAction},
};
