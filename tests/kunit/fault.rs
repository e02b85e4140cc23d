// SPDX-License-Identifier: GPL-2.0

//! Page faults of all sizes (spec, section 4).

use kernel::prelude::*;

#[kunit_tests(rdax_fault)]
mod tests {
    use crate::{
        dax::stats::Counter,
        kern::{
            bindings,
            entry::{Entry, Kind},
            order::Order,
            testing::{
                note, skip, with_failing_allocation, with_thread, with_thread_waiting, Checked,
                Failing, Share, TestExtent, View,
            },
            vm::FaultCode,
            xa::Mark,
        },
        tests::helpers::*,
    };
    use kernel::prelude::*;

    const PMD: usize = Order::PMD.pages();
    const PUD: usize = Order::PUD.pages();

    #[test]
    fn every_order_is_mapped_by_one_entry_and_one_reference() -> Checked {
        for order in [Order::PTE, Order::PMD, Order::PUD] {
            let world = world()?;
            let Some((file, place)) = mapped_file(&world, order)? else {
                continue;
            };
            let page = order.pages() / 3;
            let (reads, writes) = match order {
                Order::PTE => (Counter::ReadPte, Counter::WritePte),
                Order::PMD => (Counter::ReadPmd, Counter::WritePmd),
                _ => (Counter::ReadPud, Counter::WritePud),
            };
            let before = (count(reads), count(writes));
            let view = View::new(&file, 0, order.pages(), Share::Shared, 0)?;
            world.set_byte(place + page, 0, 0x5a);
            check_eq!(view.load(page)? & 0xff, 0x5a);
            check_mapped(&world, &view, page, order, place + page, false)?;
            check_eq!(count(reads), before.0 + 1);
            let folio = world.page(place).folio();
            check_eq!(folio.order(), order);
            check_eq!((folio.refcount(), folio.mapcount()), (1, 1));
            check_eq!(file.nrpages(), order.pages());
            check!(!is_marked(&file, page, Mark::Dirty));
            drop(view);
            // R1: not mapped is not referenced, and the entry holds nothing.
            check_eq!((folio.refcount(), folio.mapcount()), (0, 0));

            let view = View::new(&file, 0, order.pages(), Share::Shared, 0)?;
            view.store(page, 0x1234)?;
            check_mapped(&world, &view, page, order, place + page, true)?;
            check_eq!(count(writes), before.1 + 1);
            check_eq!(world.byte(place + page, 0), 0x34);
            check_eq!((folio.refcount(), folio.mapcount()), (1, 1));
            check!(is_marked(&file, page, Mark::Dirty));
            let other = View::new(&file, 0, order.pages(), Share::Shared, 0)?;
            check_eq!(other.load(page)?, 0x1234);
            check_eq!((folio.refcount(), folio.mapcount()), (2, 2));
            drop((view, other));
            check_eq!((folio.refcount(), folio.mapcount()), (0, 0));
            clear(&file);
            world.check_clean()?;
        }
        Ok(())
    }

    #[test]
    fn a_write_after_a_read_makes_the_same_mapping_writable() -> Checked {
        for order in [Order::PTE, Order::PMD, Order::PUD] {
            let world = world()?;
            let Some((file, place)) = mapped_file(&world, order)? else {
                continue;
            };
            let counter = match order {
                Order::PTE => Counter::MkwritePte,
                Order::PMD => Counter::MkwritePmd,
                _ => Counter::MkwritePud,
            };
            let before = count(counter);
            let view = View::new(&file, 0, order.pages(), Share::Shared, 0)?;
            view.load(0)?;
            view.store(0, 5)?;
            check_mapped(&world, &view, 0, order, place, true)?;
            check_eq!(count(counter), before + 1);
            check!(is_marked(&file, 0, Mark::Dirty));
            check_eq!(world.page(place).folio().refcount(), 1);
            drop(view);
            clear(&file);
            world.check_clean()?;
        }
        Ok(())
    }

