// SPDX-License-Identifier: GPL-2.0

//! Reading and writing (spec, section 6).

use kernel::prelude::*;

#[kunit_tests(rdax_io)]
mod tests {
    use crate::{
        dax::{
            io,
            stats::Counter,
            tree::{self, LockedEntry},
        },
        kern::{
            bindings,
            order::Order,
            testing::{
                flush_signals, in_worker, until, with_failing_allocation, with_thread, Buffer,
                Checked, Failing, File, Flushes, Share, TestExtent, View,
            },
            xa::Mark,
        },
        tests::helpers::{transfers::*, *},
    };
    use kernel::{
        prelude::*,
        sync::atomic::{Acquire, Atomic, Release},
    };

    const PMD: usize = Order::PMD.pages();

    #[test]
    fn data_is_read_and_holes_are_zeroes() -> Checked {
        let world = world()?;
        let file = world.file(6)?;
        let place = world.take_many(4, Order::PTE)?;
        world.fill(place, 1, 0xa1);
        world.fill(place + 1, 1, 0xa2);
        world.fill(place + 2, 2, 0xff);
        // Data, a hole, data from elsewhere, unwritten blocks, nothing.
        file.set_extents(&[
            TestExtent::mapped(0, 1, place),
            TestExtent::hole(1, 1),
            TestExtent::mapped(2, 1, place + 1),
            TestExtent::unwritten(3, 2, place + 2),
        ])?;
        let mut bytes = filled(6 * PAGE, 0x55)?;
        let counted = count(Counter::ReadBytes);
        check_eq!(read(&file, 0, &mut bytes), (Ok(6 * PAGE), 6 * PAGE as u64));
        check_eq!(count(Counter::ReadBytes), counted + 6 * PAGE as u64);
        for (page, byte) in [0xa1, 0, 0xa2, 0, 0, 0].into_iter().enumerate() {
            check!(
                all(&bytes[page * PAGE..(page + 1) * PAGE], byte),
                "page {page}"
            );
        }
        // Neither begin nor end at a page.
        let mut bytes = filled(PAGE + 20, 0x55)?;
        check_eq!(
            read(&file, PAGE - 10, &mut bytes),
            (Ok(PAGE + 20), 2 * PAGE as u64 + 10)
        );
        check!(all(&bytes[..10], 0xa1));
        check!(all(&bytes[10..PAGE + 10], 0));
        check!(all(&bytes[PAGE + 10..], 0xa2));
        check_eq!(file.nrpages(), 0);
        world.check_clean()
    }

    #[test]
    fn a_read_ends_with_the_file() -> Checked {
        let world = world()?;
        let (file, _) = straight_file(&world, 2)?;
        file.set_size(PAGE as u64 + 100);
        let mut bytes = filled(2 * PAGE, 0x55)?;
        check_eq!(read(&file, PAGE, &mut bytes), (Ok(100), PAGE as u64 + 100));
        check!(all(&bytes[100..], 0x55), "more was read");
        check_eq!(read(&file, PAGE + 100, &mut bytes).0, Ok(0));
        check_eq!(
            read(&file, 10 * PAGE, &mut bytes),
            (Ok(0), 10 * PAGE as u64)
        );
        Ok(())
    }

    #[test]
    fn what_is_written_is_on_the_device() -> Checked {
        let world = world()?;
        let file = world.file(3)?;
        let place = world.take_many(3, Order::PTE)?;
        world.fill(place, 3, 0x11);
        file.set_extents(&[
            TestExtent::mapped(0, 1, place + 2),
            TestExtent::mapped(1, 2, place),
        ])?;
        let bytes = filled(PAGE + 50, 0x22)?;
        check_eq!(
            write(&file, PAGE - 20, &bytes),
            (Ok(PAGE + 50), 2 * PAGE as u64 + 30)
        );
        check!(world.is_filled(place + 2, 0, PAGE - 20, 0x11));
        check!(world.is_filled(place + 2, PAGE - 20, PAGE, 0x22));
        check!(world.is_filled(place, 0, PAGE + 30, 0x22));
        check!(world.is_filled(place, PAGE + 30, 2 * PAGE, 0x11));
        let mut back = filled(PAGE + 50, 0)?;
        check_eq!(read(&file, PAGE - 20, &mut back).0, Ok(PAGE + 50));
        check!(all(&back, 0x22));
        Ok(())
    }

