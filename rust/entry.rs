// SPDX-License-Identifier: GPL-2.0

//! The entry: one value of a file's tree, 63 bits (spec, section 3).
//!
//! From the lowest bit: one that is always set (it makes the word an XArray value), the lock, ten
//! that are 0, five of the order, two of the kind, one that says whether writes need nothing of the
//! filesystem, one that says whether the blocks are new, one that says whether pages were mapped ahead
//! for writing, and from bit 22 on the frame's number: 42 bits, of which a machine with 52 bits of
//! physical address needs 40.
//!
//! The ten are those by which the core finds a NUMA node: `cachestat` takes a value in the tree of a
//! file that is not shmem's for what is left of a page that was evicted, and node 0 is always there.

use super::{
    order::Order,
    page::{DevPage, FileBlock, PageBlock, Pfn},
    xa::{self, RawValue, LOCKED, NODE_BITS, ORDER_BITS, ORDER_SHIFT}, //
};
use core::marker::PhantomData;

const VALUE: usize = 1 << 0;
const KIND_SHIFT: usize = 17;
const KIND_BITS: usize = 0x3;
const WRITABLE: usize = 1 << 19;
const FRESH: usize = 1 << 20;
const AHEAD: usize = 1 << 21;
const PFN_SHIFT: usize = 22;

const EMPTY: usize = 0;
const ZERO: usize = 1;
const DATA: usize = 2;

/// The kind of an entry, with its memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind<'a> {
    /// A placeholder: nothing is known yet.
    Empty,
    /// A hole, mapped with zeroes.
    Zero,
    /// This memory of the device.
    Data(PageBlock<'a>),
}

/// An entry. The lock is not part of it: [`Entry::locked`] and [`Entry::unlocked`] make the word
/// that the tree holds.
///
/// # Invariants
///
/// The bits are as above. Those of a data entry were made from a [`FileBlock`] of the entry's order, by
/// [`Entry::data`], which has no kin that changes the kind, the order or the frame. Its pages are there for
/// `'a`: the time of the tree's lock under which it was found, of what has it locked, or of the block.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry<'a> {
    bits: usize,
    _kept: PhantomData<&'a ()>,
}

impl<'a> Entry<'a> {
    const fn new(kind: usize, order: Order, pfn: usize) -> Self {
        // The bits that the core reads lie between the lock and our own.
        const { assert!(NODE_BITS & (VALUE | LOCKED) == 0 && NODE_BITS >> ORDER_SHIFT == 0) };
        const { assert!(xa::FLAGS == WRITABLE | FRESH | AHEAD) };
        // What a value without memory is told by, and made of one with it.
        const { assert!(DATA << KIND_SHIFT == xa::MEMORY && (EMPTY | ZERO) & DATA == 0 && EMPTY == 0) };
        Self {
            bits: VALUE | (order.bits() << ORDER_SHIFT) | (kind << KIND_SHIFT) | (pfn << PFN_SHIFT),
            _kept: PhantomData,
        }
    }

    /// A placeholder of `order`.
    #[inline]
    pub(crate) const fn empty(order: Order) -> Self {
        Self::new(EMPTY, order, 0)
    }

    /// A hole of `order`.
    #[inline]
    pub(crate) const fn zero(order: Order) -> Self {
        Self::new(ZERO, order, 0)
    }

    /// The device's memory.
    #[inline]
    pub(crate) const fn data(block: FileBlock<'a>) -> Self {
        let block = block.pages();
        Self::new(DATA, block.order(), block.pfn().to_bits())
    }

    /// The same memory, known to be written to without asking the filesystem: its blocks are
    /// allocated and written, and no other file has them.
    ///
    /// A fault that finds it does not ask the filesystem. So whoever takes one of these away removes
    /// the entry first, and none is made meanwhile, because faults hold `invalidate_lock` shared:
    ///
    /// - truncate, hole punch, zeroing, collapse, insert: `dax_break_layout`
    ///   under the exclusive `invalidate_lock`, for XFS of the whole file;
    /// - `FICLONE`, `FICLONERANGE`, dedupe: both files' layouts are broken under both locks. XFS then
    ///   lets read faults on the source go on while it remaps; these make entries that are not
    ///   writable, and write faults wait for the lock;
    /// - unsharing, and writes to shared blocks: the entries are evicted before the new blocks are
    ///   filled, and again after they were put in place (`io::WriteIter`);
    /// - a change to another kind of file (`FS_IOC_FSSETXATTR`, `S_DAX`): only of an inode that is
    ///   evicted in between;
    /// - exchange of extents and defragmentation: XFS removes the entries of both ranges under both
    ///   locks (`dax_delete_mapping_range`), ext4 refuses files with DAX.
    #[inline]
    pub(crate) const fn writable(self) -> Self {
        Self {
            bits: self.bits | WRITABLE,
            ..self
        }
    }

