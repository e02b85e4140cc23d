// SPDX-License-Identifier: GPL-2.0

//! How those who want a file's pages idle take turns with those who use them.

use super::{
    super::{
        device::FileDevice,
        stats::Counter,
        tries::{self, Tries},
    },
    busy::busy_folio,
};
use crate::kern::{
    fs::{Inode, PageRange},
    memory::Stay,
    page::DevFolio,
    vm,
    wait::{self, Sleep, WaitCallback},
    waiting::{Waiter, Waiting},
};
use core::cell::{Cell, OnceCell};
use kernel::{
    prelude::*,
    time::{Instant, Monotonic},
};

/// Calls `wait`, which waits for a folio, and counts how long. Sleeps.
pub(super) fn timed<T>(device: FileDevice<'_>, wait: impl FnOnce() -> T) -> T {
    let since = Instant::<Monotonic>::now();
    let waited = wait();
    device.add(
        Counter::LayoutWaitNs,
        since.elapsed().as_nanos().max(0) as u64,
    );
    waited
}

/// Counts how long a task has waited since its last try.
pub(super) fn count_since(tries: Tries, device: FileDevice<'_>) {
    device.add(Counter::LayoutWaitNs, u64::from(tries.last) * 1_000_000);
}

/// How those who want a file's pages idle take turns with those who use them.
///
/// A caller that looks once, finds a reference, and sleeps with faults allowed finds another one the next
/// time where pages are taken and released all the time. So at first he waits for a moment with faults kept
/// out: nobody takes another page then, and those who have one need it for a transfer, or a copy, which is
/// over soon. Then it is the turn of the others: whoever holds a page may be about to fault on the next one,
/// which he needs before he lets go of the first. Each turn is longer than the one before, up to a bound, so
/// that a moment is long enough on a machine that is slow or busy.
///
/// Their turn is as long as somebody likes who holds a page, so nothing may be held meanwhile: neither the
/// file, which others want to write, nor the filesystem, which is to be frozen. A system call ends before
/// their turn and is made again after it ([`wait::restart_after`]). Where that cannot be, their turns come to
/// an end with [`Turns::PATIENCE`], and the call with an error.
pub(crate) struct Turns {
    /// How long the turn of the others is, in milliseconds.
    pub(super) theirs: Cell<u32>,
    /// Since when there is somebody to wait for.
    pub(super) since: Cell<Option<Instant<Monotonic>>>,
    who: Waiter,
    waiting: OnceCell<Waiting>,
}

/// Whether a call may be made again from its beginning.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Again {
    Yes,
    /// Something was done that would be done twice.
    No,
}

impl Turns {
    const FIRST: u32 = 20;
    const LONGEST: u32 = 2560;
    /// How long faults are kept out at most.
    const LONGEST_MOMENT: u32 = 320;
    /// For a fault, which does not know how often it was tried before.
    pub(super) const OF_FAULT: u32 = 40;
    /// How long somebody is waited for with the caller's locks held, in milliseconds: about as long as a
    /// large write holds them.
    const PATIENCE: u32 = 2500;
    /// The same for who compares files, who need only be able to read one of them: as many as like can have it
    /// locked one after the other, so none has it for longer than the first moment. Nothing is lost, as
    /// whoever makes files share blocks does without where he is told to try again.
    const PATIENCE_TO_DEDUPLICATE: u32 = 0;
    /// The same for a thread of the kernel. What it works for (an exported filesystem, a loop device) may take
    /// an error for a broken device; and users cannot have it do so again and again as they like.
    const PATIENCE_OF_KERNEL: u32 = 30_000;

    pub(crate) fn new(who: Waiter) -> Self {
        Self {
            theirs: Cell::new(Self::FIRST),
            since: Cell::new(None),
            who,
            waiting: OnceCell::new(),
        }
    }

    fn patience() -> u32 {
        if vm::is_kernel_thread() {
            Self::PATIENCE_OF_KERNEL
        } else if wait::deduplicates() {
            Self::PATIENCE_TO_DEDUPLICATE
        } else {
            Self::PATIENCE
        }
    }

