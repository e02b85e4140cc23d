// SPDX-License-Identifier: GPL-2.0

//! Zeroing, and memory that is bad (spec, section 6).

use kernel::prelude::*;

#[kunit_tests(rdax_zero)]
mod tests {
    use crate::{
        dax::io,
        kern::{
            error::eopnotsupp,
            order::Order,
            testing::{Buffer, Calls, Checked, Ext4Zeroes, Flushes, TestExtent, Yields},
        },
        tests::helpers::{transfers::*, *},
    };
    use kernel::prelude::*;

    #[test]
    fn a_bad_page_that_was_overwritten_in_part_stays_bad() -> Checked {
        let world = world()?;
        let file = world.file(1)?;
        let place = world.take(Order::PTE)?;
        world.fill(place, 1, 0x11);
        file.set_extents(&[TestExtent::mapped(0, 1, place)])?;
        world.set_poison(place, true);
        let (result, _) = with_short_buffer(&world, 100, |address| {
            Ok(transfer(&file, 0, 0, Buffer::WriteUser(address, PAGE)))
        })?;
        check!(result.is_err() || result.is_ok_and(|done| done <= 100));
        let stays = world.page(place).is_poisoned();
        world.set_poison(place, false);
        check!(stays);
        world.check_clean()
    }

    #[test]
    fn a_page_marked_as_bad_is_not_read() -> Checked {
        let world = world()?;
        let file = world.file(4)?;
        let place = world.take_many(4, Order::PTE)?;
        world.fill(place, 4, 0x11);
        file.set_extents(&[TestExtent::mapped(0, 4, place)])?;
        world.set_poison(place + 2, true);
        let mut bytes = filled(4 * PAGE, 0)?;
        check_eq!(read(&file, 2 * PAGE, &mut bytes[..10]).0, Err(EIO));
        check_eq!(read(&file, 0, &mut bytes[..2 * PAGE]).0, Ok(2 * PAGE));
        check_eq!(read(&file, 3 * PAGE, &mut bytes[..PAGE]).0, Ok(PAGE));
        // A part of it would keep what was lost.
        check_eq!(write(&file, 2 * PAGE + 8, &[1; 8]).0, Err(EIO));
        check_eq!(write(&file, 2 * PAGE, &[1; 8]).0, Err(EIO));
        check!(world.page(place + 2).is_poisoned());
        // All of it is as good as new.
        let new = filled(PAGE, 0x22)?;
        check_eq!(write(&file, 2 * PAGE, &new).0, Ok(PAGE));
        check!(!world.page(place + 2).is_poisoned());
        check_eq!(read(&file, 0, &mut bytes).0, Ok(4 * PAGE));
        check!(all(&bytes[2 * PAGE..3 * PAGE], 0x22));
        world.check_clean()
    }

    #[test]
    fn a_page_marked_as_bad_is_good_when_it_was_zeroed() -> Checked {
        let world = world()?;
        let file = world.file(2)?;
        let place = world.take_many(2, Order::PTE)?;
        world.fill(place, 2, 0x11);
        file.set_extents(&[TestExtent::mapped(0, 2, place)])?;
        world.set_poison(place, true);
        let mut zeroed = false;
        let zero = |from: u64, len: u64, zeroed: &mut bool| {
            io::zero_range(file.inode(), from, len, file.ops(), zeroed)
        };
        check_eq!(zero(8, 100, &mut zeroed), Err(EIO));
        check!(!zeroed);
        check_eq!(zero(0, PAGE as u64, &mut zeroed), Ok(()));
        check!(zeroed);
        check!(!world.page(place).is_poisoned());
        check!(world.is_filled(place, 0, PAGE, 0));
        Ok(())
    }

    #[test]
    fn a_block_that_the_device_knows_as_bad_is_an_io_error() -> Checked {
        let world = world()?;
        let file = world.file(3)?;
        let place = world.take_many(3, Order::PTE)?;
        file.set_extents(&[TestExtent::mapped(0, 3, place)])?;
        if let Err(error) = world.set_bad_blocks(place + 1, true) {
            check_eq!(error, eopnotsupp());
            crate::kern::testing::skip(c"the device keeps no list of bad blocks");
            return Ok(());
        }
        let mut bytes = [0; 16];
        let bad = read(&file, PAGE, &mut bytes).0;
        let good = read(&file, 0, &mut bytes).0;
        let cleared = world.set_bad_blocks(place + 1, false);
        check_eq!(bad, Err(EIO));
        check_eq!(good, Ok(16));
        check_eq!(cleared, Ok(()));
        check_eq!(read(&file, PAGE, &mut bytes).0, Ok(16));
        Ok(())
    }

