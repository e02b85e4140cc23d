// SPDX-License-Identifier: GPL-2.0

//! The folio's life: free, associated, shared, free again (spec, section 2).
//!
//! Entries hold no reference: a folio's refcount is 0 when nobody uses it (R1). Owners, share
//! counts and sizes change under the lock of the folio's region, which nests inside the tree's.

use crate::kern::{
    order::Order,
    page::{
        self, Added, Association, DevFolio, DevPage, EntryMemory, GiganticLock, NewAssociation,
        PageBlock, PageRun, Region, RegionFolio, Released, Tails,
    },
    vm,
    waiting::{self, Waiting}, //
};
use kernel::{
    pr_err_once,
    prelude::*, //
};

/// Why an entry could not be associated with its pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum AssociateError<'p> {
    /// The pages belong to another entry of the same file, and the filesystem does not say that
    /// they are shared.
    Owned,
    /// Some of the pages are in smaller folios, or in another place of a large one: a smaller
    /// order will do.
    Smaller,
    /// Somebody holds this folio, which lost its last entry, and some of the pages are in it.
    Held(DevFolio<'p>),
    /// A fatal signal came while the core told processes of a failure of the memory.
    Interrupted,
}

/// The result of one try to associate pages.
enum Attempt<'p> {
    /// Associated now.
    Done(NewAssociation<'p>),
    /// A folio that lost its last entry while somebody held it is in the way.
    Busy(DevFolio<'p>),
    /// A folio that is larger than a region is in the way; nobody uses it.
    Stale(DevFolio<'p>),
    /// The pages are idle, and a folio larger than a region is to be formed of them.
    Form,
    /// Somebody else is forming such a folio or taking it apart.
    Forming,
    /// The folio is to be shared, but has to keep its owner for now.
    Kept,
}

/// Associates memory with the entry that is to have it (spec, section 2).
///
/// `shared` is what the filesystem says of the extent. The caller has the entry locked, so nobody is
/// waited for here who holds pages; the lock for folios larger than a region is, whose holders do not
/// wait either. Sleeps.
#[inline(always)]
pub(crate) fn associate<'p>(
    memory: EntryMemory<'p>,
    shared: bool,
) -> Result<NewAssociation<'p>, AssociateError<'p>> {
    if memory.block().order() == Order::PTE {
        // Mostly nobody uses the page, and there is nothing else to do.
        let mut region = Region::lock(memory.block().first());
        if let Some(association) = associate_page(&mut region, memory) {
            return Ok(association);
        }
    }
    associate_any(memory, shared)
}

/// The same, whatever the pages are.
#[inline(never)]
fn associate_any<'p>(
    memory: EntryMemory<'p>,
    shared: bool,
) -> Result<NewAssociation<'p>, AssociateError<'p>> {
    // Each turn takes apart what is in the way and idle, or finds that somebody else has changed it.
    loop {
        match try_associate(memory, shared)? {
            Attempt::Done(association) => return Ok(association),
            Attempt::Busy(folio) => return Err(AssociateError::Held(folio)),
            Attempt::Stale(folio) => dissolve_gigantic(folio),
            Attempt::Form => {
                if let Some(association) = form_gigantic(memory)? {
                    return Ok(association);
                }
            }
            Attempt::Forming => drop(GiganticLock::lock()),
            Attempt::Kept => {
                // Ends: the core tells processes of a memory failure, and waits for none of them.
                if vm::fatal_signal() {
                    return Err(AssociateError::Interrupted);
                }
                vm::msleep(1);
            }
        }
    }
}

