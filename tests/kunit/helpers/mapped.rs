// SPDX-License-Identifier: GPL-2.0

//! Checks for the tests of faults that map several pages.

use crate::{
    kern::{
        order::Order,
        testing::{Checked, File, View},
        xa::Mark,
    },
    tests::helpers::*,
};

pub(crate) fn order(bits: usize) -> Order {
    Order::from_bits(bits)
}

/// The pages of most files here: some blocks of 16.
pub(crate) const PAGES: usize = 64;

/// Which pages of a file a view has mapped.
pub(crate) fn maps(view: &View<'_>, first: usize, pages: usize) -> u64 {
    pages_with(first + pages, |page| {
        page >= first && view.mapped(page).is_some()
    })
}

/// Which of the first pages it has mapped to be written to.
pub(crate) fn writable(view: &View<'_>) -> u64 {
    pages_with(PAGES, |page| {
        view.mapped(page).is_some_and(|mapped| mapped.writable)
    })
}

pub(crate) fn dirty(file: &File<'_>) -> u64 {
    marked_pages(file, PAGES, Mark::Dirty)
}

/// The invariants at rest of a file that only this view maps and whose memory begins at a
/// place: R1, R4, R5, and that each page is the right one.
pub(crate) fn check_sound(file: &File<'_>, view: &View<'_>, pages: usize, place: usize) -> Checked {
    let world = file.world();
    for page in 0..pages {
        let mapped = view.mapped(page);
        let Some((entry, locked)) = look(file, page) else {
            check!(mapped.is_none(), "page {page} is mapped without an entry");
            continue;
        };
        check!(!locked, "page {page} is locked");
        let writable = mapped.is_some_and(|mapped| mapped.writable);
        check!(
            !writable || is_marked(file, page, Mark::Dirty),
            "page {page} can be written to and is not dirty"
        );
        let Some(block) = entry.block() else {
            continue;
        };
        let first = entry.order().first(at(page)).get();
        let last = entry.order().last(at(page)).get();
        check!(
            block.pfn() == world.pfn(place + first),
            "page {page} lies elsewhere"
        );
        check!(mapped.is_none_or(|mapped| mapped.pfn == world.pfn(place + page).to_bits()));
        let folio = world.page(place + page).folio();
        check!(folio.head() == world.page(place + first));
        check_eq!(folio.order(), entry.order(), "page {page}");
        let users = (first..=last)
            .filter(|page| view.mapped(*page).is_some())
            .count() as i32;
        check_eq!(
            (folio.refcount(), folio.mapcount()),
            (users, users),
            "page {page}"
        );
    }
    Ok(())
}
