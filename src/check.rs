// SPDX-License-Identifier: GPL-2.0

//! Whether what must hold does hold (spec, section 1): a look at every entry, folio and page-table
//! entry of a device, for tests.
//!
//! It is meaningful while nobody uses the files: what is under way looks like a violation. Page
//! tables may map them, but nobody may hold a page otherwise.

use super::device::{self, AdoptedDevice, FileDevice};
use crate::kern::{
    bdev::BlockDevice,
    check::{self as look, FolioState, Leaf},
    entry::Entry,
    fs::{Inode, Mapping, PageIndex},
    order::Order,
    page::{Frames, PageRun, Pfn},
    wait,
    xa::{Mark, NODE_BITS}, //
};
use core::fmt::Write;
use kernel::{
    alloc::AllocError,
    debugfs,
    fmt,
    prelude::*,
    rbtree::RBTree,
    str::Formatter,
    sync::atomic::{Atomic, Relaxed},
    uaccess::UserSliceReader, //
};

/// Entries that are looked at under one hold of a tree's lock.
const BATCH: usize = 32;

/// Bytes of what is said of violations; the first are the ones of interest.
const REPORT: usize = 2048;

/// Folios that lost their last entry while somebody held them. They stay whole until their pages
/// are used again.
static LEFT_WHOLE: Atomic<usize> = Atomic::new(0);

/// Counts a folio that lost its last entry while somebody holds it.
pub(crate) fn left_whole() {
    LEFT_WHOLE.fetch_add(1, Relaxed);
}

/// Complains unless a page-table entry may be made now for the page at `index` of a file, to be
/// written through or not: the page's entry is locked (spec, section 4), and dirty before anybody can
/// store (R5). What the entry says may not be in the tree yet.
pub(crate) fn about_to_map(mapping: &Mapping, index: PageIndex, write: bool) {
    let mut guard = mapping.tree().lock();
    let mut xas = guard.xas(index);
    let locked = xas.load().is_some_and(|raw| Entry::from_raw(raw).1);
    let right = locked && (!write || xas.has_mark(Mark::Dirty));
    drop(guard);
    if !right {
        look::complain();
    }
}

/// The counts.
#[derive(Clone, Copy, Default)]
pub(crate) struct Numbers {
    /// Files with at least one entry.
    pub(crate) files: usize,
    /// Entries.
    pub(crate) entries: usize,
    /// Dirty ones of them.
    pub(crate) dirty: usize,
    /// Pages that the entries cover.
    pub(crate) pages: usize,
    /// Page-table entries, of any size, that map device memory.
    pub(crate) leaves: usize,
    /// Idle folios of more than a page that no entry points to.
    pub(crate) whole: usize,
}

/// The violations found.
struct Report {
    violations: usize,
    text: KVec<u8>,
    length: usize,
}

impl Report {
    fn new() -> Result<Self, AllocError> {
        Ok(Self {
            violations: 0,
            text: KVec::from_elem(0, REPORT, GFP_KERNEL)?,
            length: 0,
        })
    }

    /// Adds a line, if there is room.
    fn add(&mut self, line: fmt::Arguments<'_>) {
        self.violations += 1;
        let Some(room) = self.text.get_mut(self.length..) else {
            return;
        };
        let mut formatter = Formatter::new(room);
        if writeln!(formatter, "{line}").is_ok() {
            self.length += formatter.bytes_written();
        }
    }

    fn text(&self) -> &str {
        self.text
            .get(..self.length)
            .and_then(|text| core::str::from_utf8(text).ok())
            .unwrap_or("")
    }
}

/// A folio that an entry points to.
struct Seen {
    state: FolioState,
    entries: usize,
    leaves: usize,
}

/// A look at files that may share memory.
pub(crate) struct Census {
    folios: RBTree<usize, Seen>,
    numbers: Numbers,
    report: Report,
}

/// An entry as it was found in a tree.
#[derive(Clone, Copy)]
struct Found {
    index: PageIndex,
    /// The contents of the tree.
    word: usize,
    locked: bool,
    dirty: bool,
    /// The order that the entry says, and the one that the tree keeps.
    order: Order,
    stored: usize,
    /// The first frame of its memory.
    data: Option<Pfn>,
}

impl Census {
    /// Nothing seen yet.
    pub(crate) fn new() -> Result<Self, AllocError> {
        Ok(Self {
            folios: RBTree::new(),
            numbers: Numbers::default(),
            report: Report::new()?,
        })
    }

