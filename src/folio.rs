// SPDX-License-Identifier: GPL-2.0

//! The folio's life: free, associated, shared, free again (spec, section 2).
//!
//! Entries hold no reference: a folio's refcount is 0 when nobody uses it (R1). Owners, share
//! counts and sizes change under the lock of the folio's region, which nests inside the tree's.

use crate::kern::{
    fs::{Mapping, PageIndex},
    once::Once,
    order::Order,
    page::{
        DevFolio, DevPage, GiganticLock, PageBlock, PageRun, Region, RegionFolio, Released, Tails,
    },
    vm,
    waiting::{self, Waiting}, //
};
use kernel::{
    pr_err_once,
    prelude::*, //
    sync::atomic::{Atomic, Release},
};

/// Whether there ever was a folio that was shared, or held when its last entry went. Up to then,
/// pages that no file owns are free, which is less to look at when a folio is made of many.
static SEEN_WITHOUT_OWNER: Atomic<bool> = Atomic::new(false);

/// To be called before a folio is given up by its owner but not free, under its region's lock.
#[inline]
fn note_without_owner() {
    // Pairs with `owned_or_free`. Under one region's lock nothing more is needed; and what was given up
    // under another's is looked at under that.
    SEEN_WITHOUT_OWNER.store(true, Release);
}

/// As if no such folio had been seen yet, or one had. For tests, which hold none.
#[cfg(RDAX_TEST)]
pub(crate) fn set_without_owner(seen: bool) {
    SEEN_WITHOUT_OWNER.store(seen, Release);
}

/// Whether pages that no file owns are free. Under the lock of their region this stays so.
#[inline]
fn owned_or_free() -> bool {
    // Pairs with `note_without_owner`.
    !SEEN_WITHOUT_OWNER.load_acquire()
}

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
    Done,
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

/// Associates pages with an entry at `index` of `mapping` (spec, section 2).
///
/// `shared` is what the filesystem says of the extent. The caller has the entry locked, so nobody is
/// waited for here who holds pages; the lock for folios larger than a region is, whose holders do not
/// wait either. Sleeps.
pub(crate) fn associate<'p>(
    block: PageBlock<'p>,
    mapping: &Mapping,
    index: PageIndex,
    shared: bool,
) -> Result<(), AssociateError<'p>> {
    // Each turn takes apart what is in the way and idle, or finds that somebody else has changed it.
    loop {
        match try_associate(block, mapping, index, shared)? {
            Attempt::Done => return Ok(()),
            Attempt::Busy(folio) => return Err(AssociateError::Held(folio)),
            Attempt::Stale(folio) => dissolve_gigantic(folio),
            Attempt::Form => {
                if form_gigantic(block, mapping, index)? {
                    return Ok(());
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
    block: PageBlock<'p>,
    mapping: &Mapping,
    index: PageIndex,
    shared: bool,
) -> Result<Attempt<'p>, AssociateError<'p>> {
    let (page, order) = (block.first(), block.order());
    let mut region = Region::lock(page.folio().head());
    let Some(folio) = region.folio(page) else {
        return Ok(Attempt::Forming);
    };
    if folio.is_associated() {
        return share(&folio, block, mapping, shared);
    }
    let size = folio.order();
    if size == order && folio.head() == page {
        // Pages of order 0 that are free; or what is left of a folio that lost its last entry, and
        // comes in handy as it is. Whoever still holds it keeps its reference.
        folio.set_owner(mapping, index);
        return Ok(Attempt::Done);
    }
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
            let Some(folio) = region.folio(page) else {
                return Ok(Attempt::Forming);
            };
            folio.set_owner(mapping, index);
            return Ok(Attempt::Done);
        }
    }
    if order > Region::ORDER {
        return Ok(Attempt::Form);
    }
    form(&mut region, block, mapping, index)
}

/// Adds an entry to a folio that has one.
fn share<'p>(
    folio: &RegionFolio<'_, 'p>,
    block: PageBlock<'p>,
    mapping: &Mapping,
    shared: bool,
) -> Result<Attempt<'p>, AssociateError<'p>> {
    if !shared && folio.owner() == mapping.key() {
        pr_err_once!("a page is associated with a second entry of its file, which is not shared\n");
        return Err(AssociateError::Owned);
    }
    let (order, size) = (block.order(), folio.order());
    if order > size || (order == size && folio.head() != block.first()) {
        return Err(AssociateError::Smaller);
    }
    if folio.owner() != 0 && folio.keeps_owner() {
        return Ok(Attempt::Kept);
    }
    note_without_owner();
    let entries = if folio.owner() != 0 { 1 } else { folio.share() };
    folio.set_share(entries + 1);
    Ok(Attempt::Done)
}

