// SPDX-License-Identifier: GPL-2.0

//! Locking and creating entries (spec, section 3).

use kernel::prelude::*;

#[kunit_tests(rdax_tree)]
mod tests {
    use crate::{
        dax::{
            layout,
            tree::{self, Disposition, EntryBatch, Filter, LockError, Visitor, WalkAction},
        },
        kern::{
            entry::{Entry, Kind},
            fs::{Mapping, PageRange},
            order::Order,
            testing::{
                with_failing_allocation, with_thread_waiting, without_memory, Checked, File,
                Random, World,
            },
            xa::Mark,
        },
        tests::helpers::{entries::*, *},
    };

    /// Those of page-table levels, and others that an XArray stores in its own way.
    const ORDERS: [Order; 5] = [
        Order::PTE,
        Order::from_bits(3),
        Order::from_bits(6),
        Order::PMD,
        Order::PUD,
    ];

    /// An entry of each kind. Nobody looks at the page of the last one.
    fn kinds(world: &World, order: Order) -> [Entry<'_>; 3] {
        [
            Entry::empty(order),
            Entry::zero(order),
            // A device may be too small for the largest.
            world
                .any_block(order)
                .map_or(Entry::zero(order), Entry::data),
        ]
    }

    #[test]
    fn nothing_there_gives_a_locked_empty_entry() -> Checked {
        let world = world()?;
        let file = world.file(Order::PUD.pages())?;
        for order in ORDERS {
            let locked = lock(&file, 5, order)?;
            check!(locked.entry() == Entry::empty(order));
            check_eq!(locked.first(), order.first(at(5)));
            check!(look(&file, 5) == Some((Entry::empty(order), true)));
            check_eq!(file.nrpages(), order.pages());
            drop(locked);
            check!(look(&file, 5) == Some((Entry::empty(order), false)));
            erase(&file, 5)?;
            check_eq!(file.nrpages(), 0);
        }
        Ok(())
    }

    /// Grabs what is there in a present entry's range, and compares with the specification.
    fn lock_over(file: &File<'_>, present: Entry<'_>, wanted: Order, locked: bool) -> Checked {
        // Neither the first nor the last page of any order but the smallest.
        const INDEX: usize = Order::PUD.pages() + 3 * Order::PMD.pages() + 5;
        store(file, INDEX, present)?;
        let conflict = present.order() < wanted;
        let locked_over = || match lock_entry(file.mapping(), at(INDEX), wanted, false) {
            Ok(locked) => Ok((word_of(locked.entry()), locked.first())),
            Err(error) => Err(error),
        };
        let result = if locked && !conflict {
            let held = tree::lock_present(file.mapping(), at(INDEX));
            check!(held.is_some());
            let (result, waited) = with_thread_waiting(locked_over, || {
                drop(held);
            })?;
            check!(waited, "the entry was not waited for");
            result
        } else {
            locked_over()
        };
        let keeps = present.order() == wanted || matches!(present.kind(), Kind::Data(_));
        let expected = if conflict {
            check!(result == Err(LockError::Conflict));
            present
        } else if keeps {
            check!(result == Ok((word_of(present), present.order().first(at(INDEX)))));
            present
        } else {
            check!(result == Ok((word_of(Entry::empty(wanted)), wanted.first(at(INDEX)))));
            Entry::empty(wanted)
        };
        check!(look(file, INDEX) == Some((expected, false)));
        // Around a smaller entry in a larger one's place, nothing is left.
        check_eq!(file.nrpages(), expected.order().pages());
        erase(file, INDEX)?;
        check_eq!(file.nrpages(), 0);
        Ok(())
    }

    #[test]
    fn lock_of_every_order_over_every_entry() -> Checked {
        let world = world()?;
        let file = world.file(4 * Order::PUD.pages())?;
        for wanted in ORDERS {
            for present in ORDERS {
                for entry in kinds(&world, present) {
                    lock_over(&file, entry, wanted, false)?;
                }
            }
        }
        Ok(())
    }

    #[test]
    fn lock_of_every_order_waits_for_every_locked_entry() -> Checked {
        let world = world()?;
        let file = world.file(4 * Order::PUD.pages())?;
        for wanted in ORDERS {
            for present in ORDERS {
                for entry in kinds(&world, present) {
                    lock_over(&file, entry, wanted, true)?;
                }
            }
        }
        Ok(())
    }

    #[test]
    fn a_smaller_entry_anywhere_in_the_range_is_a_conflict() -> Checked {
        let world = world()?;
        let file = world.file(4 * Order::PUD.pages())?;
        for wanted in [Order::PMD, Order::PUD] {
            for index in [0, 1, wanted.pages() / 2, wanted.pages() - 1] {
                for entry in kinds(&world, Order::PTE) {
                    store(&file, index, entry)?;
                    for asked in [0, 7, wanted.pages() - 1] {
                        let result = lock_entry(file.mapping(), at(asked), wanted, false);
                        check!(matches!(result, Err(LockError::Conflict)));
                    }
                    check_eq!(file.nrpages(), 1);
                    erase(&file, index)?;
                }
            }
        }
        Ok(())
    }

