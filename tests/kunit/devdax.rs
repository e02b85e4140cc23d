// SPDX-License-Identifier: GPL-2.0

//! Device DAX: which entry serves a fault (spec, section 9). What needs a device on the dax bus is
//! tested in guests.

use kernel::prelude::*;

#[kunit_tests(rdax_devdax)]
mod tests {
    use crate::{
        dax::{
            devdax::{begin_of, choose, folio_order, locate, DevDax, FaultAddress},
            stats::Counter,
        },
        kern::{
            dax_bus::{Driver, MemoryRange},
            fs::PageIndex,
            order::Order,
            page::Pfn,
            testing::{hold, with_thread, Checked, Random},
        },
        tests::helpers::*,
    };
    use core::cell::Cell;
    use kernel::{
        prelude::*,
        str::CString,
        sync::Arc, //
    };

    const PMD: usize = Order::PMD.pages();
    const PUD: usize = Order::PUD.pages();
    const GIB: usize = Order::PUD.bytes();
    const MIB2: usize = Order::PMD.bytes();
    const KIB4: usize = Order::PTE.bytes();

    fn range(index: usize, pfn: usize, pages: usize) -> MemoryRange {
        MemoryRange {
            index: PageIndex::new(index),
            pfn: Pfn::from_bits(pfn),
            pages,
        }
    }

    fn device(ranges: &[MemoryRange], align: usize) -> Checked<Arc<DevDax>> {
        let mut list = KVec::new();
        list.extend_from_slice(ranges, GFP_KERNEL)?;
        let name = CString::try_from(c"test")?;
        Ok(Arc::pin_init(DevDax::new(name, list, align), GFP_KERNEL)?)
    }

    #[test]
    fn folios_are_the_largest_that_all_extents_and_the_alignment_allow() -> Checked {
        let order = |ranges: &[MemoryRange], align| folio_order(ranges, align);
        check_eq!(order(&[range(0, 0, PUD)], GIB), Some(Order::PUD));
        check_eq!(order(&[range(0, 0, PUD)], GIB - 1), Some(Order::PMD));
        check_eq!(order(&[range(0, 0, PUD)], MIB2), Some(Order::PMD));
        check_eq!(order(&[range(0, 0, PUD)], KIB4), Some(Order::PTE));
        check_eq!(order(&[range(0, PMD, PUD)], GIB), Some(Order::PMD));
        check_eq!(order(&[range(0, 1, PUD)], GIB), Some(Order::PTE));
        check_eq!(order(&[range(0, 0, PUD + PMD)], GIB), Some(Order::PMD));
        check_eq!(order(&[range(0, 0, PUD + 1)], GIB), Some(Order::PTE));
        let two = [range(0, 0, PUD), range(PUD, 5 * PUD + PMD, PMD)];
        check_eq!(order(&two, GIB), Some(Order::PMD));
        check_eq!(order(&[], GIB), None);
        check_eq!(order(&[range(0, 0, PUD), range(PUD, PUD, 0)], GIB), None);
        Ok(())
    }

    #[test]
    fn a_page_is_located_in_its_extent() -> Checked {
        let ranges = [range(0, 1000, 10), range(10, 5000, 20)];
        let pfn = |index| {
            locate(&ranges, PageIndex::new(index))
                .map(|(range, pfn)| (range.index.get(), pfn.to_bits()))
        };
        check_eq!(pfn(0), Some((0, 1000)));
        check_eq!(pfn(9), Some((0, 1009)));
        check_eq!(pfn(10), Some((10, 5000)));
        check_eq!(pfn(29), Some((10, 5019)));
        check_eq!(pfn(30), None);
        check_eq!(pfn(usize::MAX), None);
        Ok(())
    }

    #[test]
    fn a_folio_is_at_one_place_whoever_maps_it() -> Checked {
        // 4 folios of 2 MiB, from page 77 of the device on.
        let (head, index) = (6 * PMD, 77 + 2 * PMD);
        let place = |page: usize, address: usize| FaultAddress {
            address,
            index: PageIndex::new(index + page),
        };
        let address = |page: usize| (1 << 40) + page * KIB4;
        for page in [0, 1, 5, PMD - 1] {
            let begin = |order, first, place: &FaultAddress| {
                begin_of(Pfn::from_bits(head), order, place, Pfn::from_bits(first)).get()
            };
            check_eq!(begin(Order::PMD, head, &place(page, address(page))), index);
            for skew in [0, 1, 300] {
                let small = place(page, address(page + skew));
                check_eq!(begin(Order::PTE, head + page, &small), index);
            }
        }
        Ok(())
    }