fn try_associate<'p>(
    memory: EntryMemory<'p>,
    shared: bool,
) -> Result<Attempt<'p>, AssociateError<'p>> {
    let (page, order) = (memory.block().first(), memory.block().order());
    let mut region = Region::lock(page.folio().head());
    let Some(folio) = region.folio(page) else {
        return Ok(Attempt::Forming);
    };
    let folio = match folio.free() {
        Ok(folio) => folio,
        Err(folio) => return share(&folio, memory, shared),
    };
    let folio = match folio.set_owner(memory) {
        // Pages of order 0 that are free; or what is left of a folio that lost its last entry, and
        // comes in handy as it is. Whoever still holds it keeps its reference.
        Ok(association) => return Ok(Attempt::Done(association)),
        Err(folio) => folio,
    };
    let size = folio.order();
    if size == Order::PTE && folio.head() != page {
        return Ok(Attempt::Forming);
    }
    if size != Order::PTE {
        // Left whole when its last entry went.
        if folio.refcount() != 0 {
            return Ok(Attempt::Busy(folio.get_unlocked()));
        }
        if size > Region::ORDER {
            return Ok(Attempt::Stale(folio.get_unlocked()));
        }
        folio.dissolve();
        if order == Order::PTE {
            let associated = associate_page(&mut region, memory);
            return Ok(associated.map_or(Attempt::Forming, Attempt::Done));
        }
    }
    if order > Region::ORDER {
        return Ok(Attempt::Form);
    }
    form(&mut region, memory)
}

/// Associates a single page that nobody uses. `None`, and nothing is changed, when that is not so.
#[inline(always)]
fn associate_page<'p>(region: &mut Region, memory: EntryMemory<'p>) -> Option<NewAssociation<'p>> {
    let folio = region.folio(memory.block().first())?.free().ok()?;
    folio.set_owner(memory).ok()
}

/// Adds an entry to a folio that has one.
fn share<'p>(
    folio: &RegionFolio<'_, 'p>,
    memory: EntryMemory<'p>,
    shared: bool,
) -> Result<Attempt<'p>, AssociateError<'p>> {
    if !shared && folio.owner() == memory.mapping().key() {
        pr_err_once!("a page is associated with a second entry of its file, which is not shared\n");
        return Err(AssociateError::Owned);
    }
    match folio.add_entry(memory) {
        Added::Done(association) => Ok(Attempt::Done(association)),
        Added::Kept => Ok(Attempt::Kept),
        Added::Smaller => Err(AssociateError::Smaller),
    }
}

/// Makes one folio, not larger than a region, of pages that are not associated with anything, if
/// they are idle.
fn form<'p>(
    region: &mut Region,
    memory: EntryMemory<'p>,
) -> Result<Attempt<'p>, AssociateError<'p>> {
    // Ends: under the region's lock nothing new comes, and each round takes something apart.
    loop {
        if let Some(association) = region.form(memory) {
            return Ok(Attempt::Done(association));
        }
        match obstacle(region, memory.block())? {
            Obstacle::Busy(folio) => return Ok(Attempt::Busy(folio)),
            Obstacle::Gone => (),
        }
    }
}

/// A reason why pages cannot become one folio.
enum Obstacle<'p> {
    /// Somebody holds one that lost its last entry.
    Busy(DevFolio<'p>),
    /// Something that was removed now.
    Gone,
}

/// Finds out why the pages of one region cannot be made a folio, and takes apart what lost its
/// last entry and is idle.
fn obstacle<'p>(
    region: &mut Region,
    block: PageBlock<'p>,
) -> Result<Obstacle<'p>, AssociateError<'p>> {
    let mut changed = false;
    let mut at = 0;
    while at < block.order().pages() {
        // One that begins in another region is larger than one, and not idle.
        let folio = region.folio(block.nth(at)).ok_or(AssociateError::Smaller)?;
        if folio.is_associated() {
            return Err(AssociateError::Smaller);
        }
        if folio.refcount() != 0 {
            return Ok(Obstacle::Busy(folio.get_unlocked()));
        }
        let size = folio.order();
        if size != Order::PTE {
            changed |= folio.dissolve();
        }
        at += size.pages();
    }
    if changed {
        Ok(Obstacle::Gone)
    } else {
        // Of another page map, or marked in a way that nobody undoes.
        Err(AssociateError::Smaller)
    }
}

