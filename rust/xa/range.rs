// SPDX-License-Identifier: GPL-2.0

//! Locked values one behind the other.

use super::{
    super::{fs::PageIndex, order::Order, page::Association},
    node::{NODE_MASK, NODE_ORDER},
    Mark, RawValue, Tree, TreeGuard, XaState,
};
use core::cell::Cell;

/// The way a value of a range is released: [`LockedRange::release`].
pub(crate) enum Release<'a> {
    /// The value is written over it, which is unlocked; if so said, without its marks. A value of another
    /// order is not stored.
    Unlock(RawValue<'a>, bool),
    /// It is removed.
    Erase,
}

/// Locked values one behind the other.
///
/// # Invariants
///
/// The indices from `first` on, `pages` of them, are those of locked values, and no other token stands
/// for these.
pub(super) struct LockedRange<'t> {
    tree: &'t Tree,
    first: PageIndex,
    pages: usize,
}

impl<'t> LockedRange<'t> {
    /// No values yet; those that are added begin at `first`.
    #[inline(always)]
    pub(super) fn new(tree: &'t Tree, first: PageIndex) -> Self {
        // INVARIANT: There are none.
        Self {
            tree,
            first,
            pages: 0,
        }
    }

    /// The tree.
    #[inline(always)]
    pub(super) fn tree(&self) -> &'t Tree {
        self.tree
    }

    /// The indices that are left.
    #[inline(always)]
    pub(super) fn pages(&self) -> usize {
        self.pages
    }

    /// The first index.
    #[inline(always)]
    pub(super) fn first(&self) -> PageIndex {
        self.first
    }

    /// Adds values for `pages` indices behind the others.
    ///
    /// # Safety
    ///
    /// They are there, right behind the others and each other, and were locked for this token.
    #[inline(always)]
    pub(super) unsafe fn add(&mut self, pages: usize) {
        // INVARIANT: By this function's safety requirements.
        self.pages += pages;
    }

    /// Whether a value that begins at `index` can be added under the guard.
    #[inline(always)]
    fn takes(&self, guard: &TreeGuard<'_>, index: PageIndex) -> bool {
        guard.is_of(self.tree)
            && (self.pages == 0 || index.get() == self.first.get().wrapping_add(self.pages))
    }

    /// Locks the value that the state was walked to, as the first or right behind the others. `None`, and
    /// nothing is done, when it is not there, or there is none that is unlocked.
    #[inline(always)]
    fn lock<'g>(&mut self, xas: &mut XaState<'g, '_>) -> Option<RawValue<'g>> {
        let value = xas.current_value().filter(|value| !value.is_locked())?;
        let first = PageIndex::new(xas.index().get() & !(value.pages() - 1));
        if !self.takes(xas.guard, first) {
            return None;
        }
        // SAFETY: The state stands at the value, which nobody has locked.
        unsafe { xas.overwrite(value.locked()) };
        // INVARIANT: The value is locked as of now, and right behind the others.
        if self.pages == 0 {
            self.first = first;
        }
        self.pages += value.pages();
        Some(value)
    }

    /// Unlocks or removes all values, one after the other, as `each` says, which is told their indices and what the
    /// tree has there. It says so of values of the same order, and sees to what they stand for.
    #[inline(always)]
    pub(super) fn release_each<'g, 'a>(
        &mut self,
        xas: &mut XaState<'g, '_>,
        mut each: impl FnMut(PageIndex, RawValue<'g>) -> Release<'a>,
    ) {
        if !xas.guard.is_of(self.tree) {
            return;
        }
        let mut index = self.first;
        let end = self.first.get().wrapping_add(self.pages);
        // INVARIANT: The values are released below, and none of them twice.
        self.pages = 0;
        // Ends: each round is for the indices behind the last one's, up to the end.
        while index.get() != end {
            let Some(now) = xas.at(index) else {
                // Unreachable: the values are locked.
                return;
            };
            match each(index, now) {
                Release::Unlock(value, clean) => {
                    if clean {
                        xas.clear_mark(Mark::Dirty);
                        xas.clear_mark(Mark::ToWrite);
                    }
                    debug_assert!(value.has_order_of(now));
                    // SAFETY: By the type invariant the value there was the range's, and this one has the order.
                    unsafe { xas.overwrite(value.unlocked()) };
                }
                // SAFETY: By the type invariant the value was the range's.
                Release::Erase => unsafe { xas.erase_current() },
            }
            index = PageIndex::new(index.get().wrapping_add(now.pages()));
        }
    }

    /// Removes all values in one step, if they are those of a whole node of the lowest level. False,
    /// and nothing is done, if not.
    #[inline]
    fn erase_node(&mut self, xas: &mut XaState<'_, '_>) -> bool {
        if self.pages != NODE_ORDER.pages()
            || self.first.get() & NODE_MASK != 0
            || !xas.guard.is_of(self.tree)
        {
            return false;
        }
        // SAFETY: By the type invariant all values there are the range's, and end with it.
        unsafe { xas.erase_node(self.first) };
        self.pages = 0;
        true
    }
}