    #[test]
    fn the_neighbours_are_no_conflict() -> Checked {
        let world = world()?;
        let file = world.file(4 * Order::PMD.pages())?;
        store(&file, Order::PMD.pages() - 1, Entry::zero(Order::PTE))?;
        store(&file, 2 * Order::PMD.pages(), Entry::zero(Order::PMD))?;
        let locked = lock(&file, Order::PMD.pages() + 9, Order::PMD)?;
        check!(locked.entry() == Entry::empty(Order::PMD));
        check_eq!(file.nrpages(), 1 + 2 * Order::PMD.pages());
        drop(locked);
        clear(&file);
        Ok(())
    }

    /// Log2 of the indices that the tree itself has an entry for.
    fn stored_order(mapping: &Mapping, index: usize) -> usize {
        let mut guard = mapping.tree().lock();
        let mut xas = guard.xas(at(index));
        match xas.load() {
            Some(_) => xas.stored_order(),
            None => usize::MAX,
        }
    }

    #[test]
    fn every_allocation_that_fails_leaves_the_tree_as_it_was() -> Checked {
        let world = world()?;
        let file = world.file(1)?;
        // Deep in the tree, so that many nodes are needed.
        for index in [0, 1 << 20, 1 << 30, 1 << 38] {
            for order in ORDERS {
                let mut nth = 1;
                loop {
                    let (result, failed) = with_failing_allocation(nth, || {
                        lock_entry(file.mapping(), at(index), order, false).map(|locked| {
                            let stored = stored_order(file.mapping(), index);
                            locked.remove();
                            stored
                        })
                    });
                    check!(result != Err(LockError::Conflict));
                    // Also when the memory came at the second try.
                    if let Ok(stored) = result {
                        check_eq!(stored, order.bits());
                    }
                    check_eq!(file.nrpages(), 0);
                    check!(file.mapping().is_empty());
                    if !failed {
                        check!(result.is_ok());
                        break;
                    }
                    nth += 1;
                    check!(nth < 100);
                }
            }
            // A tree of one entry at index 0 has no node.
            if index != 0 {
                let result = without_memory(|| {
                    lock_entry(file.mapping(), at(index), Order::PTE, false).map(drop)
                });
                check!(result == Err(LockError::NoMemory));
                check_eq!(file.nrpages(), 0);
                check!(file.mapping().is_empty());
            }
        }
        Ok(())
    }

    #[test]
    fn without_memory_a_large_hole_is_not_half_taken_apart() -> Checked {
        let world = world()?;
        let file = world.file(Order::PMD.pages())?;
        store(&file, 0, Entry::zero(Order::PMD))?;
        let result =
            without_memory(|| lock_entry(file.mapping(), at(5), Order::PTE, false).map(drop));
        check!(result == Err(LockError::NoMemory));
        // A hole needs no entry.
        check!(look(&file, 5).is_none());
        check_eq!(file.nrpages(), 0);
        Ok(())
    }

    #[test]
    fn nrpages_is_the_sum_of_all_entries() -> Checked {
        const AREAS: usize = 6;
        let world = world()?;
        let file = world.file(AREAS * Order::PMD.pages())?;
        let mut random = Random::new(0x6e72_7067);
        let mut expected = 0;
        for _ in 0..3000 {
            let index = random.below(AREAS * Order::PMD.pages());
            let order = match random.below(3) {
                0 => Order::PMD,
                1 => Order::from_bits(6),
                _ => Order::PTE,
            };
            let before = look(&file, index).map_or(0, |(entry, _)| entry.order().pages());
            if random.below(3) == 0 {
                if before != 0 {
                    erase(&file, index)?;
                    expected -= before;
                }
            } else if let Ok(locked) = lock_entry(file.mapping(), at(index), order, false) {
                let kind = random.below(2);
                let entry = kinds(&world, locked.entry().order())[kind];
                expected = expected + locked.entry().order().pages() - before;
                locked.set_of_test(entry);
            }
            check_eq!(file.nrpages(), expected);
        }
        clear(&file);
        check_eq!(file.nrpages(), 0);
        Ok(())
    }

    #[test]
    fn an_entry_stays_locked_and_known_while_the_tree_shrinks_to_it() -> Checked {
        let world = world()?;
        let file = world.file(Order::PMD.pages())?;
        let place = world.take(Order::PMD)?;
        for others in [&[5][..], &[70], &[5, 70, 300]] {
            put(&file, 0, Order::PTE, place, false)?;
            for index in others {
                put(&file, *index, Order::PTE, place + index, false)?;
            }
            let locked = lock(&file, 0, Order::PTE)?;
            for index in others {
                layout::delete_range(file.mapping(), range(*index, *index));
            }
            check_eq!(file.nrpages(), 1);
            check!(look(&file, 0).is_some_and(|(_, locked)| locked));
            locked.mark(Mark::Dirty);
            check!(is_marked(&file, 0, Mark::Dirty));
            drop(locked);
            check!(
                look(&file, 0).is_some_and(|(_, locked)| !locked),
                "{others:?}"
            );
            clear(&file);
        }
        world.check_clean()
    }

