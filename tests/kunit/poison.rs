// SPDX-License-Identifier: GPL-2.0

//! Keeping an entry still while processes are told of bad memory (spec, section 7).

use kernel::prelude::*;

#[kunit_tests(rdax_poison)]
mod tests {
    use crate::{
        dax::{
            folio, layout,
            poison::{self, Cookie},
            stats::Counter,
            tree,
        },
        kern::{
            entry::Entry,
            error::eopnotsupp,
            order::Order,
            page::{DevFolio, DevPage},
            redirect::{self, InFlight},
            testing::{
                call_notify_failure, call_notify_injection, note, pause, until, with_thread,
                with_thread_waiting, with_threads, Calls, Checked, File, World,
            },
            wait::{self, OwnerGuard},
            xa::Mark,
        },
        tests::helpers::*,
    };
    use kernel::{
        prelude::*,
        sync::atomic::{Acquire, Atomic, Relaxed, Release},
    };

    const PMD: usize = Order::PMD.pages();
    const FOUR: Order = Order::from_bits(2);
    const ORDERS: [Order; 3] = [Order::PTE, Order::PMD, Order::PUD];

    /// As `dax_unlock_folio`: the locked entry keeps the folio's owner.
    fn unlock(folio: DevFolio, cookie: Cookie) -> bool {
        match OwnerGuard::of(folio) {
            Some(owner) => {
                poison::unlock_folio(owner.mapping(), folio, cookie);
                true
            }
            None => false,
        }
    }

    fn is_locked(file: &File<'_>, index: usize) -> bool {
        look(file, index).is_some_and(|(_, locked)| locked)
    }

    #[test]
    fn locking_a_folio_locks_its_entry() -> Checked {
        for order in ORDERS {
            let world = world()?;
            let Some(place) = place_of(&world, order) else {
                continue;
            };
            let file = world.file(2 * order.pages())?;
            // Not the first of the file.
            let index = order.pages();
            put(&file, index, order, place, false)?;
            let before = look(&file, index);
            let folio = world.page(place + order.pages() - 1).folio();
            let locks = count(Counter::PoisonLocks);
            let cookie = poison::lock_folio(folio, &mut InFlight::enter());
            check!(cookie != Cookie::Failed && cookie != Cookie::Nothing);
            check_eq!(count(Counter::PoisonLocks), locks + 1);
            check!(is_locked(&file, index));
            // Who waits for it is woken.
            let (found, waited) = with_thread(
                || lock(&file, index + order.pages() - 1, Order::PTE).is_ok(),
                |thread| {
                    let waited = thread.waits();
                    waited && unlock(folio, cookie)
                },
            )?;
            check!(waited && found, "{order:?}");
            check!(look(&file, index) == before);
            clear(&file);
            world.check_clean()?;
        }
        Ok(())
    }

    #[test]
    fn a_folio_in_no_file_of_dax_is_not_locked() -> Checked {
        let world = world()?;
        let place = world.take(Order::PTE)?;
        let (a, b) = (world.file(1)?, world.file(1)?);
        let folio = || world.page(place).folio();
        check!(poison::lock_folio(folio(), &mut InFlight::enter()) == Cookie::Failed);
        put_shared(&a, 0, Order::PTE, place, false, true)?;
        a.set_dax(false);
        check!(poison::lock_folio(folio(), &mut InFlight::enter()) == Cookie::Failed);
        check!(!is_locked(&a, 0));
        a.set_dax(true);
        // Shared: there is no such thing as the file.
        put_shared(&b, 0, Order::PTE, place, false, true)?;
        check!(poison::lock_folio(folio(), &mut InFlight::enter()) == Cookie::Failed);
        check!(!is_locked(&a, 0) && !is_locked(&b, 0));
        clear(&a);
        clear(&b);
        world.check_clean()
    }

