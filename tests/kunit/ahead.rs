// SPDX-License-Identifier: GPL-2.0

//! Entries that a fault of a page prepares behind that page (spec, section 10).

use kernel::prelude::*;

#[kunit_tests(rdax_ahead)]
mod tests {
    use crate::{
        dax::tree::{Backing, PrefaultEntries, PrefaultLimits},
        kern::{
            fs::PageRange,
            order::Order,
            testing::{Checked, File, Share, TestExtent, View},
            xa::Mark,
        },
        tests::helpers::*,
    };

    const FOUR: Order = Order::from_bits(2);

    /// A write fault at `index` behind `dirty` pages that were written to, one entry each.
    fn write_behind<'f>(
        file: &'f File<'_>,
        index: usize,
        block: PageRange,
        order: Order,
    ) -> Checked<Created<'f>> {
        let room = block.last.get() - index + 1;
        lock_with_prefault(file, index, true, PrefaultLimits { block, order, room })
    }

    fn prefault_pages(prefault: &Prefault<'_>) -> usize {
        prefault.entries.as_ref().map_or(0, PrefaultEntries::pages)
    }

    #[test]
    fn it_ends_with_the_block_and_with_what_was_written_before() -> Checked {
        let world = world()?;
        let file = world.file(32)?;
        let place = world.take_many(32, Order::from_bits(5))?;
        // Of the pages before, a power of two counts.
        for (written, last, expected) in [
            (0, 15, 0),
            (1, 15, 0),
            (2, 15, 1),
            (3, 15, 1),
            (4, 15, 3),
            (8, 15, 7),
            (8, 11, 3),
            (8, 9, 1),
            (8, 8, 0),
        ] {
            for index in 0..written {
                put(&file, index, Order::PTE, place + index, true)?;
            }
            let Created { locked, prefault } =
                write_behind(&file, written, range(0, last), Order::PTE)?;
            check_eq!(locked.range(), range(written, written));
            check_eq!(
                prefault_pages(&prefault),
                expected,
                "{written} before, up to {last}"
            );
            check_eq!(file.nrpages(), written + 1 + expected);
            for index in written..=written + expected {
                check!(look(&file, index).is_some_and(|(_, locked)| locked));
                check!(is_marked(&file, index, Mark::Dirty), "page {index}");
            }
            check!(look(&file, written + expected + 1).is_none());
            drop(prefault);
            check_eq!(file.nrpages(), written + 1);
            drop(locked);
            clear(&file);
        }
        world.check_clean()
    }

    #[test]
    fn no_entry_is_larger_than_what_the_filesystem_told_of() -> Checked {
        let world = world()?;
        let file = world.file(16)?;
        let place = world.take_many(16, Order::from_bits(4))?;
        for (told, expected) in [(4, 4), (3, 0), (1, 0), (0, 0)] {
            for index in 0..8 {
                put(&file, index, Order::PTE, place + index, true)?;
            }
            let Created {
                locked,
                mut prefault,
            } = write_behind(&file, 8, range(0, 15), FOUR)?;
            check_eq!(locked.range(), range(8, 11));
            check_eq!(prefault_pages(&prefault), 4);
            locked.set(crate::kern::entry::Entry::empty(FOUR));
            if let Some(entries) = prefault.entries.as_mut() {
                entries.fill(told, Backing::Memory(world.file_pages(place + 12, 4)), true);
                check_eq!(entries.filled().1, expected, "told of {told}");
            }
            drop(prefault);
            check_eq!(file.nrpages(), 12 + expected);
            check_eq!(look(&file, 12).is_some(), expected != 0);
            drop(locked);
            clear(&file);
        }
        // Memory that does not lie as the file does makes no larger folios.
        for index in 0..8 {
            put(&file, index, Order::PTE, place + 1 + index, true)?;
        }
        let Created { locked, prefault } = write_behind(&file, 8, range(0, 15), FOUR)?;
        check_eq!(locked.range(), range(8, 8));
        drop((prefault, locked));
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn shared_blocks_behind_others_are_copied_one_by_one() -> Checked {
        const PAGES: usize = 16;
        let world = world()?;
        let file = world.file(PAGES + 1)?;
        let old = world.take_many(PAGES, Order::from_bits(4))?;
        let new = world.take_many(PAGES, Order::from_bits(4))?;
        world.fill(old, PAGES, 0x11);
        // The first half is the file's own, which prepares for more of its kind.
        let own = TestExtent::mapped(0, 8, new);
        file.set_extents(&[
            own,
            TestExtent::mapped(8, 8, old + 8).shared(),
            TestExtent::hole(PAGES, 1),
        ])?;
        let copies = TestExtent::mapped(8, 8, new + 8).shared().copy_of(old + 8);
        file.set_extents_for_writing(&[own, copies])?;
        world.fill(new, 8, 0x11);
        let view = View::new(&file, 0, PAGES + 1, Share::Shared, 0)?;
        // The filesystem's operations for reading are known from here on.
        view.load(PAGES)?;
        for index in 0..PAGES {
            view.store(index, 0x22)?;
            let mapped = view.mapped(index).map(|mapped| mapped.pfn);
            check_eq!(
                mapped,
                Some(world.pfn(new + index).to_bits()),
                "page {index}"
            );
            check_eq!(world.byte(new + index, 0), 0x22);
            check!(world.is_filled(new + index, 8, Order::PTE.bytes(), 0x11));
        }
        check_eq!(marked_pages(&file, PAGES, Mark::Dirty), bits(0, PAGES - 1));
        for index in 8..PAGES {
            check!(world.is_filled(old + index, 0, Order::PTE.bytes(), 0x11));
        }
        drop(view);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn the_filesystem_is_asked_once_for_each_new_block() -> Checked {
        const PAGES: usize = 16;
        let world = world()?;
        let file = world.file(PAGES + 1)?;
        let place = world.take_many(PAGES, Order::from_bits(4))?;
        file.set_extents(&[TestExtent::hole(0, PAGES + 1)])?;
        let view = View::new(&file, 0, PAGES + 1, Share::Shared, 0)?;
        // The filesystem's operations for reading are known from here on.
        view.load(PAGES)?;
        file.set_extents_for_writing(&[TestExtent::mapped(0, PAGES, place).new_blocks()])?;
        let before = file.begins();
        for index in 0..PAGES {
            view.store(index, 1)?;
        }
        check_eq!(file.begins() - before, PAGES);
        check_eq!(file.begins(), file.ends());
        drop(view);
        clear(&file);
        world.check_clean()
    }
}
