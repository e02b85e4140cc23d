// SPDX-License-Identifier: GPL-2.0

//! What a fault locks besides its own entry: new ones behind it, and those around it (spec, section
//! 10, points 2 and 3).

use kernel::prelude::*;

#[kunit_tests(rdax_window)]
mod tests {
    use crate::{
        dax::tree::{self, AroundAction, Backing, LockError, LockedEntry, PrefaultLimits, Wanted},
        kern::{
            entry::{Entry, Kind},
            order::Order,
            page::Region,
            testing::{
                is_free, with_failing_allocation, with_thread_waiting, without_memory, Checked,
                File, World,
            },
            xa::Mark,
        },
        tests::helpers::*,
    };

    /// The pages of the block that faults map by default.
    const BLOCK: usize = 16;

    fn order(bits: usize) -> Order {
        Order::from_bits(bits)
    }

    /// How far a fault of a file that is long enough may go by itself.
    fn ahead(index: usize, largest: Order) -> PrefaultLimits {
        let block = range(index & !(BLOCK - 1), index | (BLOCK - 1));
        PrefaultLimits {
            block,
            order: largest,
            room: block.last.get() - index + 1,
        }
    }

    /// The orders of the entries from `index` on that have no gap between them, as decimal digits
    /// behind a 1.
    fn orders_from(file: &File<'_>, index: usize) -> usize {
        let (mut index, mut digits) = (index, 1);
        while let Some((entry, _)) = look(file, index) {
            if entry.order().first(at(index)) != at(index) {
                break;
            }
            digits = digits * 10 + entry.order().bits();
            index += entry.order().pages();
        }
        digits
    }

    /// Pages that were written to, from `first` to before `end`.
    fn write_pages(file: &File<'_>, place: usize, first: usize, end: usize) -> Checked {
        for index in first..end {
            put(file, index, Order::PTE, place + index, true)?;
        }
        Ok(())
    }

    #[test]
    fn reading_locks_the_rest_of_the_block() -> Checked {
        let world = world()?;
        let file = world.file(4 * BLOCK)?;
        for (index, pages) in [(0, 16), (1, 15), (20, 12), (47, 1), (63, 1)] {
            let Created { locked, prefault } =
                lock_with_prefault(&file, index, false, ahead(index, order(4)))?;
            check!(locked.entry() == Entry::empty(Order::PTE));
            check_eq!(prefault.pages, pages);
            check_eq!(
                prefault
                    .entries
                    .as_ref()
                    .map_or(0, |entries| entries.pages()),
                pages - 1
            );
            check_eq!(file.nrpages(), pages);
            // None is larger than a page, and none is dirty.
            let all = bits(index, index + pages - 1);
            check_eq!(locked_pages(&file, 4 * BLOCK), all);
            check_eq!(marked_pages(&file, 4 * BLOCK, Mark::Dirty), 0);
            check!((index..index + pages)
                .all(|page| look(&file, page) == Some((Entry::empty(Order::PTE), true))));
            // Nothing became of them.
            drop(prefault);
            check_eq!(present_pages(&file, 4 * BLOCK), bits(index, index));
            check_eq!(file.nrpages(), 1);
            locked.remove();
            check_eq!(file.nrpages(), 0);
        }
        Ok(())
    }

    #[test]
    fn the_window_ends_where_an_entry_is() -> Checked {
        let world = world()?;
        for write in [false, true] {
            for present in [Entry::zero(Order::PTE), Entry::empty(order(1))] {
                let (file, place) = straight_file(&world, 64)?;
                write_pages(&file, place, 0, 8)?;
                lock(&file, 10, present.order())?.set(present);
                let before = file.nrpages();
                let Created { locked, prefault } =
                    lock_with_prefault(&file, 8, write, ahead(8, order(2)))?;
                // Of the four pages of the largest entry that could be, one is taken.
                check!(locked.entry() == Entry::empty(Order::PTE));
                let pages = prefault
                    .entries
                    .as_ref()
                    .map_or(0, |entries| entries.pages());
                check_eq!(pages, 1);
                check!(look(&file, 10) == Some((present, false)));
                check_eq!(locked_pages(&file, 64), bits(8, 9));
                check_eq!(file.nrpages(), before + 2);
                drop(prefault);
                drop(locked);
                clear(&file);
                check_eq!(file.nrpages(), 0);
            }
        }
        Ok(())
    }

