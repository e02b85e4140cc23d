// SPDX-License-Identifier: GPL-2.0

//! A file's contents in memory: its tree of entries and the mappings of it.
//!
//! C header: [`include/linux/pagemap.h`](srctree/include/linux/pagemap.h)

use super::{
    Inode,
    PageIndex,
    PageRange, //
};
use crate::kern::{
    bindings,
    once::{
        read_once,
        Once, //
    },
    page::Pfn,
    xa::{
        Tree,
        TreeGuard, //
    }, //
};
use core::{
    mem::offset_of,
    ptr::{
        self,
        NonNull, //
    },
};
use kernel::{
    error::{
        code::*,
        to_result,
        Error,
        Result, //
    },
    sync::atomic::Atomic,
    types::Opaque, //
};
/// A file's contents: its tree of entries and the mappings of it.
///
/// # Invariants
///
/// A reference to one is to an address space that is alive for as long.
#[repr(transparent)]
pub(crate) struct Mapping(Opaque<bindings::address_space>);

impl Mapping {
    /// # Safety
    ///
    /// The address space stays alive for `'a`.
    #[inline]
    pub(crate) unsafe fn from_raw<'a>(mapping: NonNull<bindings::address_space>) -> &'a Self {
        // SAFETY: The type is transparent; the caller vouches for the lifetime.
        unsafe { mapping.cast::<Self>().as_ref() }
    }

    #[inline]
    pub(crate) fn as_ptr(&self) -> *mut bindings::address_space {
        self.0.get()
    }

    /// The inode that the contents belong to.
    #[inline]
    pub(crate) fn host(&self) -> &Inode {
        // SAFETY: The host of an inode's address space is that inode and lives as long.
        unsafe { Inode::from_raw(NonNull::new_unchecked((*self.as_ptr()).host)) }
    }

    /// Whether the core looks at the page tables of its mappings when it reclaims memory (the multi-generational
    /// LRU): it leaves out files of which it can read no folio, as it takes those for DAX.
    #[inline]
    pub(crate) fn is_looked_at_by_reclaim(&self) -> bool {
        // SAFETY: The address space is alive, and so are its operations.
        unsafe { (*read_once(&raw const (*self.as_ptr()).a_ops)).read_folio }.is_some()
    }

    /// The file that a tree is of.
    #[inline(always)]
    pub(in crate::kern) fn of(tree: &Tree) -> &Self {
        let offset = offset_of!(bindings::address_space, i_pages);
        // SAFETY: By the type invariant of the tree it is this field of an address space that lives as long.
        unsafe {
            Self::from_raw(NonNull::new_unchecked(
                tree.as_ptr().byte_sub(offset).cast(),
            ))
        }
    }

    /// The tree of entries (`i_pages`).
    #[inline]
    pub(crate) fn tree(&self) -> &Tree {
        // SAFETY: The tree is a field of the address space and lives as long.
        unsafe { Tree::from_raw(NonNull::new_unchecked(&raw mut (*self.as_ptr()).i_pages)) }
    }

