// SPDX-License-Identifier: GPL-2.0

//! Who is busy, breaking a layout, and removing entries (spec, section 5).

use kernel::prelude::*;

#[kunit_tests(rdax_layout)]
mod tests {
    use crate::{
        dax::{
            folio,
            layout::{self, Patience},
            stats::Counter,
            tree,
        },
        kern::{
            entry::Kind,
            fs::PageRange,
            order::Order,
            testing::{
                callbacks, hold, until, wait_callback, with_thread, with_thread_waiting,
                with_threads, Checked, File, Flushes, Holds, Share, TestExtent, View,
            },
            xa::Mark,
        },
        tests::helpers::*,
    };
    use kernel::prelude::*;

    const PMD: usize = Order::PMD.pages();

    fn patient() -> Patience {
        Patience::Callback(wait_callback())
    }

    #[test]
    fn busy_exactly_when_referenced_beyond_the_map_count() -> Checked {
        let world = world()?;
        for order in [Order::PTE, Order::PMD] {
            let file = world.file(2 * PMD)?;
            let place = world.take(order)?;
            put(&file, 0, order, place, false)?;
            let folio = world.page(place).folio();
            check!(layout::busy_folio(file.mapping(), PageRange::ALL).is_none());
            let held = hold(folio);
            check!(layout::busy_folio(file.mapping(), PageRange::ALL) == Some(folio));
            // A part of a large entry is all of it, and what is behind it is not.
            check!(layout::busy_folio(file.mapping(), range(0, 0)) == Some(folio));
            let last = order.pages() - 1;
            check!(layout::busy_folio(file.mapping(), range(last, last)) == Some(folio));
            check!(layout::busy_folio(file.mapping(), range(last + 1, last + 9)).is_none());
            drop(held);
            check!(layout::busy_folio(file.mapping(), PageRange::ALL).is_none());
            clear(&file);
        }
        world.check_clean()
    }

    #[test]
    fn the_first_of_several_is_told_of() -> Checked {
        let world = world()?;
        let file = world.file(8)?;
        let place = world.take_many(8, Order::PTE)?;
        for index in 0..8 {
            put(&file, index, Order::PTE, place + index, false)?;
        }
        let folio = |index: usize| world.page(place + index).folio();
        let held = [2, 3, 6].map(|index| hold(folio(index)));
        let busy = |first| layout::busy_folio(file.mapping(), range(first, 7));
        check!(busy(0) == Some(folio(2)));
        check!(busy(3) == Some(folio(3)));
        check!(busy(4) == Some(folio(6)));
        check!(busy(7).is_none());
        drop(held);
        clear(&file);
        world.check_clean()
    }