    #[test]
    fn an_entry_right_behind_leaves_no_window() -> Checked {
        let world = world()?;
        for write in [false, true] {
            let (file, place) = straight_file(&world, 64)?;
            write_pages(&file, place, 0, 8)?;
            put_zero(&file, 9, Order::PTE)?;
            let Created { locked, prefault } =
                lock_with_prefault(&file, 8, write, ahead(8, order(2)))?;
            check!(locked.entry() == Entry::empty(Order::PTE));
            check_eq!(
                prefault
                    .entries
                    .as_ref()
                    .map_or(0, |entries| entries.pages()),
                0
            );
            check_eq!(locked_pages(&file, 64), bits(8, 8));
            drop((prefault, locked));
            clear(&file);
        }
        Ok(())
    }

    #[test]
    fn writing_goes_no_further_ahead_than_was_written_before() -> Checked {
        let world = world()?;
        // Pages written one behind the other up to this one, and the orders of what is made then;
        // 0 where these depend on whether the tree has a node already.
        for (index, largest, expected) in [
            // Nothing to go by.
            (0, 2, 10),
            (1, 2, 10),
            // As many as were written, at most, in the largest that fit.
            (2, 2, 11),
            (3, 2, 100),
            (4, 2, 12),
            (5, 2, 1010),
            (8, 2, 122),
            (8, 0, 100000000),
            (8, 3, 13),
            (8, 8, 13),
            // Not out of the block.
            (14, 2, 11),
            (15, 2, 10),
            (16, 2, 12222),
            (16, 3, 133),
            (16, 4, 14),
            // At the edges of a node of the tree.
            (62, 2, 11),
            (63, 2, 10),
            (64, 2, 0),
            (66, 2, 11222),
        ] {
            let (file, place) = straight_file(&world, 256)?;
            write_pages(&file, place, 0, index)?;
            let Created { locked, prefault } =
                lock_with_prefault(&file, index, true, ahead(index, order(largest)))?;
            let made = file.nrpages() - index;
            let window = prefault
                .entries
                .as_ref()
                .map_or(0, |entries| entries.pages());
            check_eq!(made, locked.range().pages() + window);
            check!(made <= index.max(1), "{made} pages after {index}");
            check!(
                at(index + made - 1) <= ahead(index, Order::PTE).block.last,
                "{made} pages at {index} are more than the block"
            );
            if expected == 0 {
                check_eq!(made, 16);
            } else {
                let orders = orders_from(&file, index);
                check_eq!(orders, expected, "at {index}, order {largest}");
            }
            // All of it is locked, and covered by a mark.
            check!((index..index + made).all(|page| {
                is_marked(&file, page, Mark::Dirty)
                    && look(&file, page)
                        .is_some_and(|(entry, locked)| locked && entry.kind() == Kind::Empty)
            }));
            check!(look(&file, index + made).is_none());
            drop(prefault);
            locked.remove();
            check_eq!(file.nrpages(), index);
            clear(&file);
            world.check_clean()?;
        }
        Ok(())
    }

    #[test]
    fn what_begins_later_counts_from_there() -> Checked {
        let world = world()?;
        for written in [2, 4, 7, 16] {
            let (file, place) = straight_file(&world, 256)?;
            let index = 160;
            write_pages(&file, place, index - written, index)?;
            // Not dirty, so nobody wrote it.
            put(&file, index - written - 1, Order::PTE, place, false)?;
            let Created { locked, prefault } =
                lock_with_prefault(&file, index, true, ahead(index, order(2)))?;
            let made = file.nrpages() - written - 1;
            check!(made <= written, "{made} pages after {written}");
            check!(made * 2 > written, "{made} pages after {written}");
            drop(prefault);
            locked.remove();
            clear(&file);
        }
        world.check_clean()
    }

