// SPDX-License-Identifier: GPL-2.0

//! A file's tree of entries: an XArray with multi-index value entries.
//!
//! [`XaState`] walks it. A state borrows the guard of the tree's lock, so there is none without the
//! lock, and one at a time can change the tree. Values have a lock bit. One that is locked is changed
//! and removed only by the token that locking it gave ([`LockedSlot`], [`LockedValues`], [`NewValues`],
//! [`LockedSlots`]), which may be kept while the tree's lock is dropped: the value stays where it is.
//!
//! C header: [`include/linux/xarray.h`](srctree/include/linux/xarray.h)

use super::{
    bindings,
    fs::PageIndex,
    order::Order, //
};
use core::{
    marker::PhantomData,
    ptr::{self, NonNull},
};
use kernel::types::{NotThreadSafe, Opaque};

mod erase;
mod locked;
mod memory;
mod new_values;
mod node;
mod range;
mod state;

use self::node::{BOUNDS, RESTART};
pub(crate) use self::{
    locked::{Beside, LeftLocked, LockedSlot, LockedSlots},
    memory::OwnMemory,
    new_values::NewValues,
    node::NODE_ORDER,
    range::{LockedValues, Release},
    state::XaState,
};

/// A mark that an entry can carry.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    /// User space may have written to the pages (`PAGECACHE_TAG_DIRTY`).
    Dirty = 0,
    /// Write-back has this entry before it (`PAGECACHE_TAG_TOWRITE`).
    ToWrite = 2,
}

/// The XArray of an address space.
///
/// # Invariants
///
/// A reference to one is to the `i_pages` of an address space that is alive for as long. Its lock is taken with
/// interrupts off, and it holds no other entries than such as [`RawValue`] says. Each that has memory stands for an
/// entry that the folio of its pages counts ([`Association`](super::page::Association)), unless it is locked and a
/// token says otherwise.
#[repr(transparent)]
pub(crate) struct Tree(Opaque<bindings::xarray>);

/// Which tree something is for: to be compared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct TreeKey(usize);

impl TreeKey {
    /// That of the tests' memory, which is there for good, whatever has it.
    #[cfg(RDAX_TEST)]
    pub(super) const ANY: Self = Self(0);
}

impl Tree {
    /// The tree's key.
    #[inline(always)]
    pub(super) fn key(&self) -> TreeKey {
        TreeKey(self.0.get() as usize)
    }

    /// Whether what is for the tree with this key is for this one.
    #[inline(always)]
    fn is_for(&self, key: TreeKey) -> bool {
        #[cfg(RDAX_TEST)]
        if key == TreeKey::ANY {
            return true;
        }
        self.key() == key
    }

    /// # Safety
    ///
    /// The array is the `i_pages` of an address space that stays alive for `'a`, and holds no other entries than such as
    /// [`RawValue`] says.
    #[inline]
    pub(crate) unsafe fn from_raw<'a>(tree: NonNull<bindings::xarray>) -> &'a Self {
        // SAFETY: The type is transparent; the caller vouches for the lifetime.
        unsafe { tree.cast::<Self>().as_ref() }
    }

    #[inline(always)]
    pub(super) fn as_ptr(&self) -> *mut bindings::xarray {
        self.0.get()
    }

    /// Takes the tree's lock (`xa_lock_irq`). Does not sleep. Not with interrupts off.
    #[inline]
    pub(crate) fn lock(&self) -> TreeGuard<'_> {
        // SAFETY: The array is alive.
        unsafe { bindings::rdax_xa_lock_irq(self.0.get()) };
        TreeGuard {
            tree: self,
            _not_send: NotThreadSafe,
        }
    }
}

/// The tree's lock, held with interrupts off.
///
/// # Invariants
///
/// `Tree::lock` was called for the tree, and the lock has been held since.
#[must_use = "the lock is dropped at once"]
pub(crate) struct TreeGuard<'t> {
    tree: &'t Tree,
    _not_send: NotThreadSafe,
}

impl<'t> TreeGuard<'t> {
    /// A state at `index`. It has to be walked ([`XaState::load`], [`XaState::find`] …) before it
    /// stands at a value.
    #[inline(always)]
    pub(crate) fn xas(&mut self, index: PageIndex) -> XaState<'_, 't> {
        XaState::new(self, index)
    }

    /// Whether it is the lock of this tree.
    #[inline(always)]
    pub(crate) fn is_of(&self, tree: &Tree) -> bool {
        ptr::eq(self.tree, tree)
    }

    /// The state that was paused, to go on behind the value that it stood at.
    #[inline]
    pub(crate) fn resume(&mut self, paused: Paused) -> XaState<'_, 't> {
        let mut state = XaState::new(self, paused.0.unwrap_or(PageIndex::MAX));
        if paused.0.is_none() {
            state.xas.xa_node = BOUNDS;
        }
        state
    }
}

impl Drop for TreeGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant the lock is held.
        unsafe { bindings::rdax_xa_unlock_irq(self.tree.0.get()) };
    }
}

/// A value of a file's tree.
///
/// # Invariants
///
/// [`Entry::locked`](super::entry::Entry::locked) or
/// [`Entry::unlocked`](super::entry::Entry::unlocked) made it, or another of its flags or its lock bit was
/// set or cleared since. So it is odd, as every XArray value, and if it has frames, their pages are there
/// as long as it is in a tree, and for `'a`.
///
/// A value that is found in a tree has pages for as long as the tree's lock is held: before a device's pages
/// go, no entry has them any more, and a grace period of RCU is over since.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RawValue<'a>(usize, PhantomData<&'a ()>);

