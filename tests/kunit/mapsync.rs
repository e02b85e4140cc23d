// SPDX-License-Identifier: GPL-2.0

//! Faults whose metadata has to be durable (spec, section 4).

use kernel::prelude::*;

#[kunit_tests(rdax_mapsync)]
mod tests {
    use crate::{
        dax::stats::Counter,
        kern::{
            order::Order,
            testing::{Checked, Flushes, Share, TestExtent, View},
            vm::FaultCode,
            xa::Mark,
        },
        tests::helpers::*,
    };
    use kernel::prelude::*;

    const PMD: usize = Order::PMD.pages();

    #[test]
    fn a_synchronous_write_is_mapped_when_its_metadata_is_durable() -> Checked {
        for order in [Order::PTE, Order::PMD, Order::PUD] {
            let world = world()?;
            let Some((file, place)) = mapped_file(&world, order)? else {
                continue;
            };
            file.set_extents(&[TestExtent::mapped(0, order.pages(), place).dirty()])?;
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
            file.set_extents(&[TestExtent::mapped(0, order.pages(), place).dirty()])?;
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

    #[cfg(CONFIG_MEMORY_FAILURE)]
    #[test]
    fn memory_that_fails_during_the_sync_is_not_mapped() -> Checked {
        for order in [Order::PTE, Order::PMD] {
            let world = world()?;
            let Some((file, place)) = mapped_file(&world, order)? else {
                continue;
            };
            file.set_extents(&[TestExtent::mapped(0, order.pages(), place).dirty()])?;
            set_max_order(order)?;
            let view = View::new(&file, 0, order.pages(), Share::Sync, 0)?;
            let bad = order.pages() - 1;
            file.fail_memory_at_sync(place + bad);
            let stored = view.store(0, 1);
            check!(world.page(place + bad).is_poisoned());
            check!(view.mapped(bad).is_none(), "{order:?}");
            if order == Order::PTE {
                check_eq!(stored, Err(EFAULT));
                check_eq!(
                    file.fault(file.faults() - 1).map(|fault| fault.code),
                    Some(FaultCode::HWPOISON)
                );
                check!(!is_marked(&file, 0, Mark::Dirty));
            } else {
                // One bad page keeps the others from being mapped together with it, and from nothing else.
                stored?;
                check_mapped(&world, &view, 0, Order::PTE, place, true)?;
            }
            drop(view);
            world.set_poison(place + bad, false);
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
        let dirty = [TestExtent::mapped(0, 1, place).dirty()];
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
        file.set_extents(&[TestExtent::mapped(0, 1, place)])?;
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
    fn metadata_of_any_adjacent_extent_are_made_durable() -> Checked {
        let world = world()?;
        let place = world.take(Order::PMD)?;
        set_max_order(Order::PMD)?;
        for dirty in 0..2 {
            let mut extents = [
                TestExtent::mapped(0, 100, place),
                TestExtent::mapped(100, PMD - 100, place + 100),
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
            // Whether the file has metadata to be synced before the filesystem has taken over the copy.
            for (share, syncs, dirty) in [
                (Share::Sync, 1, true),
                (Share::Sync, 1, false),
                (Share::Shared, 0, true),
                (Share::Shared, 0, false),
            ] {
                let world = world()?;
                let pages = order.pages();
                let file = world.file(pages)?;
                let (old, new) = (world.take(order)?, world.take(order)?);
                world.fill(old, pages, 0x11);
                set_max_order(order)?;
                file.set_extents(&[TestExtent::mapped(0, pages, old).shared()])?;
                let copy = TestExtent::mapped(0, pages, new).shared().copy_of(old);
                let copy = if dirty { copy.dirty() } else { copy };
                file.set_extents_for_writing(&[copy])?;
                let view = View::new(&file, 0, pages, share, 0)?;
                let flushes = Flushes::watch(&file, 0, 0)?;
                view.store(0, 9)?;
                check_eq!(file.syncs(), syncs, "{order:?} {dirty}");
                check!(flushes.covers(world.pfn(new), order), "{order:?}");
                check_mapped(&world, &view, 0, order, new, true)?;
                drop((flushes, view));
                clear(&file);
                world.check_clean()?;
            }
        }
        Ok(())
    }
}