    /// The counts up to now.
    pub(crate) fn numbers(&self) -> Numbers {
        self.numbers
    }

    /// How many violations were found, and what is to be said of the first of them.
    pub(crate) fn violations(&self) -> (usize, &str) {
        (self.report.violations, self.report.text())
    }

    /// Looks at a file. Sleeps.
    pub(crate) fn add(&mut self, inode: &Inode) -> Result<(), AllocError> {
        let mapping = inode.mapping();
        if !inode.is_dax() {
            return Ok(());
        }
        let mut batch = [Found {
            index: PageIndex::new(0),
            word: 0,
            locked: false,
            dirty: false,
            order: Order::PTE,
            stored: 0,
            data: None,
        }; BATCH];
        let mut pages = 0;
        let mut from = Some(PageIndex::new(0));
        self.numbers.files += usize::from(!mapping.is_empty());
        while let Some(index) = from {
            let count = find(mapping, index, &mut batch);
            let found = batch.get(..count).unwrap_or(&[]);
            from = None;
            for found in found {
                self.add_entry(inode, found)?;
                pages += found.order.pages();
                let last = found.order.last(found.index);
                from = (last < PageIndex::MAX).then(|| PageIndex::new(last.get() + 1));
            }
        }
        self.numbers.pages += pages;
        if mapping.pages() != pages {
            self.report.add(fmt!(
                "R6: inode {}: nrpages is {}, the entries cover {pages}",
                inode.number(),
                mapping.pages()
            ));
        }
        look::visit_leaves(mapping, |leaf| self.add_leaf(inode, leaf));
        Ok(())
    }

    fn add_entry(&mut self, inode: &Inode, found: &Found) -> Result<(), AllocError> {
        let number = inode.number();
        let first = found.order.first(found.index);
        let at = first.get();
        self.numbers.entries += 1;
        self.numbers.dirty += usize::from(found.dirty);
        if found.locked {
            self.report
                .add(fmt!("R7: inode {number} index {at}: locked"));
        }
        if found.word & NODE_BITS != 0 {
            self.report.add(fmt!(
                "inode {number} index {at}: {:#x} names a NUMA node",
                found.word
            ));
        }
        if found.stored != found.order.bits() {
            self.report.add(fmt!(
                "R4: inode {number} index {at}: order {} stored as {}",
                found.order.bits(),
                found.stored
            ));
        }
        let Some(pfn) = found.data else {
            if found.dirty {
                self.report
                    .add(fmt!("R5: inode {number} index {at}: dirty without memory"));
            }
            return Ok(());
        };
        let device = FileDevice::of(inode);
        let stay = device.stay();
        let frames = Frames {
            first: pfn,
            pages: 1,
        };
        let Some(run) = stay.as_ref().and_then(|stay| stay.run(frames).ok()) else {
            if !device.is_gone(pfn) {
                self.report.add(fmt!(
                    "R4: inode {number} index {at}: pfn {:#x} is not the device's",
                    pfn.to_bits()
                ));
            }
            return Ok(());
        };
        let state = look::folio_state(run.first());
        let (size, order) = (state.order as usize, found.order.bits());
        let head = state.head;
        if state.odd {
            self.report.add(fmt!(
                "R4: inode {number} index {at}: pfn {:#x} is no proper folio",
                pfn.to_bits()
            ));
        }
        if state.owner == 0 {
            if order > size || !pfn.is_aligned(found.order) {
                self.report.add(fmt!(
                    "R4: inode {number} index {at}: order {order} on a shared folio of {size}"
                ));
            }
        } else if state.owner != mapping_address(inode) || state.index != at {
            self.report.add(fmt!(
                "R3: inode {number} index {at}: the folio is another file's, or of index {}",
                state.index
            ));
        } else if order != size || head != pfn.to_bits() {
            self.report.add(fmt!(
                "R4: inode {number} index {at}: order {order} on a folio of {size}"
            ));
        }
        if let Some(seen) = self.folios.get_mut(&head) {
            seen.entries += 1;
            return Ok(());
        }
        self.folios
            .try_create_and_insert(
                head,
                Seen {
                    state,
                    entries: 1,
                    leaves: 0,
                },
                GFP_KERNEL,
            )
            .map_err(|_| AllocError)?;
        Ok(())
    }