    #[test]
    fn past_the_end_of_the_file_is_an_error() -> Checked {
        let world = world()?;
        let Some((file, _)) = mapped_file(&world, Order::PMD)? else {
            return Ok(());
        };
        let view = View::new(&file, 0, PMD, Share::Shared, 0)?;
        file.set_size(10 << Order::PAGE_SHIFT);
        for write in [false, true] {
            file.forget_faults();
            let result = access(&view, 10, write);
            check_eq!(result, Err(EFAULT));
            check_eq!(
                file.last_fault().map(|fault| fault.code),
                Some(FaultCode::SIGBUS)
            );
        }
        check_eq!(file.nrpages(), 0);
        view.store(9, 1)?;
        drop(view);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn errors_of_the_filesystem_are_given_on_and_leave_nothing() -> Checked {
        let world = world()?;
        let Some((file, place)) = mapped_file(&world, Order::PTE)? else {
            return Ok(());
        };
        file.set_strict();
        let view = View::new(&file, 0, 1, Share::Shared, 0)?;
        for write in [false, true] {
            for (error, code) in [
                (EIO, FaultCode::SIGBUS),
                (ENOSPC, FaultCode::SIGBUS),
                (ENOMEM, FaultCode::OOM),
            ] {
                for at_end in [false, true] {
                    let failing = Some(Failing { call: 0, error });
                    if at_end {
                        file.fail_end(failing);
                    } else {
                        file.fail_begin(failing);
                    }
                    file.forget_faults();
                    let errors = count(Counter::FaultErrors);
                    let result = access(&view, 0, write);
                    check_eq!(result, Err(EFAULT));
                    let fault = file.last_fault();
                    check_eq!(
                        fault.map(|fault| fault.code),
                        Some(code),
                        "at end: {at_end}"
                    );
                    check_eq!(fault.map(|fault| fault.error), Some(error.to_errno()));
                    check_eq!(count(Counter::FaultErrors), errors + 1);
                    check!(view.mapped(0).is_none());
                    check!(!is_marked(&file, 0, Mark::Dirty));
                    // At most a placeholder is left, and no page.
                    check!(
                        look(&file, 0).is_none_or(|(entry, locked)| entry
                            == Entry::empty(Order::PTE)
                            && !locked)
                    );
                    check!(crate::kern::testing::is_free(world.page(place)));
                    file.fail_begin(None);
                    file.fail_end(None);
                }
            }
        }
        view.store(0, 1)?;
        drop(view);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn an_error_for_a_large_order_is_a_smaller_order() -> Checked {
        let world = world()?;
        let Some((file, _)) = mapped_file(&world, Order::PMD)? else {
            return Ok(());
        };
        set_max_order(Order::PMD)?;
        let view = View::new(&file, 0, PMD, Share::Shared, 0)?;
        file.fail_begin(Some(Failing {
            call: 0,
            error: EIO,
        }));
        check_eq!(fallback(&file, &view, 3, true, Counter::FallbackExtent)?, 1);
        drop(view);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn a_filesystem_that_cannot_take_it_over_gets_it_back() -> Checked {
        let world = world()?;
        let Some((file, place)) = mapped_file(&world, Order::PMD)? else {
            return Ok(());
        };
        set_max_order(Order::PMD)?;
        file.set_strict();
        let view = View::new(&file, 0, PMD, Share::Shared, 0)?;
        // Those who read what was there before, too.
        view.load(3)?;
        let other = View::new(&file, 0, PMD, Share::Shared, 0)?;
        other.load(3)?;
        file.fail_end(Some(Failing {
            call: 0,
            error: EIO,
        }));
        check_eq!(view.store(3, 1), Err(EFAULT));
        check!(view.mapped(3).is_none());
        check!(other.mapped(3).is_none());
        drop(other);
        check!(look(&file, 3) == Some((Entry::empty(Order::PMD), false)));
        check!(!is_marked(&file, 3, Mark::Dirty));
        check!(crate::kern::testing::is_free(world.page(place)));
        file.fail_end(None);
        view.store(3, 1)?;
        drop(view);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn a_page_of_a_larger_entry_is_mapped_by_a_smaller_fault() -> Checked {
        for order in [Order::PMD, Order::PUD] {
            let world = world()?;
            set_fault_around(Order::PTE)?;
            let Some((file, place)) = mapped_file(&world, order)? else {
                continue;
            };
            put(&file, 0, order, place, false)?;
            // Not aligned for anything large.
            let view = View::new(&file, 0, order.pages(), Share::Shared, 1)?;
            for page in [0, 1, order.pages() / 2 + 7, order.pages() - 1] {
                view.store(page, page as u64)?;
                check_mapped(&world, &view, page, Order::PTE, place + page, true)?;
            }
            check_eq!(world.page(place).folio().refcount(), 4);
            check_eq!(world.page(place).folio().mapcount(), 4);
            check_eq!(file.nrpages(), order.pages());
            drop(view);
            check_eq!(world.page(place).folio().refcount(), 0);
            clear(&file);
            world.check_clean()?;
        }
        Ok(())
    }

    #[test]
    fn a_table_that_was_made_meanwhile_is_left() -> Checked {
        for write in [false, true] {
            let world = world()?;
            let Some((file, place)) = mapped_file(&world, Order::PMD)? else {
                return Ok(());
            };
            set_max_order(Order::PMD)?;
            let view = View::new(&file, 0, PMD, Share::Shared, 0)?;
            file.make_table();
            file.forget_faults();
            if write {
                view.store(40, 1)?;
            } else {
                view.load(40)?;
            }
            let first = (0..file.faults())
                .filter_map(|number| file.fault(number))
                .find(|fault| fault.order == 9);
            check_eq!(first.map(|fault| fault.code), Some(FaultCode::DONE));
            check_mapped(&world, &view, 40, Order::PTE, place + 40, write)?;
            drop(view);
            clear(&file);
            world.check_clean()?;
        }
        Ok(())
    }

    #[test]
    fn a_table_that_was_made_while_the_entry_was_locked_is_left() -> Checked {
        let world = world()?;
        let Some((file, place)) = mapped_file(&world, Order::PMD)? else {
            return Ok(());
        };
        set_max_order(Order::PMD)?;
        let held = lock(&file, 0, Order::PMD)?;
        let work = || -> Checked<bool> {
            let view = View::new(&file, 0, PMD, Share::Shared, 0)?;
            view.store(40, 1)?;
            let wanted = (0, world.pfn(place + 40).to_bits());
            let mapped = view.mapped(40).map(|mapped| (mapped.order, mapped.pfn));
            Ok(mapped == Some(wanted))
        };
        file.forget_faults();
        let (result, waited) = with_thread(work, |thread| {
            let waited = thread.waits();
            if waited {
                file.make_table_now();
            }
            drop(held);
            waited
        })?;
        check!(waited && result?);
        let huge = (0..file.faults())
            .filter_map(|number| file.fault(number))
            .find(|fault| fault.order == 9);
        check_eq!(huge.map(|fault| fault.code), Some(FaultCode::DONE));
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn every_call_of_the_filesystem_is_ended() -> Checked {
        let world = world()?;
        let file = world.file(PMD)?;
        let place = world.take(Order::PMD)?;
        file.set_extents(&[
            TestExtent::mapped(0, 100, place),
            TestExtent::mapped(100, PMD - 100, place + 100),
        ])?;
        file.fail_begin(None);
        file.fail_end(None);
        let view = View::new(&file, 0, PMD, Share::Shared, 0)?;
        view.store(3, 1)?;
        check_eq!(file.begins(), file.ends());
        check!(file.asked() & bindings::IOMAP_FAULT != 0);
        check!(file.asked() & bindings::IOMAP_WRITE != 0);
        drop(view);
        clear(&file);
        let view = View::new(&file, 0, PMD, Share::Shared, 0)?;
        view.load(3)?;
        check!(file.asked() & bindings::IOMAP_FAULT != 0);
        check_eq!(file.asked() & bindings::IOMAP_WRITE, 0);
        drop(view);
        clear(&file);
        // Also when it is of no use.
        file.set_extents(&[TestExtent::inline(0, PMD)])?;
        file.fail_begin(None);
        file.fail_end(None);
        let view = View::new(&file, 0, PMD, Share::Shared, 0)?;
        check_eq!(view.store(3, 1), Err(EFAULT));
        check!(file.begins() > 0);
        check_eq!(file.begins(), file.ends());
        drop(view);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn pins_are_references_and_those_for_ever_are_refused() -> Checked {
        for order in [Order::PTE, Order::PMD, Order::PUD] {
            let world = world()?;
            let Some((file, place)) = mapped_file(&world, order)? else {
                continue;
            };
            let page = order.pages() / 2;
            let view = View::new(&file, 0, order.pages(), Share::Shared, 0)?;
            for write in [false, true] {
                let pin = view.pin(page, write);
                check_eq!(
                    pin.as_ref().map(|pin| pin.pfn()),
                    Some(world.pfn(place + page).to_bits())
                );
                check!(world.page(place).folio().refcount() > 1);
                drop(pin);
                check_eq!(world.page(place).folio().refcount(), 1);
            }
            check!(view.pin_longterm(page).is_none());
            drop(view);
            clear(&file);
            world.check_clean()?;
        }
        Ok(())
    }

    #[test]
    fn every_allocation_that_fails_leaves_a_fault_that_works_next_time() -> Checked {
        let world = world()?;
        let file = world.file(2 * PMD)?;
        let place = world.take_many(2 * PMD, Order::PMD)?;
        file.set_extents(&[TestExtent::mapped(0, 2 * PMD, place)])?;
        let mut nth = 1;
        loop {
            let view = View::new(&file, 0, 2 * PMD, Share::Shared, nth as usize % 2)?;
            let (result, failed) = with_failing_allocation(nth, || view.store(5, 7));
            check!(look(&file, 5).is_none_or(|(_, locked)| !locked));
            view.store(5, 8)?;
            check_eq!(world.byte(place + 5, 0), 8);
            check!(is_marked(&file, 5, Mark::Dirty));
            drop(view);
            clear(&file);
            check_eq!(file.nrpages(), 0);
            if !failed {
                check_eq!(result, Ok(()));
                break;
            }
            nth += 1;
            check!(nth < 200);
        }
        note(fmt!("{} allocations failed one after the other", nth - 1));
        world.check_clean()
    }

    #[test]
    fn a_locked_entry_is_waited_for_by_a_fault() -> Checked {
        let world = world()?;
        let Some((file, place)) = mapped_file(&world, Order::PTE)? else {
            return Ok(());
        };
        let held = lock(&file, 0, Order::PTE)?;
        let work = || -> Checked<bool> {
            let view = View::new(&file, 0, 1, Share::Shared, 0)?;
            view.store(0, 3)?;
            let right = view
                .mapped(0)
                .is_some_and(|mapped| mapped.pfn == world.pfn(place).to_bits());
            Ok(right)
        };
        let (result, waited) = with_thread_waiting(work, || {
            drop(held);
        })?;
        check!(waited);
        check!(result?);
        check!(matches!(
            look(&file, 0).map(|(entry, _)| entry.kind()),
            Some(Kind::Data(_))
        ));
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn faults_of_1_gib_can_be_tested() -> Checked {
        let world = world()?;
        if world.try_take(PUD, Order::PUD).is_none() {
            skip(c"the device has no aligned GiB");
        }
        Ok(())
    }
}
