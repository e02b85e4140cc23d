// SPDX-License-Identifier: GPL-2.0

//! Marking and telling of memory that has failed (spec, section 7).

use kernel::prelude::*;

#[kunit_tests(rdax_failure)]
mod tests {
    use crate::{
        dax::{
            layout,
            poison::{self, Cookie},
            stats::Counter,
            tree,
        },
        kern::{
            entry::Entry,
            error::eopnotsupp,
            order::Order,
            redirect::{self, InFlight},
            testing::{
                call_notify_failure, call_notify_injection, until, with_thread,
                with_thread_waiting, with_threads, Calls, Checked, World,
            },
            wait,
            xa::Mark,
        },
        tests::helpers::*,
    };
    use kernel::sync::atomic::{Acquire, Atomic, Release};

    const PMD: usize = Order::PMD.pages();
    const FOUR: Order = Order::from_bits(2);

    /// The pages of some from `place` on that are marked as bad, by their numbers; the marks are taken
    /// off.
    fn take_marks(world: &World, place: usize, pages: usize) -> u64 {
        let marked = pages_with(pages, |number| world.page(place + number).is_poisoned());
        for number in 0..pages {
            world.page(place + number).clear_poison();
        }
        marked
    }

    #[cfg(CONFIG_MEMORY_FAILURE)]
    #[test]
    fn the_page_of_a_large_folio_that_failed_is_marked() -> Checked {
        for order in [FOUR, Order::PMD, Order::PUD] {
            let world = world()?;
            let Some(place) = place_of(&world, order) else {
                continue;
            };
            let file = world.file(2 * order.pages())?;
            // Not the first of the file.
            put(&file, order.pages(), order, place, true)?;
            for number in [0, 2, order.pages() - 1] {
                poison::forget();
                let locks = count(Counter::PoisonLocks);
                check_eq!(call_notify_failure(&world, place + number, 1, false), 0);
                check!(poison::was_seen());
                check_eq!(count(Counter::PoisonLocks), locks + 1);
                check!(!is_locked(&file, order.pages()));
                check!(is_marked(&file, order.pages(), Mark::Dirty));
                let first = number.saturating_sub(2);
                let marked = take_marks(&world, place + first, 5.min(order.pages() - first));
                check_eq!(marked, 1 << (number - first), "{order:?}, page {number}");
                check_eq!(take_marks(&world, place, 4), 0, "{order:?}, page {number}");
            }
            clear(&file);
            world.check_clean()?;
        }
        Ok(())
    }