    #[test]
    fn only_data_stays_dirty() -> Checked {
        let world = world()?;
        let file = world.file(3)?;
        for (index, entry) in kinds(&world, Order::PTE).into_iter().enumerate() {
            let locked = match lock_entry(file.mapping(), at(index), Order::PTE, true) {
                Ok(locked) => locked,
                Err(_) => continue,
            };
            check!(locked.is_dirty());
            check!(is_marked(&file, index, Mark::Dirty));
            locked.mark(Mark::ToWrite);
            locked.set_of_test(entry);
            drop(locked);
            let is_data = matches!(entry.kind(), Kind::Data(_));
            check_eq!(is_marked(&file, index, Mark::Dirty), is_data);
            check_eq!(is_marked(&file, index, Mark::ToWrite), is_data);
            erase(&file, index)?;
        }
        Ok(())
    }

    /// Counts what a walk comes to.
    struct Count {
        looked: usize,
        worked: usize,
        pages: usize,
        removed: usize,
    }

    impl Visitor for Count {
        const ASKS_DIRTY: bool = false;
        const BATCHES: bool = false;

        fn look(&mut self, entry: Entry<'_>, _dirty: bool) -> WalkAction {
            self.looked += 1;
            self.pages += entry.order().pages();
            match entry.kind() {
                Kind::Zero => WalkAction::Work,
                _ => WalkAction::Next,
            }
        }

        fn work(&mut self, _run: &EntryBatch<'_>) -> Disposition {
            self.worked += 1;
            if self.worked % 2 == 0 {
                self.removed += 1;
                Disposition::Remove
            } else {
                Disposition::Clean(0)
            }
        }
    }

    fn walk(file: &File<'_>, range: PageRange) -> Count {
        let mut count = Count {
            looked: 0,
            worked: 0,
            pages: 0,
            removed: 0,
        };
        tree::walk(file.mapping(), range, Filter::Any, &mut count);
        count
    }

    #[test]
    fn a_walk_comes_to_each_entry_of_its_range_once() -> Checked {
        let world = world()?;
        let file = world.file(8 * Order::PMD.pages())?;
        // Pages 0, 3, 6 … of the first part; then large ones with a gap.
        for index in (0..Order::PMD.pages()).step_by(3) {
            store(&file, index, Entry::empty(Order::PTE))?;
        }
        for area in [2, 3, 5] {
            store(&file, area * Order::PMD.pages(), Entry::zero(Order::PMD))?;
        }
        let small = Order::PMD.pages().div_ceil(3);
        let all = walk(&file, PageRange::ALL);
        check_eq!(all.looked, small + 3);
        check_eq!(all.pages, small + 3 * Order::PMD.pages());
        check_eq!(all.worked, 3);
        check_eq!(all.removed, 1);
        check_eq!(file.nrpages(), small + 2 * Order::PMD.pages());
        // Both ends are inside of large entries, one of which is left.
        let part = walk(
            &file,
            range(2 * Order::PMD.pages() + 5, 5 * Order::PMD.pages() + 1),
        );
        check_eq!(part.looked, 2);
        let none = walk(&file, range(1, 2));
        check_eq!(none.looked, 0);
        clear(&file);
        check_eq!(file.nrpages(), 0);
        Ok(())
    }

    #[test]
    fn a_walk_waits_for_a_locked_entry() -> Checked {
        let world = world()?;
        let file = world.file(4)?;
        store(&file, 1, Entry::zero(Order::PTE))?;
        store(&file, 2, Entry::empty(Order::PTE))?;
        let held = tree::lock_present(file.mapping(), at(2));
        let (looked, waited) = with_thread_waiting(
            || walk(&file, PageRange::ALL).looked,
            || {
                drop(held);
            },
        )?;
        check!(waited);
        check_eq!(looked, 2);
        // One that goes away meanwhile is not looked at.
        let held = tree::lock_present(file.mapping(), at(2));
        let (looked, waited) = with_thread_waiting(
            || walk(&file, PageRange::ALL).looked,
            || {
                if let Some(held) = held {
                    held.remove();
                }
            },
        )?;
        check!(waited);
        check_eq!(looked, 1);
        clear(&file);
        Ok(())
    }

    #[test]
    fn a_range_grows_to_the_whole_of_large_entries() -> Checked {
        let world = world()?;
        let file = world.file(8 * Order::PMD.pages())?;
        let pages = Order::PMD.pages();
        store(&file, 0, Entry::zero(Order::PMD))?;
        store(&file, 3 * pages, Entry::zero(Order::PMD))?;
        let whole = |first, last| tree::whole_entries(file.mapping(), range(first, last));
        check_eq!(whole(5, 3 * pages + 7), range(0, 4 * pages - 1));
        check_eq!(whole(pages + 5, 2 * pages), range(pages + 5, 2 * pages));
        check_eq!(whole(5, 6), range(0, pages - 1));
        check_eq!(whole(5, pages), range(0, pages));
        check_eq!(
            tree::whole_entries(file.mapping(), PageRange::ALL),
            PageRange::ALL
        );
        layout::delete_range(file.mapping(), PageRange::ALL);
        Ok(())
    }
}
