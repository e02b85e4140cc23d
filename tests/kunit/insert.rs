// SPDX-License-Identifier: GPL-2.0

//! The traces of an insertion in page tables and counts, and that none is left when the entries
//! are gone (spec, section 11).

use kernel::prelude::*;

#[kunit_tests(rdax_insert)]
mod tests {
    use crate::{
        kern::{
            order::Order,
            page::DevFolio,
            testing::{
                failed, pause, until, with_thread_waiting, without_memory, without_tables, Checked,
                Counts, Entries, File, Share, View,
            },
            vm::FaultCode,
            xa::Mark,
        },
        tests::helpers::*,
    };
    use kernel::prelude::*;

    const PMD: usize = Order::PMD.pages();

    /// References and map count of a folio.
    fn users(folio: DevFolio<'_>) -> (i32, i32) {
        (folio.refcount(), folio.mapcount())
    }

    /// A change of the counts: pages of the task, of the node, and of the node by 2 MiB.
    fn change(resident: usize, mapped: usize, mapped_by_pmd: usize) -> Counts {
        Counts {
            resident: resident as isize,
            mapped: mapped as isize,
            mapped_by_pmd: mapped_by_pmd as isize,
        }
    }

    /// Does `work`, after which the counts have changed as said and those of the folio are that. Other
    /// tasks map files, too: what the node's counts say must be true once in some attempts, between
    /// which `undo` is done.
    fn counted(
        folio: DevFolio<'_>,
        expected: Counts,
        used: (i32, i32),
        mut work: impl FnMut() -> Checked,
        mut undo: impl FnMut() -> Checked,
    ) -> Checked {
        const ATTEMPTS: usize = 20;
        let head = folio.head();
        let mut found = expected;
        for _ in 0..ATTEMPTS {
            let before = Counts::now(head);
            work()?;
            found = Counts::since(head, before);
            check_eq!(users(folio), used);
            if found == expected {
                return Ok(());
            }
            check_eq!(found.resident, expected.resident);
            undo()?;
        }
        check_eq!(found, expected);
        Ok(())
    }

    #[test]
    fn a_table_waits_for_those_who_may_have_seen_1g_in_its_place() -> Checked {
        let mut entries =
            Entries::new().map_err(|_| failed(file!(), line!(), fmt!("no memory")))?;
        let removal = entries.begin_removal(0);
        let table = entries.table(0);
        let (made, waited) = with_thread_waiting(|| table.make(), || removal.end())?;
        check!(made && waited);
        check!(!table.is_made());
        // Nobody has been in the other place.
        check!(entries.table(1).make());
        Ok(())
    }

    #[test]
    fn a_table_need_not_wait_for_a_grace_period() -> Checked {
        let new = || Entries::new().map_err(|_| failed(file!(), line!(), fmt!("no memory")));
        let mut entries = new()?;
        // Nobody reads page tables under the lock: whoever wants the table sees to that.
        entries.begin_removal(0).end();
        check!(entries.was_removed(0));
        check!(entries.table(0).make());
        check!(!entries.was_removed(0));
        // Somebody does.
        entries.begin_removal(0).end();
        let table = entries.table(0);
        let made = entries.with_lock(false, || {
            check!(entries.was_removed(0));
            with_thread_waiting(|| table.make(), || ())
        });
        let (_, waited) = made?;
        check!(waited);
        // Somebody has had the lock for writing.
        let mut entries = new()?;
        entries.begin_removal(0).end();
        entries.with_lock(true, || ());
        check!(!entries.was_removed(0));
        // And has it now.
        let entry = entries.begin_removal(1);
        check!(entries.was_removed(1));
        entries.with_lock(true, || {
            check!(!entries.was_removed(1));
            entry.end();
            Ok(())
        })?;
        check!(!entries.was_removed(1));
        Ok(())
    }