    #[test]
    fn only_what_was_written_before_counts() -> Checked {
        let world = world()?;
        let place = world.take_many(64, Order::PMD)?;
        let alone = |file: &File<'_>| -> Checked {
            let Created { locked, prefault } =
                lock_with_prefault(file, 4, true, ahead(4, order(2)))?;
            check!(locked.entry() == Entry::empty(Order::PTE));
            check!(prefault.entries.is_none());
            check_eq!(locked_pages(file, 64), bits(4, 4));
            locked.remove();
            clear(file);
            Ok(())
        };
        let file = world.file(64)?;
        // Nothing, or what was read only.
        alone(&file)?;
        for index in 0..4 {
            put(&file, index, Order::PTE, place + index, false)?;
        }
        alone(&file)?;
        // Zeroes.
        for index in 0..4 {
            put_zero(&file, index, Order::PTE)?;
        }
        alone(&file)?;
        // One page.
        put(&file, 3, Order::PTE, place + 3, true)?;
        alone(&file)?;
        // Not the one right before.
        write_pages(&file, place, 0, 3)?;
        alone(&file)?;
        // Blocks that had to be allocated: there are none behind.
        for index in 0..4 {
            put(&file, index, Order::PTE, place + index, true)?;
            if let Some(mut locked) = tree::lock_present(file.mapping(), at(index)) {
                locked.set(locked.entry().fresh());
            }
        }
        alone(&file)?;
        world.check_clean()
    }

    #[test]
    fn no_entry_is_larger_than_memory_and_file_agree_for() -> Checked {
        let world = world()?;
        for (shift, largest) in [(0, 2), (1, 0), (2, 1), (4, 2)] {
            let file = world.file(64)?;
            let place = world.take_many(128, Order::PMD)? + shift;
            write_pages(&file, place, 0, 8)?;
            let Created { locked, prefault } =
                lock_with_prefault(&file, 8, true, ahead(8, order(2)))?;
            check_eq!(locked.entry().order().bits(), largest);
            check!((8..16)
                .all(|page| look(&file, page)
                    .is_some_and(|(entry, _)| entry.order() <= order(largest))));
            drop(prefault);
            locked.remove();
            clear(&file);
        }
        world.check_clean()
    }

    #[test]
    fn large_entries_of_sequences_of_every_order() -> Checked {
        let world = world()?;
        for largest in 0..=8 {
            let pages = order(largest).pages().max(2);
            let (file, place) = straight_file(&world, 2 * pages)?;
            write_pages(&file, place, 0, pages)?;
            let mut ahead = ahead(pages, order(largest));
            // One that goes beyond the block, as faults ask for when the order is larger than that.
            ahead.room = ahead.room.max(pages);
            let Created { locked, prefault } = lock_with_prefault(&file, pages, true, ahead)?;
            check_eq!(locked.entry().order().bits(), largest);
            check!(locked.is_dirty());
            check_eq!(locked.first(), at(pages));
            drop(prefault);
            locked.remove();
            check_eq!(file.nrpages(), pages);
            // And where one of its pages is taken, none.
            if largest != 0 {
                put_zero(&file, pages + order(largest).pages() - 1, Order::PTE)?;
                let Created { locked, prefault } = lock_with_prefault(&file, pages, true, ahead)?;
                check!(locked.entry().order() < order(largest));
                drop(prefault);
                locked.remove();
                check_eq!(file.nrpages(), pages + 1);
            }
            clear(&file);
        }
        world.check_clean()
    }

    #[test]
    fn without_memory_there_is_the_page_alone_or_nothing() -> Checked {
        let world = world()?;
        for write in [false, true] {
            let (file, place) = straight_file(&world, 256)?;
            write_pages(&file, place, 0, 64)?;
            // The next page needs a node.
            let wanted = Wanted {
                index: at(64),
                order: Order::PTE,
                dirty: write,
                prefault: Some(ahead(64, order(2))),
            };
            let result = without_memory(|| tree::lock_or_create(file.mapping(), &wanted).map(drop));
            check!(result == Err(LockError::NoMemory));
            check_eq!(file.nrpages(), 64);
            check!(look(&file, 64).is_none());
            // One that comes when it is asked for with patience serves.
            let (created, failed) = with_failing_allocation(1, || {
                lock_with_prefault(&file, 64, write, ahead(64, order(2)))
            });
            check!(failed);
            let Created { locked, prefault } = created?;
            check!(locked.entry() == Entry::empty(Order::PTE));
            check_eq!(locked.is_dirty(), write);
            check!(prefault.entries.is_none());
            check_eq!(file.nrpages(), 65);
            locked.remove();
            clear(&file);
            check_eq!(file.nrpages(), 0);
        }
        world.check_clean()
    }

    /// A window behind page 16 of a file, which is locked as well.
    fn window<'f>(
        file: &'f File<'_>,
        write: bool,
        largest: Order,
    ) -> Checked<(LockedEntry<'f>, Prefault<'f>)> {
        let Created { locked, prefault } =
            lock_with_prefault(file, BLOCK, write, ahead(BLOCK, largest))?;
        check!(prefault.entries.is_some());
        Ok((locked, prefault))
    }

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
                    entries.fill(pages, Backing::Memory(world.run(place, BLOCK)), write);
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
                // What a write fault made is dirty, as if it had been stored to.
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
            entries.fill(15, Backing::Memory(world.run(place, BLOCK)), false);
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
            entries.fill(15, Backing::Memory(world.run(place, BLOCK)), false);
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
            entries.fill(pages, Backing::Memory(world.run(place, BLOCK)), true);
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
                        .map(|locked| locked.entry())
                },
                || {
                    if let Some(entries) = &mut prefault.entries {
                        entries.fill(5, Backing::Memory(world.run(place, BLOCK)), false);
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
            check!(result == Ok(wanted));
            locked.remove();
            clear(&file);
        }
        world.check_clean()
    }

    /// Locks the neighbours of an entry that `take` wants, and returns the first pages that it was
    /// asked about, and those that are locked then.
    fn neighbours(
        file: &File<'_>,
        own: usize,
        candidates: u64,
        asks_dirty: bool,
        take: impl Fn(usize, bool) -> AroundAction,
    ) -> Checked<(u64, u64)> {
        let Some(locked) = tree::lock_present(file.mapping(), at(own)) else {
            return Ok((0, 0));
        };
        let mut asked = 0;
        let block = range(own & !(BLOCK - 1), own | (BLOCK - 1));
        let candidates = (candidates >> block.first.get()) as usize;
        let before = locked_pages(file, 64);
        let got = tree::lock_around(&locked, block, candidates, asks_dirty, |first, _, dirty| {
            asked |= 1 << first.get();
            take(first.get(), dirty)
        });
        let now = locked_pages(file, 64) & !before;
        let nrpages = file.nrpages();
        drop(got);
        check_eq!(locked_pages(file, 64), before, "not all are unlocked");
        check_eq!(file.nrpages(), nrpages);
        Ok((asked, now))
    }

    #[test]
    fn neighbours_are_those_that_are_wanted_and_there() -> Checked {
        let world = world()?;
        let file = world.file(64)?;
        // Not page 20, nor anything but the block.
        for index in (0..64).filter(|index| *index != 20) {
            put_zero(&file, index, Order::PTE)?;
        }
        let have = |_, _| AroundAction::Lock;
        let there = bits(16, 31) & !bits(18, 18) & !bits(20, 20);
        check_eq!(
            neighbours(&file, 18, u64::MAX, false, have)?,
            (there, there)
        );
        // What is mapped already is not looked at.
        let candidates = bits(16, 17) | bits(24, 31);
        check_eq!(
            neighbours(&file, 18, candidates, false, have)?,
            (candidates, candidates)
        );
        check_eq!(neighbours(&file, 18, 0, false, have)?, (0, 0));
        // What is left is asked about, and that is all.
        let left = |index, _| {
            if index < 24 {
                AroundAction::Leave
            } else {
                AroundAction::Lock
            }
        };
        check_eq!(
            neighbours(&file, 18, u64::MAX, false, left)?,
            (there, bits(24, 31))
        );
        clear(&file);
        Ok(())
    }

    #[test]
    fn nobody_waits_for_a_neighbour_that_is_locked() -> Checked {
        let world = world()?;
        let file = world.file(64)?;
        for index in 16..32 {
            put_zero(&file, index, Order::PTE)?;
        }
        let held = [17, 25].map(|index| tree::lock_present(file.mapping(), at(index)));
        let there = bits(16, 31) & !bits(18, 18) & !bits(17, 17) & !bits(25, 25);
        let have = |_, _| AroundAction::Lock;
        check_eq!(
            neighbours(&file, 18, u64::MAX, false, have)?,
            (there, there)
        );
        check!(held.iter().all(|held| held.is_some()));
        check_eq!(locked_pages(&file, 64), bits(17, 17) | bits(25, 25));
        drop(held);
        clear(&file);
        Ok(())
    }

    #[test]
    fn a_larger_neighbour_is_looked_at_once() -> Checked {
        let world = world()?;
        let file = world.file(64)?;
        put_zero(&file, 16, order(2))?;
        put_zero(&file, 20, order(1))?;
        put_zero(&file, 22, Order::PTE)?;
        put_zero(&file, 24, order(3))?;
        let have = |_, _| AroundAction::Lock;
        let firsts = |pages: &[usize]| pages.iter().fold(0u64, |bits, page| bits | 1 << page);
        let (asked, locked) = neighbours(&file, 22, u64::MAX, false, have)?;
        check_eq!(asked, firsts(&[16, 20, 24]));
        check_eq!(locked, bits(16, 21) | bits(24, 31));
        // By any of its pages; the own entry by none.
        let candidates = bits(19, 19) | bits(21, 21) | bits(24, 31);
        let (asked, locked) = neighbours(&file, 25, candidates, false, have)?;
        check_eq!(asked, firsts(&[16, 20]));
        check_eq!(locked, bits(16, 21));
        clear(&file);
        Ok(())
    }

    #[test]
    fn neighbours_are_asked_if_dirty_and_made_so() -> Checked {
        let world = world()?;
        let (file, place) = straight_file(&world, 64)?;
        for index in 16..32 {
            put(&file, index, Order::PTE, place + index, index % 2 == 0)?;
        }
        let even = (16..32).step_by(2).fold(0, |bits, index| bits | 1 << index);
        check_eq!(marked_pages(&file, 64, Mark::Dirty), even);
        // Not asked, nobody is.
        let wrong = |_, dirty| {
            if dirty {
                AroundAction::Lock
            } else {
                AroundAction::Leave
            }
        };
        check_eq!(neighbours(&file, 31, u64::MAX, false, wrong)?.1, 0);
        check_eq!(neighbours(&file, 31, u64::MAX, true, wrong)?.1, even);
        check_eq!(marked_pages(&file, 64, Mark::Dirty), even);
        let Some(locked) = tree::lock_present(file.mapping(), at(31)) else {
            return Ok(());
        };
        let got = tree::lock_around(&locked, range(16, 31), 0xffff, true, |first, _, dirty| {
            if dirty || first < at(20) {
                AroundAction::LockAndMark
            } else {
                AroundAction::Leave
            }
        });
        check!(got.marked);
        // Two more are, before they are unlocked.
        let now = even | bits(17, 17) | bits(19, 19);
        check_eq!(marked_pages(&file, 64, Mark::Dirty), now);
        drop(got);
        let got = tree::lock_around(&locked, range(16, 31), 0xffff, true, |_, _, _| {
            AroundAction::Lock
        });
        check!(!got.marked);
        drop(got);
        drop(locked);
        check_eq!(marked_pages(&file, 64, Mark::Dirty), now);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn unlocking_a_neighbour_wakes_who_waits_for_it() -> Checked {
        let world = world()?;
        let file = world.file(64)?;
        put_zero(&file, 16, order(2))?;
        put_zero(&file, 20, Order::PTE)?;
        let Some(locked) = tree::lock_present(file.mapping(), at(20)) else {
            return Ok(());
        };
        let got = tree::lock_around(&locked, range(16, 31), 0xffff, false, |_, _, _| {
            AroundAction::Lock
        });
        let (found, waited) = with_thread_waiting(
            || tree::lock_present(file.mapping(), at(19)).is_some(),
            || {
                drop(got);
            },
        )?;
        check!(waited && found);
        drop(locked);
        clear(&file);
        Ok(())
    }
}