/// Makes one folio larger than a region, one region after the other, so that no lock is held for
/// more pages than a region has (spec, R8). `None` when the pages have to be looked at anew.
fn form_gigantic<'p>(
    memory: EntryMemory<'p>,
) -> Result<Option<NewAssociation<'p>>, AssociateError<'p>> {
    let mut gigantic = GiganticLock::lock();
    let Some(mut tails) = gigantic.begin(memory.block()) else {
        return Ok(None);
    };
    while let Some(part) = tails.next() {
        let mut region = Region::lock(part.first());
        if !tails.claim(&mut region) {
            let why = obstacle(&mut region, part);
            return give_up(region, tails, why);
        }
        drop(region);
        vm::cond_resched();
    }
    let first = memory.block().first();
    let mut region = Region::lock(first);
    let tails = match tails.finish(&mut region, memory) {
        Ok(association) => return Ok(Some(association)),
        Err(tails) => tails,
    };
    // The first page by itself: it was not to be a tail.
    let why = obstacle(&mut region, first.block());
    give_up(region, tails, why)
}

/// Gives up what was to be a folio larger than a region. Sleeps.
fn give_up<'p>(
    region: Region,
    tails: Tails<'_, 'p>,
    why: Result<Obstacle<'p>, AssociateError<'p>>,
) -> Result<Option<NewAssociation<'p>>, AssociateError<'p>> {
    // The tails take the locks of their regions.
    drop(region);
    drop(tails);
    look_anew(why?)
}

/// Says that the pages have to be looked at anew, when what was in the way of a folio larger than a
/// region is not any more.
fn look_anew(obstacle: Obstacle<'_>) -> Result<Option<NewAssociation<'_>>, AssociateError<'_>> {
    match obstacle {
        Obstacle::Busy(folio) => Err(AssociateError::Held(folio)),
        Obstacle::Gone => Ok(None),
    }
}

/// Takes a folio larger than a region apart if nobody uses it. Sleeps.
fn dissolve_gigantic(folio: DevFolio<'_>) {
    let mut gigantic = GiganticLock::lock();
    let page = folio.head();
    let mut region = Region::lock(page);
    let tails = region
        .folio(page)
        .filter(|found| found.get_unlocked() == folio)
        .and_then(|found| found.dissolve_head(&mut gigantic));
    // The tails take the locks of their regions.
    drop(region);
    drop(tails);
}

/// Whether [`disassociate`] can be called for the page without sleeping.
#[inline]
pub(crate) fn is_small(page: DevPage<'_>) -> bool {
    page.folio().order() <= Region::ORDER
}

/// Takes an entry off its pages: one of several that share a folio, or the last, after which the
/// folio is pages again; it stays whole while somebody holds a reference (spec, section 2). Sleeps
/// if the folio is not small ([`is_small`]).
pub(crate) fn disassociate(association: Association<'_>) {
    FolioReleaseBatch::new().add(association);
}

/// Takes entries off their pages, as [`disassociate`], one after the other; the region's lock is
/// kept from one to the next.
pub(crate) struct FolioReleaseBatch {
    region: Option<Region>,
}

impl FolioReleaseBatch {
    #[inline]
    pub(crate) fn new() -> Self {
        Self { region: None }
    }

    /// The next one.
    #[inline]
    pub(crate) fn add(&mut self, association: Association<'_>) {
        let page = association.block().first();
        let released = match self.lock(page).remove_entry(association) {
            Ok(released) => released,
            Err(association) => match self.remove_around(association) {
                Some(released) => released,
                None => return,
            },
        };
        match released {
            Released::Unused => pr_err_once!("an entry's page is associated with nothing\n"),
            Released::Shared | Released::Dissolved => (),
            Released::Held => {
                #[cfg(RDAX_CHECK)]
                super::check::left_whole();
            }
            Released::Gigantic(folio) => {
                self.region = None;
                dissolve_gigantic(folio);
            }
        }
    }

    /// As [`Region::remove_entry`], for the folio of a page that begins in another region.
    #[cold]
    #[inline(never)]
    fn remove_around<'p>(&mut self, association: Association<'p>) -> Option<Released<'p>> {
        // The association keeps the folio as it is.
        let head = association.block().first().folio().head();
        let released = self.lock(head).remove_entry(association);
        if released.is_err() {
            // Unreachable. Dropping it takes the region's lock.
            self.region = None;
        }
        released.ok()
    }

    /// Locks the region of a page.
    #[inline(always)]
    fn lock(&mut self, page: DevPage<'_>) -> &mut Region {
        let region = self.region.as_ref();
        if !region.is_some_and(|region| region.covers(page)) {
            // The one is unlocked before the other is locked.
            self.region = None;
        }
        self.region.get_or_insert_with(|| Region::lock(page))
    }
}

