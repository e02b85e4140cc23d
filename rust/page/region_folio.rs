// SPDX-License-Identifier: GPL-2.0

//! Folios whose region is locked: which entries they count, and how they come apart.
//!
//! A folio counts the entries that point to it: it has an owner on account of the only one, or a share count. Each
//! entry with memory that is in a tree stands for one that is counted. An [`Association`] stands for it before the
//! entry has the memory, and when it has it no more.

use super::{
    folio::{self, DevFolio},
    region::unclaim,
    DevPage,
    PageBlock,
    Region,
    FLAG_HEAD,
    INDEX,
    INFO,
    MAPPING,
    ORDER_MASK,
    PRIVATE,
    SECOND, //
};
use crate::kern::{
    fs::{Mapping, PageIndex},
    once::{Bits, Once},
    order::Order, //
};
use core::{
    marker::PhantomData,
    mem,
    ops::Deref,
    ptr, //
};
use kernel::sync::atomic::{Atomic, Release};

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
pub(crate) fn owned_or_free() -> bool {
    // Pairs with `note_without_owner`.
    !SEEN_WITHOUT_OWNER.load_acquire()
}

/// Memory that an entry of a file is to have.
///
/// # Invariants
///
/// The pages are such as an entry of the file can have ([`FileBlock`](super::FileBlock)).
#[derive(Clone, Copy)]
pub(crate) struct EntryMemory<'l> {
    block: PageBlock<'l>,
    mapping: &'l Mapping,
    index: PageIndex,
}

impl<'l> EntryMemory<'l> {
    /// # Safety
    ///
    /// As the type invariant says.
    #[inline(always)]
    pub(in crate::kern) const unsafe fn new(
        block: PageBlock<'l>,
        mapping: &'l Mapping,
        index: PageIndex,
    ) -> Self {
        // INVARIANT: By this function's safety requirements.
        Self {
            block,
            mapping,
            index,
        }
    }

    /// The same, for tests, whose memory is there for good.
    #[cfg(RDAX_TEST)]
    pub(crate) fn of_test(block: PageBlock<'l>, mapping: &'l Mapping, index: PageIndex) -> Self {
        Self {
            block,
            mapping,
            index,
        }
    }

    /// The pages.
    #[inline(always)]
    pub(crate) const fn block(self) -> PageBlock<'l> {
        self.block
    }

    /// The file.
    #[inline(always)]
    pub(crate) const fn mapping(self) -> &'l Mapping {
        self.mapping
    }
}

/// An entry that a folio counts, of these pages, for which there is none in a tree: not yet ([`NewAssociation`]), or
/// not any more. When this is dropped, the entry is not counted any more; [`Region::remove_entry`] does the same and
/// says what came of it. Dropping takes the lock of the folio's region, so that is not held.
///
/// # Invariants
///
/// The pages are of one folio, and one of the entries that it counts is counted on account of this value alone.
/// So the folio stays as large as it is.
#[must_use = "the entry is counted no longer"]
pub(crate) struct Association<'p>(PageBlock<'p>);

impl<'p> Association<'p> {
    /// # Safety
    ///
    /// These are the pages of an entry that was in a tree and has none any more, or is about to be removed, and
    /// nobody else was or is given this for it.
    #[inline(always)]
    pub(in crate::kern) const unsafe fn of_entry(block: PageBlock<'p>) -> Self {
        // INVARIANT: The entry stood for one that is counted.
        Self(block)
    }

    /// As if there were an entry with this page. For tests.
    #[cfg(RDAX_TEST)]
    pub(crate) fn of_test(page: DevPage<'p>) -> Self {
        Self(page.block())
    }

    /// The pages.
    #[inline(always)]
    pub(crate) const fn block(&self) -> PageBlock<'p> {
        self.0
    }
}

impl Drop for Association<'_> {
    #[cold]
    #[inline(never)]
    fn drop(&mut self) {
        let page = self.0.first();
        let mut region = Region::lock(page.folio().head());
        // One that is larger than a region stays whole, as if somebody held it.
        note_without_owner();
        if let Some(folio) = region.folio(page) {
            // INVARIANT: The value is gone.
            folio.remove_entry();
        }
    }
}

