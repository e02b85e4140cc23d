// SPDX-License-Identifier: GPL-2.0

//! How calls of the kernel's functions come by the module, and go on (spec, section 8).

use kernel::prelude::*;

#[kunit_tests(rdax_redirect)]
mod tests {
    use crate::{
        dax::adopt,
        kern::{
            members::{Members, TestSlot},
            order::Order,
            redirect::{self, Destination, InFlight, InModule, Key},
            testing::{
                call_break_layout, call_busy_page, call_invalidate, call_writeback, decide,
                decide_directly, decide_while_watched, hold, pause, until, with_thread,
                with_threads, Checked,
            },
            xa::Mark,
        },
        tests::helpers::*,
    };
    use kernel::{
        prelude::*,
        sync::atomic::{Acquire, Atomic, Full, Relaxed, Release},
    };

    #[test]
    fn a_function_that_is_not_called_is_noticed() -> Checked {
        {
            let _world = world()?;
            check_eq!(redirect::sees_evictions(), Ok(true));
        }
        // Nothing is redirected, so nothing comes by.
        release()?;
        check_eq!(redirect::sees_evictions(), Ok(false));
        Ok(())
    }

    #[test]
    fn calls_of_the_kernels_functions_arrive() -> Checked {
        let world = world()?;
        let file = world.file(4)?;
        let place = world.take_many(4, Order::PTE)?;
        for index in 0..4 {
            put(&file, index, Order::PTE, place + index, index == 1)?;
        }
        let folio = world.page(place).folio();
        // Ours say what our entries are; the kernel's know nothing of them.
        check!(call_busy_page(&file).is_none());
        let held = hold(folio);
        check!(call_busy_page(&file) == Some(folio));
        check_eq!(call_break_layout(&file), Err(ERESTARTSYS));
        check_eq!(file.nrpages(), 4);
        drop(held);
        check_eq!(call_invalidate(&file), Err(EBUSY));
        check_eq!(file.nrpages(), 1);
        check!(is_marked(&file, 1, Mark::Dirty));
        check_eq!(call_writeback(&file), Ok(1));
        put(&file, 0, Order::PTE, place, false)?;
        check_eq!(call_invalidate(&file), Ok(()));
        check_eq!(file.nrpages(), 0);
        put(&file, 0, Order::PTE, place, true)?;
        check_eq!(call_break_layout(&file), Ok(()));
        check_eq!(file.nrpages(), 0);
        world.check_clean()
    }

    #[test]
    #[cfg(CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS)]
    fn the_shorter_way_decides_by_the_same_table() -> Checked {
        use TestSlot::{Device, Other, Removed};
        let ours = (Destination::Ours, Destination::Ours);
        let kernel = (Destination::Kernel, Destination::Kernel);
        let world = world()?;
        let file = world.file(1)?;
        // The table of the shorter way is exchanged for others, so nobody may come by it.
        release()?;
        let mut full = KVec::from_elem(Other, Members::PLACES, GFP_KERNEL)?;
        let result = (|| {
            check_eq!(decide_directly(&file, &[]), kernel);
            check_eq!(decide_directly(&file, &[Device]), ours);
            check_eq!(decide_directly(&file, &[Other]), kernel);
            check_eq!(decide_directly(&file, &[Removed]), kernel);
            check_eq!(decide_directly(&file, &[Other, Device]), ours);
            check_eq!(decide_directly(&file, &[Removed, Device]), ours);
            check_eq!(decide_directly(&file, &[Other, Removed, Other]), kernel);
            check_eq!(decide_directly(&file, &full), kernel);
            if let Some(last) = full.last_mut() {
                *last = Device;
            }
            check_eq!(decide_directly(&file, &full), ours);
            // A filesystem on no block device is on none that is adopted.
            world.set_foreign(true);
            let found = (
                decide_directly(&file, &[]),
                decide_directly(&file, &[Device]),
                decide_directly(&file, &[Other, Device]),
            );
            world.set_foreign(false);
            check_eq!(found, (kernel, kernel, kernel));
            Ok(())
        })();
        adopt()?;
        result
    }

