// SPDX-License-Identifier: GPL-2.0

//! Filling the entries behind a new one (spec, section 3).

use kernel::prelude::*;

#[kunit_tests(rdax_fill)]
mod tests {
    use crate::{
        dax::tree::Backing,
        kern::{
            entry::Entry,
            order::Order,
            page::Region,
            testing::{is_free, with_thread_waiting, Checked, File, World},
            xa::Mark,
        },
        tests::helpers::{prefaults::*, *},
    };

    /// Whether the pages of a file are entries for memory at a place, of one page each.
    fn check_data(
        file: &File<'_>,
        first: usize,
        last: usize,
        place: usize,
        writable: bool,
    ) -> Checked {
        for index in first..=last {
            let block = file.world().block(place + index - first, Order::PTE);
            let entry = Entry::data(block);
            let wanted = if writable {
                entry.writable().ahead()
            } else {
                entry
            };
            check!(look(file, index) == Some((wanted, false)), "at {index}");
            let folio = file.world().page(place + index - first).folio();
            check_eq!(folio.owner(), file.mapping().key());
            check_eq!(folio.index(), at(index));
            check_eq!(folio.refcount(), 0);
        }
        Ok(())
    }

    #[test]
    fn what_is_filled_stays_and_the_rest_goes() -> Checked {
        let world = world()?;
        let place = world.take_many(BLOCK, Order::PMD)?;
        let file = world.file(64)?;
        for pages in [0, 1, 7, 15, 100] {
            let filled = pages.min(BLOCK - 1);
            for write in [false, true] {
                if write {
                    write_pages(&file, world.take_many(BLOCK, Order::PMD)?, 0, BLOCK)?;
                }
                let before = file.nrpages();
                let (locked, mut prefault) = window(&file, write, Order::PTE)?;
                if let Some(entries) = &mut prefault.entries {
                    entries.fill(
                        pages,
                        Backing::Memory(world.file_pages(place, BLOCK)),
                        write,
                    );
                    let (first, count, _) = entries.filled();
                    check_eq!((first, count), (at(BLOCK + 1), filled));
                }
                // Nobody sees them before they are unlocked.
                check_eq!(locked_pages(&file, 64), bits(BLOCK, 2 * BLOCK - 1));
                drop(prefault);
                if filled != 0 {
                    check_data(&file, BLOCK + 1, BLOCK + filled, place, write)?;
                }
                check_eq!(locked_pages(&file, 64), bits(BLOCK, BLOCK));
                check_eq!(file.nrpages(), before + 1 + filled);
                check!(look(&file, BLOCK + filled + 1).is_none());
                // Entries made by a write fault are dirty, as if they had been stored to.
                let marked = marked_pages(&file, 64, Mark::Dirty) >> BLOCK;
                check_eq!(marked, if write { bits(0, filled) } else { 0 });
                locked.remove();
                clear(&file);
                check_eq!(file.nrpages(), 0);
            }
        }
        world.check_clean()
    }

    #[test]
    fn a_hole_fills_it_with_zeroes() -> Checked {
        let world = world()?;
        let file = world.file(64)?;
        for pages in [0, 1, 6, 15] {
            let (locked, mut prefault) = window(&file, false, Order::PTE)?;
            if let Some(entries) = &mut prefault.entries {
                entries.fill(pages, Backing::Hole, false);
            }
            drop(prefault);
            check!((BLOCK + 1..=BLOCK + pages)
                .all(|page| look(&file, page) == Some((Entry::zero(Order::PTE), false))));
            check!(look(&file, BLOCK + pages + 1).is_none());
            check_eq!(file.nrpages(), 1 + pages);
            locked.remove();
            clear(&file);
        }
        Ok(())
    }

    #[test]
    fn pages_that_somebody_has_are_left_to_their_own_fault() -> Checked {
        let world = world()?;
        let place = world.take_many(BLOCK, Order::PMD)?;
        let (file, other) = (world.file(64)?, world.file(64)?);
        put(&other, 0, Order::PTE, place + 3, false)?;
        let (locked, mut prefault) = window(&file, false, Order::PTE)?;
        if let Some(entries) = &mut prefault.entries {
            entries.fill(15, Backing::Memory(world.file_pages(place, BLOCK)), false);
            check_eq!(entries.filled().1, 3);
        }
        drop(prefault);
        check_data(&file, BLOCK + 1, BLOCK + 3, place, false)?;
        check_eq!(file.nrpages(), 4);
        // The other file's page is as it was.
        check_eq!(world.page(place + 3).folio().owner(), other.mapping().key());
        locked.remove();
        clear(&file);
        clear(&other);
        world.check_clean()
    }

