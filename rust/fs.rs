// SPDX-License-Identifier: GPL-2.0

//! Inodes, their address spaces, and positions in a file.
//!
//! C headers: [`include/linux/fs.h`](srctree/include/linux/fs.h),
//! [`include/linux/pagemap.h`](srctree/include/linux/pagemap.h)

use super::{
    bindings,
    members::OnSuperBlock,
    once::{full_barrier, read_once, Once},
    order::Order,
    page::Pfn,
    xa::{Tree, TreeGuard}, //
};
use core::ptr::{self, NonNull};
use kernel::{
    error::{code::*, to_result, Error, Result},
    ffi::{c_ulong, c_void},
    sync::atomic::Atomic,
    types::{NotThreadSafe, Opaque}, //
};

/// A position in a file, in pages.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct PageIndex(usize);

impl PageIndex {
    /// The last index that a file can have.
    pub(crate) const MAX: Self = Self(usize::MAX >> Order::PAGE_SHIFT);

    #[inline]
    pub(crate) const fn new(index: usize) -> Self {
        Self(index)
    }

    /// The page that the byte at `pos` is in.
    #[inline]
    pub(crate) const fn of_byte(pos: u64) -> Self {
        Self((pos >> Order::PAGE_SHIFT) as usize)
    }

    #[inline]
    pub(crate) const fn get(self) -> usize {
        self.0
    }

    /// The position in the file of the page's first byte.
    #[inline]
    pub(crate) const fn to_byte(self) -> u64 {
        (self.0 as u64) << Order::PAGE_SHIFT
    }
}

/// A range of pages of a file, both ends included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PageRange {
    pub(crate) first: PageIndex,
    pub(crate) last: PageIndex,
}

impl PageRange {
    /// All of a file.
    pub(crate) const ALL: Self = Self {
        first: PageIndex::new(0),
        last: PageIndex::MAX,
    };

    /// The pages that the bytes from `start` to `end`, both included, are in; at least one. An end
    /// below the start of the file (callers say -1) or past its largest size means all the rest.
    pub(crate) fn of_bytes(start: i64, end: i64) -> Self {
        let first = PageIndex::of_byte(start.max(0) as u64);
        let last = if end < 0 || end == i64::MAX {
            PageIndex::MAX
        } else {
            PageIndex::of_byte(end as u64).max(first)
        };
        Self { first, last }
    }

    /// The whole pages from byte `start` up to `end`, included; -1 means all the rest.
    pub(crate) fn within_bytes(start: i64, end: i64) -> Option<Self> {
        let start = (start.max(0) as u64).next_multiple_of(Order::PTE.bytes() as u64);
        let first = PageIndex::of_byte(start);
        if end < 0 {
            return Some(Self {
                first,
                last: PageIndex::MAX,
            });
        }
        let end = PageIndex::of_byte(end as u64 + 1).get();
        (end > first.get()).then(|| Self {
            first,
            last: PageIndex::new(end - 1),
        })
    }

    /// The pages that `len` bytes (at least one) from `pos` on are in.
    pub(crate) fn of_len(pos: u64, len: u64) -> Self {
        Self {
            first: PageIndex::of_byte(pos),
            last: PageIndex::of_byte(pos.saturating_add(len.max(1) - 1)),
        }
    }

    /// The number of pages.
    pub(crate) fn pages(self) -> usize {
        self.last
            .get()
            .saturating_sub(self.first.get())
            .saturating_add(1)
    }
}

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

/// The locks that keep the blocks of the files on one device while they are copied from.
///
/// # Invariants
///
/// The pointer is from `rdax_blocks_new`, and this value's own.
pub(crate) struct BlockLocks(NonNull<bindings::rdax_blocks>);

// SAFETY: It points to locks, which all tasks may use.
unsafe impl Send for BlockLocks {}
// SAFETY: As above.
unsafe impl Sync for BlockLocks {}

