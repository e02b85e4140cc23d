// SPDX-License-Identifier: GPL-2.0

//! How a file is held and mapped, and what keeps it from being so by larger pieces.
//!
//! Nothing is asked of the filesystem, and nobody waited for: what is said is what the file's tree, its folios
//! and its mappings are at this moment. The file is open, so its filesystem stays mounted, and the device
//! adopted (`bdev::Writer::remove`), as for a fault. Memory of a device that goes away stays as long as an
//! entry has it, and is looked at under the tree's lock only.

use super::super::device::{self, FileDevice};
use crate::kern::{
    entry::{Entry, Kind},
    error::eopnotsupp,
    fs::{FileRef, Inode, Mapping, PageIndex, PageRange},
    order::Order,
    report::{self, least, Call, Records, VmaLook, Zeroes},
    uapi::{self, flag, kind, why, MapRecord},
    vm,
    xa::Mark, //
};
use kernel::{error::code::*, prelude::*};

/// The most that one call looks at: entries, and mappings of processes.
const BUDGET: usize = 1 << 16;

/// Mappings of processes that are looked at for one part of a file.
const MOST_VMAS: u32 = 1024;

/// The part of that budget that looking for mapped zeroes in one mapping takes: it is a table of 512 entries.
const TABLE: usize = 8;

/// Answers a call: writes records, and where the next call is to start.
///
/// Errors: `EBADF` for a descriptor that may not be read, `ENODEV` for a file that is not on an adopted device,
/// `EOPNOTSUPP` for one there that is no DAX file, `EINVAL`, `E2BIG`, `EFAULT`, `EINTR`, `ENOMEM`.
pub(super) fn answer(call: Call) -> Result {
    let mut map: uapi::Map = call.read(least::MAP)?;
    if map.flags != 0 || map.reserved != 0 {
        return Err(EINVAL);
    }
    let records = Records::new(map.records, map.record_size, map.count, least::MAP_RECORD)?;
    let file = FileRef::readable(map.fd)?;
    let inode = file.inode().ok_or(ENODEV)?;
    device::device_for(inode).ok_or(ENODEV)?;
    if !inode.is_dax() {
        return Err(eopnotsupp());
    }
    let mut walk = Walk::new(inode, report::is_admin(), records);
    let all = (walk.pages as u64) << Order::PAGE_SHIFT;
    let end = map.start.saturating_add(map.length).min(all);
    map.next = map.start;
    if map.start < end {
        let range = PageRange {
            first: PageIndex::of_byte(map.start),
            last: PageIndex::of_byte(end - 1),
        };
        map.next = walk.run(range)?;
    }
    map.flags = match map.next >= end {
        true => uapi::MAP_END,
        false => 0,
    };
    map.count = walk.records.written();
    map.size = inode.size();
    map.max_order = walk.max_order.bits() as u32;
    call.write(&map)
}

/// An entry as it was found, and its folio's counts then.
#[derive(Clone, Copy)]
struct Found {
    first: PageIndex,
    order: Order,
    kind: u32,
    flags: u32,
    /// The number of its first frame.
    pfn: usize,
    maps: u32,
    whole: u32,
    references: u32,
}

impl Found {
    /// An entry, which the tree whose lock is held has.
    fn new(index: PageIndex, entry: Entry<'_>, locked: bool, dirty: bool) -> Self {
        let mut found = Self {
            first: entry.order().first(index),
            order: entry.order(),
            kind: kind::EMPTY,
            flags: 0,
            pfn: 0,
            maps: 0,
            whole: 0,
            references: 0,
        };
        if locked {
            found.flags |= flag::LOCKED;
        }
        if dirty {
            found.flags |= flag::DIRTY;
        }
        match entry.kind() {
            Kind::Empty => (),
            Kind::Zero => found.kind = kind::HOLE,
            Kind::Data(block) => {
                let folio = block.first().folio();
                let maps = folio.mapcount().max(0);
                found.kind = kind::DATA;
                found.pfn = block.pfn().to_bits();
                found.maps = maps as u32;
                if folio.order() == entry.order() {
                    found.whole = folio.whole_mapcount().clamp(0, maps) as u32;
                }
                found.references = folio.refcount().saturating_sub(maps).max(0) as u32;
                if folio.owner() == 0 && folio.share() > 1 {
                    found.flags |= flag::SHARED;
                }
            }
        }
        found
    }

