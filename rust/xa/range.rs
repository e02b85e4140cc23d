// SPDX-License-Identifier: GPL-2.0

//! Locked values one behind the other.

use super::{
    super::{fs::PageIndex, order::Order, page::FilePages},
    node::{NODE_MASK, NODE_ORDER},
    Mark, RawValue, Tree, TreeGuard, XaState,
};

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
pub(crate) struct LockedRange<'t> {
    tree: &'t Tree,
    first: PageIndex,
    pages: usize,
}

impl<'t> LockedRange<'t> {
    /// No values yet.
    #[inline(always)]
    pub(crate) fn new(tree: &'t Tree) -> Self {
        Self {
            tree,
            first: PageIndex::new(0),
            pages: 0,
        }
    }

    /// The indices that are left.
    #[inline(always)]
    pub(crate) fn pages(&self) -> usize {
        self.pages
    }

    /// The first index.
    #[inline(always)]
    pub(crate) fn first(&self) -> PageIndex {
        self.first
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

    /// Stores new values, locked, from `index` on and right behind the others, as long as there is
    /// nothing, there is memory without waiting for it, and `next` gives one for an index, a multiple of
    /// its order. With `mark` they are marked.
    #[inline(always)]
    pub(crate) fn insert(
        &mut self,
        xas: &mut XaState<'_, '_>,
        index: PageIndex,
        mark: Option<Mark>,
        mut next: impl FnMut(PageIndex) -> Option<RawValue<'static>>,
    ) {
        if !self.takes(xas.guard, index) {
            return;
        }
        if self.pages == 0 {
            self.first = index;
        }
        let mut index = index;
        // Ends: each round is for the indices behind the last one's, and runs into something, or into an
        // index that `next` gives nothing for.
        while let Some(value) = next(index) {
            let pages = value.pages();
            if index.get() & (pages - 1) != 0 || xas.at(index).is_some() {
                return;
            }
            match xas.insert_in_node(value) {
                Some(Ok(())) => (),
                Some(Err(_)) => return,
                None => {
                    if pages != 1 && xas.reserve_order(value.order()).is_err() {
                        return;
                    }
                    // SAFETY: Nothing is there.
                    if !unsafe { xas.store_locked(value) } {
                        return;
                    }
                }
            }
            if let Some(mark) = mark {
                xas.set_mark(mark);
            }
            // INVARIANT: The value was stored as a locked one, right behind the others.
            self.pages += pages;
            index = PageIndex::new(index.get().wrapping_add(pages));
        }
    }

    /// Unlocks or removes all values, one after the other, as `each` says, which is told their indices, and the
    /// memory to make values of. Nothing is done under the lock of another tree, or with another file's memory.
    #[inline(always)]
    pub(crate) fn release(
        &mut self,
        xas: &mut XaState<'_, '_>,
        memory: Option<FilePages<'_>>,
        mut each: impl for<'a> FnMut(PageIndex, Option<FilePages<'a>>) -> Release<'a>,
    ) {
        if memory.is_none_or(|memory| self.tree.is_for(memory.tree())) {
            self.release_each(xas, |index| each(index, memory));
        }
    }

    /// Unlocks or removes all values, one after the other, as `each` says: as what they were, or as values of the
    /// file's memory.
    #[inline(always)]
    fn release_each<'a>(
        &mut self,
        xas: &mut XaState<'_, '_>,
        mut each: impl FnMut(PageIndex) -> Release<'a>,
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
            match each(index) {
                Release::Unlock(value, clean) => {
                    if clean {
                        xas.clear_mark(Mark::Dirty);
                        xas.clear_mark(Mark::ToWrite);
                    }
                    debug_assert!(value.has_order_of(now));
                    let value: RawValue<'_> = match value.has_order_of(now) {
                        true => value,
                        false => now,
                    };
                    // SAFETY: By the type invariant the value there was the range's, and this one has the
                    // order.
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
    pub(crate) fn erase_node(&mut self, xas: &mut XaState<'_, '_>) -> bool {
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
/// locked still, so the pages of their device are there (see [`LockedSlot`]). Unless there are any, `released`
/// words are what the last values of the range were.
pub(crate) struct LockedValues<'t> {
    range: LockedRange<'t>,
    len: usize,
    released: usize,
    words: [usize; NODE_ORDER.pages()],
}

impl<'t> LockedValues<'t> {
    /// No values yet.
    pub(crate) fn new(tree: &'t Tree) -> Self {
        // INVARIANT: There are none.
        Self {
            range: LockedRange::new(tree),
            len: 0,
            released: 0,
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

    /// Locks the value that the state was walked to, as the first or right behind the others. False, and
    /// nothing is done, when it is not there, there is none that is unlocked, or there are too many.
    #[inline(always)]
    pub(crate) fn lock(&mut self, xas: &mut XaState<'_, '_>) -> bool {
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

    /// Unlocks or removes all values, one after the other, as `each` says, which is told what they are.
    /// Nothing is done under the lock of another tree.
    #[inline(always)]
    pub(crate) fn release(
        &mut self,
        xas: &mut XaState<'_, '_>,
        mut each: impl for<'a> FnMut(RawValue<'a>) -> Release<'a>,
    ) {
        let mut words = self.words.iter();
        self.range.release_each(xas, |_| match words.next() {
            // SAFETY: By the type invariant it is a value; it is locked up to now.
            Some(word) => each(unsafe { RawValue::from_word(*word) }),
            // Unreachable: there are as many.
            None => Release::Erase,
        });
        // INVARIANT: They are locked no longer.
        self.released = core::mem::replace(&mut self.len, 0);
    }

    /// Removes all values in one step, if they are those of a whole node of the lowest level. False,
    /// and nothing is done, if not.
    #[inline]
    pub(crate) fn erase_node(&mut self, xas: &mut XaState<'_, '_>) -> bool {
        if !self.range.erase_node(xas) {
            return false;
        }
        // INVARIANT: As above.
        self.released = core::mem::replace(&mut self.len, 0);
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