impl BlockLocks {
    /// Locks for one more device. Sleeps. Fails for want of memory.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: It takes nothing.
        let locks = unsafe { bindings::rdax_blocks_new() };
        // INVARIANT: It was made just now.
        Ok(Self(NonNull::new(locks).ok_or(ENOMEM)?))
    }

    /// Keeps the blocks that the filesystem says a file has, from now on, from being given up by a page
    /// fault that makes a copy of them, as long as the result lives. Whoever has it neither lets page faults
    /// happen nor waits for more than the filesystem's answer. Sleeps, unless `nowait`.
    ///
    /// Errors: `EAGAIN` with `nowait`, `EINTR` for a fatal signal.
    #[inline]
    pub(crate) fn keep<'a>(&'a self, inode: &'a Inode, nowait: bool) -> Result<BlocksKept<'a>> {
        // SAFETY: The locks and the inode are alive.
        to_result(unsafe {
            bindings::rdax_blocks_lock_shared(self.0.as_ptr(), inode.as_ptr(), nowait)
        })?;
        Ok(BlocksKept {
            locks: self,
            inode,
            _not_send: NotThreadSafe,
        })
    }

    /// Waits until nobody copies from the blocks of the file, and keeps others from beginning, while the
    /// filesystem puts a copy in their place. Sleeps.
    ///
    /// Errors: `EINTR` for a fatal signal.
    pub(crate) fn give_up<'a>(&'a self, inode: &'a Inode) -> Result<BlocksGivenUp<'a>> {
        // SAFETY: The locks and the inode are alive.
        to_result(unsafe { bindings::rdax_blocks_lock(self.0.as_ptr(), inode.as_ptr()) })?;
        Ok(BlocksGivenUp {
            locks: self,
            inode,
            _not_send: NotThreadSafe,
        })
    }
}

impl Drop for BlockLocks {
    fn drop(&mut self) {
        // SAFETY: By the type invariant. Whoever has one of them locked borrows this value.
        unsafe { bindings::rdax_blocks_free(self.0.as_ptr()) };
    }
}

/// The blocks of a file stay its own while this lives, as far as page faults go.
#[must_use = "the blocks may go at once"]
pub(crate) struct BlocksKept<'a> {
    locks: &'a BlockLocks,
    inode: &'a Inode,
    _not_send: NotThreadSafe,
}

impl Drop for BlocksKept<'_> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: Locked by [`BlockLocks::keep`], by this task.
        unsafe {
            bindings::rdax_blocks_unlock_shared(self.locks.0.as_ptr(), self.inode.as_ptr());
        }
    }
}

/// Nobody copies from the blocks of a file by [`BlocksKept`] while this lives.
#[must_use = "readers are let in at once"]
pub(crate) struct BlocksGivenUp<'a> {
    locks: &'a BlockLocks,
    inode: &'a Inode,
    _not_send: NotThreadSafe,
}

impl Drop for BlocksGivenUp<'_> {
    fn drop(&mut self) {
        // SAFETY: Locked by [`BlockLocks::give_up`], by this task.
        unsafe { bindings::rdax_blocks_unlock(self.locks.0.as_ptr(), self.inode.as_ptr()) };
    }
}

/// An inode.
///
/// # Invariants
///
/// A reference to one is to an inode that is alive for as long.
#[repr(transparent)]
pub(crate) struct Inode(Opaque<bindings::inode>);

impl Inode {
    /// # Safety
    ///
    /// The inode stays alive for `'a`.
    #[inline]
    pub(crate) unsafe fn from_raw<'a>(inode: NonNull<bindings::inode>) -> &'a Self {
        // SAFETY: The type is transparent; the caller vouches for the lifetime.
        unsafe { inode.cast::<Self>().as_ref() }
    }

    #[inline]
    pub(crate) fn as_ptr(&self) -> *mut bindings::inode {
        self.0.get()
    }

    /// The inode's contents.
    #[inline]
    pub(crate) fn mapping(&self) -> &Mapping {
        // SAFETY: An inode always has an address space, which lives as long as it does: for a
        // regular file on a block device it is `i_data`.
        unsafe { Mapping::from_raw(NonNull::new_unchecked((*self.as_ptr()).i_mapping)) }
    }

    /// Whether files like this one can share blocks with others, so that blocks of theirs are given up by
    /// page faults.
    #[inline]
    pub(crate) fn may_share_blocks(&self) -> bool {
        // SAFETY: The inode is alive.
        unsafe { bindings::rdax_may_share_blocks(self.as_ptr()) }
    }

