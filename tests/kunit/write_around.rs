// SPDX-License-Identifier: GPL-2.0

//! Writes that map what lies around a page (spec, section 4).

use kernel::prelude::*;

#[kunit_tests(rdax_write_around)]
mod tests {
    use crate::{
        dax::stats::Counter,
        kern::{
            bindings,
            entry::Entry,
            order::Order,
            testing::{Checked, File, Flushes, Share, TestExtent, View},
            xa::Mark,
        },
        tests::helpers::{mapped::*, *},
    };

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
        // Writable entries are mapped, but dirty only when they were before.
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
            // Pages that were not written to yet are only looked at.
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
                // The pages before it are flushed before it is protected.
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
}
