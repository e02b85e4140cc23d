// SPDX-License-Identifier: GPL-2.0

//! Waking waiters when an entry is unlocked, removed or changed (spec, section 3).

use kernel::prelude::*;

#[kunit_tests(rdax_wakeups)]
mod tests {
    use crate::{
        dax::tree::{self, LockError},
        kern::{
            entry::Entry,
            order::Order,
            testing::{pause, until, with_threads, Checked, Random},
        },
        tests::helpers::{entries::*, *},
    };
    use kernel::{
        prelude::*,
        sync::atomic::{Acquire, Atomic, Full, Release},
    };

    #[test]
    fn unlocking_wakes_one_waiter_after_the_other() -> Checked {
        const WAITERS: usize = 4;
        let world = world()?;
        let file = world.file(1)?;
        let held = lock(&file, 0, Order::PTE)?;
        let go = Atomic::new(false);
        let work = |_| -> Checked {
            let _locked = lock(&file, 0, Order::PTE)?;
            // Busy, so that only those who are woken for nothing go to sleep once more.
            while !go.load(Acquire) {
                crate::kern::vm::cond_resched();
            }
            Ok(())
        };
        let (results, seen) = with_threads(WAITERS, work, |threads| -> Checked {
            let asleep = threads.iter().all(|thread| thread.waits());
            let mut before = [0; WAITERS];
            for (count, thread) in before.iter_mut().zip(threads) {
                *count = thread.sleeps();
            }
            drop(held);
            let woken = until(|| threads.iter().any(|thread| !thread.is_asleep()));
            pause(50);
            let again = before
                .iter()
                .zip(threads)
                .filter(|(count, thread)| thread.is_asleep() && thread.sleeps() != **count)
                .count();
            let awake = threads.iter().filter(|thread| !thread.is_asleep()).count();
            go.store(true, Release);
            check!(asleep, "not all have waited");
            check!(woken, "nobody was woken");
            check_eq!(awake, 1);
            check_eq!(again, 0, "woken to sleep again");
            Ok(())
        })?;
        seen?;
        for result in results {
            result?;
        }
        erase(&file, 0)
    }

    #[test]
    fn removing_wakes_all() -> Checked {
        let world = world()?;
        let file = world.file(Order::PMD.pages())?;
        for order in [Order::PTE, Order::PMD] {
            let held = lock(&file, 0, order)?;
            let last = order.pages() - 1;
            let (results, seen) = with_threads(
                5,
                |number| tree::lock_present(file.mapping(), at(number % 2 * last)).is_none(),
                |threads| -> Checked {
                    let asleep = threads.iter().all(|thread| thread.waits());
                    held.remove();
                    check!(asleep, "not all have waited");
                    Ok(())
                },
            )?;
            seen?;
            check!(results.iter().all(|none| *none));
            check_eq!(file.nrpages(), 0);
        }
        Ok(())
    }

    #[test]
    fn an_entry_of_another_shape_wakes_all() -> Checked {
        let world = world()?;
        let file = world.file(Order::PMD.pages())?;
        store(&file, 0, Entry::zero(Order::PMD))?;
        let held = tree::lock_present(file.mapping(), at(0));
        let (results, seen) = with_threads(
            4,
            // Each wants a page of its own of what is a large hole now.
            |number| lock(&file, 100 * number, Order::PTE).map(|locked| word_of(locked.entry())),
            |threads| -> Checked {
                let asleep = threads.iter().all(|thread| thread.waits());
                drop(held);
                check!(asleep, "not all have waited");
                Ok(())
            },
        )?;
        seen?;
        for result in results {
            check!(result? == word_of(Entry::empty(Order::PTE)));
        }
        check_eq!(file.nrpages(), 4);
        clear(&file);
        Ok(())
    }

    #[test]
    fn no_wake_up_is_lost_and_nobody_locks_what_is_locked() -> Checked {
        const THREADS: usize = 4;
        const ROUNDS: usize = 1500;
        const PAGES: usize = 8;
        let world = world()?;
        let file = world.file(PAGES)?;
        let owners: [Atomic<usize>; PAGES] = [const { Atomic::new(0) }; PAGES];
        let work = |number: usize| -> Checked<usize> {
            let mut random = Random::new(0x7472_6565 + number as u64 * 7919);
            let mut conflicts = 0;
            for _ in 0..ROUNDS {
                let order = if random.below(4) == 0 {
                    Order::from_bits(3)
                } else {
                    Order::PTE
                };
                let index = random.below(PAGES);
                let locked = match lock_entry(file.mapping(), at(index), order, false) {
                    Ok(locked) => locked,
                    Err(LockError::Conflict) => {
                        conflicts += 1;
                        match tree::lock_present(file.mapping(), at(index)) {
                            Some(locked) => locked,
                            None => continue,
                        }
                    }
                    Err(error) => {
                        return Err(crate::kern::testing::failed(
                            file!(),
                            line!(),
                            fmt!("lock_or_create: {error:?}"),
                        ))
                    }
                };
                let range = locked.range();
                let covered = owners
                    .get(range.first.get()..=range.last.get())
                    .unwrap_or(&[]);
                let alone = covered
                    .iter()
                    .all(|owner| owner.xchg(number + 1, Full) == 0);
                if random.below(8) == 0 {
                    crate::kern::vm::cond_resched();
                }
                let still = covered
                    .iter()
                    .all(|owner| owner.xchg(0, Full) == number + 1);
                if random.below(3) == 0 {
                    locked.remove();
                } else {
                    drop(locked);
                }
                check!(alone && still, "two have locked one entry");
            }
            Ok(conflicts)
        };
        let (results, ()) = with_threads(THREADS, work, |_| ())?;
        for result in results {
            result?;
        }
        clear(&file);
        check_eq!(file.nrpages(), 0);
        Ok(())
    }
}
