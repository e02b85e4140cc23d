// SPDX-License-Identifier: GPL-2.0

//! Waiting: for an entry of a tree, by a key in a hashed table, and for a folio to become idle.
//!
//! C headers: [`include/linux/wait.h`](srctree/include/linux/wait.h),
//! [`include/linux/wait_bit.h`](srctree/include/linux/wait_bit.h)

use super::{
    bindings,
    fs::{Inode, InodeRef, Mapping, PageIndex},
    memory::Stay,
    once::Once,
    page::DevFolio,
    redirect::{begin_in_module, end_in_module},
    vm,
    waiting,
    xa::{Tree, TreeGuard, XaState}, //
};
use core::{
    ffi::c_void,
    ptr::{self, NonNull},
};
use kernel::{
    error::{code::*, to_result, Result},
    ffi::{c_int, c_uint},
    sync::atomic::{Atomic, Relaxed},
    sync::rcu, //
};

/// The key of an entry's waiters: a tree and the first index of an entry in it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct EntryKey {
    tree: usize,
    index: usize,
}

impl EntryKey {
    #[inline]
    pub(crate) fn new(mapping: &Mapping, first: PageIndex) -> Self {
        Self {
            tree: mapping.key(),
            index: first.get(),
        }
    }

    #[inline]
    fn queue(self) -> *mut bindings::wait_queue_head {
        let hash = (self.tree >> 6) ^ self.index ^ (self.index >> 9);
        // SAFETY: The helper takes any number.
        unsafe { bindings::rdax_entry_queue(hash) }
    }
}

/// Tasks that wait for any entry. Counted up under the lock of the tree they wait in.
static WAITERS: Atomic<usize> = Atomic::new(0);

/// How many tasks wait for any entry.
#[cfg(RDAX_CHECK)]
pub(crate) fn entry_waiters() -> usize {
    WAITERS.read_once()
}

/// Whom to wake.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wake {
    /// One of those who will lock or look at the entry, and all who will not.
    One,
    /// Everybody: the entry is gone or has another shape.
    All,
}

/// A task that waits for an entry.
///
/// # Invariants
///
/// While it is in a queue, `wait` is its first field, and wakes the task on whose stack it is.
#[repr(C)]
struct EntryWaiter {
    wait: bindings::wait_queue_entry,
    key: EntryKey,
}

/// Wakes a waiter if the key is its own.
///
/// # Safety
///
/// Called by the wait queue: `wait` is the first field of an [`EntryWaiter`], `key` points to an
/// [`EntryKey`].
unsafe extern "C" fn wake_entry(
    wait: *mut bindings::wait_queue_entry,
    mode: c_uint,
    sync: c_int,
    key: *mut c_void,
) -> c_int {
    // SAFETY: By this function's safety requirements; the waiter is on the queue and thus alive.
    let same = unsafe { (*wait.cast::<EntryWaiter>()).key == *key.cast::<EntryKey>() };
    if !same {
        return 0;
    }
    // SAFETY: As for this function.
    unsafe { bindings::autoremove_wake_function(wait, mode, sync, key) }
}

/// Waits until somebody wakes `key`, as one of those who are woken one at a time: the caller looks
/// at the tree again and wakes the next when it is done. The tree's lock is dropped only when the
/// caller is sure to be woken. Uninterruptible (spec, section 3).
pub(crate) fn wait_for_entry(guard: TreeGuard<'_>, key: EntryKey) {
    sleep_on_entry(
        guard,
        key,
        true,
        bindings::TASK_UNINTERRUPTIBLE as c_int,
        || (),
    );
}

/// The same, but a fatal signal ends it: `EINTR`. The caller leaves the entry alone then; the next is
/// woken in its place.
pub(crate) fn wait_for_entry_killable(
    mapping: &Mapping,
    guard: TreeGuard<'_>,
    key: EntryKey,
) -> Result {
    sleep_on_entry(guard, key, true, bindings::TASK_KILLABLE as c_int, || ());
    // SAFETY: Looks at the current task.
    if !unsafe { bindings::rdax_fatal_signal_pending() } {
        return Ok(());
    }
    let _guard = mapping.tree().lock();
    wake_entry_waiters(key, Wake::One);
    Err(EINTR)
}