    #[test]
    fn a_locked_folio_keeps_its_owner() -> Checked {
        for order in [Order::PTE, Order::PMD] {
            let world = world()?;
            let place = world.take(order)?;
            let (a, b) = (world.file(order.pages())?, world.file(order.pages())?);
            put_shared(&a, 0, order, place, false, true)?;
            let folio = world.page(place).folio();
            let cookie = poison::lock_folio(folio, &mut InFlight::enter());
            check!(cookie != Cookie::Failed);
            let shared = Atomic::new(false);
            let share = || -> Checked {
                put_shared(&b, 0, order, place, false, true)?;
                shared.store(true, Release);
                Ok(())
            };
            let (done, kept) = with_thread(share, |_| {
                // The other has its entry by now.
                let began = until(|| look(&b, 0).is_some());
                for _ in 0..20 {
                    pause(1);
                }
                let kept =
                    !shared.load(Acquire) && folio.owner() == a.mapping().key() && is_locked(&a, 0);
                unlock(folio, cookie) && began && kept
            })?;
            done?;
            check!(kept, "{order:?}");
            check!(!is_locked(&a, 0) && !is_locked(&b, 0));
            check_eq!((folio.owner(), folio.share()), (0, 2));
            clear(&a);
            clear(&b);
            world.check_clean()?;
        }
        Ok(())
    }

    #[test]
    fn locking_a_folio_waits_for_its_entry() -> Checked {
        let world = world()?;
        let place = world.take(Order::PMD)?;
        let file = world.file(PMD)?;
        for (order, removed) in [
            (Order::PTE, false),
            (Order::PTE, true),
            (Order::PMD, false),
            (Order::PMD, true),
        ] {
            put(&file, 0, order, place, false)?;
            let folio = world.page(place).folio();
            let held = tree::lock_present(file.mapping(), at(0));
            let (locked, waited) = with_thread_waiting(
                || {
                    let cookie = poison::lock_folio(folio, &mut InFlight::enter());
                    cookie != Cookie::Failed && unlock(folio, cookie)
                },
                || match held {
                    Some(held) if removed => layout::discard(held),
                    held => drop(held),
                },
            )?;
            check!(waited, "{order:?}");
            check_eq!(locked, !removed, "{order:?}");
            clear(&file);
        }
        world.check_clean()
    }

