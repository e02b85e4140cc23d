// SPDX-License-Identifier: GPL-2.0

//! Layout: who uses a file's pages, waiting until nobody does, and removing entries (spec, section
//! 5).
//!
//! The callers hold the filesystem's `invalidate_lock` exclusively, except where it is said.

use super::{
    device::FileDevice,
    folio::{self, FolioReleaseBatch},
    poison,
    stats::Counter,
    tree::{self, Disposition, EntryBatch, Filter, LockedEntry, Visitor, WalkAction},
    tries::{self, Tries}, //
};
use crate::kern::{
    entry::{Entry, Kind},
    fs::{Inode, Mapping, PageIndex, PageRange},
    memory::Stay,
    order::Order,
    page::{DevFolio, PageRun},
    vm::{self, LockedVma},
    wait::{self, Sleep, WaitCallback},
    xa::Mark, //
};
use core::cell::Cell;
use kernel::{
    pr_err_once,
    prelude::*,
    time::{Instant, Monotonic}, //
};

/// How a layout break waits for a page that somebody uses.
#[derive(Clone, Copy)]
pub(crate) enum Patience {
    /// Not at all: `ERESTARTSYS` at the first busy page.
    None,
    /// Sleeping by the filesystem's callback; a signal ends it.
    Callback(WaitCallback),
}

/// Bytes that are written back before others get the processor.
const FLUSH_CHUNK: usize = Order::PMD.bytes();

/// Calls `work` with offset and length, in bytes, of one piece of `pages` pages after the other, and
/// lets others have the processor between them (spec, R8). Sleeps.
pub(crate) fn in_chunks(pages: usize, mut work: impl FnMut(usize, usize)) {
    let all = pages << Order::PAGE_SHIFT;
    let mut done = 0;
    while done < all {
        let bytes = (all - done).min(FLUSH_CHUNK);
        work(done, bytes);
        done += bytes;
        if done < all {
            vm::cond_resched();
        }
    }
}

/// Writes back all of the memory of the pages. Sleeps.
pub(crate) fn flush(run: PageRun) {
    poison::for_each_good_run(run, |run| {
        in_chunks(run.pages(), |offset, bytes| run.write_back(offset, bytes));
    });
}

/// Lets go of what a locked entry points to, which is about to be replaced or removed: no page
/// table maps it writable any more, and what is dirty of it is written back first (spec, R5).
pub(crate) fn release_backing(locked: &LockedEntry<'_>, device: FileDevice<'_>) {
    let Some(block) = locked.entry().block() else {
        return;
    };
    if locked.is_dirty() {
        flush(block.run());
        device.inc(Counter::EntriesFlushedOnRemoval);
    }
    folio::disassociate(block.first());
}

/// The same for the entries of a batch, which are to be removed.
fn release_batch(batch: &EntryBatch<'_>, device: FileDevice<'_>) {
    batch.pieces(true, |_, pages| flush(pages));
    let mut released = FolioReleaseBatch::new();
    let mut flushed = 0;
    for (_, entry, dirty) in batch.iter() {
        if let Some(page) = entry.page() {
            flushed += u64::from(dirty);
            released.add(page);
        }
    }
    drop(released);
    device.add(Counter::EntriesFlushedOnRemoval, flushed);
}

/// Unmaps a locked entry and lets go of what it points to; it is to be removed.
fn unmap_and_release(locked: &LockedEntry<'_>) {
    let device = FileDevice::of(locked.mapping().host());
    locked.mapping().unmap(locked.range());
    release_backing(locked, device);
    device.inc(Counter::EntriesRemoved);
}

/// Unmaps and removes a locked entry.
pub(crate) fn discard(locked: LockedEntry<'_>) {
    unmap_and_release(&locked);
    locked.remove();
}