    #[test]
    fn a_write_without_blocks_is_an_error() -> Checked {
        let world = world()?;
        let file = world.file(2)?;
        let place = world.take(Order::PTE)?;
        for extent in [
            TestExtent::hole(0, 1),
            TestExtent::unwritten(0, 1, place),
            TestExtent::inline(0, 1),
        ] {
            file.set_extents(&[extent])?;
            check_eq!(write(&file, 0, &[1, 2, 3]), (Err(EIO), 0));
        }
        // The bytes done before count.
        file.set_extents(&[TestExtent::mapped(0, 1, place), TestExtent::hole(1, 1)])?;
        let bytes = filled(PAGE + 5, 0x33)?;
        check_eq!(write(&file, 0, &bytes), (Ok(PAGE), PAGE as u64));
        check!(world.is_filled(place, 0, PAGE, 0x33));
        Ok(())
    }

    #[test]
    fn a_bad_buffer_ends_it_with_what_was_done() -> Checked {
        let world = world()?;
        let (file, place) = straight_file(&world, 4)?;
        // User memory that ends after two pages.
        let (memory, memory_place) = straight_file(&world, 2)?;
        let view = View::new(&memory, 0, 2, Share::Shared, 0)?;
        world.fill(memory_place, 2, 0x44);
        view.load(0)?;
        view.load(1)?;
        world.fill(place, 4, 0);
        let (result, end) = transfer(&file, 0, 0, Buffer::WriteUser(view.address(0), 3 * PAGE));
        let done = result?;
        check!(done > 0 && done <= 2 * PAGE);
        check_eq!(end, done as u64);
        check!(world.is_filled(place, 0, done, 0x44));
        check!(world.is_filled(place, 2 * PAGE, 4 * PAGE, 0));
        let beyond = view.address(0) + 2 * PAGE;
        check_eq!(
            transfer(&file, 0, 0, Buffer::WriteUser(beyond, PAGE)),
            (Err(EFAULT), 0)
        );
        // The same for what is read.
        world.fill(place, 4, 0x66);
        let (result, end) = transfer(&file, 0, 0, Buffer::ReadUser(view.address(0), 3 * PAGE));
        let done = result?;
        check!(done > 0 && done <= 2 * PAGE);
        check_eq!(end, done as u64);
        check!(world.is_filled(memory_place, 0, done, 0x66));
        check_eq!(
            transfer(&file, 0, 0, Buffer::ReadUser(beyond, PAGE)),
            (Err(EFAULT), 0)
        );
        file.set_extents(&[TestExtent::hole(0, 4)])?;
        check_eq!(
            transfer(&file, 0, 0, Buffer::ReadUser(beyond, PAGE)),
            (Err(EFAULT), 0)
        );
        drop(view);
        clear(&memory);
        world.check_clean()
    }

