// SPDX-License-Identifier: GPL-2.0

//! The memory of values: given to those that are locked, and taken from those that go.
//!
//! A value with memory that is in a tree stands for an entry that its folio counts. So one gets memory only with an
//! [`NewAssociation`] of its file, and whoever changes or removes it has an [`Association`] back.

use super::{
    super::{
        entry::Entry,
        fs::Mapping,
        page::{Association, EntryMemory, FileBlock, NewAssociation},
    },
    LockedSlot, RawValue, FLAGS, LOCKED, MEMORY, ORDER_BITS, ORDER_SHIFT,
};

impl<'a> RawValue<'a> {
    /// Whether it has memory.
    #[inline(always)]
    pub(super) const fn has_memory(self) -> bool {
        self.0 & MEMORY != 0
    }

    /// One of the same order without memory: a placeholder.
    #[inline(always)]
    pub(super) const fn without_memory(self) -> RawValue<'static> {
        // SAFETY: What is left are the bits of an empty entry of the order.
        unsafe { RawValue::from_word(self.0 & (1 | ORDER_BITS << ORDER_SHIFT)) }
    }

    /// This value, if it is another one but for its flags; otherwise that.
    #[inline(always)]
    pub(super) fn or_as(self, other: RawValue<'a>) -> RawValue<'a> {
        let same = (self.0 ^ other.0) & !(FLAGS | LOCKED) == 0;
        debug_assert!(same);
        match same {
            true => self,
            false => other,
        }
    }

    /// What is left of a value with memory when that goes.
    ///
    /// # Safety
    ///
    /// The value was in a tree, and is not any more or is about to be removed or to lose its memory, and nobody else is
    /// given this for it.
    #[inline(always)]
    pub(super) unsafe fn association(self) -> Option<Association<'a>> {
        let block = Entry::from_raw(self).0.block()?;
        // SAFETY: By this function's safety requirements.
        Some(unsafe { Association::of_entry(block) })
    }
}

impl LockedSlot<'_> {
    /// Memory for the value, if it is that of the file that the tree is of, and has the value's order.
    #[inline(always)]
    pub(crate) fn takes<'l>(&'l self, block: FileBlock<'l>) -> Option<OwnMemory<'l>> {
        let tree = self.tree.filter(|tree| tree.is_for(block.tree()))?;
        // INVARIANT: It was compared.
        (block.order() == self.place.order()).then_some(OwnMemory {
            slot: self,
            mapping: Mapping::of(tree),
            block,
        })
    }

    /// The value loses its memory, which is to be taken off its folio: it is one without when it is unlocked.
    /// `None` if it has none.
    #[inline(always)]
    pub(crate) fn detach(&self) -> Option<Association<'_>> {
        let value = self.value();
        if self.tree.is_none() || !value.has_memory() {
            return None;
        }
        // INVARIANT: There is no memory any more.
        self.word.set(value.without_memory().0);
        // SAFETY: By the type invariant it was a value of the tree, and this is the only token for it.
        unsafe { value.association() }
    }

    /// Takes the memory, if there is any, off its folio.
    #[inline(always)]
    pub(super) fn drop_memory(&self) {
        if self.value().has_memory() {
            self.detach_and_drop();
        }
    }

    #[cold]
    #[inline(never)]
    fn detach_and_drop(&self) {
        drop(self.detach());
    }
}

/// Memory that a locked value may be given: [`LockedSlot::takes`].
///
/// # Invariants
///
/// It is memory of the file that the value's tree is of, which is `mapping`, and has the value's order.
pub(crate) struct OwnMemory<'l> {
    slot: &'l LockedSlot<'l>,
    mapping: &'l Mapping,
    block: FileBlock<'l>,
}

impl<'l> OwnMemory<'l> {
    /// The memory, to be associated.
    #[inline(always)]
    pub(crate) fn memory(&self) -> EntryMemory<'l> {
        // SAFETY: By the type invariant.
        unsafe { EntryMemory::new(self.block.pages(), self.mapping, self.slot.first()) }
    }

    /// Makes the value the one, of the same memory, that `make` makes of it. What is counted for other memory, or for an
    /// entry of another file, is counted no longer, and nothing else is done.
    #[inline(always)]
    pub(crate) fn set(
        self,
        association: NewAssociation<'_>,
        make: impl for<'a> FnOnce(RawValue<'a>) -> RawValue<'a>,
    ) {
        let is_for_it = association.is_for(self.mapping, self.block.pages());
        debug_assert!(is_for_it);
        if !is_for_it {
            return;
        }
        self.slot.drop_memory();
        let value = Entry::data(self.block).unlocked();
        // INVARIANT: It has the order and the memory, whose association it stands for.
        self.slot.word.set(make(value).or_as(value).unlocked().0);
        association.leave();
    }
}
