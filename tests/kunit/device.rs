// SPDX-License-Identifier: GPL-2.0

//! Whose counters and switches apply to a file.

use kernel::prelude::*;

#[kunit_tests(rdax_device)]
mod tests {
    use crate::{
        dax::{device::FileDevice, stats::Counter},
        kern::{order::Order, testing::Checked},
        tests::helpers::*,
    };

    #[test]
    fn a_file_on_an_adopted_device_is_counted_there() -> Checked {
        let world = world()?;
        let file = world.file(1)?;
        let before = count(Counter::CowPages);
        FileDevice::of(file.inode()).inc(Counter::CowPages);
        FileDevice::of(file.inode()).add(Counter::CowPages, 5);
        check_eq!(count(Counter::CowPages), before + 6);
        for order in [Order::PTE, Order::PMD, Order::PUD] {
            set_max_order(order)?;
            check_eq!(
                FileDevice::of(file.inode()).max_order(file.mapping()),
                order
            );
        }
        // As they are by default, at last.
        for (around, write) in [(0, 8), (3, 0), (4, 2)] {
            let (around, write) = (Order::from_bits(around), Order::from_bits(write));
            set_fault_around(around)?;
            set_write_order(write)?;
            check_eq!(FileDevice::of(file.inode()).fault_around(), around);
            check_eq!(FileDevice::of(file.inode()).write_order(), write);
        }
        Ok(())
    }

    #[test]
    fn a_file_of_nobody_is_not_counted_and_gets_the_smallest_order() -> Checked {
        let world = world()?;
        let file = world.file(1)?;
        let before = count(Counter::CowPages);
        world.set_foreign(true);
        let device = FileDevice::of(file.inode());
        device.inc(Counter::CowPages);
        let order = device.max_order(file.mapping());
        world.set_foreign(false);
        check_eq!(count(Counter::CowPages), before);
        check_eq!(order, Order::PTE);
        Ok(())
    }
}
