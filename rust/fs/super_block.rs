// SPDX-License-Identifier: GPL-2.0

//! Superblocks.
//!
//! C header: [`include/linux/fs/super_types.h`](srctree/include/linux/fs/super_types.h)

use super::{
    Inode,
    InodeRef, //
};
use crate::kern::bindings;
use core::ptr::{
    self,
    NonNull, //
};
use kernel::ffi::{
    c_ulong,
    c_void, //
};
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
    pub(in crate::kern) unsafe fn from_raw(sb: *mut bindings::super_block) -> Self {
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
