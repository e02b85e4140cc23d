// SPDX-License-Identifier: GPL-2.0

//! Which devices' files are served (spec, section 8).

use kernel::prelude::*;

#[kunit_tests(rdax_adopt)]
mod tests {
    use crate::{
        dax::{
            adopt::{self, Adopted},
            device, //
        },
        kern::{
            error::eopnotsupp,
            order::Order,
            page::DevFolio,
            redirect::{self, Destination, Key},
            testing::{
                call_writeback, decide, decide_for_pud, decide_without_file, hold, log_says, note,
                pause, with_anonymous_owner, with_failing_allocation, with_function_held,
                with_paths, with_threads, without_memory, Checked, File, HeldByOther,
            },
        },
        tests::helpers::*,
    };
    use kernel::{
        prelude::*,
        sync::atomic::{Atomic, Relaxed},
    };

    /// Where all functions' calls go that are about a file, and about a folio of it.
    fn check_all(file: &File<'_>, folio: DevFolio<'_>, expected: Destination) -> Checked {
        let redirection = adopt::redirection();
        for (number, (name, key)) in redirection.targets().enumerate() {
            // A device's memory is no matter of a file, nor are page tables and the end of its filesystem, and
            // some calls are only watched.
            if matches!(
                key,
                Key::BlockDevice
                    | Key::Member
                    | Key::DaxDevice
                    | Key::ClearedPud
                    | Key::Mm
                    | Key::Error
                    | Key::Unmount
                    | Key::Active
            ) {
                continue;
            }
            let found = decide(redirection, number, key, file, folio);
            check_eq!(found, expected, "{name}");
        }
        Ok(())
    }

    fn check_device(file: &File<'_>, folio: DevFolio<'_>, expected: Destination) -> Checked {
        let redirection = adopt::redirection();
        let mut found = 0;
        for (number, (name, key)) in redirection.targets().enumerate() {
            if key == Key::BlockDevice {
                found += 1;
                check_eq!(
                    decide(redirection, number, key, file, folio),
                    expected,
                    "{name}"
                );
            }
        }
        check!(found > 0);
        Ok(())
    }

