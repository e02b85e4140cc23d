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
            page::{DevFolio, DevPage, FolioRef, GiganticLock, Region},
            testing::{
                hold, is_free, page_behind, page_bits, skip, with_thread, with_thread_waiting,
                with_threads, Checked, CoreFolio, File, Random, World,
            },
        },
        tests::helpers::*,
    };
    use kernel::prelude::*;

    const ORDERS: [usize; 10] = [0, 2, 3, 4, 5, 6, 7, 8, 9, 18];

    /// Pages of the device for a folio of one order, and two files that it may be in.
    struct Fixture<'w> {
        world: &'w World,
        order: Order,
        first: usize,
        a: File<'w>,
        b: File<'w>,
    }

    impl Fixture<'_> {
        fn page(&self, offset: usize) -> DevPage {
            self.world.page(self.first + offset)
        }

        /// The offset of the last page.
        fn last(&self) -> usize {
            self.order.pages() - 1
        }

        /// Makes them a folio of the first file, which is held when it loses its only entry.
        fn left_whole(&self) -> Checked<FolioRef> {
            associate(self.page(0), self.order, &self.a, 0)?;
            let held = hold(self.page(0).folio());
            folio::disassociate(self.page(0));
            Ok(held)
        }
    }

    /// Does something for every order, with pages of the device for each. The largest one is left
    /// out on a device that is too small for it.
    fn for_each_order(work: impl Fn(&Fixture<'_>) -> Checked) -> Checked {
        for order in ORDERS {
            let order = Order::from_bits(order);
            let world = world()?;
            if let Some(first) = place_of(&world, order) {
                work(&Fixture {
                    world: &world,
                    order,
                    first,
                    a: world.file(order.pages())?,
                    b: world.file(order.pages())?,
                })?;
            }
            world.check_clean()?;
        }
        Ok(())
    }

    /// The same without that of a single page.
    fn for_each_larger_order(work: impl Fn(&Fixture<'_>) -> Checked) -> Checked {
        for_each_order(|place| match place.order {
            Order::PTE => Ok(()),
            _ => work(place),
        })
    }

    /// Nobody is waited for who holds the pages, as whoever associates them has an entry locked; they
    /// can be had when `held` is let go.
    fn associate_held(
        page: DevPage,
        order: Order,
        file: &File<'_>,
        index: usize,
        held: FolioRef,
    ) -> Checked {
        let folio = held.folio();
        let whole = folio.order();
        let result = folio::associate(
            file.world().block_of(page, order),
            file.mapping(),
            at(index),
            false,
        );
        check_eq!(result, Err(AssociateError::Held(folio)), "{order:?}");
        check_eq!((folio.order(), folio.refcount()), (whole, 1), "{order:?}");
        check_eq!((folio.owner(), folio.share()), (0, 0), "{order:?}");
        drop(held);
        associate(page, order, file, index)?;
        check_whole(page, order)
    }

    fn associate(page: DevPage, order: Order, file: &File<'_>, index: usize) -> Checked {
        associate_as(page, order, file, index, false)
    }

    fn associate_as(
        page: DevPage,
        order: Order,
        file: &File<'_>,
        index: usize,
        shared: bool,
    ) -> Checked {
        folio::associate(
            file.world().block_of(page, order),
            file.mapping(),
            at(index),
            shared,
        )
        .map_err(|error| {
            crate::kern::testing::failed(file!(), line!(), fmt!("associate: {error:?}"))
        })
    }

    /// All pages of the folio know it, and nobody refers to it (R1).
    fn check_whole(head: DevPage, order: Order) -> Checked {
        let folio = head.folio();
        check!(folio.head() == head);
        check_eq!(folio.order(), order);
        check_eq!(folio.refcount(), 0);
        check_eq!(folio.mapcount(), 0);
        for offset in 1..order.pages() {
            let page = folio.block().nth(offset);
            check!(page.folio() == folio, "page {offset} of order {order:?}");
        }
        Ok(())
    }

    fn check_free(first: DevPage, order: Order) -> Checked {
        for offset in 0..order.pages() {
            let page = page_behind(first, offset);
            check!(is_free(page), "page {offset} of order {order:?}");
        }
        Ok(())
    }

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
            folio::disassociate(page);
            check_free(page, order)
        })
    }

    #[test]
    fn a_free_page_is_word_for_word_as_it_was_before() -> Checked {
        for_each_order(|place| {
            let (page, order) = (place.page(0), place.order);
            // Once, for what the pages never were used for.
            associate(page, order, &place.a, 0)?;
            folio::disassociate(page);
            let mut before = KVVec::new();
            for offset in 0..order.pages() {
                let bits = page_bits(place.page(offset));
                // The folio's order is where a page of its own has some flags.
                check!(offset != 1 || bits[0] & 0xff == 0, "{order:?} is kept");
                before.push(bits, GFP_KERNEL)?;
            }
            associate(page, order, &place.a, 0)?;
            folio::disassociate(page);
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
            let bits = |page: DevPage, offset| page_bits(page.folio().block().nth(offset));

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
            let list = |page: DevPage| {
                let third = page.folio().block().nth(2).as_ptr() as usize;
                let bits = bits(page, 2);
                (2..4).all(|word| bits[word].wrapping_sub(third) < 64)
            };
            check_eq!(list(ours), list(theirs));

            for offset in 1..order.pages() {
                let (our, their) = (bits(ours, offset), bits(theirs, offset));
                let head_of = |info: usize, head: DevPage, offset| {
                    let page = head.folio().block().nth(offset).as_ptr() as usize;
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
            folio::disassociate(ours);
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
                folio::disassociate(page);
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
            let again = folio::associate(
                file.world().block_of(page, order),
                file.mapping(),
                at(order.pages()),
                false,
            );
            check_eq!(again, Err(AssociateError::Owned));
            check_whole(page, order)?;
            check_eq!(page.folio().owner(), file.mapping().key());
            check_eq!(page.folio().index(), at(0));
            folio::disassociate(page);
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
            folio::disassociate(page);
            check_whole(page, order)?;
            check_eq!(page.folio().share(), 1);
            folio::disassociate(inside);
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
                    folio::associate(b.world().block_of(page, order), b.mapping(), at(0), true);
                check_eq!(large, Err(AssociateError::Smaller), "offset {offset}");
                check_whole(small, Order::PTE)?;
                check_eq!(small.folio().owner(), a.mapping().key());
                folio::disassociate(small);
                check_free(page, order)?;
            }
            Ok(())
        })
    }

    #[test]
    fn the_last_entry_gone_a_held_folio_stays_whole_and_is_taken_over() -> Checked {
        for_each_order(|place| {
            let (page, order, b) = (place.page(0), place.order, &place.b);
            let held = place.left_whole()?;
            let folio = page.folio();
            check_eq!(folio.order(), order);
            check_eq!(folio.refcount(), 1);
            check_eq!(folio.owner(), 0);
            check_eq!(folio.share(), 0);
            // At the same place and of the same order: as it is, reference and all.
            associate(page, order, b, 0)?;
            check_eq!(folio.owner(), b.mapping().key());
            check_eq!(folio.refcount(), 1);
            drop(held);
            check_whole(page, order)?;
            folio::disassociate(page);
            check_free(page, order)
        })
    }

    #[test]
    fn a_folio_left_whole_is_taken_apart_when_it_is_idle() -> Checked {
        for_each_order(|place| {
            drop(place.left_whole()?);
            // Another order, or another place: the pages are taken from it.
            let inside = place.page(place.last());
            associate(inside, Order::PTE, &place.b, place.last())?;
            check_whole(inside, Order::PTE)?;
            folio::disassociate(inside);
            check_free(place.page(0), place.order)
        })
    }

    #[test]
    fn a_device_is_given_back_without_folios_and_when_nobody_holds_one() -> Checked {
        for_each_larger_order(|place| {
            let held = place.left_whole()?;
            let busy = release_now();
            drop(held);
            check!(busy == Err(EBUSY));
            check!(is_adopted()?);
            check_whole(place.page(0), place.order)?;
            release()?;
            let free = check_free(place.page(0), place.order);
            adopt()?;
            free
        })
    }

    #[test]
    fn who_needs_pages_of_a_held_folio_is_told_of_it() -> Checked {
        for_each_larger_order(|place| {
            let held = place.left_whole()?;
            associate_held(place.page(1), Order::PTE, &place.b, 1, held)?;
            folio::disassociate(place.page(1));
            check_free(place.page(0), place.order)
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
            folio::disassociate(page);
            drop(held);
            check_eq!(other.folio().order(), Order::PMD);
            let (associated, dissolved) = contend(
                || Region::lock(page),
                || {
                    folio::associate(
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
            folio::disassociate(other);
            check_free(page, Order::PMD)?;
        }
        world.check_clean()
    }

    #[test]
    fn a_small_held_page_is_in_the_way_of_a_large_folio() -> Checked {
        for_each_larger_order(|place| {
            for which in [place.last(), 0] {
                let small = place.page(which);
                associate(small, Order::PTE, &place.a, which)?;
                let held = hold(small.folio());
                folio::disassociate(small);
                associate_held(place.page(0), place.order, &place.b, 0, held)?;
                folio::disassociate(place.page(0));
            }
            Ok(())
        })
    }

    #[test]
    fn a_giant_folio_that_is_held_in_the_last_moment_stays_whole() -> Checked {
        let world = world()?;
        let order = Order::PUD;
        let Some(place) = place_of(&world, order) else {
            return Ok(());
        };
        let (file, page) = (world.file(order.pages())?, world.page(place));
        associate(page, order, &file, 0)?;
        let gigantic = GiganticLock::lock();
        let ((), (waited, held)) = with_thread(
            || folio::disassociate(page),
            |thread| {
                // It has seen that nobody holds the folio, and waits to take it apart.
                let waited = thread.waits();
                let held = hold(page.folio());
                drop(gigantic);
                (waited, held)
            },
        )?;
        check!(waited);
        check_eq!(page.folio().order(), order);
        check_eq!(page.folio().refcount(), 1);
        drop(held);
        associate(page, order, &file, 0)?;
        folio::disassociate(page);
        check_free(page, order)?;
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
                folio::associate_free(
                    &mut Region::lock(page),
                    world.block(place, order),
                    b.mapping(),
                    at(0),
                )
            };
            associate(page, order, &a, 0)?;
            check!(!take(), "{order:?} of another file");
            check_eq!(page.folio().owner(), a.mapping().key());
            associate_as(page, order, &b, 0, true)?;
            check!(!take(), "{order:?} that is shared");
            check_eq!(page.folio().share(), 2);
            folio::disassociate(page);
            folio::disassociate(page);
            check!(take(), "{order:?} that is free");
            check_eq!(page.folio().owner(), b.mapping().key());
            folio::disassociate(page);
            check_free(page, order)?;
            world.check_clean()?;
        }
        Ok(())
    }

    /// Runs a test as if it were the first one that has folios which are in use and have no owner.
    /// The test gets 2 MiB, a page of these, and two files.
    fn for_the_first_time(work: impl Fn([DevPage; 2], [&File<'_>; 2]) -> Checked) -> Checked {
        let world = world()?;
        let order = Order::PMD;
        let place = world.take(order)?;
        let (a, b) = (world.file(order.pages())?, world.file(order.pages())?);
        // Nothing is left of others.
        associate(world.page(place), order, &a, 0)?;
        folio::disassociate(world.page(place));
        folio::set_without_owner(false);
        let result = work([place, place + 100].map(|at| world.page(at)), [&a, &b]);
        // Elsewhere there may be some.
        folio::set_without_owner(true);
        result?;
        world.check_clean()
    }

    #[test]
    fn the_first_page_that_is_held_without_an_owner_is_noticed() -> Checked {
        for_the_first_time(|[page, small], [a, b]| {
            associate(small, Order::PTE, a, 0)?;
            let held = hold(small.folio());
            folio::disassociate(small);
            associate_held(page, Order::PMD, b, 0, held)?;
            folio::disassociate(page);
            Ok(())
        })
    }

    #[test]
    fn the_first_page_that_is_shared_is_noticed() -> Checked {
        for_the_first_time(|[page, small], [a, b]| {
            associate(small, Order::PTE, a, 0)?;
            associate_as(small, Order::PTE, b, 0, true)?;
            let result = folio::associate(
                b.world().block_of(page, Order::PMD),
                b.mapping(),
                at(0),
                false,
            );
            check_eq!(result, Err(AssociateError::Smaller));
            folio::disassociate(small);
            folio::disassociate(small);
            Ok(())
        })
    }

    #[test]
    fn disassociating_what_is_free_changes_nothing() -> Checked {
        let world = world()?;
        let place = world.take(Order::PTE)?;
        let before = page_bits(world.page(place));
        folio::disassociate(world.page(place));
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
                match folio::associate(
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
                        folio::disassociate(page);
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
        // What was held when its last entry went was left whole.
        let page = world.page(place);
        associate(page, Order::PMD, &files[0], 0)?;
        folio::disassociate(page);
        check_free(page, Order::PMD)?;
        world.check_clean()
    }

    #[test]
    fn pages_of_1_gib_can_be_tested() -> Checked {
        let world = world()?;
        if world.try_take(Order::PUD.pages(), Order::PUD).is_none() {
            skip(c"the device has no aligned GiB");
        }
        let _: fn(DevFolio) -> Order = DevFolio::order;
        Ok(())
    }

    #[test]
    fn memory_that_goes_is_waited_for_wherever_it_is_in_use() -> Checked {
        let world = world()?;
        for order in [Order::PTE, Order::from_bits(4), Order::PMD, Order::PUD] {
            let Some(place) = place_of(&world, order) else {
                continue;
            };
            let file = world.file(order.pages())?;
            let memory = [world.run(place, order.pages())];
            // An entry, whoever removes it.
            put(&file, 0, order, place, false)?;
            let ((), waited) =
                with_thread_waiting(|| folio::wait_until_unused(&memory), || clear(&file))?;
            check!(waited, "{}", order.bits());
            // What is left when the last entry went.
            put(&file, 0, order, place, false)?;
            let held = hold(world.page(place).folio());
            clear(&file);
            let ((), waited) =
                with_thread_waiting(|| folio::wait_until_unused(&memory), || drop(held))?;
            check!(waited, "{}", order.bits());
            check_eq!(world.page(place).folio().order(), Order::PTE);
            // The last page by itself.
            let last = place + order.pages() - 1;
            let held = hold(world.page(last).folio());
            let ((), waited) =
                with_thread_waiting(|| folio::wait_until_unused(&memory), || drop(held))?;
            check!(waited, "{}", order.bits());
            folio::wait_until_unused(&memory);
        }
        world.check_clean()
    }
}
