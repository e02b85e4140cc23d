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
    /// The last of the indices for which values were wanted.
    last: PageIndex,
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
            values: LockedRange::new(tree, wanted.first),
            last: wanted.last,
            largest,
            memory: None,
            filled: 0,
        }
    }

    /// The first of the indices for which values were wanted.
    #[inline(always)]
    pub(crate) fn first(&self) -> PageIndex {
        self.values.first()
    }

    /// The indices that there are values for.
    #[inline(always)]
    pub(crate) fn pages(&self) -> usize {
        self.values.pages()
    }

    /// The memory that the values were given, or some of them.
    #[inline(always)]
    pub(crate) fn memory(&self) -> Option<FilePages<'l>> {
        self.memory
    }

    /// Stores values from the first of the wanted indices on, as long as there is nothing, and there is memory for the
    /// tree without waiting for it. With `mark` they are marked. Called once.
    #[inline(always)]
    pub(crate) fn insert(&mut self, xas: &mut XaState<'_, '_>, mark: Option<Mark>) {
        if self.values.pages() != 0 || !xas.guard.is_of(self.values.tree()) {
            return;
        }
        let pages = store(xas, self.values.first(), self.last, self.largest, mark);
        // SAFETY: There are no others, and these were stored as locked ones from the first index on.
        unsafe { self.values.add(pages) };
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
        let mut filled = self.filled;
        let mut region = Region::lock(memory.first());
        // Ends: each round is for the indices behind the last one's.
        while filled < pages {
            let index = PageIndex::new(self.values.first().get() + filled);
            let order = order_at(self.last, self.largest, index);
            let end = filled + order.pages();
            let block = memory.block(filled, order);
            let Some(block) = block.filter(|_| end <= pages) else {
                break;
            };
            // SAFETY: It is memory of the file that the tree is of. The value stands for it as of now.
            if !unsafe { region.give_free(EntryMemory::new(block.pages(), mapping, index)) } {
                break;
            }
            filled = end;
        }
        // INVARIANT: They stand for it, as said.
        self.filled = filled;
        filled
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
        let (first, last) = (self.values.first(), self.last);
        let (largest, memory) = (self.largest, self.memory);
        self.values.release_each(xas, |index, now| {
            let offset = index.get() - first.get();
            let order = order_at(last, largest, index);
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

/// Stores locked values from `first` to `last`, as long as there is nothing, and there is memory for the tree. Returns
/// how many indices have one, from the first on.
#[inline(always)]
fn store(
    xas: &mut XaState<'_, '_>,
    first: PageIndex,
    last: PageIndex,
    largest: Order,
    mark: Option<Mark>,
) -> usize {
    let mut index = first;
    // Ends: each round is for the indices behind the last one's.
    while index <= last {
        let value = Entry::empty(order_at(last, largest, index)).unlocked();
        let pages = value.pages();
        if xas.at(index).is_some() {
            break;
        }
        match xas.insert_in_node(value) {
            Some(Ok(())) => (),
            Some(Err(_)) => break,
            None => {
                if pages != 1 && xas.reserve_order(value.order()).is_err() {
                    break;
                }
                // SAFETY: Nothing is there.
                if !unsafe { xas.store_locked(value) } {
                    break;
                }
            }
        }
        if let Some(mark) = mark {
            xas.set_mark(mark);
        }
        index = PageIndex::new(index.get().wrapping_add(pages));
    }
    index.get().wrapping_sub(first.get())
}

/// The order of the value that begins at `index` where values were wanted up to `last`.
#[inline(always)]
fn order_at(last: PageIndex, largest: Order, index: PageIndex) -> Order {
    if largest == Order::PTE {
        return largest;
    }
    largest.fitting(index.get(), last.get() - index.get() + 1)
}
