// SPDX-License-Identifier: GPL-2.0

//! What is told of files and waits (`docs/ioctl.md`).

use kernel::prelude::*;

#[kunit_tests(rdax_report)]
mod tests {
    use crate::{
        dax::report::map::{Sink, Walk},
        kern::{
            entry::Entry,
            order::Order,
            testing::{
                flush_signals, hold, until, with_failing_allocation, with_thread, with_threads,
                without_memory, Checked, File, Share, View,
            },
            uapi::{dev, flag, kind, wait, why, MapRecord, WaitRecord},
            waiting::{self, Waiter, Waiting},
        },
        tests::helpers::{entries::*, *},
    };
    use kernel::{
        prelude::*,
        sync::{
            atomic::{Acquire, Atomic, Relaxed, Release},
            Arc, Completion,
        },
        time::{Instant, Monotonic},
    };

    const PMD: usize = Order::PMD.pages();
    const PUD: usize = Order::PUD.pages();

    /// Keeps what it is given, and does something the first time.
    struct Kept<F: FnMut()> {
        records: KVec<MapRecord>,
        room: usize,
        first: Option<F>,
    }

    impl<F: FnMut()> Sink for &mut Kept<F> {
        fn is_full(&self) -> bool {
            self.records.len() >= self.room
        }

        fn written(&self) -> u32 {
            self.records.len() as u32
        }

        fn push(&mut self, record: &MapRecord) -> Result {
            self.records.push(*record, GFP_KERNEL)?;
            if let Some(mut first) = self.first.take() {
                first();
            }
            Ok(())
        }
    }

    /// One call for pages from `first` on: what is next, in pages, and records.
    fn call(
        file: &File<'_>,
        first: usize,
        room: usize,
        admin: bool,
    ) -> Result<(usize, KVec<MapRecord>)> {
        let mut kept = Kept {
            records: KVec::new(),
            room,
            first: None::<fn()>,
        };
        let next = Walk::new(file.inode(), admin, &mut kept).run(range(first, pages(file) - 1))?;
        Ok((next as usize >> Order::PAGE_SHIFT, kept.records))
    }

    fn pages(file: &File<'_>) -> usize {
        file.inode().size_pages()
    }

    /// All of a file, by calls with room for so many records.
    fn all(file: &File<'_>, room: usize) -> Checked<KVec<MapRecord>> {
        let (mut at, mut records) = (0, KVec::new());
        while at < pages(file) {
            let (next, some) = call(file, at, room, true)?;
            check!(next > at, "it does not get on");
            at = next;
            records.extend_from_slice(&some, GFP_KERNEL)?;
        }
        Ok(records)
    }

    /// Whether records are in order and without gaps.
    fn check_covered(file: &File<'_>, records: &[MapRecord]) -> Checked {
        let mut at = 0;
        for record in records {
            check_eq!(record.offset, at);
            check!(record.length > 0);
            at += record.length;
        }
        check_eq!(at as usize >> Order::PAGE_SHIFT, pages(file));
        Ok(())
    }

    fn first(records: &[MapRecord]) -> Checked<MapRecord> {
        match records.first() {
            Some(record) => Ok(*record),
            None => Err(crate::kern::testing::failed(
                file!(),
                line!(),
                fmt!("no record"),
            )),
        }
    }

    #[test]
    fn records_have_no_gaps_however_few_fit_in() -> Checked {
        let world = world()?;
        let file = world.file(4 * PMD)?;
        let place = world.take(Order::PMD)?;
        put(&file, PMD, Order::PMD, place, true)?;
        let place = world.take_many(64, Order::PTE)?;
        for page in (0..64).step_by(3) {
            put(
                &file,
                2 * PMD + page,
                Order::PTE,
                place + page,
                page % 2 == 0,
            )?;
        }
        put_zero(&file, 2 * PMD + 100, Order::PTE)?;
        put_zero(&file, 3 * PMD, Order::PMD)?;
        let whole = all(&file, 4096)?;
        check_covered(&file, &whole)?;
        check!(whole.len() > 40);
        for room in [1, 2, 7] {
            check!(all(&file, room)?[..] == whole[..], "room for {room}");
        }
        // With room for none nothing is told, and it does not get on.
        let (next, records) = call(&file, 0, 0, true)?;
        check_eq!((next, records.len()), (0, 0));
        clear(&file);
        Ok(())
    }

