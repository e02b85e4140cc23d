// SPDX-License-Identifier: GPL-2.0

//! Faults that map what lies around a page (spec, section 4).

use kernel::prelude::*;

#[kunit_tests(rdax_around)]
mod tests {
    use crate::{
        dax::{poison, stats::Counter},
        kern::{
            entry::Entry,
            order::Order,
            testing::{Checked, Failing, Share, TestExtent, View},
            vm::FaultCode,
            xa::Mark,
        },
        tests::helpers::{mapped::*, *},
    };
    use core::ops::Range;
    use kernel::prelude::*;

    #[test]
    fn a_read_maps_the_rest_of_its_block() -> Checked {
        let world = world()?;
        let (file, place) = straight_file(&world, PAGES)?;
        let view = View::new(&file, 0, PAGES, Share::Shared, 0)?;
        let before = (count(Counter::ReadPte), count(Counter::AroundPte));
        world.set_byte(place + 27, 0, 0x5a);
        view.load(20)?;
        check_eq!(maps(&view, 0, PAGES), bits(20, 31));
        check_eq!(count(Counter::ReadPte), before.0 + 1);
        check_eq!(count(Counter::AroundPte), before.1 + 11);
        check_eq!(file.nrpages(), 12);
        check_eq!(view.load(27)? & 0xff, 0x5a);
        check_eq!(count(Counter::ReadPte), before.0 + 1);
        // The filesystem was not asked about the pages before it, nor has anybody else told.
        view.load(16)?;
        check_eq!(maps(&view, 0, PAGES), bits(16, 31));
        check_eq!((dirty(&file), writable(&view)), (0, 0));
        check_sound(&file, &view, PAGES, place)?;
        // Another mapping gets the whole block, and nobody is asked.
        file.fail_begin(None);
        let other = View::new(&file, 0, PAGES, Share::Shared, 0)?;
        other.load(24)?;
        check_eq!(maps(&other, 0, PAGES), bits(16, 31));
        check_eq!(file.begins(), 0);
        check!((16..32).all(|page| world.page(place + page).folio().refcount() == 2));
        drop(other);
        check_sound(&file, &view, PAGES, place)?;
        drop(view);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn a_hole_ends_where_data_begin_and_data_where_a_hole_does() -> Checked {
        let world = world()?;
        let place = world.take_many(16, order(4))?;
        for page in 0..16 {
            world.fill(place + page, 1, page as u8 + 1);
        }
        for border in [1, 7, 15] {
            for first_is_hole in [true, false] {
                let file = world.file(16)?;
                let (hole, data) = match first_is_hole {
                    true => (range(0, border - 1), range(border, 15)),
                    false => (range(border, 15), range(0, border - 1)),
                };
                let data =
                    TestExtent::mapped(data.first.get(), data.pages(), place + data.first.get());
                let hole_stretch = TestExtent::hole(hole.first.get(), hole.pages());
                match first_is_hole {
                    true => file.set_extents(&[hole_stretch, data])?,
                    false => file.set_extents(&[data, hole_stretch])?,
                }
                let view = View::new(&file, 0, 16, Share::Shared, 0)?;
                for page in 0..16 {
                    let is_hole = (hole.first.get()..=hole.last.get()).contains(&page);
                    let expected = if is_hole { 0 } else { page as u64 + 1 };
                    check_eq!(view.load(page)? & 0xff, expected, "{page}, border {border}");
                }
                drop(view);
                clear(&file);
            }
        }
        world.check_clean()
    }

    #[test]
    fn what_fails_with_the_rest_of_the_block_is_tried_alone() -> Checked {
        let world = world()?;
        let (file, place) = straight_file(&world, PAGES)?;
        let view = View::new(&file, 0, PAGES, Share::Shared, 0)?;
        let errors = count(Counter::FaultErrors);
        file.fail_begin(Some(Failing {
            call: 0,
            error: EIO,
        }));
        view.load(20)?;
        check_eq!(file.begins(), 2);
        check_eq!(maps(&view, 0, PAGES), bits(20, 20));
        check_eq!(file.nrpages(), 1);
        check_eq!(count(Counter::FaultErrors), errors);
        // Only that one.
        view.load(24)?;
        check_eq!(maps(&view, 0, PAGES), bits(20, 20) | bits(24, 31));
        check_sound(&file, &view, PAGES, place)?;
        drop(view);
        clear(&file);
        // A larger entry that was to be made makes way for one of the page.
        let view = View::new(&file, 0, PAGES, Share::Shared, 0)?;
        for page in 0..8 {
            view.store(page, 1)?;
        }
        check!(look(&file, 4).is_some_and(|(entry, _)| entry.order() == order(2)));
        file.fail_begin(Some(Failing {
            call: 0,
            error: EIO,
        }));
        view.store(8, 1)?;
        check_eq!(file.begins(), 2);
        check!(look(&file, 8).is_some_and(|(entry, _)| entry.order() == Order::PTE));
        check_eq!(dirty(&file), bits(0, 8));
        check_sound(&file, &view, PAGES, place)?;
        file.fail_begin(None);
        drop(view);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn the_block_ends_with_the_mapping_and_the_file() -> Checked {
        let world = world()?;
        let (file, _) = straight_file(&world, PAGES)?;
        // Filled from the filesystem, then from entries.
        for _ in 0..2 {
            let view = View::new(&file, 3, 6, Share::Shared, 0)?;
            view.load(3)?;
            check_eq!(maps(&view, 3, 6), bits(3, 8));
        }
        clear(&file);
        file.set_size((20 << Order::PAGE_SHIFT) + 1);
        for _ in 0..2 {
            let view = View::new(&file, 0, PAGES, Share::Shared, 0)?;
            view.load(16)?;
            check_eq!(maps(&view, 0, PAGES), bits(16, 20));
        }
        check_eq!(present_pages(&file, PAGES), bits(16, 20));
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn the_block_ends_with_the_extent() -> Checked {
        let world = world()?;
        let file = world.file(PAGES)?;
        let place = world.take_many(2 * PAGES, Order::PMD)?;
        file.set_extents(&[
            TestExtent::mapped(0, 10, place),
            TestExtent::mapped(10, 3, place + PAGES),
        ])?;
        let view = View::new(&file, 0, PAGES, Share::Shared, 0)?;
        view.load(2)?;
        check_eq!(maps(&view, 0, PAGES), bits(2, 9));
        view.load(11)?;
        check_eq!(maps(&view, 0, PAGES), bits(2, 9) | bits(11, 12));
        check_eq!(
            view.mapped(12).map(|mapped| mapped.pfn),
            Some(world.pfn(place + PAGES + 2).to_bits())
        );
        // A hole is another extent.
        view.load(13)?;
        check_eq!(maps(&view, 0, PAGES), bits(2, 9) | bits(11, 15));
        check!(look(&file, 13) == Some((Entry::zero(Order::PTE), false)));
        // Entries know of no extents.
        let other = View::new(&file, 0, PAGES, Share::Shared, 0)?;
        other.load(9)?;
        check_eq!(maps(&other, 0, PAGES), bits(2, 9) | bits(11, 12));
        drop((view, other));
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn the_block_is_as_large_as_the_user_says() -> Checked {
        let world = world()?;
        for bits_of in 0..=4 {
            set_fault_around(order(bits_of))?;
            let pages = order(bits_of).pages();
            let (file, place) = straight_file(&world, PAGES)?;
            let view = View::new(&file, 0, PAGES, Share::Shared, 0)?;
            view.load(32)?;
            view.load(53)?;
            let wanted = bits(32, 31 + pages) | bits(53, 53 | (pages - 1));
            check_eq!(maps(&view, 0, PAGES), wanted, "{pages} pages");
            check_eq!(present_pages(&file, PAGES), wanted);
            check_sound(&file, &view, PAGES, place)?;
            drop(view);
            clear(&file);
        }
        world.check_clean()
    }

    /// The pages of a file of several page tables.
    const MANY: usize = 2 * Order::PMD.pages();

    /// Checks that a view of many pages has these mapped and no others.
    fn check_mapped(view: &View<'_>, mapped: Range<usize>) -> Checked {
        for page in 0..MANY {
            check_eq!(
                view.mapped(page).is_some(),
                mapped.contains(&page),
                "page {page} of {mapped:?}"
            );
        }
        Ok(())
    }

    #[test]
    fn a_block_may_be_as_large_as_a_page_table() -> Checked {
        let world = world()?;
        set_max_order(Order::PTE)?;
        for bits_of in 5..=9 {
            set_fault_around(order(bits_of))?;
            let mask = order(bits_of).pages() - 1;
            let (file, place) = straight_file(&world, MANY)?;
            let view = View::new(&file, 0, MANY, Share::Shared, 0)?;
            let before = (count(Counter::ReadPte), count(Counter::AroundPte));
            view.load(549)?;
            let known = 549..(549 | mask) + 1;
            check_mapped(&view, known.clone())?;
            check_eq!(count(Counter::ReadPte), before.0 + 1);
            check_eq!(count(Counter::AroundPte), before.1 + known.len() as u64 - 1);
            check_eq!(file.nrpages(), known.len());
            // Other mappings get what is known of their blocks, and nobody is asked.
            file.fail_begin(None);
            for shift in [0, 5] {
                let other = View::new(&file, 0, MANY, Share::Shared, shift)?;
                other.load(570)?;
                let first = ((570 + shift) & !mask) - shift;
                let end = ((570 + shift) | mask) + 1 - shift;
                check_mapped(&other, known.start.max(first)..known.end.min(end))?;
                drop(other);
            }
            check_eq!(file.begins(), 0);
            check_sound(&file, &view, MANY, place)?;
            drop(view);
            clear(&file);
        }
        world.check_clean()
    }

    #[test]
    fn a_hole_is_mapped_as_far_as_a_page_table_goes() -> Checked {
        let world = world()?;
        set_max_order(Order::PTE)?;
        set_fault_around(Order::PMD)?;
        let file = world.file(MANY)?;
        let view = View::new(&file, 0, MANY, Share::Shared, 0)?;
        let before = (count(Counter::ZeroPte), count(Counter::AroundPte));
        check_eq!(view.load(100)?, 0);
        check_mapped(&view, 100..512)?;
        check_eq!(count(Counter::ZeroPte), before.0 + 1);
        check_eq!(count(Counter::AroundPte), before.1 + 411);
        check!((100..512).all(|page| look(&file, page) == Some((Entry::zero(Order::PTE), false))));
        drop(view);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn a_sequence_of_stores_is_prepared_as_far_as_a_page_table_goes() -> Checked {
        let world = world()?;
        set_max_order(Order::PTE)?;
        set_fault_around(Order::PMD)?;
        for write in [0, 2] {
            set_write_order(order(write))?;
            let (file, place) = straight_file(&world, MANY)?;
            let view = View::new(&file, 0, MANY, Share::Shared, 0)?;
            for counter in [Counter::WritePte, Counter::MkwritePte] {
                let before = count(counter);
                for page in 0..MANY {
                    view.store(page, page as u64)?;
                    if page % 100 == 0 {
                        let dirty = (0..MANY)
                            .filter(|&page| is_marked(&file, page, Mark::Dirty))
                            .count();
                        check!(dirty <= 2 * page + 1, "{dirty} are dirty of {page}");
                    }
                }
                // Each doubles what there is, up to a page table; by 16 pages they would be 64.
                let faults = count(counter) - before;
                check!(faults <= 24, "{faults} faults");
                check_sound(&file, &view, MANY, place)?;
                check_eq!(fsync(&file), Ok(MANY));
                check!((0..MANY).all(|page| view.mapped(page).is_some_and(|it| !it.writable)));
            }
            drop(view);
            clear(&file);
        }
        world.check_clean()
    }

    #[test]
    fn who_reads_at_random_gets_single_pages() -> Checked {
        let world = world()?;
        let (file, place) = straight_file(&world, PAGES)?;
        for _ in 0..2 {
            let view = View::new(&file, 0, PAGES, Share::Shared, 0)?;
            view.set_random();
            view.load(20)?;
            view.load(25)?;
            check_eq!(maps(&view, 0, PAGES), bits(20, 20) | bits(25, 25));
            for page in 0..6 {
                view.store(page, 1)?;
            }
            check_eq!(writable(&view), bits(0, 5));
            check_eq!(dirty(&file), bits(0, 5));
            check_eq!(
                present_pages(&file, PAGES),
                bits(0, 5) | bits(20, 20) | bits(25, 25)
            );
            check_sound(&file, &view, PAGES, place)?;
        }
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn a_hole_is_mapped_by_blocks_and_filled_by_pages() -> Checked {
        let world = world()?;
        let file = world.file(PAGES)?;
        let place = world.take_many(PAGES, Order::PMD)?;
        let view = View::new(&file, 0, PAGES, Share::Shared, 0)?;
        let before = (count(Counter::ZeroPte), count(Counter::AroundPte));
        check_eq!(view.load(5)?, 0);
        check_eq!(maps(&view, 0, PAGES), bits(5, 15));
        check_eq!((writable(&view), dirty(&file)), (0, 0));
        check_eq!(count(Counter::ZeroPte), before.0 + 1);
        check_eq!(count(Counter::AroundPte), before.1 + 10);
        check!((5..16).all(|page| look(&file, page) == Some((Entry::zero(Order::PTE), false))));
        // Blocks come one by one, however many were written before.
        world.fill(place, PAGES, 0);
        file.set_extents_for_writing(&[TestExtent::mapped(0, PAGES, place).new_blocks()])?;
        for page in 7..13 {
            view.store(page, page as u64)?;
            check_eq!(writable(&view), bits(7, page));
            check_eq!(dirty(&file), bits(7, page));
            check_eq!(maps(&view, 0, PAGES), bits(5, 15));
        }
        for page in 20..30 {
            view.store(page, 1)?;
            check_eq!(dirty(&file), bits(7, 12) | bits(20, page));
        }
        check_eq!(view.load(6)?, 0);
        check_eq!(view.load(12)?, 12);
        drop(view);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn a_bad_page_is_left_out() -> Checked {
        let world = world()?;
        let (file, place) = straight_file(&world, PAGES)?;
        world.set_poison(place + 22, true);
        for _ in 0..2 {
            let view = View::new(&file, 0, PAGES, Share::Shared, 0)?;
            view.load(20)?;
            check_eq!(maps(&view, 0, PAGES), bits(20, 31) & !bits(22, 22));
            file.forget_faults();
            check_eq!(view.load(22), Err(EFAULT));
            check_eq!(
                file.last_fault().map(|fault| fault.code),
                Some(FaultCode::HWPOISON)
            );
        }
        // Once memory has failed, each page is looked at by itself.
        let (cookie, _) = poison::lock_index(file.mapping(), at(0));
        poison::unlock_index(file.mapping(), cookie);
        let view = View::new(&file, 0, PAGES, Share::Shared, 0)?;
        view.load(20)?;
        view.load(40)?;
        check_eq!(maps(&view, 0, PAGES), bits(20, 20) | bits(40, 40));
        world.set_poison(place + 22, false);
        drop(view);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn a_private_mapping_shares_the_block_and_copies_a_page() -> Checked {
        let world = world()?;
        let (file, place) = straight_file(&world, PAGES)?;
        world.fill(place, PAGES, 0x11);
        let view = View::new(&file, 0, PAGES, Share::Private, 0)?;
        view.load(20)?;
        check_eq!(maps(&view, 0, PAGES), bits(20, 31));
        check_eq!(writable(&view), 0);
        let copies = count(Counter::PrivatePte);
        // In sequence; what is mapped already the core copies by itself.
        for page in 24..36 {
            view.store(page, 0)?;
        }
        check_eq!(count(Counter::PrivatePte), copies + 4);
        check_eq!(writable(&view), bits(24, 35));
        check_eq!(dirty(&file), 0);
        check!(world.is_filled(place, 0, PAGES << Order::PAGE_SHIFT, 0x11));
        for page in 20..36 {
            let users = i32::from(page < 24);
            check_eq!(world.page(place + page).folio().refcount(), users);
        }
        drop(view);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn a_read_maps_the_part_of_a_larger_folio_that_is_in_its_block() -> Checked {
        let world = world()?;
        set_max_order(Order::PTE)?;
        for bits_of in [2, 5] {
            set_write_order(order(bits_of))?;
            let (file, place) = straight_file(&world, PAGES)?;
            let view = View::new(&file, 0, PAGES, Share::Shared, 0)?;
            for page in 0..PAGES {
                view.store(page, page as u64)?;
            }
            drop(view);
            check_eq!(fsync(&file), Ok(PAGES));
            let view = View::new(&file, 0, PAGES, Share::Shared, 0)?;
            check_eq!(view.load(37)?, 37);
            check_eq!(maps(&view, 0, PAGES), bits(32, 47));
            check_eq!(writable(&view), 0);
            check_sound(&file, &view, PAGES, place)?;
            // The first store makes writable what it makes dirty, as far as the block goes.
            view.store(38, 1)?;
            let folio = if bits_of == 2 {
                bits(36, 39)
            } else {
                bits(32, 63)
            };
            check_eq!(dirty(&file), folio);
            check_eq!(writable(&view), folio & bits(32, 47));
            check_sound(&file, &view, PAGES, place)?;
            drop(view);
            clear(&file);
        }
        world.check_clean()
    }
}
