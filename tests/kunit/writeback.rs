// SPDX-License-Identifier: GPL-2.0

//! Write-back (spec, section 5 and R5).

use kernel::prelude::*;

#[kunit_tests(rdax_writeback)]
mod tests {
    use crate::{
        dax::{
            layout,
            stats::Counter,
            tree,
            writeback::{self, Request},
        },
        kern::{
            fs::PageRange,
            order::Order,
            testing::{
                hold, note, until, with_thread, with_thread_waiting, Calls, Checked, File, Flushes,
                Share, TestExtent, View,
            },
            xa::Mark,
        },
        tests::helpers::*,
    };
    use kernel::{
        prelude::*,
        sync::atomic::{Acquire, Atomic, Release},
    };

    const PMD: usize = Order::PMD.pages();

    #[test]
    fn first_write_protected_then_flushed_then_clean() -> Checked {
        for order in [Order::PTE, Order::PMD, Order::PUD] {
            let world = world()?;
            let Some((file, place)) = mapped_file(&world, order)? else {
                continue;
            };
            let page = order.pages() - 1;
            let view = View::new(&file, 0, order.pages(), Share::Shared, 0)?;
            view.store(page, 1)?;
            check!(is_marked(&file, page, Mark::Dirty));
            let entries = count(Counter::WritebackEntries);
            {
                let flushes = Flushes::watch(&file, page, view.address(page))?;
                check_eq!(write_back(&file, PageRange::ALL), Ok(order.pages()));
                check!(flushes.covers(world.pfn(place), order));
                for flush in flushes.iter() {
                    check!(!flush.writable, "flushed while it could be written to");
                    check!(flush.dirty, "clean before it was flushed");
                }
            }
            check_eq!(count(Counter::WritebackEntries), entries + 1);
            check!(!is_marked(&file, page, Mark::Dirty));
            check!(!is_marked(&file, page, Mark::ToWrite));
            check!(view.mapped(page).is_none_or(|mapped| !mapped.writable));
            drop(view);
            clear(&file);
            world.check_clean()?;
        }
        Ok(())
    }

    #[test]
    fn what_somebody_holds_stays_dirty() -> Checked {
        for order in [Order::PTE, Order::PMD, Order::PUD] {
            let world = world()?;
            let Some((file, place)) = mapped_file(&world, order)? else {
                continue;
            };
            let page = order.pages() - 1;
            let view = View::new(&file, 0, order.pages(), Share::Shared, 0)?;
            view.store(page, 1)?;
            let held = hold(world.page(place).folio());
            let flushes = Flushes::watch(&file, page, view.address(page))?;
            // Mapped, and not any more.
            for round in 1..=2 {
                let before = flushes.count();
                // What stays dirty is no progress for who syncs.
                check_eq!(write_back(&file, PageRange::ALL), Ok(0));
                check!(flushes.count() > before);
                check!(is_marked(&file, page, Mark::Dirty), "round {round}");
                // A sync meanwhile writes it back once more.
                check!(is_marked(&file, page, Mark::ToWrite));
                check!(look(&file, page).is_some_and(|(_, locked)| !locked));
                file.mapping().unmap(PageRange::ALL);
            }
            drop(held);
            check_eq!(write_back(&file, PageRange::ALL), Ok(order.pages()));
            check!(!is_marked(&file, page, Mark::Dirty));
            check_eq!(write_back(&file, PageRange::ALL), Ok(0));
            drop((flushes, view));
            clear(&file);
            world.check_clean()?;
        }
        Ok(())
    }

