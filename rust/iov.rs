// SPDX-License-Identifier: GPL-2.0

//! The memory that a read or write copies to or from.
//!
//! C header: [`include/linux/uio.h`](srctree/include/linux/uio.h)

use super::{
    bindings,
    fs::{File, Inode},
    page::DevFolio, //
};
use core::{marker::PhantomData, ptr::NonNull};
use kernel::types::Opaque;

/// An iterator over the caller's buffers.
///
/// # Invariants
///
/// The iterator is valid for `'i`, and nobody else's to use. It has been advanced since this was made, by
/// no more than there was of it, which is `whole` bytes, or not at all.
pub(crate) struct IovIter<'i> {
    iter: NonNull<bindings::iov_iter>,
    whole: usize,
    _own: PhantomData<&'i mut bindings::iov_iter>,
}

impl IovIter<'_> {
    /// # Safety
    ///
    /// The iterator is valid and used by nobody else for as long as the result is.
    #[inline]
    pub(crate) unsafe fn from_raw(iter: NonNull<bindings::iov_iter>) -> Self {
        // INVARIANT: By this function's safety requirements.
        let mut this = Self {
            iter,
            whole: 0,
            _own: PhantomData,
        };
        this.whole = this.len();
        this
    }

    #[inline]
    pub(crate) fn as_ptr(&mut self) -> *mut bindings::iov_iter {
        self.iter.as_ptr()
    }

    /// Bytes left.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        // SAFETY: The iterator is valid.
        unsafe {
            (*self.iter.as_ptr())
                .__bindgen_anon_1
                .__bindgen_anon_1
                .as_ref()
                .count
        }
    }

    /// Bytes by which it has been advanced.
    #[inline]
    fn advanced(&self) -> usize {
        self.whole - self.len()
    }

    /// Whether the buffers are the source of a write.
    #[inline]
    pub(crate) fn is_source(&self) -> bool {
        // SAFETY: The iterator is valid.
        unsafe { (*self.iter.as_ptr()).data_source }
    }

    /// Writes zeroes to the buffers. Returns the bytes written, fewer when a buffer faults.
    #[inline]
    pub(crate) fn zero(&mut self, bytes: usize) -> usize {
        // SAFETY: The iterator is valid.
        unsafe { bindings::iov_iter_zero(bytes, self.as_ptr()) }
    }

    /// Has `bytes` bytes of the buffers there, as far as it can, and says of how many, from the first on.
    /// They may be gone again. Sleeps.
    pub(crate) fn fault_in(&mut self, bytes: usize) -> usize {
        // SAFETY: The iterator is valid.
        let missing = unsafe {
            if self.is_source() {
                bindings::fault_in_iov_iter_readable(self.as_ptr(), bytes)
            } else {
                bindings::fault_in_iov_iter_writeable(self.as_ptr(), bytes)
            }
        };
        bytes - missing
    }

    /// Whether the buffers of a write are pages, one of which is in the folio. `done` bytes of the write
    /// were taken from here already; theirs count, too.
    pub(crate) fn holds(&self, folio: DevFolio<'_>, done: u64) -> bool {
        let done = self.advanced().min(done as usize);
        // SAFETY: The iterator is valid, and has been advanced by at least that much.
        unsafe { bindings::rdax_iter_holds(self.iter.as_ptr(), done, folio.as_ptr()) }
    }

    /// Copies the next bytes of the buffers of a write to memory of ours. Returns how many, fewer than
    /// there is room for when a buffer ends or faults. Sleeps.
    pub(crate) fn copy_to(&mut self, to: &mut [u8]) -> usize {
        if !self.is_source() {
            return 0;
        }
        // SAFETY: The iterator is valid, and the slice is ours to write to.
        unsafe { bindings::_copy_from_iter(to.as_mut_ptr().cast(), to.len(), self.as_ptr()) }
    }

    /// Copies bytes of ours to the buffers of a read. Returns how many, fewer when a buffer ends or
    /// faults. Sleeps.
    pub(crate) fn copy_from(&mut self, from: &[u8]) -> usize {
        if self.is_source() {
            return 0;
        }
        // SAFETY: The iterator is valid, and the slice is only read.
        unsafe { bindings::_copy_to_iter(from.as_ptr().cast(), from.len(), self.as_ptr()) }
    }

    /// Calls `work` with an iterator over these bytes, as the buffer of a write.
    pub(crate) fn over<R>(bytes: &[u8], work: impl FnOnce(&mut IovIter<'_>) -> R) -> R {
        let vector = bindings::kvec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        let iter = Opaque::uninit();
        // SAFETY: The iterator and what it refers to outlive the call of `work`, which cannot keep the
        // result; as a source it is only read from. The function sets all of it.
        let mut iter = unsafe {
            bindings::iov_iter_kvec(iter.get(), bindings::ITER_SOURCE, &vector, 1, bytes.len());
            IovIter::from_raw(NonNull::new_unchecked(iter.get()))
        };
        work(&mut iter)
    }

    /// Calls `work`, in which buffers that are not there end a copy instead of being faulted in.
    pub(crate) fn pagefault_disabled<R>(&mut self, work: impl FnOnce(&mut Self) -> R) -> R {
        // SAFETY: Counts for this task, and is undone below.
        unsafe { bindings::rdax_pagefault_disable() };
        let result = work(self);
        // SAFETY: Disabled above.
        unsafe { bindings::rdax_pagefault_enable() };
        result
    }

    /// Goes back by `bytes` that were copied, as far as it has come.
    #[inline]
    pub(crate) fn revert(&mut self, bytes: usize) {
        let bytes = self.advanced().min(bytes);
        // SAFETY: The iterator is valid; it has been advanced by at least that much.
        unsafe { bindings::iov_iter_revert(self.as_ptr(), bytes) };
    }
}