    /// Notes that there is somebody to wait for, perhaps since a try before this one.
    fn begin(&self, inode: &Inode, device: FileDevice<'_>) {
        if self.since.get().is_some() {
            return;
        }
        self.since.set(Some(Instant::now()));
        self.waiting
            .get_or_init(|| Waiting::for_file(self.who, inode));
        // This one is not made again: what the task has tried before was another call.
        let goes_on = !wait::deduplicates() || tries::in_loop().is_some();
        match tries::so_far().filter(|_| goes_on) {
            Some(tries) => {
                // Turns that double take as long together as the next one.
                self.theirs
                    .set(tries.first.clamp(Self::FIRST, Self::LONGEST));
                count_since(tries, device);
            }
            None => device.inc(Counter::LayoutWaits),
        }
    }

    /// As [`busy_folio`], but who holds a page for a moment only is waited for. The caller keeps faults
    /// out, and has the `stay`. Sleeps.
    ///
    /// Errors: `ERESTARTSYS` when a signal came, `EIO` when the device goes away.
    pub(crate) fn busy_folio<'s>(
        &self,
        stay: &'s Stay<'_>,
        inode: &Inode,
        range: PageRange,
    ) -> Result<Option<DevFolio<'s>>> {
        let mapping = inode.mapping();
        let Some(head) = busy_folio(mapping, range) else {
            return Ok(None);
        };
        let device = FileDevice::of(inode);
        self.begin(inode, device);
        timed(device, || {
            let moment = (self.theirs.get() / 2).min(Self::LONGEST_MOMENT);
            let mut left = moment;
            let mut folio = stay.folio(head)?;
            // Ends with the moment, of which each turn takes a part.
            while wait::is_soon_idle(stay, folio, &mut left, moment / 4)? {
                match busy_folio(mapping, range) {
                    Some(next) => folio = stay.folio(next)?,
                    None => return Ok(None),
                }
            }
            Ok(Some(folio))
        })
    }

    /// The turn of the others: sleeps as `how` says until they are done with the folio, but not for
    /// longer than their turn.
    ///
    /// Errors: `ERESTARTSYS` when the call is to be made again, or a signal came; `EAGAIN` when it cannot be
    /// made again and they were waited for for long; `EIO` when the device goes away.
    pub(crate) fn let_others(
        &self,
        stay: &Stay<'_>,
        folio: DevFolio<'_>,
        how: Sleep<'_>,
        inode: &Inode,
        again: Again,
    ) -> Result {
        let device = FileDevice::of(inode);
        let theirs = self.theirs.get();
        if again == Again::Yes && wait::restart_after(stay, folio, theirs) {
            tries::note(inode.mapping());
            return Err(ERESTARTSYS);
        }
        let waited = self
            .since
            .get()
            .map_or(0, |since| since.elapsed().as_millis());
        let left = i64::from(Self::patience()) - waited;
        if left <= 0 {
            return Err(EAGAIN);
        }
        let at_most = theirs.min(left as u32);
        self.theirs.set((theirs * 2).min(Self::LONGEST));
        timed(device, || {
            wait::wait_until_idle(stay, folio, how, Some(at_most))
        })
    }

    /// The same, for those whose caller holds the `invalidate_lock` exclusively, if anybody: it is let go
    /// meanwhile.
    pub(crate) fn let_faults_in(
        &self,
        stay: &Stay<'_>,
        folio: DevFolio<'_>,
        inode: &Inode,
    ) -> Result {
        let how = Sleep::Callback(inode, WaitCallback::let_faults_in());
        self.let_others(stay, folio, how, inode, Again::Yes)
    }

    /// For a caller that cannot let go of its locks to wait, and tries again with them: whether it has done so
    /// for long enough.
    pub(super) fn are_over() -> bool {
        let over =
            !wait::may_restart() && tries::in_loop().is_some_and(|since| since >= Self::patience());
        if over {
            tries::end_loop();
        }
        over
    }
}