    #[test]
    fn of_a_run_only_what_is_held_stays_dirty() -> Checked {
        let world = world()?;
        let (file, place) = straight_file(&world, 64)?;
        let view = View::new(&file, 0, 64, Share::Shared, 1)?;
        // Each page has an entry of its own.
        view.set_random();
        for page in 0..64 {
            view.store(page, 1)?;
        }
        let held = [0, 7, 8, 63];
        let holders = held.map(|page| hold(world.page(place + page).folio()));
        check_eq!(write_back(&file, PageRange::ALL), Ok(64 - held.len()));
        for page in 0..64 {
            check_eq!(
                is_marked(&file, page, Mark::Dirty),
                held.contains(&page),
                "page {page}"
            );
        }
        drop(holders);
        check_eq!(write_back(&file, PageRange::ALL), Ok(held.len()));
        for page in 0..64 {
            check!(!is_marked(&file, page, Mark::Dirty));
        }
        drop(view);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn every_mapping_of_the_whole_entry_is_protected() -> Checked {
        let world = world()?;
        let Some((file, _)) = mapped_file(&world, Order::PMD)? else {
            return Ok(());
        };
        let large = View::new(&file, 0, PMD, Share::Shared, 0)?;
        large.store(0, 1)?;
        // Small ones of the same entry, at both ends.
        let small = View::new(&file, 0, PMD, Share::Shared, 1)?;
        small.store(0, 2)?;
        small.store(PMD - 1, 3)?;
        check_eq!(write_back(&file, range(7, 7)), Ok(PMD));
        check!(large.mapped(0).is_none_or(|mapped| !mapped.writable));
        for page in [0, PMD - 1] {
            check!(small.mapped(page).is_none_or(|mapped| !mapped.writable));
        }
        check!(!is_marked(&file, 0, Mark::Dirty));
        drop((large, small));
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn a_store_after_it_is_dirty_again_and_flushed_again() -> Checked {
        for (order, counter) in [
            (Order::PTE, Counter::MkwritePte),
            (Order::PMD, Counter::MkwritePmd),
        ] {
            let world = world()?;
            let Some((file, place)) = mapped_file(&world, order)? else {
                continue;
            };
            let view = View::new(&file, 0, order.pages(), Share::Shared, 0)?;
            view.store(0, 1)?;
            check_eq!(write_back(&file, PageRange::ALL), Ok(order.pages()));
            check_eq!(write_back(&file, PageRange::ALL), Ok(0));
            let before = count(counter);
            view.store(0, 2)?;
            check_eq!(count(counter), before + 1);
            check!(is_marked(&file, 0, Mark::Dirty));
            let flushes = Flushes::watch(&file, 0, 0)?;
            check_eq!(write_back(&file, PageRange::ALL), Ok(order.pages()));
            check!(flushes.covers(world.pfn(place), order));
            drop((flushes, view));
            clear(&file);
            world.check_clean()?;
        }
        Ok(())
    }

    /// Has one thread store to a page as soon as another writes its entry back, and returns whether
    /// the store began in time.
    fn store_during(file: &File<'_>, order: Order, place: usize, round: u64) -> Checked<bool> {
        let ready = Atomic::new(false);
        let flushes = Flushes::watch(file, 0, 0)?;
        let work = || -> Checked<bool> {
            let view = View::new(file, 0, order.pages(), Share::Shared, 0)?;
            view.store(0, round)?;
            ready.store(true, Release);
            while flushes.count() == 0 {
                core::hint::spin_loop();
            }
            let locked = look(file, 0).is_some_and(|(_, locked)| locked);
            view.store(0, !round)?;
            Ok(locked)
        };
        let (result, written) = with_thread(work, |_| {
            until(|| ready.load(Acquire)).then(|| write_back(file, PageRange::ALL))
        })?;
        check_eq!(written, Some(Ok(order.pages())));
        drop(flushes);
        check!(
            is_marked(file, 0, Mark::Dirty),
            "round {round} is forgotten"
        );
        let flushes = Flushes::watch(file, 0, 0)?;
        check_eq!(write_back(file, PageRange::ALL), Ok(order.pages()));
        check!(flushes.covers(file.world().pfn(place), order));
        result
    }

    #[test]
    fn what_is_stored_during_it_stays_dirty() -> Checked {
        for (order, rounds) in [(Order::PTE, 20), (Order::PMD, 20), (Order::PUD, 2)] {
            let world = world()?;
            let Some((file, place)) = mapped_file(&world, order)? else {
                continue;
            };
            let mut during = 0;
            for round in 0..rounds {
                during += usize::from(store_during(&file, order, place, round)?);
            }
            note(fmt!(
                "order {}: {during} of {rounds} stores began while the entry was locked",
                order.bits()
            ));
            clear(&file);
            world.check_clean()?;
        }
        Ok(())
    }

    #[test]
    fn a_locked_entry_is_waited_for_and_one_that_goes_away_is_left_out() -> Checked {
        let world = world()?;
        let file = world.file(4)?;
        let place = world.take_many(2, Order::PTE)?;
        put(&file, 0, Order::PTE, place, true)?;
        put(&file, 1, Order::PTE, place + 1, true)?;
        let held = tree::lock_present(file.mapping(), at(0));
        let (written, waited) = with_thread_waiting(
            || write_back(&file, PageRange::ALL),
            || {
                drop(held);
            },
        )?;
        check!(waited);
        check_eq!(written, Ok(2));
        for index in [0, 1] {
            drop(lock_entry(file.mapping(), at(index), Order::PTE, true));
        }
        let held = tree::lock_present(file.mapping(), at(0));
        let (written, waited) = with_thread_waiting(
            || write_back(&file, PageRange::ALL),
            || {
                if let Some(held) = held {
                    layout::discard(held);
                }
            },
        )?;
        check!(waited);
        check_eq!(written, Ok(1));
        check_eq!(file.nrpages(), 1);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn only_the_range_is_written_back_but_all_of_its_entries() -> Checked {
        let world = world()?;
        let file = world.file(3 * PMD)?;
        let place = world.take_many(3 * PMD, Order::PMD)?;
        put(&file, 0, Order::PTE, place, true)?;
        put(&file, PMD, Order::PMD, place + PMD, true)?;
        put(&file, 2 * PMD, Order::PTE, place + 2 * PMD, true)?;
        let flushes = Flushes::watch(&file, PMD, 0)?;
        check_eq!(write_back(&file, range(PMD + 9, PMD + 10)), Ok(PMD));
        check!(flushes.covers(world.pfn(place + PMD), Order::PMD));
        check!(!flushes.covers(world.pfn(place), Order::PTE));
        drop(flushes);
        let dirty = [0, PMD, 2 * PMD].map(|index| is_marked(&file, index, Mark::Dirty));
        check_eq!(dirty, [true, false, true]);
        let chosen = [0, PMD, 2 * PMD].map(|index| is_marked(&file, index, Mark::ToWrite));
        check_eq!(chosen, [false; 3]);
        check_eq!(write_back(&file, PageRange::ALL), Ok(2));
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn nothing_is_flushed_that_is_clean_or_not_waited_for() -> Checked {
        let world = world()?;
        let file = world.file(2)?;
        check_eq!(write_back(&file, PageRange::ALL), Ok(0));
        let place = world.take_many(2, Order::PTE)?;
        put(&file, 0, Order::PTE, place, false)?;
        put(&file, 1, Order::PTE, place + 1, true)?;
        let flushes = Flushes::watch(&file, 0, 0)?;
        let request = Request {
            range: PageRange::ALL,
            sync: false,
        };
        let result = writeback::writeback(file.mapping(), world.dax(), &request);
        check_eq!(result, Ok(0));
        check_eq!(flushes.count(), 0);
        check!(is_marked(&file, 1, Mark::Dirty));
        check_eq!(write_back(&file, PageRange::ALL), Ok(1));
        check!(!flushes.covers(world.pfn(place), Order::PTE));
        check!(flushes.covers(world.pfn(place + 1), Order::PTE));
        drop(flushes);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn blocks_that_are_not_pages_are_an_error_that_fsync_sees() -> Checked {
        let world = world()?;
        let file = world.file(1)?;
        let place = world.take(Order::PTE)?;
        put(&file, 0, Order::PTE, place, true)?;
        file.set_block_bits(10);
        check_eq!(write_back(&file, PageRange::ALL), Err(EIO));
        check_eq!(file.take_error(), EIO.to_errno());
        check!(is_marked(&file, 0, Mark::Dirty));
        file.set_block_bits(12);
        check_eq!(write_back(&file, PageRange::ALL), Ok(1));
        check_eq!(file.take_error(), 0);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn entries_side_by_side_are_protected_and_flushed_together() -> Checked {
        let world = world()?;
        let (file, place) = straight_file(&world, 64)?;
        let view = View::new(&file, 0, 64, Share::Shared, 0)?;
        view.set_random();
        // Page 6 is there, mapped and clean.
        view.load(6)?;
        for page in [2, 3, 4, 5, 7, 8, 9] {
            view.store(page, 1)?;
        }
        let entries = count(Counter::WritebackEntries);
        let protects = Calls::watch(c"mapping_wrprotect_range")?;
        let flushes = Flushes::watch(&file, 0, view.address(3))?;
        check_eq!(write_back(&file, PageRange::ALL), Ok(7));
        check_eq!(protects.count(), 2);
        check!(flushes.are(&[(world.pfn(place + 2), 4), (world.pfn(place + 7), 3)]));
        check!(flushes.iter().all(|flush| !flush.writable));
        check_eq!(count(Counter::WritebackEntries), entries + 7);
        drop((protects, flushes));
        check_eq!(marked_pages(&file, 64, Mark::Dirty), 0);
        check!((0..64).all(|page| view.mapped(page).is_none_or(|mapped| !mapped.writable)));
        drop(view);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn entries_whose_memory_lies_apart_are_all_protected() -> Checked {
        let world = world()?;
        let file = world.file(12)?;
        let place = world.take_many(64, Order::PMD)?;
        file.set_extents(&[
            TestExtent::mapped(0, 4, place),
            TestExtent::mapped(4, 4, place + 40),
            TestExtent::mapped(8, 4, place + 20),
        ])?;
        let view = View::new(&file, 0, 12, Share::Shared, 0)?;
        view.set_random();
        for page in 0..12 {
            view.store(page, 1)?;
        }
        let protects = Calls::watch(c"mapping_wrprotect_range")?;
        let flushes = Flushes::watch(&file, 0, view.address(9))?;
        check_eq!(write_back(&file, PageRange::ALL), Ok(12));
        check_eq!(protects.count(), 3);
        let pieces = [place, place + 40, place + 20].map(|place| (world.pfn(place), 4));
        check!(flushes.are(&pieces));
        check!(flushes.iter().all(|flush| !flush.writable));
        drop((protects, flushes));
        for page in 0..12 {
            let mapped = view.mapped(page);
            check!(mapped.is_some_and(|mapped| !mapped.writable), "page {page}");
        }
        drop(view);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn what_is_not_mapped_needs_no_protection() -> Checked {
        let world = world()?;
        let (file, place) = straight_file(&world, 64)?;
        for index in 0..10 {
            put(&file, index, Order::PTE, place + index, true)?;
        }
        let protects = Calls::watch(c"mapping_wrprotect_range")?;
        let flushes = Flushes::watch(&file, 0, 0)?;
        check_eq!(write_back(&file, PageRange::ALL), Ok(10));
        check_eq!(protects.count(), 0);
        check!(flushes.are(&[(world.pfn(place), 10)]));
        drop((protects, flushes));
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn one_that_is_mapped_among_others_is_protected_or_unmapped() -> Checked {
        let world = world()?;
        let (file, place) = straight_file(&world, 64)?;
        for page in [0, 3, 9] {
            for index in 0..10 {
                put(&file, index, Order::PTE, place + index, true)?;
            }
            let view = View::new(&file, 0, 64, Share::Shared, 0)?;
            view.set_random();
            view.store(page, 1)?;
            let protects = Calls::watch(c"mapping_wrprotect_range")?;
            let flushes = Flushes::watch(&file, page, view.address(page))?;
            check_eq!(write_back(&file, PageRange::ALL), Ok(10));
            check_eq!(protects.count(), 1);
            check!(flushes.are(&[(world.pfn(place), 10)]));
            check!(flushes.iter().all(|flush| !flush.writable));
            check!(view.mapped(page).is_some_and(|mapped| !mapped.writable));
            drop((protects, flushes));
            view.store(page, 2)?;
            let flushes = Flushes::watch(&file, page, view.address(page))?;
            layout::delete_range(file.mapping(), PageRange::ALL);
            check!(flushes.iter().all(|flush| !flush.writable));
            drop(flushes);
            check!(view.mapped(page).is_none());
            drop(view);
            world.check_clean()?;
        }
        Ok(())
    }

    #[test]
    fn a_flush_ends_at_a_gap_in_file_or_memory_and_with_the_node() -> Checked {
        let world = world()?;
        let (file, place) = straight_file(&world, 256)?;
        // Entries of all sizes below that of a node.
        put(&file, 0, Order::from_bits(2), place, true)?;
        put(&file, 4, Order::PTE, place + 4, true)?;
        put(&file, 5, Order::PTE, place + 5, true)?;
        put(&file, 8, Order::from_bits(3), place + 8, true)?;
        // The next page in the file is another's in memory.
        put(&file, 16, Order::PTE, place + 200, true)?;
        put_zero(&file, 17, Order::PTE)?;
        put(&file, 18, Order::PTE, place + 18, true)?;
        for index in 60..70 {
            put(&file, index, Order::PTE, place + index, true)?;
        }
        // Larger ones are by themselves.
        put(&file, 128, Order::from_bits(6), place + 128, true)?;
        let flushes = Flushes::watch(&file, 0, 0)?;
        check_eq!(write_back(&file, PageRange::ALL), Ok(6 + 8 + 2 + 10 + 64));
        let wanted = [
            (0, 6),
            (8, 8),
            (200, 1),
            (18, 1),
            (60, 4),
            (64, 6),
            (128, 64),
        ]
        .map(|(first, pages)| (world.pfn(place + first), pages));
        check!(flushes.are(&wanted));
        drop(flushes);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn a_locked_entry_ends_what_is_flushed_together() -> Checked {
        let world = world()?;
        let (file, place) = straight_file(&world, 64)?;
        for index in 0..8 {
            put(&file, index, Order::PTE, place + index, true)?;
        }
        let held = tree::lock_present(file.mapping(), at(3));
        let flushes = Flushes::watch(&file, 0, 0)?;
        let (written, (waited, before)) = with_thread(
            || write_back(&file, PageRange::ALL),
            |thread| {
                let waited = thread.waits();
                let before = (
                    flushes.are(&[(world.pfn(place), 3)]),
                    marked_pages(&file, 64, Mark::Dirty),
                );
                drop(held);
                (waited, before)
            },
        )?;
        check!(waited);
        check_eq!(before, (true, bits(3, 7)));
        check_eq!(written, Ok(8));
        check!(flushes.are(&[(world.pfn(place), 3), (world.pfn(place + 3), 5)]));
        drop(flushes);
        check_eq!(marked_pages(&file, 64, Mark::Dirty), 0);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn of_many_written_back_what_is_stored_to_meanwhile_stays_dirty() -> Checked {
        const PAGES: usize = 40;
        let world = world()?;
        set_write_order(Order::PTE)?;
        let (file, place) = straight_file(&world, 64)?;
        for round in 0..10 {
            let page = 5 + 3 * round;
            let ready = Atomic::new(false);
            let flushes = Flushes::watch(&file, 0, 0)?;
            let work = || -> Checked {
                let view = View::new(&file, 0, 64, Share::Shared, 0)?;
                for page in 0..PAGES {
                    view.store(page, 1)?;
                }
                ready.store(true, Release);
                until(|| flushes.count() != 0);
                Ok(view.store(page, 2)?)
            };
            let (stored, written) = with_thread(work, |_| {
                until(|| ready.load(Acquire)).then(|| write_back(&file, PageRange::ALL))
            })?;
            stored?;
            check!(written.is_some_and(|written| written.is_ok_and(|pages| pages >= PAGES)));
            drop(flushes);
            // That one; the others are clean.
            check_eq!(marked_pages(&file, 64, Mark::Dirty), bits(page, page));
            let flushes = Flushes::watch(&file, page, 0)?;
            check_eq!(write_back(&file, PageRange::ALL), Ok(1));
            check!(flushes.are(&[(world.pfn(place + page), 1)]));
        }
        clear(&file);
        world.check_clean()
    }
}
