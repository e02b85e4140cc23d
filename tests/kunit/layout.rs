// SPDX-License-Identifier: GPL-2.0

//! Users of a file's pages, and breaking a layout (spec, section 5).

use kernel::prelude::*;

#[kunit_tests(rdax_layout)]
mod tests {
    use crate::{
        dax::{
            device::FileDevice,
            folio,
            layout::{self, Patience},
            stats::Counter,
            tries,
        },
        kern::{
            bdev::BlockDevice,
            entry::Kind,
            fs::PageRange,
            memory::{self, DeviceMemory, PageMapRange},
            order::Order,
            testing::{
                callbacks, hold, pause, until, wait_callback, with_thread, with_threads, Checked,
                File, Share, TestExtent, View,
            },
            vm, wait,
            xa::Mark,
        },
        tests::helpers::*,
    };
    use kernel::{
        prelude::*,
        sync::atomic::{Acquire, Atomic, Release},
    };

    const PMD: usize = Order::PMD.pages();

    fn patient() -> Patience {
        Patience::Callback(wait_callback())
    }

    #[test]
    fn busy_exactly_when_referenced_beyond_the_map_count() -> Checked {
        let world = world()?;
        for order in [Order::PTE, Order::PMD] {
            let file = world.file(2 * PMD)?;
            let place = world.take(order)?;
            put(&file, 0, order, place, false)?;
            let folio = world.page(place).folio();
            check!(layout::busy_folio(file.mapping(), PageRange::ALL).is_none());
            let held = hold(folio);
            check!(layout::busy_folio(file.mapping(), PageRange::ALL) == Some(world.pfn(place)));
            // A part of a large entry is all of it, and what is behind it is not.
            check!(layout::busy_folio(file.mapping(), range(0, 0)) == Some(world.pfn(place)));
            let last = order.pages() - 1;
            check!(layout::busy_folio(file.mapping(), range(last, last)) == Some(world.pfn(place)));
            check!(layout::busy_folio(file.mapping(), range(last + 1, last + 9)).is_none());
            drop(held);
            check!(layout::busy_folio(file.mapping(), PageRange::ALL).is_none());
            clear(&file);
        }
        world.check_clean()
    }

    #[test]
    fn the_first_of_several_is_told_of() -> Checked {
        let world = world()?;
        let file = world.file(8)?;
        let place = world.take_many(8, Order::PTE)?;
        for index in 0..8 {
            put(&file, index, Order::PTE, place + index, false)?;
        }
        let folio = |index: usize| world.page(place + index).folio();
        let held = [2, 3, 6].map(|index| hold(folio(index)));
        let busy = |first| layout::busy_folio(file.mapping(), range(first, 7));
        check!(busy(0) == Some(world.pfn(place + 2)));
        check!(busy(3) == Some(world.pfn(place + 3)));
        check!(busy(4) == Some(world.pfn(place + 6)));
        check!(busy(7).is_none());
        drop(held);
        clear(&file);
        world.check_clean()
    }