    #[test]
    fn what_is_alike_is_one_record() -> Checked {
        let world = world()?;
        let file = world.file(PMD)?;
        let place = world.take_many(8, Order::PTE)?;
        for page in 0..8 {
            put(&file, page, Order::PTE, place + page, false)?;
        }
        let records = all(&file, 64)?;
        check_eq!(records.len(), 2);
        let one = first(&records)?;
        check_eq!((one.kind, one.length >> Order::PAGE_SHIFT), (kind::DATA, 8));
        check_eq!(
            one.physical,
            (world.pfn(place).to_bits() as u64) << Order::PAGE_SHIFT
        );
        // To others no address is told, and nothing is apart for it.
        let (_, records) = call(&file, 0, 64, false)?;
        check_eq!(records.len(), 2);
        check!(records.iter().all(|record| record.physical == 0));
        clear(&file);
        Ok(())
    }

    #[test]
    fn what_grows_meanwhile_is_told_once() -> Checked {
        let world = world()?;
        let file = world.file(PUD)?;
        store(&file, 0, Entry::empty(Order::PMD))?;
        put_zero(&file, PMD, Order::PMD)?;
        // Told when the second is found.
        let grow = || {
            let _ = erase(&file, 0);
            let _ = erase(&file, PMD);
            let _ = store(&file, 0, Entry::empty(Order::PUD));
        };
        let mut kept = Kept {
            records: KVec::new(),
            room: 64,
            first: Some(grow),
        };
        let next = Walk::new(file.inode(), true, &mut kept).run(range(0, PUD - 1))?;
        check_eq!(next as usize, Order::PUD.bytes());
        check_eq!(kept.records.len(), 3);
        check_covered(&file, &kept.records)?;
        erase(&file, 0)?;
        Ok(())
    }

    #[test]
    fn mappings_and_references_are_told_apart() -> Checked {
        let world = world()?;
        let (file, place) = straight_file(&world, PMD)?;
        let one = View::new(&file, 0, PMD, Share::Shared, 0)?;
        one.store(0, 1)?;
        let record = first(&all(&file, 64)?)?;
        check_eq!(
            (record.order, record.flags),
            (Order::PMD.bits() as u32, flag::DIRTY)
        );
        check_eq!(
            (record.maps, record.whole, record.references, record.vmas),
            (1, 1, 0, 1)
        );
        check_eq!(record.why_mapped, 0);
        {
            let shifted = View::new(&file, 0, PMD, Share::Shared, 1)?;
            shifted.load(3)?;
            let _held = hold(world.page(place).folio());
            let record = first(&all(&file, 64)?)?;
            check!(record.maps > 1);
            check_eq!((record.whole, record.references, record.vmas), (1, 1, 2));
            check_eq!(record.why_mapped, why::ADDRESS);
        }
        drop(one);
        let record = first(&all(&file, 64)?)?;
        check_eq!((record.maps, record.whole, record.vmas), (0, 0, 0));
        check!(record.why & why::UNMAPPED != 0);
        clear(&file);
        Ok(())
    }

