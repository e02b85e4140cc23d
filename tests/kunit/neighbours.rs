// SPDX-License-Identifier: GPL-2.0

//! Entries around one that a fault has locked (spec, section 3).

use kernel::prelude::*;

#[kunit_tests(rdax_neighbours)]
mod tests {
    use crate::{
        dax::tree::{self, AroundAction},
        kern::{
            order::Order,
            testing::{with_thread_waiting, Checked, File},
            xa::Mark,
        },
        tests::helpers::{prefaults::*, *},
    };

    /// Locks the neighbours of an entry that `take` wants, and returns the first pages that it was
    /// asked about, and those that are locked then.
    fn neighbours(
        file: &File<'_>,
        own: usize,
        candidates: u64,
        asks_dirty: bool,
        take: impl Fn(usize, bool) -> AroundAction,
    ) -> Checked<(u64, u64)> {
        let Some(locked) = tree::lock_present(file.mapping(), at(own)) else {
            return Ok((0, 0));
        };
        let mut asked = 0;
        let block = range(own & !(BLOCK - 1), own | (BLOCK - 1));
        let candidates = (candidates >> block.first.get()) as usize;
        let before = locked_pages(file, 64);
        let got = tree::lock_around(&locked, block, candidates, asks_dirty, |first, _, dirty| {
            asked |= 1 << first.get();
            take(first.get(), dirty)
        });
        let now = locked_pages(file, 64) & !before;
        let nrpages = file.nrpages();
        drop(got);
        check_eq!(locked_pages(file, 64), before, "not all are unlocked");
        check_eq!(file.nrpages(), nrpages);
        Ok((asked, now))
    }

    #[test]
    fn neighbours_are_those_that_are_wanted_and_there() -> Checked {
        let world = world()?;
        let file = world.file(64)?;
        // Not page 20, nor anything but the block.
        for index in (0..64).filter(|index| *index != 20) {
            put_zero(&file, index, Order::PTE)?;
        }
        let have = |_, _| AroundAction::Lock;
        let there = bits(16, 31) & !bits(18, 18) & !bits(20, 20);
        check_eq!(
            neighbours(&file, 18, u64::MAX, false, have)?,
            (there, there)
        );
        // Pages that are mapped already are not looked at.
        let candidates = bits(16, 17) | bits(24, 31);
        check_eq!(
            neighbours(&file, 18, candidates, false, have)?,
            (candidates, candidates)
        );
        check_eq!(neighbours(&file, 18, 0, false, have)?, (0, 0));
        // Only the rest is asked about.
        let left = |index, _| {
            if index < 24 {
                AroundAction::Leave
            } else {
                AroundAction::Lock
            }
        };
        check_eq!(
            neighbours(&file, 18, u64::MAX, false, left)?,
            (there, bits(24, 31))
        );
        clear(&file);
        Ok(())
    }

    #[test]
    fn nobody_waits_for_a_neighbour_that_is_locked() -> Checked {
        let world = world()?;
        let file = world.file(64)?;
        for index in 16..32 {
            put_zero(&file, index, Order::PTE)?;
        }
        let held = [17, 25].map(|index| tree::lock_present(file.mapping(), at(index)));
        let there = bits(16, 31) & !bits(18, 18) & !bits(17, 17) & !bits(25, 25);
        let have = |_, _| AroundAction::Lock;
        check_eq!(
            neighbours(&file, 18, u64::MAX, false, have)?,
            (there, there)
        );
        check!(held.iter().all(|held| held.is_some()));
        check_eq!(locked_pages(&file, 64), bits(17, 17) | bits(25, 25));
        drop(held);
        clear(&file);
        Ok(())
    }

    #[test]
    fn a_larger_neighbour_is_looked_at_once() -> Checked {
        let world = world()?;
        let file = world.file(64)?;
        put_zero(&file, 16, order(2))?;
        put_zero(&file, 20, order(1))?;
        put_zero(&file, 22, Order::PTE)?;
        put_zero(&file, 24, order(3))?;
        let have = |_, _| AroundAction::Lock;
        let firsts = |pages: &[usize]| pages.iter().fold(0u64, |bits, page| bits | 1 << page);
        let (asked, locked) = neighbours(&file, 22, u64::MAX, false, have)?;
        check_eq!(asked, firsts(&[16, 20, 24]));
        check_eq!(locked, bits(16, 21) | bits(24, 31));
        // By any of its pages; the own entry by none.
        let candidates = bits(19, 19) | bits(21, 21) | bits(24, 31);
        let (asked, locked) = neighbours(&file, 25, candidates, false, have)?;
        check_eq!(asked, firsts(&[16, 20]));
        check_eq!(locked, bits(16, 21));
        clear(&file);
        Ok(())
    }

    #[test]
    fn neighbours_are_asked_if_dirty_and_made_so() -> Checked {
        let world = world()?;
        let (file, place) = straight_file(&world, 64)?;
        for index in 16..32 {
            put(&file, index, Order::PTE, place + index, index % 2 == 0)?;
        }
        let even = (16..32).step_by(2).fold(0, |bits, index| bits | 1 << index);
        check_eq!(marked_pages(&file, 64, Mark::Dirty), even);
        // Not asked, nobody is.
        let wrong = |_, dirty| {
            if dirty {
                AroundAction::Lock
            } else {
                AroundAction::Leave
            }
        };
        check_eq!(neighbours(&file, 31, u64::MAX, false, wrong)?.1, 0);
        check_eq!(neighbours(&file, 31, u64::MAX, true, wrong)?.1, even);
        check_eq!(marked_pages(&file, 64, Mark::Dirty), even);
        let Some(locked) = tree::lock_present(file.mapping(), at(31)) else {
            return Ok(());
        };
        let got = tree::lock_around(&locked, range(16, 31), 0xffff, true, |first, _, dirty| {
            if dirty || first < at(20) {
                AroundAction::LockAndMark
            } else {
                AroundAction::Leave
            }
        });
        check!(got.marked);
        // Two more are, before they are unlocked.
        let now = even | bits(17, 17) | bits(19, 19);
        check_eq!(marked_pages(&file, 64, Mark::Dirty), now);
        drop(got);
        let got = tree::lock_around(&locked, range(16, 31), 0xffff, true, |_, _, _| {
            AroundAction::Lock
        });
        check!(!got.marked);
        drop(got);
        drop(locked);
        check_eq!(marked_pages(&file, 64, Mark::Dirty), now);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn unlocking_a_neighbour_wakes_who_waits_for_it() -> Checked {
        let world = world()?;
        let file = world.file(64)?;
        put_zero(&file, 16, order(2))?;
        put_zero(&file, 20, Order::PTE)?;
        let Some(locked) = tree::lock_present(file.mapping(), at(20)) else {
            return Ok(());
        };
        let got = tree::lock_around(&locked, range(16, 31), 0xffff, false, |_, _, _| {
            AroundAction::Lock
        });
        let (found, waited) = with_thread_waiting(
            || tree::lock_present(file.mapping(), at(19)).is_some(),
            || {
                drop(got);
            },
        )?;
        check!(waited && found);
        drop(locked);
        clear(&file);
        Ok(())
    }
}