/// Makes a locked entry empty again, after what it was made for failed.
pub(crate) fn empty(locked: &mut LockedEntry<'_>) {
    let device = FileDevice::of(locked.mapping().host());
    locked.mapping().unmap(locked.range());
    release_backing(locked, device);
    locked.set(Entry::empty(locked.entry().order()));
}

/// Looks for a folio with more references than page tables hold.
struct FindBusy<'a> {
    busy: Option<DevFolio>,
    /// Pages that go away with this device are nobody's concern.
    spare: Option<FileDevice<'a>>,
}

impl Visitor for FindBusy<'_> {
    const ASKS_DIRTY: bool = false;
    const BATCHES: bool = false;

    fn look(&mut self, entry: Entry, _dirty: bool) -> WalkAction {
        let Some(page) = entry.page() else {
            return WalkAction::Next;
        };
        let folio = page.folio();
        if folio.refcount() > folio.mapcount()
            && self
                .spare
                .is_none_or(|device| !device.is_gone(folio.head().pfn()))
        {
            self.busy = Some(folio);
            return WalkAction::Stop;
        }
        WalkAction::Next
    }

    fn work(&mut self, _batch: &EntryBatch<'_>) -> Disposition {
        // Not reached: nothing is to be worked on.
        Disposition::Clean(0)
    }
}

/// The first folio of the range, in the order of the file, that somebody uses other than by a
/// mapping (`dax_layout_busy_page_range`). The range is unmapped first. Sleeps.
pub(crate) fn busy_folio(mapping: &Mapping, range: PageRange) -> Option<DevFolio> {
    find_busy(mapping, range, None)
}

fn find_busy(
    mapping: &Mapping,
    range: PageRange,
    spare: Option<FileDevice<'_>>,
) -> Option<DevFolio> {
    if mapping.is_empty() || !mapping.host().is_dax() {
        return None;
    }
    let range = tree::whole_entries(mapping, range);
    // First the page tables, then the counts: fast GUP is either seen by its reference, or sees
    // that the page is gone.
    mapping.unmap(range);
    let mut visitor = FindBusy { busy: None, spare };
    tree::walk(mapping, range, Filter::Any, &mut visitor);
    visitor.busy
}

/// The largest order of an entry that is removed, and taken off its pages, under the tree's lock.
const REMOVE_AT_ONCE: Order = Order::from_bits(4);

/// Removes entries, writing back what is dirty.
struct Remove<'a> {
    device: FileDevice<'a>,
    mapping: &'a Mapping,
    /// The caller has unmapped the range and keeps faults out.
    unmapped: bool,
    /// The content goes away with the file: nobody will miss what is not written back.
    forget: bool,
}

impl Remove<'_> {
    /// Whether a page table may have something of an entry that is locked, or that nobody can lock at
    /// this moment.
    #[inline]
    fn may_be_mapped(&self, entry: Entry) -> bool {
        match entry.kind() {
            Kind::Data(block) => block.first().folio().mapcount() != 0,
            // How often zeroes are mapped for a file is not known.
            Kind::Zero => !self.unmapped && self.mapping.has_vmas(),
            Kind::Empty => false,
        }
    }
}

impl Visitor for Remove<'_> {
    const ASKS_DIRTY: bool = true;
    const BATCHES: bool = true;

    #[inline]
    fn look(&mut self, entry: Entry, dirty: bool) -> WalkAction {
        let dirty = dirty && !self.forget;
        match entry.kind() {
            _ if self.may_be_mapped(entry) => WalkAction::Work,
            Kind::Data(_) if dirty || entry.order() > REMOVE_AT_ONCE => WalkAction::Work,
            Kind::Data(block) if !folio::is_small(block.first()) => WalkAction::Work,
            _ => WalkAction::Remove,
        }
    }

    fn work(&mut self, batch: &EntryBatch<'_>) -> Disposition {
        if batch.iter().any(|(_, entry, _)| self.may_be_mapped(entry)) {
            // What is written between the flush and the unmapping must not be lost, and no page stay
            // mapped that is not the file's any more.
            batch.mapping().unmap(batch.range());
        }
        if self.forget {
            let mut released = FolioReleaseBatch::new();
            for (_, entry, _) in batch.iter() {
                if let Some(page) = entry.page() {
                    released.add(page);
                }
            }
        } else {
            release_batch(batch, self.device);
        }
        Disposition::Remove
    }
}