    /// Whether there is no entry at all. Needs no lock; the answer may be outdated at once.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        // SAFETY: The pointer is valid, and the head is read atomically.
        unsafe { read_once(&raw const (*self.as_ptr()).i_pages.xa_head) }.is_null()
    }

    /// Counts the pages of an entry that was added to the tree (spec, R6). Nothing is counted under the
    /// lock of another tree.
    #[inline(always)]
    pub(crate) fn add_pages(&self, guard: &TreeGuard<'_>, pages: usize) {
        if guard.is_of(self.tree()) {
            // The lock keeps other writers out; readers take none.
            let counted = self.nrpages().read_once();
            self.nrpages().write_once(counted.wrapping_add(pages));
        }
    }

    /// Stops counting the pages of an entry that was removed from the tree (spec, R6), likewise.
    #[inline(always)]
    pub(crate) fn sub_pages(&self, guard: &TreeGuard<'_>, pages: usize) {
        self.add_pages(guard, pages.wrapping_neg());
    }

    #[inline]
    fn nrpages(&self) -> &Atomic<usize> {
        // SAFETY: The pointer is valid; the field changes under the tree's lock only, and is read
        // without it.
        unsafe { Atomic::from_ptr((&raw mut (*self.as_ptr()).nrpages).cast()) }
    }

    /// The pages that are counted as covered by entries (spec, R6).
    #[cfg(RDAX_CHECK)]
    pub(crate) fn pages(&self) -> usize {
        self.nrpages().read_once()
    }

    /// Whether anybody has the file mapped; if nobody has, no page table has a page of it. Outdated at
    /// once.
    #[inline]
    pub(crate) fn has_vmas(&self) -> bool {
        // SAFETY: The address space is alive; a word of it is read.
        unsafe { bindings::rdax_has_vmas(self.as_ptr()) }
    }

    /// Removes the pages from all page tables. Sleeps.
    #[inline]
    pub(crate) fn unmap(&self, range: PageRange) {
        let pages = if range.last == PageIndex::MAX {
            // Means everything from the first page on.
            0
        } else {
            range.pages()
        };
        // SAFETY: The address space is alive.
        unsafe { bindings::unmap_mapping_pages(self.as_ptr(), range.first.get(), pages, false) };
    }

    /// Write-protects all shared mappings, by entries of the last two levels, of `pages` pages
    /// from `index` on, which lie at `pfn`. Sleeps.
    #[inline]
    pub(crate) fn write_protect(&self, index: PageIndex, pfn: Pfn, pages: usize) {
        // SAFETY: The address space is alive; the range is compared with page-table entries only.
        unsafe {
            bindings::mapping_wrprotect_range(self.as_ptr(), index.get(), pfn.to_bits(), pages)
        };
    }

    /// Whether somebody has stored to a page of the range that was mapped ahead for writing, which
    /// will not be said again. With `small`, only entries of page tables' lowest level map the range,
    /// and what is stored after this is seen by the next who asks. Sleeps.
    pub(crate) fn note_stores(&self, range: PageRange, small: bool) -> bool {
        // SAFETY: The address space is alive.
        unsafe {
            bindings::rdax_mapping_note_stores(
                self.as_ptr(),
                range.first.get(),
                range.pages(),
                small,
            )
        }
    }

    /// Marks the dirty entries of the range as those that this write-back has to do. Sleeps.
    pub(crate) fn tag_for_writeback(&self, range: PageRange) {
        // SAFETY: The address space is alive.
        unsafe {
            bindings::tag_pages_for_writeback(self.as_ptr(), range.first.get(), range.last.get())
        };
    }

    /// Marks the page that an entry has at `index` as bad, tells the processes that map it, and takes
    /// it off their page tables, all through `dax_lock_mapping_entry`. `flags` are those of the memory
    /// failure (`MF_*`). Sleeps.
    ///
    /// Errors: `EBUSY` if the file is not one with DAX any more.
    #[cfg(CONFIG_MEMORY_FAILURE)]
    pub(crate) fn kill_procs(&self, index: PageIndex, flags: i32) -> Result {
        // SAFETY: The address space is alive.
        to_result(unsafe { bindings::mf_dax_kill_procs(self.as_ptr(), index.get(), 1, flags) })
    }

    /// Keeps faults of the file out while the result lives (`invalidate_lock`, exclusive). Sleeps.
    ///
    /// Held: nothing that a fault takes, `mmap_lock` and entries.
    ///
    /// Errors: `EINTR` for a fatal signal.
    pub(crate) fn invalidate_lock(&self) -> Result<InvalidateLockGuard<'_>> {
        // SAFETY: The address space is alive.
        to_result(unsafe { bindings::rdax_invalidate_lock(self.as_ptr()) })?;
        Ok(InvalidateLockGuard(self))
    }

    /// The same, without waiting for faults that are under way, or for others who keep them out. Does not
    /// sleep.
    ///
    /// Errors: `EAGAIN` if there are such.
    pub(crate) fn try_invalidate_lock(&self) -> Result<InvalidateLockGuard<'_>> {
        // SAFETY: The address space is alive.
        match unsafe { bindings::rdax_invalidate_trylock(self.as_ptr()) } {
            true => Ok(InvalidateLockGuard(self)),
            false => Err(EAGAIN),
        }
    }

    /// Whether this task keeps faults of the file out (`invalidate_lock`, exclusive). Not known, and said to be
    /// false, on PREEMPT_RT.
    pub(crate) fn are_faults_out(&self) -> bool {
        // SAFETY: The address space is alive.
        unsafe { bindings::rdax_invalidate_locked(self.as_ptr()) }
    }

    /// Keeps an error of write-back for the next `fsync`.
    pub(crate) fn set_error(&self, error: Error) {
        // SAFETY: The address space is alive.
        unsafe { bindings::rdax_mapping_set_error(self.as_ptr(), error.to_errno()) };
    }

    /// The number that waiters for an entry of this file use for it.
    #[inline]
    pub(crate) fn key(&self) -> usize {
        ptr::from_ref(self) as usize
    }
}

/// No fault of the file is served while this lives.
#[must_use = "faults are let in at once"]
pub(crate) struct InvalidateLockGuard<'m>(&'m Mapping);

impl Drop for InvalidateLockGuard<'_> {
    fn drop(&mut self) {
        // SAFETY: Locked by `invalidate_lock` or `try_invalidate_lock`.
        unsafe { bindings::rdax_invalidate_unlock(self.0.as_ptr()) };
    }
}
