// SPDX-License-Identifier: GPL-2.0

//! Finding an entry and locking it, or creating one.

use super::{prefault::scan_dirty_before, LockedEntry, Prefault, PrefaultLimits};
use crate::kern::{
    entry::Entry,
    fs::{Mapping, PageIndex},
    order::Order,
    wait::{self, EntryKey},
    xa::{InsertError, Reserve}, //
};

/// Why no entry could be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum LockError {
    /// An entry of a smaller order is in the way.
    Conflict,
    /// There is no memory for the tree.
    NoMemory,
    /// A fatal signal ended the wait for an entry.
    Killed,
}

/// The entry that [`lock_or_create`] finds or creates.
#[derive(Clone, Copy)]
pub(crate) struct Wanted {
    /// A page that the entry is to cover.
    pub(crate) index: PageIndex,
    /// The least order of the entry.
    pub(crate) order: Order,
    /// Mark the entry dirty: a fault will map it for writing.
    pub(crate) dirty: bool,
    /// How far to prepare what follows, for an order of [`Order::PTE`] only.
    pub(crate) prefault: Option<PrefaultLimits>,
}

/// The result of [`lock_or_create`].
pub(crate) struct Created<'m> {
    /// The entry.
    pub(crate) locked: LockedEntry<'m>,
    /// The pages that may be mapped with it.
    pub(crate) prefault: Prefault,
}

/// Returns a locked entry of at least the wanted order that covers the index; where nothing is, or a
/// larger entry without memory, it is a new empty entry of that order. Sleeps.
///
/// With limits for prefaulting, says how many pages may be mapped as well. For reading, those are the
/// rest of the block. For writing, there are not more of them than pages were written before, so that
/// less is flushed for nothing than was written, if the writes end here; and then a new entry may be
/// larger than a page.
#[inline(always)]
pub(crate) fn lock_or_create<'m>(
    mapping: &'m Mapping,
    wanted: &Wanted,
) -> Result<Created<'m>, LockError> {
    let Wanted {
        index,
        order,
        dirty,
        ..
    } = *wanted;
    let mut limits = wanted.prefault.filter(|_| order == Order::PTE);
    let tree = mapping.tree();
    let mut reserve = Reserve::none();
    // Ends: the task that has the entry locked unlocks it, and waiters have their turn one by one; an entry
    // without memory that is too large is removed, and comes again only by faults that wanted it before
    // this one; memory for the tree is there at the second try, or missing.
    loop {
        let mut guard = tree.lock();
        // A state without an order finds an entry of any order, in fewer steps.
        let mut xas = guard.xas(index);
        if let Some(raw) = xas.load() {
            let (entry, _) = Entry::from_raw(raw);
            if entry.order() < order {
                return Err(LockError::Conflict);
            }
            let Some(locked) = LockedEntry::lock(mapping, &mut xas) else {
                let key = EntryKey::new(mapping, entry.order().first(index));
                wait::wait_for_entry_killable(mapping, guard, key)
                    .map_err(|_| LockError::Killed)?;
                continue;
            };
            if entry.order() == order || entry.is_data() {
                let mut prefault = Prefault::none();
                if dirty && !locked.is_dirty() {
                    if let Some(limits) = limits {
                        if let Some(run) = scan_dirty_before(&xas, index, &limits) {
                            prefault.pages = run.pages.min(limits.rest(index));
                        }
                    }
                    locked.mark_dirty_at(&mut xas);
                }
                drop(guard);
                return Ok(Created { locked, prefault });
            }
            // A placeholder, or zeroes, of a larger order than is wanted.
            let is_zero = entry.is_zero();
            drop(guard);
            if is_zero {
                mapping.unmap(locked.range());
            }
            locked.remove();
            continue;
        }
        let mut prefault = Prefault::none();
        let mut size = order;
        if let Some(limits) = limits {
            if !dirty {
                prefault.pages = limits.rest(index);
                prefault.behind = Some(Order::PTE);
            } else if let Some(run) = xas
                .is_free_behind()
                .then(|| scan_dirty_before(&xas, index, &limits))
                .flatten()
            {
                let largest = run.order.min(limits.order);
                prefault.pages = run.pages.min(limits.rest(index));
                prefault.behind = Some(largest);
                size = largest.fitting(index.get(), run.pages.min(limits.room));
            }
        }
        let mut inserted = xas.insert(Entry::empty(size).locked(), &mut reserve);
        if size != order
            && inserted
                .as_ref()
                .is_err_and(|error| *error == InsertError::Occupied)
        {
            // The page alone has room.
            size = order;
            inserted = xas.insert(Entry::empty(size).locked(), &mut reserve);
        }
        match inserted {
            Ok(slot) => {
                mapping.add_pages(xas.guard(), size.pages());
                let locked = LockedEntry::new(mapping, slot, false);
                if dirty {
                    locked.mark_dirty_at(&mut xas);
                }
                return Ok(Created { locked, prefault });
            }
            Err(InsertError::Occupied) => return Err(LockError::Conflict),
            Err(InsertError::NoMemory) => (),
        }
        drop(guard);
        // Without the entries behind it, which may need more.
        limits = None;
        if size == order && !reserve.allocate(tree) {
            return Err(LockError::NoMemory);
        }
    }
}