    #[test]
    fn each_reason_is_told() -> Checked {
        let world = world()?;
        let file = world.file(PMD + 3)?;
        let view = View::new(&file, 0, 2 * PMD, Share::Shared, 0)?;
        let reasons = |index| -> Checked<u32> {
            let found = all(&file, 4096)?.iter().find_map(|record| {
                let (at, length) = (record.offset as usize, record.length as usize);
                let page = index << Order::PAGE_SHIFT;
                (at <= page && page < at + length).then_some(record.why)
            });
            Ok(found.unwrap_or(0))
        };
        // All is right, but for what was made before.
        let place = world.take_many(PMD, Order::PMD)?;
        put(&file, 0, Order::PTE, place, false)?;
        check_eq!(reasons(0)?, why::SMALLER);
        set_max_order(Order::PTE)?;
        check_eq!(reasons(0)?, why::MAX_ORDER);
        set_max_order(Order::PUD)?;
        // Where on the device a page is whose neighbour is elsewhere.
        put(&file, 1, Order::PTE, place + 7, false)?;
        check_eq!(reasons(0)?, why::EXTENT);
        check_eq!(reasons(1)?, why::EXTENT | why::DEVICE);
        // At the end of the file.
        put_zero(&file, PMD, Order::PTE)?;
        check!(reasons(PMD)? & why::END_OF_FILE != 0);
        {
            let _private = View::new(&file, 0, 5, Share::Private, 1)?;
            check_eq!(
                reasons(0)?,
                why::EXTENT | why::PRIVATE | why::ADDRESS | why::END_OF_MAPPING
            );
        }
        drop(view);
        check_eq!(reasons(0)?, why::EXTENT | why::UNMAPPED);
        clear(&file);
        Ok(())
    }

    #[test]
    fn a_signal_ends_a_call() -> Checked {
        let world = world()?;
        let file = world.file(PMD)?;
        let begin = Atomic::new(false);
        let (result, ()) = with_thread(
            || {
                while !begin.load(Acquire) {
                    crate::kern::testing::pause(1);
                }
                let result = call(&file, 0, 64, true).map(|_| ());
                flush_signals();
                result
            },
            |thread| {
                thread.signal(true);
                begin.store(true, Release);
            },
        )?;
        check_eq!(result, Err(EINTR));
        Ok(())
    }

    #[test]
    fn memory_in_one_piece_is_not_needed() -> Checked {
        let world = world()?;
        let file = world.file(PMD)?;
        let (result, failed) = with_failing_allocation(0, || call(&file, 0, 64, true));
        check!(failed);
        check_eq!(result.map(|(next, _)| next), Ok(PMD));
        Ok(())
    }

    /// The waits for pages of a file.
    fn waits(file: &File<'_>) -> Checked<KVec<WaitRecord>> {
        let mut found = KVec::new();
        waiting::visit(Some(file.inode()), true, |record| {
            record.is_none_or(|record| found.push(*record, GFP_KERNEL).is_ok())
        });
        Ok(found)
    }

    #[test]
    fn a_wait_is_known_while_it_lasts() -> Checked {
        let world = world()?;
        let (file, place) = straight_file(&world, PMD)?;
        let other = world.file(1)?;
        put(&file, 0, Order::PMD, place, false)?;
        check_eq!(waits(&file)?.len(), 0);
        {
            let _held = hold(world.page(place).folio());
            let _waiting = Waiting::for_file(Waiter::Layout, file.inode());
            let record = waits(&file)?;
            check_eq!(record.len(), 1);
            check_eq!(record[0].kind, wait::LAYOUT);
            check_eq!(record[0].dev_type, dev::BLOCK);
            check_eq!(record[0].offset, u64::MAX);
            waiting::note(world.page(place).folio());
            let record = waits(&file)?;
            check_eq!(record[0].offset, 0);
            check_eq!((record[0].references, record[0].maps), (1, 0));
            check_eq!(record[0].order, Order::PMD.bits() as u32);
            // A task waits once at a time.
            drop(Waiting::for_file(Waiter::Write, other.inode()));
            check_eq!(waits(&file)?.len(), 1);
            check_eq!(waits(&other)?.len(), 0);
        }
        check_eq!(waits(&file)?.len(), 0);
        clear(&file);
        Ok(())
    }

    /// The number of a character device (`dev_t`); others have those behind it.
    const NUMBER: u32 = 251 << 20 | 3;

    /// The waits for devices that go.
    fn device_waits() -> Checked<KVec<WaitRecord>> {
        let mut found = KVec::new();
        waiting::visit(None, true, |record| match record {
            Some(record) if record.kind == wait::DEVICE => found.push(*record, GFP_KERNEL).is_ok(),
            _ => true,
        });
        Ok(found)
    }