    #[cfg(CONFIG_MEMORY_FAILURE)]
    #[test]
    fn a_failure_that_was_made_up_says_nothing_of_the_memory() -> Checked {
        let world = world()?;
        let place = world.take(Order::PMD)?;
        let file = world.file(PMD)?;
        put(&file, 0, Order::PMD, place, false)?;
        let page = world.page(place + 5);
        let marks = || (page.is_marked(), page.is_poisoned());
        check_eq!(marks(), (false, false));
        for _ in 0..2 {
            check_eq!(call_notify_injection(&world, place + 5), 0);
            check_eq!(marks(), (true, false));
        }
        // Then it happens, after which it does not matter what somebody makes up.
        check_eq!(call_notify_failure(&world, place + 5, 1, false), 0);
        check_eq!(marks(), (true, true));
        check_eq!(call_notify_injection(&world, place + 5), 0);
        check_eq!(marks(), (true, true));
        // Overwritten, it is as before.
        page.clear_poison();
        check_eq!(marks(), (false, false));
        check_eq!(call_notify_injection(&world, place + 5), 0);
        check_eq!(marks(), (true, false));
        // Failures while nobody was notified are not known.
        poison::look_for_marks(page.block().run());
        check_eq!(marks(), (true, true));
        page.clear_poison();
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn what_is_bad_is_left_out_of_a_stretch() -> Checked {
        let world = world()?;
        let place = world.take_many(8, Order::PTE)?;
        let extents = |bad: &[usize]| {
            for number in bad {
                world.set_poison(place + number, true);
            }
            let run = world.run(place, 8);
            poison::look_for_marks(run);
            let mut found = 0;
            poison::for_each_good_run(run, |sound| {
                let from = sound.pfn().to_bits() - run.pfn().to_bits();
                // Each page once: more than that would carry over.
                found += ((1usize << sound.pages()) - 1) << from;
            });
            for number in bad {
                world.set_poison(place + number, false);
            }
            found
        };
        check_eq!(extents(&[]), 0xff);
        check_eq!(extents(&[3]), 0xf7);
        check_eq!(extents(&[0, 1, 7]), 0x7c);
        check_eq!(extents(&[0, 1, 2, 3, 4, 5, 6, 7]), 0);
        world.check_clean()
    }

    #[cfg(CONFIG_MEMORY_FAILURE)]
    #[test]
    fn what_the_core_can_tell_of_itself_is_left_to_it() -> Checked {
        let world = world()?;
        let place = world.take_many(8, FOUR)?;
        let (file, other) = (world.file(4)?, world.file(4)?);
        let left = |pages, removal| {
            let result = call_notify_failure(&world, place + 1, pages, removal);
            (result, take_marks(&world, place, 8)) == (eopnotsupp().to_errno(), 0)
        };
        check!(left(1, false), "a page that nobody uses");
        put(&file, 1, Order::PTE, place + 1, false)?;
        check!(left(1, false), "a page of its own");
        clear(&file);
        put(&file, 0, FOUR, place, false)?;
        check!(left(2, false), "more than a page");
        check!(left(1, true), "a device that is about to go");
        file.set_dax(false);
        check!(left(1, false), "a file without DAX");
        file.set_dax(true);
        // Not even asked for: the kernel's own code would be.
        let asked = Calls::watch(c"mf_dax_kill_procs")?;
        world.set_foreign(true);
        let foreign = left(1, false);
        world.set_foreign(false);
        check!(
            foreign && asked.count() == 0,
            "a device that is not adopted"
        );
        drop(asked);
        clear(&file);
        for file in [&file, &other] {
            put_shared(file, 0, FOUR, place, false, true)?;
        }
        check!(left(1, false), "a folio of several files");
        clear(&file);
        clear(&other);
        world.check_clean()
    }

    #[cfg(CONFIG_MEMORY_FAILURE)]
    #[test]
    fn a_page_that_leaves_its_file_is_told_of_where_it_went() -> Checked {
        let world = world()?;
        let (place, another) = (world.take_many(4, FOUR)?, world.take_many(4, FOUR)?);
        let (old, new) = (world.file(4)?, world.file(8)?);
        put(&old, 0, FOUR, place, false)?;
        let mut held = Some(lock(&old, 0, FOUR)?);
        let (result, moved) = with_thread(
            || call_notify_failure(&world, place + 1, 1, false),
            |thread| -> Checked<bool> {
                let waited = thread.waits();
                disassociate(world.page(place));
                let pages = world.page(another);
                let associated = associate_block(
                    old.world().block_of(pages, FOUR),
                    old.mapping(),
                    at(0),
                    false,
                );
                if let Some(held) = &mut held {
                    held.set_of_test(Entry::data(world.block(another, FOUR)));
                }
                let put = put(&new, 4, FOUR, place, false);
                drop(held.take());
                put?;
                Ok(waited && associated.is_ok())
            },
        )?;
        check!(moved?);
        check_eq!(result, 0);
        check_eq!(take_marks(&world, another, 4), 0);
        check_eq!(take_marks(&world, place, 4), 1 << 1);
        check!(!is_locked(&old, 0) && !is_locked(&new, 4));
        clear(&old);
        clear(&new);
        world.check_clean()
    }

    #[cfg(CONFIG_MEMORY_FAILURE)]
    #[test]
    fn what_the_device_knows_as_bad_already_is_told_of() -> Checked {
        let world = world()?;
        let place = world.take_many(4, FOUR)?;
        let file = world.file(4)?;
        put(&file, 0, FOUR, place, false)?;
        if let Err(error) = world.set_bad_blocks(place + 2, true) {
            check_eq!(error, eopnotsupp());
            crate::kern::testing::skip(c"the device keeps no list of bad blocks");
            clear(&file);
            return Ok(());
        }
        let told = call_notify_failure(&world, place + 2, 1, false);
        let cleared = world.set_bad_blocks(place + 2, false);
        check_eq!(told, 0);
        check_eq!(take_marks(&world, place, 4), 1 << 2);
        check_eq!(cleared, Ok(()));
        clear(&file);
        world.check_clean()
    }

    #[cfg(CONFIG_MEMORY_FAILURE)]
    #[test]
    fn a_page_that_goes_while_it_is_looked_for_is_left_to_the_core() -> Checked {
        let world = world()?;
        let place = world.take_many(4, FOUR)?;
        let file = world.file(4)?;
        put(&file, 0, FOUR, place, false)?;
        let held = tree::lock_present(file.mapping(), at(0));
        let (result, waited) = with_thread_waiting(
            || call_notify_failure(&world, place + 1, 1, false),
            || {
                if let Some(held) = held {
                    layout::discard(held);
                }
            },
        )?;
        check!(waited);
        check_eq!(result, eopnotsupp().to_errno());
        check_eq!(take_marks(&world, place, 4), 0);
        // A later search finds nobody to tell.
        let again = world.take(Order::PTE)?;
        put(&file, 0, Order::PTE, again, false)?;
        let (cookie, page) = poison::lock_index(file.mapping(), at(0));
        poison::unlock_index(file.mapping(), cookie);
        check!(page == Some(world.pfn(again)));
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn who_waits_to_tell_of_a_failure_keeps_no_device_from_being_given_back() -> Checked {
        let world = world()?;
        let file = world.file(1)?;
        let place = world.take(Order::PTE)?;
        put(&file, 0, Order::PTE, place, false)?;
        let folio = world.page(place).folio();
        let ended = Atomic::new(false);
        let held = tree::lock_present(file.mapping(), at(0));
        let (results, (waited, over)) = with_threads(
            2,
            |number| {
                if number == 0 {
                    return poison::lock_folio(folio, &mut InFlight::enter());
                }
                // As those who give back do it, of any device.
                until(|| wait::entry_waiters() != 0);
                redirect::quiesce();
                ended.store(true, Release);
                Cookie::Failed
            },
            |threads| {
                let waited = threads.first().is_some_and(|thread| thread.waits());
                let over = until(|| ended.load(Acquire));
                drop(held);
                (waited, over)
            },
        )?;
        let cookie = results.into_iter().next().unwrap_or(Cookie::Failed);
        check!(cookie != Cookie::Failed);
        poison::unlock_folio(file.mapping(), cookie);
        check!(waited);
        check!(
            over,
            "the failure of a page holds up who gives back devices"
        );
        clear(&file);
        world.check_clean()
    }
}