/// Puts the task on the queue of `key`, drops the lock, calls `unlocked`, and sleeps.
fn sleep_on_entry(
    guard: TreeGuard<'_>,
    key: EntryKey,
    exclusive: bool,
    state: c_int,
    unlocked: impl FnOnce(),
) {
    let mut waiter = EntryWaiter {
        wait: pin_init::zeroed(),
        key,
    };
    let queue = key.queue();
    WAITERS.fetch_add(1, Relaxed);
    // SAFETY: The waiter stays where it is until `finish_wait` has taken it off the queue.
    unsafe {
        bindings::init_wait_entry(&mut waiter.wait, 0);
        waiter.wait.func = Some(wake_entry);
        if exclusive {
            bindings::prepare_to_wait_exclusive(queue, &mut waiter.wait, state);
        } else {
            bindings::prepare_to_wait(queue, &mut waiter.wait, state);
        }
    }
    drop(guard);
    unlocked();
    // SAFETY: The task may sleep here: the locks were dropped. The waiter is on the queue.
    unsafe {
        bindings::schedule();
        bindings::finish_wait(queue, &mut waiter.wait);
    }
    WAITERS.fetch_sub(1, Relaxed);
}

/// The address space that owns a folio, kept from being freed by RCU alone: it may be on its way
/// out.
///
/// # Invariants
///
/// The address space was a folio's owner within the critical section of RCU that `rcu` stands for. So its
/// memory stays for as long.
pub(crate) struct OwnerGuard {
    mapping: NonNull<bindings::address_space>,
    rcu: rcu::Guard,
}

impl OwnerGuard {
    /// The folio's owner at this moment, if it has one. Nothing needs to keep the folio.
    pub(crate) fn of(folio: DevFolio<'_>) -> Option<Self> {
        let rcu = rcu::read_lock();
        let mapping = NonNull::new(folio.owner_unless_tail() as *mut bindings::address_space)?;
        Some(Self { mapping, rcu })
    }

    /// The owner.
    pub(crate) fn mapping(&self) -> &Mapping {
        // SAFETY: An inode, and the address space in it, is freed after a grace period of RCU; it
        // was the owner when the read lock was held already.
        unsafe { Mapping::from_raw(self.mapping) }
    }

    /// A reference to the owner's inode, unless that is on its way out. Sleeps.
    #[cfg(CONFIG_MEMORY_FAILURE)]
    pub(crate) fn reference(self) -> Option<InodeRef> {
        let inode = NonNull::from(self.mapping().host()).cast();
        // SAFETY: As in `mapping`, and the same goes for the superblock.
        unsafe { InodeRef::take(inode, self.rcu) }
    }

    /// Takes the owner's tree lock.
    pub(crate) fn lock(self) -> LockedOwner {
        // SAFETY: The result drops the lock before it drops RCU's.
        let tree: &'static Tree =
            unsafe { Tree::from_raw(NonNull::from(self.mapping().tree()).cast()) };
        LockedOwner {
            guard: tree.lock(),
            owner: self,
        }
    }
}

/// A folio's owner with its tree locked.
pub(crate) struct LockedOwner {
    // Dropped in this order.
    guard: TreeGuard<'static>,
    owner: OwnerGuard,
}

impl LockedOwner {
    /// The owner.
    pub(crate) fn mapping(&self) -> &Mapping {
        self.owner.mapping()
    }

    /// The owner, and a state at `index` of its tree.
    pub(crate) fn xas(&mut self, index: PageIndex) -> (&Mapping, XaState<'_, '_>) {
        (self.owner.mapping(), self.guard.xas(index))
    }

    /// Waits until somebody wakes `key`, without touching the tree again, which may be gone by
    /// then. Uninterruptible.
    pub(crate) fn wait(self, key: EntryKey) {
        let rcu = self.owner.rcu;
        sleep_on_entry(
            self.guard,
            key,
            false,
            bindings::TASK_UNINTERRUPTIBLE as c_int,
            move || drop(rcu),
        );
    }
}

/// Whether any task waits for an entry, of whatever file. Who changes an entry under the tree's lock
/// sees those who wait for it.
#[inline]
pub(crate) fn anybody_waits() -> bool {
    WAITERS.read_once() != 0
}

/// Wakes those who wait for an entry. The change that they wait for was made under the tree's
/// lock, by this task.
#[inline]
pub(crate) fn wake_entry_waiters(key: EntryKey, wake: Wake) {
    if !anybody_waits() {
        return;
    }
    let queue = key.queue();
    // SAFETY: The queue is one of the table's. Waiters put themselves on it under the tree's lock,
    // which this task has held since: it sees them.
    if unsafe { bindings::rdax_queue_is_empty(queue) } {
        return;
    }
    let mut key = key;
    let number = if wake == Wake::All { 0 } else { 1 };
    // SAFETY: As above; the callback reads the key.
    unsafe { bindings::__wake_up(queue, bindings::TASK_NORMAL, number, (&raw mut key).cast()) };
}

/// A filesystem's way to wait for a page: drops its locks, sleeps, takes them again.
///
/// # Invariants
///
/// May be called in the task that was given it, for the inode that it was given for.
#[derive(Clone, Copy)]
pub(crate) struct WaitCallback(unsafe extern "C" fn(inode: *mut bindings::inode));