    /// The file's size in bytes.
    #[inline]
    pub(crate) fn size(&self) -> u64 {
        // SAFETY: The inode is alive. On a 64-bit machine the size is read in one go.
        let size = unsafe { Atomic::from_ptr(&raw mut (*self.as_ptr()).i_size) };
        // Pairs with `i_size_write`: whoever sees the new size sees what was there for it.
        size.load_acquire() as u64
    }

    /// Sets the times of a file that was written to, now. Called for a file that is being written back.
    /// Sleeps.
    pub(crate) fn update_times(&self) {
        // SAFETY: The inode is alive, and so is the filesystem.
        unsafe { bindings::rdax_update_times(self.as_ptr()) };
    }

    /// The file's size, rounded up to pages.
    #[inline]
    pub(crate) fn size_pages(&self) -> usize {
        (self.size() as usize).div_ceil(Order::PTE.bytes())
    }

    #[inline]
    fn flags(&self) -> u32 {
        // SAFETY: The inode is alive, and the word is written atomically.
        unsafe { read_once(&raw const (*self.as_ptr()).i_flags) }
    }

    /// The filesystem's type, to be compared.
    #[inline]
    pub(super) fn filesystem(&self) -> *mut bindings::file_system_type {
        // SAFETY: The inode is alive, and so is its superblock; neither field changes.
        unsafe { (*(*self.as_ptr()).i_sb).s_type }
    }

    /// Whether the file's contents are accessed directly (`S_DAX`).
    #[inline]
    pub(crate) fn is_dax(&self) -> bool {
        self.flags() & bindings::S_DAX != 0
    }

    /// Whether memory errors are known of the device that the filesystem is on, so that who maps
    /// its memory has to ask for them. The answer may be outdated at once.
    ///
    /// Held: the lock of an entry of the file that has the device's memory. A device that goes away
    /// waits for it ([`evict_device_memory`](crate::dax::layout::evict_device_memory)), and its list of errors stays until
    /// then.
    #[inline]
    pub(crate) fn device_has_bad_blocks(&self) -> bool {
        // SAFETY: The filesystem keeps its block device, and that its disk.
        let list = unsafe {
            let bdev = (*(*self.as_ptr()).i_sb).s_bdev;
            if bdev.is_null() {
                return false;
            }
            (*(*bdev).bd_disk).bb
        };
        if list.is_null() {
            return false;
        }
        // SAFETY: The driver, which is bound by the requirement above, keeps the list. The number
        // is read atomically.
        unsafe {
            read_once(
                list.byte_add(bindings::BADBLOCKS_COUNT as usize)
                    .cast::<i32>(),
            ) != 0
        }
    }

    /// Log2 of the filesystem's block size in bytes.
    #[inline]
    pub(crate) fn block_bits(&self) -> u32 {
        // SAFETY: The inode is alive; the field does not change while the file is in use.
        unsafe { (*self.as_ptr()).i_blkbits.into() }
    }

    /// The file's number.
    #[cfg(RDAX_CHECK)]
    pub(crate) fn number(&self) -> u64 {
        // SAFETY: The inode is alive; the field does not change while the file is in use.
        unsafe { (*self.as_ptr()).i_ino }
    }

    /// Whether the file has no name left and goes away with its last user.
    pub(crate) fn is_unlinked(&self) -> bool {
        // SAFETY: The inode is alive; the word is read atomically.
        let links =
            unsafe { read_once((&raw const (*self.as_ptr()).__bindgen_anon_1).cast::<u32>()) };
        links == 0
    }

    /// Notes that the file has dirty entries (`I_DIRTY_PAGES`). May sleep.
    #[inline]
    pub(crate) fn mark_dirty_pages(&self) {
        // As `__mark_inode_dirty` does it: the mark in the tree is seen by whoever clears the state.
        full_barrier();
        // SAFETY: The inode is alive, and the word is written atomically.
        let state = unsafe { read_once((&raw const (*self.as_ptr()).i_state).cast::<u32>()) };
        if state & bindings::inode_state_flags_enum_I_DIRTY_PAGES != 0 {
            return;
        }
        // SAFETY: The inode is alive.
        unsafe {
            bindings::__mark_inode_dirty(
                self.as_ptr(),
                bindings::inode_state_flags_enum_I_DIRTY_PAGES as i32,
            )
        };
    }
}

