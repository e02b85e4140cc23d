// SPDX-License-Identifier: GPL-2.0

//! The folio's life: free, associated, shared, free again (spec, section 2).
//!
//! Entries hold no reference: a folio's refcount is 0 when nobody uses it (R1). Owners, share
//! counts and sizes change under the lock of the folio's region, which nests inside the tree's.

use crate::kern::{
    fs::{Mapping, PageIndex},
    order::Order,
    page::{DevFolio, DevPage, Region},
    wait::{self, Sleep}, //
};
use kernel::{
    pr_err_once,
    prelude::*, //
};

/// Why an entry could not be associated with its pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum AssociateError {
    /// The pages belong to another entry of the same file, and the filesystem does not say that
    /// they are shared.
    Owned,
    /// Some of the pages are in smaller folios, or in another place of a large one: a smaller
    /// order will do.
    Smaller,
    /// A fatal signal ended the wait for pages that somebody still holds.
    Interrupted,
}

/// What the pages of a new entry are.
enum State {
    /// Associated now.
    Done,
    /// A folio that lost its last entry while somebody held it is in the way.
    Busy(DevFolio),
}

/// Associates the `order` pages from `page` on with an entry at `index` of `mapping` (spec,
/// section 2).
///
/// `shared` is what the filesystem says of the extent. The caller has the entry locked. Sleeps,
/// killable, while somebody holds pages that lost their last entry.
pub(crate) fn associate(
    page: DevPage,
    order: Order,
    mapping: &Mapping,
    index: PageIndex,
    shared: bool,
) -> Result<(), AssociateError> {
    loop {
        match try_associate(page, order, mapping, index, shared)? {
            State::Done => return Ok(()),
            State::Busy(folio) => {
                wait::wait_until_idle(folio, Sleep::Killable)
                    .map_err(|_| AssociateError::Interrupted)?;
            }
        }
    }
}

fn try_associate(
    page: DevPage,
    order: Order,
    mapping: &Mapping,
    index: PageIndex,
    shared: bool,
) -> Result<State, AssociateError> {
    let region = Region::lock(page);
    let folio = page.folio();
    if is_associated(folio) {
        return share(&region, folio, page, order, mapping, shared);
    }
    let size = folio.order();
    if size == order {
        // Free pages of order 0; or what is left of a folio that lost its last entry, and comes in
        // handy as it is. Whoever still holds it keeps its reference.
        if folio.head() == page {
            folio.set_owner(&region, mapping, index);
            return Ok(State::Done);
        }
    }
    if size != Order::PTE {
        // Left whole when its last entry went.
        if folio.refcount() != 0 {
            return Ok(State::Busy(folio));
        }
        folio.take_apart(&region);
        if order == Order::PTE {
            page.folio().set_owner(&region, mapping, index);
            return Ok(State::Done);
        }
    }
    form(&region, page, order, mapping, index)
}

/// Whether at least one entry points to the folio.
#[inline]
fn is_associated(folio: DevFolio) -> bool {
    folio.owner() != 0 || folio.share() != 0
}

/// Adds an entry to a folio that has one.
fn share(
    region: &Region<'_>,
    folio: DevFolio,
    page: DevPage,
    order: Order,
    mapping: &Mapping,
    shared: bool,
) -> Result<State, AssociateError> {
    if !shared && folio.owner() == mapping.key() {
        pr_err_once!("a page is associated with a second entry of its file, which is not shared\n");
        return Err(AssociateError::Owned);
    }
    if order > folio.order() || (order == folio.order() && folio.head() != page) {
        return Err(AssociateError::Smaller);
    }
    let entries = if folio.owner() != 0 { 1 } else { folio.share() };
    folio.set_share(region, entries + 1);
    Ok(State::Done)
}

/// Makes one folio of pages that are not associated with anything, if they are idle.
fn form(
    region: &Region<'_>,
    page: DevPage,
    order: Order,
    mapping: &Mapping,
    index: PageIndex,
) -> Result<State, AssociateError> {
    loop {
        if DevFolio::form(region, page, order) {
            page.folio().set_owner(region, mapping, index);
            return Ok(State::Done);
        }
        // One of the pages is in use: find out how.
        let mut changed = false;
        let mut at = 0;
        while at < order.pages() {
            let folio = DevPage::of(page.pfn().offset(at)).folio();
            if is_associated(folio) {
                return Err(AssociateError::Smaller);
            }
            if folio.refcount() != 0 {
                return Ok(State::Busy(folio));
            }
            let size = folio.order();
            if size != Order::PTE {
                folio.take_apart(region);
                changed = true;
            }
            at += size.pages();
        }
        if !changed {
            // Idle in the meantime, or of another page map: not worth a second try.
            return Err(AssociateError::Smaller);
        }
    }
}

/// Takes an entry of `order` off its pages: one of several that share a folio, or the last, after
/// which the folio is pages again; it stays whole while somebody holds a reference (spec, section
/// 2). Does not sleep.
pub(crate) fn disassociate(page: DevPage, _order: Order) {
    let region = Region::lock(page);
    let folio = page.folio();
    if folio.owner() == 0 {
        match folio.share() {
            0 => {
                pr_err_once!("an entry's page is associated with nothing\n");
                return;
            }
            1 => (),
            entries => {
                folio.set_share(&region, entries - 1);
                return;
            }
        }
    }
    folio.set_share(&region, 0);
    if folio.refcount() == 0 {
        folio.take_apart(&region);
    }
}
