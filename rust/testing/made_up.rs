// SPDX-License-Identifier: GPL-2.0

//! Entries of frames that there may not be, to see how entries are packed.

use crate::kern::{
    entry::{Entry, Kind},
    order::Order,
    page::{FileBlock, PageBlock, Pfn},
    xa::{RawValue, TreeKey}, //
};

/// An entry whose memory there may not be: what it is packed into can be looked at, but no page is had
/// from it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct MadeUpEntry(Entry<'static>);

/// The kind of such an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum MadeUpKind {
    /// A placeholder.
    Empty,
    /// A hole.
    Zero,
    /// Memory from this frame on.
    Data(usize),
}

impl MadeUpEntry {
    /// An entry of a kind.
    pub(crate) fn new(kind: MadeUpKind, order: Order) -> Self {
        Self(match kind {
            MadeUpKind::Empty => Entry::empty(order),
            MadeUpKind::Zero => Entry::zero(order),
            MadeUpKind::Data(pfn) => {
                // SAFETY: Nobody gets a page from the block: the entry is given to nobody.
                let block = unsafe {
                    let pages = PageBlock::from_frames(Pfn::from_bits(pfn), order);
                    FileBlock::new(pages, TreeKey::ANY)
                };
                Entry::data(block)
            }
        })
    }

    /// The entry in a word, and whether it is locked.
    pub(crate) fn from_word(word: usize) -> (Self, bool) {
        // SAFETY: As in `new`.
        let (entry, locked) = Entry::from_raw(unsafe { RawValue::from_word(word) });
        (Self(entry), locked)
    }

    /// The word for a tree, locked.
    pub(crate) fn locked(self) -> usize {
        self.0.locked().word()
    }

    /// The word for a tree, unlocked.
    pub(crate) fn unlocked(self) -> usize {
        self.0.unlocked().word()
    }

    /// Its kind.
    pub(crate) fn kind(self) -> MadeUpKind {
        match self.0.kind() {
            Kind::Empty => MadeUpKind::Empty,
            Kind::Zero => MadeUpKind::Zero,
            Kind::Data(block) => MadeUpKind::Data(block.pfn().to_bits()),
        }
    }

    /// The pages that it covers.
    pub(crate) fn order(self) -> Order {
        self.0.order()
    }

    /// As [`Entry::writable`].
    pub(crate) fn writable(self) -> Self {
        Self(self.0.writable())
    }

    /// As [`Entry::fresh`].
    pub(crate) fn fresh(self) -> Self {
        Self(self.0.fresh())
    }

    /// As [`Entry::ahead`].
    pub(crate) fn ahead(self) -> Self {
        Self(self.0.ahead())
    }

    /// As [`Entry::protected`].
    pub(crate) fn protected(self) -> Self {
        Self(self.0.protected())
    }

    /// As [`Entry::is_writable`].
    pub(crate) fn is_writable(self) -> bool {
        self.0.is_writable()
    }

    /// As [`Entry::is_fresh`].
    pub(crate) fn is_fresh(self) -> bool {
        self.0.is_fresh()
    }

    /// As [`Entry::is_ahead`].
    pub(crate) fn is_ahead(self) -> bool {
        self.0.is_ahead()
    }
}