    /// Whether the entry was made by [`Entry::writable`].
    #[inline]
    pub(crate) const fn is_writable(self) -> bool {
        self.bits & WRITABLE != 0
    }

    /// The same memory, whose blocks the file got for a write fault: what follows is likely to have
    /// none of its own yet, either.
    #[inline]
    pub(crate) const fn fresh(self) -> Self {
        Self {
            bits: self.bits | FRESH,
            ..self
        }
    }

    /// Whether the entry was made by [`Entry::fresh`].
    #[inline]
    pub(crate) const fn is_fresh(self) -> bool {
        self.bits & FRESH != 0
    }

    /// The same memory, some of which a page table has writable though nobody has stored to it: the
    /// processor notes it when somebody does, and the file's times have to be told.
    #[inline]
    pub(crate) const fn ahead(self) -> Self {
        Self {
            bits: self.bits | AHEAD,
            ..self
        }
    }

    /// The same memory, when no page table has it writable any more.
    #[inline]
    pub(crate) const fn protected(self) -> Self {
        Self {
            bits: self.bits & !AHEAD,
            ..self
        }
    }

    /// Whether the entry was made by [`Entry::ahead`].
    #[inline]
    pub(crate) const fn is_ahead(self) -> bool {
        self.bits & AHEAD != 0
    }

    /// The entry in a word of a tree, and whether it is locked.
    #[inline]
    pub(crate) const fn from_raw(raw: RawValue<'a>) -> (Self, bool) {
        // INVARIANT: By the invariant of `RawValue` an entry was made into it, whose pages are there.
        let entry = Self {
            bits: raw.word() & !LOCKED,
            _kept: PhantomData,
        };
        (entry, raw.word() & LOCKED != 0)
    }

    /// The word for a tree, locked.
    #[inline]
    pub(crate) const fn locked(self) -> RawValue<'a> {
        // SAFETY: This is what a value is, and its pages are there by the type invariant.
        unsafe { RawValue::from_word(self.bits | LOCKED) }
    }

    /// The word for a tree, unlocked.
    #[inline]
    pub(crate) const fn unlocked(self) -> RawValue<'a> {
        // SAFETY: As above.
        unsafe { RawValue::from_word(self.bits) }
    }

    /// The pages that the entry covers.
    #[inline]
    pub(crate) const fn order(self) -> Order {
        // SAFETY: By the type invariant these bits were an order's.
        unsafe { Order::from_bits_unchecked((self.bits >> ORDER_SHIFT) & ORDER_BITS) }
    }

    /// Whether the entry covers one page.
    #[inline]
    pub(crate) const fn is_of_one_page(self) -> bool {
        self.bits & (ORDER_BITS << ORDER_SHIFT) == 0
    }

    #[inline]
    const fn is_of(self, kind: usize) -> bool {
        self.bits & KIND_BITS << KIND_SHIFT == kind << KIND_SHIFT
    }

    /// Whether the entry is a placeholder.
    #[inline]
    pub(crate) const fn is_empty(self) -> bool {
        self.is_of(EMPTY)
    }

    /// Whether the entry stands for a hole.
    #[inline]
    pub(crate) const fn is_zero(self) -> bool {
        self.is_of(ZERO)
    }

    /// Whether the entry stands for memory.
    #[inline]
    pub(crate) const fn is_data(self) -> bool {
        self.is_of(DATA)
    }

    /// The kind of the entry, with its memory.
    #[inline]
    pub(crate) const fn kind(self) -> Kind<'a> {
        match (self.bits >> KIND_SHIFT) & KIND_BITS {
            // SAFETY: By the type invariant the entry was made of these pages, which are there.
            DATA => Kind::Data(unsafe {
                PageBlock::from_frames(Pfn::from_bits(self.bits >> PFN_SHIFT), self.order())
            }),
            ZERO => Kind::Zero,
            _ => Kind::Empty,
        }
    }

    /// The entry's memory, if it stands for any.
    #[inline]
    pub(crate) const fn block(self) -> Option<PageBlock<'a>> {
        match self.kind() {
            Kind::Data(block) => Some(block),
            _ => None,
        }
    }

    /// The first page of its memory.
    #[inline]
    pub(crate) fn page(self) -> Option<DevPage<'a>> {
        Some(self.block()?.first())
    }
}