    fn end(&self) -> usize {
        self.first.get() + self.order.pages()
    }

    /// Whether the one does not go with the other in the file as parts of one entry.
    fn is_apart_from(&self, next: &Self) -> bool {
        match (self.kind, next.kind) {
            (kind::DATA, kind::DATA) => {
                next.pfn.wrapping_sub(self.pfn) != next.first.get().wrapping_sub(self.first.get())
            }
            (kind::DATA, kind::HOLE) | (kind::HOLE, kind::DATA) => true,
            _ => false,
        }
    }
}

/// The entries of a part of 2 MiB, or the one that is larger.
struct Part {
    found: KVVec<Found>,
    /// The neighbours in the file are not neighbours on the device.
    alone: bool,
    /// The mappings of its holes.
    zeroes: Zeroes,
}

/// The receiver of the records: a caller's memory, or a test.
pub(crate) trait Sink {
    /// Whether there is no room left.
    fn is_full(&self) -> bool;

    /// How many were written.
    fn written(&self) -> u32;

    /// Writes one, if there is room. Sleeps.
    ///
    /// Errors: `EFAULT`.
    fn push(&mut self, record: &MapRecord) -> Result;
}

impl Sink for Records {
    fn is_full(&self) -> bool {
        self.is_full()
    }

    fn written(&self) -> u32 {
        self.written()
    }

    fn push(&mut self, record: &MapRecord) -> Result {
        self.push(record)
    }
}

pub(crate) struct Walk<'a, S> {
    mapping: &'a Mapping,
    /// Of the file.
    pages: usize,
    max_order: Order,
    is_admin: bool,
    records: S,
    /// A record that the next range may be a part of.
    pending: Option<MapRecord>,
    /// The end of what was told.
    told: usize,
    budget: usize,
}

impl<'a, S: Sink> Walk<'a, S> {
    pub(crate) fn new(inode: &'a Inode, is_admin: bool, records: S) -> Self {
        Self {
            mapping: inode.mapping(),
            pages: inode.size_pages(),
            max_order: FileDevice::of(inode).max_order(inode.mapping()),
            is_admin,
            records,
            pending: None,
            told: 0,
            budget: BUDGET,
        }
    }

    /// Writes records for the range, as far as there is room and it is not too much work. Returns the byte
    /// that is next.
    ///
    /// Errors: `EFAULT`, `EINTR`, `ENOMEM`.
    pub(crate) fn run(&mut self, range: PageRange) -> Result<u64> {
        let mut part = Part {
            found: KVVec::with_capacity(Order::PMD.pages(), GFP_KERNEL)?,
            alone: false,
            zeroes: Zeroes::new()?,
        };
        let end = range.last.get() + 1;
        let mut at = range.first.get();
        // Ends: each turn is for what is behind the last one's.
        while at < end && self.budget > 0 && !self.records.is_full() {
            if report::signal() {
                if self.records.written() == 0 {
                    return Err(EINTR);
                }
                break;
            }
            self.scan(PageIndex::new(at), range.last, &mut part);
            let first = part.found.first().map_or(end, |found| found.first.get());
            if at < first {
                self.add(untouched(at, first.min(end)))?;
                at = first;
            }
            if self.records.is_full() {
                break;
            }
            self.count_zeroes(&mut part)?;
            at = self.add_part(at, &part)?;
            vm::cond_resched();
        }
        let behind = (at as u64) << Order::PAGE_SHIFT;
        match self.pending.take() {
            // Not written, for want of room.
            Some(pending) if self.records.is_full() => Ok(pending.offset),
            Some(pending) => {
                self.records.push(&pending)?;
                Ok(behind)
            }
            None => Ok(behind),
        }
    }

