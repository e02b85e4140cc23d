// SPDX-License-Identifier: GPL-2.0

//! Extents that a fault takes for one (spec, section 4).

use kernel::prelude::*;

#[kunit_tests(rdax_extents)]
mod tests {
    use crate::{
        dax::{poison, stats::Counter},
        kern::{
            order::Order,
            testing::{Checked, Share, TestExtent, View},
            vm::FaultCode,
        },
        tests::helpers::*,
    };

    const PMD: usize = Order::PMD.pages();

    #[test]
    fn adjacent_extents_are_mapped_as_one() -> Checked {
        let world = world()?;
        let file = world.file(PMD)?;
        let place = world.take_many(PMD + 8, Order::PMD)?;
        set_max_order(Order::PMD)?;
        let pieces = |gap: usize| {
            [
                TestExtent::mapped(0, 100, place),
                TestExtent::mapped(100, 200, place + 100),
                TestExtent::mapped(300, PMD - 300, place + 300 + gap),
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
            TestExtent::mapped(0, 100, place),
            TestExtent::mapped(101, PMD - 101, place + 101),
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
                TestExtent::mapped(0, 100, place),
                TestExtent::mapped(100, 200, place + 100),
                TestExtent::mapped(300, PMD - 300, place + 300),
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
    fn a_page_that_failed_among_new_blocks_was_not_overwritten() -> Checked {
        let world = world()?;
        let place = world.take(Order::PMD)?;
        set_max_order(Order::PMD)?;
        let file = world.file(PMD)?;
        file.set_extents(&[TestExtent::mapped(0, PMD, place).new_blocks()])?;
        world.set_poison(place + 3, true);
        // The lock of a memory failure, which tells the faults that there was one.
        let (cookie, _) = poison::lock_index(file.mapping(), at(0));
        poison::unlock_index(file.mapping(), cookie);
        let view = View::new(&file, 0, PMD, Share::Shared, 0)?;
        check_eq!(
            fallback(&file, &view, 250, true, Counter::FallbackPoison)?,
            1
        );
        check!(world.page(place + 3).is_poisoned());
        check_mapped(&world, &view, 250, Order::PTE, place + 250, true)?;
        // One that the filesystem was asked for alone has been.
        view.store(3, 1)?;
        check!(!world.page(place + 3).is_poisoned());
        drop(view);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn adjacent_blocks_of_another_kind_or_device_stay_apart() -> Checked {
        let world = world()?;
        let place = world.take(Order::PMD)?;
        set_max_order(Order::PMD)?;
        let own = TestExtent::mapped(0, 100, place);
        let (behind, memory) = (PMD - 100, place + 100);
        for (first, other, writes) in [
            (own, TestExtent::unwritten(100, behind, memory), true),
            (own, TestExtent::mapped(100, behind, memory).shared(), true),
            (own.shared(), TestExtent::mapped(100, behind, memory), false),
            (
                own,
                TestExtent::mapped(100, behind, memory).elsewhere(),
                true,
            ),
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
}
