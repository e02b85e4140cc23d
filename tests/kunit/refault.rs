// SPDX-License-Identifier: GPL-2.0

//! A fault whose entry has all that is needed does not ask the filesystem, and one whose answer may
//! have changed does (spec, section 10, point 2).

use kernel::prelude::*;

#[kunit_tests(rdax_refault)]
mod tests {
    use crate::{
        dax::{
            device, io,
            layout::{self, Patience},
        },
        kern::{
            entry::{Entry, Kind},
            fs::PageRange,
            order::Order,
            testing::{call_invalidate, Buffer, Checked, File, Share, TestExtent, View},
        },
        tests::helpers::*,
    };

    const PAGE: usize = Order::PTE.bytes();

    /// How often the filesystem is asked for one access to a page through a new mapping.
    fn asked(
        file: &File<'_>,
        pages: usize,
        page: usize,
        write: bool,
        share: Share,
    ) -> Checked<usize> {
        let view = View::new(file, 0, pages, share, 0)?;
        file.fail_begin(None);
        if write {
            view.store(page, 1)?;
        } else {
            view.load(page)?;
        }
        check!(view.mapped(page).is_some());
        Ok(file.begins())
    }

    fn reading(file: &File<'_>, pages: usize, page: usize) -> Checked<usize> {
        asked(file, pages, page, false, Share::Shared)
    }

    fn writing(file: &File<'_>, pages: usize, page: usize) -> Checked<usize> {
        asked(file, pages, page, true, Share::Shared)
    }

    #[test]
    fn what_is_known_is_not_asked_again() -> Checked {
        for order in [Order::PTE, Order::PMD, Order::PUD] {
            let world = world()?;
            let Some((file, _)) = mapped_file(&world, order)? else {
                continue;
            };
            set_max_order(order)?;
            let pages = order.pages();
            let page = pages / 2;
            check!(reading(&file, pages, page)? > 0);
            check_eq!(reading(&file, pages, page)?, 0);
            // Whether it can be written to nobody has said, but once.
            check!(writing(&file, pages, page)? > 0);
            check_eq!(writing(&file, pages, page)?, 0);
            check_eq!(reading(&file, pages, page)?, 0);
            // After write-back neither.
            check_eq!(fsync(&file), Ok(pages));
            check_eq!(writing(&file, pages, page)?, 0);
            clear(&file);
            world.check_clean()?;
        }
        Ok(())
    }

    #[test]
    fn a_store_makes_the_inode_dirty_whether_or_not_the_filesystem_is_asked() -> Checked {
        for order in [Order::PTE, Order::PMD] {
            let world = world()?;
            let Some((file, _)) = mapped_file(&world, order)? else {
                continue;
            };
            set_max_order(order)?;
            check!(!file.take_dirty_pages());
            check!(reading(&file, order.pages(), 0)? > 0);
            check!(!file.take_dirty_pages());
            check!(writing(&file, order.pages(), 0)? > 0);
            check!(file.take_dirty_pages());
            check_eq!(fsync(&file), Ok(order.pages()));
            check_eq!(writing(&file, order.pages(), 0)?, 0);
            check!(file.take_dirty_pages(), "{order:?}");
            clear(&file);
            world.check_clean()?;
        }
        Ok(())
    }

    #[test]
    fn a_filesystem_with_an_error_is_always_asked() -> Checked {
        for order in [Order::PTE, Order::PMD] {
            let world = world()?;
            let Some((file, _)) = mapped_file(&world, order)? else {
                continue;
            };
            set_max_order(order)?;
            let pages = order.pages();
            check!(writing(&file, pages, 0)? > 0);
            check_eq!(writing(&file, pages, 0)?, 0);
            // Its answer is right then.
            device::set_error(file.inode());
            check!(reading(&file, pages, 0)? > 0);
            check!(writing(&file, pages, 0)? > 0);
            check!(writing(&file, pages, 0)? > 0);
            device::forget_error(file.inode());
            check_eq!(reading(&file, pages, 0)?, 0);
            check_eq!(writing(&file, pages, 0)?, 0);
            clear(&file);
            world.check_clean()?;
        }
        Ok(())
    }

    #[test]
    fn a_synchronous_write_always_asks() -> Checked {
        for order in [Order::PTE, Order::PMD] {
            let world = world()?;
            let Some((file, place)) = mapped_file(&world, order)? else {
                continue;
            };
            set_max_order(order)?;
            let pages = order.pages();
            check!(writing(&file, pages, 0)? > 0);
            for _ in 0..2 {
                check!(asked(&file, pages, 0, true, Share::Sync)? > 0);
            }
            check_eq!(asked(&file, pages, 0, false, Share::Sync)?, 0);
            // So metadata that came since is made durable.
            file.set_extents(&[TestExtent::mapped(0, pages, place).dirty()])?;
            let syncs = file.syncs();
            check!(asked(&file, pages, 0, true, Share::Sync)? > 0);
            check_eq!(file.syncs(), syncs + 1);
            clear(&file);
            world.check_clean()?;
        }
        Ok(())
    }