fn remove_range(mapping: &Mapping, range: PageRange, unmapped: bool, forget: bool) {
    let device = FileDevice::of(mapping.host());
    let mut visitor = Remove {
        device,
        mapping,
        unmapped,
        forget,
    };
    let removed = tree::walk(mapping, range, Filter::Any, &mut visitor);
    device.add(Counter::EntriesRemoved, removed as u64);
}

/// Unmaps and removes every entry of the range, dirty ones after they were written back
/// (`dax_delete_mapping_range`). Sleeps.
pub(crate) fn delete_range(mapping: &Mapping, range: PageRange) {
    remove_range(mapping, range, false, false);
}

/// Sees that nobody holds a page of the range, for a caller that writes it back with faults kept out: he does not
/// want stores until he has done something with the blocks, which is to take them from the file. He has waited
/// for those who hold pages, so that this finds nobody; or is one who exchanges what two files have, and has
/// not (spec, R2). For all others it does nothing. Waits for a moment.
///
/// Errors: `EBUSY` when somebody holds a page; `ERESTARTSYS` when a signal came, `EIO` when the device goes away.
pub(crate) fn refuse_if_held(inode: &Inode, range: PageRange) -> Result {
    if !inode.mapping().are_faults_out() {
        return Ok(());
    }
    let stay = FileDevice::of(inode).stay().ok_or(EIO)?;
    match Turns::new().busy_folio(&stay, inode, range)? {
        Some(_) => Err(EBUSY),
        None => Ok(()),
    }
}

/// Removes what a file has in the range, as the filesystem takes for done: unmaps it, and writes back
/// what is dirty. With `may_stay`, nothing is removed if somebody holds a page of it: to be waited for he
/// would have to be let fault on the next, and the caller looks whether there is something left. Sleeps.
pub(crate) fn cut(mapping: &Mapping, range: PageRange, may_stay: bool) {
    if !may_stay || busy_folio(mapping, range).is_none() {
        remove_range(mapping, range, false, false);
    }
}

/// The folio of a locked entry that the file is about to give up, if somebody uses it other than by a
/// mapping. The entry is unmapped first, and as long as it is locked nobody maps it.
pub(crate) fn held(locked: &LockedEntry<'_>) -> Option<DevFolio> {
    let page = locked.entry().page()?;
    locked.mapping().unmap(locked.range());
    let folio = page.folio();
    (folio.refcount() > folio.mapcount()).then_some(folio)
}

/// As [`held`], but who holds the folio for a moment only is waited for, with the entry locked, so that he is
/// the last. Sleeps.
pub(crate) fn held_for_long(locked: &LockedEntry<'_>, device: FileDevice<'_>) -> Option<DevFolio> {
    let folio = held(locked)?;
    if let Some(stay) = device.stay() {
        let mut left = Turns::OF_FAULT;
        device.inc(Counter::LayoutWaits);
        let idle = timed(device, || {
            wait::is_soon_idle(&stay, folio, &mut left, Turns::OF_FAULT / 4)
        });
        if idle == Ok(true) {
            return held(locked);
        }
    }
    Some(folio)
}

/// Calls `wait`, which waits for a folio, and counts how long. Sleeps.
fn timed<T>(device: FileDevice<'_>, wait: impl FnOnce() -> T) -> T {
    let since = Instant::<Monotonic>::now();
    let waited = wait();
    device.add(
        Counter::LayoutWaitNs,
        since.elapsed().as_nanos().max(0) as u64,
    );
    waited
}