    #[test]
    fn an_entry_maps_its_frames_at_its_place_or_not_at_all() -> Checked {
        let mut random = Random::new(0x0063_686f_6f73_6500);
        let mut chosen = 0;
        for _ in 0..20_000 {
            // Two ranges, aligned to 2 MiB more often than not.
            let aligned = |random: &mut Random| {
                let pages = random.below(6 * PMD) + 1;
                if random.below(3) == 0 {
                    pages
                } else {
                    pages.next_multiple_of(PMD)
                }
            };
            let (first, second) = (aligned(&mut random), aligned(&mut random));
            let base = aligned(&mut random);
            let ranges = [
                range(0, base, first),
                range(first, base + 100 * PMD + aligned(&mut random), second),
            ];
            let index = random.below(first + second + 3);
            let address = (1 << 40) + random.below(64 * PMD) * KIB4;
            let covers = random.below(4) != 0;
            let place = FaultAddress {
                address: if random.below(2) == 0 {
                    // Where it fits.
                    locate(&ranges, PageIndex::new(index))
                        .map_or(address, |(_, pfn)| (1 << 40) + (pfn.to_bits() % PMD) * KIB4)
                } else {
                    address
                },
                index: PageIndex::new(index),
            };
            let located = locate(&ranges, place.index);
            let small = choose(&ranges, Order::PTE, &place, || false);
            check!(small.ok() == located.map(|(_, pfn)| pfn));
            match choose(&ranges, Order::PMD, &place, || covers) {
                Ok(pfn) => {
                    chosen += 1;
                    let Some((range, own)) = located else {
                        return Err(crate::kern::testing::failed(
                            file!(),
                            line!(),
                            fmt!("a frame past the end"),
                        ));
                    };
                    check!(covers);
                    check!(pfn.is_aligned(Order::PMD));
                    // The faulting address sees the page that it would see alone.
                    let into = (place.address / KIB4) % PMD;
                    check_eq!(pfn.to_bits() + into, own.to_bits());
                    check!(pfn.to_bits() >= range.pfn.to_bits());
                    check!(
                        pfn.to_bits() + PMD <= range.pfn.to_bits() + range.pages,
                        "frames of others"
                    );
                }
                Err(reason) => {
                    let is = |counter: Counter| reason as usize == counter as usize;
                    let agrees = located.is_some_and(|(_, pfn)| {
                        (place.address / KIB4) % PMD == pfn.to_bits() % PMD
                    });
                    check!(
                        is(Counter::FallbackEof)
                            || is(Counter::FallbackAlignment) && !agrees
                            || is(Counter::FallbackVma) && agrees && !covers
                    );
                }
            }
        }
        check!(chosen > 1000, "{chosen}");
        Ok(())
    }

    #[test]
    fn only_orders_of_the_device_are_tried() -> Checked {
        let device = device(&[range(0, 0, 2 * PMD)], MIB2)?;
        check_eq!(device.order(), Order::PMD);
        check_eq!(device.order_of_level(0), Some(Order::PTE));
        check_eq!(device.order_of_level(9), Some(Order::PMD));
        check_eq!(device.order_of_level(18), None);
        check_eq!(device.order_of_level(4), None);
        Ok(())
    }

    #[test]
    fn what_the_device_does_not_have_is_not_mapped() -> Checked {
        let device = device(&[range(0, 0, 2 * PMD)], MIB2)?;
        check_eq!(device.check_mapping(true, at(0)), Ok(()));
        check_eq!(device.check_mapping(true, at(2 * PMD - 1)), Ok(()));
        check_eq!(device.check_mapping(true, at(2 * PMD)), Err(EINVAL));
        check_eq!(device.check_mapping(false, at(0)), Err(EINVAL));
        Ok(())
    }

