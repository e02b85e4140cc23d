// SPDX-License-Identifier: GPL-2.0

//! Poisoned memory: keeping an entry still while the core tells processes (spec, section 7).

use super::{
    account::Account,
    entry::{Entry, Kind},
    stats::Counter,
    tree::{self, FolioLock}, //
};
use crate::kern::{
    fs::{Mapping, PageIndex},
    page::{DevFolio, DevPage}, //
};
use core::sync::atomic::{AtomicBool, Ordering};

static SEEN: AtomicBool = AtomicBool::new(false);

/// Whether memory has failed since the module was loaded: pages may be marked.
#[inline]
pub(crate) fn was_seen() -> bool {
    SEEN.load(Ordering::Relaxed)
}

/// Has [`was_seen`] say no again, for tests of what is not done once memory has failed.
#[cfg(RDAX_TEST)]
pub(crate) fn forget() {
    SEEN.store(false, Ordering::Relaxed);
}

/// What the callers keep to unlock with. Opaque to them, but for two values.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cookie(pub(crate) usize);

impl Cookie {
    /// It did not work.
    pub(crate) const FAILED: Self = Self(0);
    /// There was nothing to lock.
    pub(crate) const NOTHING: Self = Self(usize::MAX);

    fn of(entry: Entry) -> Self {
        Self(entry.unlocked())
    }

    fn entry(self) -> Option<Entry> {
        (self != Self::FAILED && self != Self::NOTHING).then(|| Entry::from_raw(self.0).0)
    }
}

/// Locks the entry of a folio in the file that owns it (`dax_lock_folio`). Needs no reference to
/// the inode, which may vanish at any moment. Sleeps.
pub(crate) fn lock_folio(folio: DevFolio) -> Cookie {
    SEEN.store(true, Ordering::Relaxed);
    match tree::lock_by_folio(folio) {
        FolioLock::Locked(entry) => Cookie::of(entry),
        FolioLock::NoFile => Cookie::FAILED,
    }
}

/// Unlocks what [`lock_folio`] locked (`dax_unlock_folio`).
///
/// `mapping` is the folio's owner, which cannot have changed since.
pub(crate) fn unlock_folio(mapping: &Mapping, folio: DevFolio, cookie: Cookie) {
    if let Some(entry) = cookie.entry() {
        tree::unlock_raw(mapping, folio.index(), entry);
    }
}

/// Locks the entry that covers `index` (`dax_lock_mapping_entry`) and says which page is there,
/// if one is. Sleeps.
///
/// Held: a reference to the inode.
pub(crate) fn lock_index(mapping: &Mapping, index: PageIndex) -> (Cookie, Option<DevPage>) {
    SEEN.store(true, Ordering::Relaxed);
    let inode = mapping.host();
    if !inode.is_dax() {
        return (Cookie::FAILED, None);
    }
    let Some(locked) = tree::lock_present(mapping, index) else {
        return (Cookie::NOTHING, None);
    };
    match locked.entry().kind() {
        Kind::Data(pfn) => {
            Account::of(inode).inc(Counter::PoisonLocks);
            // The page at the index, not the first of the entry.
            let offset = index.get().wrapping_sub(locked.first().get());
            let entry = locked.leave_locked();
            (Cookie::of(entry), Some(DevPage::of(pfn.offset(offset))))
        }
        _ => (Cookie::NOTHING, None),
    }
}

/// Unlocks what [`lock_index`] locked (`dax_unlock_mapping_entry`).
pub(crate) fn unlock_index(mapping: &Mapping, index: PageIndex, cookie: Cookie) {
    if let Some(entry) = cookie.entry() {
        tree::unlock_raw(mapping, index, entry);
    }
}