/// An association for an entry of this file that does not have the memory yet.
///
/// # Invariants
///
/// As long as the folio is owned, it is by the file.
pub(crate) struct NewAssociation<'p> {
    association: Association<'p>,
    mapping: &'p Mapping,
}

impl<'p> NewAssociation<'p> {
    /// # Safety
    ///
    /// The pages of the memory are of one folio, which counts an entry on account of the result alone. Either no
    /// file owns it, or that of the memory.
    #[inline(always)]
    const unsafe fn new(memory: EntryMemory<'p>) -> Self {
        // INVARIANT: By this function's safety requirements. A folio that counts another entry has no owner, and gets
        // none as long as it counts this one.
        Self {
            association: Association(memory.block),
            mapping: memory.mapping,
        }
    }

    /// Whether it is for an entry of this file, with these pages.
    #[inline(always)]
    pub(crate) fn is_for(&self, mapping: &Mapping, block: PageBlock<'_>) -> bool {
        self.association.0 == block && ptr::eq(self.mapping, mapping)
    }

    /// Leaves it to an entry with these pages.
    #[inline(always)]
    pub(in crate::kern) fn leave(self) {
        mem::forget(self);
    }
}

impl<'p> From<NewAssociation<'p>> for Association<'p> {
    /// The same, to be taken off its folio.
    #[inline]
    fn from(new: NewAssociation<'p>) -> Self {
        new.association
    }
}

/// The result of adding an entry to a folio: [`RegionFolio::add_entry`].
pub(crate) enum Added<'p> {
    /// It is one more, the folio is shared, and no file owns it.
    Done(NewAssociation<'p>),
    /// Nothing was changed: the folio's owner has to stay for now.
    Kept,
    /// Nothing was changed: not all of the pages are of the folio.
    Smaller,
}

/// A folio whose region is locked.
///
/// # Invariants
///
/// The folio's first page is in the region that `'r` is a borrow of, and is no tail. That stays so, as
/// tails are made by those only who have the region for themselves.
pub(crate) struct RegionFolio<'r, 'p> {
    pub(super) folio: DevFolio<'p>,
    pub(super) _region: PhantomData<&'r mut Region>,
}

/// A folio whose region is locked, and that no entry points to.
///
/// # Invariants
///
/// It has no owner, and its share count is 0. That stays so, as this is all there is of the locked region.
pub(crate) struct FreeFolio<'r, 'p>(pub(super) RegionFolio<'r, 'p>);

/// The result of taking an entry off a folio: [`Region::remove_entry`].
pub(crate) enum Released<'p> {
    /// No entry pointed to it, which the invariant of [`Association`] rules out.
    Unused,
    /// Others point to it.
    Shared,
    /// Pages of their own.
    Dissolved,
    /// It stays whole, as somebody has a reference.
    Held,
    /// It is larger than a region, and has to be dissolved by parts.
    Gigantic(DevFolio<'p>),
}

impl<'p> Deref for RegionFolio<'_, 'p> {
    type Target = DevFolio<'p>;

    #[inline]
    fn deref(&self) -> &DevFolio<'p> {
        &self.folio
    }
}

impl<'p> Deref for FreeFolio<'_, 'p> {
    type Target = DevFolio<'p>;

    #[inline]
    fn deref(&self) -> &DevFolio<'p> {
        &self.0.folio
    }
}

impl<'p> FreeFolio<'_, 'p> {
    /// The folio, of which nothing is known when the region is unlocked.
    #[inline]
    pub(crate) fn get_unlocked(&self) -> DevFolio<'p> {
        self.0.folio
    }

    /// Gives the folio to one entry of one file. The folio, if the memory is not just its pages.
    #[inline(always)]
    pub(crate) fn set_owner(self, memory: EntryMemory<'p>) -> Result<NewAssociation<'p>, Self> {
        let head = self.head();
        if self.order() != memory.block.order() || head != memory.block.first() {
            return Err(self);
        }
        // SAFETY: By the type invariant nobody owns or shares the folio, and its region is locked.
        Ok(unsafe { set_owner(head, memory) })
    }

    /// As [`RegionFolio::dissolve`].
    #[inline]
    pub(crate) fn dissolve(self) -> bool {
        self.0.dissolve()
    }
}