    #[test]
    fn a_hole_is_asked_about_before_it_is_written_to() -> Checked {
        let world = world()?;
        let file = world.file(1)?;
        let place = world.take(Order::PTE)?;
        check!(reading(&file, 1, 0)? > 0);
        file.set_extents_for_writing(&[TestExtent::mapped(0, 1, place).new_blocks()])?;
        check!(writing(&file, 1, 0)? > 0);
        check!(matches!(
            look(&file, 0).map(|(entry, _)| entry.kind()),
            Some(Kind::Data(_))
        ));
        // Its own, and written, from then on.
        check_eq!(writing(&file, 1, 0)?, 0);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn a_private_mapping_asks_for_reading_only() -> Checked {
        let world = world()?;
        let Some((file, _)) = mapped_file(&world, Order::PTE)? else {
            return Ok(());
        };
        check!(asked(&file, 1, 0, true, Share::Private)? > 0);
        check_eq!(asked(&file, 1, 0, true, Share::Private)?, 0);
        check_eq!(asked(&file, 1, 0, false, Share::Private)?, 0);
        // The copy was written to, not the file's page.
        check!(look(&file, 0).is_some_and(|(entry, _)| !entry.is_writable()));
        check!(writing(&file, 1, 0)? > 0);
        clear(&file);
        world.check_clean()
    }

    /// Does what takes entries away between two accesses, and checks that the second asks, and finds
    /// what is there by then.
    fn check_forgotten(
        order: Order,
        name: &str,
        take_away: impl Fn(&File<'_>) -> Checked,
    ) -> Checked {
        for write in [false, true] {
            let world = world()?;
            let Some((file, _)) = mapped_file(&world, order)? else {
                return Ok(());
            };
            set_max_order(order)?;
            let pages = order.pages();
            let page = pages - 1;
            asked(&file, pages, page, write, Share::Shared)?;
            check_eq!(asked(&file, pages, page, write, Share::Shared)?, 0);
            take_away(&file)?;
            // The blocks are others.
            let place = world.take(order)?;
            file.set_extents(&[TestExtent::mapped(0, pages, place)])?;
            check!(
                asked(&file, pages, page, write, Share::Shared)? > 0,
                "{name}, order {}, write: {write}",
                order.bits()
            );
            let entry = Entry::data(world.block(place, order));
            let wanted = if write { entry.writable() } else { entry };
            check!(look(&file, page) == Some((wanted, false)), "{name}");
            clear(&file);
            world.check_clean()?;
        }
        Ok(())
    }

    #[test]
    fn whatever_takes_entries_away_has_the_next_fault_ask() -> Checked {
        for order in [Order::PTE, Order::PMD] {
            check_forgotten(order, "break_layout", |file| {
                let page = range(0, 0);
                Ok(layout::break_layout(file.inode(), page, Patience::None)?)
            })?;
            check_forgotten(order, "delete_range", |file| {
                layout::delete_range(file.mapping(), range(0, 0));
                Ok(())
            })?;
            check_forgotten(order, "delete_entry", |file| {
                check!(layout::delete_entry(file.mapping(), at(0)));
                Ok(())
            })?;
            check_forgotten(order, "evict_range", |file| {
                layout::evict_range(file.mapping(), range(0, 0));
                Ok(())
            })?;
            check_forgotten(order, "invalidate_entry", |file| {
                // Not what is dirty.
                fsync(file)?;
                check!(layout::invalidate_entry(file.mapping(), at(0)));
                Ok(())
            })?;
            check_forgotten(order, "invalidate_inode_pages2_range", |file| {
                fsync(file)?;
                Ok(call_invalidate(file)?)
            })?;
            check_forgotten(order, "evict_device_memory", |file| {
                layout::evict_device_memory(file.inode(), false);
                Ok(())
            })?;
        }
        Ok(())
    }

    /// A file whose page shares its block, is mapped for reading, and is to get a copy of its own.
    fn with_shared(name: &str, change: impl Fn(&File<'_>) -> Checked) -> Checked {
        let world = world()?;
        let file = world.file(1)?;
        let (old, new) = (world.take(Order::PTE)?, world.take(Order::PTE)?);
        world.fill(old, 1, 0x11);
        set_shared(&file, 1, old, new)?;
        check!(reading(&file, 1, 0)? > 0);
        check_eq!(reading(&file, 1, 0)?, 0);
        change(&file)?;
        file.set_extents(&[TestExtent::mapped(0, 1, new)])?;
        check!(reading(&file, 1, 0)? > 0, "{name}");
        check!(look(&file, 0) == Some((Entry::data(world.block(new, Order::PTE)), false)));
        check!(writing(&file, 1, 0)? > 0, "{name}");
        check_eq!(writing(&file, 1, 0)?, 0);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn a_page_that_got_a_copy_of_its_own_is_asked_about() -> Checked {
        with_shared("write", |file| {
            let written = file.transfer(3, 0, Buffer::Write(&[0x22; 5]), |iocb, iter| {
                io::iomap_rw(iocb, iter, file.ops())
            });
            check_eq!(written, Ok(5));
            Ok(())
        })?;
        with_shared("unshare", |file| {
            Ok(io::file_unshare(file.inode(), 0, PAGE as u64, file.ops())?)
        })?;
        with_shared("zero", |file| {
            let mut zeroed = false;
            io::zero_range(file.inode(), 7, 9, file.ops(), &mut zeroed)?;
            check!(zeroed);
            Ok(())
        })
    }

    #[test]
    fn a_store_to_a_shared_page_asks_and_is_its_own_then() -> Checked {
        let world = world()?;
        let file = world.file(1)?;
        let (old, new) = (world.take(Order::PTE)?, world.take(Order::PTE)?);
        set_shared(&file, 1, old, new)?;
        check!(reading(&file, 1, 0)? > 0);
        check!(look(&file, 0).is_some_and(|(entry, _)| !entry.is_writable()));
        check!(writing(&file, 1, 0)? > 0);
        check!(look(&file, 0).is_some_and(|(entry, _)| {
            entry.kind() == Kind::Data(world.block(new, Order::PTE).pages()) && entry.is_writable()
        }));
        file.set_extents(&[TestExtent::mapped(0, 1, new)])?;
        check_eq!(writing(&file, 1, 0)?, 0);
        layout::delete_range(file.mapping(), PageRange::ALL);
        world.check_clean()
    }
}
