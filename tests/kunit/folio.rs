// SPDX-License-Identifier: GPL-2.0

//! The folio's life: free, associated, shared, free again (spec, section 2).

use kernel::prelude::*;

#[kunit_tests(rdax_folio)]
mod tests {
    use crate::{
        dax::folio::{self, AssociateError},
        kern::{
            fs::PageIndex,
            order::Order,
            page::{DevFolio, DevPage, EntryMemory, Region},
            testing::{failed, hold, page_bits, skip, with_threads, Checked, CoreFolio, Random},
        },
        tests::helpers::{folios::*, *},
    };
    use core::mem;
    use kernel::prelude::*;

    #[test]
    fn associated_is_whole_and_owned_then_free_again() -> Checked {
        for_each_order(|place| {
            let (page, order) = (place.page(0), place.order);
            check_free(page, order)?;
            associate(page, order, &place.a, 0)?;
            check_whole(page, order)?;
            let folio = page.folio();
            check_eq!(folio.owner(), place.a.mapping().key());
            check_eq!(folio.index(), PageIndex::new(0));
            disassociate(page);
            check_free(page, order)
        })
    }

    #[test]
    fn a_free_page_is_word_for_word_as_it_was_before() -> Checked {
        for_each_order(|place| {
            let (page, order) = (place.page(0), place.order);
            // Once, for what the pages never were used for.
            associate(page, order, &place.a, 0)?;
            disassociate(page);
            let mut before = KVVec::new();
            for offset in 0..order.pages() {
                let bits = page_bits(place.page(offset));
                // The folio's order is where a page of its own has some flags.
                check!(offset != 1 || bits[0] & 0xff == 0, "{order:?} is kept");
                before.push(bits, GFP_KERNEL)?;
            }
            associate(page, order, &place.a, 0)?;
            disassociate(page);
            for (offset, before) in before.iter().enumerate() {
                let after = page_bits(place.page(offset));
                check_eq!(after, *before, "page {offset} of order {order:?}");
            }
            Ok(())
        })
    }

