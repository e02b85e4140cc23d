// SPDX-License-Identifier: GPL-2.0

//! The walk over many entries: those that are worked on together, and those that are removed at once
//! (spec, sections 5 and 6, and R8).

use kernel::prelude::*;

#[kunit_tests(rdax_walk)]
mod tests {
    use crate::{
        dax::tree::{self, Disposition, EntryBatch, Filter, Visitor, WalkAction},
        kern::{
            entry::{Entry, Kind},
            fs::PageRange,
            order::Order,
            testing::{until, with_thread, with_threads, Checked, File},
            xa::Mark,
        },
        tests::helpers::*,
    };
    use kernel::{
        prelude::*,
        sync::atomic::{Acquire, Atomic, Release},
    };

    /// The pages of a node of the tree.
    const NODE: usize = 64;

    /// Notes what it is given to work on: first and last page, and how many entries.
    struct Note {
        runs: KVec<(usize, usize, usize)>,
        dirty: usize,
        after: Disposition,
    }

    impl Note {
        fn new(after: Disposition) -> Self {
            Self {
                runs: KVec::new(),
                dirty: 0,
                after,
            }
        }
    }

    impl Visitor for Note {
        const ASKS_DIRTY: bool = true;
        const BATCHES: bool = true;

        fn look(&mut self, entry: Entry<'_>, _dirty: bool) -> WalkAction {
            match entry.kind() {
                Kind::Empty => WalkAction::Next,
                _ => WalkAction::Work,
            }
        }

        fn work(&mut self, run: &EntryBatch<'_>) -> Disposition {
            let range = run.range();
            let run_of = (range.first.get(), range.last.get(), run.iter().count());
            // An entry that is missing in a list fails the test anyway.
            let _ = self.runs.push(run_of, GFP_KERNEL);
            self.dirty += run.iter().filter(|(_, _, dirty)| *dirty).count();
            self.after
        }
    }

    fn walk_runs(file: &File<'_>, which: Filter, after: Disposition) -> Note {
        let mut note = Note::new(after);
        tree::walk(file.mapping(), PageRange::ALL, which, &mut note);
        note
    }

    fn zeroes(file: &File<'_>, first: usize, last: usize) -> Checked {
        for index in first..=last {
            put_zero(file, index, Order::PTE)?;
        }
        Ok(())
    }

    #[test]
    fn a_run_ends_at_a_gap_and_with_the_node() -> Checked {
        let world = world()?;
        let file = world.file(4 * NODE)?;
        zeroes(&file, 3, 9)?;
        zeroes(&file, 12, 12)?;
        zeroes(&file, 60, 70)?;
        // Entries that the visitor does not want are as gaps.
        if let Some(locked) = tree::lock_present(file.mapping(), at(66)) {
            locked.set(Entry::empty(Order::PTE));
        }
        let note = walk_runs(&file, Filter::Any, Disposition::Clean(0));
        check_eq!(
            note.runs[..],
            [
                (3, 9, 7),
                (12, 12, 1),
                (60, 63, 4),
                (64, 65, 2),
                (67, 70, 4)
            ]
        );
        check_eq!(locked_pages(&file, NODE), 0);
        check_eq!(file.nrpages(), 19);
        clear(&file);
        Ok(())
    }

    #[test]
    fn a_run_takes_small_entries_of_every_order() -> Checked {
        let world = world()?;
        let file = world.file(4 * Order::PMD.pages())?;
        zeroes(&file, 0, 7)?;
        put_zero(&file, 8, Order::from_bits(3))?;
        put_zero(&file, 16, Order::from_bits(4))?;
        put_zero(&file, 32, Order::PTE)?;
        put_zero(&file, 34, Order::from_bits(1))?;
        // As large as a node, and larger: by themselves.
        put_zero(&file, 64, Order::from_bits(6))?;
        put_zero(&file, 128, Order::from_bits(6))?;
        put_zero(&file, 512, Order::PMD)?;
        let note = walk_runs(&file, Filter::Any, Disposition::Clean(0));
        check_eq!(
            note.runs[..],
            [
                (0, 32, 11),
                (34, 35, 1),
                (64, 127, 1),
                (128, 191, 1),
                (512, 1023, 1)
            ]
        );
        // Beginning in the middle of one.
        let mut note = Note::new(Disposition::Clean(0));
        tree::walk(file.mapping(), range(10, 16), Filter::Any, &mut note);
        check_eq!(note.runs.first().map(|run| run.0), Some(8));
        check_eq!(note.runs.last().map(|run| run.1), Some(31));
        check_eq!(note.runs.iter().map(|run| run.2).sum::<usize>(), 2);
        clear(&file);
        Ok(())
    }