/// Counts how long a task has waited since its last try.
fn count_since(tries: Tries, device: FileDevice<'_>) {
    device.add(Counter::LayoutWaitNs, u64::from(tries.last) * 1_000_000);
}

/// How those who want a file's pages idle take turns with those who use them.
///
/// Who looks once, finds somebody, and lets faults in while he sleeps finds somebody the next time, too,
/// where pages are taken and let go of all the time. So at first he waits for a moment with faults kept
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
    theirs: Cell<u32>,
    /// Since when there is somebody to wait for.
    since: Cell<Option<Instant<Monotonic>>>,
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
    const OF_FAULT: u32 = 40;
    /// How long somebody is waited for with the caller's locks held, in milliseconds: about as long as a
    /// large write holds them.
    const PATIENCE: u32 = 2500;
    /// The same for a thread of the kernel. What it works for (an exported filesystem, a loop device) may take
    /// an error for a broken device; and users cannot have it do so again and again as they like.
    const PATIENCE_OF_KERNEL: u32 = 30_000;

    pub(crate) fn new() -> Self {
        Self {
            theirs: Cell::new(Self::FIRST),
            since: Cell::new(None),
        }
    }

    fn patience() -> u32 {
        match vm::is_kernel_thread() {
            true => Self::PATIENCE_OF_KERNEL,
            false => Self::PATIENCE,
        }
    }

    /// Notes that there is somebody to wait for, perhaps since a try before this one.
    fn begin(&self, device: FileDevice<'_>) {
        if self.since.get().is_some() {
            return;
        }
        self.since.set(Some(Instant::now()));
        match tries::so_far() {
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
    pub(crate) fn busy_folio(
        &self,
        stay: &Stay<'_>,
        inode: &Inode,
        range: PageRange,
    ) -> Result<Option<DevFolio>> {
        let mapping = inode.mapping();
        let Some(mut folio) = busy_folio(mapping, range) else {
            return Ok(None);
        };
        let device = FileDevice::of(inode);
        self.begin(device);
        timed(device, || {
            let moment = (self.theirs.get() / 2).min(Self::LONGEST_MOMENT);
            let mut left = moment;
            // Ends with the moment, of which each turn takes a part.
            while wait::is_soon_idle(stay, folio, &mut left, moment / 4)? {
                match busy_folio(mapping, range) {
                    Some(next) => folio = next,
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
        folio: DevFolio,
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
        self.theirs.set((theirs * 2).min(Self::LONGEST));
        let at_most = theirs.min(left as u32);
        timed(device, || {
            wait::wait_until_idle(stay, folio, how, Some(at_most))
        })
    }

    /// The same, for those whose caller holds the `invalidate_lock` exclusively, if anybody: it is let go
    /// meanwhile.
    pub(crate) fn let_faults_in(&self, stay: &Stay<'_>, folio: DevFolio, inode: &Inode) -> Result {
        let how = Sleep::Callback(inode, WaitCallback::let_faults_in());
        self.let_others(stay, folio, how, inode, Again::Yes)
    }

    /// For a caller that cannot let go of its locks to wait, and tries again with them: whether it has done so
    /// for long enough.
    fn are_over() -> bool {
        const CEASED: u32 = 1000;

        !wait::may_restart()
            && tries::so_far()
                .is_some_and(|tries| tries.last < CEASED && tries.first >= Self::patience())
    }
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
        return Ok(());
    }
    let device = FileDevice::of(inode);
    device.inc(Counter::LayoutBreaks);
    // While the task sleeps, the entries may be removed, and the device may go.
    let stay = device.stay().ok_or(EIO)?;
    let turns = Turns::new();
    // Ends when nobody holds a page, or with an error. Whoever holds one can take others meanwhile, but not
    // in our turns.
    while let Some(folio) = turns.busy_folio(&stay, inode, range)? {
        let Patience::Callback(callback) = patience else {
            // The caller lets go of its locks and tries again.
            wait::restart_after(&stay, folio, turns.theirs.get());
            tries::note(mapping);
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

/// Whether somebody holds a page of a file that nobody uses any more, so that it is mapped by nobody.
/// Sleeps.
pub(crate) fn is_held(inode: &Inode) -> bool {
    busy_folio(inode.mapping(), PageRange::ALL).is_some()
}

/// The same for a whole file that is being evicted, uninterruptible (`dax_break_layout_final`).
/// What a deleted file has is not written back. Sleeps.
pub(crate) fn break_layout_final(inode: &Inode) {
    if !inode.is_dax() {
        return;
    }
    let mapping = inode.mapping();
    let device = FileDevice::of(inode);
    if let Some(stay) = device.stay() {
        // Every turn waits until somebody is done with a page, and nobody begins any more. The pages
        // of a device that goes away are waited for by that ([`folio::wait_until_unused`]).
        while let Some(folio) = find_busy(mapping, PageRange::ALL, Some(device)) {
            // Fails when the device goes, and then the folio is not found again.
            device.inc(Counter::LayoutWaits);
            let _ = timed(device, || {
                wait::wait_until_idle(&stay, folio, Sleep::Uninterruptible, None)
            });
        }
    }
    remove_range(mapping, PageRange::ALL, true, inode.is_unlinked());
}

/// Removes the entry that covers `index` (`dax_delete_mapping_entry`). Returns whether there was
/// one. Sleeps.
pub(crate) fn delete_entry(mapping: &Mapping, index: PageIndex) -> bool {
    match tree::lock_present(mapping, index) {
        Some(locked) => {
            discard(locked);
            true
        }
        None => {
            pr_err_once!("asked to remove an entry that is not there\n");
            false
        }
    }
}

/// Removes the entry that covers `index` if it has nothing to write back
/// (`dax_invalidate_mapping_entry_sync`). Returns whether it was removed. Sleeps.
///
/// The caller unmaps the range afterwards. That is too late: up to then a page would be mapped that no
/// entry points to.
pub(crate) fn invalidate_entry(mapping: &Mapping, index: PageIndex) -> bool {
    let Some(locked) = tree::lock_present(mapping, index) else {
        return false;
    };
    // Nor if it is in use: what somebody holds stays the file's (spec, R2).
    if locked.is_dirty() || locked.has_mark(Mark::ToWrite) || held(&locked).is_some() {
        return false;
    }
    unmap_and_release(&locked);
    locked.remove();
    true
}

/// Which entries are evicted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Evicted {
    /// All.
    All,
    /// Those with memory.
    Data,
    /// Those with memory that goes away.
    Gone,
    /// Those that stand for holes.
    Zeroes,
}

/// Unmaps and removes entries while faults go on.
struct Evict<'a> {
    device: FileDevice<'a>,
    which: Evicted,
}

impl Evicted {
    /// Whether an entry that is not locked is one of them.
    fn has(self, entry: Entry, device: FileDevice<'_>) -> bool {
        match self {
            Self::All => true,
            Self::Data => entry.is_data(),
            Self::Gone => entry.page().is_some_and(|page| device.is_gone(page.pfn())),
            Self::Zeroes => entry.is_zero(),
        }
    }

    /// Whether an entry that is locked may become one of them.
    fn may_have(self, entry: Entry) -> bool {
        // What is memory does not become a hole.
        self != Self::Zeroes || entry.page().is_none()
    }
}

impl Visitor for Evict<'_> {
    const ASKS_DIRTY: bool = true;
    const BATCHES: bool = true;

    fn awaits(&self, entry: Entry) -> bool {
        self.which.may_have(entry)
    }

    fn look(&mut self, entry: Entry, _dirty: bool) -> WalkAction {
        if self.which.has(entry, self.device) {
            WalkAction::Work
        } else {
            WalkAction::Next
        }
    }

    fn work(&mut self, batch: &EntryBatch<'_>) -> Disposition {
        batch.mapping().unmap(batch.range());
        release_batch(batch, self.device);
        Disposition::Remove
    }
}

fn evict(mapping: &Mapping, range: PageRange, which: Evicted) {
    let device = FileDevice::of(mapping.host());
    let removed = tree::walk(mapping, range, Filter::Any, &mut Evict { device, which });
    device.add(Counter::EntriesRemoved, removed as u64);
}

/// Looks for entries that there would be something to do about, or to wait for.
struct FindEvicted<'a> {
    device: FileDevice<'a>,
    which: Evicted,
    found: Cell<bool>,
}

impl Visitor for FindEvicted<'_> {
    const ASKS_DIRTY: bool = false;
    const BATCHES: bool = false;

    fn awaits(&self, entry: Entry) -> bool {
        if self.which.may_have(entry) {
            self.found.set(true);
        }
        false
    }

    fn look(&mut self, entry: Entry, _dirty: bool) -> WalkAction {
        if self.which.has(entry, self.device) {
            self.found.set(true);
        }
        if self.found.get() {
            WalkAction::Stop
        } else {
            WalkAction::Next
        }
    }

    fn work(&mut self, _batch: &EntryBatch<'_>) -> Disposition {
        // Not reached: nothing is to be worked on.
        Disposition::Clean(0)
    }
}

/// Whether [`evict_range`], or with `zeroes` [`evict_zeroes`], would have an entry to wait for or to
/// remove. Waits for none.
pub(crate) fn has_to_evict(mapping: &Mapping, range: PageRange, zeroes: bool) -> bool {
    let which = match zeroes {
        true => Evicted::Zeroes,
        false => Evicted::All,
    };
    let mut visitor = FindEvicted {
        device: FileDevice::of(mapping.host()),
        which,
        found: Cell::new(false),
    };
    tree::walk(mapping, range, Filter::Any, &mut visitor);
    visitor.found.get()
}

/// Unmaps and removes every entry of the range, dirty ones after they were written back: what they
/// say of the file is about to be wrong. Faults may go on meanwhile (`invalidate_lock` is not
/// held). Sleeps.
pub(crate) fn evict_range(mapping: &Mapping, range: PageRange) {
    evict(mapping, range, Evicted::All);
}

/// Unmaps and removes the entries of the range that stand for holes, before the blocks that are
/// there are written to: a filesystem may have made a hole's blocks written ones along with their
/// neighbours. Sleeps.
pub(crate) fn evict_zeroes(mapping: &Mapping, range: PageRange) {
    evict(mapping, range, Evicted::Zeroes);
}

/// Lets go of a device's memory: unmaps and removes what a file has of it (spec, section 8). With
/// `gone_only` that is what is about to go away: it is not given any more, so no entry is added
/// meanwhile.
///
/// Waits for nobody who holds pages: he may be about to fault on another page of the same entry.
/// That is for [`folio::wait_until_unused`], when no entry is left. Sleeps.
pub(crate) fn evict_device_memory(inode: &Inode, gone_only: bool) {
    if inode.is_dax() {
        let which = match gone_only {
            true => Evicted::Gone,
            false => Evicted::Data,
        };
        evict(inode.mapping(), PageRange::ALL, which);
    }
}

/// Unmaps of the addresses from `start` up to `end` what is not moved as it should be: what entries of
/// the third level may map, and pages that were mapped ahead for writing. Keeps faults out until the
/// address space is unlocked. Sleeps.
pub(crate) fn unmap_immovable(vma: &LockedVma, start: usize, end: usize) {
    let locked = vma.start_write();
    if let Some(range) = vma.whole(Order::PUD, start, end) {
        locked.unmap(range);
    }
    locked.unmap_ahead(start, end);
}
