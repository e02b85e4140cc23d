// SPDX-License-Identifier: GPL-2.0

//! From a folio to the file that owns it, and to its entry (spec, section 7).

use super::{
    device::{self, FileDevice},
    stats::Counter, //
};
#[cfg(CONFIG_MEMORY_FAILURE)]
use crate::kern::{
    entry::Entry,
    fs::{InodeRef, PageIndex},
    page::DevPage,
};
use crate::kern::{
    page::{DevFolio, KeptOwner},
    redirect::InFlight,
    trace,
    wait::{EntryKey, OwnerGuard},
    xa::LeftLocked, //
};
use kernel::prelude::*;

/// Locks the entry of the folio in the file that owns it, and leaves it locked. The caller knows the
/// folio only and holds no reference to the inode. `None` if the folio is in no file that could be
/// locked. The folio keeps its owner meanwhile.
///
/// The call is in flight, but not while it waits: the file's device may be given back meanwhile. Sleeps.
pub(crate) fn lock_by_folio(
    folio: DevFolio<'_>,
    in_flight: &mut InFlight,
) -> Option<(LeftLocked, KeptOwner)> {
    // Ends: it starts over when the folio has got another owner, or another place, since it was looked
    // up, and when its entry has been unlocked.
    loop {
        let owner = OwnerGuard::of(folio)?;
        let host = owner.mapping().host();
        if !host.is_dax() || device::device_for(host).is_none() {
            return None;
        }
        let mut owner = owner.lock();
        let Some(index) = folio.index_in(owner.mapping()) else {
            continue;
        };
        let (mapping, mut xas) = owner.xas(index);
        let (entry, locked) = Entry::from_raw(xas.load()?);
        if !locked {
            // Up to the unlocking the core goes by the folio's owner, as does the unlocking.
            let kept = match folio.keep_owner(mapping) {
                Ok(kept) if folio.index() == index => kept,
                Ok(_) | Err(ENOENT) => continue,
                Err(_) => return None,
            };
            let left = xas.lock()?.leave();
            FileDevice::of(mapping.host()).inc(Counter::PoisonLocks);
            trace::poison(mapping.host(), index, entry.order());
            return Some((left, kept));
        }
        let key = EntryKey::new(mapping, entry.order().first(index));
        in_flight.pause(|| owner.wait(key));
    }
}

/// The file that owns the folio of a page, and the page's index in it; `None` if it has none, or one
/// of which nobody may take a reference any more. Both may be outdated at once. Sleeps.
#[cfg(CONFIG_MEMORY_FAILURE)]
pub(crate) fn owner_of(page: DevPage<'_>) -> Option<(InodeRef, PageIndex)> {
    let owner = OwnerGuard::of(page.folio())?;
    // Every device of this kind can be asked about.
    device::device_for(owner.mapping().host())?;
    let inode = owner.reference()?;
    let index = {
        let _guard = inode.mapping().tree().lock();
        let folio = page.folio();
        let offset = page.pfn().to_bits() - folio.head().pfn().to_bits();
        let index = folio.index_in(inode.mapping())?;
        PageIndex::new(index.get() + offset)
    };
    Some((inode, index))
}