/// Makes one folio, not larger than a region, of pages that are not associated with anything, if
/// they are idle.
fn form<'p>(
    region: &mut Region,
    block: PageBlock<'p>,
    mapping: &Mapping,
    index: PageIndex,
) -> Result<Attempt<'p>, AssociateError<'p>> {
    // Ends: under the region's lock nothing new comes, and each round takes something apart.
    loop {
        if let Some(folio) = region.form(block, owned_or_free()) {
            folio.set_owner(mapping, index);
            return Ok(Attempt::Done);
        }
        match obstacle(region, block)? {
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
fn obstacle<'p>(region: &Region, block: PageBlock<'p>) -> Result<Obstacle<'p>, AssociateError<'p>> {
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
/// more pages than a region has (spec, R8). False when the pages have to be looked at anew.
fn form_gigantic<'p>(
    block: PageBlock<'p>,
    mapping: &Mapping,
    index: PageIndex,
) -> Result<bool, AssociateError<'p>> {
    let mut gigantic = GiganticLock::lock();
    let Some(mut tails) = gigantic.begin(block) else {
        return Ok(false);
    };
    while let Some(part) = tails.next() {
        let mut region = Region::lock(part.first());
        if !tails.claim(&mut region, owned_or_free()) {
            let why = obstacle(&region, part);
            return give_up(region, tails, why);
        }
        drop(region);
        vm::cond_resched();
    }
    let first = block.first();
    let mut region = Region::lock(first);
    let tails = match tails.finish(&mut region) {
        Ok(folio) => {
            folio.set_owner(mapping, index);
            return Ok(true);
        }
        Err(tails) => tails,
    };
    // The first page by itself: it was not to be a tail.
    let why = obstacle(&region, first.block());
    give_up(region, tails, why)
}

/// Gives up what was to be a folio larger than a region. Sleeps.
fn give_up<'p>(
    region: Region,
    tails: Tails<'_, 'p>,
    why: Result<Obstacle<'p>, AssociateError<'p>>,
) -> Result<bool, AssociateError<'p>> {
    // The tails take the locks of their regions.
    drop(region);
    drop(tails);
    look_anew(why?)
}

/// Says that the pages have to be looked at anew, when what was in the way of a folio larger than a
/// region is not any more.
fn look_anew(obstacle: Obstacle<'_>) -> Result<bool, AssociateError<'_>> {
    match obstacle {
        Obstacle::Busy(folio) => Err(AssociateError::Held(folio)),
        Obstacle::Gone => Ok(false),
    }
}

/// Takes a folio larger than a region apart if nobody uses it. Sleeps.
fn dissolve_gigantic(folio: DevFolio<'_>) {
    let mut gigantic = GiganticLock::lock();
    let page = folio.head();
    let region = Region::lock(page);
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
pub(crate) fn disassociate(page: DevPage<'_>) {
    FolioReleaseBatch::new().add(page);
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
    pub(crate) fn add(&mut self, page: DevPage<'_>) {
        self.lock(page);
        let gigantic = match self.region.as_ref().and_then(|region| region.folio(page)) {
            Some(folio) => Self::release(folio),
            None => self.release_around(page),
        };
        if let Some(folio) = gigantic {
            self.region = None;
            dissolve_gigantic(folio);
        }
    }

    /// As [`FolioReleaseBatch::release`], for the folio of a page that begins in another region.
    #[cold]
    #[inline(never)]
    fn release_around<'p>(&mut self, page: DevPage<'p>) -> Option<DevFolio<'p>> {
        // The entry keeps the folio as it is.
        self.lock(page.folio().head());
        let folio = self.region.as_ref()?.folio(page)?;
        Self::release(folio)
    }

    /// Locks the region of a page.
    #[inline(always)]
    fn lock(&mut self, page: DevPage<'_>) {
        let region = self.region.as_ref();
        if !region.is_some_and(|region| region.covers(page)) {
            // The one is unlocked before the other is locked.
            self.region = None;
            self.region = Some(Region::lock(page));
        }
    }

    /// Takes one entry off a folio. Returns one to be dissolved that is larger than a region.
    #[inline(always)]
    fn release<'p>(folio: RegionFolio<'_, 'p>) -> Option<DevFolio<'p>> {
        if folio.owner() == 0 {
            match folio.share() {
                0 => {
                    pr_err_once!("an entry's page is associated with nothing\n");
                    return None;
                }
                1 => (),
                entries => {
                    folio.set_share(entries - 1);
                    return None;
                }
            }
        }
        if folio.refcount() != 0 {
            note_without_owner();
        }
        match folio.release() {
            Released::Dissolved => None,
            Released::Held => {
                #[cfg(RDAX_CHECK)]
                super::check::left_whole();
                None
            }
            Released::Gigantic(folio) => Some(folio),
        }
    }
}

/// Takes apart every folio of these pages that was left whole when its last entry went, for
/// those who expect the pages of a device without files to be pages of their own. Nobody makes folios
/// of them meanwhile. Sleeps.
///
/// Errors: `EBUSY` when somebody still holds one.
pub(crate) fn dissolve_range(run: PageRun<'_>) -> Result {
    if owned_or_free() {
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
            let region = Region::lock(folio.head());
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
    let region = Region::lock(first);
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

/// Associates pages that nobody uses with an entry at `index` of `mapping` that is not shared.
/// False, and nothing is changed, when that is not so simple, or when they are not of the region.
/// Does not sleep.
#[inline]
pub(crate) fn associate_free(
    region: &mut Region,
    block: PageBlock<'_>,
    mapping: &Mapping,
    index: PageIndex,
) -> bool {
    let page = block.first();
    if !region.covers(page) {
        return false;
    }
    let folio = if block.order() == Order::PTE {
        region.folio(page).filter(|folio| {
            folio.head() == page && !folio.is_associated() && folio.order() == Order::PTE
        })
    } else {
        region.form(block, owned_or_free())
    };
    match folio {
        Some(folio) => folio.set_owner(mapping, index),
        None => return false,
    }
    true
}