    #[test]
    fn a_run_ends_before_a_locked_entry_which_is_waited_for() -> Checked {
        let world = world()?;
        for after in [Disposition::Clean(0), Disposition::Remove] {
            let file = world.file(NODE)?;
            zeroes(&file, 0, 20)?;
            let held = tree::lock_present(file.mapping(), at(9));
            let (note, (waited, locked)) = with_thread(
                || walk_runs(&file, Filter::Any, after),
                |thread| {
                    let waited = thread.waits();
                    let locked = locked_pages(&file, NODE);
                    drop(held);
                    (waited, locked)
                },
            )?;
            check!(waited);
            // A waiter holds nothing.
            check_eq!(locked, bits(9, 9));
            check_eq!(note.runs[..], [(0, 8, 9), (9, 20, 12)]);
            let left = if after == Disposition::Clean(0) {
                21
            } else {
                0
            };
            check_eq!(file.nrpages(), left);
            check_eq!(locked_pages(&file, NODE), 0);
            clear(&file);
        }
        Ok(())
    }

    #[test]
    fn only_what_write_back_wants_is_in_a_run() -> Checked {
        let world = world()?;
        let (file, place) = straight_file(&world, NODE)?;
        for index in 0..20 {
            put(&file, index, Order::PTE, place + index, index != 4)?;
        }
        file.mapping().tag_for_writeback(range(0, 14));
        check_eq!(
            marked_pages(&file, NODE, Mark::ToWrite),
            bits(0, 14) & !bits(4, 4)
        );
        let note = walk_runs(&file, Filter::ToWrite, Disposition::Clean(0));
        check_eq!(note.runs[..], [(0, 3, 4), (5, 14, 10)]);
        check_eq!(note.dirty, 14);
        check_eq!(marked_pages(&file, NODE, Mark::ToWrite), 0);
        // Clean are those that were worked on.
        check_eq!(marked_pages(&file, NODE, Mark::Dirty), bits(15, 19));
        clear(&file);
        world.check_clean()
    }

    /// Adds up the pieces of memory of a run: their first pages in the file and lengths, as decimal
    /// digits.
    struct Pieces {
        all: usize,
        dirty: usize,
        wrong: usize,
        place: usize,
    }

    impl Visitor for Pieces {
        const ASKS_DIRTY: bool = true;
        const BATCHES: bool = true;

        fn look(&mut self, _entry: Entry<'_>, _dirty: bool) -> WalkAction {
            WalkAction::Work
        }

        fn work(&mut self, run: &EntryBatch<'_>) -> Disposition {
            let place = self.place;
            let mut wrong = 0;
            let mut pieces = |dirty_only, digits: &mut usize| {
                run.pieces(dirty_only, |first, piece| {
                    *digits = *digits * 100 + first.get() * 10 + piece.pages();
                    let there = match first.get() {
                        8 => 20,
                        9 => 30,
                        same => same,
                    };
                    wrong += usize::from(piece.pfn().to_bits() != place + there);
                });
            };
            pieces(false, &mut self.all);
            pieces(true, &mut self.dirty);
            self.wrong += wrong;
            Disposition::Clean(0)
        }
    }

    #[test]
    fn the_memory_of_a_run_comes_in_pieces() -> Checked {
        let world = world()?;
        let file = world.file(NODE)?;
        let place = world.take_many(NODE, Order::PMD)?;
        // Pages 0 to 3 and 4 to 6 follow each other, 7 is a hole, 8 and 9 lie elsewhere; of the
        // first, 1 is clean.
        for index in [0, 1, 2, 3] {
            put(&file, index, Order::PTE, place + index, index != 1)?;
        }
        put(&file, 4, Order::from_bits(1), place + 4, true)?;
        put(&file, 6, Order::PTE, place + 6, true)?;
        put_zero(&file, 7, Order::PTE)?;
        put(&file, 8, Order::PTE, place + 20, true)?;
        put(&file, 9, Order::PTE, place + 30, true)?;
        let mut pieces = Pieces {
            all: 0,
            dirty: 0,
            wrong: 0,
            place: world.pfn(place).to_bits(),
        };
        tree::walk(file.mapping(), PageRange::ALL, Filter::Any, &mut pieces);
        check_eq!(pieces.all, 78191);
        check_eq!(pieces.dirty, 1258191);
        check_eq!(pieces.wrong, 0);
        clear(&file);
        world.check_clean()
    }

