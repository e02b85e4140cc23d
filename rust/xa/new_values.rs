// SPDX-License-Identifier: GPL-2.0

//! New values one behind the other, and the memory for them.

use super::{
    super::{
        entry::Entry,
        fs::{Mapping, PageIndex, PageRange},
        order::Order,
        page::{EntryMemory, FilePages, Region},
    },
    range::LockedRange,
    Mark, RawValue, Release, Tree, XaState,
};

/// New locked values one behind the other, which have no memory as long as they are locked.
///
/// # Invariants
///
/// The values are those of the range, and have the orders that `order_at` says. The first of them, with `filled`
/// indices, stand for entries that are counted, with these pages of `memory`, which is the file's.
pub(crate) struct NewValues<'l, 't: 'l> {
    values: LockedRange<'t>,
    /// The indices for which values were wanted.
    wanted: PageRange,
    largest: Order,
    memory: Option<FilePages<'l>>,
    filled: usize,
}

impl<'l, 't: 'l> NewValues<'l, 't> {
    /// No values yet, for indices of a range, of orders up to `largest`.
    #[inline(always)]
    pub(crate) fn new(tree: &'t Tree, wanted: PageRange, largest: Order) -> Self {
        // INVARIANT: There are none.
        Self {
            values: LockedRange::new(tree),
            wanted,
            largest,
            memory: None,
            filled: 0,
        }
    }

    /// The indices that there are values for.
    #[inline(always)]
    pub(crate) fn pages(&self) -> usize {
        self.values.pages()
    }

    /// The order of the value that begins at `index`.
    #[inline(always)]
    fn order_at(&self, index: PageIndex) -> Order {
        order_at(self.wanted, self.largest, index)
    }

    /// Stores values from the first of the wanted indices on, as long as there is nothing, and there is memory for the
    /// tree without waiting for it. With `mark` they are marked. Called once.
    #[inline(always)]
    pub(crate) fn insert(&mut self, xas: &mut XaState<'_, '_>, mark: Option<Mark>) {
        if self.values.pages() != 0 || !self.values.takes(xas.guard, self.wanted.first) {
            return;
        }
        self.values.begin(self.wanted.first);
        let mut index = self.wanted.first;
        // Ends: each round is for the indices behind the last one's.
        while index <= self.wanted.last {
            let value = Entry::empty(self.order_at(index)).unlocked();
            let pages = value.pages();
            if xas.at(index).is_some() {
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
            // SAFETY: The value was stored as a locked one, right behind the others.
            unsafe { self.values.add(pages) };
            index = PageIndex::new(index.get().wrapping_add(pages));
        }
    }

    /// Gives the values memory for when they are unlocked, from the first on: as far as there is some for `pages`
    /// indices, in one region, and nobody uses it. Returns the indices of those that have some. Nothing is done with
    /// another file's memory. Called once. Does not sleep.
    #[inline(always)]
    pub(crate) fn fill(&mut self, memory: FilePages<'l>, pages: usize) -> usize {
        let tree = self.values.tree();
        if self.memory.is_some() || !tree.is_for(memory.tree()) {
            return self.filled;
        }
        let mapping = Mapping::of(tree);
        let pages = pages.min(self.values.pages());
        self.memory = Some(memory);
        let mut region = Region::lock(memory.first());
        // Ends: each round is for the indices behind the last one's.
        while self.filled < pages {
            let index = PageIndex::new(self.wanted.first.get() + self.filled);
            let order = self.order_at(index);
            let block = memory.block(self.filled, order);
            let Some(block) = block.filter(|_| self.filled + order.pages() <= pages) else {
                break;
            };
            // SAFETY: It is memory of the file that the tree is of. The value stands for it as of now.
            if !unsafe { region.give_free(EntryMemory::new(block.pages(), mapping, index)) } {
                break;
            }
            // INVARIANT: As said.
            self.filled += order.pages();
        }
        self.filled
    }

    /// Unlocks or removes all values, one after the other, as `each` says, which is told their indices, their orders,
    /// and those that are to have memory with it. Nothing is done under the lock of another tree.
    #[inline(always)]
    pub(crate) fn release(
        &mut self,
        xas: &mut XaState<'_, '_>,
        mut each: impl for<'a> FnMut(PageIndex, Order, Option<RawValue<'a>>) -> Release<'a>,
    ) {
        if !xas.guard.is_of(self.values.tree()) {
            return;
        }
        let filled = core::mem::replace(&mut self.filled, 0);
        let (wanted, largest, memory) = (self.wanted, self.largest, self.memory);
        self.values.release_each(xas, |index, now| {
            let offset = index.get() - wanted.first.get();
            let order = order_at(wanted, largest, index);
            let block = match offset < filled {
                true => memory.and_then(|memory| memory.block(offset, order)),
                false => None,
            };
            let Some(block) = block else {
                return match each(index, order, None) {
                    Release::Unlock(value, _) if value.has_memory() || !value.has_order_of(now) => {
                        Release::Erase
                    }
                    release => release,
                };
            };
            let value = Entry::data(block).unlocked();
            match each(index, order, Some(value)) {
                Release::Unlock(made, clean) => Release::Unlock(made.or_as(value), clean),
                Release::Erase => {
                    // SAFETY: By the type invariant the value stands for it, and is removed now.
                    drop(unsafe { value.association() });
                    Release::Erase
                }
            }
        });
    }
}

/// The order of the value that begins at `index` of a range for which values were wanted.
#[inline(always)]
fn order_at(wanted: PageRange, largest: Order, index: PageIndex) -> Order {
    if largest == Order::PTE {
        return largest;
    }
    largest.fitting(index.get(), wanted.last.get() - index.get() + 1)
}