impl RawValue<'_> {
    /// # Safety
    ///
    /// The word is as the type invariant says.
    #[inline(always)]
    pub(super) const unsafe fn from_word(word: usize) -> Self {
        // INVARIANT: By this function's safety requirements.
        Self(word, PhantomData)
    }

    /// The word that a tree holds.
    #[inline(always)]
    pub(crate) const fn word(self) -> usize {
        self.0
    }

    #[inline(always)]
    const fn is_locked(self) -> bool {
        self.0 & LOCKED != 0
    }

    #[inline(always)]
    const fn locked(self) -> Self {
        Self(self.0 | LOCKED, PhantomData)
    }

    #[inline(always)]
    const fn unlocked(self) -> Self {
        Self(self.0 & !LOCKED, PhantomData)
    }

    /// Log2 of the indices that it is for.
    #[inline(always)]
    const fn order(self) -> Order {
        // SAFETY: By the type invariant these are the bits of an entry, which has them from an order.
        unsafe { Order::from_bits_unchecked(self.0 >> ORDER_SHIFT & ORDER_BITS) }
    }

    /// The indices that it is for.
    #[inline(always)]
    const fn pages(self) -> usize {
        1 << (self.0 >> ORDER_SHIFT & ORDER_BITS)
    }

    /// Whether it is for as many indices as another value.
    #[inline(always)]
    const fn has_order_of(self, other: RawValue<'_>) -> bool {
        (self.0 ^ other.0) & ORDER_BITS << ORDER_SHIFT == 0
    }

    /// Whether it is for one index.
    #[inline(always)]
    const fn is_of_one_page(self) -> bool {
        self.0 & ORDER_BITS << ORDER_SHIFT == 0
    }
}

/// The bits of a value that the core takes for the number of a NUMA node, in the tree of any file that
/// is not shmem's: above the XArray's own bit and one more.
pub(crate) const NODE_BITS: usize = ((1 << bindings::NODES_SHIFT) - 1) << 2;

/// The bit of a value that says that it is locked.
pub(crate) const LOCKED: usize = 1 << 1;

/// Where a value has its order.
pub(crate) const ORDER_SHIFT: usize = 12;
pub(crate) const ORDER_BITS: usize = 0x1f;

/// The bit of a value that says that it has memory.
pub(crate) const MEMORY: usize = 1 << 18;

/// The bits of a value that [`LockedSlot::lock_beside`] may set.
pub(crate) const FLAGS: usize = 7 << 19;

/// Why a value could not be inserted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum InsertError {
    /// There is a value where it was to be.
    Occupied,
    /// There is no memory for a node: see [`Reserve`].
    NoMemory,
}

/// Memory for a node of a tree, got without the lock for a value that is inserted under it.
///
/// # Invariants
///
/// The node is NULL, or one that belongs to no tree.
pub(crate) struct Reserve(*mut bindings::xa_node);

impl Reserve {
    /// No memory yet.
    #[inline(always)]
    pub(crate) const fn none() -> Self {
        Self(ptr::null_mut())
    }

    /// Gets memory for a node of `tree`. False when there is none. Sleeps.
    #[must_use]
    pub(crate) fn allocate(&mut self, tree: &Tree) -> bool {
        /// `XA_ERROR(-ENOMEM)`: what `xas_nomem` has to find to allocate.
        const NO_MEMORY: usize = (-(bindings::ENOMEM as isize) as usize) << 2 | 2;

        if !self.0.is_null() {
            return true;
        }
        let mut xas = new_state(tree, PageIndex::new(0));
        xas.xa_node = ptr::without_provenance_mut(NO_MEMORY);
        // SAFETY: The tree is alive, and of it only the flags are read.
        let got = unsafe { bindings::xas_nomem(&mut xas, bindings::GFP_KERNEL) };
        // INVARIANT: `xas_nomem` left NULL or a new node there.
        self.0 = xas.xa_alloc;
        got
    }
}

impl Drop for Reserve {
    #[inline]
    fn drop(&mut self) {
        if self.0.is_null() {
            return;
        }
        let mut xas = bindings::xa_state {
            xa_alloc: self.0,
            ..unused_state()
        };
        // SAFETY: By the type invariant the node is nobody's. Nothing else of the state is read.
        unsafe { bindings::xas_destroy(&mut xas) };
    }
}

const fn unused_state() -> bindings::xa_state {
    bindings::xa_state {
        xa: ptr::null_mut(),
        xa_index: 0,
        xa_shift: 0,
        xa_sibs: 0,
        xa_offset: 0,
        xa_pad: 0,
        xa_node: RESTART,
        xa_alloc: ptr::null_mut(),
        xa_update: None,
        xa_lru: ptr::null_mut(),
    }
}

#[inline(always)]
fn new_state(tree: &Tree, index: PageIndex) -> bindings::xa_state {
    bindings::xa_state {
        xa: tree.0.get(),
        xa_index: index.get(),
        ..unused_state()
    }
}

/// Where a walk goes on when the lock was dropped meanwhile: [`XaState::pause`],
/// [`TreeGuard::resume`].
#[must_use = "the walk does not go on"]
pub(crate) struct Paused(Option<PageIndex>);