    /// Removes what is no placeholder: in runs, or at once.
    struct Drain {
        at_once: bool,
        looked: usize,
    }

    impl Visitor for Drain {
        const ASKS_DIRTY: bool = true;
        const BATCHES: bool = true;

        fn look(&mut self, entry: Entry<'_>, _dirty: bool) -> WalkAction {
            self.looked += 1;
            match entry.kind() {
                Kind::Empty => WalkAction::Next,
                _ if self.at_once => WalkAction::Remove,
                _ => WalkAction::Work,
            }
        }

        fn work(&mut self, _run: &EntryBatch<'_>) -> Disposition {
            Disposition::Remove
        }
    }

    fn drain(file: &File<'_>, range: PageRange, at_once: bool) -> usize {
        let mut visitor = Drain { at_once, looked: 0 };
        tree::walk(file.mapping(), range, Filter::Any, &mut visitor)
    }

    #[test]
    fn a_whole_node_is_removed_and_its_neighbours_stay() -> Checked {
        let world = world()?;
        for at_once in [false, true] {
            let file = world.file(4 * NODE)?;
            zeroes(&file, 0, 3 * NODE - 1)?;
            check_eq!(drain(&file, range(NODE, 2 * NODE - 1), at_once), NODE);
            check_eq!(file.nrpages(), 2 * NODE);
            for (index, there) in [
                (NODE - 1, true),
                (NODE, false),
                (2 * NODE - 1, false),
                (2 * NODE, true),
            ] {
                check_eq!(look(&file, index).is_some(), there, "at {index}");
            }
            // And again, where there is nothing any more.
            check_eq!(drain(&file, range(NODE, 2 * NODE - 1), at_once), 0);
            check_eq!(drain(&file, PageRange::ALL, at_once), 2 * NODE);
            check_eq!(file.nrpages(), 0);
            check!(file.mapping().is_empty());
        }
        Ok(())
    }

    #[test]
    fn only_the_range_is_removed_wherever_it_begins_and_ends() -> Checked {
        let world = world()?;
        for at_once in [false, true] {
            for (first, last) in [
                (0, 0),
                (5, 5),
                (5, 70),
                (63, 64),
                (64, 127),
                (1, 127),
                (64, 191),
                (60, 200),
                (191, 191),
            ] {
                let file = world.file(4 * NODE)?;
                zeroes(&file, 0, 3 * NODE - 1)?;
                let inside = last.min(3 * NODE - 1) - first + 1;
                check_eq!(
                    drain(&file, range(first, last), at_once),
                    inside,
                    "{first} to {last}"
                );
                check_eq!(file.nrpages(), 3 * NODE - inside);
                for index in 0..3 * NODE {
                    let there = index < first || index > last;
                    check_eq!(look(&file, index).is_some(), there, "{first} to {last}");
                }
                clear(&file);
            }
        }
        Ok(())
    }

    #[test]
    fn what_is_not_to_be_removed_stays_in_its_node() -> Checked {
        let world = world()?;
        for at_once in [false, true] {
            for kept in [0, 1, 31, 62, 63] {
                let file = world.file(2 * NODE)?;
                zeroes(&file, 0, 2 * NODE - 1)?;
                if let Some(locked) = tree::lock_present(file.mapping(), at(kept)) {
                    locked.set(Entry::empty(Order::PTE));
                }
                check_eq!(drain(&file, PageRange::ALL, at_once), 2 * NODE - 1);
                check_eq!(file.nrpages(), 1);
                check!(look(&file, kept) == Some((Entry::empty(Order::PTE), false)));
                clear(&file);
            }
        }
        Ok(())
    }

    #[test]
    fn what_is_locked_in_a_node_is_waited_for_and_removed_then() -> Checked {
        let world = world()?;
        for at_once in [false, true] {
            for held_at in [64, 65, 90, 127] {
                let file = world.file(3 * NODE)?;
                zeroes(&file, 0, 3 * NODE - 1)?;
                let held = tree::lock_present(file.mapping(), at(held_at));
                let (removed, (waited, kept)) = with_thread(
                    || drain(&file, PageRange::ALL, at_once),
                    |thread| {
                        let waited = thread.waits();
                        let kept = look(&file, held_at);
                        drop(held);
                        (waited, kept)
                    },
                )?;
                check!(waited);
                check!(kept == Some((Entry::zero(Order::PTE), true)));
                check_eq!(removed, 3 * NODE, "locked at {held_at}");
                check_eq!(file.nrpages(), 0);
                check!(file.mapping().is_empty());
            }
        }
        Ok(())
    }