impl<'r, 'p> RegionFolio<'r, 'p> {
    /// The folio, of which nothing is known when the region is unlocked.
    #[inline]
    pub(crate) fn get_unlocked(&self) -> DevFolio<'p> {
        self.folio
    }

    /// The same as one that no entry points to; or itself, if one does.
    #[inline]
    pub(crate) fn free(self) -> Result<FreeFolio<'r, 'p>, Self> {
        if self.is_associated() {
            return Err(self);
        }
        // INVARIANT: That was seen.
        Ok(FreeFolio(self))
    }

    /// Whether at least one entry points to the folio.
    #[inline]
    pub(crate) fn is_associated(&self) -> bool {
        self.owner() != 0 || self.share() != 0
    }

    /// Adds an entry to those that point to the folio.
    #[inline]
    pub(crate) fn add_entry(&self, memory: EntryMemory<'p>) -> Added<'p> {
        let (block, order) = (memory.block, self.order());
        let offset = block
            .pfn()
            .to_bits()
            .wrapping_sub(self.head().pfn().to_bits());
        if block.order() > order || offset >= order.pages() {
            return Added::Smaller;
        }
        if self.owner() != 0 && folio::keeps_owner(self.folio) {
            return Added::Kept;
        }
        note_without_owner();
        let entries = if self.owner() != 0 { 1 } else { self.share() };
        self.set_share(entries + 1);
        // SAFETY: The pages are of the folio, which counts one more, and has no owner.
        Added::Done(unsafe { NewAssociation::new(memory) })
    }

    /// Takes an entry off a folio. If it was the last one, pages of their own are made of the folio, if nobody has
    /// a reference.
    #[inline(always)]
    fn remove_entry(self) -> Released<'p> {
        if self.owner() == 0 {
            match self.share() {
                0 => return Released::Unused,
                1 => (),
                entries => {
                    self.set_share(entries - 1);
                    return Released::Shared;
                }
            }
        }
        if self.refcount() != 0 {
            note_without_owner();
        }
        self.release()
    }

    /// Makes the folio one that `share` entries point to and no file owns; with 0, one that nobody
    /// uses.
    #[inline]
    fn set_share(&self, share: usize) {
        let head = self.head();
        head.word(MAPPING).write_once(0);
        head.word(INDEX).write_once(share);
    }

    /// Takes the owner off a folio, or the last entry that is counted, and makes pages of their own of it
    /// if nobody has a reference.
    #[inline]
    fn release(self) -> Released<'p> {
        self.set_share(0);
        if self.refcount() != 0 {
            return Released::Held;
        }
        let order = self.order();
        if order > Region::ORDER {
            return Released::Gigantic(self.folio);
        }
        // Idle: that was seen, but for the share count, which was set.
        self.dissolve_idle(order);
        Released::Dissolved
    }

    /// Makes pages of their own of a folio that is not larger than a region. False, and nothing is
    /// changed, if it is larger, or in use.
    #[inline]
    pub(crate) fn dissolve(self) -> bool {
        let order = self.order();
        if order == Order::PTE {
            return true;
        }
        if order > Region::ORDER || !self.is_idle() {
            return false;
        }
        self.dissolve_idle(order);
        true
    }

    /// The same for one of an order that is idle and not larger than a region.
    #[inline(always)]
    fn dissolve_idle(self, order: Order) {
        if order == Order::PTE {
            return;
        }
        self.unmake_head(order);
        let head = self.head();
        let pgmap = head.word(INFO).read_once();
        // SAFETY: These were the folio's tails, which is in one region, and by the type invariant that
        // is locked.
        unsafe { unclaim(head, 1, order.pages(), pgmap) };
    }

    /// Whether nobody uses the folio, and no entry points to it.
    #[inline]
    pub(super) fn is_idle(&self) -> bool {
        self.refcount() == 0 && !self.is_associated()
    }

    /// Takes what makes it a large folio off one that is idle and owned by nobody.
    #[inline]
    pub(super) fn unmake_head(&self, order: Order) {
        let head = self.head();
        head.flags().clear_bits(FLAG_HEAD);
        // The second and third page held more than a tail's words.
        for at in 1..order.pages().min(3) {
            // SAFETY: The folio has so many pages.
            let page = unsafe { head.next(at) };
            if at == 1 {
                let flags = page.flags().read_once();
                page.flags().write_once(flags & !ORDER_MASK);
            }
            page.word(SECOND).write_once(0);
            page.word(INDEX).write_once(0);
            page.word(PRIVATE).write_once(0);
        }
        #[cfg(any(CONFIG_MEMCG, CONFIG_SLAB_OBJ_EXT))]
        // SAFETY: The field lies in the second page of a folio that nobody uses.
        unsafe {
            (&raw mut (*self.as_ptr()).__bindgen_anon_2.__bindgen_anon_1._nr_pages).write(0);
        }
    }
}