    fn add_leaf(&mut self, inode: &Inode, leaf: Leaf) {
        if !leaf.shared && !leaf.device {
            // A copy of the process's own, or a hole.
            return;
        }
        let (number, at) = (inode.number(), leaf.index.get());
        let tree = inode.mapping().tree();
        let (found, dirty) = {
            let mut guard = tree.lock();
            let mut xas = guard.xas(leaf.index);
            let found = xas.load().map(|raw| {
                let entry = Entry::from_raw(raw).0;
                let within = at - entry.order().first(leaf.index).get();
                let memory = entry.block().map(|block| {
                    let head = block.first().folio().head();
                    (block.nth(within).pfn().to_bits(), head.pfn().to_bits())
                });
                (entry.order(), memory)
            });
            (found, found.is_some() && xas.has_mark(Mark::Dirty))
        };
        self.numbers.leaves += usize::from(leaf.device);
        let Some((order, memory)) = found else {
            self.report.add(fmt!(
                "R2: inode {number} index {at}: mapped (pfn {:#x}), but there is no entry",
                leaf.pfn
            ));
            return;
        };
        if leaf.order > order.bits() {
            self.report.add(fmt!(
                "R4: inode {number} index {at}: order {} maps an entry of {}",
                leaf.order,
                order.bits()
            ));
        }
        let Some((wanted, head)) = memory else {
            if leaf.device || leaf.writable {
                self.report.add(fmt!(
                    "R2: inode {number} index {at}: mapped (pfn {:#x}), but known as a hole",
                    leaf.pfn
                ));
            }
            return;
        };
        if leaf.pfn != wanted {
            self.report.add(fmt!(
                "R2: inode {number} index {at}: pfn {:#x} is mapped instead of {:#x}",
                leaf.pfn,
                wanted
            ));
            return;
        }
        if leaf.writable && !dirty {
            self.report.add(fmt!(
                "R5: inode {number} index {at}: writable, but not dirty"
            ));
        }
        if let Some(seen) = self.folios.get_mut(&head) {
            seen.leaves += 1;
        }
    }

    /// Looks at the folios, after all files that share them were added.
    pub(crate) fn finish(&mut self) {
        for (head, seen) in &self.folios {
            let state = &seen.state;
            let shared = state.owner == 0;
            if shared && state.index != seen.entries {
                self.report.add(fmt!(
                    "R3: pfn {head:#x}: share count {}, but {} entries",
                    state.index,
                    seen.entries
                ));
            }
            if !shared && seen.entries != 1 {
                self.report.add(fmt!(
                    "R3: pfn {head:#x}: one file's, but {} entries",
                    seen.entries
                ));
            }
            if state.mapcount as usize != seen.leaves {
                self.report.add(fmt!(
                    "R1: pfn {head:#x}: map count {}, but {} page-table entries",
                    state.mapcount,
                    seen.leaves
                ));
            }
            if state.refcount != state.mapcount && !state.poisoned {
                self.report.add(fmt!(
                    "R1: pfn {head:#x}: {} references, map count {}",
                    state.refcount,
                    state.mapcount
                ));
            }
        }
        if wait::entry_waiters() != 0 {
            self.report
                .add(fmt!("R7: {} tasks wait for entries", wait::entry_waiters()));
        }
    }

    /// Looks at all pages of the run that no entry points to: they are free.
    pub(crate) fn rest_is_free(&mut self, run: PageRun<'_>) {
        let first = run.pfn().to_bits();
        let mut at = 0;
        // Ends: each round is for the pages behind the next folio that is known, in a run.
        loop {
            let folio = self
                .folios
                .cursor_lower_bound(&(first + at))
                .as_ref()
                .map(|cursor| cursor.current())
                .filter(|(head, _)| **head < first + run.pages())
                .map(|(head, seen)| (*head - first, seen.state.order));
            let gap_end = folio.map_or(run.pages(), |(head, _)| head);
            while let Some(rest) = run.from(at).filter(|_| at < gap_end) {
                let (used, whole) = look::find_used(rest.up_to(gap_end - at));
                self.numbers.whole += whole;
                let Some((used, page)) = used.and_then(|used| Some((used, rest.nth(used)?))) else {
                    break;
                };
                let state = look::folio_state(page);
                self.report.add(fmt!(
                    "R4: pfn {:#x}: no entry, but order {} of {:#x}, {} references, map \
                         count {}, owner {:#x}, index {}{}",
                    page.pfn().to_bits(),
                    state.order,
                    state.head,
                    state.refcount,
                    state.mapcount,
                    state.owner,
                    state.index,
                    if state.odd { ", no proper folio" } else { "" }
                ));
                at += used + 1;
            }
            let Some((head, order)) = folio else {
                return;
            };
            at = head + (1 << order);
        }
    }
}

