// SPDX-License-Identifier: GPL-2.0

//! Folios of every order, and two files that they may be in.

use crate::{
    kern::{
        order::Order,
        page::{self, DevPage, FolioRef},
        testing::{hold, is_free, page_behind, Checked, File, World},
    },
    tests::helpers::*,
};
use kernel::prelude::*;

pub(crate) const ORDERS: [usize; 10] = [0, 2, 3, 4, 5, 6, 7, 8, 9, 18];

/// Pages of the device for a folio of one order, and two files that it may be in.
pub(crate) struct Fixture<'w> {
    pub(crate) world: &'w World,
    pub(crate) order: Order,
    pub(crate) first: usize,
    pub(crate) a: File<'w>,
    pub(crate) b: File<'w>,
}

impl Fixture<'_> {
    pub(crate) fn page(&self, offset: usize) -> DevPage<'_> {
        self.world.page(self.first + offset)
    }

    /// The offset of the last page.
    pub(crate) fn last(&self) -> usize {
        self.order.pages() - 1
    }

    /// Makes them a folio of the first file, which is held when it loses its only entry.
    pub(crate) fn left_whole(&self) -> Checked<FolioRef> {
        associate(self.page(0), self.order, &self.a, 0)?;
        let held = hold(self.page(0).folio());
        disassociate(self.page(0));
        Ok(held)
    }
}

/// Does something for every order, with pages of the device for each. The largest one is left
/// out on a device that is too small for it.
pub(crate) fn for_each_order(work: impl Fn(&Fixture<'_>) -> Checked) -> Checked {
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
pub(crate) fn for_each_larger_order(work: impl Fn(&Fixture<'_>) -> Checked) -> Checked {
    for_each_order(|place| match place.order {
        Order::PTE => Ok(()),
        _ => work(place),
    })
}

pub(crate) fn associate(page: DevPage<'_>, order: Order, file: &File<'_>, index: usize) -> Checked {
    associate_as(page, order, file, index, false)
}

pub(crate) fn associate_as(
    page: DevPage<'_>,
    order: Order,
    file: &File<'_>,
    index: usize,
    shared: bool,
) -> Checked {
    associate_block(
        file.world().block_of(page, order),
        file.mapping(),
        at(index),
        shared,
    )
    .map_err(|error| crate::kern::testing::failed(file!(), line!(), fmt!("associate: {error:?}")))
}

/// All pages of the folio know it, and nobody refers to it (R1).
pub(crate) fn check_whole(head: DevPage<'_>, order: Order) -> Checked {
    let folio = head.folio();
    check!(folio.head() == head);
    check_eq!(folio.order(), order);
    check_eq!(folio.refcount(), 0);
    check_eq!(folio.mapcount(), 0);
    for offset in 1..order.pages() {
        let page = folio.block_of_test().nth(offset);
        check!(page.folio() == folio, "page {offset} of order {order:?}");
    }
    Ok(())
}

pub(crate) fn check_free(first: DevPage<'_>, order: Order) -> Checked {
    for offset in 0..order.pages() {
        let page = page_behind(first, offset);
        check!(is_free(page), "page {offset} of order {order:?}");
    }
    Ok(())
}

/// Runs a test as if it were the first one that has folios which are in use and have no owner.
/// The test gets 2 MiB, a page of these, and two files.
pub(crate) fn for_the_first_time(
    work: impl Fn([DevPage<'_>; 2], [&File<'_>; 2]) -> Checked,
) -> Checked {
    let world = world()?;
    let order = Order::PMD;
    let place = world.take(order)?;
    let (a, b) = (world.file(order.pages())?, world.file(order.pages())?);
    // Nothing is left of others.
    associate(world.page(place), order, &a, 0)?;
    disassociate(world.page(place));
    page::set_without_owner(false);
    let result = work([place, place + 100].map(|at| world.page(at)), [&a, &b]);
    // Elsewhere there may be some.
    page::set_without_owner(true);
    result?;
    world.check_clean()
}