    #[test]
    fn of_each_entry_of_1g_that_is_unmapped_one_is_remembered() -> Checked {
        check!(until(|| Entries::remembered() == 0), "those before");
        let mut entries =
            Entries::new().map_err(|_| failed(file!(), line!(), fmt!("no memory")))?;
        for _ in 0..100 {
            entries.begin_removal(0).end();
            let (one, other) = (entries.begin_removal(1), entries.begin_removal(1));
            one.end();
            other.end();
            check!(Entries::remembered() <= 2);
        }
        check!(until(|| Entries::remembered() == 0), "these");
        // With the lock for writing none is.
        let removal = entries.begin_removal(0);
        entries.with_lock(true, || removal.end());
        check_eq!(Entries::remembered(), 0);
        Ok(())
    }

    #[test]
    fn no_table_is_made_where_1g_was_unmapped_a_moment_ago() -> Checked {
        let check_is_past = |entries: &Entries| -> Checked {
            check!(until(|| !entries.was_removed(0)), "the first");
            check!(!entries.was_removed(1), "the second");
            Ok(())
        };
        let mut entries =
            Entries::new().map_err(|_| failed(file!(), line!(), fmt!("no memory")))?;
        let other = Entries::new().map_err(|_| failed(file!(), line!(), fmt!("no memory")))?;
        check!(!entries.was_removed(0));
        let removal = entries.begin_removal(0);
        // Until it is over, and for a while afterwards; in this place alone.
        pause(100);
        check!(entries.was_removed(0));
        check!(!entries.was_removed(1));
        check!(!other.was_removed(0));
        let again = entries.begin_removal(0);
        removal.end();
        pause(100);
        check!(entries.was_removed(0));
        again.end();
        check_is_past(&entries)?;
        // Where cannot be told without memory, so all whose places have the same hash wait; neighbours never do.
        let removal = without_memory(|| entries.begin_removal(0));
        check!(entries.was_removed(0) && !entries.was_removed(1));
        let again = without_memory(|| entries.begin_removal(0));
        let next = without_memory(|| entries.begin_removal(1));
        removal.end();
        pause(100);
        check!(entries.was_removed(0) && entries.was_removed(1));
        again.end();
        check!(entries.was_removed(0), "until the grace period is over");
        check!(until(|| !entries.was_removed(0)), "without memory");
        check!(entries.was_removed(1));
        next.end();
        check!(
            until(|| !entries.was_removed(1)),
            "without memory, the second"
        );
        // After munmap nobody can have seen it.
        entries.detach();
        let removal = entries.begin_removal(0);
        check!(!entries.was_removed(0));
        removal.end();
        check!(!entries.was_removed(0));
        Ok(())
    }

    #[test]
    fn an_entry_of_each_order_is_counted_and_gone() -> Checked {
        let world = world()?;
        for order in [Order::PTE, Order::PMD, Order::PUD] {
            let Some((file, place)) = mapped_file(&world, order)? else {
                continue;
            };
            set_max_order(order)?;
            set_fault_around(Order::PTE)?;
            let pages = order.pages();
            let by_pmd = if order == Order::PMD { pages } else { 0 };
            // The file's entry and the folio are there then.
            drop({
                let view = View::new(&file, 0, pages, Share::Shared, 0)?;
                view.load(0)?;
                view
            });
            let folio = world.page(place).folio();
            check_eq!(folio.order(), order);
            let view = View::new(&file, 0, pages, Share::Shared, 0)?;
            for write in [false, true] {
                let touch = || {
                    if write {
                        view.store(0, 7)?;
                    } else {
                        view.load(0)?;
                    }
                    Ok(())
                };
                let forget = || {
                    view.forget(0, pages);
                    Ok(())
                };
                counted(folio, change(pages, pages, by_pmd), (1, 1), touch, forget)?;
                // Entered again, and with more rights, it is not counted again.
                counted(
                    folio,
                    change(0, 0, 0),
                    (1, 1),
                    || {
                        view.load(pages - 1)?;
                        view.store(pages / 2, 1)?;
                        Ok(())
                    },
                    || Ok(()),
                )?;
                let other = View::new(&file, 0, pages, Share::Shared, 0)?;
                // A page is mapped once, whoever else maps it.
                counted(
                    folio,
                    change(pages, 0, 0),
                    (2, 2),
                    || other.load(0).map(|_| ()).map_err(Into::into),
                    || {
                        other.forget(0, pages);
                        Ok(())
                    },
                )?;
                drop(other);
                check_eq!(users(folio), (1, 1), "write {write}");
                let before = Counts::now(folio.head());
                view.forget(0, pages);
                let found = Counts::since(folio.head(), before);
                check_eq!(found.resident, -(pages as isize));
                check_eq!(found.mapped_by_pmd, -(by_pmd as isize));
                check_eq!(users(folio), (0, 0), "write {write}");
            }
            drop(view);
            clear(&file);
        }
        set_max_order(Order::PUD)?;
        world.check_clean()
    }

