// SPDX-License-Identifier: GPL-2.0

//! Page faults, in a real address space (spec, section 4).

use kernel::prelude::*;

#[kunit_tests(rdax_fault)]
mod tests {
    use crate::{
        dax::{
            adopt::Adopted,
            entry::{Entry, Kind},
            layout::{self, Patience},
            poison,
            stats::Counter,
            tree,
        },
        kern::{
            bindings,
            fs::PageRange,
            order::Order,
            testing::{
                hold, note, skip, until, with_failing_allocation, with_paths, with_thread,
                with_thread_waiting, with_threads, without_zeroes, Checked, Failing, File, Flushes,
                Share, Stretch, View, World,
            },
            vm::FaultCode,
            xa::Mark,
        },
        tests::helpers::*,
    };
    use kernel::{
        prelude::*,
        sync::atomic::{Acquire, Atomic, Release},
    };

    const PMD: usize = Order::PMD.pages();
    const PUD: usize = Order::PUD.pages();

    /// Whether a page of a file is mapped by an entry of this order, at this place.
    fn check_mapped(
        world: &World,
        view: &View<'_>,
        page: usize,
        order: Order,
        place: usize,
        writable: bool,
    ) -> Checked {
        let Some(mapped) = view.mapped(page) else {
            return Err(crate::kern::testing::failed(
                file!(),
                line!(),
                fmt!("page {page} is not mapped"),
            ));
        };
        check_eq!(mapped.order, order.bits());
        check_eq!(mapped.pfn, world.pfn(place).to_bits());
        check_eq!(mapped.writable, writable);
        Ok(())
    }

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

    /// Has one access fall back from [`Order::PMD`] and be served by a page, and returns how often
    /// the reason was counted. 1 GiB is not tried.
    fn fallback(
        file: &File<'_>,
        view: &View<'_>,
        page: usize,
        write: bool,
        reason: Counter,
    ) -> Checked<u64> {
        set_max_order(Order::PMD)?;
        let before = count(reason);
        file.forget_faults();
        if write {
            view.store(page, 1)?;
        } else {
            view.load(page)?;
        }
        let fell = (0..file.faults())
            .filter_map(|number| file.fault(number))
            .any(|fault| fault.order == 9 && fault.code == FaultCode::FALLBACK);
        check!(fell, "no fault of 2 MiB fell back");
        check!(view.mapped(page).is_some_and(|mapped| mapped.order == 0));
        Ok(count(reason) - before)
    }

