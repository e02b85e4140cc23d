// SPDX-License-Identifier: GPL-2.0

//! Pages that a fault maps along with the one that was accessed, and what writes in sequence make
//! (spec, section 10, points 2 and 3).

use kernel::prelude::*;

#[kunit_tests(rdax_around)]
mod tests {
    use crate::{
        dax::{poison, stats::Counter},
        kern::{
            bindings,
            entry::Entry,
            order::Order,
            testing::{Checked, Failing, File, Flushes, Share, TestExtent, View},
            vm::FaultCode,
            xa::Mark,
        },
        tests::helpers::*,
    };
    use kernel::prelude::*;

    /// The pages of most files here: some blocks of 16.
    const PAGES: usize = 64;

    fn order(bits: usize) -> Order {
        Order::from_bits(bits)
    }

    /// Which pages of a file a view has mapped.
    fn maps(view: &View<'_>, first: usize, pages: usize) -> u64 {
        pages_with(first + pages, |page| {
            page >= first && view.mapped(page).is_some()
        })
    }

    /// Which of the first pages it has mapped to be written to.
    fn writable(view: &View<'_>) -> u64 {
        pages_with(PAGES, |page| {
            view.mapped(page).is_some_and(|mapped| mapped.writable)
        })
    }

    fn dirty(file: &File<'_>) -> u64 {
        marked_pages(file, PAGES, Mark::Dirty)
    }