    #[test]
    fn zeroes_are_put_past_what_the_device_knows_as_bad() -> Checked {
        let world = world()?;
        // Such that the bad ones are at an end, and beside a middle.
        let place = world.take_many(9, Order::PTE)?;
        for bad in [place, place + 3, place + 8] {
            world.fill(place, 9, 0x11);
            if let Err(error) = world.set_bad_blocks(bad, true) {
                check_eq!(error, eopnotsupp());
                crate::kern::testing::skip(c"the device keeps no list of bad blocks");
                return Ok(());
            }
            let put = world.put_zeroes(place, 9);
            let cleared = world.set_bad_blocks(bad, false);
            check_eq!(put, Ok(()), "page {bad} is bad");
            check_eq!(cleared, Ok(()));
            for page in (place..place + 9).filter(|page| *page != bad) {
                check!(
                    world.is_filled(page, 0, PAGE, 0),
                    "page {page} beside {bad}"
                );
            }
        }
        world.check_clean()
    }

    #[test]
    fn zeroes_are_put_on_pages_that_have_failed() -> Checked {
        let world = world()?;
        let place = world.take_many(6, Order::PTE)?;
        world.fill(place, 6, 0x11);
        for failed in [place, place + 1, place + 3] {
            world.set_poison(failed, true);
        }
        // Each has its address in the kernel again, before it is written. That beside the zeroes keeps its mark.
        let seen = Calls::watch(c"rdax_see_again")?;
        let put = world.put_zeroes(place + 1, 4);
        let again = seen.count();
        drop(seen);
        let beside = world.page(place).is_poisoned();
        for failed in [place, place + 1, place + 3] {
            world.set_poison(failed, false);
        }
        check_eq!(put, Ok(()));
        check_eq!(again, 2);
        check!(beside);
        check!(world.is_filled(place + 1, 0, 4 * PAGE, 0));
        check!(world.is_filled(place, 0, PAGE, 0x11));
        check!(world.is_filled(place + 5, 0, PAGE, 0x11));
        world.check_clean()
    }

    #[test]
    fn zeroes_for_metadata_are_an_error_on_pages_that_have_failed() -> Checked {
        let world = world()?;
        let place = world.take_many(4, Order::PTE)?;
        world.fill(place, 4, 0x11);
        world.set_poison(place + 2, true);
        let beside = world.put_zeroes_for_metadata(place, 2);
        let seen = Calls::watch(c"rdax_see_again")?;
        let put = world.put_zeroes_for_metadata(place, 4);
        let again = seen.count();
        drop(seen);
        let stays = world.page(place + 2).is_poisoned();
        // As good as any, if somebody made it up.
        world.set_poison(place + 2, false);
        world.page(place + 2).note_failure(true);
        world.set_poison(place + 2, true);
        let made_up = world.put_zeroes_for_metadata(place + 2, 1);
        world.page(place + 2).note_failure(false);
        world.set_poison(place + 2, false);
        check_eq!(beside, Ok(()));
        check_eq!(put, Err(EIO));
        check_eq!(again, 0);
        check!(stays);
        check_eq!(made_up, Ok(()));
        check!(world.is_filled(place, 0, 3 * PAGE, 0));
        check!(world.is_filled(place + 3, 0, PAGE, 0x11));
        world.check_clean()
    }

