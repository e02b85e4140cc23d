// SPDX-License-Identifier: GPL-2.0

//! Faults on holes, which are mapped with zeroes (spec, section 4).

use kernel::prelude::*;

#[kunit_tests(rdax_holes)]
mod tests {
    use crate::{
        dax::stats::Counter,
        kern::{
            entry::Entry,
            order::Order,
            testing::{Checked, Share, TestExtent, View},
            vm::FaultCode,
        },
        tests::helpers::*,
    };
    use kernel::prelude::*;

    const PMD: usize = Order::PMD.pages();

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
                    file.set_extents(&[TestExtent::unwritten(0, PMD, 0)])?;
                } else {
                    file.set_extents(&[TestExtent::hole(0, PMD)])?;
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
            TestExtent::hole(0, 1),
            TestExtent::unwritten(0, 1, 0),
            TestExtent::inline(0, 1),
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
            file.set_extents(&[TestExtent::hole(0, pages)])?;
            set_max_order(order)?;
            let view = View::new(&file, 0, pages, Share::Shared, 0)?;
            let other = View::new(&file, 0, pages, Share::Shared, 0)?;
            check_eq!((view.load(0)?, other.load(0)?), (0, 0));
            check!(other.mapped(0).is_some());
            file.set_extents_for_writing(&[TestExtent::mapped(0, pages, place).new_blocks()])?;
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
            file.set_extents(&[TestExtent::mapped(0, pages, place)])?;
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
        file.set_extents(&[TestExtent::hole(0, PMD)])?;
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
    fn a_write_to_a_shared_extent_without_data_makes_zeroes() -> Checked {
        let world = world()?;
        let file = world.file(1)?;
        let place = world.take(Order::PTE)?;
        world.fill(place, 1, 0xee);
        file.set_extents_for_writing(&[TestExtent::unwritten(0, 1, place).shared()])?;
        let view = View::new(&file, 0, 1, Share::Shared, 0)?;
        view.store(0, 0)?;
        check!(world.is_filled(place, 0, Order::PTE.bytes(), 0));
        drop(view);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn a_write_to_a_shared_extent_without_data_unmaps_the_zeroes() -> Checked {
        let world = world()?;
        let file = world.file(1)?;
        let place = world.take(Order::PTE)?;
        file.set_extents_for_writing(&[TestExtent::unwritten(0, 1, place).shared()])?;
        let view = View::new(&file, 0, 1, Share::Shared, 0)?;
        let other = View::new(&file, 0, 1, Share::Shared, 0)?;
        check_eq!(other.load(0)?, 0);
        view.store(0, 7)?;
        check_eq!(other.load(0)?, 7);
        drop(other);
        drop(view);
        clear(&file);
        world.check_clean()
    }
}
