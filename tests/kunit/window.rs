// SPDX-License-Identifier: GPL-2.0

//! Entries that are put behind a new one (spec, section 3).

use kernel::prelude::*;

#[kunit_tests(rdax_window)]
mod tests {
    use crate::{
        dax::tree::{self, LockError, Wanted},
        kern::{
            entry::{Entry, Kind},
            order::Order,
            testing::{with_failing_allocation, without_memory, Checked, File},
            xa::Mark,
        },
        tests::helpers::{prefaults::*, *},
    };

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
            if let Some(locked) = tree::lock_present(file.mapping(), at(index)) {
                locked.change(|entry| entry.fresh());
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
}
