// SPDX-License-Identifier: GPL-2.0

//! Faults that copy: shared extents, and old pages that are held (spec, section 4).

use kernel::prelude::*;

#[kunit_tests(rdax_cow)]
mod tests {
    use crate::{
        dax::{
            device::FileDevice,
            layout::{self, Patience},
            poison,
            stats::Counter,
            tree,
        },
        kern::{
            fs::{BlockLocks, PageRange},
            order::Order,
            page::FolioRef,
            testing::{
                hold, until, with_thread, with_threads, Checked, File, Share, TestExtent, View,
                World,
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
            // Nothing points to blocks that the filesystem takes back.
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
        file.set_extents(&[TestExtent::mapped(0, PMD, old).shared()])?;
        set_max_order(Order::PMD)?;
        let view = View::new(&file, 0, PMD, Share::Shared, 0)?;
        view.load(0)?;
        check!(view.mapped(0).is_some_and(|mapped| mapped.order == 9));
        drop(view);
        // The other file has lost its first page.
        file.set_extents(&[
            TestExtent::mapped(0, 1, old),
            TestExtent::mapped(1, PMD - 1, old + 1).shared(),
        ])?;
        file.set_extents_for_writing(&[
            TestExtent::mapped(0, 1, old),
            TestExtent::mapped(1, PMD - 1, new + 1)
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

    /// A folio of 2 MiB that somebody holds: the file that has lost it, another that has a page of it
    /// now, the folio's place and the reference.
    fn on_a_held_folio(world: &World) -> Checked<(File<'_>, File<'_>, usize, FolioRef)> {
        let place = world.take(Order::PMD)?;
        let (large, small) = (world.file(PMD)?, world.file(1)?);
        put(&large, 0, Order::PMD, place, false)?;
        let held = hold(world.page(place).folio());
        clear(&large);
        small.set_extents(&[TestExtent::mapped(0, 1, place + 5)])?;
        Ok((large, small, place, held))
    }

    #[test]
    fn a_fatal_signal_ends_an_access_of_the_kernel_that_waits_for_a_page() -> Checked {
        let world = world()?;
        let (large, small, place, held) = on_a_held_folio(&world)?;
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

    #[test]
    fn a_thread_of_the_kernel_does_not_wait_for_a_page_with_an_address_space() -> Checked {
        let world = world()?;
        let (large, small, place, held) = on_a_held_folio(&world)?;
        let ended = Atomic::new(false);
        let (result, over) = with_thread(
            || -> Checked<Result> {
                let view = View::new(&small, 0, 1, Share::Shared, 0)?;
                let result = view.ask_for(0);
                ended.store(true, Release);
                Ok(result)
            },
            |thread| {
                let over = until(|| ended.load(Acquire));
                // So that it ends.
                thread.signal(true);
                drop(held);
                over
            },
        )?;
        check!(over, "it asks again and again");
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

    /// A store that makes a copy while somebody copies from the old blocks, without holding the page.
    fn store_to_what_is_read(signal: bool) -> Checked {
        let world = world()?;
        let (old, new) = (world.take(Order::PTE)?, world.take(Order::PTE)?);
        let file = world.file(1)?;
        world.fill(old, 1, 0x11);
        set_shared(&file, 1, old, new)?;
        let ended = Atomic::new(false);
        let reading = FileDevice::give_up_blocks(file.inode())?;
        let (result, (waited, early, over)) = with_thread(
            || -> Checked<Result> {
                let view = View::new(&file, 0, 1, Share::Shared, 0)?;
                let result = view.store(0, 0x22);
                ended.store(true, Release);
                Ok(result)
            },
            |thread| {
                let waited = thread.waits();
                let early = ended.load(Acquire);
                if signal {
                    thread.signal(true);
                } else {
                    drop(reading);
                }
                (waited, early, until(|| ended.load(Acquire)))
            },
        )?;
        check!(waited && !early, "the copy took the place of what is read");
        check!(over, "the access goes on for ever");
        check_eq!(result?, if signal { Err(EFAULT) } else { Ok(()) });
        if signal {
            check!(
                crate::kern::testing::is_free(world.page(new)),
                "the copy is kept"
            );
        }
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn a_copy_waits_for_reads_of_the_old_blocks() -> Checked {
        store_to_what_is_read(false)
    }

    #[test]
    fn readers_wait_for_no_other_device() -> Checked {
        let world = world()?;
        let (one, other) = (BlockLocks::new()?, BlockLocks::new()?);
        let file = world.file(1)?;
        // More files than locks.
        let mut files = KVec::new();
        for _ in 0..64 {
            files.push(world.file(1)?, GFP_KERNEL)?;
        }
        let _given_up = one.give_up(file.inode())?;
        check_eq!(one.keep(file.inode(), true).err(), Some(EAGAIN));
        for file in &files {
            check!(other.keep(file.inode(), true).is_ok());
        }
        Ok(())
    }

    #[test]
    fn a_fatal_signal_ends_a_copy_that_waits_for_reads() -> Checked {
        store_to_what_is_read(true)
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
        let (_, small, _, held) = on_a_held_folio(&world)?;
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
                    let _out = small.mapping().invalidate_lock();
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
            let (large, small, place, held) = on_a_held_folio(&world)?;
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
        file.set_extents(&[TestExtent::mapped(0, PMD, place)])?;
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
}