    #[test]
    fn every_function_is_ours_for_a_file_on_an_adopted_device() -> Checked {
        let world = world()?;
        let file = world.file(1)?;
        let place = world.take(Order::PTE)?;
        put(&file, 0, Order::PTE, place, false)?;
        let folio = world.page(place).folio();
        check_all(&file, folio, Destination::Ours)?;
        check_device(&file, folio, Destination::Ours)?;
        // The same file elsewhere.
        world.set_foreign(true);
        let result = check_all(&file, folio, Destination::Kernel);
        world.set_foreign(false);
        result?;
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn every_function_is_the_kernels_when_the_device_was_given_back() -> Checked {
        let world = world()?;
        let file = world.file(1)?;
        let place = world.take(Order::PTE)?;
        put(&file, 0, Order::PTE, place, false)?;
        let folio = world.page(place).folio();
        release()?;
        let results = (
            check_all(&file, folio, Destination::Kernel),
            check_device(&file, folio, Destination::Kernel),
        );
        adopt()?;
        results.0?;
        results.1?;
        check_all(&file, folio, Destination::Ours)?;
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn a_file_for_whose_entries_memory_ran_out_is_evicted_by_the_kernel() -> Checked {
        // Needs a node for each of some levels.
        const DEEP: usize = 1 << 38;

        let world = world()?;
        let file = world.file(1)?;
        let folio = world.page(world.take(Order::PTE)?).folio();
        let check_evicted = |what: &str, expected: Destination| -> Checked {
            let redirection = adopt::redirection();
            for (number, (name, key)) in redirection.targets().enumerate() {
                if matches!(key, Key::Evicted | Key::Truncated) {
                    let found = decide(redirection, number, key, &file, folio);
                    check_eq!(found, expected, "{name}, {what}");
                }
            }
            Ok(())
        };
        let mut half_built = 0;
        for nodes in 0..8 {
            // All but the first are refused.
            let (result, _) = without_memory(|| {
                with_failing_allocation(nodes + 1, || {
                    lock_entry(file.mapping(), at(DEEP), Order::PTE, false).map(drop)
                })
            });
            if result.is_ok() {
                break;
            }
            check_eq!(file.nrpages(), 0);
            half_built += usize::from(!file.mapping().is_empty());
            check_evicted("without an entry", Destination::Kernel)?;
        }
        check!(half_built > 0);
        let entry = lock_entry(file.mapping(), at(DEEP), Order::PTE, false);
        check_evicted("with an entry", Destination::Ours)?;
        match entry {
            Ok(entry) => entry.remove(),
            Err(_) => check!(false),
        }
        check!(file.mapping().is_empty());
        world.check_clean()
    }

    #[test]
    fn an_entry_of_1g_that_came_back_is_not_cleared() -> Checked {
        // Present, and for user space; the last one has a flag that a table has not.
        const TABLE: usize = 0x67;
        const LEAF: usize = 0xe7;
        const NONSENSE: usize = 0x167;

        let world = world()?;
        let redirection = adopt::redirection();
        let place = world.take(Order::PUD)?;
        let device = world.page(place).pfn().to_bits() << Order::PAGE_SHIFT;
        let mut found = 0;
        for (number, (name, key)) in redirection.targets().enumerate() {
            if key != Key::ClearedPud {
                continue;
            }
            found += 1;
            for (what, bits, expected) in [
                ("empty", 0, Destination::Ours),
                ("a table", TABLE | 1 << 30, Destination::Ours),
                ("of the device", LEAF | device, Destination::Ours),
                ("of ordinary memory", LEAF, Destination::Kernel),
                ("nonsense", NONSENSE | 1 << 30, Destination::Kernel),
            ] {
                let destination = decide_for_pud(redirection, number, bits);
                check_eq!(destination, expected, "{name}: {what}");
            }
        }
        check_eq!(found, 1);
        world.check_clean()
    }

    #[test]
    fn an_eviction_is_redirected_once() -> Checked {
        let world = world()?;
        let file = world.file(1)?;
        let place = world.take(Order::PTE)?;
        put(&file, 0, Order::PTE, place, false)?;
        let folio = world.page(place).folio();
        let redirection = adopt::redirection();
        let mut found = 0;
        for (number, (name, key)) in redirection.targets().enumerate() {
            if key == Key::Evicted {
                found += 1;
                let decide = || decide(redirection, number, key, &file, folio);
                check_eq!(decide(), Destination::Ours, "{name}");
                // The replacement has done what it can.
                let again = redirect::call_original(decide);
                check_eq!(again, Destination::Kernel, "{name}");
            }
        }
        check!(found > 0);
        clear(&file);
        world.check_clean()
    }

    #[test]
    fn a_folio_in_no_file_is_not_locked_by_anybody() -> Checked {
        let world = world()?;
        let file = world.file(1)?;
        let place = world.take(Order::PTE)?;
        let folio = world.page(place).folio();
        let redirection = adopt::redirection();
        let mut keys = 0;
        for (number, (name, key)) in redirection.targets().enumerate() {
            let expected = match key {
                Key::Folio => Destination::NoEntry,
                Key::LockedFolio => Destination::Kernel,
                _ => continue,
            };
            keys += 1;
            check_eq!(
                decide(redirection, number, key, &file, folio),
                expected,
                "{name}"
            );
            // Memory that looks like an address space and is none.
            let found = with_anonymous_owner(folio, file.mapping(), || {
                decide(redirection, number, key, &file, folio)
            });
            check_eq!(found, Destination::Kernel, "{name}");
        }
        check_eq!(keys, 2);
        world.check_clean()
    }

    #[test]
    fn errors_of_filesystems_on_adopted_devices_are_noted_until_they_are_unmounted() -> Checked {
        let world = world()?;
        let file = world.file(1)?;
        let folio = world.page(world.take(Order::PTE)?).folio();
        let redirection = adopt::redirection();
        let call = |wanted: Key| -> Checked {
            for (number, (name, key)) in redirection.targets().enumerate() {
                if key == wanted {
                    let found = decide(redirection, number, key, &file, folio);
                    check_eq!(found, Destination::Kernel, "{name}");
                }
            }
            Ok(())
        };
        check!(!device::has_error(file.inode()));
        world.set_foreign(true);
        let elsewhere = call(Key::Error);
        world.set_foreign(false);
        elsewhere?;
        check!(!device::has_error(file.inode()));
        call(Key::Error)?;
        check!(device::has_error(file.inode()));
        call(Key::Unmount)?;
        check!(!device::has_error(file.inode()));
        world.check_clean()
    }

    #[test]
    fn a_page_in_the_middle_of_a_folio_is_in_no_file() -> Checked {
        let world = world()?;
        let file = world.file(Order::PMD.pages())?;
        let place = world.take(Order::PMD)?;
        let redirection = adopt::redirection();
        // The first of them do not hold what the others do.
        for page in [1, 2, 3, Order::PMD.pages() - 1] {
            // Found when it was a page of its own.
            let folio = world.page(place + page).folio();
            put(&file, 0, Order::PMD, place, false)?;
            let mut keys = 0;
            for (number, (name, key)) in redirection.targets().enumerate() {
                if key == Key::Folio {
                    keys += 1;
                    let found = decide(redirection, number, key, &file, folio);
                    check_eq!(found, Destination::NoEntry, "{name}, page {page}");
                }
            }
            check_eq!(keys, 1);
            clear(&file);
        }
        world.check_clean()
    }

    #[test]
    fn what_is_about_memory_is_ours_whatever_the_device() -> Checked {
        let world = world()?;
        let file = world.file(1)?;
        let folio = world.page(world.take(Order::PTE)?).folio();
        let redirection = adopt::redirection();
        let mut found = 0;
        for (number, (name, key)) in redirection.targets().enumerate() {
            if key == Key::DaxDevice {
                found += 1;
                let decide = || decide(redirection, number, key, &file, folio);
                check_eq!(decide(), Destination::Ours, "{name}");
                world.set_foreign(true);
                let elsewhere = decide();
                world.set_foreign(false);
                check_eq!(elsewhere, Destination::Ours, "{name}");
                // The replacement asks the kernel's own.
                let on = redirect::call_original(decide);
                check_eq!(on, Destination::Kernel, "{name}");
            }
        }
        check_eq!(found, 1 + usize::from(cfg!(CONFIG_MEMORY_FAILURE)));
        world.check_clean()
    }

    #[test]
    fn a_mapping_of_no_file_is_the_kernels() -> Checked {
        let _world = world()?;
        let redirection = adopt::redirection();
        for (number, (name, key)) in redirection.targets().enumerate() {
            if matches!(
                key,
                Key::Vma | Key::SixthVma | Key::ProtectedVma | Key::SplitVma | Key::ZappedVma
            ) {
                let found = decide_without_file(redirection, number);
                check_eq!(found, Destination::Kernel, "{name}");
            }
        }
        Ok(())
    }

    #[test]
    fn a_mapping_of_a_file_without_dax_is_the_kernels() -> Checked {
        let world = world()?;
        let file = world.file(1)?;
        let folio = world.page(world.take(Order::PTE)?).folio();
        let redirection = adopt::redirection();
        let mut found = 0;
        for (number, (name, key)) in redirection.targets().enumerate() {
            if matches!(
                key,
                Key::Vma | Key::SixthVma | Key::ProtectedVma | Key::SplitVma | Key::ZappedVma
            ) {
                found += 1;
                file.set_dax(false);
                let without = decide(redirection, number, key, &file, folio);
                file.set_dax(true);
                check_eq!(without, Destination::Kernel, "{name}");
                let with = decide(redirection, number, key, &file, folio);
                check_eq!(with, Destination::Ours, "{name}");
            }
        }
        let optional = usize::from(cfg!(CONFIG_KSM)) + usize::from(cfg!(CONFIG_UPROBES));
        check_eq!(found, 5 + optional);
        world.check_clean()
    }

    #[test]
    fn a_device_that_somebody_has_is_neither_taken_nor_given_back() -> Checked {
        drop(world()?);
        let held = with_paths(|| HeldByOther::new(PATH))?;
        check_eq!(release_now(), Err(EBUSY));
        check!(is_adopted()?);
        drop(held);
        check_eq!(release_now(), Ok(()));
        check!(!is_adopted()?);
        let held = with_paths(|| HeldByOther::new(PATH))?;
        let result = with_paths(|| Adopted::new(NAME)).map(|_| ());
        check_eq!(result, Err(EBUSY));
        drop(held);
        adopt()
    }

    /// Where a call goes that wants zeroes on blocks of the file's device.
    fn of_zeroes(file: &File<'_>, folio: DevFolio<'_>) -> Destination {
        let redirection = adopt::redirection();
        let mut targets = redirection.targets().enumerate();
        match targets.find(|(_, (_, key))| *key == Key::Member) {
            Some((number, (_, key))) => decide(redirection, number, key, file, folio),
            None => Destination::Elsewhere,
        }
    }

    #[test]
    fn zeroes_are_put_by_the_module() -> Checked {
        let world = world()?;
        let file = world.file(1)?;
        let folio = world.page(world.take(Order::PTE)?).folio();
        check_eq!(of_zeroes(&file, folio), Destination::Ours);
        check_eq!(
            redirect::call_original(|| of_zeroes(&file, folio)),
            Destination::Kernel
        );
        drop(file);
        world.check_clean()
    }

    #[test]
    fn who_holds_a_function_is_not_called_a_live_patch() -> Checked {
        drop(world()?);
        release()?;
        let adopted = with_function_held(c"dax_break_layout", || {
            with_paths(|| Adopted::new(NAME)).map(|_| ())
        })?;
        check_eq!(adopted, Err(EBUSY));
        check!(log_says(
            c"dax_break_layout is held by somebody else, a live patch (see /sys/kernel/livepatch) or another module; its line in /sys/kernel/tracing/enabled_functions may say who"
        ));
        adopt()
    }

    #[test]
    fn a_device_is_given_back_when_its_pages_are_held_by_nobody() -> Checked {
        for last in [false, true] {
            let world = world()?;
            let mut place = world.take(Order::PMD)?;
            if last {
                // That of the device.
                while let Some(next) = world.try_take(Order::PMD.pages(), Order::PMD) {
                    place = next;
                }
            }
            let file = world.file(Order::PMD.pages())?;
            put(&file, 0, Order::PMD, place, false)?;
            let held = hold(world.page(place).folio());
            clear(&file);
            drop(file);
            let left = world.leave();
            let page = left.page(place);
            check_eq!(page.folio().order(), Order::PMD);
            check_eq!(release_now(), Err(EBUSY));
            check!(is_adopted()?);
            check_eq!(page.folio().order(), Order::PMD);
            drop(held);
            // Nobody needs the folio, and nothing has made pages of it yet.
            check_eq!(page.folio().order(), Order::PMD);
            check_eq!(release_now(), Ok(()));
            for offset in [0, 1, Order::PMD.pages() - 1] {
                let page = crate::kern::testing::page_behind(page, offset);
                check!(crate::kern::testing::is_free(page), "page {offset}");
            }
        }
        adopt()
    }

    #[test]
    fn without_memory_a_device_is_adopted_whole_or_not() -> Checked {
        let mut failures = 0;
        loop {
            release()?;
            let (result, failed) =
                with_failing_allocation(failures + 1, || with_paths(|| Adopted::new(NAME)));
            match result {
                Ok(device) => *adopted()?.lock() = Some(device),
                Err(error) => {
                    check!(failed, "{error:?}");
                    check!(!is_adopted()?);
                }
            }
            if is_adopted()? {
                let world = world()?;
                let file = world.file(1)?;
                put(&file, 0, Order::PTE, world.take(Order::PTE)?, true)?;
                check_eq!(call_writeback(&file), Ok(1));
                clear(&file);
                world.check_clean()?;
            }
            if !failed {
                break;
            }
            failures += 1;
        }
        check!(is_adopted()? && failures != 0);
        note(fmt!("{failures} allocations failed one after the other"));
        Ok(())
    }

    #[test]
    fn only_block_devices_with_dax_are_adopted_and_only_once() -> Checked {
        adopt()?;
        let try_adopt = |name| with_paths(|| Adopted::new(name)).map(|_| ());
        check_eq!(try_adopt(NAME), Err(EEXIST));
        check_eq!(try_adopt(c"no-such-device"), Err(ENODEV));
        // A device, but not one of blocks; and what is no name of a device.
        check_eq!(try_adopt(c"null"), Err(ENODEV));
        check_eq!(try_adopt(c"../dev/pmem0"), Err(ENODEV));
        check_eq!(try_adopt(c"loop0"), Err(eopnotsupp()));
        check!(is_adopted()?);
        let world = world()?;
        let file = world.file(1)?;
        let place = world.take(Order::PTE)?;
        put(&file, 0, Order::PTE, place, false)?;
        check_all(&file, world.page(place).folio(), Destination::Ours)?;
        clear(&file);
        Ok(())
    }

    #[test]
    fn decisions_are_right_while_a_device_comes_and_goes() -> Checked {
        const ROUNDS: usize = 8;
        let world = world()?;
        let (ours, foreign) = (world.file(1)?, world.file(1)?);
        let place = world.take(Order::PTE)?;
        put(&ours, 0, Order::PTE, place, false)?;
        let folio = world.page(place).folio();
        let over = Atomic::new(false);
        let redirection = adopt::redirection();
        let work = |_| -> Checked<[usize; 2]> {
            let mut seen = [0; 2];
            while !over.load(Relaxed) {
                for (number, (name, key)) in redirection.targets().enumerate() {
                    match decide(redirection, number, key, &ours, folio) {
                        Destination::Ours => seen[0] += 1,
                        Destination::Kernel => seen[1] += 1,
                        other => {
                            return Err(crate::kern::testing::failed(
                                file!(),
                                line!(),
                                fmt!("{name}: {other:?}"),
                            ))
                        }
                    }
                }
                // Giving back waits for every task to sleep.
                pause(1);
            }
            Ok(seen)
        };
        let (results, changed) = with_threads(2, work, |_| -> Checked {
            let result = (|| -> Checked {
                for _ in 0..ROUNDS {
                    release()?;
                    check_all(&ours, folio, Destination::Kernel)?;
                    adopt()?;
                    check_all(&ours, folio, Destination::Ours)?;
                }
                Ok(())
            })();
            over.store(true, Relaxed);
            result
        })?;
        changed?;
        let mut sum = [0; 2];
        for result in results {
            let seen = result?;
            sum = [sum[0] + seen[0], sum[1] + seen[1]];
        }
        note(fmt!("{} calls were ours, {} the kernel's", sum[0], sum[1]));
        check!(sum[0] > 0 && sum[1] > 0);
        drop(foreign);
        clear(&ours);
        world.check_clean()
    }
}