/// The number by which folios know the file.
fn mapping_address(inode: &Inode) -> usize {
    inode.mapping().key()
}

/// Finds entries from `index` on; returns how many.
fn find(mapping: &Mapping, index: PageIndex, batch: &mut [Found; BATCH]) -> usize {
    let mut guard = mapping.tree().lock();
    let mut xas = guard.xas(index);
    let mut count = 0;
    for found in batch.iter_mut() {
        let Some(raw) = xas.find(PageIndex::MAX) else {
            break;
        };
        let (entry, locked) = Entry::from_raw(raw);
        *found = Found {
            index: xas.index(),
            word: raw.word(),
            locked,
            dirty: xas.has_mark(Mark::Dirty),
            order: entry.order(),
            stored: xas.stored_order(),
            data: entry.block().map(|block| block.pfn()),
        };
        count += 1;
    }
    count
}

/// Looks at the files and all memory of a device. Sleeps.
fn device(bdev: &BlockDevice, device: &AdoptedDevice) -> Result<Census, AllocError> {
    let mut census = Census::new()?;
    let mut result = Ok(());
    look::visit_inodes(bdev, |inode| {
        if result.is_ok() {
            result = census.add(inode);
        }
    });
    result?;
    census.finish();
    let _ = device.with_runs(bdev, |run| {
        census.rest_is_free(run);
        Ok(())
    });
    let left = LEFT_WHOLE.load(Relaxed);
    if census.numbers.whole > left {
        let whole = census.numbers.whole;
        census.report.add(fmt!(
            "R4: {whole} folios without entries are whole; {left} were held when they lost them"
        ));
    }
    Ok(census)
}

/// Looks at all adopted devices, and writes "ok" and what was counted, or a line for each violation.
fn write(f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut result = Ok(());
    let mut violations = 0;
    device::visit(|bdev, adopted| {
        if result.is_err() {
            return;
        }
        result = match device(bdev, adopted) {
            Ok(census) => {
                let (count, text) = census.violations();
                let Numbers {
                    files,
                    entries,
                    dirty,
                    pages,
                    leaves,
                    whole,
                } = census.numbers();
                violations += count;
                f.write_str(text).and_then(|()| {
                    writeln!(
                        f,
                        "# files {files} entries {entries} dirty {dirty} pages {pages} leaves \
                         {leaves} whole {whole}"
                    )
                })
            }
            Err(AllocError) => writeln!(f, "no memory to look at the device"),
        };
    });
    result?;
    if violations == 0 {
        writeln!(f, "ok")
    } else {
        writeln!(f, "{violations} violations")
    }
}

/// The frame's number that user space writes.
fn frame(text: &mut UserSliceReader) -> Result<usize> {
    let mut buffer = [0; 24];
    let length = text.len();
    let buffer = buffer.get_mut(..length).ok_or(EINVAL)?;
    text.read_slice(buffer)?;
    core::str::from_utf8(buffer)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .ok_or(EINVAL)
}

/// The files in debugfs by which user space asks for the check, and for memory to fail.
pub(crate) struct Shown {
    _check: Pin<KBox<debugfs::File<()>>>,
    _fail: Pin<KBox<debugfs::File<()>>>,
    _restore: Pin<KBox<debugfs::File<()>>>,
}

impl Shown {
    /// Makes the files, `rdax/check`, `rdax/fail_memory` and `rdax/restore_memory`.
    pub(crate) fn new() -> Result<Self> {
        let directory = debugfs::Dir::new(c"rdax");
        let check = KBox::pin_init(
            directory.read_callback_file::<_, Error, _>(c"check", Ok(()), &|(), f| write(f)),
            GFP_KERNEL,
        )?;
        let fail = KBox::pin_init(
            directory.write_callback_file::<_, Error, _>(c"fail_memory", Ok(()), &|(), text| {
                look::fail_memory(frame(text)?)
            }),
            GFP_KERNEL,
        )?;
        let restore = KBox::pin_init(
            directory.write_callback_file::<_, Error, _>(c"restore_memory", Ok(()), &|(), text| {
                look::restore_memory(frame(text)?)
            }),
            GFP_KERNEL,
        )?;
        Ok(Self {
            _check: check,
            _fail: fail,
            _restore: restore,
        })
    }
}
