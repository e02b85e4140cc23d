// SPDX-License-Identifier: GPL-2.0

//! Open files.
//!
//! C header: [`include/linux/fs.h`](srctree/include/linux/fs.h)

use super::{
    Inode,
    Mapping, //
};
use crate::kern::bindings;
use core::ptr::NonNull;
use kernel::{
    error::{
        code::*,
        to_result,
        Result, //
    },
    types::Opaque, //
};
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