    /// Finds the entries from `from` on, up to the end of the 2 MiB that the first of them is in.
    fn scan(&mut self, from: PageIndex, last: PageIndex, part: &mut Part) {
        part.found.clear();
        part.alone = false;
        let mut last = last;
        let mut guard = self.mapping.tree().lock();
        let mut xas = guard.xas(from);
        // Ends: each turn is for the entry behind the last one's, of at most 512.
        while let Some(raw) = xas.find(last) {
            let (entry, locked) = Entry::from_raw(raw);
            let dirty = xas.has_mark(Mark::Dirty);
            let found = Found::new(xas.index(), entry, locked, dirty);
            last = last.min(Order::PMD.last(found.first));
            if part.found.push_within_capacity(found).is_err() {
                break;
            }
            if found.end() > last.get() {
                break;
            }
        }
        self.budget = self.budget.saturating_sub(part.found.len() + 1);
        // For 2 MiB, what is beside them, too.
        let Some(this) = part.found.first().copied() else {
            return;
        };
        if this.order != Order::PMD || this.kind != kind::DATA {
            return;
        }
        let whole = Order::PUD.first(this.first)..=Order::PUD.last(this.first);
        let beside = [this.first.get().wrapping_sub(1), this.end()];
        for index in beside.map(PageIndex::new) {
            if !whole.contains(&index) {
                continue;
            }
            let mut xas = guard.xas(index);
            let Some(raw) = xas.load() else {
                continue;
            };
            let (entry, locked) = Entry::from_raw(raw);
            let other = Found::new(index, entry, locked, false);
            part.alone |= this.is_apart_from(&other);
        }
    }

    /// Counts what maps holes. Data are counted by their folios.
    fn count_zeroes(&mut self, part: &mut Part) -> Result {
        let Part { found, zeroes, .. } = part;
        let mut holes = found
            .iter_mut()
            .filter(|found| found.kind == kind::HOLE)
            .peekable();
        let Some(first) = holes.peek() else {
            return Ok(());
        };
        zeroes.count(self.mapping, first.first, MOST_VMAS)?;
        for hole in holes {
            hole.maps = zeroes.small(hole.first, hole.order);
            if hole.order >= Order::PMD {
                hole.whole = zeroes.whole();
                hole.maps = hole.maps.saturating_add(hole.whole);
            }
        }
        Ok(())
    }

    /// Adds what was found. Returns the index behind it.
    fn add_part(&mut self, at: usize, part: &Part) -> Result<usize> {
        let mut at = at;
        let Some(first) = part.found.first() else {
            return Ok(at);
        };
        let broken = part.found.windows(2).any(|pair| {
            let [one, next] = pair else { return false };
            one.end() == next.first.get() && one.is_apart_from(next)
        });
        let (level, vmas) = match first.order {
            order if order < Order::PMD => (Some(Order::PMD), Order::PMD),
            Order::PMD => (Some(Order::PUD), Order::PMD),
            _ => (None, Order::PUD),
        };
        let own = VmaLook::at(self.mapping, first.first, vmas, MOST_VMAS)?;
        let each = match part.found.iter().any(|found| found.kind == kind::HOLE) {
            true => 1 + TABLE,
            false => 1,
        };
        self.budget = self
            .budget
            .saturating_sub((own.vmas as usize).saturating_mul(each));
        let obstacles = match level {
            None => 0,
            Some(level) if level == vmas => self.obstacles(first.first, level, &own),
            Some(level) => {
                let look = VmaLook::at(self.mapping, first.first, level, MOST_VMAS)?;
                self.budget = self.budget.saturating_sub(look.vmas as usize);
                self.obstacles(first.first, level, &look)
            }
        };
        for found in part.found.iter() {
            if at < found.first.get() {
                self.add(untouched(at, found.first.get()))?;
            }
            let mut record = self.record(found);
            record.vmas = own.vmas;
            if let Some(level) = level {
                record.why = obstacles;
                if found.kind == kind::DATA {
                    let apart = found.pfn ^ found.first.get();
                    if apart & (level.pages() - 1) != 0 {
                        record.why |= why::DEVICE;
                    }
                }
                if broken || part.alone {
                    record.why |= why::EXTENT;
                }
                if record.why == 0 {
                    record.why = why::SMALLER;
                }
            }
            if found.order >= Order::PMD && found.maps > found.whole {
                record.why_mapped = reasons(&own);
                if found.order > self.max_order {
                    record.why_mapped |= why::MAX_ORDER;
                }
            }
            // It may have become larger since what is before it was told.
            if found.first.get() < self.told {
                skip(&mut record, (self.told as u64) << Order::PAGE_SHIFT);
            }
            self.add(record)?;
            at = found.end();
            self.told = at;
        }
        Ok(at)
    }