/// Gives a folio to the entry whose memory it is.
///
/// # Safety
///
/// `head` is the first page of the memory. The folio's region is locked, no file owns it, and its share count is 0.
#[inline(always)]
pub(super) unsafe fn set_owner<'p>(
    head: DevPage<'p>,
    memory: EntryMemory<'p>,
) -> NewAssociation<'p> {
    head.word(INDEX).write_once(memory.index.get());
    // Pairs with `owner`.
    head.word(MAPPING)
        .store_release(ptr::from_ref(memory.mapping) as usize);
    // SAFETY: The folio has the owner on account of this value.
    unsafe { NewAssociation::new(memory) }
}

impl Region {
    /// Associates memory that nobody uses with an entry that is not shared. `None`, and nothing is changed, when that
    /// is not so simple, or when it is not of the region.
    #[cfg(RDAX_TEST)]
    pub(crate) fn associate_free<'p>(
        &mut self,
        memory: EntryMemory<'p>,
    ) -> Option<NewAssociation<'p>> {
        // SAFETY: The result stands for it.
        unsafe { self.give_free(memory).then(|| NewAssociation::new(memory)) }
    }

    /// The same for many entries. Returns whether the memory is associated.
    ///
    /// # Safety
    ///
    /// If so, the entry stands for one that is counted, as if it had been given a [`NewAssociation`].
    #[inline(always)]
    pub(in crate::kern) unsafe fn give_free(&mut self, memory: EntryMemory<'_>) -> bool {
        let (page, order) = (memory.block.first(), memory.block.order());
        if !self.covers(page) {
            return false;
        }
        if order != Order::PTE {
            // A value of its own, so that a single page's stays in registers.
            let memory = EntryMemory {
                block: memory.block,
                mapping: memory.mapping,
                index: memory.index,
            };
            return self.form(memory).map(NewAssociation::leave).is_some();
        }
        let free = self.folio(page).is_some_and(|folio| {
            folio.head() == page && !folio.is_associated() && folio.order() == Order::PTE
        });
        if free {
            // SAFETY: That was seen, and the region is locked.
            unsafe { set_owner(page, memory) }.leave();
        }
        free
    }

    /// Takes an entry off its folio, if that begins in the region. If it was the last one, pages of their own are
    /// made of the folio, if nobody has a reference.
    #[inline(always)]
    pub(crate) fn remove_entry<'p>(
        &mut self,
        association: Association<'p>,
    ) -> Result<Released<'p>, Association<'p>> {
        match self.folio(association.0.first()) {
            Some(folio) => {
                // INVARIANT: The value is gone, and so is what is counted on its account.
                mem::forget(association);
                Ok(folio.remove_entry())
            }
            None => Err(association),
        }
    }
}
