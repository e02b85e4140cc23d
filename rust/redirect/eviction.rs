// SPDX-License-Identifier: GPL-2.0

//! Whether the calls of `evict` come by. It is the one function of the table that is called only from
//! the file of the kernel's source that it is in: a compiler may have put its body in the place of a
//! call, and then it is there but redirected for nobody.

use crate::kern::bindings;
use core::ptr::NonNull;
use kernel::{
    prelude::*,
    sync::atomic::{Atomic, Relaxed}, //
};

/// The address of an inode whose eviction is awaited, or 0.
static AWAITED: Atomic<usize> = Atomic::new(0);

/// Notes that `evict` is called for an inode.
#[inline]
pub(super) fn note(inode: *const bindings::inode) {
    if inode as usize == AWAITED.load(Relaxed) {
        AWAITED.store(0, Relaxed);
    }
}

/// Has an inode evicted and returns whether that was noted. One caller at a time. Sleeps.
///
/// Errors: `ENOMEM`.
pub(crate) fn sees_evictions() -> Result<bool> {
    // SAFETY: Nobody else knows the inode, and this is its only reference. Afterwards its address is
    // compared only.
    unsafe {
        let inode = NonNull::new(bindings::rdax_some_inode()).ok_or(ENOMEM)?;
        AWAITED.store(inode.as_ptr() as usize, Relaxed);
        bindings::iput(inode.as_ptr());
    }
    let seen = AWAITED.load(Relaxed) == 0;
    AWAITED.store(0, Relaxed);
    Ok(seen)
}
