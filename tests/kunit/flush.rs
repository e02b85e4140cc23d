// SPDX-License-Identifier: GPL-2.0

//! Flushing what is removed or replaced (spec, R5).

use kernel::prelude::*;

#[kunit_tests(rdax_flush)]
mod tests {
    use crate::{
        dax::{
            layout::{self, Patience},
            stats::Counter,
        },
        kern::{
            fs::PageRange,
            order::Order,
            testing::{hold, Checked, File, Flushes, Share, View},
            xa::Mark,
        },
        tests::helpers::*,
    };
    use kernel::prelude::*;

    /// Makes a dirty entry that is mapped writable, removes it in some way, and checks that all of
    /// it was written back after it was unmapped.
    fn check_flushed(order: Order, name: &str, remove: impl Fn(&File<'_>) -> Checked) -> Checked {
        let world = world()?;
        let Some((file, place)) = mapped_file(&world, order)? else {
            return Ok(());
        };
        let page = order.pages() / 2;
        let view = View::new(&file, 0, order.pages(), Share::Shared, 0)?;
        view.store(page, 1)?;
        check!(view.mapped(page).is_some_and(|mapped| mapped.writable));
        let before = count(Counter::EntriesFlushedOnRemoval);
        let flushes = Flushes::watch(&file, page, view.address(page))?;
        remove(&file)?;
        check!(look(&file, page).is_none(), "{name}: not removed");
        check!(
            flushes.covers(world.pfn(place), order),
            "{name} of {order:?}: not flushed"
        );
        for flush in flushes.iter() {
            check!(
                !flush.writable,
                "{name}: flushed while it could be written to"
            );
            check!(flush.present, "{name}: removed before it was flushed");
        }
        check_eq!(
            count(Counter::EntriesFlushedOnRemoval),
            before + 1,
            "{name}"
        );
        check!(view.mapped(page).is_none(), "{name}: still mapped");
        drop((flushes, view));
        world.check_clean()
    }

    #[test]
    fn whoever_removes_an_entry_flushes_it_first() -> Checked {
        for order in [Order::PTE, Order::PMD, Order::PUD] {
            check_flushed(order, "delete range", |file| {
                layout::delete_range(file.mapping(), range(0, (order.pages() - 1) / 2));
                Ok(())
            })?;
            check_flushed(order, "delete entry", |file| {
                check!(layout::delete_entry(file.mapping(), at(order.pages() - 1)));
                Ok(())
            })?;
            check_flushed(order, "break layout", |file| {
                layout::break_layout(file.inode(), PageRange::ALL, Patience::None)?;
                Ok(())
            })?;
            check_flushed(order, "break layout for good", |file| {
                layout::break_layout_final(file.inode());
                Ok(())
            })?;
            check_flushed(order, "evict", |file| {
                layout::evict_range(file.mapping(), PageRange::ALL);
                Ok(())
            })?;
            check_flushed(order, "evict_device_memory", |file| {
                layout::evict_device_memory(file.inode(), false);
                Ok(())
            })?;
        }
        Ok(())
    }

    #[test]
    fn invalidating_leaves_what_is_dirty() -> Checked {
        for order in [Order::PTE, Order::PMD] {
            let world = world()?;
            let Some((file, _)) = mapped_file(&world, order)? else {
                continue;
            };
            let view = View::new(&file, 0, order.pages(), Share::Shared, 0)?;
            view.store(0, 1)?;
            check!(!layout::invalidate_entry(file.mapping(), at(0)));
            check!(look(&file, 0).is_some());
            check!(is_marked(&file, 0, Mark::Dirty));
            drop(view);
            clear(&file);
            world.check_clean()?;
        }
        Ok(())
    }

    #[test]
    fn only_what_a_deleted_file_had_is_not_flushed() -> Checked {
        let world = world()?;
        let place = world.take_many(2, Order::PTE)?;
        for (links, flushed) in [(1, true), (0, false)] {
            let file = world.file(2)?;
            put(&file, 0, Order::PTE, place, true)?;
            put(&file, 1, Order::PTE, place + 1, true)?;
            file.set_links(links);
            let flushes = Flushes::watch(&file, 0, 0)?;
            layout::break_layout_final(file.inode());
            check_eq!(flushes.count() > 0, flushed);
            check_eq!(file.nrpages(), 0);
            drop(flushes);
            file.set_links(1);
        }
        world.check_clean()
    }

    #[test]
    fn a_copy_on_write_flushes_nothing_and_leaves_the_new_page_dirty() -> Checked {
        let world = world()?;
        let file = world.file(1)?;
        let (old, new) = (world.take(Order::PTE)?, world.take(Order::PTE)?);
        set_shared(&file, 1, old, new)?;
        let view = View::new(&file, 0, 1, Share::Shared, 0)?;
        view.load(0)?;
        view.store(0, 1)?;
        check!(is_marked(&file, 0, Mark::Dirty));
        let flushes = Flushes::watch(&file, 0, view.address(0))?;
        check_eq!(write_back(&file, PageRange::ALL), Ok(1));
        check!(flushes.covers(world.pfn(new), Order::PTE));
        drop((flushes, view));
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn a_break_that_is_interrupted_leaves_everything_dirty() -> Checked {
        let world = world()?;
        let file = world.file(2)?;
        let place = world.take_many(2, Order::PTE)?;
        put(&file, 0, Order::PTE, place, true)?;
        put(&file, 1, Order::PTE, place + 1, true)?;
        let held = hold(world.page(place + 1).folio());
        let result = layout::break_layout(file.inode(), PageRange::ALL, Patience::None);
        check_eq!(result, Err(ERESTARTSYS));
        check!(is_marked(&file, 0, Mark::Dirty));
        check!(is_marked(&file, 1, Mark::Dirty));
        drop(held);
        check_eq!(write_back(&file, PageRange::ALL), Ok(2));
        clear(&file);
        world.check_clean()
    }
}
