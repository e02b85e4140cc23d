// SPDX-License-Identifier: GPL-2.0

//! Locking the entry of a page that has failed (spec, section 7).

use kernel::prelude::*;

#[kunit_tests(rdax_poison)]
mod tests {
    use crate::{
        dax::{
            layout,
            poison::{self, Cookie},
            stats::Counter,
            tree,
        },
        kern::{
            order::Order,
            page::{DevFolio, DevPage},
            redirect::InFlight,
            testing::{note, pause, until, with_thread, with_thread_waiting, Checked, File},
            wait::OwnerGuard,
            xa::Mark,
        },
        tests::helpers::*,
    };
    use kernel::{
        prelude::*,
        sync::atomic::{Acquire, Atomic, Relaxed, Release},
    };

    const PMD: usize = Order::PMD.pages();
    const ORDERS: [Order; 3] = [Order::PTE, Order::PMD, Order::PUD];

    /// As `dax_unlock_folio`: the locked entry keeps the folio's owner.
    fn unlock(folio: DevFolio<'_>, cookie: Cookie) -> bool {
        match OwnerGuard::of(folio) {
            Some(owner) => {
                poison::unlock_folio(owner.mapping(), cookie);
                true
            }
            None => false,
        }
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
            // Its waiters are woken.
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
                    false => poison::unlock_folio(file.mapping(), cookie),
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
                check!(page == Some(world.pfn(place + index)), "index {index}");
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
        let page: DevPage<'_> = world.page(place);
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
        page: DevPage<'_>,
        file: &File<'_>,
        change: impl FnOnce() -> bool,
    ) -> Checked<Cookie> {
        let (cookie, changed) = contend(
            || file.mapping().tree().lock(),
            || poison::lock_folio(page.folio(), &mut InFlight::enter()),
            |_| change(),
        )?;
        check!(changed);
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
            disassociate(page);
            associate_block(
                world.block_of(page, Order::PTE),
                file.mapping(),
                at(0),
                false,
            )
            .is_ok()
        };
        put(&old, 0, Order::PTE, place, false)?;
        for _ in 0..ROUNDS {
            let cookie = lock_while_it_moves(page, &old, || to(&new))?;
            // The new file has no entry for it yet.
            check!(cookie == Cookie::Failed);
            check!(!is_locked(&old, 0));
            check!(to(&old));
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
            disassociate(page);
            disassociate(other);
            associate_block(
                world.block_of(other, Order::PTE),
                file.mapping(),
                at(1 - index),
                false,
            )?;
            associate_block(
                world.block_of(page, Order::PTE),
                file.mapping(),
                at(index),
                false,
            )
        };
        put(&file, 0, Order::PTE, place, false)?;
        put(&file, 1, Order::PTE, place + 1, false)?;
        let mut moved = 0;
        for _ in 0..ROUNDS {
            let cookie = lock_while_it_moves(page, &file, || move_to(1).is_ok())?;
            // A look in the middle of the move sees that nobody has the folio.
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
        disassociate(world.page(place));
        check!(
            poison::lock_folio(world.page(place).folio(), &mut InFlight::enter()) == Cookie::Failed
        );
        // The entry is made whole again for those who remove it.
        let again = associate_block(
            file.world().block_of(world.page(place), Order::PTE),
            file.mapping(),
            at(0),
            false,
        );
        check_eq!(again, Ok(()));
        clear(&file);
        world.check_clean()
    }
}