impl WaitCallback {
    /// # Safety
    ///
    /// The function drops locks that this task holds, calls `schedule`, and takes them again, as often as
    /// it is called.
    pub(super) unsafe fn from_raw(function: unsafe extern "C" fn(*mut bindings::inode)) -> Self {
        // INVARIANT: By this function's safety requirements.
        Self(function)
    }

    /// To wait with faults of the file let in, for those whose caller keeps them out.
    pub(crate) fn let_faults_in() -> Self {
        // INVARIANT: Drops and takes only what it finds held by this task.
        Self(bindings::rdax_wait_with_faults)
    }
}

/// How to sleep until a folio is idle.
#[derive(Clone, Copy)]
pub(crate) enum Sleep<'a> {
    /// By the filesystem's callback; any signal ends it.
    Callback(&'a Inode, WaitCallback),
    /// Any signal ends it. Faults go on meanwhile.
    Interruptible,
    /// A signal that kills ends it. The folio is mapped by nobody.
    Killable,
    /// Nothing ends it.
    Uninterruptible,
}

/// How often a folio is looked at, in milliseconds: at first, and in the end.
const FIRST_INTERVAL: u32 = 10;
const LONGEST_INTERVAL: u32 = 160;

/// Waits until the folio has no reference, for `at_most` milliseconds, or until a signal comes that the
/// way of sleeping allows. Where it can be mapped meanwhile, the wait ends, too, when all references are
/// those of mappings.
///
/// The core wakes the waiters on the folio's address when the last reference is dropped (spec,
/// section 2). A folio that several files share can stay mapped by the others without end; and the
/// filesystem's callback lets faults in, so that one of a single file can be mapped again before
/// whoever used it is done. Nobody is woken then when the references beyond that are gone, and nobody
/// is when the device goes away: the folio is looked at from time to time.
///
/// Errors: `EIO` when the device goes away, or the folio is not of the memory that `stay` is for; else what
/// the signal is answered with.
pub(crate) fn wait_until_idle(
    stay: &Stay<'_>,
    folio: DevFolio<'_>,
    how: Sleep<'_>,
    at_most: Option<u32>,
) -> Result {
    let state = match how {
        Sleep::Callback(..) | Sleep::Interruptible => bindings::TASK_INTERRUPTIBLE,
        Sleep::Killable => bindings::TASK_KILLABLE,
        Sleep::Uninterruptible => bindings::TASK_UNINTERRUPTIBLE,
    };
    let is_done = || {
        let mappable = matches!(how, Sleep::Callback(..) | Sleep::Interruptible)
            || folio.owner() == 0 && folio.share() != 0;
        folio.refcount() == 0 || mappable && folio.refcount() <= folio.mapcount()
    };
    let mut interval = at_most.map_or(FIRST_INTERVAL, |time| {
        (time / 4).clamp(FIRST_INTERVAL, LONGEST_INTERVAL)
    });
    let mut left = at_most.unwrap_or(u32::MAX);
    // Ends when nobody uses the folio any more, when its device goes, by a signal, or when the time is
    // over.
    while left > 0 {
        let (callback, inode) = match how {
            Sleep::Callback(inode, callback) => (Some(callback.0), inode.as_ptr()),
            Sleep::Interruptible | Sleep::Killable | Sleep::Uninterruptible => {
                (None, ptr::null_mut())
            }
        };
        let sleep = || {
            // SAFETY: The task may sleep: no lock of ours is held here. The inode is alive, and by its type
            // invariant the callback may be called.
            unsafe { bindings::rdax_timed_wait(callback, inode, interval.min(left)) }
        };
        if sleep_on_folio(stay, folio, state as c_int, &is_done, sleep)? {
            return Ok(());
        }
        if at_most.is_some() {
            left = left.saturating_sub(interval);
        }
        interval = (interval * 2).min(LONGEST_INTERVAL);
    }
    Ok(())
}

/// Waits until the folio has no references but those of mappings, for at most `*left` milliseconds, from
/// which the time is taken; looks every `interval` of them. Returns whether it has none. The caller keeps faults
/// out, so the time is to be short.
///
/// Errors: what a signal is answered with, or `EIO` when the device goes away. The folio was found under
/// `stay`.
pub(crate) fn is_soon_idle(
    stay: &Stay<'_>,
    folio: DevFolio<'_>,
    left: &mut u32,
    interval: u32,
) -> Result<bool> {
    let is_done = || folio.refcount() <= folio.mapcount();
    if *left == 0 {
        return Ok(false);
    }
    // SAFETY: Looks at the current task.
    if unsafe { bindings::rdax_signal_pending() } {
        // A walk that finds one folio after another, each idle when looked at again, never sleeps to see it.
        return Err(ERESTARTSYS);
    }
    // Ends when the time is over: each turn takes some of it.
    loop {
        let interval = interval.min(*left);
        let sleep = || {
            if interval > 0 {
                // SAFETY: The task may sleep: the caller's locks are such that are slept with.
                unsafe { bindings::rdax_timed_wait(None, ptr::null_mut(), interval) }
            }
        };
        let state = bindings::TASK_INTERRUPTIBLE as c_int;
        if sleep_on_folio(stay, folio, state, &is_done, sleep)? {
            // The next folio gets a little less, so that a walk over many ends.
            *left = left.saturating_sub(1);
            return Ok(true);
        }
        if interval == 0 {
            return Ok(false);
        }
        *left -= interval;
    }
}

