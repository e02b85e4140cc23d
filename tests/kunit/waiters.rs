// SPDX-License-Identifier: GPL-2.0

//! Waiting for an entry while others lock, unlock or remove it together with its neighbours (spec,
//! section 3 and R7).

use kernel::prelude::*;

#[kunit_tests(rdax_waiters)]
mod tests {
    use crate::{
        dax::{
            layout,
            tree::{self, AroundAction, AroundEntries, Backing, PrefaultEntries, PrefaultLimits},
        },
        kern::{
            entry::Kind,
            fs::PageRange,
            order::Order,
            testing::{hold, pause, until, with_thread, with_threads, Checked, File},
            vm::PteBatch,
        },
        tests::helpers::*,
    };
    use kernel::sync::atomic::{Acquire, Atomic, Full};

    const PAGES: usize = 16;

    /// Threads wait for entries that are locked, each for one of `indices`, while `start` goes on; then
    /// `release` lets go of them. Whether all of them end, and have waited. Whoever is forgotten is
    /// woken, so that the test ends.
    fn all_end(
        file: &File<'_>,
        indices: &[usize],
        release: impl FnOnce(),
    ) -> Checked<(bool, bool)> {
        let ended = Atomic::new(0);
        let wait = |number: usize| {
            let index = indices.get(number).copied().unwrap_or(0);
            // Looks at the entry and leaves it: the next is to be woken all the same.
            let _ = layout::busy_folio(file.mapping(), range(index, index));
            ended.fetch_add(1, Full);
        };
        let (_, result) = with_threads(indices.len(), wait, |threads| {
            let waited = threads.iter().all(|thread| thread.waits());
            release();
            let all = until(|| ended.load(Acquire) == indices.len());
            while ended.load(Acquire) != indices.len() {
                for index in indices {
                    if let Ok(locked) = lock(file, *index, Order::PTE) {
                        locked.remove();
                    }
                }
                pause(10);
            }
            (waited, all)
        })?;
        Ok(result)
    }

    #[test]
    fn who_only_looks_wakes_the_next() -> Checked {
        let world = world()?;
        let file = world.file(PAGES)?;
        let place = world.take(Order::PTE)?;
        put(&file, 3, Order::PTE, place, false)?;
        put_zero(&file, 4, Order::PTE)?;
        for (index, used) in [(3, false), (4, false), (3, true)] {
            // With what it looked for it goes no further.
            let user = used.then(|| hold(world.page(place).folio()));
            let held = tree::lock_present(file.mapping(), at(index));
            let (waited, all) = all_end(&file, &[index; 4], || drop(held))?;
            check!(waited, "index {index}");
            check!(all, "somebody still waits for {index}, used: {used}");
            drop(user);
        }
        clear(&file);
        world.check_clean()
    }

    /// One removes entry 3, as soon as it can be locked, by one of several ways; the others, who have
    /// come later, wait for the same.
    fn removed_by(which: usize, file: &File<'_>) {
        let mapping = file.mapping();
        match which {
            0 => layout::delete_range(mapping, PageRange::ALL),
            1 => layout::delete_range(mapping, range(3, 3)),
            2 => layout::evict_range(mapping, PageRange::ALL),
            3 => layout::evict_range(mapping, range(3, 3)),
            4 => {
                layout::delete_entry(mapping, at(3));
            }
            5 => {
                layout::invalidate_entry(mapping, at(3));
            }
            _ => layout::break_layout_final(file.inode()),
        }
    }

    #[test]
    fn whoever_removes_an_entry_wakes_all() -> Checked {
        let world = world()?;
        let file = world.file(PAGES)?;
        let place = world.take(Order::PTE)?;
        for dirty in [false, true] {
            for which in 0..7 {
                if dirty && which == 5 {
                    continue;
                }
                put(&file, 3, Order::PTE, place, dirty)?;
                let held = tree::lock_present(file.mapping(), at(3));
                let ((), result) = with_thread(
                    || removed_by(which, &file),
                    |first| {
                        let waited = first.waits();
                        all_end(&file, &[3; 3], || drop(held))
                            .map(|(all, ended)| (waited && all, ended))
                    },
                )?;
                let (waited, all) = result?;
                check!(waited, "way {which}");
                check!(all, "way {which}: somebody waits for what is gone");
                check_eq!(file.nrpages(), 0, "way {which}");
            }
        }
        world.check_clean()
    }