    #[test]
    fn larger_entries_of_a_node_go_with_the_others() -> Checked {
        let world = world()?;
        for at_once in [false, true] {
            let file = world.file(4 * NODE)?;
            zeroes(&file, 0, 7)?;
            put_zero(&file, 8, Order::from_bits(3))?;
            put_zero(&file, 16, Order::from_bits(4))?;
            put_zero(&file, 32, Order::from_bits(5))?;
            put_zero(&file, 64, Order::from_bits(6))?;
            zeroes(&file, 128, 130)?;
            check_eq!(file.nrpages(), 131);
            check_eq!(drain(&file, PageRange::ALL, at_once), 15);
            check_eq!(file.nrpages(), 0);
            check!(file.mapping().is_empty());
        }
        Ok(())
    }

    /// Works when it is told to.
    struct Slow<'a> {
        go: &'a Atomic<bool>,
        working: &'a Atomic<usize>,
        after: Disposition,
    }

    impl Visitor for Slow<'_> {
        const ASKS_DIRTY: bool = false;
        const BATCHES: bool = true;

        fn look(&mut self, _entry: Entry<'_>, _dirty: bool) -> WalkAction {
            WalkAction::Work
        }

        fn work(&mut self, run: &EntryBatch<'_>) -> Disposition {
            self.working.store(run.iter().count(), Release);
            until(|| self.go.load(Acquire));
            self.after
        }
    }

    #[test]
    fn whoever_waits_for_an_entry_of_a_run_goes_on() -> Checked {
        const WAITERS: usize = 3;
        let world = world()?;
        for (after, pages) in [
            (Disposition::Clean(0), 10),
            (Disposition::Remove, 10),
            (Disposition::Remove, NODE),
        ] {
            let file = world.file(NODE)?;
            zeroes(&file, 0, pages - 1)?;
            let (go, working) = (Atomic::new(false), Atomic::new(0));
            // The first thread walks, the others want entries of the run: the first, and one twice.
            let work = |number: usize| {
                if number == 0 {
                    let mut slow = Slow {
                        go: &go,
                        working: &working,
                        after,
                    };
                    return tree::walk(file.mapping(), PageRange::ALL, Filter::Any, &mut slow);
                }
                until(|| working.load(Acquire) != 0);
                let index = at([0, 0, 7, 7][number % (WAITERS + 1)]);
                usize::from(tree::lock_present(file.mapping(), index).is_some())
            };
            let (results, waited) = with_threads(WAITERS + 1, work, |threads| {
                let begun = until(|| working.load(Acquire) == pages);
                let waited = threads.iter().skip(1).all(|thread| thread.waits());
                go.store(true, Release);
                begun && waited
            })?;
            check!(waited, "nobody has waited");
            let found = usize::from(after == Disposition::Clean(0));
            check_eq!(results[1..], [found; WAITERS]);
            check_eq!(
                results[0],
                if after == Disposition::Remove {
                    pages
                } else {
                    0
                }
            );
            clear(&file);
            check_eq!(file.nrpages(), 0);
        }
        Ok(())
    }

    #[test]
    fn whoever_waits_for_an_entry_that_is_removed_at_once_goes_on() -> Checked {
        let world = world()?;
        let file = world.file(NODE)?;
        zeroes(&file, 0, NODE - 1)?;
        let held = tree::lock_present(file.mapping(), at(5));
        let go = Atomic::new(false);
        let work = |number: usize| {
            if number == 0 {
                return drain(&file, PageRange::ALL, true);
            }
            until(|| go.load(Acquire));
            usize::from(tree::lock_present(file.mapping(), at(5)).is_some())
        };
        // Both wait for it. The first is woken and removes it, so that nobody will unlock it.
        let (results, waited) = with_threads(2, work, |threads| {
            let first = threads.first().is_some_and(|thread| thread.waits());
            go.store(true, Release);
            let second = threads.get(1).is_some_and(|thread| thread.waits());
            drop(held);
            first && second
        })?;
        check!(waited);
        check_eq!(results[..], [NODE, 0]);
        check_eq!(file.nrpages(), 0);
        Ok(())
    }
}