    /// Breaks the layout of a file with two busy pages, which become idle one after the other.
    fn break_with_two_busy(work: impl Fn(&File<'_>) -> Result + Sync) -> Checked {
        let world = world()?;
        let file = world.file(2)?;
        let place = world.take_many(2, Order::PTE)?;
        for index in 0..2 {
            put(&file, index, Order::PTE, place + index, true)?;
        }
        let (one, two) = (
            hold(world.page(place).folio()),
            hold(world.page(place + 1).folio()),
        );
        let (result, seen) = with_thread(
            || work(&file),
            |thread| {
                let waited = thread.waits();
                drop(one);
                let still = thread.waits();
                let pages = file.nrpages();
                drop(two);
                (waited, still, pages)
            },
        )?;
        check_eq!(seen, (true, true, 2));
        check_eq!(result, Ok(()));
        check_eq!(file.nrpages(), 0);
        world.check_clean()
    }

    #[test]
    fn all_that_are_busy_are_waited_for() -> Checked {
        break_with_two_busy(|file| layout::break_layout(file.inode(), PageRange::ALL, patient()))?;
        break_with_two_busy(|file| {
            layout::break_layout_final(file.inode());
            Ok(())
        })
    }

    #[test]
    fn looking_for_who_is_busy_unmaps_first() -> Checked {
        let world = world()?;
        let file = world.file(PMD)?;
        let place = world.take(Order::PMD)?;
        file.set_extents(&[TestExtent::mapped(0, PMD, place)])?;
        let view = View::new(&file, 0, PMD, Share::Shared, 0)?;
        view.store(3, 7)?;
        check!(view.mapped(3).is_some());
        let folio = world.page(place).folio();
        check_eq!(folio.refcount(), 1);
        check_eq!(folio.mapcount(), 1);
        check!(layout::busy_folio(file.mapping(), range(3, 3)).is_none());
        check!(view.mapped(3).is_none());
        check_eq!(folio.refcount(), 0);
        check_eq!(view.load(3)?, 7);
        // A pin through the mapping is seen.
        let pin = view.pin(3, true);
        check!(pin.is_some());
        check!(layout::busy_folio(file.mapping(), range(3, 3)) == Some(world.pfn(place)));
        drop(pin);
        check!(layout::busy_folio(file.mapping(), range(3, 3)).is_none());
        drop(view);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn what_another_file_has_mapped_is_not_busy() -> Checked {
        let world = world()?;
        let (a, b) = (world.file(1)?, world.file(1)?);
        let place = world.take(Order::PTE)?;
        for file in [&a, &b] {
            file.set_extents(&[TestExtent::mapped(0, 1, place).shared()])?;
        }
        let view = View::new(&b, 0, 1, Share::Shared, 0)?;
        view.load(0)?;
        put_shared(&a, 0, Order::PTE, place, false, true)?;
        let folio = world.page(place).folio();
        check_eq!(folio.share(), 2);
        check_eq!(folio.refcount(), 1);
        check!(layout::busy_folio(a.mapping(), PageRange::ALL).is_none());
        check_eq!(
            layout::break_layout(a.inode(), PageRange::ALL, Patience::None),
            Ok(())
        );
        check!(view.mapped(0).is_some());
        check_eq!(folio.refcount(), 1);
        drop(view);
        clear(&b);
        world.check_clean()
    }

    /// How often somebody who holds a folio all the time is overlooked while a file that shares it maps it and
    /// lets go of it.
    fn looks_that_miss(order: Order) -> Checked<usize> {
        const TIMES: usize = 2_000;
        let world = world()?;
        let pages = order.pages();
        let (a, b) = (world.file(pages)?, world.file(pages)?);
        let place = world.take(order)?;
        for file in [&a, &b] {
            file.set_extents(&[TestExtent::mapped(0, pages, place).shared()])?;
        }
        let view = View::new(&b, 0, pages, Share::Shared, 0)?;
        view.load(0)?;
        put_shared(&a, 0, order, place, false, true)?;
        let folio = world.page(place).folio();
        check_eq!(folio.order(), order);
        let held = hold(folio);
        let over = Atomic::new(false);
        let look = || {
            let mut missed = 0;
            while !over.load(Acquire) {
                missed += (0..1000).filter(|_| !folio.is_held()).count();
                vm::cond_resched();
            }
            missed
        };
        let map = || -> Checked {
            for _ in 0..TIMES {
                view.load(0)?;
                b.mapping().unmap(PageRange::ALL);
            }
            Ok(())
        };
        let (missed, mapped) = with_thread(look, |_| {
            let mapped = map();
            over.store(true, Release);
            mapped
        })?;
        mapped?;
        check!(layout::busy_folio(a.mapping(), PageRange::ALL) == Some(folio.head().pfn()));
        drop(held);
        check!(layout::busy_folio(a.mapping(), PageRange::ALL).is_none());
        drop(view);
        clear(&a);
        clear(&b);
        world.check_clean()?;
        Ok(missed)
    }

    #[test]
    fn mappings_that_come_and_go_hide_nobody_who_holds_a_page() -> Checked {
        check_eq!(looks_that_miss(Order::PTE)?, 0);
        check_eq!(looks_that_miss(Order::PMD)?, 0);
        Ok(())
    }

    #[test]
    fn without_patience_the_first_busy_page_is_an_error() -> Checked {
        let world = world()?;
        let file = world.file(8)?;
        let place = world.take_many(8, Order::PTE)?;
        for index in 0..8 {
            put(&file, index, Order::PTE, place + index, false)?;
        }
        let held = hold(world.page(place + 5).folio());
        let result = layout::break_layout(file.inode(), PageRange::ALL, Patience::None);
        check_eq!(result, Err(ERESTARTSYS));
        check_eq!(file.nrpages(), 8, "entries were removed");
        // The range decides.
        let result = layout::break_layout(file.inode(), range(0, 3), Patience::None);
        check_eq!(result, Ok(()));
        check_eq!(file.nrpages(), 4);
        drop(held);
        let result = layout::break_layout(file.inode(), PageRange::ALL, Patience::None);
        check_eq!(result, Ok(()));
        check_eq!(file.nrpages(), 0);
        world.check_clean()
    }

    #[test]
    fn breaking_waits_by_the_callback_until_the_page_is_idle() -> Checked {
        let world = world()?;
        for order in [Order::PTE, Order::PMD] {
            let file = world.file(PMD)?;
            let place = world.take(order)?;
            put(&file, 0, order, place, true)?;
            let held = hold(world.page(place).folio());
            let (calls, waits) = (callbacks(), count(Counter::LayoutWaits));
            let waited_ns = count(Counter::LayoutWaitNs);
            let (result, seen) = with_thread(
                || layout::break_layout(file.inode(), PageRange::ALL, patient()),
                |thread| {
                    let waited = thread.waits();
                    // At first with faults kept out.
                    let called = until(|| callbacks() > calls);
                    let pages = file.nrpages();
                    drop(held);
                    (waited, called, pages)
                },
            )?;
            check_eq!(seen, (true, true, order.pages()));
            check_eq!(result, Ok(()));
            check_eq!(count(Counter::LayoutWaits), waits + 1);
            // It was looked at for longer than that.
            check!(count(Counter::LayoutWaitNs) - waited_ns >= 20_000_000);
            check_eq!(file.nrpages(), 0);
        }
        world.check_clean()
    }

    #[test]
    fn a_signal_ends_the_wait_and_nothing_is_removed() -> Checked {
        let world = world()?;
        let file = world.file(4)?;
        let place = world.take_many(4, Order::PTE)?;
        for index in 0..4 {
            put(&file, index, Order::PTE, place + index, true)?;
        }
        for fatal in [false, true] {
            let held = hold(world.page(place + 2).folio());
            let (result, waited) = with_thread(
                || layout::break_layout(file.inode(), PageRange::ALL, patient()),
                |thread| {
                    let waited = thread.waits();
                    thread.signal(fatal);
                    waited
                },
            )?;
            check!(waited);
            check_eq!(result, Err(ERESTARTSYS));
            check_eq!(file.nrpages(), 4);
            check!((0..4).all(|index| is_marked(&file, index, Mark::Dirty)));
            drop(held);
        }
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn a_moment_ends_however_often_a_folio_is_idle_again() -> Checked {
        let world = world()?;
        let file = world.file(1)?;
        let folio = world.page(world.take(Order::PTE)?).folio();
        let stay = FileDevice::of(file.inode()).stay().ok_or(EIO)?;
        let mut left = 3;
        for expected in [2, 1, 0] {
            check_eq!(wait::is_soon_idle(&stay, folio, &mut left, 2), Ok(true));
            check_eq!(left, expected);
        }
        check_eq!(wait::is_soon_idle(&stay, folio, &mut left, 2), Ok(false));
        drop(stay);
        // So it does by a signal.
        for fatal in [false, true] {
            let signalled = Atomic::new(false);
            let work = || {
                let stay = FileDevice::of(file.inode()).stay().ok_or(EIO)?;
                check!(until(|| signalled.load(Acquire)));
                let mut left = 3;
                Ok(wait::is_soon_idle(&stay, folio, &mut left, 2))
            };
            let (found, ()): (Checked<Result<bool>>, ()) = with_thread(work, |thread| {
                thread.signal(fatal);
                signalled.store(true, Release);
            })?;
            check_eq!(found?, Err(ERESTARTSYS));
        }
        world.check_clean()
    }

    #[test]
    fn the_final_break_waits_through_signals() -> Checked {
        let world = world()?;
        let file = world.file(1)?;
        let place = world.take(Order::PTE)?;
        put(&file, 0, Order::PTE, place, false)?;
        let held = hold(world.page(place).folio());
        let ((), seen) = with_thread(
            || layout::break_layout_final(file.inode()),
            |thread| {
                let waited = thread.waits();
                thread.signal(false);
                thread.signal(true);
                let still = thread.waits();
                let pages = file.nrpages();
                drop(held);
                (waited, still, pages)
            },
        )?;
        check_eq!(seen, (true, true, 1));
        check_eq!(file.nrpages(), 0);
        world.check_clean()
    }

    #[test]
    fn who_waits_for_a_page_of_a_device_that_goes_ends() -> Checked {
        let result = (|| {
            let world = world()?;
            let (file, last) = (world.file(2)?, world.file(1)?);
            let place = world.take_many(3, Order::PTE)?;
            put(&file, 0, Order::PTE, place, true)?;
            put(&last, 0, Order::PTE, place + 2, true)?;
            let held = [0, 2].map(|at| hold(world.page(place + at).folio()));
            let (results, (waited, retired)) = with_threads(
                3,
                |number| match number {
                    // A truncate, a file that is being evicted, and one that is, later.
                    0 => layout::break_layout(file.inode(), PageRange::ALL, patient()),
                    _ => {
                        layout::break_layout_final(last.inode());
                        Ok(())
                    }
                },
                |threads| {
                    let waited = threads.iter().all(|thread| thread.waits());
                    // Comes back when nobody looks at the pages any more.
                    let retired = adopted().map(|device| {
                        if let Some(device) = &*device.lock() {
                            device.retire();
                        }
                    });
                    (waited, retired)
                },
            )?;
            retired?;
            check!(waited);
            check_eq!(results.first(), Some(&Err(EIO)));
            // The entries left go with their file, and the device waits for the holder.
            check!(look(&file, 0).is_some());
            check!(look(&last, 0).is_none());
            check_eq!(
                layout::break_layout(file.inode(), PageRange::ALL, patient()),
                Err(EIO)
            );
            layout::break_layout_final(file.inode());
            check_eq!(file.nrpages(), 0);
            check_eq!(world.page(place).folio().refcount(), 1);
            drop(held);
            world.check_clean()
        })();
        // For the others, as if another device had come.
        release()?;
        result
    }

    #[test]
    fn a_device_goes_when_nobody_looks_at_its_pages_any_more() -> Checked {
        let result = (|| {
            let world = world()?;
            let file = world.file(1)?;
            let first = world.page(world.take(Order::PTE)?).pfn();
            let (stays, ended) = (Atomic::new(false), Atomic::new(false));
            let (results, retired) = with_threads(
                1,
                |_| {
                    let Some(stay) = FileDevice::of(file.inode()).stay() else {
                        return false;
                    };
                    stays.store(true, Release);
                    let told = until(|| stay.is_over(first));
                    // Long enough to be seen by a device that does not wait.
                    pause(100);
                    ended.store(true, Release);
                    told
                },
                |_| {
                    let begun = until(|| stays.load(Acquire));
                    adopted().map(|device| {
                        if let Some(device) = &*device.lock() {
                            device.retire();
                        }
                        begun && ended.load(Acquire)
                    })
                },
            )?;
            check_eq!(results.first(), Some(&true));
            check!(retired?);
            world.check_clean()
        })();
        release()?;
        result
    }

    /// The adopted device, for others. What keeps it is held across waits: nobody who stays may take that.
    fn adopted_device() -> Result<BlockDevice> {
        let adopted = adopted().map_err(|_| ENOMEM)?.lock();
        Ok(adopted.as_ref().ok_or(ENODEV)?.block_device())
    }

    /// What others find of a device's memory.
    fn find_memory(device: &BlockDevice) -> Result<KVec<PageMapRange>> {
        let mut ranges = KVec::new();
        for range in device.page_maps() {
            ranges.push(range, GFP_KERNEL)?;
        }
        Ok(ranges)
    }

    #[test]
    fn memory_that_is_waited_for_keeps_nobody_else_waiting() -> Checked {
        let result = (|| {
            let world = world()?;
            let first = world.page(world.take(Order::PTE)?).pfn();
            let device = adopted_device()?;
            let memory = DeviceMemory::new(|| find_memory(&device))?;
            let leaves = DeviceMemory::new(|| find_memory(&device))?;
            let stay = memory.stay();
            let ((), seen) = with_thread(
                || memory::retire_rest_of(device.memory_owner()),
                |thread| {
                    let told = until(|| stay.is_over(first));
                    let waited = thread.waits();
                    // Comes into the list and leaves it while the other is waited for.
                    drop(leaves);
                    let late = DeviceMemory::new(|| find_memory(&device)).map(drop);
                    let still = thread.waits();
                    drop(stay);
                    (told, waited, late, still)
                },
            )?;
            check_eq!(seen, (true, true, Ok(()), true));
            Ok(())
        })();
        // For the others, as if another device had come.
        release()?;
        result
    }

    #[test]
    fn memory_goes_with_its_device_whoever_has_it() -> Checked {
        let result = (|| {
            let world = world()?;
            let first = world.page(world.take(Order::PTE)?).pfn();
            // Two who have adopted nothing: one has the memory when its device goes, one has found it only.
            let device = adopted_device()?;
            let memory = DeviceMemory::new(|| find_memory(&device))?;
            check!(memory.stay().folio(first).is_ok());
            let mut turns = 0;
            let late = DeviceMemory::new(|| {
                turns += 1;
                let found = find_memory(&device)?;
                if turns == 1 {
                    memory::retire_rest_of(device.memory_owner());
                }
                Ok(found)
            })?;
            let stay = memory.stay();
            check!(stay.is_over(first));
            check_eq!(stay.folio(first).err(), Some(EIO));
            // What it has was found after that.
            check_eq!(turns, 2);
            check!(late.stay().folio(first).is_ok());
            Ok(())
        })();
        // For the others, as if another device had come.
        release()?;
        result
    }

    #[test]
    fn memory_of_another_device_goes_with_that() -> Checked {
        let result = (|| {
            let _world = world()?;
            let device = adopted_device()?;
            let theirs = DeviceMemory::new(|| find_memory(&device))?;
            let ours = DeviceMemory::new(|| Ok(KVec::new()))?;
            let found = find_memory(&device)?;
            let mut firsts = found.iter().map(PageMapRange::first);
            let (first, second) = (firsts.next().ok_or(ENOENT)?, firsts.next().ok_or(ENOENT)?);
            check!(!ours.has(first));
            check!(ours.share(&theirs, first));
            check!(ours.has(first) && !ours.has(second));
            check!(ours.stay().folio(first).is_ok());
            check_eq!(ours.stay().folio(second).err(), Some(EIO));
            // Not what they do not have either.
            let none = DeviceMemory::new(|| Ok(KVec::new()))?;
            check!(!ours.share(&none, second));

            // It is known to be gone as soon as theirs is; but who stays is waited for before the device is.
            let stay = ours.stay();
            let ((), seen) = with_thread(
                || memory::retire_rest_of(device.memory_owner()),
                |thread| {
                    let told = until(|| stay.is_over(first));
                    let gone = (ours.is_gone(first), ours.is_gone(second));
                    let waited = thread.waits();
                    let shared = ours.share(&theirs, second);
                    drop(stay);
                    (told, gone, waited, shared)
                },
            )?;
            check_eq!(seen, (true, (true, false), true, false));

            // With the next device it is there again.
            let back = DeviceMemory::new(|| find_memory(&device))?;
            check!(ours.share(&back, first));
            check!(ours.has(first) && !ours.is_gone(first));

            // Until that device is released.
            drop(back);
            check!(!ours.has(first));
            Ok(())
        })();
        // For the others, as if another device had come.
        release()?;
        result
    }

    #[test]
    fn memory_of_too_many_others_is_refused() -> Checked {
        let result = (|| {
            let _world = world()?;
            let device = adopted_device()?;
            let ours = DeviceMemory::new(|| Ok(KVec::new()))?;
            // As often as it is adopted anew.
            let mut first = None;
            for turn in 0..65 {
                let theirs = DeviceMemory::new(|| find_memory(&device))?;
                let found = find_memory(&device)?;
                let pfn = found.first().ok_or(ENOENT)?.first();
                first = Some(pfn);
                check_eq!(ours.share(&theirs, pfn), turn < 64);
                // What it has is not asked for again.
                check_eq!(ours.share(&theirs, pfn), turn < 64);
            }
            check!(first.is_some_and(|first| !ours.has(first)));
            Ok(())
        })();
        release()?;
        result
    }

    #[test]
    fn a_file_without_dax_is_left_alone() -> Checked {
        let world = world()?;
        let file = world.file(1)?;
        let place = world.take(Order::PTE)?;
        put(&file, 0, Order::PTE, place, false)?;
        let held = hold(world.page(place).folio());
        file.set_dax(false);
        check!(layout::busy_folio(file.mapping(), PageRange::ALL).is_none());
        let result = layout::break_layout(file.inode(), PageRange::ALL, Patience::None);
        check_eq!(result, Ok(()));
        layout::break_layout_final(file.inode());
        check_eq!(file.nrpages(), 1);
        file.set_dax(true);
        drop(held);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn a_device_that_goes_away_takes_its_entries_with_it() -> Checked {
        let world = world()?;
        let file = world.file(2 * PMD)?;
        let place = world.take_many(2 * PMD, Order::PMD)?;
        file.set_extents(&[TestExtent::mapped(0, PMD, place)])?;
        let view = View::new(&file, 0, PMD, Share::Shared, 0)?;
        view.store(0, 1)?;
        check!(view.mapped(0).is_some_and(|mapped| mapped.order == 9));
        put_zero(&file, PMD, Order::PTE)?;
        let held = hold(world.page(place).folio());
        let memory = [world.run(place, PMD)];
        let ((), (evicted, waited)) = with_thread(
            || {
                layout::evict_device_memory(file.inode(), false);
                folio::wait_until_unused(&memory);
            },
            |thread| {
                // A holder of a page may need another one of the same entry to go on.
                let evicted = until(|| look(&file, 0).is_none()) && view.mapped(0).is_none();
                let waited = thread.waits();
                thread.signal(true);
                let still = thread.waits();
                drop(held);
                (evicted, waited && still)
            },
        )?;
        check!(evicted);
        check!(waited);
        check!(view.mapped(0).is_none());
        drop(view);
        check_eq!(world.page(place).folio().order(), Order::PTE);
        // Holes need no memory.
        check!(look(&file, 0).is_none());
        check!(look(&file, PMD).is_some_and(|(entry, _)| entry.kind() == Kind::Zero));
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn each_task_knows_since_when_it_has_tried() -> Checked {
        const TASKS: usize = 40;
        let world = world()?;
        let file = world.file(1)?;
        let try_for = |rounds: usize| {
            for _ in 0..rounds {
                tries::note_in_loop(file.mapping());
                pause(2);
            }
        };
        let (begun, ended) = (Atomic::new(0usize), Atomic::new(0usize));
        let work = |_| {
            begun.fetch_add(1, Release);
            let all_at = |count: &Atomic<usize>| {
                until(|| {
                    try_for(1);
                    count.load(Acquire) == TASKS
                })
            };
            let all = all_at(&begun);
            // Tasks that try for the first time at the same moment may take one another's place.
            try_for(3);
            let since = vm::now_ms();
            try_for(5);
            ended.fetch_add(1, Release);
            let all = all && all_at(&ended);
            (all, vm::now_ms().wrapping_sub(since), tries::so_far())
        };
        let (results, ()) = with_threads(TASKS, work, |_| ())?;
        for (all, tried, tries) in results {
            check!(all);
            let first = tries.map(|tries| tries.first);
            check!(first >= Some(tried), "{first:?} of {tried} ms");
        }
        world.check_clean()
    }
}
