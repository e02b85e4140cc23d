// SPDX-License-Identifier: GPL-2.0

//! Inodes.
//!
//! C header: [`include/linux/fs.h`](srctree/include/linux/fs.h)

use super::Mapping;
use crate::kern::{
    bindings,
    members::OnSuperBlock,
    memory::DeviceMemory,
    once::{
        full_barrier,
        read_once,
        Once, //
    },
    order::Order,
    page::PageBlock, //
};
use core::ptr::NonNull;
use kernel::{
    sync::atomic::Atomic,
    types::Opaque, //
};
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
    pub(in crate::kern) fn filesystem(&self) -> *mut bindings::file_system_type {
        // SAFETY: The inode is alive, and so is its superblock; neither field changes.
        unsafe { (*(*self.as_ptr()).i_sb).s_type }
    }

    /// Whether the file's contents are accessed directly (`S_DAX`).
    #[inline]
    pub(crate) fn is_dax(&self) -> bool {
        self.flags() & bindings::S_DAX != 0
    }

    /// Whether memory errors may be known of the device that the pages of an entry are of, so that who maps them has to
    /// ask for them: always if that is not the one that the filesystem is on, whose memory is `memory`. The answer may
    /// be outdated at once.
    ///
    /// Held: the lock of the entry.
    #[inline]
    pub(crate) fn may_have_bad_blocks(&self, block: PageBlock<'_>, memory: &DeviceMemory) -> bool {
        if !memory.is_own(block.pfn()) {
            return true;
        }
        // What follows is there: a device that goes away waits for the entry, which has memory of it
        // ([`evict_device_memory`](crate::dax::layout::evict_device_memory)), and its list of errors stays until then.
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
    pub(in crate::kern) unsafe fn take<G>(
        inode: NonNull<bindings::inode>,
        guard: G,
    ) -> Option<Self> {
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

// SAFETY: An inode that is alive is of a filesystem whose superblock is.
unsafe impl OnSuperBlock for Inode {
    #[inline]
    fn super_block(&self) -> NonNull<bindings::super_block> {
        // SAFETY: The inode is alive; the field does not change and is never NULL.
        unsafe { NonNull::new_unchecked((*self.as_ptr()).i_sb) }
    }
}