    #[test]
    fn a_window_ends_with_the_region_that_is_locked() -> Checked {
        let world = world()?;
        let region = Region::ORDER.pages();
        let place = world.take_many(2 * region, Region::ORDER)? + region - 5;
        let file = world.file(64)?;
        let (locked, mut prefault) = window(&file, false, Order::PTE)?;
        if let Some(entries) = &mut prefault.entries {
            entries.fill(15, Backing::Memory(world.file_pages(place, BLOCK)), false);
            check_eq!(entries.filled().1, 5);
        }
        drop(prefault);
        check_data(&file, BLOCK + 1, BLOCK + 5, place, false)?;
        check!((5..15).all(|page| is_free(world.page(place + page))));
        locked.remove();
        clear(&file);
        world.check_clean()
    }

    /// Fills a window of entries of four pages each, for as many pages of a place.
    fn fill_by_four(
        world: &World,
        file: &File<'_>,
        place: usize,
        pages: usize,
        filled: usize,
    ) -> Checked {
        write_pages(file, world.take_many(BLOCK, Order::PMD)?, 0, BLOCK)?;
        let (locked, mut prefault) = window(file, true, order(2))?;
        check!(locked.entry() == Entry::empty(order(2)));
        if let Some(entries) = &mut prefault.entries {
            check_eq!(entries.pages(), 12);
            entries.fill(pages, Backing::Memory(world.file_pages(place, BLOCK)), true);
            check_eq!(entries.filled().1, filled);
        }
        drop(prefault);
        check_eq!(file.nrpages(), BLOCK + 4 + filled);
        for first in (0..filled).step_by(4) {
            let entry = Entry::data(world.block(place + first, order(2)))
                .writable()
                .ahead();
            check!(look(file, BLOCK + 4 + first + 1) == Some((entry, false)));
            // A folio is as large as its entry (R4).
            let folio = world.page(place + first + 3).folio();
            check_eq!(folio.order(), order(2));
            check!(folio.head() == world.page(place + first));
            check_eq!(folio.refcount(), 0);
            check_eq!(folio.index(), at(BLOCK + 4 + first));
        }
        check!(look(file, BLOCK + 4 + filled).is_none());
        let marked = marked_pages(file, 64, Mark::Dirty);
        check_eq!(marked, bits(0, BLOCK + 3 + filled));
        locked.remove();
        clear(file);
        check_eq!(file.nrpages(), 0);
        Ok(())
    }

    #[test]
    fn larger_entries_are_filled_whole_or_not_at_all() -> Checked {
        let world = world()?;
        let place = world.take_many(4 * BLOCK, Order::PMD)?;
        let file = world.file(64)?;
        for (pages, filled) in [(12, 12), (100, 12), (11, 8), (7, 4), (3, 0)] {
            fill_by_four(&world, &file, place, pages, filled)?;
        }
        // Memory that does not agree with the file in the order.
        for shift in [1, 2, 3] {
            fill_by_four(&world, &file, place + shift, 12, 0)?;
        }
        // A page in use in the middle of the second.
        let other = world.file(1)?;
        put(&other, 0, Order::PTE, place + 6, false)?;
        fill_by_four(&world, &file, place, 12, 4)?;
        clear(&other);
        world.check_clean()
    }

    #[test]
    fn whoever_waits_for_an_entry_of_a_window_goes_on() -> Checked {
        let world = world()?;
        let place = world.take_many(BLOCK, Order::PMD)?;
        let file = world.file(64)?;
        // One that is filled, and one that is removed.
        for (index, found) in [(BLOCK + 2, true), (BLOCK + 9, false)] {
            let (locked, mut prefault) = window(&file, false, Order::PTE)?;
            let (result, waited) = with_thread_waiting(
                || {
                    lock_entry(file.mapping(), at(index), Order::PTE, false)
                        .map(|locked| word_of(locked.entry()))
                },
                || {
                    if let Some(entries) = &mut prefault.entries {
                        entries.fill(5, Backing::Memory(world.file_pages(place, BLOCK)), false);
                    }
                    drop(prefault);
                },
            )?;
            check!(waited);
            let wanted = if found {
                Entry::data(world.block(place + 1, Order::PTE))
            } else {
                Entry::empty(Order::PTE)
            };
            check!(result == Ok(word_of(wanted)));
            locked.remove();
            clear(&file);
        }
        world.check_clean()
    }
}