    #[test]
    fn unlocking_wakes_who_waits_for_any_page_of_the_entry() -> Checked {
        let world = world()?;
        let place = world.take(Order::PMD)?;
        let file = world.file(PMD)?;
        put(&file, 0, Order::PMD, place, false)?;
        for by_index in [false, true] {
            let folio = world.page(place).folio();
            let cookie = match by_index {
                true => poison::lock_index(file.mapping(), at(100)).0,
                false => poison::lock_folio(folio, &mut InFlight::enter()),
            };
            let (got, waited) = with_thread_waiting(
                || tree::lock_present(file.mapping(), at(200)).is_some(),
                || match by_index {
                    true => poison::unlock_index(file.mapping(), cookie),
                    false => poison::unlock_folio(file.mapping(), folio, cookie),
                },
            )?;
            check!(waited && got, "by index: {by_index}");
        }
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn locking_by_index_finds_the_page_at_the_index() -> Checked {
        for order in ORDERS {
            let world = world()?;
            let Some(place) = place_of(&world, order) else {
                continue;
            };
            let file = world.file(order.pages())?;
            put(&file, 0, order, place, false)?;
            for index in [0, order.pages() / 3, order.pages() - 1] {
                let locks = count(Counter::PoisonLocks);
                let (cookie, page) = poison::lock_index(file.mapping(), at(index));
                check!(cookie != Cookie::Failed && cookie != Cookie::Nothing);
                let (locks, locked) =
                    (count(Counter::PoisonLocks) - locks, is_locked(&file, index));
                poison::unlock_index(file.mapping(), cookie);
                check!(page == Some(world.page(place + index)), "index {index}");
                check!(locks == 1 && locked);
                check!(!is_locked(&file, index));
            }
            clear(&file);
            world.check_clean()?;
        }
        Ok(())
    }

    #[test]
    fn where_there_is_no_data_nothing_is_locked() -> Checked {
        let world = world()?;
        let file = world.file(3)?;
        put_zero(&file, 1, Order::PTE)?;
        drop(lock(&file, 2, Order::PTE)?);
        for index in 0..3 {
            let (cookie, page) = poison::lock_index(file.mapping(), at(index));
            check!(cookie == Cookie::Nothing && page.is_none());
            check!(!is_locked(&file, index));
            poison::unlock_index(file.mapping(), cookie);
        }
        file.set_dax(false);
        let (cookie, page) = poison::lock_index(file.mapping(), at(1));
        check!(cookie == Cookie::Failed && page.is_none());
        file.set_dax(true);
        clear(&file);
        Ok(())
    }

    #[test]
    fn locking_by_index_waits_and_wakes() -> Checked {
        let world = world()?;
        let place = world.take(Order::PTE)?;
        let file = world.file(1)?;
        put(&file, 0, Order::PTE, place, false)?;
        let (cookie, _) = poison::lock_index(file.mapping(), at(0));
        let (second, waited) = with_thread_waiting(
            || {
                let (cookie, page) = poison::lock_index(file.mapping(), at(0));
                poison::unlock_index(file.mapping(), cookie);
                page.is_some()
            },
            || {
                poison::unlock_index(file.mapping(), cookie);
            },
        )?;
        check!(waited && second);
        check!(!is_locked(&file, 0));
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn an_unlocked_entry_keeps_that_it_is_dirty() -> Checked {
        let world = world()?;
        let place = world.take(Order::PTE)?;
        let file = world.file(1)?;
        put(&file, 0, Order::PTE, place, true)?;
        let cookie = poison::lock_folio(world.page(place).folio(), &mut InFlight::enter());
        check!(unlock(world.page(place).folio(), cookie));
        let (cookie, _) = poison::lock_index(file.mapping(), at(0));
        poison::unlock_index(file.mapping(), cookie);
        check!(is_marked(&file, 0, Mark::Dirty));
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn the_inode_may_go_away_at_any_moment() -> Checked {
        const FILES: usize = 150;
        let world = world()?;
        let place = world.take(Order::PMD)?;
        let page: DevPage = world.page(place);
        let over = Atomic::new(false);
        let (locked, created) = with_thread(
            || {
                let mut locked = 0usize;
                while !over.load(Relaxed) {
                    let folio = page.folio();
                    let cookie = poison::lock_folio(folio, &mut InFlight::enter());
                    if cookie != Cookie::Failed {
                        locked += 1;
                        // Told about, the file stays.
                        crate::kern::vm::cond_resched();
                        unlock(folio, cookie);
                    }
                }
                locked
            },
            |_| -> Checked<usize> {
                let mut created = 0;
                let result = (|| -> Checked {
                    for number in 0..FILES {
                        let file = world.file(PMD)?;
                        let order = if number % 3 == 0 {
                            Order::PMD
                        } else {
                            Order::PTE
                        };
                        put(&file, 0, order, place, number % 2 == 0)?;
                        crate::kern::vm::cond_resched();
                        match number % 4 {
                            0 => clear(&file),
                            1 => file.set_links(0),
                            _ => (),
                        }
                        created += 1;
                    }
                    Ok(())
                })();
                over.store(true, Relaxed);
                result?;
                Ok(created)
            },
        )?;
        check_eq!(created?, FILES);
        note(fmt!("locked {locked} times in {FILES} files"));
        world.check_clean()
    }

    /// Has a thread lock a page's folio which it finds in a file, and `change` what it is of while the
    /// thread waits for the tree's lock; if it does, which the caller repeats this for.
    fn lock_while_it_moves(
        page: DevPage,
        file: &File<'_>,
        change: impl FnOnce() -> Result<(), folio::AssociateError>,
    ) -> Checked<Cookie> {
        let (cookie, changed) = contend(
            || file.mapping().tree().lock(),
            || poison::lock_folio(page.folio(), &mut InFlight::enter()),
            |_| change(),
        )?;
        check_eq!(changed, Ok(()));
        Ok(cookie)
    }

    const ROUNDS: usize = 10;

    #[test]
    fn a_folio_that_goes_to_another_file_is_not_locked_in_the_one_it_left() -> Checked {
        let world = world()?;
        let place = world.take(Order::PTE)?;
        let page = world.page(place);
        let (old, new) = (world.file(1)?, world.file(1)?);
        let to = |file: &File<'_>| {
            folio::disassociate(page);
            folio::associate(
                file.world().block_of(page, Order::PTE),
                file.mapping(),
                at(0),
                false,
            )
        };
        put(&old, 0, Order::PTE, place, false)?;
        for _ in 0..ROUNDS {
            let cookie = lock_while_it_moves(page, &old, || to(&new))?;
            // The new file has no entry for it yet.
            check!(cookie == Cookie::Failed);
            check!(!is_locked(&old, 0));
            check_eq!(to(&old), Ok(()));
        }
        clear(&old);
        world.check_clean()
    }

    #[test]
    fn a_folio_that_moves_in_its_file_is_locked_where_it_went() -> Checked {
        let world = world()?;
        let place = world.take_many(2, Order::PTE)?;
        let (page, other) = (world.page(place), world.page(place + 1));
        let file = world.file(2)?;
        let move_to = |index: usize| {
            folio::disassociate(page);
            folio::disassociate(other);
            folio::associate(
                file.world().block_of(other, Order::PTE),
                file.mapping(),
                at(1 - index),
                false,
            )?;
            folio::associate(
                file.world().block_of(page, Order::PTE),
                file.mapping(),
                at(index),
                false,
            )
        };
        put(&file, 0, Order::PTE, place, false)?;
        put(&file, 1, Order::PTE, place + 1, false)?;
        let mut moved = 0;
        for _ in 0..ROUNDS {
            let cookie = lock_while_it_moves(page, &file, || move_to(1))?;
            // Who comes in the middle of the move sees that nobody has the folio.
            if cookie != Cookie::Failed {
                moved += 1;
                check_eq!(locked_pages(&file, 2), 1 << 1);
                check!(unlock(page.folio(), cookie));
            }
            check_eq!(locked_pages(&file, 2), 0);
            check_eq!(move_to(0), Ok(()));
        }
        check!(moved != 0);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn a_page_in_the_middle_of_a_folio_is_not_locked() -> Checked {
        let world = world()?;
        let place = world.take(Order::PMD)?;
        let file = world.file(PMD)?;
        for number in [1, 2, 3, PMD - 1] {
            // Found when it was a page of its own.
            let folio = world.page(place + number).folio();
            put(&file, 0, Order::PMD, place, false)?;
            check!(
                poison::lock_folio(folio, &mut InFlight::enter()) == Cookie::Failed,
                "page {number}"
            );
            check!(!is_locked(&file, 0));
            clear(&file);
        }
        world.check_clean()
    }

    #[test]
    fn a_page_without_a_file_stays_so() -> Checked {
        let world = world()?;
        let place = world.take(Order::PTE)?;
        let file = world.file(1)?;
        put(&file, 0, Order::PTE, place, false)?;
        folio::disassociate(world.page(place));
        check!(
            poison::lock_folio(world.page(place).folio(), &mut InFlight::enter()) == Cookie::Failed
        );
        // The entry is made whole again for those who remove it.
        let again = folio::associate(
            file.world().block_of(world.page(place), Order::PTE),
            file.mapping(),
            at(0),
            false,
        );
        check_eq!(again, Ok(()));
        clear(&file);
        world.check_clean()
    }

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
        // What happened while nobody was told is not known.
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
                folio::disassociate(world.page(place));
                let pages = world.page(another);
                let associated = folio::associate(
                    old.world().block_of(pages, FOUR),
                    old.mapping(),
                    at(0),
                    false,
                );
                if let Some(held) = &mut held {
                    held.set(Entry::data(world.block(another, FOUR)));
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
        // What is looked for later is nobody's business any more.
        let again = world.take(Order::PTE)?;
        put(&file, 0, Order::PTE, again, false)?;
        let (cookie, page) = poison::lock_index(file.mapping(), at(0));
        poison::unlock_index(file.mapping(), cookie);
        check!(page == Some(world.page(again)));
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
        poison::unlock_folio(file.mapping(), folio, cookie);
        check!(waited);
        check!(
            over,
            "the failure of a page holds up who gives back devices"
        );
        clear(&file);
        world.check_clean()
    }
}