    /// What must hold at rest for a file that only this view maps and whose memory begins at a
    /// place: R1, R4, R5, and that each page is the right one.
    fn check_sound(file: &File<'_>, view: &View<'_>, pages: usize, place: usize) -> Checked {
        let world = file.world();
        for page in 0..pages {
            let mapped = view.mapped(page);
            let Some((entry, locked)) = look(file, page) else {
                check!(mapped.is_none(), "page {page} is mapped without an entry");
                continue;
            };
            check!(!locked, "page {page} is locked");
            let writable = mapped.is_some_and(|mapped| mapped.writable);
            check!(
                !writable || is_marked(file, page, Mark::Dirty),
                "page {page} can be written to and is not dirty"
            );
            let Some(block) = entry.block() else {
                continue;
            };
            let first = entry.order().first(at(page)).get();
            let last = entry.order().last(at(page)).get();
            check!(
                block.pfn() == world.pfn(place + first),
                "page {page} lies elsewhere"
            );
            check!(mapped.is_none_or(|mapped| mapped.pfn == world.pfn(place + page).to_bits()));
            let folio = world.page(place + page).folio();
            check!(folio.head() == world.page(place + first));
            check_eq!(folio.order(), entry.order(), "page {page}");
            let users = (first..=last)
                .filter(|page| view.mapped(*page).is_some())
                .count() as i32;
            check_eq!(
                (folio.refcount(), folio.mapcount()),
                (users, users),
                "page {page}"
            );
        }
        Ok(())
    }

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
        // What is before it was not asked for, and nobody else has told.
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
    fn synchronous_writes_are_single_pages() -> Checked {
        let world = world()?;
        let (file, place) = straight_file(&world, PAGES)?;
        let view = View::new(&file, 0, PAGES, Share::Sync, 0)?;
        for metadata in [true, false] {
            if metadata {
                file.set_extents(&[TestExtent::mapped(0, PAGES, place).dirty()])?;
            } else {
                file.set_extents(&[TestExtent::mapped(0, PAGES, place)])?;
            }
            let from = if metadata { 0 } else { 32 };
            for page in from..from + 10 {
                let before = dirty(&file);
                view.store(page, 1)?;
                check_eq!(dirty(&file), before | bits(page, page));
                check_eq!(writable(&view), dirty(&file));
            }
        }
        check_sound(&file, &view, PAGES, place)?;
        // Reads are not different from others.
        view.load(16)?;
        check_eq!(
            maps(&view, 0, PAGES),
            bits(0, 9) | bits(16, 31) | bits(32, 41)
        );
        drop(view);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn shared_blocks_are_served_and_copied_by_pages() -> Checked {
        let world = world()?;
        let file = world.file(PAGES)?;
        let (old, new) = (
            world.take_many(PAGES, Order::PMD)?,
            world.take_many(PAGES, Order::PMD)?,
        );
        world.fill(old, PAGES, 0x11);
        set_shared(&file, PAGES, old, new)?;
        let view = View::new(&file, 0, PAGES, Share::Shared, 0)?;
        view.load(40)?;
        check_eq!(maps(&view, 0, PAGES), bits(40, 40));
        for page in 0..12 {
            let copied = count(Counter::CowPages);
            view.store(page, 0)?;
            check_eq!(count(Counter::CowPages), copied + 1);
            check_eq!(dirty(&file), bits(0, page));
            check_eq!(writable(&view), bits(0, page));
        }
        check!(world.is_filled(old, 0, PAGES << Order::PAGE_SHIFT, 0x11));
        drop(view);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn a_write_maps_what_is_dirty_around_it_and_nothing_else() -> Checked {
        let world = world()?;
        let (file, place) = straight_file(&world, PAGES)?;
        let view = View::new(&file, 0, PAGES, Share::Shared, 0)?;
        // There already, but from reading.
        view.load(16)?;
        for page in [17, 19, 25] {
            view.store(page, 1)?;
        }
        let stored = bits(17, 17) | bits(19, 19) | bits(25, 25);
        check_eq!(dirty(&file), stored);
        check_eq!(writable(&view), stored);
        check_sound(&file, &view, PAGES, place)?;
        drop(view);
        let view = View::new(&file, 0, PAGES, Share::Shared, 0)?;
        view.store(25, 1)?;
        check_eq!(maps(&view, 0, PAGES), stored);
        check_eq!(writable(&view), stored);
        check_eq!(dirty(&file), stored);
        // What may be written to is mapped, but it is dirty only when it was.
        check_eq!(fsync(&file), Ok(3));
        check_eq!((dirty(&file), writable(&view)), (0, 0));
        view.store(19, 1)?;
        check_eq!(dirty(&file), bits(19, 19));
        check_eq!(writable(&view), bits(19, 19));
        check_sound(&file, &view, PAGES, place)?;
        drop(view);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn writes_in_no_sequence_dirty_what_was_stored_to() -> Checked {
        let world = world()?;
        let backwards = (0..PAGES).rev().step_by(1);
        let strides = (0..PAGES).step_by(2);
        let scattered = (0..PAGES)
            .map(|at| at * 37 % PAGES)
            .filter(|at| at % 3 != 0);
        let check = |pages: &mut dyn Iterator<Item = usize>| -> Checked {
            let (file, place) = straight_file(&world, PAGES)?;
            let view = View::new(&file, 0, PAGES, Share::Shared, 0)?;
            let mut stored = 0;
            for page in pages {
                view.store(page, 1)?;
                stored |= bits(page, page);
                // A page before which two were written by chance is as one of a sequence.
                let extra = (dirty(&file) & !stored).count_ones();
                check!(extra <= stored.count_ones());
                check_eq!(writable(&view), dirty(&file));
            }
            check_sound(&file, &view, PAGES, place)?;
            drop(view);
            clear(&file);
            Ok(())
        };
        check(&mut { backwards })?;
        check(&mut { strides })?;
        check(&mut { scattered })?;
        // Without anything before them, that is all of it.
        let (file, _) = straight_file(&world, PAGES)?;
        let view = View::new(&file, 0, PAGES, Share::Shared, 0)?;
        for page in (0..PAGES).rev().filter(|page| page % 5 < 2) {
            view.store(page, 1)?;
        }
        check_eq!(dirty(&file), pages_with(PAGES, |page| page % 5 < 2));
        drop(view);
        clear(&file);
        world.check_clean()
    }

    /// Stores to the pages of a file one after the other, and looks after each that no more is
    /// dirty than twice of that, and that it is sound at the end. Returns which faulted, and how many
    /// were mapped with those.
    fn write_in_sequence(
        file: &File<'_>,
        view: &View<'_>,
        place: usize,
        counter: Counter,
    ) -> Checked<(u64, u64)> {
        let around = count(Counter::AroundPte);
        let mut faulted = 0;
        for page in 0..PAGES {
            let before = count(counter);
            view.store(page, page as u64)?;
            faulted |= (count(counter) - before) << page;
            let all = dirty(file);
            check_eq!(all & bits(0, page), bits(0, page));
            let extra = (all & !bits(0, page)).count_ones() as usize;
            check!(extra <= page, "{extra} pages more than {}", page + 1);
        }
        check_sound(file, view, PAGES, place)?;
        Ok((faulted, count(Counter::AroundPte) - around))
    }

    #[test]
    fn writes_in_sequence_need_ever_fewer_faults() -> Checked {
        let world = world()?;
        for write in [0, 2] {
            set_write_order(order(write))?;
            let (file, place) = straight_file(&world, PAGES)?;
            let view = View::new(&file, 0, PAGES, Share::Shared, 0)?;
            // Each doubles what there is, and from the second block on it is a block each.
            let few = [0, 1, 2, 4, 8, 16, 32, 48]
                .iter()
                .fold(0, |all, page| all | 1u64 << page);
            let faults = write_in_sequence(&file, &view, place, Counter::WritePte)?;
            check_eq!(faults, (few, 56));
            // What was not written to yet is only looked at.
            check_eq!(file.asked() & bindings::IOMAP_WRITE, 0);
            // The same after they were write-protected.
            check_eq!(fsync(&file), Ok(PAGES));
            check_eq!((dirty(&file), writable(&view)), (0, 0));
            let faults = write_in_sequence(&file, &view, place, Counter::MkwritePte)?;
            check_eq!(faults, (few, 56), "entries of order {write}");
            drop(view);
            clear(&file);
        }
        world.check_clean()
    }

    #[test]
    fn no_sequence_dirties_more_than_it_wrote_whatever_is_set() -> Checked {
        let world = world()?;
        for around in 0..=4 {
            set_fault_around(order(around))?;
            for write in 0..=5 {
                set_write_order(order(write))?;
                let (file, place) = straight_file(&world, PAGES)?;
                let view = View::new(&file, 0, PAGES, Share::Shared, 0)?;
                write_in_sequence(&file, &view, place, Counter::WritePte)?;
                let largest = (0..PAGES)
                    .filter_map(|page| look(&file, page).map(|(entry, _)| entry.order().bits()))
                    .max();
                // A block of one page is nothing to look ahead in.
                let wanted = if around == 0 { 0 } else { write };
                check!(
                    largest.is_some_and(|largest| largest <= wanted),
                    "{around}, {write}: {largest:?}"
                );
                if write <= around || around != 0 && write == 5 {
                    check_eq!(largest, Some(wanted), "{around}, {write}");
                }
                drop(view);
                clear(&file);
            }
        }
        world.check_clean()
    }

    #[test]
    fn a_sequence_ends_where_blocks_must_be_allocated() -> Checked {
        let world = world()?;
        let file = world.file(PAGES)?;
        let place = world.take_many(PAGES, Order::PMD)?;
        file.set_extents(&[TestExtent::mapped(0, 8, place)])?;
        file.set_extents_for_writing(&[
            TestExtent::mapped(0, 8, place),
            TestExtent::mapped(8, PAGES - 8, place + 8).new_blocks(),
        ])?;
        let view = View::new(&file, 0, PAGES, Share::Shared, 0)?;
        for page in 0..8 {
            view.store(page, 1)?;
        }
        check_eq!(dirty(&file), bits(0, 7));
        for page in 8..20 {
            view.store(page, 1)?;
            check_eq!(dirty(&file), bits(0, page));
            check_eq!(writable(&view), bits(0, page));
        }
        check_sound(&file, &view, PAGES, place)?;
        drop(view);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn folios_of_sequences_are_flushed_whole_and_come_apart() -> Checked {
        let world = world()?;
        // Their pages are mapped one by one, whatever the order.
        set_max_order(Order::PTE)?;
        for bits_of in 1..=8 {
            let size = order(bits_of).pages();
            set_write_order(order(bits_of))?;
            let (file, place) = straight_file(&world, 2 * size)?;
            let view = View::new(&file, 0, 2 * size, Share::Shared, 0)?;
            for page in 0..2 * size {
                view.store(page, page as u64)?;
            }
            let entry = Entry::data(world.block(place + size, order(bits_of)));
            let entry = entry.writable().ahead();
            check!(
                look(&file, size + 1) == Some((entry, false)),
                "order {bits_of}"
            );
            check_sound(&file, &view, 2 * size, place)?;
            {
                let flushes = Flushes::watch(&file, size, view.address(size + 1))?;
                check_eq!(fsync(&file), Ok(2 * size));
                check!(flushes.covers(world.pfn(place + size), order(bits_of)));
                // What comes before it is flushed before it is protected.
                let begin = world.page(place + size).address().as_ptr() as usize;
                check!(flushes
                    .iter()
                    .all(|flush| flush.address + flush.size <= begin || !flush.writable));
            }
            check!((0..2 * size).all(|page| {
                !is_marked(&file, page, Mark::Dirty)
                    && view.mapped(page).is_none_or(|mapped| !mapped.writable)
            }));
            // One page is stored to: its folio is dirty, and no other.
            view.store(size + 1, 1)?;
            check!((0..2 * size).all(|page| is_marked(&file, page, Mark::Dirty) == (page >= size)));
            check_sound(&file, &view, 2 * size, place)?;
            {
                let flushes = Flushes::watch(&file, size, 0)?;
                check_eq!(fsync(&file), Ok(size));
                check!(flushes.covers(world.pfn(place + size), order(bits_of)));
                check!(!flushes.covers(world.pfn(place), Order::PTE));
            }
            drop(view);
            check_eq!(world.page(place + size).folio().refcount(), 0);
            check_eq!(world.page(place + size).folio().order(), order(bits_of));
            clear(&file);
            world.check_clean()?;
        }
        Ok(())
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