    #[test]
    fn falls_back_when_the_device_allows_no_such_order() -> Checked {
        let world = world()?;
        let Some((file, _)) = mapped_file(&world, Order::PMD)? else {
            return Ok(());
        };
        let view = View::new(&file, 0, PMD, Share::Shared, 0)?;
        set_max_order(Order::PTE)?;
        let before = count(Counter::FallbackMaxOrder);
        view.store(3, 1)?;
        // Both larger orders.
        check_eq!(count(Counter::FallbackMaxOrder) - before, 2);
        check!(view.mapped(3).is_some_and(|mapped| mapped.order == 0));
        drop(view);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn falls_back_for_a_private_write() -> Checked {
        let world = world()?;
        let Some((file, place)) = mapped_file(&world, Order::PMD)? else {
            return Ok(());
        };
        world.fill(place + 3, 1, 0x77);
        let view = View::new(&file, 0, PMD, Share::Private, 0)?;
        let copies = count(Counter::PrivatePte);
        check_eq!(
            fallback(&file, &view, 3, true, Counter::FallbackPrivate)?,
            1
        );
        check_eq!(count(Counter::PrivatePte), copies + 1);
        // A copy: the file has what it had, and nobody refers to its page.
        check_eq!(view.load(3)?, 1);
        check!(world.is_filled(place + 3, 0, Order::PTE.bytes(), 0x77));
        check_eq!(world.page(place + 3).folio().refcount(), 0);
        check!(!is_marked(&file, 3, Mark::Dirty));
        drop(view);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn falls_back_when_address_and_offset_are_not_aligned() -> Checked {
        let world = world()?;
        let Some((file, _)) = mapped_file(&world, Order::PMD)? else {
            return Ok(());
        };
        let view = View::new(&file, 0, PMD, Share::Shared, 1)?;
        check_eq!(
            fallback(&file, &view, 3, true, Counter::FallbackAlignment)?,
            1
        );
        drop(view);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn falls_back_when_the_mapping_is_too_small() -> Checked {
        let world = world()?;
        let Some((file, _)) = mapped_file(&world, Order::PMD)? else {
            return Ok(());
        };
        for (first, pages) in [(0, PMD - 1), (1, PMD - 1)] {
            let view = View::new(&file, first, pages, Share::Shared, 0)?;
            check_eq!(fallback(&file, &view, 3, true, Counter::FallbackVma)?, 1);
            drop(view);
            clear(&file);
        }
        world.check_clean()
    }

    #[test]
    fn falls_back_when_the_file_ends_before() -> Checked {
        let world = world()?;
        let Some((file, _)) = mapped_file(&world, Order::PMD)? else {
            return Ok(());
        };
        let view = View::new(&file, 0, PMD, Share::Shared, 0)?;
        file.set_size(((PMD - 1) << Order::PAGE_SHIFT) as u64);
        check_eq!(fallback(&file, &view, 3, true, Counter::FallbackEof)?, 1);
        drop(view);
        clear(&file);
        // Rounded up to pages, it does not.
        let view = View::new(&file, 0, PMD, Share::Shared, 0)?;
        file.set_size((((PMD - 1) << Order::PAGE_SHIFT) + 1) as u64);
        view.store(3, 1)?;
        check!(view.mapped(3).is_some_and(|mapped| mapped.order == 9));
        drop(view);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn falls_back_when_the_extent_is_too_short_or_misaligned() -> Checked {
        let world = world()?;
        let file = world.file(PMD)?;
        let place = world.take_many(PMD + 1, Order::PMD)?;
        for extent in [
            Stretch::mapped(0, PMD - 1, place),
            Stretch::mapped(0, PMD, place + 1),
        ] {
            file.set_extents(&[extent])?;
            let view = View::new(&file, 0, PMD, Share::Shared, 0)?;
            check_eq!(fallback(&file, &view, 3, true, Counter::FallbackExtent)?, 1);
            drop(view);
            clear(&file);
        }
        world.check_clean()
    }

    #[test]
    fn falls_back_when_a_hole_is_too_short() -> Checked {
        let world = world()?;
        set_fault_around(Order::PTE)?;
        let file = world.file(PMD)?;
        let place = world.take(Order::PTE)?;
        world.fill(place, 1, 0x11);
        file.set_extents(&[
            Stretch::hole(0, PMD - 1),
            Stretch::mapped(PMD - 1, 1, place),
        ])?;
        let view = View::new(&file, 0, PMD, Share::Shared, 0)?;
        check_eq!(
            fallback(&file, &view, 3, false, Counter::FallbackExtent)?,
            1
        );
        // The data behind it is there.
        check_eq!(view.load(PMD - 1)? & 0xff, 0x11);
        drop(view);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn falls_back_for_a_hole_of_1_gib() -> Checked {
        let world = world()?;
        let file = world.file(PUD)?;
        let view = View::new(&file, 0, PUD, Share::Shared, 0)?;
        let before = count(Counter::FallbackHole);
        check_eq!(view.load(5)?, 0);
        check_eq!(count(Counter::FallbackHole), before + 1);
        check!(view.mapped(5).is_some_and(|mapped| mapped.order == 9));
        drop(view);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn falls_back_when_a_smaller_entry_is_in_the_way() -> Checked {
        let world = world()?;
        let Some((file, place)) = mapped_file(&world, Order::PMD)? else {
            return Ok(());
        };
        put(&file, 100, Order::PTE, place + 100, false)?;
        let view = View::new(&file, 0, PMD, Share::Shared, 0)?;
        check_eq!(
            fallback(&file, &view, 3, true, Counter::FallbackConflict)?,
            1
        );
        drop(view);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn falls_back_when_one_page_was_bad_before_the_device_was_adopted() -> Checked {
        let old = world()?;
        let place = old.take(Order::PMD)?;
        old.set_poison(place + 100, true);
        old.leave();
        release()?;
        poison::forget();
        *adopted()?.lock() = Some(with_paths(|| Adopted::new(NAME))?);
        // The helpers would have it forgotten.
        let seen = poison::was_seen();
        let world = mounted()?;
        let result = (|| {
            check!(seen);
            let file = world.file(PMD)?;
            file.set_extents(&[Stretch::mapped(0, PMD, place)])?;
            let view = View::new(&file, 0, PMD, Share::Shared, 0)?;
            check_eq!(fallback(&file, &view, 3, true, Counter::FallbackPoison)?, 1);
            check!(view.mapped(100).is_none());
            drop(view);
            clear(&file);
            Ok(())
        })();
        world.set_poison(place + 100, false);
        poison::forget();
        result?;
        world.check_clean()
    }

    #[test]
    fn falls_back_when_one_page_is_bad_and_reports_that_one() -> Checked {
        let world = world()?;
        let Some((file, place)) = mapped_file(&world, Order::PMD)? else {
            return Ok(());
        };
        // Memory has failed.
        let (cookie, _) = poison::lock_index(file.mapping(), at(0));
        poison::unlock_index(file.mapping(), cookie);
        for bad in [100, 0, PMD - 1] {
            world.set_poison(place + bad, true);
            let view = View::new(&file, 0, PMD, Share::Shared, 0)?;
            check_eq!(fallback(&file, &view, 3, true, Counter::FallbackPoison)?, 1);
            file.forget_faults();
            let counted = count(Counter::PoisonFaults);
            check_eq!(view.load(bad), Err(EFAULT), "page {bad}");
            check!(count(Counter::PoisonFaults) > counted);
            check!(file
                .last_fault()
                .is_some_and(|fault| fault.code == FaultCode::HWPOISON && fault.order == 0));
            check!(view.mapped(bad).is_none());
            world.set_poison(place + bad, false);
            view.load(bad)?;
            drop(view);
            clear(&file);
        }
        world.check_clean()
    }

    #[test]
    fn falls_back_without_memory_for_2_mib_of_zeroes() -> Checked {
        let world = world()?;
        let file = world.file(2 * PMD)?;
        set_max_order(Order::PMD)?;
        let view = View::new(&file, 0, 2 * PMD, Share::Shared, 0)?;
        // The tables above are there then.
        check_eq!(view.load(PMD)?, 0);
        put_zero(&file, 0, Order::PMD)?;
        let before = count(Counter::FallbackNomem);
        let result = without_zeroes(|| view.load(0));
        check_eq!(count(Counter::FallbackNomem), before + 1, "{result:?}");
        check_eq!(view.load(0)?, 0);
        check_eq!(view.load(5)?, 0);
        drop(view);
        clear(&file);
        world.check_clean()
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
            let result = if write {
                view.store(10, 1)
            } else {
                view.load(10).map(|_| ())
            };
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
                    let result = if write {
                        view.store(0, 1)
                    } else {
                        view.load(0).map(|_| ())
                    };
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
    fn a_hole_reads_as_zeroes_of_its_size() -> Checked {
        let world = world()?;
        set_fault_around(Order::PTE)?;
        let file = world.file(PMD)?;
        set_max_order(Order::PMD)?;
        for (order, share, counter) in [
            (Order::PMD, 0, Counter::ZeroPmd),
            (Order::PTE, 1, Counter::ZeroPte),
        ] {
            for unwritten in [false, true] {
                if unwritten {
                    file.set_extents(&[Stretch::unwritten(0, PMD, 0)])?;
                } else {
                    file.set_extents(&[Stretch::hole(0, PMD)])?;
                }
                let before = count(counter);
                let view = View::new(&file, 0, PMD, Share::Shared, share)?;
                check_eq!(view.load(7)?, 0);
                check!(view
                    .mapped(7)
                    .is_some_and(|mapped| mapped.order == order.bits() && !mapped.writable));
                check_eq!(count(counter), before + 1);
                check!(look(&file, 7) == Some((Entry::zero(order), false)));
                check_eq!(file.nrpages(), order.pages());
                drop(view);
                clear(&file);
            }
        }
        world.check_clean()
    }

    #[test]
    fn a_write_to_a_hole_without_blocks_is_an_error() -> Checked {
        let world = world()?;
        let file = world.file(1)?;
        let view = View::new(&file, 0, 1, Share::Shared, 0)?;
        for extent in [
            Stretch::hole(0, 1),
            Stretch::unwritten(0, 1, 0),
            Stretch::inline(0, 1),
        ] {
            file.set_extents(&[extent])?;
            check_eq!(view.store(0, 1), Err(EFAULT));
            check_eq!(
                file.last_fault().map(|fault| fault.code),
                Some(FaultCode::SIGBUS)
            );
            check!(view.mapped(0).is_none());
        }
        drop(view);
        clear(&file);
        Ok(())
    }

    #[test]
    fn a_write_to_what_was_a_hole_takes_the_zeroes_out_of_every_mapping() -> Checked {
        for order in [Order::PTE, Order::PMD] {
            let world = world()?;
            let pages = order.pages();
            let file = world.file(pages)?;
            let place = world.take(order)?;
            world.fill(place, pages, 0);
            file.set_extents(&[Stretch::hole(0, pages)])?;
            set_max_order(order)?;
            let view = View::new(&file, 0, pages, Share::Shared, 0)?;
            let other = View::new(&file, 0, pages, Share::Shared, 0)?;
            check_eq!((view.load(0)?, other.load(0)?), (0, 0));
            check!(other.mapped(0).is_some());
            file.set_extents_for_writing(&[Stretch::mapped(0, pages, place).new_blocks()])?;
            file.forget_faults();
            view.store(0, 9)?;
            // Blocks were allocated for it.
            let major = file
                .last_fault()
                .is_some_and(|fault| fault.code.0 & FaultCode::MAJOR.0 != 0);
            check!(major);
            check!(other
                .mapped(0)
                .is_none_or(|mapped| { mapped.pfn == world.pfn(place).to_bits() }));
            file.set_extents(&[Stretch::mapped(0, pages, place)])?;
            check_eq!((view.load(0)?, other.load(0)?), (9, 9));
            check_eq!(file.nrpages(), pages);
            drop((view, other));
            clear(&file);
            world.check_clean()?;
        }
        Ok(())
    }

    #[test]
    fn a_page_of_a_hole_takes_larger_zeroes_out_of_every_mapping() -> Checked {
        let world = world()?;
        set_fault_around(Order::PTE)?;
        let file = world.file(PMD)?;
        file.set_extents(&[Stretch::hole(0, PMD)])?;
        set_max_order(Order::PMD)?;
        let large = View::new(&file, 0, PMD, Share::Shared, 0)?;
        let small = View::new(&file, 0, PMD, Share::Shared, 1)?;
        check_eq!(large.load(7)?, 0);
        check!(large
            .mapped(7)
            .is_some_and(|mapped| mapped.order == Order::PMD.bits()));
        check_eq!(small.load(7)?, 0);
        // Its entry says nothing of the other pages any more.
        check!(look(&file, 7) == Some((Entry::zero(Order::PTE), false)));
        check_eq!(file.nrpages(), 1);
        check!(large.mapped(7).is_none());
        check!(large.mapped(8).is_none());
        drop((large, small));
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn a_copy_of_a_page_takes_the_larger_old_one_out_of_every_mapping() -> Checked {
        let world = world()?;
        set_fault_around(Order::PTE)?;
        let file = world.file(PMD)?;
        let (old, new) = (world.take(Order::PMD)?, world.take(Order::PMD)?);
        world.fill(old, PMD, 0x11);
        set_max_order(Order::PMD)?;
        set_shared(&file, PMD, old, new)?;
        let large = View::new(&file, 0, PMD, Share::Shared, 0)?;
        let small = View::new(&file, 0, PMD, Share::Shared, 1)?;
        check_eq!(large.load(7)? & 0xff, 0x11);
        check_mapped(&world, &large, 0, Order::PMD, old, false)?;
        small.store(7, 9)?;
        check_mapped(&world, &small, 7, Order::PTE, new + 7, true)?;
        check!(large.mapped(7).is_none());
        check!(large.mapped(8).is_none());
        check_eq!(large.load(7)?, 9);
        check!(
            crate::kern::testing::is_free(world.page(old)),
            "the old folio is kept"
        );
        drop((large, small));
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn a_write_to_a_shared_extent_copies_all_of_it() -> Checked {
        for order in [Order::PTE, Order::PMD] {
            let world = world()?;
            let pages = order.pages();
            let file = world.file(pages)?;
            let (old, new) = (world.take(order)?, world.take(order)?);
            world.fill_differently(old, pages);
            world.fill(new, pages, 0xee);
            set_max_order(order)?;
            set_shared(&file, pages, old, new)?;
            let view = View::new(&file, 0, pages, Share::Shared, 0)?;
            view.load(0)?;
            let copied = count(Counter::CowPages);
            view.store(0, 0)?;
            check_eq!(count(Counter::CowPages), copied + pages as u64);
            check!(world.is_copy(new, 8, order.bytes()));
            check!(
                world.is_copy(old, 0, order.bytes()),
                "the source was written to"
            );
            check!(is_marked(&file, 0, Mark::Dirty));
            check!(is_marked(&file, 0, Mark::ToWrite));
            check_mapped(&world, &view, 0, order, new, true)?;
            check!(
                crate::kern::testing::is_free(world.page(old)),
                "the old page is kept"
            );
            drop(view);
            clear(&file);
            world.check_clean()?;
        }
        Ok(())
    }

    #[test]
    fn a_copy_whose_new_place_cannot_be_had_leaves_the_old_one() -> Checked {
        let world = world()?;
        let (old, new) = (world.take(Order::PMD)?, world.take(Order::PMD)?);
        let (file, clone, other) = (world.file(PMD)?, world.file(PMD)?, world.file(1)?);
        world.fill(old, PMD, 0x11);
        set_shared(&file, PMD, old, new)?;
        put_shared(&clone, 0, Order::PMD, old, false, true)?;
        let view = View::new(&file, 0, PMD, Share::Shared, 0)?;
        check_eq!(view.load(0)? & 0xff, 0x11);
        check_eq!(world.page(old).folio().share(), 2);
        // A page of the new place is another file's, so that no folio of 2 MiB can be there.
        put(&other, 0, Order::PTE, new + 300, false)?;
        let reason = Counter::FallbackConflict;
        check_eq!(fallback(&file, &view, 5, true, reason)?, 1);
        check_mapped(&world, &view, 5, Order::PTE, new + 5, true)?;
        check!(world.is_filled(new + 5, 8, Order::PTE.bytes(), 0x11));
        // Only the clone has the old one.
        check_eq!(world.page(old).folio().order(), Order::PMD);
        check_eq!(world.page(old).folio().share(), 1);
        drop(view);
        clear(&file);
        check_eq!(world.page(old).folio().share(), 1);
        clear(&clone);
        clear(&other);
        world.check_clean()
    }

    #[test]
    fn a_copy_onto_failed_memory_leaves_the_old_one() -> Checked {
        for order in [Order::PTE, Order::PMD] {
            let world = world()?;
            let (old, new) = (world.take(Order::PMD)?, world.take(Order::PMD)?);
            let pages = order.pages();
            let (file, clone) = (world.file(pages)?, world.file(pages)?);
            world.fill(old, pages, 0x11);
            set_shared(&file, pages, old, new)?;
            put_shared(&clone, 0, order, old, false, true)?;
            let view = View::new(&file, 0, pages, Share::Shared, 0)?;
            check_eq!(view.load(0)? & 0xff, 0x11);
            // Memory has failed, and no list of bad blocks has it.
            let (cookie, _) = poison::lock_index(file.mapping(), at(0));
            poison::unlock_index(file.mapping(), cookie);
            world.set_poison(new, true);
            let failed = view.store(0, 0);
            let fault = file.last_fault().map(|fault| fault.code);
            // What the filesystem takes back, nothing points to.
            let left = world.page(new).folio();
            let unused = left.owner() == 0 && left.share() == 0 && left.refcount() == 0;
            let shared = world.page(old).folio().share();
            world.set_poison(new, false);
            check_eq!(failed, Err(EFAULT), "{order:?}");
            check_eq!(fault, Some(FaultCode::HWPOISON), "{order:?}");
            check!(unused, "{order:?}");
            // An entry larger than the page that failed is taken out of the way of those around it.
            check_eq!(shared, if order == Order::PTE { 2 } else { 1 }, "{order:?}");
            check_eq!(view.load(0)? & 0xff, 0x11, "{order:?}");
            check_mapped(&world, &view, 0, Order::PTE, old, false)?;
            view.store(0, 0x22)?;
            check!(world.is_filled(old, 0, order.bytes(), 0x11), "{order:?}");
            drop(view);
            clear(&file);
            clear(&clone);
            world.check_clean()?;
        }
        Ok(())
    }

    #[test]
    fn a_page_that_is_the_files_own_makes_no_others_so() -> Checked {
        let world = world()?;
        let (old, new) = (world.take(Order::PMD)?, world.take(Order::PMD)?);
        let file = world.file(PMD)?;
        world.fill(old, PMD, 0x11);
        file.set_extents(&[Stretch::mapped(0, PMD, old).shared()])?;
        set_max_order(Order::PMD)?;
        let view = View::new(&file, 0, PMD, Share::Shared, 0)?;
        view.load(0)?;
        check!(view.mapped(0).is_some_and(|mapped| mapped.order == 9));
        drop(view);
        // The other file has lost its first page.
        file.set_extents(&[
            Stretch::mapped(0, 1, old),
            Stretch::mapped(1, PMD - 1, old + 1).shared(),
        ])?;
        file.set_extents_for_writing(&[
            Stretch::mapped(0, 1, old),
            Stretch::mapped(1, PMD - 1, new + 1)
                .shared()
                .copy_of(old + 1),
        ])?;
        let view = View::new(&file, 0, PMD, Share::Shared, 1)?;
        view.store(0, 0x22)?;
        view.store(7, 0x33)?;
        check!(world.is_filled(old, 7 * Order::PTE.bytes(), PMD * Order::PTE.bytes(), 0x11));
        check_mapped(&world, &view, 7, Order::PTE, new + 7, true)?;
        check_eq!(view.load(0)?, 0x22);
        drop(view);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn a_fatal_signal_ends_an_access_of_the_kernel_that_waits_for_a_page() -> Checked {
        let world = world()?;
        let place = world.take(Order::PMD)?;
        let (large, small) = (world.file(PMD)?, world.file(1)?);
        put(&large, 0, Order::PMD, place, false)?;
        let held = hold(world.page(place).folio());
        clear(&large);
        small.set_extents(&[Stretch::mapped(0, 1, place + 5)])?;
        let ended = Atomic::new(false);
        let (result, (waited, over)) = with_thread(
            || -> Checked<Result> {
                let view = View::new(&small, 0, 1, Share::Shared, 0)?;
                let result = view.store(0, 1);
                ended.store(true, Release);
                Ok(result)
            },
            |thread| {
                let waited = thread.waits();
                thread.signal(true);
                let over = until(|| ended.load(Acquire));
                drop(held);
                (waited, over)
            },
        )?;
        check!(waited);
        check!(over, "the access goes on for ever");
        check_eq!(result?, Err(EFAULT));
        clear(&small);
        put(&large, 0, Order::PMD, place, false)?;
        clear(&large);
        world.check_clean()
    }

    /// A store that makes a copy of a page that somebody holds, in an entry of `order`.
    fn store_to_what_is_held(order: Order, signal: bool) -> Checked {
        let world = world()?;
        let (old, new) = (world.take(Order::PMD)?, world.take(Order::PMD)?);
        let file = world.file(PMD)?;
        world.fill(old, PMD, 0x11);
        set_shared(&file, PMD, old, new)?;
        put_shared(&file, 0, order, old, false, true)?;
        let held = hold(world.page(old).folio());
        let ended = Atomic::new(false);
        let (result, (waited, kept, over)) = with_thread(
            || -> Checked<Result> {
                let view = View::new(&file, 0, PMD, Share::Shared, 0)?;
                let result = view.store(0, 0x22);
                ended.store(true, Release);
                Ok(result)
            },
            |thread| {
                let waited = thread.waits();
                let kept = look(&file, 0).is_some();
                if signal {
                    thread.signal(true);
                } else {
                    drop(held);
                }
                (waited, kept, until(|| ended.load(Acquire)))
            },
        )?;
        check!(waited);
        check!(kept, "the entry of a page that is held is gone");
        check!(over, "the access goes on for ever");
        check_eq!(result?, if signal { Err(EFAULT) } else { Ok(()) });
        check!(world.is_filled(old, 0, PMD << Order::PAGE_SHIFT, 0x11));
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn a_store_gives_up_no_page_that_somebody_holds() -> Checked {
        set_max_order(Order::PMD)?;
        for order in [Order::PTE, Order::PMD] {
            store_to_what_is_held(order, false)?;
        }
        Ok(())
    }

    #[test]
    fn a_fatal_signal_ends_a_store_that_waits_for_who_holds_the_old_page() -> Checked {
        for order in [Order::PTE, Order::PMD] {
            store_to_what_is_held(order, true)?;
        }
        Ok(())
    }

    #[test]
    fn who_waits_for_a_page_keeps_nobody_from_the_file() -> Checked {
        let world = world()?;
        let place = world.take(Order::PMD)?;
        let (large, small) = (world.file(PMD)?, world.file(1)?);
        put(&large, 0, Order::PMD, place, false)?;
        let held = hold(world.page(place).folio());
        clear(&large);
        small.set_extents(&[Stretch::mapped(0, 1, place + 5)])?;
        let (stored, ended) = (Atomic::new(false), Atomic::new(false));
        // One stores to the page, the other wants the file for himself as a truncate does.
        let (results, (waited, got)) = with_threads(
            2,
            |number| -> Checked {
                if number == 0 {
                    let view = View::new(&small, 0, 1, Share::Shared, 0)?;
                    view.store(0, 1)?;
                    stored.store(true, Release);
                    return Ok(());
                }
                // The other's faults have begun.
                check!(until(|| small.faults() != 0));
                for _ in 0..4 {
                    let _out = small.mapping().keep_faults_out();
                    drop(tree::lock_present(small.mapping(), at(0)));
                    let range = PageRange::ALL;
                    check_eq!(
                        layout::break_layout(small.inode(), range, Patience::None),
                        Ok(())
                    );
                }
                ended.store(true, Release);
                Ok(())
            },
            |threads| {
                let got = until(|| ended.load(Acquire));
                let waited =
                    threads.first().is_some_and(|thread| thread.waits()) && !stored.load(Acquire);
                drop(held);
                (waited, got)
            },
        )?;
        check!(got, "the file is kept from others");
        check!(waited, "the store did not wait");
        for result in results {
            result?;
        }
        check!(stored.load(Acquire));
        check!(small.faults() > 1);
        clear(&small);
        world.check_clean()
    }

    #[test]
    fn who_waits_for_a_page_of_a_device_that_goes_gets_an_error() -> Checked {
        let result = (|| {
            let world = world()?;
            let place = world.take(Order::PMD)?;
            let (large, small) = (world.file(PMD)?, world.file(1)?);
            put(&large, 0, Order::PMD, place, false)?;
            let held = hold(world.page(place).folio());
            clear(&large);
            small.set_extents(&[Stretch::mapped(0, 1, place + 5)])?;
            let ended = Atomic::new(false);
            let (result, (waited, retired, over)) = with_thread(
                || -> Checked<Result> {
                    let view = View::new(&small, 0, 1, Share::Shared, 0)?;
                    let result = view.store(0, 1);
                    ended.store(true, Release);
                    Ok(result)
                },
                |thread| {
                    let waited = thread.waits();
                    // Comes back when nobody looks at the page any more.
                    let retired = adopted().map(|device| {
                        if let Some(device) = &*device.lock() {
                            device.retire();
                        }
                    });
                    let over = until(|| ended.load(Acquire));
                    drop(held);
                    (waited, retired, over)
                },
            )?;
            retired?;
            check!(waited);
            check!(over);
            check_eq!(result?, Err(EFAULT));
            clear(&small);
            put(&large, 0, Order::PMD, place, false)?;
            clear(&large);
            world.check_clean()
        })();
        // For the others, as if another device had come.
        release()?;
        result
    }

    #[test]
    fn large_entries_do_without_pages_that_somebody_holds() -> Checked {
        let world = world()?;
        let place = world.take(Order::PMD)?;
        let (old, file) = (world.file(PMD)?, world.file(PMD)?);
        put(&old, 7, Order::PTE, place + 7, false)?;
        let held = hold(world.page(place + 7).folio());
        clear(&old);
        file.set_extents(&[Stretch::mapped(0, PMD, place)])?;
        let ended = Atomic::new(false);
        let (result, in_time) = with_thread(
            || -> Checked {
                let view = View::new(&file, 0, PMD, Share::Shared, 0)?;
                view.store(100, 1)?;
                ended.store(true, Release);
                check!(view.mapped(100).is_some_and(|mapped| mapped.order == 0));
                Ok(())
            },
            |_| {
                let in_time = until(|| ended.load(Acquire));
                drop(held);
                in_time
            },
        )?;
        result?;
        check!(in_time, "one held page keeps others from their neighbours");
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn the_filesystem_takes_back_all_that_a_failed_fault_was_for() -> Checked {
        let world = world()?;
        let (old, new) = (
            world.take(Order::PMD)?,
            world.take_many(2 * PMD, Order::PMD)?,
        );
        let file = world.file(PMD)?;
        world.fill(old, PMD, 0x11);
        // No 2 MiB can be mapped there.
        set_shared(&file, PMD, old, new + 1)?;
        set_max_order(Order::PMD)?;
        file.fail_begin(None);
        file.fail_end(None);
        let view = View::new(&file, 0, PMD, Share::Shared, 0)?;
        view.store(0, 0x22)?;
        let end = file.first_end();
        check_eq!(
            end.map(|end| (end.position, end.length, end.written)),
            Some((0, Order::PMD.bytes() as u64, 0))
        );
        check_eq!(file.begins(), file.ends());
        drop(view);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn a_write_to_a_shared_extent_without_data_makes_zeroes() -> Checked {
        let world = world()?;
        let file = world.file(1)?;
        let place = world.take(Order::PTE)?;
        world.fill(place, 1, 0xee);
        file.set_extents_for_writing(&[Stretch::unwritten(0, 1, place).shared()])?;
        let view = View::new(&file, 0, 1, Share::Shared, 0)?;
        view.store(0, 0)?;
        check!(world.is_filled(place, 0, Order::PTE.bytes(), 0));
        drop(view);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn a_synchronous_write_is_mapped_when_its_metadata_is_durable() -> Checked {
        for order in [Order::PTE, Order::PMD, Order::PUD] {
            let world = world()?;
            let Some((file, place)) = mapped_file(&world, order)? else {
                continue;
            };
            file.set_extents(&[Stretch::mapped(0, order.pages(), place).dirty()])?;
            set_max_order(order)?;
            let view = View::new(&file, 0, order.pages(), Share::Sync, 0)?;
            let before = count(Counter::SyncFaults);
            file.fail_sync(Some(EIO));
            check_eq!(view.store(0, 1), Err(EFAULT));
            check!(view.mapped(0).is_none());
            check!(!is_marked(&file, 0, Mark::Dirty));
            check_eq!(file.syncs(), 1);
            file.fail_sync(None);
            file.forget_faults();
            view.store(0, 1)?;
            check_eq!(file.syncs(), 2);
            check_eq!(file.synced(), (0, order.bytes() as i64 - 1));
            check_eq!(count(Counter::SyncFaults), before + 2);
            let number = file.faults();
            check!(number >= 2);
            check_eq!(
                file.fault(number - 2).map(|fault| fault.code),
                Some(FaultCode::NEED_SYNC)
            );
            check_eq!(
                file.fault(number - 1).map(|fault| fault.code),
                Some(FaultCode::NOPAGE)
            );
            check_mapped(&world, &view, 0, order, place, true)?;
            check!(is_marked(&file, 0, Mark::Dirty));
            drop(view);
            clear(&file);
            world.check_clean()?;
        }
        Ok(())
    }

    #[test]
    fn a_synchronous_write_maps_what_was_made_durable_or_begins_anew() -> Checked {
        for order in [Order::PTE, Order::PMD] {
            let world = world()?;
            let Some((file, place)) = mapped_file(&world, order)? else {
                continue;
            };
            file.set_extents(&[Stretch::mapped(0, order.pages(), place).dirty()])?;
            set_max_order(order)?;
            let view = View::new(&file, 0, order.pages(), Share::Sync, 0)?;
            file.tell_of_other_memory();
            view.store(0, 1)?;
            check_eq!(file.syncs(), 2, "{order:?}");
            check_mapped(&world, &view, 0, order, place, true)?;
            drop(view);
            clear(&file);
            world.check_clean()?;
        }
        Ok(())
    }

    #[test]
    fn only_a_write_with_metadata_to_be_synced_is_synchronous() -> Checked {
        let world = world()?;
        let Some((file, place)) = mapped_file(&world, Order::PTE)? else {
            return Ok(());
        };
        let dirty = [Stretch::mapped(0, 1, place).dirty()];
        // Without MAP_SYNC.
        file.set_extents(&dirty)?;
        let view = View::new(&file, 0, 1, Share::Shared, 0)?;
        view.store(0, 1)?;
        drop(view);
        clear(&file);
        // A read.
        let view = View::new(&file, 0, 1, Share::Sync, 0)?;
        view.load(0)?;
        // With metadata that is durable, of a page that was read and of one that was not.
        file.set_extents(&[Stretch::mapped(0, 1, place)])?;
        view.store(0, 1)?;
        check_eq!(file.syncs(), 0);
        check!(is_marked(&file, 0, Mark::Dirty));
        clear(&file);
        view.store(0, 1)?;
        check_eq!(file.syncs(), 0);
        check!(is_marked(&file, 0, Mark::Dirty));
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
    fn adjacent_extents_are_mapped_as_one() -> Checked {
        let world = world()?;
        let file = world.file(PMD)?;
        let place = world.take_many(PMD + 8, Order::PMD)?;
        set_max_order(Order::PMD)?;
        let pieces = |gap: usize| {
            [
                Stretch::mapped(0, 100, place),
                Stretch::mapped(100, 200, place + 100),
                Stretch::mapped(300, PMD - 300, place + 300 + gap),
            ]
        };
        file.set_extents(&pieces(0))?;
        let view = View::new(&file, 0, PMD, Share::Shared, 0)?;
        view.store(250, 1)?;
        check_mapped(&world, &view, 250, Order::PMD, place + 250, true)?;
        drop(view);
        clear(&file);
        file.set_extents(&pieces(8))?;
        let view = View::new(&file, 0, PMD, Share::Shared, 0)?;
        check_eq!(
            fallback(&file, &view, 250, true, Counter::FallbackExtent)?,
            1
        );
        view.store(400, 1)?;
        check_mapped(&world, &view, 400, Order::PTE, place + 408, true)?;
        drop(view);
        clear(&file);
        // A hole in the middle is not adjacent either.
        file.set_extents(&[
            Stretch::mapped(0, 100, place),
            Stretch::mapped(101, PMD - 101, place + 101),
        ])?;
        let view = View::new(&file, 0, PMD, Share::Shared, 0)?;
        check_eq!(fallback(&file, &view, 5, true, Counter::FallbackExtent)?, 1);
        drop(view);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn adjacent_blocks_are_new_if_any_of_them_is() -> Checked {
        let world = world()?;
        let place = world.take(Order::PMD)?;
        set_max_order(Order::PMD)?;
        for number in [None, Some(0), Some(1), Some(2)] {
            let file = world.file(PMD)?;
            let mut pieces = [
                Stretch::mapped(0, 100, place),
                Stretch::mapped(100, 200, place + 100),
                Stretch::mapped(300, PMD - 300, place + 300),
            ];
            if let Some(piece) = number.and_then(|number: usize| pieces.get_mut(number)) {
                *piece = piece.new_blocks();
            }
            file.set_extents(&pieces)?;
            let view = View::new(&file, 0, PMD, Share::Shared, 0)?;
            view.store(250, 1)?;
            check_mapped(&world, &view, 250, Order::PMD, place + 250, true)?;
            let code = file.last_fault().map_or(0, |fault| fault.code.0);
            check_eq!(
                code & FaultCode::MAJOR.0 != 0,
                number.is_some(),
                "new: {number:?}"
            );
            drop(view);
            clear(&file);
        }
        world.check_clean()
    }

    #[test]
    fn adjacent_blocks_of_another_kind_or_device_stay_apart() -> Checked {
        let world = world()?;
        let place = world.take(Order::PMD)?;
        set_max_order(Order::PMD)?;
        let own = Stretch::mapped(0, 100, place);
        let (behind, memory) = (PMD - 100, place + 100);
        for (first, other, writes) in [
            (own, Stretch::unwritten(100, behind, memory), true),
            (own, Stretch::mapped(100, behind, memory).shared(), true),
            (own.shared(), Stretch::mapped(100, behind, memory), false),
            (own, Stretch::mapped(100, behind, memory).elsewhere(), true),
        ] {
            for write in [false, writes] {
                let file = world.file(PMD)?;
                file.set_extents(&[first, other])?;
                let view = View::new(&file, 0, PMD, Share::Shared, 0)?;
                let reason = Counter::FallbackExtent;
                check_eq!(fallback(&file, &view, 5, write, reason)?, 1);
                check_mapped(&world, &view, 5, Order::PTE, place + 5, write)?;
                check!(view.mapped(100).is_none());
                drop(view);
                clear(&file);
            }
        }
        world.check_clean()
    }

    #[test]
    fn metadata_of_any_adjacent_extent_are_made_durable() -> Checked {
        let world = world()?;
        let place = world.take(Order::PMD)?;
        set_max_order(Order::PMD)?;
        for dirty in 0..2 {
            let mut extents = [
                Stretch::mapped(0, 100, place),
                Stretch::mapped(100, PMD - 100, place + 100),
            ];
            extents[dirty] = extents[dirty].dirty();
            let file = world.file(PMD)?;
            file.set_extents(&extents)?;
            let view = View::new(&file, 0, PMD, Share::Sync, 0)?;
            view.store(5, 1)?;
            check_eq!(file.syncs(), 1);
            check_mapped(&world, &view, 5, Order::PMD, place + 5, true)?;
            drop(view);
            clear(&file);
        }
        world.check_clean()
    }

    #[test]
    fn a_copy_is_durable_before_it_takes_the_place_of_the_old_blocks() -> Checked {
        for order in [Order::PTE, Order::PMD] {
            for (share, syncs) in [(Share::Sync, 1), (Share::Shared, 0)] {
                let world = world()?;
                let pages = order.pages();
                let file = world.file(pages)?;
                let (old, new) = (world.take(order)?, world.take(order)?);
                world.fill(old, pages, 0x11);
                set_max_order(order)?;
                file.set_extents(&[Stretch::mapped(0, pages, old).shared()])?;
                let copy = Stretch::mapped(0, pages, new).shared().copy_of(old);
                file.set_extents_for_writing(&[copy.dirty()])?;
                let view = View::new(&file, 0, pages, share, 0)?;
                let flushes = Flushes::watch(&file, 0, 0)?;
                view.store(0, 9)?;
                check_eq!(file.syncs(), syncs);
                check!(flushes.covers(world.pfn(new), order), "{order:?}");
                check_mapped(&world, &view, 0, order, new, true)?;
                drop((flushes, view));
                clear(&file);
                world.check_clean()?;
            }
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
            Stretch::mapped(0, 100, place),
            Stretch::mapped(100, PMD - 100, place + 100),
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
        file.set_extents(&[Stretch::inline(0, PMD)])?;
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
        file.set_extents(&[Stretch::mapped(0, 2 * PMD, place)])?;
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