    #[test]
    fn a_locked_entry_among_others_is_waited_for() -> Checked {
        let world = world()?;
        let file = world.file(PAGES)?;
        let place = world.take_many(4, Order::PTE)?;
        for dirty in [false, true] {
            for whole in [false, true] {
                for evict in [false, true] {
                    for index in 0..4 {
                        put(&file, index, Order::PTE, place + index, dirty)?;
                    }
                    let these = if whole { PageRange::ALL } else { range(0, 3) };
                    let held = tree::lock_present(file.mapping(), at(2));
                    let ((), (waited, there)) = with_thread(
                        || match evict {
                            false => layout::delete_range(file.mapping(), these),
                            true => layout::evict_range(file.mapping(), these),
                        },
                        |thread| {
                            let waited = thread.waits();
                            let there = look(&file, 2).is_some_and(|(_, locked)| locked);
                            drop(held);
                            (waited, there)
                        },
                    )?;
                    check!(waited, "dirty {dirty}, whole {whole}, evict {evict}");
                    check!(there, "dirty {dirty}, whole {whole}, evict {evict}");
                    check_eq!(file.nrpages(), 0);
                }
            }
        }
        world.check_clean()
    }

    fn prefault<'f>(file: &'f File<'_>) -> Checked<Prefault<'f>> {
        let limits = PrefaultLimits {
            block: range(0, PAGES - 1),
            order: Order::PTE,
            room: PAGES,
        };
        let Created { locked, prefault } = lock_with_prefault(file, 0, false, limits)?;
        drop(locked);
        let pages = prefault.entries.as_ref().map(PrefaultEntries::pages);
        check_eq!(pages, Some(PAGES - 1));
        Ok(prefault)
    }

    #[test]
    fn what_is_taken_back_behind_an_entry_wakes_all() -> Checked {
        let world = world()?;
        let file = world.file(PAGES)?;
        let mut prefault = prefault(&file)?;
        let (waited, all) = all_end(&file, &[5; 4], || prefault.entries = None)?;
        check!(waited);
        check!(all, "somebody waits for what is gone");
        check_eq!(file.nrpages(), 1);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn what_is_filled_behind_an_entry_wakes_who_waits() -> Checked {
        let world = world()?;
        let file = world.file(PAGES)?;
        let mut prefault = prefault(&file)?;
        if let Some(entries) = prefault.entries.as_mut() {
            entries.fill(8, Backing::Hole, false);
        }
        // Of the pages 1 to 15 the first 8 are holes now.
        let (waited, all) = all_end(&file, &[8, 8, 9], || prefault.entries = None)?;
        check!(waited);
        check!(all, "somebody still waits");
        check_eq!(file.nrpages(), 9);
        check!(look(&file, 8).is_some_and(|(entry, locked)| entry.kind() == Kind::Zero && !locked));
        check!(look(&file, 9).is_none());
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn neighbours_wake_who_waits_and_are_not_waited_for() -> Checked {
        let world = world()?;
        let file = world.file(PAGES)?;
        let place = world.take_many(PAGES, Order::PTE)?;
        for index in 0..PAGES {
            put(&file, index, Order::PTE, place + index, false)?;
        }
        let held = tree::lock_present(file.mapping(), at(7));
        let own = lock(&file, 2, Order::PTE)?;
        let mut asked: usize = 0;
        let neighbours: AroundEntries<'_, '_> = tree::lock_around(
            &own,
            range(0, PteBatch::MAX.min(PAGES) - 1),
            usize::MAX,
            false,
            |index, _, _| {
                asked |= 1 << index.get();
                AroundAction::Lock
            },
        );
        check_eq!(asked, 0xffff & !(1 << 7 | 1 << 2));
        let (waited, all) = all_end(&file, &[3, 3, 15], || drop(neighbours))?;
        check!(waited);
        check!(all, "somebody still waits");
        check!(look(&file, 7).is_some_and(|(_, locked)| locked));
        check!(look(&file, 2).is_some_and(|(_, locked)| locked));
        drop(own);
        drop(held);
        for index in 0..PAGES {
            check!(
                look(&file, index).is_some_and(|(_, locked)| !locked),
                "page {index}"
            );
        }
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn who_has_nothing_to_write_any_more_wakes_the_next() -> Checked {
        let world = world()?;
        let file = world.file(PAGES)?;
        let place = world.take_many(2, Order::PTE)?;
        // How many write back at once, whether a store is what they wait for, which fails, and
        // whether there is more to write.
        for (number, fails, more) in [
            (1, true, false),
            (1, true, true),
            (2, false, false),
            (3, false, true),
        ] {
            let what = (number, fails, more);
            if more {
                put(&file, 9, Order::PTE, place + 1, true)?;
            }
            if !fails {
                put(&file, 3, Order::PTE, place, true)?;
            }
            let held = lock_entry(file.mapping(), at(3), Order::PTE, true);
            let (written, result) = with_threads(
                number,
                |_| fsync(&file),
                |threads| {
                    let waited = threads.iter().all(|thread| thread.waits());
                    all_end(&file, &[3; 3], || drop(held))
                        .map(|(others, ended)| (waited && others, ended))
                },
            )?;
            let (waited, all) = result?;
            check!(waited, "{what:?}");
            check!(all, "{what:?}: somebody still waits");
            check!(written.iter().all(Result::is_ok), "{what:?}");
            let pages: usize = written.iter().flatten().sum();
            check!(pages >= usize::from(more) + usize::from(!fails), "{what:?}");
            clear(&file);
        }
        world.check_clean()
    }
}
