// SPDX-License-Identifier: GPL-2.0

//! The kernel's functions, called from what serves in their place.

use crate::kern::{
    bindings,
    once::Once, //
};
use core::ptr;
use kernel::{
    prelude::*,
    sync::atomic::{Atomic, Relaxed}, //
};

/// A task that is in [`call_original`]; on its stack.
///
/// # Invariants
///
/// The task is that on whose stack it is. It is in the list, whose lock guards `next`, for as long as that
/// task is in [`call_original`].
struct Caller {
    task: *mut bindings::task_struct,
    /// The number of a frame that [`call_original_for`] was given, until it was found.
    sought: Atomic<usize>,
    /// The superblock that [`end_original`] was given, or NULL. Only compared.
    ended: *const bindings::super_block,
    next: *mut Caller,
}

/// No frame.
const NOTHING: usize = usize::MAX;

/// All of them.
///
/// # Invariants
///
/// Each is valid as long as it is in the list, which changes under [`CALLERS`]'s lock.
pub(crate) struct Callers(*mut Caller);

// SAFETY: The list is looked at under its lock, and a task is only compared.
unsafe impl Send for Callers {}

kernel::sync::global_lock! {
    // SAFETY: Made ready when the module is loaded, before anything is redirected.
    pub(crate) unsafe(uninit) static CALLERS: SpinLock<Callers> = Callers(ptr::null_mut());
}

/// Calls `look` with the current task's [`Caller`], if it is in [`call_original`]. Does not sleep.
fn with_caller<R>(look: impl FnOnce(&Caller) -> R) -> Option<R> {
    // SAFETY: Looks at the current task.
    let current = unsafe { bindings::rdax_current() };
    let callers = CALLERS.lock();
    let mut caller = callers.0;
    // SAFETY: By the type invariant of `Callers`.
    while let Some(this) = unsafe { caller.as_ref() } {
        if ptr::eq(this.task, current) {
            return Some(look(this));
        }
        caller = this.next;
    }
    None
}

/// Whether the current task is in [`call_original`].
#[inline]
pub(crate) fn is_calling_original() -> bool {
    with_caller(|caller| caller.ended.is_null()).unwrap_or(false)
}

/// Whether the current task is in [`end_original`] for this superblock.
pub(super) fn is_ending(sb: *const bindings::super_block) -> bool {
    with_caller(|caller| ptr::eq(caller.ended, sb)).unwrap_or(false)
}

/// Calls a function of a table with [`Key::BlockDevice`] or [`Key::DaxDevice`] from its replacement,
/// without being redirected. Others may do so meanwhile, however long it takes. Sleeps if the
/// function does.
pub(crate) fn call_original<R>(function: impl FnOnce() -> R) -> R {
    call_original_for(NOTHING, function).0
}

/// The same, and of what the function looks for on its way, only the frame `sought` is to be found
/// ([`is_sought`]). Returns whether it was, too.
pub(crate) fn call_original_for<R>(sought: usize, function: impl FnOnce() -> R) -> (R, bool) {
    call(sought, ptr::null(), function)
}

/// The same for a function with [`Key::Active`], which ends a filesystem. Only that is not redirected, and only
/// for this superblock: what the filesystem calls meanwhile is.
pub(crate) fn end_original<R>(sb: *const bindings::super_block, function: impl FnOnce() -> R) -> R {
    call(NOTHING, sb, function).0
}

fn call<R>(
    sought: usize,
    ended: *const bindings::super_block,
    function: impl FnOnce() -> R,
) -> (R, bool) {
    let mut caller = Caller {
        // SAFETY: Looks at the current task.
        task: unsafe { bindings::rdax_current() },
        sought: Atomic::new(sought),
        ended,
        next: ptr::null_mut(),
    };
    let this = &raw mut caller;
    {
        let mut callers = CALLERS.lock();
        // SAFETY: It is this function's own until it is in the list.
        unsafe { (*this).next = callers.0 };
        // INVARIANT: It is taken off the list below, where it is valid still.
        callers.0 = this;
    }
    let result = function();
    let mut callers = CALLERS.lock();
    let mut link: *mut *mut Caller = &raw mut callers.0;
    // SAFETY: By the type invariant of `Callers`; this one is in the list, which the lock allows to
    // change.
    unsafe {
        // Ends: this one is in the list.
        while *link != this {
            link = &raw mut (**link).next;
        }
        *link = (*this).next;
    }
    drop(callers);
    (result, caller.sought.read_once() == NOTHING)
}

/// Whether a frame may be given to whoever asks for what is in a place: if that is a function that
/// [`call_original_for`] has called, only the one that it looks for, once.
pub(crate) fn is_sought(frame: usize) -> bool {
    let found = with_caller(|caller| {
        caller.sought.read_once() == NOTHING
            || caller.sought.cmpxchg(frame, NOTHING, Relaxed).is_ok()
    });
    found.unwrap_or(true)
}