    #[test]
    fn blocks_of_files_are_told_from_what_ext4_has_for_itself() -> Checked {
        // A table's neighbours, and blocks on both sides of 2^32, are files'.
        const FAR: u64 = 1 << 32;
        let file = Ext4Zeroes::OF_A_FILE;
        for (first, blocks, gives) in [
            (0, 1, true),
            (90, 10, true),
            (90, 11, false),
            (100, 1, false),
            (105, 1, false),
            (109, 1, false),
            (110, 290, true),
            (50, 300, false),
            (400, 10, false),
            (410, 490, true),
            // Only the low half of where the last table is.
            (900, 10, true),
            (FAR + 890, 10, true),
            (FAR + 900, 1, false),
            (FAR + 909, 1, false),
            (FAR + 910, 90, true),
            // The filesystem does not count them.
            (FAR + 910, 91, false),
            (FAR + 1000, 1, false),
            (0, 0, false),
        ] {
            check!(
                file.gives(first, blocks) == Ok(gives),
                "{blocks} blocks at {first}"
            );
        }
        for other in [
            Ext4Zeroes {
                nofs: false,
                ..file
            },
            Ext4Zeroes {
                handle: false,
                ..file
            },
            Ext4Zeroes {
                ext4: false,
                ..file
            },
        ] {
            check!(other.gives(110, 1) == Ok(false), "{other:?}");
        }
        Ok(())
    }

    #[test]
    fn looking_for_failed_pages_gives_way() -> Checked {
        const PAGES: usize = 8 * Order::PMD.pages();
        let world = world()?;
        let place = world.take_many(PAGES, Order::PTE)?;
        let yields = Yields::watch()?;
        check_eq!(world.put_zeroes(place, PAGES), Ok(()));
        let given = yields.count();
        drop(yields);
        check!(
            given >= PAGES / Order::PMD.pages(),
            "gave way {given} times"
        );
        world.check_clean()
    }

    #[test]
    fn zeroing_writes_only_where_there_is_data() -> Checked {
        let world = world()?;
        let file = world.file(5)?;
        let place = world.take_many(5, Order::PTE)?;
        world.fill(place, 5, 0x11);
        file.set_extents(&[
            TestExtent::mapped(0, 3, place),
            TestExtent::hole(3, 1),
            TestExtent::unwritten(4, 1, place + 4),
        ])?;
        let mut zeroed = false;
        let zero = |from: usize, to: usize, zeroed: &mut bool| {
            io::zero_range(
                file.inode(),
                from as u64,
                (to - from) as u64,
                file.ops(),
                zeroed,
            )
        };
        check_eq!(zero(3 * PAGE, 5 * PAGE, &mut zeroed), Ok(()));
        check!(!zeroed, "nothing was there to be zeroed");
        // Or it would take for data what it has set aside there.
        check_eq!(file.first_end().map(|end| end.written), Some(0));
        check_eq!(file.last_end().map(|end| end.written), Some(0));
        check!(world.is_filled(place + 4, 0, PAGE, 0x11));
        let flushes = Flushes::watch(&file, 0, 0)?;
        check_eq!(zero(10, 2 * PAGE + 20, &mut zeroed), Ok(()));
        check!(flushes.count() > 0, "zeroes were not written back");
        check!(
            flushes.iter().all(|flush| flush.byte == 0),
            "written back before they were there"
        );
        drop(flushes);
        check!(zeroed);
        check!(world.is_filled(place, 0, 10, 0x11));
        check!(world.is_filled(place, 10, 2 * PAGE + 20, 0));
        check!(world.is_filled(place, 2 * PAGE + 20, 3 * PAGE, 0x11));
        Ok(())
    }

    #[test]
    fn truncating_zeroes_the_rest_of_the_block() -> Checked {
        let world = world()?;
        let file = world.file(2)?;
        let place = world.take_many(2, Order::PTE)?;
        world.fill(place, 2, 0x11);
        file.set_extents(&[TestExtent::mapped(0, 2, place)])?;
        let mut zeroed = false;
        let cut = |at: usize, zeroed: &mut bool| {
            io::truncate_page(file.inode(), at as u64, file.ops(), zeroed)
        };
        check_eq!(cut(PAGE, &mut zeroed), Ok(()));
        check!(!zeroed);
        check_eq!(cut(100, &mut zeroed), Ok(()));
        check!(zeroed);
        check!(world.is_filled(place, 0, 100, 0x11));
        check!(world.is_filled(place, 100, PAGE, 0));
        check!(world.is_filled(place + 1, 0, PAGE, 0x11));
        file.set_block_bits(9);
        check_eq!(cut(PAGE + 100, &mut zeroed), Ok(()));
        check!(world.is_filled(place + 1, 100, 512, 0));
        check!(world.is_filled(place + 1, 512, PAGE, 0x11));
        file.set_block_bits(12);
        Ok(())
    }
}
