// SPDX-License-Identifier: GPL-2.0

//! Poisoned memory: keeping an entry still while the core tells processes (spec, section 7).

use super::{
    device::FileDevice,
    owner,
    stats::Counter,
    tree, //
};
#[cfg(CONFIG_MEMORY_FAILURE)]
use crate::kern::{dax::FailedPlace, order::Order};
use crate::kern::{
    fs::{Mapping, PageIndex},
    once::Once,
    page::{DevFolio, KeptOwner, PageRun, Pfn},
    redirect::{self, InFlight},
    trace,
    vm,
    xa::LeftLocked, //
};
use kernel::sync::atomic::{Atomic, Relaxed};

static SEEN: Atomic<bool> = Atomic::new(false);

/// Whether memory has failed since the module was loaded, or pages of an adopted device were marked
/// before: pages may be marked.
#[inline]
pub(crate) fn was_seen() -> bool {
    SEEN.read_once()
}

/// Has [`was_seen`] say yes if one of these pages is marked. What they are marked for may have
/// happened while nobody told us, so they all are bad. Sleeps.
pub(crate) fn look_for_marks(run: PageRun<'_>) {
    /// After how many pages others have their turn.
    const TURN: usize = 1 << 12;

    for (at, page) in run.iter().enumerate() {
        if page.is_marked() {
            page.note_failure(false);
            note_seen();
        }
        if at % TURN == TURN - 1 {
            vm::cond_resched();
        }
    }
}

/// Calls `f` with the parts of a run that have no page which is known to be bad. For what is, the kernel
/// has no address any more.
#[inline]
pub(crate) fn for_each_good_run<'a>(run: PageRun<'a>, mut f: impl FnMut(PageRun<'a>)) {
    if !was_seen() {
        return f(run);
    }
    let mut begin = 0;
    for at in 0..=run.pages() {
        if run.nth(at).is_some_and(|page| !page.is_poisoned()) {
            continue;
        }
        if begin < at {
            if let Some(rest) = run.from(begin) {
                f(rest.up_to(at - begin));
            }
        }
        begin = at + 1;
    }
}

fn note_seen() {
    SEEN.store(true, Relaxed);
}

/// Has [`was_seen`] say no again, for tests of what is not done once memory has failed.
#[cfg(RDAX_TEST)]
pub(crate) fn forget() {
    SEEN.store(false, Relaxed);
}

/// The token that the callers keep, to unlock with.
#[derive(PartialEq, Eq)]
pub(crate) enum Cookie {
    /// It did not work.
    Failed,
    /// There was nothing to lock.
    Nothing,
    /// The entry was locked, and the folio keeps its owner if that is all that is known of it.
    Locked(LeftLocked, Option<KeptOwner>),
}

impl Cookie {
    /// The numbers that stand for those without an entry.
    pub(crate) const FAILED: usize = 0;
    pub(crate) const NOTHING: usize = usize::MAX;

    /// The number that the callers know it by.
    pub(crate) fn into_bits(self) -> usize {
        match self {
            Self::Failed => Self::FAILED,
            Self::Nothing => Self::NOTHING,
            Self::Locked(left, kept) => {
                if let Some(kept) = kept {
                    kept.leave();
                }
                left.into_bits()
            }
        }
    }
}

/// Locks the entry of a folio in the file that owns it (`dax_lock_folio`). Needs no reference to
/// the inode, which may vanish at any moment. Sleeps.
pub(crate) fn lock_folio(folio: DevFolio<'_>, in_flight: &mut InFlight) -> Cookie {
    note_seen();
    match owner::lock_by_folio(folio, in_flight) {
        Some((left, kept)) => Cookie::Locked(left, Some(kept)),
        None => Cookie::Failed,
    }
}

/// Unlocks what [`lock_folio`] locked (`dax_unlock_folio`).
///
/// `mapping` is the owner of that folio, which has not changed since.
pub(crate) fn unlock_folio(mapping: &Mapping, cookie: Cookie) {
    if let Cookie::Locked(left, kept) = cookie {
        drop(kept);
        tree::unlock_left(mapping, left);
    }
}

/// Locks the entry that covers `index` (`dax_lock_mapping_entry`) and says the frame of which page is there,
/// if one is. Sleeps.
///
/// Held: a reference to the inode.
pub(crate) fn lock_index(mapping: &Mapping, index: PageIndex) -> (Cookie, Option<Pfn>) {
    note_seen();
    let inode = mapping.host();
    if !inode.is_dax() {
        return (Cookie::Failed, None);
    }
    let Some(locked) = tree::lock_present(mapping, index) else {
        return (Cookie::Nothing, None);
    };
    let Some(block) = locked.entry().block() else {
        return (Cookie::Nothing, None);
    };
    // The page at the index, not the first of the entry.
    let page = block.nth(index.get().wrapping_sub(locked.first().get()));
    let pfn = page.pfn();
    // The file may have got another page than the one that [`notify_failure`] has the core ask for.
    if !redirect::is_sought(pfn.to_bits()) {
        return (Cookie::Nothing, None);
    }
    FileDevice::of(inode).inc(Counter::PoisonLocks);
    trace::poison(inode, index, locked.entry().order());
    (Cookie::Locked(locked.leave_locked(), None), Some(pfn))
}

/// Unlocks what [`lock_index`] locked (`dax_unlock_mapping_entry`).
pub(crate) fn unlock_index(mapping: &Mapping, cookie: Cookie) {
    if let Cookie::Locked(left, _) = cookie {
        tree::unlock_left(mapping, left);
    }
}

/// Notes of `pages` pages of a device from this one on, which are about to be marked as bad,
/// whether their failure was made up (`MF_SW_SIMULATED`): by those who inject errors to see what
/// becomes of it, as with `MADV_HWPOISON`. Everybody is told of it as of any other, but the memory is
/// as good as before, and stays in use. Sleeps.
#[cfg(CONFIG_MEMORY_FAILURE)]
pub(crate) fn note(first: FailedPlace<'_>, pages: usize, made_up: bool) {
    // Also of pages that no file has, whose entry nobody locks.
    note_seen();
    if let Ok(run) = first.pages(pages) {
        for page in run.iter() {
            page.note_failure(made_up);
        }
    }
}

/// Tells of the failure of a page of a device, whose filesystem has said that it
/// cannot (`dax_holder_notify_failure`): it is marked, the processes that map it are told, and their
/// mappings of it taken away. `flags` are those of the memory failure (`MF_*`). Sleeps.
///
/// The core would do this as well, but to the first page of the folio whichever has failed. False,
/// and nothing was done, if it has to: the folio is a page, or in no file, or in several.
///
/// The call is in flight, but not while it waits.
#[cfg(CONFIG_MEMORY_FAILURE)]
pub(crate) fn notify_failure(in_flight: &mut InFlight, place: FailedPlace<'_>, flags: i32) -> bool {
    /// How often the page is looked for in a file that it has left meanwhile.
    const ATTEMPTS: usize = 8;

    let Ok(run) = place.pages(1) else {
        return false;
    };
    let page = run.first();
    for _ in 0..ATTEMPTS {
        if page.folio().order() == Order::PTE {
            return false;
        }
        let Some((inode, index)) = owner::owner_of(page) else {
            return false;
        };
        // The reference keeps the filesystem mounted, and so the device adopted. To drop it may take as
        // long as to unmount.
        let (told, found) = in_flight.pause(|| {
            let kill = || inode.mapping().kill_procs(index, flags);
            let result = redirect::call_original_for(page.pfn().to_bits(), kill);
            drop(inode);
            result
        });
        if found || told.is_err() {
            return found;
        }
    }
    false
}