    #[test]
    fn no_mapping_shows_zeroes_after_a_write_to_new_blocks() -> Checked {
        let world = world()?;
        let file = world.file(PMD)?;
        let place = world.take(Order::PMD)?;
        file.set_extents(&[TestExtent::hole(0, PMD)])?;
        file.set_extents_for_writing(&[TestExtent::mapped(0, PMD, place).new_blocks()])?;
        set_max_order(Order::PMD)?;
        let view = View::new(&file, 0, PMD, Share::Shared, 0)?;
        check_eq!(view.load(5)?, 0);
        check!(view.mapped(5).is_some_and(|mapped| mapped.order == 9));
        check_eq!(write(&file, 5 * PAGE, &[0x22; 8]).0, Ok(8));
        check!(view.mapped(5).is_none());
        check_eq!(file.nrpages(), 0);
        file.set_extents(&[TestExtent::mapped(0, PMD, place)])?;
        check_eq!(view.load(5)? & 0xff, 0x22);
        drop(view);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn memory_stays_mapped_when_blocks_around_it_are_new() -> Checked {
        let world = world()?;
        let file = world.file(3)?;
        let place = world.take_many(3, Order::PTE)?;
        world.fill(place, 3, 0);
        file.set_extents(&[
            TestExtent::hole(0, 1),
            TestExtent::mapped(1, 1, place + 1),
            TestExtent::hole(2, 1),
        ])?;
        // As a filesystem answers that makes blocks of what is around a page that has one.
        file.set_extents_for_writing(&[TestExtent::mapped(0, 3, place).new_blocks()])?;
        let view = View::new(&file, 0, 3, Share::Shared, 0)?;
        check_eq!(view.load(0)?, 0);
        view.load(1)?;
        let mapped = view.mapped(1).map(|mapped| mapped.pfn);
        check_eq!(mapped, Some(world.pfn(place + 1).to_bits()));
        check_eq!(write(&file, PAGE - 8, &[0x22; 16]).0, Ok(16));
        check_eq!(view.mapped(1).map(|mapped| mapped.pfn), mapped);
        check_eq!(view.load(1)? & 0xff, 0x22);
        // Zeroes do not.
        check!(view.mapped(0).is_none());
        drop(view);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn a_dirty_entry_in_the_way_of_a_write_is_flushed() -> Checked {
        let world = world()?;
        let file = world.file(1)?;
        let (old, new) = (world.take(Order::PTE)?, world.take(Order::PTE)?);
        put(&file, 0, Order::PTE, old, true)?;
        file.set_extents_for_writing(&[TestExtent::mapped(0, 1, new).shared().copy_of(old)])?;
        let flushes = Flushes::watch(&file, 0, 0)?;
        check_eq!(write(&file, 0, &[1; 16]).0, Ok(16));
        check!(flushes.covers(world.pfn(old), Order::PTE));
        drop(flushes);
        check!(!is_marked(&file, 0, Mark::Dirty));
        check_eq!(file.nrpages(), 0);
        world.check_clean()
    }

    #[test]
    fn who_does_not_want_to_wait_is_not_made_to() -> Checked {
        let world = world()?;
        let (file, _) = straight_file(&world, 1)?;
        let mut bytes = [0; 16];
        check_eq!(read(&file, 0, &mut bytes).0, Ok(16));
        check_eq!(file.asked() & bindings::IOMAP_NOWAIT, 0);
        let nowait = bindings::IOCB_NOWAIT as u32;
        check_eq!(
            transfer(&file, 0, nowait, Buffer::Read(&mut bytes)).0,
            Ok(16)
        );
        check!(file.asked() & bindings::IOMAP_NOWAIT != 0);
        check_eq!(transfer(&file, 0, nowait, Buffer::Write(&bytes)).0, Ok(16));
        check!(file.asked() & bindings::IOMAP_NOWAIT != 0);
        file.fail_begin(Some(Failing {
            call: 0,
            error: EAGAIN,
        }));
        check_eq!(
            transfer(&file, 0, nowait, Buffer::Write(&bytes)),
            (Err(EAGAIN), 0)
        );
        let atomic = bindings::IOCB_ATOMIC as u32;
        check_eq!(
            transfer(&file, 0, atomic, Buffer::Write(&bytes)),
            (Err(EIO), 0)
        );
        Ok(())
    }

    #[test]
    fn a_write_that_may_not_wait_leaves_who_keeps_faults_out_alone() -> Checked {
        let world = world()?;
        let file = world.file(1)?;
        set_shared(&file, 1, world.take(Order::PTE)?, world.take(Order::PTE)?)?;
        for out in [Some(file.mapping().invalidate_lock()?), None] {
            let ended = Atomic::new(false);
            let work = || {
                let nowait = bindings::IOCB_NOWAIT as u32;
                let done = transfer(&file, 0, nowait, Buffer::Write(&[0x7e; 16]));
                ended.store(true, Release);
                done
            };
            let (done, in_time) = with_thread(work, |_| {
                let in_time = until(|| ended.load(Acquire));
                // So that it ends.
                drop(out);
                in_time
            })?;
            check!(in_time);
            check_eq!(done, (Err(EAGAIN), 0));
        }
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn who_waits_for_a_buffer_needs_no_memory() -> Checked {
        let world = world()?;
        let (file, _) = straight_file(&world, 1)?;
        let (memory, _) = straight_file(&world, 1)?;
        let view = View::new(&memory, 0, 1, Share::Shared, 0)?;
        // The model has room then for what it notes of the next one.
        for _ in 0..3 {
            check_eq!(read(&file, 0, &mut [0; 16]).0, Ok(16));
        }
        // Behind the mapping.
        let nothing = Buffer::ReadUser(view.address(0) + PAGE, PAGE);
        let (done, failed) = with_failing_allocation(1, || transfer(&file, 0, 0, nothing));
        check!(failed);
        check_eq!(done, (Err(EFAULT), 0));
        drop(view);
        clear(&memory);
        world.check_clean()
    }

    /// A write that may not wait, of one page of 0x7e; and whether it came back at once although
    /// somebody has an entry locked.
    fn write_now(
        file: &File<'_>,
        page: usize,
        held: Option<LockedEntry<'_>>,
    ) -> Checked<Result<usize>> {
        let bytes = filled(PAGE, 0x7e)?;
        let nowait = bindings::IOCB_NOWAIT as u32;
        let ended = Atomic::new(false);
        let work = || {
            let done = transfer(file, page * PAGE, nowait, Buffer::Write(&bytes)).0;
            ended.store(true, Release);
            done
        };
        let (done, in_time) = with_thread(work, |_| {
            let in_time = until(|| ended.load(Acquire));
            // So that it ends.
            drop(held);
            in_time
        })?;
        check!(in_time, "page {page}: the write waits");
        Ok(done)
    }

    #[test]
    fn a_write_that_may_not_wait_leaves_entries_in_its_way() -> Checked {
        let world = world()?;
        let (file, place) = straight_file(&world, 4)?;
        world.fill(place, 4, 0x11);
        let flushes = Flushes::watch(&file, 0, 0)?;
        // Zeroes that are mapped, and an entry that may become one.
        put_zero(&file, 1, Order::PTE)?;
        check_eq!(write_now(&file, 1, None)?, Err(EAGAIN));
        check!(look(&file, 1).is_some());
        let held = lock(&file, 2, Order::PTE)?;
        check_eq!(write_now(&file, 2, Some(held))?, Err(EAGAIN));
        // Data of its own are in nobody's way, whoever has them.
        put(&file, 3, Order::PTE, place + 3, true)?;
        check_eq!(write_now(&file, 3, None)?, Ok(PAGE));
        let held = tree::lock_present(file.mapping(), at(3));
        check_eq!(write_now(&file, 3, held)?, Ok(PAGE));
        check!(is_marked(&file, 3, Mark::Dirty));
        check_eq!(write_now(&file, 0, None)?, Ok(PAGE));
        // Also where the filesystem calls the blocks new; zeroes are in the way there, too.
        file.set_extents(&[TestExtent::mapped(0, 4, place).new_blocks()])?;
        check_eq!(write_now(&file, 3, None)?, Ok(PAGE));
        check!(is_marked(&file, 3, Mark::Dirty));
        check_eq!(write_now(&file, 1, None)?, Err(EAGAIN));
        check!(!flushes.covers(world.pfn(place + 3), Order::PTE));
        check_eq!(write_now(&file, 0, None)?, Ok(PAGE));
        // A caller that may wait removes them.
        file.set_extents(&[TestExtent::mapped(0, 4, place)])?;
        check_eq!(write(&file, PAGE, &[0; 16]).0, Ok(16));
        check!(look(&file, 1).is_none());
        drop(flushes);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn errors_of_the_filesystem_come_after_what_was_done() -> Checked {
        let world = world()?;
        let file = world.file(2)?;
        let place = world.take_many(2, Order::PTE)?;
        file.set_extents(&[
            TestExtent::mapped(0, 1, place),
            TestExtent::mapped(1, 1, place + 1),
        ])?;
        let bytes = filled(2 * PAGE, 0x11)?;
        for (call, expected) in [(0, Err(ENOSPC)), (1, Ok(PAGE))] {
            file.fail_begin(Some(Failing {
                call,
                error: ENOSPC,
            }));
            file.fail_end(None);
            check_eq!(write(&file, 0, &bytes).0, expected);
            check_eq!(file.ends(), call);
        }
        file.fail_begin(None);
        file.fail_end(None);
        check_eq!(write(&file, 0, &bytes).0, Ok(2 * PAGE));
        check_eq!(file.last_end().map(|end| end.written), Some(PAGE));
        Ok(())
    }

    #[test]
    fn a_write_of_a_worker_is_whole_or_an_error() -> Checked {
        let world = world()?;
        let file = world.file(2)?;
        let place = world.take_many(2, Order::PTE)?;
        file.set_extents(&[
            TestExtent::mapped(0, 1, place),
            TestExtent::mapped(1, 1, place + 1),
        ])?;
        let bytes = filled(2 * PAGE, 0x11)?;
        let nowait = bindings::IOCB_NOWAIT as u32;
        // Nothing is written, or the first page.
        for call in [0, 1] {
            let write_with = |flags| {
                file.fail_begin(Some(Failing {
                    call,
                    error: EAGAIN,
                }));
                file.fail_end(None);
                transfer(&file, 0, flags, Buffer::Write(&bytes))
            };
            // Whoever had it written takes it for whole if it is short.
            check_eq!(in_worker(|| write_with(0))?, (Err(EIO), 0));
            // He has it written again, in a way that may wait.
            check_eq!(in_worker(|| write_with(nowait))?, (Err(EAGAIN), 0));
            let (done, end) = match call {
                0 => (Err(EAGAIN), 0),
                _ => (Ok(PAGE), PAGE),
            };
            check_eq!(write_with(0).0, done);
            check_eq!(write_with(nowait), (done, end as u64));
        }
        file.fail_begin(None);
        check_eq!(in_worker(|| write(&file, 0, &bytes).0)?, Ok(2 * PAGE));
        Ok(())
    }

    #[test]
    fn a_fatal_signal_ends_it() -> Checked {
        let world = world()?;
        let (file, _) = straight_file(&world, 1)?;
        let (results, ()) = with_thread(
            || {
                while !crate::kern::vm::fatal_signal() {
                    crate::kern::vm::cond_resched();
                }
                let mut bytes = [0; 16];
                let results = (
                    read(&file, 0, &mut bytes).0,
                    write(&file, 0, &bytes).0,
                    io::zero_range(file.inode(), 0, PAGE as u64, file.ops(), &mut false),
                    io::zero_range(file.inode(), 5, 16, file.ops(), &mut false),
                );
                flush_signals();
                results
            },
            |thread| thread.signal(true),
        )?;
        // Parts of pages are zeroed all the same.
        check_eq!(results, (Err(EINTR), Err(EINTR), Err(EINTR), Ok(())));
        Ok(())
    }

    #[test]
    fn no_mapping_shows_zeroes_after_a_write_to_what_became_blocks_meanwhile() -> Checked {
        let world = world()?;
        let file = world.file(3)?;
        let place = world.take_many(3, Order::PTE)?;
        world.fill(place, 3, 0);
        let view = View::new(&file, 0, 3, Share::Shared, 0)?;
        for page in 0..3 {
            check_eq!(view.load(page)?, 0);
        }
        // Blocks that the filesystem made along with others, and does not call new.
        file.set_extents(&[TestExtent::mapped(0, 3, place)])?;
        check_eq!(write(&file, PAGE, &[0x22; 8]).0, Ok(8));
        check_eq!(view.load(1)? & 0xff, 0x22);
        // And nothing else was taken out.
        check!(view.mapped(0).is_some() && view.mapped(2).is_some());
        // Memory stays mapped.
        let mapped = view.mapped(1).map(|mapped| mapped.pfn);
        check_eq!(write(&file, PAGE, &[0x33; 8]).0, Ok(8));
        check_eq!(view.mapped(1).map(|mapped| mapped.pfn), mapped);
        drop(view);
        clear(&file);
        world.check_clean()
    }
}
