// SPDX-License-Identifier: GPL-2.0

//! Folios that somebody holds when their last entry goes, or when others need their pages (spec, section 2).

use kernel::prelude::*;

#[kunit_tests(rdax_held)]
mod tests {
    use crate::{
        dax::folio::{self, AssociateError},
        kern::{
            order::Order,
            page::{DevPage, FolioRef, GiganticLock},
            testing::{hold, with_thread, with_thread_waiting, Checked, File},
        },
        tests::helpers::{folios::*, *},
    };
    use kernel::prelude::*;

    /// Nobody is waited for who holds the pages, as whoever associates them has an entry locked; they
    /// can be had when `held` is let go.
    fn associate_held(
        page: DevPage<'_>,
        order: Order,
        file: &File<'_>,
        index: usize,
        held: FolioRef,
    ) -> Checked {
        let folio = held.folio();
        let whole = folio.order();
        let result = associate_block(
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
            disassociate(page);
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
            disassociate(inside);
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
            disassociate(place.page(1));
            check_free(place.page(0), place.order)
        })
    }

    #[test]
    fn a_small_held_page_is_in_the_way_of_a_large_folio() -> Checked {
        for_each_larger_order(|place| {
            for which in [place.last(), 0] {
                let small = place.page(which);
                associate(small, Order::PTE, &place.a, which)?;
                let held = hold(small.folio());
                disassociate(small);
                associate_held(place.page(0), place.order, &place.b, 0, held)?;
                disassociate(place.page(0));
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
            || disassociate(page),
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
        disassociate(page);
        check_free(page, order)?;
        world.check_clean()
    }

    #[test]
    fn the_first_page_that_is_held_without_an_owner_is_noticed() -> Checked {
        for_the_first_time(|[page, small], [a, b]| {
            associate(small, Order::PTE, a, 0)?;
            let held = hold(small.folio());
            disassociate(small);
            associate_held(page, Order::PMD, b, 0, held)?;
            disassociate(page);
            Ok(())
        })
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
            // The rest, when the last entry is gone.
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