    /// Why the aligned range of this order around `index` is not one entry; its alignment on the device is not
    /// considered.
    fn obstacles(&self, index: PageIndex, level: Order, look: &VmaLook) -> u32 {
        let mut found = reasons(look);
        if look.vmas == 0 {
            found |= why::UNMAPPED;
        }
        if level.last(index).get() >= self.pages {
            found |= why::END_OF_FILE;
        }
        if level > self.max_order {
            found |= why::MAX_ORDER;
        }
        found
    }

    fn record(&self, found: &Found) -> MapRecord {
        MapRecord {
            offset: found.first.to_byte(),
            length: found.order.bytes() as u64,
            physical: match self.is_admin {
                true => (found.pfn as u64) << Order::PAGE_SHIFT,
                false => 0,
            },
            kind: found.kind,
            flags: found.flags,
            order: found.order.bits() as u32,
            maps: found.maps,
            whole: found.whole,
            references: found.references,
            ..MapRecord::default()
        }
    }

    /// Makes a record part of the one before, or writes that.
    fn add(&mut self, record: MapRecord) -> Result {
        if let Some(pending) = &mut self.pending {
            if is_joined(pending, &record) {
                pending.length += record.length;
                return Ok(());
            }
            if self.records.is_full() {
                // The next call begins with what is pending.
                return Ok(());
            }
            self.records.push(pending)?;
        }
        self.pending = Some(record);
        Ok(())
    }
}

/// Whether a record goes on as the one before it.
fn is_joined(one: &MapRecord, next: &MapRecord) -> bool {
    let follows = |one_at: u64, next_at: u64| one_at.wrapping_add(one.length) == next_at;
    let as_one = MapRecord {
        offset: one.offset,
        length: one.length,
        physical: one.physical,
        ..*next
    };
    as_one == *one
        && follows(one.offset, next.offset)
        && (one.physical == 0 && next.physical == 0 || follows(one.physical, next.physical))
}

/// Leaves out of a record what is before this byte, which it has more than.
fn skip(record: &mut MapRecord, to: u64) {
    let skipped = to.wrapping_sub(record.offset);
    record.offset = to;
    record.length = record.length.wrapping_sub(skipped);
    if record.physical != 0 {
        record.physical = record.physical.wrapping_add(skipped);
    }
}

fn untouched(first: usize, end: usize) -> MapRecord {
    MapRecord {
        offset: (first as u64) << Order::PAGE_SHIFT,
        length: ((end - first) as u64) << Order::PAGE_SHIFT,
        kind: kind::UNTOUCHED,
        ..MapRecord::default()
    }
}

fn reasons(look: &VmaLook) -> u32 {
    let mut found = 0;
    if look.address {
        found |= why::ADDRESS;
    }
    if look.ends {
        found |= why::END_OF_MAPPING;
    }
    if look.copied {
        found |= why::PRIVATE;
    }
    found
}