    #[test]
    fn devices_with_the_same_number_are_told_apart() -> Checked {
        let number = |record: &WaitRecord| (record.dev_major, record.dev_minor, record.dev_type);
        {
            let _waiting = Waiting::for_character(NUMBER);
            let found = device_waits()?;
            check_eq!(found.len(), 1);
            check_eq!(number(&found[0]), (251, 3, dev::CHARACTER));
        }
        {
            let _waiting = Waiting::for_device(None);
            let found = device_waits()?;
            check_eq!(found.len(), 1);
            check_eq!(number(&found[0]), (0, 0, dev::UNKNOWN));
        }
        check_eq!(device_waits()?.len(), 0);
        Ok(())
    }

    #[test]
    fn a_wait_that_begins_anew_goes_on() -> Checked {
        let world = world()?;
        let file = world.file(1)?;
        let since = || -> Checked<u64> { Ok(waits(&file)?.first().map_or(0, |wait| wait.waited)) };
        let waiting = Waiting::for_file(Waiter::Fault, file.inode());
        crate::kern::testing::pause(20);
        let before = since()?;
        check!(before > 0);
        drop(waiting);
        {
            let _waiting = Waiting::for_file(Waiter::Fault, file.inode());
            check!(since()? >= before);
        }
        Ok(())
    }

    /// Whether what this task begins now, a wait for the character device of this number, goes on with an older one.
    fn goes_on(number: u32) -> Checked<bool> {
        let before = Instant::<Monotonic>::now();
        let _waiting = Waiting::for_character(number);
        let found = device_waits()?;
        let own = |wait: &&WaitRecord| wait.dev_major << 20 | wait.dev_minor == number;
        let waited = found.iter().find(own).map_or(0, |wait| wait.waited);
        Ok(waited as i64 > before.elapsed().as_nanos())
    }

    #[test]
    fn a_wait_does_not_go_on_with_one_for_another_device() -> Checked {
        {
            let _waiting = Waiting::for_character(NUMBER);
            crate::kern::testing::pause(20);
        }
        check!(!goes_on(NUMBER + 1)?);
        Ok(())
    }

    /// Has this many tasks wait, end that, and wait again, all at once; how many go on with what they had begun.
    fn going_on(tasks: usize) -> Checked<usize> {
        let gate = || Arc::pin_init(Completion::new(), GFP_KERNEL);
        let (first, second, end) = (gate()?, gate()?, gate()?);
        let steps = Atomic::new(0);
        let work = |task| {
            let step = |gate: &Completion| {
                steps.add(1, Relaxed);
                gate.wait_for_completion();
            };
            let number = NUMBER + task as u32;
            step(&first);
            drop(Waiting::for_character(number));
            step(&second);
            let _waiting = Waiting::for_character(number);
            step(&end);
        };
        let (_, went_on) = with_threads(tasks, work, |_| {
            until(|| steps.load(Relaxed) == tasks);
            first.complete_all();
            until(|| steps.load(Relaxed) == 2 * tasks);
            // What is longer ago than this began before.
            crate::kern::testing::pause(20);
            let now = Instant::<Monotonic>::now();
            second.complete_all();
            until(|| steps.load(Relaxed) == 3 * tasks);
            let mut went_on = 0;
            waiting::visit(None, true, |record| {
                let passed = now.elapsed().as_nanos();
                went_on += usize::from(record.is_some_and(|record| record.waited as i64 > passed));
                true
            });
            end.complete_all();
            went_on
        })?;
        Ok(went_on)
    }

    #[test]
    fn waits_of_many_tasks_go_on() -> Checked {
        // More than there are places in a small table.
        const TASKS: usize = 65;
        // On a slow machine what has ended is too long ago when it begins anew. Ends: after so many.
        for _ in 0..10 {
            if going_on(TASKS)? == TASKS {
                return Ok(());
            }
        }
        check!(false, "the waits of some tasks never go on");
        Ok(())
    }

    #[test]
    fn a_wait_that_there_is_no_memory_for_is_not_known() -> Checked {
        let world = world()?;
        let file = world.file(1)?;
        let _waiting = without_memory(|| Waiting::for_file(Waiter::Layout, file.inode()));
        check_eq!(waits(&file)?.len(), 0);
        Ok(())
    }
}
