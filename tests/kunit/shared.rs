// SPDX-License-Identifier: GPL-2.0

//! Writing, zeroing, unsharing and comparing where files share blocks (spec, section 6).

use kernel::prelude::*;

#[kunit_tests(rdax_shared)]
mod tests {
    use crate::{
        dax::io::{self, Side},
        kern::{
            order::Order,
            testing::{
                flush_signals, hold, until, with_thread, with_thread_waiting, Buffer, Checked,
                Failing, File, Flushes, Share, TestExtent, View, World,
            },
        },
        tests::helpers::{transfers::*, *},
    };
    use kernel::{
        prelude::*,
        sync::atomic::{Acquire, Atomic, Release},
    };

    const PMD: usize = Order::PMD.pages();

    #[test]
    fn a_write_to_a_shared_extent_keeps_what_is_around_it() -> Checked {
        let world = world()?;
        let file = world.file(3)?;
        let (old, new) = (
            world.take_many(3, Order::PTE)?,
            world.take_many(3, Order::PTE)?,
        );
        for hole in [false, true] {
            world.fill_differently(old, 3);
            world.fill(new, 3, 0xee);
            file.set_extents(&[TestExtent::mapped(0, 3, old).shared()])?;
            let target = TestExtent::mapped(0, 3, new).shared();
            let target = if hole { target } else { target.copy_of(old) };
            file.set_extents_for_writing(&[target])?;
            let bytes = filled(PAGE + 100, 0x77)?;
            check_eq!(write(&file, 30, &bytes).0, Ok(PAGE + 100));
            let around = |from, to| match hole {
                true => world.is_filled(new, from, to, 0),
                false => world.is_copy(new, from, to),
            };
            check!(around(0, 30));
            check!(world.is_filled(new, 30, PAGE + 130, 0x77));
            check!(around(PAGE + 130, 2 * PAGE));
            check!(world.is_copy(old, 0, 3 * PAGE), "the source was written to");
            // In the middle of a page that is not the first.
            world.fill(new, 3, 0xee);
            check_eq!(write(&file, PAGE + 77, &bytes[..5]).0, Ok(5));
            check!(around(PAGE, PAGE + 77));
            check!(world.is_filled(new, PAGE + 77, PAGE + 82, 0x77));
            check!(around(PAGE + 82, 2 * PAGE));
            check!(world.is_filled(new, 0, PAGE, 0xee));
            check!(world.is_filled(new, 2 * PAGE, 3 * PAGE, 0xee));
        }
        Ok(())
    }

    #[test]
    fn a_write_to_a_shared_page_that_ends_early_keeps_the_rest_of_it() -> Checked {
        let world = world()?;
        let file = world.file(2)?;
        let (old, new) = (
            world.take_many(2, Order::PTE)?,
            world.take_many(2, Order::PTE)?,
        );
        world.fill_differently(old, 2);
        world.fill(new, 2, 0xee);
        set_shared(&file, 2, old, new)?;
        // After it has told that the page is shared, and what there is to be written to. A filesystem
        // that has taken over the page would tell of the new one as the file's own.
        file.fail_begin(Some(Failing {
            call: 2,
            error: EIO,
        }));
        let (result, end) = with_short_buffer(&world, 100, |address| {
            let buffer = Buffer::WriteUser(address, PAGE + 500);
            Ok(transfer(&file, 30, 0, buffer))
        })?;
        let done = result?;
        check!(done > 0 && done <= 100);
        check_eq!(end, 30 + done as u64);
        check!(world.is_copy(new, 0, 30));
        check!(world.is_filled(new, 30, 30 + done, 0x44));
        check!(world.is_copy(new, 30 + done, PAGE));
        world.check_clean()
    }

