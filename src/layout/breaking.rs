// SPDX-License-Identifier: GPL-2.0

//! Breaking a layout: waiting until nobody uses pages, then removing entries.

use super::{
    super::{device::FileDevice, stats::Counter, tree, tries},
    busy::find_busy,
    remove::remove_range,
    turns::{count_since, timed, Again, Turns},
};
use crate::kern::{
    fs::{ActiveSuperBlock, Inode, PageRange},
    page::Pfn,
    vm,
    wait::{self, Sleep, WaitCallback},
    waiting::{Waiter, Waiting},
};
use kernel::prelude::*;

/// How a layout break waits for a page that somebody uses.
#[derive(Clone, Copy)]
pub(crate) enum Patience {
    /// Not at all: `ERESTARTSYS` at the first busy page.
    None,
    /// Sleeping by the filesystem's callback; a signal ends it.
    Callback(WaitCallback),
}

/// Waits until nobody uses the range's pages, then removes its entries (`dax_break_layout`).
/// Sleeps.
///
/// Errors: `ERESTARTSYS` when a signal came, when the system call is to be made again, or at once with
/// [`Patience::None`] and a busy page; `EAGAIN` when that was waited for for long; `EIO` when the device goes
/// away; no entry is removed then.
pub(crate) fn break_layout(inode: &Inode, range: PageRange, patience: Patience) -> Result {
    if !inode.is_dax() {
        return Ok(());
    }
    if matches!(patience, Patience::Callback(_)) {
        // XFS, which breaks the layouts of two files, does so until it need not wait for the second
        // one, and takes an error only from the first, which may have nothing to wait for.
        if vm::fatal_signal() || wait::restart_is_due() {
            return Err(ERESTARTSYS);
        }
        if Turns::are_over() {
            return Err(EAGAIN);
        }
    }
    let mapping = inode.mapping();
    if mapping.is_empty() {
        // The device may have gone while the caller waited for one of its pages.
        return match tries::end(mapping) {
            Some(tries) if FileDevice::of(inode).went(tries.first) => Err(EIO),
            _ => Ok(()),
        };
    }
    let device = FileDevice::of(inode);
    device.inc(Counter::LayoutBreaks);
    // While the task sleeps, the entries may be removed, and the device may go.
    let stay = device.stay().ok_or(EIO)?;
    let turns = Turns::new(Waiter::Layout);
    // Ends when nobody holds a page, or with an error. Whoever holds one can take others meanwhile, but not
    // in our turns.
    while let Some(folio) = turns.busy_folio(&stay, inode, range)? {
        let Patience::Callback(callback) = patience else {
            // The caller lets go of its locks and tries again.
            match wait::restart_after(&stay, folio, turns.theirs.get()) {
                true => tries::note(mapping),
                false => tries::note_in_loop(mapping),
            }
            return Err(ERESTARTSYS);
        };
        let how = Sleep::Callback(inode, callback);
        turns.let_others(&stay, folio, how, inode, Again::Yes)?;
    }
    drop(stay);
    if let Some(tries) = tries::end(mapping) {
        if turns.since.get().is_none() {
            count_since(tries, device);
        }
    }
    remove_range(mapping, tree::whole_entries(mapping, range), true, false);
    Ok(())
}

/// The task that has put the last user of a filesystem, and what that is for it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unmount {
    /// It unmounts the filesystem, and waits unless it is killed.
    Now,
    /// It puts the user for another reason, and does not wait.
    Aside,
    /// A thread of the kernel that has nothing else to do.
    Later,
}

/// The frame of a page of the file that somebody holds, of a filesystem that has lost its last user.
fn held_without_user(inode: &Inode) -> Option<Pfn> {
    find_busy(inode.mapping(), PageRange::ALL, Some(FileDevice::of(inode)))
}

/// Whether somebody holds a page of a file of the filesystem, whose last active reference is the caller's, and
/// has to be waited for. Sleeps.
pub(crate) fn has_holders(sb: &ActiveSuperBlock) -> bool {
    sb.is_in_use()
        && sb
            .find_inode(|inode| held_without_user(inode).is_some())
            .is_some_and(|inode| FileDevice::of(&inode).stay().is_some())
}

/// Waits until nobody holds a page of a file of the filesystem, which has lost its last user, so that nobody
/// takes another page. Over as well when it is mounted again, or the device goes. Sleeps.
///
/// False when somebody else is to wait.
pub(crate) fn wait_for_holders(sb: &ActiveSuperBlock, who: Unmount) -> bool {
    /// How often it is looked whether the filesystem is mounted again, in milliseconds.
    const INTERVAL: u32 = 1000;

    // Each turn waits until nobody holds pages of one file, and nobody takes them any more.
    while let Some(inode) = sb.find_inode(|inode| held_without_user(inode).is_some()) {
        let device = FileDevice::of(&inode);
        let Some(stay) = device.stay() else {
            break;
        };
        if who == Unmount::Aside {
            return false;
        }
        let _waiting = Waiting::for_file(Waiter::Eviction, &inode);
        device.inc(Counter::LayoutWaits);
        // As above. Fails when the device goes, and then the folio is not found again.
        while let Some(head) = held_without_user(&inode) {
            let how = match who {
                Unmount::Later => Sleep::Uninterruptible,
                _ if vm::is_dying() => return false,
                _ => Sleep::Killable,
            };
            let _ = timed(device, || {
                wait::wait_until_idle(&stay, stay.folio(head)?, how, Some(INTERVAL))
            });
            // Other references come and go: a mount that fails has one, and so has who freezes.
            if sb.is_mounted() {
                return true;
            }
        }
    }
    true
}

/// The same for a whole file that is being evicted, uninterruptible (`dax_break_layout_final`).
/// A deleted file's data is not written back. Sleeps.
pub(crate) fn break_layout_final(inode: &Inode) {
    if !inode.is_dax() {
        return;
    }
    let mapping = inode.mapping();
    let device = FileDevice::of(inode);
    // Also while the entries are removed: a device that goes does not come to a file that is evicted.
    let stay = device.stay();
    if let Some(stay) = &stay {
        // Every turn waits until somebody is done with a page, and nobody begins any more. The pages
        // of a device that goes away are waited for by that ([`folio::wait_until_unused`]).
        let mut waiting = None;
        while let Some(head) = find_busy(mapping, PageRange::ALL, Some(device)) {
            // Fails when the device goes, and then the folio is not found again.
            device.inc(Counter::LayoutWaits);
            waiting.get_or_insert_with(|| Waiting::for_file(Waiter::Eviction, inode));
            let _ = timed(device, || {
                wait::wait_until_idle(stay, stay.folio(head)?, Sleep::Uninterruptible, None)
            });
        }
    }
    remove_range(mapping, PageRange::ALL, true, inode.is_unlinked());
}