    #[test]
    fn pages_of_a_folio_are_counted_one_by_one() -> Checked {
        let world = world()?;
        let Some((file, place)) = mapped_file(&world, Order::PMD)? else {
            return Ok(());
        };
        set_max_order(Order::PMD)?;
        set_fault_around(Order::from_bits(4))?;
        let whole = View::new(&file, 0, PMD, Share::Shared, 0)?;
        whole.load(0)?;
        let folio = world.page(place).folio();
        let small = View::new(&file, 0, PMD, Share::Shared, 1)?;
        // Those that an entry for the whole maps are mapped already.
        counted(
            folio,
            change(16, 0, 0),
            (17, 17),
            || small.load(20).map(|_| ()).map_err(Into::into),
            || {
                small.forget(0, PMD);
                Ok(())
            },
        )?;
        // When it goes, they stay, and are not mapped by 2 MiB.
        let before = Counts::now(folio.head());
        whole.forget(0, PMD);
        let found = Counts::since(folio.head(), before);
        check_eq!(
            (found.resident, found.mapped_by_pmd),
            (-(PMD as isize), -(PMD as isize))
        );
        check_eq!(users(folio), (16, 16));
        // It comes back, and counts what they are not.
        counted(
            folio,
            change(PMD, PMD - 16, PMD),
            (17, 17),
            || whole.load(0).map(|_| ()).map_err(Into::into),
            || {
                whole.forget(0, PMD);
                Ok(())
            },
        )?;
        // A part of them goes.
        small.forget(16, 5);
        check_eq!(users(folio), (12, 12));
        drop(whole);
        check_eq!(users(folio), (11, 11));
        drop(small);
        check_eq!(users(folio), (0, 0));
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn several_folios_are_entered_at_once() -> Checked {
        let world = world()?;
        let (file, place) = straight_file(&world, 64)?;
        set_fault_around(Order::from_bits(4))?;
        let view = View::new(&file, 0, 64, Share::Shared, 0)?;
        for page in [0, 1, 2, 3, 4, 5, 6, 7] {
            view.store(page, 1)?;
        }
        let mut seen = 0;
        for page in 0..64 {
            let folio = world.page(place + page).folio();
            let first = folio.head().pfn().to_bits() - world.pfn(place).to_bits();
            let mapped = (first..first + folio.order().pages())
                .filter(|page| view.mapped(*page).is_some())
                .count() as i32;
            check_eq!(users(folio), (mapped, mapped), "page {page}");
            seen += i32::from(view.mapped(page).is_some());
        }
        check!(seen >= 8);
        let before = Counts::now(world.page(place));
        view.forget(0, 64);
        let found = Counts::since(world.page(place), before);
        check_eq!(found.resident, -(seen as isize));
        drop(view);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn zeroes_are_not_counted() -> Checked {
        let world = world()?;
        let file = world.file(2 * PMD)?;
        set_max_order(Order::PMD)?;
        let view = View::new(&file, 0, 2 * PMD, Share::Shared, 0)?;
        let small = View::new(&file, 0, PMD, Share::Shared, 1)?;
        let before = Counts::now(world.page(0));
        check_eq!(view.load(0)?, 0);
        check_eq!(view.load(PMD)?, 0);
        let mapped = |page| view.mapped(page).map(|found| (found.order, found.writable));
        check_eq!(mapped(0), Some((Order::PMD.bits(), false)));
        check_eq!(
            view.mapped(0).map(|found| found.pfn),
            view.mapped(PMD).map(|found| found.pfn)
        );
        // By pages: what mapped them by 2 MiB goes.
        check_eq!(small.load(3)?, 0);
        check!(small
            .mapped(3)
            .is_some_and(|found| !found.writable && !found.dirty));
        check_eq!(Counts::since(world.page(0), before).resident, 0);
        view.forget(0, PMD);
        drop(small);
        drop(view);
        check_eq!(Counts::since(world.page(0), before).resident, 0);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn a_marker_that_is_there_stays() -> Checked {
        let world = world()?;
        let (file, place) = straight_file(&world, 64)?;
        for around in [Order::PTE, Order::from_bits(4)] {
            set_fault_around(around)?;
            let view = View::new(&file, 0, 64, Share::Shared, 0)?;
            // The table is there then.
            view.load(40)?;
            view.set_guard(5, true);
            // Beside it, all others can be mapped.
            view.load(4)?;
            view.load(6)?;
            check!(view.mapped(5).is_none());
            for write in [false, true] {
                file.forget_faults();
                let result = access(&view, 5, write);
                check_eq!(result, Err(EFAULT), "write {write}");
                check!(file
                    .last_fault()
                    .is_none_or(|fault| fault.code != FaultCode::SIGBUS));
            }
            view.set_guard(5, false);
            view.load(5)?;
            check_eq!(
                view.mapped(5).map(|found| found.pfn),
                Some(world.pfn(place + 5).to_bits())
            );
            drop(view);
            clear(&file);
        }
        world.check_clean()
    }

    #[test]
    fn a_marker_that_comes_during_a_fault_stays() -> Checked {
        let world = world()?;
        let (file, place) = straight_file(&world, 64)?;
        for around in [Order::PTE, Order::from_bits(4)] {
            set_fault_around(around)?;
            for write in [false, true] {
                let view = View::new(&file, 0, 64, Share::Shared, 0)?;
                view.load(40)?;
                file.guard_at_begin(view.address(5));
                let result = access(&view, 5, write);
                check_eq!(result, Err(EFAULT), "write {write}");
                check!(view.mapped(5).is_none());
                view.set_guard(5, false);
                view.load(5)?;
                check_eq!(
                    view.mapped(5).map(|found| found.pfn),
                    Some(world.pfn(place + 5).to_bits())
                );
                drop(view);
                clear(&file);
            }
        }
        world.check_clean()
    }

    #[test]
    fn without_memory_for_a_table_an_access_fails() -> Checked {
        let world = world()?;
        let (file, place) = straight_file(&world, 64)?;
        world.fill(place, 64, 0);
        let view = View::new(&file, 0, 64, Share::Shared, 0)?;
        for write in [false, true] {
            file.forget_faults();
            let result = without_tables(|| access(&view, 5, write));
            check_eq!(result, Err(EFAULT), "write {write}");
            check!(file
                .last_fault()
                .is_some_and(|fault| fault.code == FaultCode::OOM));
        }
        check_eq!(view.load(5)?, 0);
        drop(view);
        clear(&file);
        world.check_clean()
    }

    fn stored_pages(view: &View<'_>, pages: usize) -> u64 {
        pages_with(pages, |page| {
            view.mapped(page).is_some() && view.is_soft_dirty(page)
        })
    }

    fn writable_pages(view: &View<'_>, pages: usize) -> u64 {
        pages_with(pages, |page| {
            view.mapped(page).is_some_and(|found| found.writable)
        })
    }

    fn dirty_pages(view: &View<'_>, pages: usize) -> u64 {
        pages_with(pages, |page| {
            view.mapped(page).is_some_and(|found| found.dirty)
        })
    }

    /// A file whose first pages are mapped by a store to each of them, in a row.
    fn stored<'f>(file: &'f File<'_>, pages: usize) -> Checked<View<'f>> {
        let view = View::new(file, 0, 64, Share::Shared, 0)?;
        for page in 0..pages {
            view.store(page, 1)?;
        }
        Ok(view)
    }

    #[test]
    fn what_is_mapped_ahead_is_clean_until_it_is_stored_to() -> Checked {
        let world = world()?;
        let (file, _) = straight_file(&world, 64)?;
        set_fault_around(Order::from_bits(4))?;
        set_write_order(Order::PTE)?;
        // The third is the first that something is mapped ahead for: the fourth. The fifth comes as the
        // next that faults, after four.
        let view = stored(&file, 5)?;
        let writable = writable_pages(&view, 64);
        check_eq!(dirty_pages(&view, 64), bits(0, 4));
        check!(
            writable & bits(0, 5) == bits(0, 5),
            "nothing was mapped ahead: {writable:#x}"
        );
        // But what fsync goes by says that they may have been.
        check_eq!(marked_pages(&file, 64, Mark::Dirty) & writable, writable);
        let faults = file.begins();
        view.store(5, 1)?;
        check_eq!(file.begins(), faults);
        check_eq!(dirty_pages(&view, 64), bits(0, 5));
        // The processor does not say so twice.
        check_eq!(stored_pages(&view, 64) & (bits(3, 3) | bits(5, 63)), 0);
        drop(view);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn what_was_written_back_is_mapped_ahead_as_if_never_stored_to() -> Checked {
        let world = world()?;
        let (file, _) = straight_file(&world, 64)?;
        set_fault_around(Order::from_bits(4))?;
        set_write_order(Order::PTE)?;
        let view = stored(&file, 16)?;
        fsync(&file)?;
        check_eq!(dirty_pages(&view, 64) | writable_pages(&view, 64), 0);
        for page in 0..5 {
            view.store(page, 2)?;
        }
        let writable = writable_pages(&view, 64);
        check!(
            writable & bits(0, 5) == bits(0, 5),
            "nothing was mapped ahead: {writable:#x}"
        );
        file.forget_times();
        view.store(5, 2)?;
        check!(!file.has_times(), "a page that was mapped ahead faults");
        fsync(&file)?;
        check!(file.has_times());
        drop(view);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn where_2m_are_written_back_the_times_tell_of_what_could_be_stored_to() -> Checked {
        let world = world()?;
        let (file, _) = straight_file(&world, PMD)?;
        set_fault_around(Order::from_bits(4))?;
        let large = View::new(&file, 0, PMD, Share::Shared, 0)?;
        large.store(0, 1)?;
        check_eq!(
            look(&file, 0).map(|(entry, _)| entry.order()),
            Some(Order::PMD)
        );
        drop(large);
        let view = View::new(&file, 0, PMD, Share::Shared, 1)?;
        // The entry is there, so those behind the first are mapped along at once.
        view.store(0, 1)?;
        let writable = writable_pages(&view, 64);
        check!(
            writable & bits(0, 3) == bits(0, 3),
            "nothing was mapped ahead: {writable:#x}"
        );
        // No page was stored to that the filesystem does not know of.
        check_eq!(dirty_pages(&view, 64), bits(0, 0));
        file.forget_times();
        // A store to one that was mapped ahead may come between the look at it and its protection,
        // which takes the trace away.
        fsync(&file)?;
        check_eq!(writable_pages(&view, 64), 0);
        check!(file.has_times());
        file.forget_times();
        fsync(&file)?;
        drop(view);
        check!(!file.has_times(), "nobody can have stored since");
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn times_tell_of_stores_to_what_a_thread_unmaps() -> Checked {
        let world = world()?;
        let (file, _) = straight_file(&world, 64)?;
        set_fault_around(Order::from_bits(4))?;
        set_write_order(Order::PTE)?;
        let view = stored(&file, 6)?;
        file.forget_times();
        drop(view);
        check!(file.has_times());
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn nothing_is_mapped_ahead_where_stores_are_told_from_one_another() -> Checked {
        let world = world()?;
        let (file, _) = straight_file(&world, 64)?;
        set_fault_around(Order::from_bits(4))?;
        let view = stored(&file, 6)?;
        view.forget(0, 64);
        view.track_stores(true);
        for page in 0..8 {
            view.store(page, 2)?;
        }
        check_eq!(writable_pages(&view, 64), bits(0, 7));
        check_eq!(stored_pages(&view, 64), bits(0, 7));
        view.track_stores(false);
        drop(view);
        clear(&file);
        world.check_clean()
    }
}