/// A read or write of a file, under way.
///
/// # Invariants
///
/// A reference to one is to a control block that is valid for as long, with an open file, and nobody
/// else's to use.
#[repr(transparent)]
pub(crate) struct Kiocb(Opaque<bindings::kiocb>);

impl Kiocb {
    /// # Safety
    ///
    /// The control block is valid and used by nobody else for `'a`.
    #[inline]
    pub(crate) unsafe fn from_raw<'a>(iocb: NonNull<bindings::kiocb>) -> &'a mut Self {
        // SAFETY: The type is transparent; the caller vouches for the lifetime.
        unsafe { iocb.cast::<Self>().as_mut() }
    }

    /// The inode of the file that is read or written.
    #[inline]
    pub(crate) fn inode(&self) -> &Inode {
        // SAFETY: The control block has an open file.
        let file = unsafe { File::from_raw(NonNull::new_unchecked((*self.0.get()).ki_filp)) };
        file.mapping().host()
    }

    /// Where in the file, in bytes.
    #[inline]
    pub(crate) fn position(&self) -> u64 {
        // SAFETY: The control block is valid.
        unsafe { (*self.0.get()).ki_pos as u64 }
    }

    /// Moves on in the file.
    #[inline]
    pub(crate) fn set_position(&mut self, position: u64) {
        // SAFETY: The control block is valid and ours.
        unsafe { (*self.0.get()).ki_pos = position as i64 };
    }

    #[inline]
    fn flags(&self) -> u32 {
        // SAFETY: The control block is valid.
        unsafe { (*self.0.get()).ki_flags as u32 }
    }

    /// Whether the caller does not want to be made to wait (`IOCB_NOWAIT`).
    #[inline]
    pub(crate) fn is_nowait(&self) -> bool {
        self.flags() & bindings::IOCB_NOWAIT as u32 != 0
    }

    /// Whether the write must not be torn (`IOCB_ATOMIC`).
    #[inline]
    pub(crate) fn is_atomic(&self) -> bool {
        self.flags() & bindings::IOCB_ATOMIC as u32 != 0
    }
}