    #[test]
    fn what_the_core_reads_of_a_folio_is_as_in_one_of_its_own() -> Checked {
        // Words of `struct page`.
        const FLAGS: usize = 0;
        const INFO: usize = 1;
        const MAPPING: usize = 3;
        const COUNTS: usize = 6;
        const EXTRA: usize = 7;
        const HEAD: usize = 1 << crate::kern::bindings::pageflags_PG_head;
        const ORDER: usize = 0xff;
        for_each_larger_order(|place| {
            let (ours, order) = (place.page(0), place.order);
            if order > Order::PMD {
                return Ok(());
            }
            associate(ours, order, &place.a, 0)?;
            let core = CoreFolio::new(order)?;
            let theirs = core.folio().head();
            let bits =
                |page: DevPage<'_>, offset| page_bits(page.folio().block_of_test().nth(offset));

            let (our, their) = (bits(ours, 0), bits(theirs, 0));
            check_eq!(our[FLAGS] & HEAD, their[FLAGS] & HEAD);
            // The map count is the lower half; the core's folio has a reference.
            check_eq!(our[COUNTS] as u32, their[COUNTS] as u32);
            check_eq!(our[COUNTS] >> 32, 0);

            let (our, their) = (bits(ours, 1), bits(theirs, 1));
            check_eq!(our[FLAGS] & ORDER, their[FLAGS] & ORDER);
            for word in [2, 3, 4, 5, COUNTS, EXTRA] {
                check_eq!(our[word], their[word], "word {word} of page 1, {order:?}");
            }
            let list = |page: DevPage<'_>| {
                let third = page.folio().block_of_test().nth(2).as_ptr() as usize;
                let bits = bits(page, 2);
                (2..4).all(|word| bits[word].wrapping_sub(third) < 64)
            };
            check_eq!(list(ours), list(theirs));

            for offset in 1..order.pages() {
                let (our, their) = (bits(ours, offset), bits(theirs, offset));
                let head_of = |info: usize, head: DevPage<'_>, offset| {
                    let page = head.folio().block_of_test().nth(offset).as_ptr() as usize;
                    info & 1 == 1
                        && (info - 1 == head.as_ptr() as usize
                            || info & page == head.as_ptr() as usize)
                };
                check!(head_of(our[INFO], ours, offset));
                check!(head_of(their[INFO], theirs, offset));
                check_eq!(our[COUNTS], their[COUNTS], "page {offset}, {order:?}");
                if offset > 2 {
                    check_eq!(our[MAPPING], their[MAPPING], "page {offset}, {order:?}");
                }
                check_eq!(our[FLAGS] & HEAD, 0);
            }
            disassociate(ours);
            Ok(())
        })
    }

    #[test]
    fn shared_has_no_owner_and_counts_its_entries() -> Checked {
        const FILES: usize = 5;
        for_each_order(|place| {
            let (page, order, world) = (place.page(0), place.order, place.world);
            let more = [
                world.file(order.pages())?,
                world.file(order.pages())?,
                world.file(order.pages())?,
            ];
            let files: [_; FILES] = [&place.a, &place.b, &more[0], &more[1], &more[2]];
            for (number, file) in files.into_iter().enumerate() {
                associate_as(page, order, file, 0, true)?;
                check_whole(page, order)?;
                let folio = page.folio();
                if number > 0 {
                    check_eq!(folio.owner(), 0);
                    check_eq!(folio.share(), number + 1);
                }
            }
            for left in (0..FILES).rev() {
                disassociate(page);
                if left > 0 {
                    check_whole(page, order)?;
                    check_eq!(page.folio().owner(), 0);
                    check_eq!(page.folio().share(), left);
                }
            }
            check_free(page, order)
        })
    }

    #[test]
    fn a_second_association_that_is_not_shared_is_refused() -> Checked {
        for_each_order(|place| {
            let (page, order, file) = (place.page(0), place.order, &place.a);
            associate(page, order, file, 0)?;
            let again = associate_block(
                file.world().block_of(page, order),
                file.mapping(),
                at(order.pages()),
                false,
            );
            check_eq!(again, Err(AssociateError::Owned));
            check_whole(page, order)?;
            check_eq!(page.folio().owner(), file.mapping().key());
            check_eq!(page.folio().index(), at(0));
            disassociate(page);
            Ok(())
        })
    }

    #[test]
    fn a_smaller_entry_may_point_into_a_shared_folio() -> Checked {
        for_each_order(|place| {
            let (page, order) = (place.page(0), place.order);
            let inside = place.page(place.last());
            associate_as(page, order, &place.a, 0, true)?;
            associate_as(inside, Order::PTE, &place.b, place.last(), true)?;
            check_whole(page, order)?;
            check_eq!(page.folio().owner(), 0);
            check_eq!(page.folio().share(), 2);
            // The larger one goes first, the folio stays for the smaller.
            disassociate(page);
            check_whole(page, order)?;
            check_eq!(page.folio().share(), 1);
            disassociate(inside);
            check_free(page, order)
        })
    }

    #[test]
    fn a_larger_entry_may_not_point_to_smaller_folios() -> Checked {
        for_each_larger_order(|place| {
            let (page, order, a, b) = (place.page(0), place.order, &place.a, &place.b);
            for offset in [0, 1, order.pages() / 2, place.last()] {
                let small = place.page(offset);
                associate_as(small, Order::PTE, a, offset, true)?;
                let large =
                    associate_block(b.world().block_of(page, order), b.mapping(), at(0), true);
                check_eq!(large, Err(AssociateError::Smaller), "offset {offset}");
                check_whole(small, Order::PTE)?;
                check_eq!(small.folio().owner(), a.mapping().key());
                disassociate(small);
                check_free(page, order)?;
            }
            Ok(())
        })
    }

    #[test]
    fn what_folio_a_page_is_of_is_seen_under_the_lock() -> Checked {
        const ROUNDS: usize = 10;
        let world = world()?;
        let place = world.take(Order::PMD)?;
        let (page, other) = (world.page(place), world.page(place + 1));
        let (a, b) = (world.file(2)?, world.file(2)?);
        for _ in 0..ROUNDS {
            // Left whole by the one who had it, and idle.
            associate(page, Order::PMD, &a, 0)?;
            let held = hold(page.folio());
            disassociate(page);
            drop(held);
            check_eq!(other.folio().order(), Order::PMD);
            let (associated, dissolved) = contend(
                || Region::lock(page),
                || {
                    associate_block(
                        b.world().block_of(other, Order::PTE),
                        b.mapping(),
                        at(1),
                        false,
                    )
                },
                |region| region.folio(page).map(|folio| folio.dissolve()),
            )?;
            check_eq!(associated, Ok(()));
            check_eq!(dissolved, Some(true));
            check!(other.folio().head() == other);
            check_eq!(other.folio().owner(), b.mapping().key());
            check_eq!(page.folio().owner(), 0);
            disassociate(other);
            check_free(page, Order::PMD)?;
        }
        world.check_clean()
    }

    #[test]
    fn pages_ahead_are_taken_from_nobody() -> Checked {
        for order in [Order::PTE, Order::from_bits(2)] {
            let world = world()?;
            let place = world.take(Order::PMD)?;
            let (page, pages) = (world.page(place), order.pages());
            let (a, b) = (world.file(pages)?, world.file(pages)?);
            let take = || {
                let block = world.block(place, order).pages();
                let memory = EntryMemory::of_test(block, b.mapping(), at(0));
                let association = Region::lock(page).associate_free(memory);
                association.map(mem::forget).is_some()
            };
            associate(page, order, &a, 0)?;
            check!(!take(), "{order:?} of another file");
            check_eq!(page.folio().owner(), a.mapping().key());
            associate_as(page, order, &b, 0, true)?;
            check!(!take(), "{order:?} that is shared");
            check_eq!(page.folio().share(), 2);
            disassociate(page);
            disassociate(page);
            check!(take(), "{order:?} that is free");
            check_eq!(page.folio().owner(), b.mapping().key());
            disassociate(page);
            check_free(page, order)?;
            world.check_clean()?;
        }
        Ok(())
    }

    #[test]
    fn an_association_is_for_an_entry_of_its_file_with_its_pages() -> Checked {
        for_each_order(|place| {
            let (page, order, world) = (place.page(0), place.order, place.a.world());
            let block = world.block_of(page, order);
            let memory = EntryMemory::of_test(block, place.a.mapping(), at(0));
            let association = folio::associate(memory, false)
                .map_err(|error| failed(file!(), line!(), fmt!("associate: {error:?}")))?;
            check!(association.is_for(place.a.mapping(), block));
            check!(!association.is_for(place.b.mapping(), block));
            check_eq!(
                association.is_for(place.a.mapping(), page.block()),
                order == Order::PTE
            );
            folio::disassociate(association.into());
            check_free(page, order)
        })
    }

    #[test]
    fn the_first_page_that_is_shared_is_noticed() -> Checked {
        for_the_first_time(|[page, small], [a, b]| {
            associate(small, Order::PTE, a, 0)?;
            associate_as(small, Order::PTE, b, 0, true)?;
            let result = associate_block(
                b.world().block_of(page, Order::PMD),
                b.mapping(),
                at(0),
                false,
            );
            check_eq!(result, Err(AssociateError::Smaller));
            disassociate(small);
            disassociate(small);
            Ok(())
        })
    }

    #[test]
    fn disassociating_what_is_free_changes_nothing() -> Checked {
        let world = world()?;
        let place = world.take(Order::PTE)?;
        let before = page_bits(world.page(place));
        disassociate(world.page(place));
        check_eq!(page_bits(world.page(place)), before);
        Ok(())
    }

    #[test]
    fn many_who_share_at_once_leave_everything_free() -> Checked {
        const ROUNDS: usize = 400;
        let world = world()?;
        let place = world.take(Order::PMD)?;
        let files = [
            world.file(Order::PMD.pages())?,
            world.file(Order::PMD.pages())?,
            world.file(Order::PMD.pages())?,
        ];
        let work = |number: usize| -> Checked<usize> {
            let mut random = Random::new(0x0066_6f6c_696f + number as u64);
            let mut done = 0;
            let Some(file) = files.get(number) else {
                return Ok(0);
            };
            for _ in 0..ROUNDS {
                let order = match random.below(3) {
                    0 => Order::PMD,
                    1 => Order::from_bits(4),
                    _ => Order::PTE,
                };
                let index = random.below(Order::PMD.pages()) & !(order.pages() - 1);
                let page = world.page(place + index);
                match associate_block(
                    file.world().block_of(page, order),
                    file.mapping(),
                    at(index),
                    true,
                ) {
                    Ok(()) => {
                        done += 1;
                        let held = (random.below(2) == 0).then(|| hold(page.folio()));
                        if random.below(4) == 0 {
                            crate::kern::vm::cond_resched();
                        }
                        check!(page.folio().order() >= order);
                        disassociate(page);
                        drop(held);
                    }
                    Err(AssociateError::Smaller | AssociateError::Held(_)) => (),
                    Err(error) => check_eq!(error, AssociateError::Smaller),
                }
            }
            Ok(done)
        };
        let (results, ()) = with_threads(3, work, |_| ())?;
        let mut done = 0;
        for result in results {
            done += result?;
        }
        check!(done > ROUNDS, "{done} of {}", 3 * ROUNDS);
        // A folio that was held when its last entry went was left whole.
        let page = world.page(place);
        associate(page, Order::PMD, &files[0], 0)?;
        disassociate(page);
        check_free(page, Order::PMD)?;
        world.check_clean()
    }

    #[test]
    fn pages_of_1_gib_can_be_tested() -> Checked {
        let world = world()?;
        if world.try_take(Order::PUD.pages(), Order::PUD).is_none() {
            skip(c"the device has no aligned GiB");
        }
        let _: fn(DevFolio<'static>) -> Order = DevFolio::order;
        Ok(())
    }
}