    #[test]
    fn an_address_is_chosen_for_the_largest_entries() -> Checked {
        // The device's memory begins in the middle of what an entry maps.
        let device = device(&[range(0, 3 * PMD, 8 * PMD)], MIB2)?;
        let mut random = Random::new(0x6164_6472);
        for round in 0..1000 {
            let start = (1 << 40) + random.below(1 << 20) * KIB4;
            let len = match round % 8 {
                0 => MIB2,
                1 => MIB2 - KIB4,
                _ => (random.below(4 * PMD) + 1) * KIB4,
            };
            let index = random.below(4 * PMD);
            let asked = Cell::new(0);
            let search = |address: usize, padded: usize| {
                asked.set(padded);
                // A free range begins somewhere.
                if address == 0 {
                    Ok(start)
                } else {
                    Err(padded)
                }
            };
            let address = device.choose_address(0, len, at(index), search);
            check!(address >= start && address < start + MIB2);
            check!(
                address + len <= start + asked.get(),
                "not all of it is free"
            );
            if len >= MIB2 {
                check_eq!((address / KIB4) % PMD, index % PMD);
            } else {
                check_eq!(address, start);
            }
        }
        // The user's word is searched for; an error is the user's.
        let address = device.choose_address(77 * KIB4, MIB2, at(0), |address, _| Ok(address));
        check_eq!(address, 77 * KIB4);
        check_eq!(device.choose_address(0, MIB2, at(0), |_, _| Err(13)), 13);
        // A length that no address space has.
        let address = device.choose_address(0, usize::MAX, at(0), |_, len| Err(len));
        check_eq!(address, usize::MAX);
        Ok(())
    }

    #[test]
    fn bad_memory_is_found_where_it_is_in_the_device() -> Checked {
        let device = device(&[range(0, 1 << 20, PMD), range(PMD, 1 << 30, PMD)], MIB2)?;
        let mark = |pfn| device.mark_poisoned(Pfn::from_bits(pfn));
        check_eq!(mark((1 << 20) + 3), Ok(at(3)));
        check_eq!(mark((1 << 30) + 5), Ok(at(PMD + 5)));
        check_eq!(mark((1 << 30) + 5), Ok(at(PMD + 5)));
        check_eq!(mark((1 << 20) - 1), Err(ENXIO));
        check_eq!(mark((1 << 20) + PMD), Err(ENXIO));
        // Only what has a bad page in it is bad.
        let is_bad = |pfn, order| device.is_poisoned(Pfn::from_bits(pfn), order);
        for page in 0..8 {
            check_eq!(
                is_bad((1 << 20) + page, Order::PTE),
                page == 3,
                "page {page}"
            );
        }
        for first in [0, 1, 2, 3, 4, 512] {
            let two = is_bad((1 << 20) + first, Order::from_bits(1));
            check_eq!(two, first == 2 || first == 3, "2 from {first}");
            let many = is_bad((1 << 20) + first, Order::PMD);
            check_eq!(many, first <= 3, "512 from {first}");
        }
        check!(!is_bad((1 << 20) - PMD + 3, Order::PMD));
        check!(is_bad((1 << 20) - PMD + 4, Order::PMD));
        check!(is_bad(1 << 30, Order::PMD) && !is_bad((1 << 30) + 6, Order::PMD));
        Ok(())
    }

    #[test]
    fn unbinding_waits_until_no_page_is_referenced() -> Checked {
        let world = world()?;
        let place = world.take_many(2 * PMD, Order::PMD)?;
        let device = device(&[range(0, world.pfn(place).to_bits(), 2 * PMD)], KIB4)?;
        let memory = [world.run(place, 2 * PMD)].into_iter();
        device.wait_until_idle(0, memory.clone());
        // Idle is one reference here: the page map's.
        let last = world.page(place + 2 * PMD - 1).folio();
        let own = hold(last);
        device.wait_until_idle(0, memory.clone());
        let pin = hold(last);
        let ((), waited) = with_thread(
            || device.wait_until_idle(0, memory.clone()),
            |thread| {
                let waited = thread.waits();
                thread.signal(true);
                let still = thread.waits();
                drop(pin);
                waited && still
            },
        )?;
        check!(waited);
        drop(own);
        world.check_clean()
    }

    #[test]
    fn a_device_without_memory_is_refused() -> Checked {
        let mut list = KVec::new();
        list.push(range(0, 0, 0), GFP_KERNEL)?;
        let name = CString::try_from(c"test")?;
        let result = Arc::pin_init(DevDax::new(name, list, MIB2), GFP_KERNEL);
        check_eq!(result.err(), Some(ENXIO));
        Ok(())
    }
}