/// Locked values one behind the other, as many as a node has at most, and what they are.
///
/// # Invariants
///
/// `words` begins with the values of the range, `len` of them, as they were when they were locked. They are
/// locked still, so the pages of their device are there (see [`LockedSlot`](super::LockedSlot)). Unless there are
/// any, `released` words are what the last values of the range were. With `detached`, none of them stands for an entry
/// that is counted any more.
pub(crate) struct LockedValues<'t> {
    range: LockedRange<'t>,
    len: usize,
    released: usize,
    detached: Cell<bool>,
    words: [usize; NODE_ORDER.pages()],
}

impl<'t> LockedValues<'t> {
    /// No values yet.
    pub(crate) fn new(tree: &'t Tree) -> Self {
        // INVARIANT: There are none.
        Self {
            range: LockedRange::new(tree, PageIndex::new(0)),
            len: 0,
            released: 0,
            detached: Cell::new(false),
            words: [0; NODE_ORDER.pages()],
        }
    }

    /// How many values there are.
    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The indices that they are for.
    #[inline(always)]
    pub(crate) fn pages(&self) -> usize {
        self.range.pages()
    }

    /// The first index.
    #[inline(always)]
    pub(crate) fn first(&self) -> PageIndex {
        self.range.first()
    }

    /// Locks the value that the state was walked to, as the first or right behind the others. False, and nothing is
    /// done, when it is not there, there is none that is unlocked, there are too many, or the others have lost their
    /// memory.
    #[inline(always)]
    pub(crate) fn lock(&mut self, xas: &mut XaState<'_, '_>) -> bool {
        if self.detached.get() {
            return false;
        }
        let Some(place) = self.words.get_mut(self.len) else {
            return false;
        };
        let Some(value) = self.range.lock(xas) else {
            return false;
        };
        // INVARIANT: One more is locked.
        *place = value.0;
        self.len += 1;
        true
    }

    /// The values in their order, as they were when they were locked.
    #[inline(always)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = RawValue<'_>> {
        let words = self.words.iter().take(self.len);
        // SAFETY: By the type invariant these are values, and their pages are there while they are locked,
        // which takes this value to end.
        words.map(|word| unsafe { RawValue::from_word(*word) })
    }

    /// The values lose their memory, which is to be taken off its folios: they are values without when they are
    /// unlocked. `each` is called for every value, with its memory if it has any. Once.
    #[inline(always)]
    pub(crate) fn detach<'a>(&'a self, mut each: impl FnMut(Option<Association<'a>>)) {
        if self.detached.replace(true) {
            return;
        }
        for value in self.iter() {
            // SAFETY: By the type invariant it is a value of the tree, and this is the only token for it.
            each(unsafe { value.association() });
        }
    }

    /// Unlocks or removes all values, one after the other, as `each` says, which is told what they are: values of the
    /// same memory, or that memory is taken off its folio. Nothing is done under the lock of another tree.
    #[inline(always)]
    pub(crate) fn release(
        &mut self,
        xas: &mut XaState<'_, '_>,
        mut each: impl for<'a> FnMut(RawValue<'a>) -> Release<'a>,
    ) {
        if !xas.guard.is_of(self.range.tree) {
            return;
        }
        let detached = self.detached.get();
        let mut words = self.words.iter();
        self.range.release_each(xas, |_, _| {
            let Some(word) = words.next() else {
                // Unreachable: there are as many.
                return Release::Erase;
            };
            // SAFETY: By the type invariant it is a value; it is locked up to now.
            let value = unsafe { RawValue::from_word(*word) };
            match each(value) {
                Release::Unlock(_, clean) if detached => {
                    Release::Unlock(value.without_memory(), clean)
                }
                Release::Unlock(made, clean) => Release::Unlock(made.or_as(value), clean),
                Release::Erase => {
                    if !detached && value.has_memory() {
                        // SAFETY: As in `detach`.
                        drop(unsafe { value.association() });
                    }
                    Release::Erase
                }
            }
        });
        self.end();
    }

    /// Notes that the values are locked no longer.
    #[inline(always)]
    fn end(&mut self) {
        // INVARIANT: There are none.
        self.released = core::mem::replace(&mut self.len, 0);
        self.detached.set(false);
    }

    /// Removes all values in one step, if they are those of a whole node of the lowest level. False,
    /// and nothing is done, if not.
    #[inline]
    pub(crate) fn erase_node(&mut self, xas: &mut XaState<'_, '_>) -> bool {
        if !self.range.erase_node(xas) {
            return false;
        }
        if !self.detached.get() {
            // The tree's lock keeps the pages, as the values did.
            self.detach(drop);
        }
        self.end();
        true
    }

    /// The orders of the values that were released last, in their order.
    #[inline(always)]
    pub(crate) fn released(&self) -> impl Iterator<Item = Order> + '_ {
        let words = self.words.iter().take(self.released);
        // SAFETY: By the type invariant these were values. Of their pages nothing is wanted.
        words.map(|word| unsafe { RawValue::from_word(*word) }.order())
    }
}
