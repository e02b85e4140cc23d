// SPDX-License-Identifier: GPL-2.0

//! Why a fault is not served by an entry of its order (spec, section 4).

use kernel::prelude::*;

#[kunit_tests(rdax_fallback)]
mod tests {
    use crate::{
        dax::{adopt::Adopted, poison, stats::Counter},
        kern::{
            order::Order,
            testing::{with_paths, without_zeroes, Checked, Share, TestExtent, View},
            vm::FaultCode,
            xa::Mark,
        },
        tests::helpers::*,
    };
    use kernel::prelude::*;

    const PMD: usize = Order::PMD.pages();
    const PUD: usize = Order::PUD.pages();

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
    fn falls_back_to_2m_for_files_that_reclaim_looks_at() -> Checked {
        let world = world()?;
        let Some((file, _)) = mapped_file(&world, Order::PUD)? else {
            return Ok(());
        };
        file.let_read_folios();
        let view = View::new(&file, 0, PUD, Share::Shared, 0)?;
        let before = count(Counter::FallbackMaxOrder);
        view.load(3)?;
        check_eq!(count(Counter::FallbackMaxOrder) - before, 1);
        check!(view
            .mapped(3)
            .is_some_and(|mapped| mapped.order == Order::PMD.bits()));
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
    fn a_page_has_nothing_to_fall_back_to() -> Checked {
        const PAGES: usize = 16;
        let world = world()?;
        let place = world.take_many(PAGES, Order::PTE)?;
        let file = world.file(PAGES)?;
        file.set_extents(&[TestExtent::mapped(0, PAGES, place)])?;
        for share in [Share::Shared, Share::Private] {
            let view = View::new(&file, 0, PAGES, share, 0)?;
            // It is no entry, and none has room in its place.
            file.set_cached(3, true)?;
            let fallbacks = count(Counter::FallbackConflict);
            let errors = count(Counter::FaultErrors);
            file.forget_faults();
            check_eq!(view.load(3).err(), Some(EFAULT));
            check_eq!(view.store(3, 1).err(), Some(EFAULT));
            let mut failed = 0;
            for fault in (0..file.faults()).filter_map(|number| file.fault(number)) {
                if fault.order == 0 {
                    check_eq!(fault.code, FaultCode::SIGBUS);
                    check_eq!(fault.error, EIO.to_errno());
                    failed += 1;
                }
            }
            check_eq!(failed, 2);
            check_eq!(count(Counter::FallbackConflict), fallbacks);
            check_eq!(count(Counter::FaultErrors), errors + 2);
            // Its neighbours are as ever, and so is it when that is gone.
            view.load(2)?;
            view.store(4, 1)?;
            check!(view.mapped(3).is_none());
            file.set_cached(3, false)?;
            view.store(3, 1)?;
            drop(view);
            clear(&file);
        }
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
            TestExtent::mapped(0, PMD - 1, place),
            TestExtent::mapped(0, PMD, place + 1),
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
            TestExtent::hole(0, PMD - 1),
            TestExtent::mapped(PMD - 1, 1, place),
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
            file.set_extents(&[TestExtent::mapped(0, PMD, place)])?;
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
}