/// A reference to an inode of a mounted filesystem, which stays mounted for it. Dropping it sleeps:
/// it may have been the last of both.
///
/// # Invariants
///
/// The inode's reference and an active one to its superblock are owned.
pub(crate) struct InodeRef(NonNull<bindings::inode>);

impl InodeRef {
    /// A reference to an inode whose memory is kept by `guard`, and which `guard` is dropped for.
    /// `None` if the inode or its filesystem is on its way out. Sleeps.
    ///
    /// # Safety
    ///
    /// The inode and its superblock are not freed before `guard` is dropped, which lets sleep.
    pub(super) unsafe fn take<G>(inode: NonNull<bindings::inode>, guard: G) -> Option<Self> {
        // SAFETY: By the function's requirements; the field does not change.
        let super_block = unsafe { (*inode.as_ptr()).i_sb };
        // A reference to the inode alone would be one too many when the filesystem is unmounted.
        // SAFETY: As above.
        if !unsafe { bindings::rdax_get_active_super(super_block) } {
            return None;
        }
        // SAFETY: As above.
        let grabbed = NonNull::new(unsafe { bindings::igrab(inode.as_ptr()) });
        drop(guard);
        if grabbed.is_none() {
            // SAFETY: Taken above; sleeping is allowed again.
            unsafe { bindings::deactivate_super(super_block) };
        }
        // INVARIANT: Both references were taken.
        grabbed.map(Self)
    }
}

impl core::ops::Deref for InodeRef {
    type Target = Inode;

    fn deref(&self) -> &Inode {
        // SAFETY: The reference is owned.
        unsafe { Inode::from_raw(self.0) }
    }
}

impl Drop for InodeRef {
    fn drop(&mut self) {
        // SAFETY: By the type invariant. The superblock is there until its reference is dropped.
        unsafe {
            let super_block = (*self.0.as_ptr()).i_sb;
            bindings::iput(self.0.as_ptr());
            bindings::deactivate_super(super_block);
        }
    }
}

/// A mounted superblock.
///
/// # Invariants
///
/// It has an active reference for as long as the value lives.
pub(crate) struct ActiveSuperBlock(NonNull<bindings::super_block>);

impl ActiveSuperBlock {
    /// # Safety
    ///
    /// `sb` is valid and has an active reference as long as the value lives.
    pub(super) unsafe fn from_raw(sb: *mut bindings::super_block) -> Self {
        // INVARIANT: By the function's requirements.
        // SAFETY: It is not NULL.
        Self(unsafe { NonNull::new_unchecked(sb) })
    }

    /// Whether it is mounted anywhere at this moment. There are active references that are nobody's mount: that
    /// of a mount that is about to fail, of one that is being made, of who freezes.
    pub(crate) fn is_mounted(&self) -> bool {
        // SAFETY: By the type invariant; the pointer is only compared.
        !unsafe { ptr::read_volatile(&raw const (*self.0.as_ptr()).s_mounts) }.is_null()
    }

    /// Whether it is in use: it has been mounted, and its end has not begun.
    pub(crate) fn is_in_use(&self) -> bool {
        // SAFETY: By the type invariant.
        let flags = unsafe { ptr::read_volatile(&raw const (*self.0.as_ptr()).s_flags) };
        flags & bindings::SB_ACTIVE as c_ulong != 0
    }