    #[test]
    fn a_device_is_seen_to_go_before_there_is_memory() -> Checked {
        let world = world()?;
        let file = world.file(1)?;
        let mut targets = adopt::redirection().targets();
        let number = targets.position(|(_, key)| key == Key::BlockDevice);
        // Then no memory is known, but somebody may have found some and not said so yet.
        release()?;
        let found = number.map(|number| decide_while_watched(adopt::redirection(), number, &file));
        adopt()?;
        check_eq!(found, Some((Destination::Ours, Destination::Kernel)));
        Ok(())
    }

    #[test]
    fn a_call_that_pauses_keeps_nobody_waiting() -> Checked {
        adopt()?;
        let over = Atomic::new(false);
        let work = || {
            let mut in_flight = InFlight::enter();
            in_flight.pause(|| {
                while !over.load(Relaxed) {
                    pause(1);
                }
            });
        };
        let ((), released) = with_thread(work, |thread| {
            let waits = thread.waits();
            let released = release().and_then(|()| adopt());
            over.store(true, Relaxed);
            released.map(|()| waits)
        })?;
        check!(released?);
        Ok(())
    }

    #[test]
    fn calls_without_an_end_keep_no_device_from_being_released() -> Checked {
        adopt()?;
        let (begun, over) = (Atomic::new(false), Atomic::new(false));
        let quiesced = Atomic::new(false);
        let work = |number| {
            if number == 0 {
                until(|| begun.load(Acquire));
                redirect::quiesce();
                quiesced.store(true, Release);
                return;
            }
            // One that looks at no device, and others of which there always is one. They do not sleep.
            let _in_module = InModule::enter();
            let mut in_flight = InFlight::enter();
            begun.store(true, Release);
            while !over.load(Relaxed) {
                in_flight = InFlight::enter();
                core::hint::spin_loop();
            }
            drop(in_flight);
        };
        let (_, released) = with_threads(2, work, |_| {
            let released = until(|| quiesced.load(Acquire));
            over.store(true, Relaxed);
            released
        })?;
        check!(
            released,
            "who releases a device waits for calls that came later"
        );
        Ok(())
    }

    #[test]
    fn a_call_that_goes_on_to_the_kernels_keeps_no_other_waiting() -> Checked {
        let world = world()?;
        let file = world.file(1)?;
        let folio = world.page(world.take(Order::PTE)?).folio();
        let redirection = adopt::redirection();
        let devices = || {
            redirection
                .targets()
                .enumerate()
                .filter(|(_, (_, key))| *key == Key::BlockDevice || *key == Key::DaxDevice)
        };
        let over = Atomic::new(false);
        // Two that take long.
        let work = |_| {
            redirect::call_original(|| {
                while !over.load(Relaxed) {
                    pause(1);
                }
            });
        };
        let (_, result) = with_threads(2, work, |threads| -> Checked {
            let result = (|| -> Checked {
                check!(threads.iter().all(|thread| thread.waits()));
                for (number, (name, key)) in devices() {
                    let decide = || decide(redirection, number, key, &file, folio);
                    check_eq!(decide(), Destination::Ours, "{name}");
                    check_eq!(
                        redirect::call_original(decide),
                        Destination::Kernel,
                        "{name}"
                    );
                    let inside = redirect::call_original(|| redirect::call_original(decide));
                    check_eq!(inside, Destination::Kernel, "{name}");
                    check_eq!(decide(), Destination::Ours, "{name}");
                }
                Ok(())
            })();
            over.store(true, Relaxed);
            result
        })?;
        result?;
        world.check_clean()
    }

    #[test]
    fn each_call_looks_for_its_own_frame() -> Checked {
        adopt()?;
        const FRAMES: [usize; 2] = [17, 18];
        let turns = Atomic::new(0);
        let work = |number: usize| {
            let frame = FRAMES[number];
            redirect::call_original_for(frame, || {
                turns.fetch_add(1, Full);
                // Both are under way.
                let both = until(|| turns.load(Acquire) == 2);
                let answers =
                    [FRAMES[1 - number], frame, FRAMES[1 - number]].map(redirect::is_sought);
                (both, answers)
            })
        };
        let (results, ()) = with_threads(2, work, |_| ())?;
        for ((both, answers), found) in results {
            check!(both && found);
            // An address space that was found is not looked for any more.
            check_eq!(answers, [false, true, true]);
        }
        let ((), found) = redirect::call_original_for(FRAMES[0], || ());
        check!(!found);
        check!(redirect::is_sought(FRAMES[1]));
        Ok(())
    }
}