    #[test]
    fn no_mapping_shows_the_old_copy_after_a_write() -> Checked {
        let world = world()?;
        let file = world.file(2)?;
        let (old, new) = (
            world.take_many(2, Order::PTE)?,
            world.take_many(2, Order::PTE)?,
        );
        world.fill(old, 2, 0x11);
        file.set_extents(&[TestExtent::mapped(0, 2, old).shared()])?;
        let view = View::new(&file, 0, 2, Share::Shared, 0)?;
        check_eq!(view.load(0)? & 0xff, 0x11);
        check_eq!(view.load(1)? & 0xff, 0x11);
        let copied = [TestExtent::mapped(0, 1, new).shared().copy_of(old)];
        file.set_extents_for_writing(&copied)?;
        check_eq!(write(&file, 0, &[0x22; 8]).0, Ok(8));
        check!(view.mapped(0).is_none());
        check!(look(&file, 0).is_none());
        // The other page was none of it.
        check!(view.mapped(1).is_some());
        file.set_extents(&[
            TestExtent::mapped(0, 1, new),
            TestExtent::mapped(1, 1, old + 1),
        ])?;
        check_eq!(view.load(0)? & 0xff, 0x22);
        drop(view);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn no_mapping_made_during_a_write_shows_the_old_copy_after_it() -> Checked {
        let world = world()?;
        let (file, old, new) = (
            world.file(2)?,
            world.take_many(2, Order::PTE)?,
            world.take_many(2, Order::PTE)?,
        );
        world.fill(old, 2, 0x11);
        set_shared(&file, 2, old, new)?;
        let view = View::new(&file, 0, 2, Share::Shared, 0)?;
        // After the filesystem has said that the old blocks are shared.
        for page in [0, 1] {
            file.access_at_begin(view.address(page));
            check_eq!(write(&file, 0, &filled(PAGE + 8, 0x22)?).0, Ok(PAGE + 8));
            check!(view.mapped(page).is_none());
            check_eq!(file.nrpages(), 0);
        }
        drop(view);
        world.check_clean()
    }

    /// The filesystem leaves the old blocks in their place, and tells nobody.
    #[test]
    fn a_copy_that_is_not_put_in_the_place_of_the_old_blocks_is_an_error() -> Checked {
        let result = (|| {
            let world = world()?;
            let (old, new) = (world.take(Order::PMD)?, world.take(Order::PMD)?);
            let file = world.file(PMD)?;
            set_shared(&file, PMD, old, new)?;
            file.can_share_blocks();
            world.fill(old, PMD, 0x11);
            // From now on it is known how to ask.
            let mut byte = [0];
            check_eq!(read(&file, 0, &mut byte).0, Ok(1));
            for len in [16, 7 * PAGE] {
                check_eq!(write(&file, 5, &filled(len, 0x22)?), (Err(EIO), 5));
            }
            let mut zeroed = false;
            let result = io::zero_range(file.inode(), 50, 60, file.ops(), &mut zeroed);
            check_eq!(result, Err(EIO));
            let result = io::file_unshare(file.inode(), 0, PAGE as u64, file.ops());
            check_eq!(result, Err(EIO));
            check_eq!(file.begins(), file.ends());
            // Nobody maps what is not the file's.
            let view = View::new(&file, 0, PMD, Share::Shared, 0)?;
            check_eq!(view.store(3, 1), Err(EFAULT));
            check!(view.mapped(3).is_none());
            check!(look(&file, 3).is_none_or(|(entry, _)| entry.page().is_none()));
            check_eq!(view.load(3)?, 0x1111_1111_1111_1111);
            check!(world.is_filled(old, 0, PMD * PAGE, 0x11));
            drop(view);
            clear(&file);
            world.check_clean()
        })();
        File::forget_reading();
        result
    }

    #[test]
    fn what_was_set_aside_for_a_copy_is_written_to() -> Checked {
        let world = world()?;
        let file = world.file(3 * PMD)?;
        let (old, new) = (
            world.take_many(3 * PMD, Order::PMD)?,
            world.take_many(3 * PMD, Order::PMD)?,
        );
        set_shared(&file, 3 * PMD, old, new)?;
        for len in [PAGE, 2 * PMD * PAGE + 5000] {
            file.fail_begin(None);
            file.fail_end(None);
            check_eq!(write(&file, 100, &filled(len, 0x22)?).0, Ok(len));
            // Each piece was told of as written, and then all of it: nothing is taken back.
            let (first, last) = (file.first_end(), file.last_end());
            check!(first.is_some_and(|end| end.written != 0));
            check!(last.is_some_and(|end| end.written == len));
            check_eq!(file.begins(), file.ends());
        }
        // Blocks that were not written are taken back.
        file.fail_end(None);
        let result = with_short_buffer(&world, 100, |address| {
            Ok(transfer(&file, 0, 0, Buffer::WriteUser(address + 100, PAGE)).0)
        })?;
        check_eq!(result, Err(EFAULT));
        check!(file.last_end().is_some_and(|end| end.written == 0));
        world.check_clean()
    }

    #[test]
    fn a_write_whose_source_it_takes_away_ends() -> Checked {
        let world = world()?;
        let file = world.file(PMD)?;
        let (old, new) = (world.take(Order::PMD)?, world.take(Order::PMD)?);
        set_max_order(Order::PMD)?;
        for (source, position, len) in [
            (0, 0, PAGE),
            (0, 100, PAGE),
            (3 * PAGE + 7, 300 * PAGE - 1, 100 * PAGE),
        ] {
            world.fill_differently(old, PMD);
            world.fill(new, PMD, 0xee);
            set_shared(&file, PMD, old, new)?;
            let ended = Atomic::new(false);
            let (result, over) = with_thread(
                || -> Checked<Done> {
                    let view = View::new(&file, 0, PMD, Share::Shared, 0)?;
                    view.load(0)?;
                    let buffer = Buffer::WriteUser(view.address(0) + source, len);
                    let done = transfer(&file, position, 0, buffer);
                    ended.store(true, Release);
                    Ok(done)
                },
                |thread| {
                    let over = until(|| ended.load(Acquire));
                    thread.signal(true);
                    over
                },
            )?;
            check!(over, "{len} bytes from {source} to {position} never end");
            check_eq!(result?, (Ok(len), (position + len) as u64));
            clear(&file);
            // The copy has the old contents.
            let mut bytes = filled(len, 0)?;
            file.set_extents(&[TestExtent::mapped(0, PMD, old)])?;
            check_eq!(read(&file, source, &mut bytes).0, Ok(len));
            let mut there = filled(len, 0)?;
            file.set_extents(&[TestExtent::mapped(0, PMD, new)])?;
            check_eq!(read(&file, position, &mut there).0, Ok(len));
            check!(
                bytes[..] == there[..],
                "{len} bytes from {source} to {position}"
            );
        }
        world.check_clean()
    }

    /// Giving up a page waits until nobody holds it, and a signal ends that with nothing done.
    fn waits_for_who_holds_it(
        world: &World,
        file: &File<'_>,
        old: usize,
        order: Order,
        work: impl Fn() -> Result + Sync,
    ) -> Checked {
        put_shared(file, 0, order, old, false, true)?;
        let held = hold(world.page(old).folio());
        let (result, waited) = with_thread(
            || {
                let result = work();
                flush_signals();
                result
            },
            |thread| {
                let waited = thread.waits();
                thread.signal(false);
                waited
            },
        )?;
        check!(waited);
        check_eq!(result, Err(ERESTARTSYS));
        check!(
            look(file, 0).is_some(),
            "the entry of a page that is held is gone"
        );
        let (result, waited) = with_thread_waiting(&work, || drop(held))?;
        check!(waited);
        check_eq!(result, Ok(()));
        check!(look(file, 0).is_none());
        Ok(())
    }

    #[test]
    fn nothing_is_given_up_for_a_copy_that_somebody_holds() -> Checked {
        let world = world()?;
        let file = world.file(PMD)?;
        let (old, new) = (world.take(Order::PMD)?, world.take(Order::PMD)?);
        set_shared(&file, PMD, old, new)?;
        for order in [Order::PTE, Order::PMD] {
            waits_for_who_holds_it(&world, &file, old, order, || {
                write(&file, 5, &[0x22; 16]).0.map(|_| ())
            })?;
            waits_for_who_holds_it(&world, &file, old, order, || {
                let mut zeroed = false;
                io::zero_range(file.inode(), 50, 60, file.ops(), &mut zeroed)
            })?;
            waits_for_who_holds_it(&world, &file, old, order, || {
                io::file_unshare(file.inode(), 0, PAGE as u64, file.ops())
            })?;
        }
        // The file's own blocks are written to, whoever holds them.
        file.set_extents(&[TestExtent::mapped(0, PMD, old)])?;
        put(&file, 0, Order::PTE, old, false)?;
        let held = hold(world.page(old).folio());
        check_eq!(write(&file, 5, &[0x22; 16]).0, Ok(16));
        drop(held);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn no_mapping_of_any_page_that_was_written_is_left() -> Checked {
        let world = world()?;
        let (old, new) = (
            world.take_many(4, Order::PTE)?,
            world.take_many(4, Order::PTE)?,
        );
        set_max_order(Order::PTE)?;
        for shared in [false, true] {
            let file = world.file(4)?;
            if shared {
                set_shared(&file, 4, old, new)?;
            } else {
                file.set_extents(&[TestExtent::hole(0, 4)])?;
                file.set_extents_for_writing(&[TestExtent::mapped(0, 4, new).new_blocks()])?;
            }
            let view = View::new(&file, 0, 4, Share::Shared, 0)?;
            for page in 0..4 {
                view.load(page)?;
            }
            check_eq!(write(&file, 5, &filled(2 * PAGE, 0x22)?).0, Ok(2 * PAGE));
            for page in 0..4 {
                check_eq!(view.mapped(page).is_none(), page < 3, "page {page}");
                check_eq!(look(&file, page).is_none(), page < 3, "page {page}");
            }
            drop(view);
            clear(&file);
        }
        world.check_clean()
    }

    #[test]
    fn a_long_write_to_a_shared_extent_is_all_there_wherever_it_begins() -> Checked {
        const PAGES: usize = 3 * PMD;
        let world = world()?;
        let (file, old, new) = (
            world.file(PAGES)?,
            world.take_many(PAGES, Order::PMD)?,
            world.take_many(PAGES, Order::PMD)?,
        );
        let bytes = filled(2 * PMD * PAGE + 5000, 0x22)?;
        for begin in [100, PAGE - 1] {
            world.fill(old, PAGES, 0x11);
            world.fill(new, PAGES, 0xee);
            let end = begin + bytes.len();
            set_shared(&file, PAGES, old, new)?;
            check_eq!(write(&file, begin, &bytes).0, Ok(bytes.len()));
            check!(world.is_filled(new, 0, begin, 0x11), "before {begin}");
            check!(world.is_filled(new, begin, end, 0x22), "from {begin} on");
            let rest = end.next_multiple_of(PAGE);
            check!(world.is_filled(new, end, rest, 0x11), "behind {end}");
            check!(world.is_filled(old, 0, PAGES * PAGE, 0x11));
            clear(&file);
        }
        world.check_clean()
    }

    #[test]
    fn zeroing_a_shared_page_copies_the_rest() -> Checked {
        let world = world()?;
        let file = world.file(1)?;
        let (old, new) = (world.take(Order::PTE)?, world.take(Order::PTE)?);
        world.fill_differently(old, 1);
        // Whether data are in the new blocks is no matter: those of the old ones count.
        for target in [
            TestExtent::mapped(0, 1, new),
            TestExtent::unwritten(0, 1, new),
        ] {
            world.fill(new, 1, 0xee);
            file.set_extents_for_writing(&[target.shared().copy_of(old)])?;
            let mut zeroed = false;
            check_eq!(
                io::zero_range(file.inode(), 50, 60, file.ops(), &mut zeroed),
                Ok(())
            );
            check!(zeroed);
            check!(world.is_copy(new, 0, 50));
            check!(world.is_filled(new, 50, 110, 0));
            check!(world.is_copy(new, 110, PAGE));
            check!(world.is_copy(old, 0, PAGE));
        }
        Ok(())
    }

    #[test]
    fn unsharing_copies_what_is_shared_and_in_the_file() -> Checked {
        let world = world()?;
        let file = world.file(4)?;
        let (old, new) = (
            world.take_many(4, Order::PTE)?,
            world.take_many(4, Order::PTE)?,
        );
        world.fill_differently(old, 4);
        world.fill(new, 4, 0xee);
        put_shared(&file, 1, Order::PTE, old + 1, false, true)?;
        file.set_extents_for_writing(&[
            TestExtent::mapped(0, 1, old),
            TestExtent::mapped(1, 3, new + 1).shared().copy_of(old + 1),
        ])?;
        file.set_size(2 * PAGE as u64 + 7);
        let unshare = |from: usize, len: usize| {
            io::file_unshare(file.inode(), from as u64, len as u64, file.ops())
        };
        check_eq!(unshare(3 * PAGE, PAGE), Ok(()));
        check!(world.is_filled(new, 0, 4 * PAGE, 0xee));
        check_eq!(unshare(5, 100 * PAGE), Ok(()));
        check!(world.is_filled(new, 0, PAGE, 0xee), "it was not shared");
        check!(world.is_copy(new, PAGE, 3 * PAGE));
        check!(
            world.is_filled(new + 3, 0, PAGE, 0xee),
            "past the end of the file"
        );
        check!(
            look(&file, 1).is_none(),
            "the entry of the old page is left"
        );
        // Pages, wherever the range begins and ends, and all that was copied is written back.
        for (from, len, first, last) in [
            (PAGE + 5, 7, 1, 1),
            (PAGE + 5, PAGE, 1, 2),
            (2 * PAGE - 1, 1, 1, 1),
            (PAGE, 3 * PAGE, 1, 3),
        ] {
            world.fill(new, 4, 0xee);
            file.set_size(4 * PAGE as u64);
            let flushes = Flushes::watch(&file, 0, 0)?;
            check_eq!(unshare(from, len), Ok(()));
            for page in 1..4 {
                let wanted = first <= page && page <= last;
                let (begin, end) = (page * PAGE, (page + 1) * PAGE);
                check_eq!(
                    world.is_copy(new, begin, end),
                    wanted,
                    "page {page} of {from}, {len}"
                );
                check_eq!(world.is_filled(new, begin, end, 0xee), !wanted);
                check_eq!(flushes.covers(world.pfn(new + page), Order::PTE), wanted);
            }
        }
        // Nothing is to be copied of what shares a hole.
        world.fill(new, 4, 0xee);
        file.set_size(4 * PAGE as u64);
        file.set_extents_for_writing(&[TestExtent::mapped(0, 4, new).shared()])?;
        check_eq!(unshare(0, 4 * PAGE), Ok(()));
        check!(world.is_filled(new, 0, 4 * PAGE, 0xee), "a hole was copied");
        check_eq!(file.last_end().map(|end| end.written), Some(0));
        world.check_clean()
    }

    #[test]
    fn comparing_finds_every_difference() -> Checked {
        let world = world()?;
        let (a, b) = (world.file(4)?, world.file(4)?);
        let (in_a, in_b) = (
            world.take_many(4, Order::PTE)?,
            world.take_many(4, Order::PTE)?,
        );
        world.fill(in_a, 4, 0x11);
        world.fill(in_b, 4, 0x11);
        let compare = |at_a: usize, at_b: usize, len: usize| {
            io::dedupe_compare(
                &Side {
                    inode: a.inode(),
                    position: at_a as u64,
                },
                &Side {
                    inode: b.inode(),
                    position: at_b as u64,
                },
                len as u64,
                a.ops(),
            )
        };
        // Extents that end at different places.
        a.set_extents(&[
            TestExtent::mapped(0, 1, in_a),
            TestExtent::mapped(1, 3, in_a + 1),
        ])?;
        b.set_extents(&[
            TestExtent::mapped(0, 3, in_b),
            TestExtent::mapped(3, 1, in_b + 3),
        ])?;
        check_eq!(compare(0, 0, 4 * PAGE), Ok(true));
        check_eq!(compare(0, PAGE, 3 * PAGE), Ok(true));
        check_eq!(compare(10, PAGE + 33, 2 * PAGE), Ok(true));
        check_eq!(compare(0, 0, 0), Ok(true));
        for offset in [0, PAGE - 1, PAGE, 3 * PAGE + 77, 4 * PAGE - 1] {
            world.set_byte(in_b, offset, 0x12);
            check_eq!(compare(0, 0, 4 * PAGE), Ok(false), "byte {offset}");
            check_eq!(compare(0, 0, offset), Ok(true), "before byte {offset}");
            check_eq!(compare(0, 0, offset + 1), Ok(false), "up to byte {offset}");
            world.set_byte(in_b, offset, 0x11);
        }
        // Memory that has failed on one side is neither equal nor different.
        for bad in [in_a + 1, in_b + 1] {
            world.set_poison(bad, true);
            let compared = compare(0, 0, 4 * PAGE);
            world.set_poison(bad, false);
            check_eq!(compared, Err(EIO));
        }
        // Holes are equal to each other, and to no data, be it zeroes.
        world.fill(in_b, 1, 0);
        a.set_extents(&[TestExtent::hole(0, 4)])?;
        check_eq!(compare(0, 0, PAGE), Ok(false));
        b.set_extents(&[TestExtent::unwritten(0, 4, in_b)])?;
        check_eq!(compare(0, 0, 4 * PAGE), Ok(true));
        a.fail_begin(Some(Failing {
            call: 0,
            error: EIO,
        }));
        b.fail_begin(None);
        b.fail_end(None);
        check_eq!(compare(0, 0, PAGE), Err(EIO));
        check_eq!(b.begins(), b.ends());
        b.fail_begin(Some(Failing {
            call: 0,
            error: EIO,
        }));
        a.fail_begin(None);
        a.fail_end(None);
        check_eq!(compare(0, 0, PAGE), Err(EIO));
        check_eq!((a.begins(), a.ends()), (1, 1));
        Ok(())
    }
}