/// Takes apart every folio of these pages that was left whole when its last entry went, for
/// those who expect the pages of a device without files to be pages of their own. Nobody makes folios
/// of them meanwhile. Sleeps.
///
/// Errors: `EBUSY` when somebody still holds one.
pub(crate) fn dissolve_range(run: PageRun<'_>) -> Result {
    if page::owned_or_free() {
        return Ok(());
    }
    let mut at = 0;
    let mut looked = 0;
    while let Some(page) = run.nth(at) {
        let folio = page.folio();
        if folio.refcount() != 0 {
            return Err(EBUSY);
        }
        let order = folio.order();
        if order > Region::ORDER {
            dissolve_gigantic(folio);
            if page.folio().order() > Region::ORDER {
                return Err(EBUSY);
            }
        } else if order != Order::PTE {
            let mut region = Region::lock(folio.head());
            if region.folio(page).is_some_and(|folio| !folio.dissolve()) {
                return Err(EBUSY);
            }
        }
        at += order.pages();
        looked += 1;
        if looked % Region::ORDER.pages() == 0 {
            vm::cond_resched();
        }
    }
    Ok(())
}

/// The findings of a look at memory that is about to go away.
enum Look<'p> {
    /// Nobody uses the pages up to this one.
    Unused(usize),
    /// Somebody holds the folio of this page, or an entry points to it.
    Used(usize),
    /// A folio larger than a region that nobody uses, or pages that are being made one or taken
    /// apart.
    Stale(DevFolio<'p>),
}

/// Looks at the pages from page `at` of a run on up to the end of its region, and takes apart what nobody
/// uses. Under the region's lock, so that whoever gave up one of them is done with it.
fn look_over(run: PageRun<'_>, mut at: usize) -> Look<'_> {
    let Some(first) = run.nth(at) else {
        return Look::Unused(at);
    };
    let mut region = Region::lock(first);
    while let Some(page) = run.nth(at).filter(|page| region.covers(*page)) {
        let Some(folio) = region.folio(page) else {
            let folio = page.folio();
            if folio.refcount() != 0 || folio.owner() != 0 || folio.share() != 0 {
                return Look::Used(at);
            }
            return Look::Stale(folio);
        };
        if folio.refcount() != 0 || folio.is_associated() {
            return Look::Used(at);
        }
        let order = folio.order();
        if order > Region::ORDER || order == Order::PTE && folio.head() != page {
            return Look::Stale(folio.get_unlocked());
        }
        folio.dissolve();
        at += 1;
    }
    Look::Unused(at)
}

/// Waits until nobody holds any of these pages, which are about to go away with their device, and no
/// entry points to them. Those of the files that could be found were removed before; a file that is
/// being evicted removes its own. No entry is added meanwhile. Sleeps, and cannot be interrupted.
///
/// Held: no lock of ours, nor anything that whoever holds a page may be waiting for.
pub(crate) fn wait_until_unused(memory: &[PageRun<'_>]) {
    /// In milliseconds.
    const INTERVAL: u32 = 20;
    const FIRST_MESSAGE: u32 = 200;
    let mut waited = 0u32;
    let mut waiting = None;
    for run in memory {
        let mut at = 0;
        while at < run.pages() {
            match look_over(*run, at) {
                Look::Unused(next) => {
                    at = next;
                    vm::cond_resched();
                }
                Look::Stale(folio) => dissolve_gigantic(folio),
                Look::Used(place) => {
                    waiting.get_or_insert_with(|| Waiting::for_device(None));
                    if let Some(page) = run.nth(place) {
                        waiting::note(page.folio());
                    }
                    vm::msleep(INTERVAL);
                    waited = waited.saturating_add(INTERVAL);
                    if waited == FIRST_MESSAGE {
                        pr_warn!(
                            "a device goes away while its pages are in use; waiting for them\n"
                        );
                    }
                }
            }
        }
    }
}