    /// Breaks the layout of a file with two busy pages, which become idle one after the other.
    fn break_with_two_busy(work: impl Fn(&File<'_>) -> Result + Sync) -> Checked {
        let world = world()?;
        let file = world.file(2)?;
        let place = world.take_many(2, Order::PTE)?;
        for index in 0..2 {
            put(&file, index, Order::PTE, place + index, true)?;
        }
        let (one, two) = (
            hold(world.page(place).folio()),
            hold(world.page(place + 1).folio()),
        );
        let (result, seen) = with_thread(
            || work(&file),
            |thread| {
                let waited = thread.waits();
                drop(one);
                let still = thread.waits();
                let pages = file.nrpages();
                drop(two);
                (waited, still, pages)
            },
        )?;
        check_eq!(seen, (true, true, 2));
        check_eq!(result, Ok(()));
        check_eq!(file.nrpages(), 0);
        world.check_clean()
    }

    #[test]
    fn all_that_are_busy_are_waited_for() -> Checked {
        break_with_two_busy(|file| layout::break_layout(file.inode(), PageRange::ALL, patient()))?;
        break_with_two_busy(|file| {
            layout::break_layout_final(file.inode());
            Ok(())
        })
    }

    #[test]
    fn looking_for_who_is_busy_unmaps_first() -> Checked {
        let world = world()?;
        let file = world.file(PMD)?;
        let place = world.take(Order::PMD)?;
        file.set_extents(&[TestExtent::mapped(0, PMD, place)])?;
        let view = View::new(&file, 0, PMD, Share::Shared, 0)?;
        view.store(3, 7)?;
        check!(view.mapped(3).is_some());
        let folio = world.page(place).folio();
        check_eq!(folio.refcount(), 1);
        check_eq!(folio.mapcount(), 1);
        check!(layout::busy_folio(file.mapping(), range(3, 3)).is_none());
        check!(view.mapped(3).is_none());
        check_eq!(folio.refcount(), 0);
        check_eq!(view.load(3)?, 7);
        // Whoever pins it through the mapping is seen.
        let pin = view.pin(3, true);
        check!(pin.is_some());
        check!(layout::busy_folio(file.mapping(), range(3, 3)) == Some(folio));
        drop(pin);
        check!(layout::busy_folio(file.mapping(), range(3, 3)).is_none());
        drop(view);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn what_another_file_has_mapped_is_not_busy() -> Checked {
        let world = world()?;
        let (a, b) = (world.file(1)?, world.file(1)?);
        let place = world.take(Order::PTE)?;
        for file in [&a, &b] {
            file.set_extents(&[TestExtent::mapped(0, 1, place).shared()])?;
        }
        let view = View::new(&b, 0, 1, Share::Shared, 0)?;
        view.load(0)?;
        put_shared(&a, 0, Order::PTE, place, false, true)?;
        let folio = world.page(place).folio();
        check_eq!(folio.share(), 2);
        check_eq!(folio.refcount(), 1);
        check!(layout::busy_folio(a.mapping(), PageRange::ALL).is_none());
        check_eq!(
            layout::break_layout(a.inode(), PageRange::ALL, Patience::None),
            Ok(())
        );
        check!(view.mapped(0).is_some());
        check_eq!(folio.refcount(), 1);
        drop(view);
        clear(&b);
        world.check_clean()
    }

    #[test]
    fn without_patience_the_first_busy_page_is_an_error() -> Checked {
        let world = world()?;
        let file = world.file(8)?;
        let place = world.take_many(8, Order::PTE)?;
        for index in 0..8 {
            put(&file, index, Order::PTE, place + index, false)?;
        }
        let held = hold(world.page(place + 5).folio());
        let result = layout::break_layout(file.inode(), PageRange::ALL, Patience::None);
        check_eq!(result, Err(ERESTARTSYS));
        check_eq!(file.nrpages(), 8, "entries were removed");
        // The range decides.
        let result = layout::break_layout(file.inode(), range(0, 3), Patience::None);
        check_eq!(result, Ok(()));
        check_eq!(file.nrpages(), 4);
        drop(held);
        let result = layout::break_layout(file.inode(), PageRange::ALL, Patience::None);
        check_eq!(result, Ok(()));
        check_eq!(file.nrpages(), 0);
        world.check_clean()
    }

    #[test]
    fn breaking_waits_by_the_callback_until_the_page_is_idle() -> Checked {
        let world = world()?;
        for order in [Order::PTE, Order::PMD] {
            let file = world.file(PMD)?;
            let place = world.take(order)?;
            put(&file, 0, order, place, true)?;
            let held = hold(world.page(place).folio());
            let (calls, waits) = (callbacks(), count(Counter::LayoutWaits));
            let waited_ns = count(Counter::LayoutWaitNs);
            let (result, seen) = with_thread(
                || layout::break_layout(file.inode(), PageRange::ALL, patient()),
                |thread| {
                    let waited = thread.waits();
                    // At first with faults kept out.
                    let called = until(|| callbacks() > calls);
                    let pages = file.nrpages();
                    drop(held);
                    (waited, called, pages)
                },
            )?;
            check_eq!(seen, (true, true, order.pages()));
            check_eq!(result, Ok(()));
            check_eq!(count(Counter::LayoutWaits), waits + 1);
            // It was looked at for longer than that.
            check!(count(Counter::LayoutWaitNs) - waited_ns >= 20_000_000);
            check_eq!(file.nrpages(), 0);
        }
        world.check_clean()
    }

    #[test]
    fn a_signal_ends_the_wait_and_nothing_is_removed() -> Checked {
        let world = world()?;
        let file = world.file(4)?;
        let place = world.take_many(4, Order::PTE)?;
        for index in 0..4 {
            put(&file, index, Order::PTE, place + index, true)?;
        }
        for fatal in [false, true] {
            let held = hold(world.page(place + 2).folio());
            let (result, waited) = with_thread(
                || layout::break_layout(file.inode(), PageRange::ALL, patient()),
                |thread| {
                    let waited = thread.waits();
                    thread.signal(fatal);
                    waited
                },
            )?;
            check!(waited);
            check_eq!(result, Err(ERESTARTSYS));
            check_eq!(file.nrpages(), 4);
            check!((0..4).all(|index| is_marked(&file, index, Mark::Dirty)));
            drop(held);
        }
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn the_final_break_waits_through_signals() -> Checked {
        let world = world()?;
        let file = world.file(1)?;
        let place = world.take(Order::PTE)?;
        put(&file, 0, Order::PTE, place, false)?;
        let held = hold(world.page(place).folio());
        let ((), seen) = with_thread(
            || layout::break_layout_final(file.inode()),
            |thread| {
                let waited = thread.waits();
                thread.signal(false);
                thread.signal(true);
                let still = thread.waits();
                let pages = file.nrpages();
                drop(held);
                (waited, still, pages)
            },
        )?;
        check_eq!(seen, (true, true, 1));
        check_eq!(file.nrpages(), 0);
        world.check_clean()
    }

    #[test]
    fn who_waits_for_a_page_of_a_device_that_goes_ends() -> Checked {
        let result = (|| {
            let world = world()?;
            let (file, last) = (world.file(2)?, world.file(1)?);
            let place = world.take_many(3, Order::PTE)?;
            put(&file, 0, Order::PTE, place, true)?;
            put(&last, 0, Order::PTE, place + 2, true)?;
            let held = [0, 2].map(|at| hold(world.page(place + at).folio()));
            let (results, (waited, retired)) = with_threads(
                3,
                |number| match number {
                    // A truncate, a file that is being evicted, and one that is, later.
                    0 => layout::break_layout(file.inode(), PageRange::ALL, patient()),
                    _ => {
                        layout::break_layout_final(last.inode());
                        Ok(())
                    }
                },
                |threads| {
                    let waited = threads.iter().all(|thread| thread.waits());
                    // Comes back when nobody looks at the pages any more.
                    let retired = adopted().map(|device| {
                        if let Some(device) = &*device.lock() {
                            device.retire();
                        }
                    });
                    (waited, retired)
                },
            )?;
            retired?;
            check!(waited);
            check_eq!(results.first(), Some(&Err(EIO)));
            // What the one has left goes with its file, and the holder is the device's to wait for.
            check!(look(&file, 0).is_some());
            check!(look(&last, 0).is_none());
            check_eq!(
                layout::break_layout(file.inode(), PageRange::ALL, patient()),
                Err(EIO)
            );
            layout::break_layout_final(file.inode());
            check_eq!(file.nrpages(), 0);
            check_eq!(world.page(place).folio().refcount(), 1);
            drop(held);
            world.check_clean()
        })();
        // For the others, as if another device had come.
        release()?;
        result
    }

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
        // What is held of it outside of the range is waited for.
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
    fn a_file_without_dax_is_left_alone() -> Checked {
        let world = world()?;
        let file = world.file(1)?;
        let place = world.take(Order::PTE)?;
        put(&file, 0, Order::PTE, place, false)?;
        let held = hold(world.page(place).folio());
        file.set_dax(false);
        check!(layout::busy_folio(file.mapping(), PageRange::ALL).is_none());
        let result = layout::break_layout(file.inode(), PageRange::ALL, Patience::None);
        check_eq!(result, Ok(()));
        layout::break_layout_final(file.inode());
        check_eq!(file.nrpages(), 1);
        file.set_dax(true);
        drop(held);
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
        let mut locked = lock(&file, 2, Order::PTE)?;
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
                    // What is dirty is removed without the lock.
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
        // Whoever comes next takes it apart.
        put(&file, 64, Order::PTE, place + 64, false)?;
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn a_device_that_goes_away_takes_its_entries_with_it() -> Checked {
        let world = world()?;
        let file = world.file(2 * PMD)?;
        let place = world.take_many(2 * PMD, Order::PMD)?;
        file.set_extents(&[TestExtent::mapped(0, PMD, place)])?;
        let view = View::new(&file, 0, PMD, Share::Shared, 0)?;
        view.store(0, 1)?;
        check!(view.mapped(0).is_some_and(|mapped| mapped.order == 9));
        put_zero(&file, PMD, Order::PTE)?;
        let held = hold(world.page(place).folio());
        let memory = [world.run(place, PMD)];
        let ((), (evicted, waited)) = with_thread(
            || {
                layout::evict_device_memory(file.inode(), false);
                folio::wait_until_unused(&memory);
            },
            |thread| {
                // Whoever holds a page may need another one of the same entry to go on.
                let evicted = until(|| look(&file, 0).is_none()) && view.mapped(0).is_none();
                let waited = thread.waits();
                thread.signal(true);
                let still = thread.waits();
                drop(held);
                (evicted, waited && still)
            },
        )?;
        check!(evicted);
        check!(waited);
        check!(view.mapped(0).is_none());
        drop(view);
        check_eq!(world.page(place).folio().order(), Order::PTE);
        // Holes need no memory.
        check!(look(&file, 0).is_none());
        check!(look(&file, PMD).is_some_and(|(entry, _)| entry.kind() == Kind::Zero));
        clear(&file);
        world.check_clean()
    }
}