    /// The first of its inodes for which `is_sought` holds. Calls that for each inode that has been read
    /// and is not on its way out, up to that one. Sleeps.
    pub(crate) fn find_inode(&self, is_sought: impl FnMut(&Inode) -> bool) -> Option<InodeRef> {
        struct Search<F> {
            is_sought: F,
            found: Option<InodeRef>,
        }
        /// # Safety
        ///
        /// The inode is referenced and its superblock mounted; `data` is a `Search<F>`.
        unsafe extern "C" fn visit<F: FnMut(&Inode) -> bool>(
            inode: *mut bindings::inode,
            data: *mut c_void,
        ) {
            // SAFETY: By this function's safety requirements.
            unsafe {
                let search = &mut *data.cast::<Search<F>>();
                let inode = NonNull::new_unchecked(inode);
                if search.found.is_none() && (search.is_sought)(Inode::from_raw(inode)) {
                    search.found = InodeRef::take(inode, ());
                }
            }
        }
        fn visitor<F: FnMut(&Inode) -> bool>(
            _: &F,
        ) -> unsafe extern "C" fn(*mut bindings::inode, *mut c_void) {
            visit::<F>
        }
        let visit = visitor(&is_sought);
        let mut search = Search {
            is_sought,
            found: None,
        };
        // SAFETY: By the type invariant the superblock stays mounted; the callback gets what it expects.
        unsafe {
            bindings::rdax_visit_super(self.0.as_ptr(), Some(visit), (&raw mut search).cast());
        }
        search.found
    }
}

/// An open file.
///
/// # Invariants
///
/// A reference to one is to a file that is open for as long.
#[repr(transparent)]
pub(crate) struct File(Opaque<bindings::file>);

impl File {
    /// # Safety
    ///
    /// The file stays open for `'a`.
    #[inline]
    pub(crate) unsafe fn from_raw<'a>(file: NonNull<bindings::file>) -> &'a Self {
        // SAFETY: The type is transparent; the caller vouches for the lifetime.
        unsafe { file.cast::<Self>().as_ref() }
    }

    /// The contents that the file gives access to.
    #[inline]
    pub(crate) fn mapping(&self) -> &Mapping {
        // SAFETY: An open file has an address space, which lives as long as the file is open.
        unsafe { Mapping::from_raw(NonNull::new_unchecked((*self.0.get()).f_mapping)) }
    }

    /// Whether the filesystem says that it was shut down. Some do not. Does not sleep.
    pub(crate) fn is_shut_down(&self) -> bool {
        // SAFETY: The file is open.
        unsafe { bindings::rdax_is_shut_down(self.0.get()) }
    }

    /// Makes the bytes from `start` to `end`, both included, durable, with the metadata that is
    /// needed to find them. Sleeps.
    pub(crate) fn sync_range(&self, start: u64, end: u64) -> Result {
        // SAFETY: The file is open.
        to_result(unsafe { bindings::vfs_fsync_range(self.0.get(), start as i64, end as i64, 1) })
    }
}

/// An open file that user space has a descriptor for, by a reference of its own.
///
/// # Invariants
///
/// The reference is owned.
pub(crate) struct FileRef(NonNull<bindings::file>);

impl FileRef {
    /// The file of a descriptor of the current task that may be read.
    ///
    /// Errors: `EBADF` as for `read`: there is none, or it is not open for reading.
    pub(crate) fn readable(fd: i32) -> Result<Self> {
        let fd = u32::try_from(fd).map_err(|_| EBADF)?;
        // SAFETY: Takes any number.
        let file = NonNull::new(unsafe { bindings::fget(fd) }).ok_or(EBADF)?;
        // INVARIANT: Taken above.
        let file = Self(file);
        // SAFETY: The file is open.
        match unsafe { bindings::rdax_file_may_read(file.0.as_ptr()) } {
            true => Ok(file),
            false => Err(EBADF),
        }
    }

    /// The file's inode, if it is a regular file whose contents are its own. The file keeps the filesystem
    /// mounted, and so its device adopted, if it is.
    pub(crate) fn inode(&self) -> Option<&Inode> {
        // SAFETY: The file is open.
        let inode = NonNull::new(unsafe { bindings::rdax_file_inode(self.0.as_ptr()) })?;
        // SAFETY: An open file keeps its inode.
        Some(unsafe { Inode::from_raw(inode) })
    }
}

impl Drop for FileRef {
    fn drop(&mut self) {
        // SAFETY: By the type invariant.
        unsafe { bindings::fput(self.0.as_ptr()) };
    }
}

// SAFETY: An inode that is alive is of a filesystem whose superblock is.
unsafe impl OnSuperBlock for Inode {
    #[inline]
    fn super_block(&self) -> NonNull<bindings::super_block> {
        // SAFETY: The inode is alive; the field does not change and is never NULL.
        unsafe { NonNull::new_unchecked((*self.as_ptr()).i_sb) }
    }
}