/// How long a fault waits for a folio before it is tried again, in milliseconds. Its caller has locks
/// of the filesystem meanwhile, and lets go of them in between.
const FAULT_INTERVAL: u32 = 20;

/// Waits until the folio has no references but those of mappings, but not for long: for those who have
/// locks of the filesystem, and start over then, so that these are free in between.
///
/// Errors: `EINTR` when a fatal signal came or the task is exiting, `EIO` when the device goes away, or the
/// folio is not of the memory that `stay` is for.
pub(crate) fn nap_until_idle(stay: &Stay<'_>, folio: DevFolio<'_>) -> Result {
    let sleep = || {
        // SAFETY: The task may sleep: no lock of ours is held here.
        unsafe { bindings::rdax_timed_wait(None, ptr::null_mut(), FAULT_INTERVAL) }
    };
    sleep_on_folio(
        stay,
        folio,
        bindings::TASK_KILLABLE as c_int,
        &|| folio.refcount() <= folio.mapcount(),
        sleep,
    )?;
    match vm::is_dying() {
        true => Err(EINTR),
        false => Ok(()),
    }
}

/// Has the system call that this task is in made again when nobody uses the folio any more, or after
/// `at_most` milliseconds: the caller ends it with `ERESTARTSYS`, and then the task waits, with nothing
/// held. False where that cannot be: for threads of the kernel, and for calls that end otherwise.
///
/// Nobody is woken when the last reference but those of mappings goes, and when the device does; then it
/// takes all of the time.
pub(crate) fn restart_after(stay: &Stay<'_>, folio: DevFolio<'_>, at_most: u32) -> bool {
    // SAFETY: The folio's address is only compared; it is never looked at afterwards. The two functions
    // are called one after the other.
    let will = unsafe {
        bindings::rdax_restart_after(
            folio.as_ptr(),
            at_most,
            Some(begin_in_module),
            Some(end_in_module),
        )
    };
    // From here on the last reference is told of.
    if will && (stay.is_over(folio.head().pfn()) || folio.refcount() <= folio.mapcount()) {
        // SAFETY: Changes what belongs to the current task.
        unsafe { bindings::rdax_restart_at_once() };
    }
    will
}

/// Whether this task is in a system call that can be made again ([`restart_after`]).
pub(crate) fn may_restart() -> bool {
    // SAFETY: Looks at the current task.
    unsafe { bindings::rdax_may_restart() }
}

/// Whether this task compares ranges of files, to have them share blocks (`FIDEDUPERANGE`).
pub(crate) fn deduplicates() -> bool {
    // SAFETY: Looks at the current task.
    unsafe { bindings::rdax_deduplicates() }
}

/// Whether the system call that this task is in is to end now because it will be made again.
pub(crate) fn restart_is_due() -> bool {
    // SAFETY: Looks at what belongs to the current task.
    unsafe { bindings::rdax_restart_is_due() }
}

/// Sleeps once, as one who is woken when the folio's last reference goes, unless `is_done` says that
/// there is no need to. Returns what that says.
fn sleep_on_folio(
    stay: &Stay<'_>,
    folio: DevFolio<'_>,
    state: c_int,
    is_done: &impl Fn() -> bool,
    sleep: impl FnOnce(),
) -> Result<bool> {
    if !stay.is_over(folio.head().pfn()) {
        waiting::note(folio);
    }
    let var: *mut c_void = folio.as_ptr().cast();
    let mut waiter: bindings::wait_bit_queue_entry = pin_init::zeroed();
    // SAFETY: The waiter stays where it is until `finish_wait` has taken it off the queue; the
    // address is only compared.
    unsafe {
        let queue = bindings::__var_waitqueue(var);
        bindings::init_wait_var_entry(&mut waiter, var, 0);
        let signal = bindings::prepare_to_wait_event(queue, &mut waiter.wq_entry, state);
        let result = if stay.is_over(folio.head().pfn()) {
            Err(EIO)
        } else if is_done() {
            Ok(true)
        } else if signal != 0 {
            to_result(signal as c_int).map(|()| false)
        } else {
            sleep();
            Ok(false)
        };
        bindings::finish_wait(queue, &mut waiter.wq_entry);
        result
    }
}
