// SPDX-License-Identifier: GPL-2.0

//! Removing entries (spec, section 5).

use kernel::prelude::*;

#[kunit_tests(rdax_remove)]
mod tests {
    use crate::{
        dax::{
            layout::{self, Patience},
            stats::Counter,
            tree,
        },
        kern::{
            fs::PageRange,
            order::Order,
            testing::{
                hold, with_thread_waiting, Checked, File, Flushes, Holds, Share, TestExtent, View,
            },
            xa::Mark,
        },
        tests::helpers::*,
    };
    use kernel::prelude::*;

    const PMD: usize = Order::PMD.pages();

    #[test]
    fn a_cut_large_entry_is_removed_whole() -> Checked {
        let world = world()?;
        let file = world.file(4 * PMD)?;
        let place = world.take_many(4 * PMD, Order::PMD)?;
        let fill = || -> Checked {
            for area in 0..4 {
                if look(&file, area * PMD).is_none() {
                    put(&file, area * PMD, Order::PMD, place + area * PMD, false)?;
                }
            }
            check_eq!(file.nrpages(), 4 * PMD);
            Ok(())
        };
        // From inside of the second to inside of the third.
        let cut = range(PMD + 100, 2 * PMD + 5);
        let left = |file: &File<'_>| [0, 1, 2, 3].map(|area| look(file, area * PMD).is_some());
        fill()?;
        check_eq!(
            layout::break_layout(file.inode(), cut, Patience::None),
            Ok(())
        );
        check_eq!(left(&file), [true, false, false, true]);
        fill()?;
        layout::delete_range(file.mapping(), cut);
        check_eq!(left(&file), [true, false, false, true]);
        fill()?;
        layout::evict_range(file.mapping(), cut);
        check_eq!(left(&file), [true, false, false, true]);
        // Holders of its pages outside of the range are waited for.
        fill()?;
        let held = hold(world.page(place + PMD).folio());
        let result = layout::break_layout(file.inode(), cut, Patience::None);
        check_eq!(result, Err(ERESTARTSYS));
        check_eq!(file.nrpages(), 4 * PMD);
        drop(held);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn a_cut_large_entry_is_unmapped_whole() -> Checked {
        let world = world()?;
        let file = world.file(PMD)?;
        let place = world.take(Order::PMD)?;
        file.set_extents(&[TestExtent::mapped(0, PMD, place)])?;
        let view = View::new(&file, 0, PMD, Share::Shared, 0)?;
        view.store(0, 1)?;
        check!(view.mapped(0).is_some_and(|mapped| mapped.order == 9));
        layout::delete_range(file.mapping(), range(PMD - 1, PMD - 1));
        check!(view.mapped(0).is_none());
        check_eq!(file.nrpages(), 0);
        check_eq!(view.load(0)?, 1);
        drop(view);
        clear(&file);
        // Also where it is mapped page by page, and before anybody looks at the counts.
        put(&file, 0, Order::PMD, place, false)?;
        let view = View::new(&file, 0, PMD, Share::Shared, 1)?;
        for page in [5, 100, 300] {
            view.load(page)?;
        }
        check!(layout::busy_folio(file.mapping(), range(99, 101)).is_none());
        check!([5, 100, 300]
            .iter()
            .all(|page| view.mapped(*page).is_none()));
        drop(view);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn a_single_entry_is_deleted_when_it_is_there() -> Checked {
        let world = world()?;
        let file = world.file(PMD)?;
        check!(!layout::delete_entry(file.mapping(), at(3)));
        let place = world.take(Order::PMD)?;
        put(&file, 0, Order::PMD, place, true)?;
        // Mapped page by page.
        let view = View::new(&file, 0, PMD, Share::Shared, 1)?;
        for page in [0, 5, PMD - 1] {
            view.load(page)?;
        }
        let removed = count(Counter::EntriesRemoved);
        check!(layout::delete_entry(file.mapping(), at(3)));
        check_eq!(count(Counter::EntriesRemoved), removed + 1);
        check_eq!(file.nrpages(), 0);
        for page in [0, 5, PMD - 1] {
            check!(view.mapped(page).is_none(), "page {page}");
        }
        drop(view);
        world.check_clean()
    }

    #[test]
    fn only_clean_entries_are_invalidated() -> Checked {
        let world = world()?;
        let file = world.file(4)?;
        let place = world.take_many(3, Order::PTE)?;
        put(&file, 0, Order::PTE, place, false)?;
        put(&file, 1, Order::PTE, place + 1, true)?;
        put(&file, 2, Order::PTE, place + 2, false)?;
        let locked = lock(&file, 2, Order::PTE)?;
        locked.mark(Mark::ToWrite);
        drop(locked);
        let invalidated =
            [0, 1, 2, 3].map(|index| layout::invalidate_entry(file.mapping(), at(index)));
        check_eq!(invalidated, [true, false, false, false]);
        check_eq!(file.nrpages(), 2);
        check!(is_marked(&file, 1, Mark::Dirty));
        check!(is_marked(&file, 2, Mark::ToWrite));
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn whoever_removes_an_entry_leaves_nothing_of_it_mapped() -> Checked {
        type Way = fn(&File<'_>);
        let ways: [(&str, Way); 3] = [
            ("delete_range", |file| {
                layout::delete_range(file.mapping(), PageRange::ALL);
            }),
            ("delete_entry", |file| {
                layout::delete_entry(file.mapping(), at(0));
            }),
            ("invalidate_entry", |file| {
                layout::invalidate_entry(file.mapping(), at(0));
            }),
        ];
        for order in [Order::PTE, Order::PMD] {
            for hole in [false, true] {
                for (name, remove) in ways {
                    let world = world()?;
                    let file = world.file(order.pages())?;
                    let place = world.take(order)?;
                    file.set_extents(&[if hole {
                        TestExtent::hole(0, order.pages())
                    } else {
                        TestExtent::mapped(0, order.pages(), place)
                    }])?;
                    let view = View::new(&file, 0, order.pages(), Share::Shared, 0)?;
                    view.load(0)?;
                    check!(view.mapped(0).is_some());
                    check_eq!(file.nrpages(), order.pages());
                    remove(&file);
                    check_eq!(file.nrpages(), 0, "{name}");
                    check!(view.mapped(0).is_none(), "{name}, hole: {hole}");
                    drop(view);
                    world.check_clean()?;
                }
            }
        }
        Ok(())
    }

    #[test]
    fn what_somebody_holds_is_not_invalidated() -> Checked {
        let world = world()?;
        let file = world.file(1)?;
        let place = world.take(Order::PTE)?;
        put(&file, 0, Order::PTE, place, false)?;
        let held = hold(world.page(place).folio());
        check!(!layout::invalidate_entry(file.mapping(), at(0)));
        check!(look(&file, 0).is_some());
        drop(held);
        check!(layout::invalidate_entry(file.mapping(), at(0)));
        check!(look(&file, 0).is_none());
        world.check_clean()
    }

    #[test]
    fn removing_waits_for_a_locked_entry() -> Checked {
        let world = world()?;
        let file = world.file(1)?;
        let place = world.take(Order::PTE)?;
        for which in 0..4 {
            put(&file, 0, Order::PTE, place, false)?;
            let held = tree::lock_present(file.mapping(), at(0));
            let ((), waited) = with_thread_waiting(
                || match which {
                    0 => layout::delete_range(file.mapping(), PageRange::ALL),
                    1 => {
                        layout::delete_entry(file.mapping(), at(0));
                    }
                    2 => {
                        layout::invalidate_entry(file.mapping(), at(0));
                    }
                    _ => layout::evict_range(file.mapping(), PageRange::ALL),
                },
                || {
                    drop(held);
                },
            )?;
            check!(waited, "case {which}");
            check_eq!(file.nrpages(), 0, "case {which}");
        }
        world.check_clean()
    }

    #[test]
    fn the_last_entry_of_a_giant_folio_may_be_small() -> Checked {
        let world = world()?;
        let Some(place) = place_of(&world, Order::PUD) else {
            return Ok(());
        };
        let page = world.page(place + 5);
        for evicted in [false, true] {
            let (large, small) = (world.file(Order::PUD.pages())?, world.file(1)?);
            put_shared(&large, 0, Order::PUD, place, false, true)?;
            put_shared(&small, 0, Order::PTE, place + 5, false, true)?;
            clear(&large);
            check_eq!(page.folio().order(), Order::PUD);
            check_eq!(page.folio().share(), 1);
            // It sleeps to take it apart.
            if evicted {
                layout::evict_range(small.mapping(), PageRange::ALL);
            } else {
                clear(&small);
            }
            check_eq!(page.folio().order(), Order::PTE);
            check!(crate::kern::testing::is_free(page));
        }
        world.check_clean()
    }

    #[test]
    fn the_lock_is_held_for_few_of_100000_entries() -> Checked {
        const ENTRIES: usize = 100_000;
        // XA_CHECK_SCHED
        const LIMIT: usize = 4096;
        let world = world()?;
        let file = world.file(ENTRIES)?;
        let Some(place) = world.try_take(ENTRIES, Order::PTE) else {
            crate::kern::testing::skip(c"the device has fewer than 100,000 pages");
            return Ok(());
        };
        let fill = || -> Checked {
            for index in 0..ENTRIES {
                if index % 10 == 9 {
                    put_zero(&file, index, Order::PTE)?;
                } else {
                    // Dirty entries are removed without the lock.
                    let dirty = index < ENTRIES / 2 && index % 97 == 0;
                    put(&file, index, Order::PTE, place + index, dirty)?;
                }
            }
            check_eq!(file.nrpages(), ENTRIES);
            Ok(())
        };
        fill()?;
        {
            let holds = Holds::watch(&file)?;
            check!(layout::busy_folio(file.mapping(), PageRange::ALL).is_none());
            check!(holds.count() >= ENTRIES / LIMIT, "{} holds", holds.count());
        }
        for which in 0..3 {
            if which != 0 {
                fill()?;
            }
            let (most, count) = {
                let holds = Holds::watch(&file)?;
                match which {
                    0 => layout::delete_range(file.mapping(), PageRange::ALL),
                    1 => layout::evict_range(file.mapping(), PageRange::ALL),
                    _ => layout::break_layout_final(file.inode()),
                }
                (holds.most(), holds.count())
            };
            check_eq!(file.nrpages(), 0);
            crate::kern::testing::note(fmt!("way {which}: {count} holds, at most {most} removed"));
            check!(most > 0 && most <= LIMIT, "{most} entries under one lock");
        }
        world.check_clean()
    }

    /// A way to remove all of a file, and its name.
    type Way = (&'static str, fn(&File<'_>) -> Checked);

    const WAYS: [Way; 4] = [
        ("delete_range", |file| {
            layout::delete_range(file.mapping(), PageRange::ALL);
            Ok(())
        }),
        ("evict_range", |file| {
            layout::evict_range(file.mapping(), PageRange::ALL);
            Ok(())
        }),
        ("break_layout", |file| {
            layout::break_layout(file.inode(), PageRange::ALL, Patience::None)?;
            Ok(())
        }),
        ("break_layout_final", |file| {
            layout::break_layout_final(file.inode());
            Ok(())
        }),
    ];

    #[test]
    fn entries_of_all_sizes_are_removed_and_counted_whichever_way() -> Checked {
        let world = world()?;
        for (name, remove) in WAYS {
            let (file, place) = straight_file(&world, 4 * PMD)?;
            let (mut entries, mut dirty_entries) = (0, 0);
            let mut index = 0;
            // Of a page up to those of a node, clean ones, dirty ones and holes side by side.
            for round in 0.. {
                let order = Order::from_bits([0, 0, 0, 1, 0, 2, 4, 5, 6][round % 9])
                    .fitting(index, 2 * PMD - index);
                let dirty = round % 4 == 1;
                if round % 7 == 3 {
                    put_zero(&file, index, order)?;
                } else {
                    put(&file, index, order, place + index, dirty)?;
                    dirty_entries += u64::from(dirty);
                }
                entries += 1;
                index += order.pages();
                if index == 2 * PMD {
                    break;
                }
            }
            put(&file, 2 * PMD, Order::PMD, place + 2 * PMD, true)?;
            put(&file, 3 * PMD, Order::PMD, place + 3 * PMD, false)?;
            check_eq!(file.nrpages(), 4 * PMD);
            let before = (
                count(Counter::EntriesRemoved),
                count(Counter::EntriesFlushedOnRemoval),
            );
            remove(&file)?;
            check_eq!(
                count(Counter::EntriesRemoved),
                before.0 + entries + 2,
                "{name}"
            );
            check_eq!(
                count(Counter::EntriesFlushedOnRemoval),
                before.1 + dirty_entries + 1,
                "{name}"
            );
            check_eq!(file.nrpages(), 0, "{name}");
            check!(file.mapping().is_empty(), "{name}");
            world.check_clean()?;
        }
        Ok(())
    }

    #[test]
    fn clean_entries_are_removed_at_once_and_dirty_ones_in_runs() -> Checked {
        const NODE: usize = 64;
        const NODES: usize = 16;
        let world = world()?;
        let (file, place) = straight_file(&world, NODES * NODE)?;
        for dirty in [false, true] {
            for index in 0..NODES * NODE {
                put(&file, index, Order::PTE, place + index, dirty)?;
            }
            let flushes = Flushes::watch(&file, 0, 0)?;
            let holds = Holds::watch(&file)?;
            layout::delete_range(file.mapping(), PageRange::ALL);
            let holds = holds.count();
            check_eq!(file.nrpages(), 0);
            if dirty {
                // Each run is locked, worked on and removed.
                let wanted: [_; NODES] =
                    core::array::from_fn(|node| (world.pfn(place + node * NODE), NODE));
                check!(flushes.are(&wanted), "{} flushes", flushes.count());
                check!(holds <= 2 * NODES + 2, "{holds} holds");
            } else {
                check_eq!(flushes.count(), 0);
                check!(holds <= 4, "{holds} holds");
            }
        }
        world.check_clean()
    }

    #[test]
    fn only_what_is_dirty_is_flushed_before_it_is_removed() -> Checked {
        let world = world()?;
        for (name, remove) in WAYS {
            let (file, place) = straight_file(&world, 64)?;
            for index in 0..20 {
                put(
                    &file,
                    index,
                    Order::PTE,
                    place + index,
                    (5..9).contains(&index),
                )?;
            }
            let flushes = Flushes::watch(&file, 6, 0)?;
            remove(&file)?;
            check!(flushes.are(&[(world.pfn(place + 5), 4)]), "{name}");
            check!(flushes.iter().all(|flush| flush.present), "{name}");
        }
        world.check_clean()
    }

    #[test]
    fn what_goes_away_with_its_file_is_not_flushed() -> Checked {
        let world = world()?;
        let (file, place) = straight_file(&world, 2 * PMD)?;
        for index in 0..100 {
            put(&file, index, Order::PTE, place + index, index % 3 != 0)?;
        }
        put(&file, PMD, Order::PMD, place + PMD, true)?;
        file.set_links(0);
        let removed = count(Counter::EntriesRemoved);
        let flushes = Flushes::watch(&file, 0, 0)?;
        layout::break_layout_final(file.inode());
        check_eq!(flushes.count(), 0);
        drop(flushes);
        check_eq!(count(Counter::EntriesRemoved), removed + 101);
        check_eq!(file.nrpages(), 0);
        world.check_clean()
    }

    #[test]
    fn a_held_page_is_left_whole_wherever_it_is_among_others() -> Checked {
        let world = world()?;
        let (file, place) = straight_file(&world, 128)?;
        for index in 0..64 {
            put(&file, index, Order::PTE, place + index, false)?;
        }
        put(&file, 64, Order::from_bits(4), place + 64, false)?;
        let held = [5, 64].map(|index| hold(world.page(place + index).folio()));
        layout::delete_range(file.mapping(), PageRange::ALL);
        check_eq!(file.nrpages(), 0);
        for (index, order) in [(5, Order::PTE), (64, Order::from_bits(4))] {
            let folio = world.page(place + index).folio();
            check_eq!((folio.refcount(), folio.owner()), (1, 0));
            check_eq!(folio.order(), order);
        }
        drop(held);
        // The next caller splits it.
        put(&file, 64, Order::PTE, place + 64, false)?;
        clear(&file);
        world.check_clean()
    }
}
