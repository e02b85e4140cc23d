// SPDX-License-Identifier: GPL-2.0

//! Layout: who uses a file's pages, waiting until nobody does, and removing entries (spec, section
//! 5).
//!
//! The callers hold the filesystem's `invalidate_lock` exclusively, except where it is said.

mod breaking;
mod busy;
mod evict;
mod release;
mod remove;
mod turns;

pub(crate) use self::{
    breaking::{
        break_layout, break_layout_final, has_holders, wait_for_holders, Patience, Unmount,
    },
    busy::{busy_folio, held, held_for_long, is_held, refuse_if_held},
    evict::{evict_device_memory, evict_range, evict_zeroes, has_to_evict, unmap_immovable},
    release::{discard, empty, flush, in_chunks, release_backing},
    remove::{cut, delete_entry, delete_range, invalidate_entry},
    turns::{Again, Turns}, //
};
