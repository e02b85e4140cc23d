// SPDX-License-Identifier: GPL-2.0

//! The counters of every adopted device.
//!
//! Counters only grow, and start at 0 when the device is adopted. They are for people and for
//! tests; nothing is decided by them.

use crate::kern::percpu::Counters;
use core::fmt::Write;
use kernel::{
    alloc::AllocError,
    prelude::*,
    str::Formatter, //
};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// A counter. Pages count as pages of 4 KiB, whatever the size of their entry.
        #[derive(Clone, Copy, PartialEq, Eq)]
        #[repr(usize)]
        pub(crate) enum Counter {
            $($(#[$doc])* $name,)*
        }

        /// The counters' names, in the order of [`Counter`].
        const NAMES: [&str; [$($text),*].len()] = [$($text),*];
    };
}

counters! {
    /// Read faults that mapped a page.
    ReadPte = "read_pte",
    /// Read faults that mapped 2 MiB.
    ReadPmd = "read_pmd",
    /// Read faults that mapped 1 GiB.
    ReadPud = "read_pud",
    /// Write faults that mapped a page.
    WritePte = "write_pte",
    /// Write faults that mapped 2 MiB.
    WritePmd = "write_pmd",
    /// Write faults that mapped 1 GiB.
    WritePud = "write_pud",
    /// Write-protect faults that made a page's mapping writable again.
    MkwritePte = "mkwrite_pte",
    /// Write-protect faults that made a mapping of 2 MiB writable again.
    MkwritePmd = "mkwrite_pmd",
    /// Write-protect faults that made a mapping of 1 GiB writable again.
    MkwritePud = "mkwrite_pud",
    /// Read faults that mapped a page of zeros.
    ZeroPte = "zero_pte",
    /// Read faults that mapped 2 MiB of zeros.
    ZeroPmd = "zero_pmd",
    /// Pages, of memory or of zeros, that a fault of another page mapped along with that.
    AroundPte = "around_pte",
    /// Pages handed out as the source of a private copy.
    PrivatePte = "private_pte",
    /// Faults that left their last part to `dax_finish_sync_fault`.
    SyncFaults = "sync_faults",
    /// Pages copied because their blocks were shared.
    CowPages = "cow_pages",
    /// Faults of a huge order that fell back to a smaller one because address, file offset or
    /// blocks are not aligned to it.
    FallbackAlignment = "fallback_alignment",
    /// … because the mapping is too small for it, or of a kind that cannot have it.
    FallbackVma = "fallback_vma",
    /// … because the file ends before.
    FallbackEof = "fallback_eof",
    /// … because it was a private write.
    FallbackPrivate = "fallback_private",
    /// … because the extent is too short.
    FallbackExtent = "fallback_extent",
    /// … because there is a hole, and no zeros of that size.
    FallbackHole = "fallback_hole",
    /// … because an entry of a smaller order is in the way.
    FallbackConflict = "fallback_conflict",
    /// … because the device's `max_order` does not allow it.
    FallbackMaxOrder = "fallback_max_order",
    /// … because a page of the range is marked as bad.
    FallbackPoison = "fallback_poison",
    /// … for want of memory.
    FallbackNomem = "fallback_nomem",
    /// Faults that ended in an error.
    FaultErrors = "fault_errors",
    /// Ranges that were taken out of use for the filesystem.
    LayoutBreaks = "layout_breaks",
    /// How often that had to wait for a page.
    LayoutWaits = "layout_waits",
    /// How long it waited, in nanoseconds.
    LayoutWaitNs = "layout_wait_ns",
    /// Entries removed.
    EntriesRemoved = "entries_removed",
    /// Entries that were dirty when they were removed, and were flushed first.
    EntriesFlushedOnRemoval = "entries_flushed_on_removal",
    /// Entries written back.
    WritebackEntries = "writeback_entries",
    /// Bytes written back.
    WritebackBytes = "writeback_bytes",
    /// Bytes read with `read` and the like.
    ReadBytes = "read_bytes",
    /// Bytes written with `write` and the like.
    WriteBytes = "write_bytes",
    /// Bytes set to zero for the filesystem.
    ZeroedBytes = "zeroed_bytes",
    /// Faults that hit poisoned memory.
    PoisonFaults = "poison_faults",
    /// Entries locked while processes were told about poisoned memory.
    PoisonLocks = "poison_locks",
    /// Comparisons for deduplication.
    DedupeCompares = "dedupe_compares",
}

/// The counters of a device.
pub(crate) struct Stats(Counters<{ NAMES.len() }>);

impl Stats {
    /// Counters that are all 0. Sleeps. Fails for want of memory.
    pub(crate) fn new() -> Result<Self, AllocError> {
        Ok(Self(Counters::new()?))
    }

    /// Counts `n`. Needs nothing held and does not sleep.
    #[inline(always)]
    pub(crate) fn add(&self, counter: Counter, n: u64) {
        self.0.add(counter as usize, n);
    }

    /// The counts up to now.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut values = [0; NAMES.len()];
        for (index, value) in values.iter_mut().enumerate() {
            *value = self.0.sum(index);
        }
        Snapshot(values)
    }
}

/// The values of a device's counters at some time.
pub(crate) struct Snapshot([u64; NAMES.len()]);

impl Snapshot {
    /// Nothing counted.
    pub(crate) const ZERO: Self = Self([0; NAMES.len()]);

    /// The counts, for the KUnit tests.
    #[cfg(RDAX_TEST)]
    pub(crate) fn get(&self, counter: Counter) -> u64 {
        self.0.get(counter as usize).copied().unwrap_or(0)
    }

    /// Writes a line "name value" for each counter, and returns the number of bytes.
    ///
    /// Errors: `ENOSPC` if the buffer is too small.
    pub(crate) fn print(&self, buffer: &mut [u8]) -> Result<usize> {
        let mut formatter = Formatter::new(buffer);
        for (name, value) in NAMES.iter().zip(self.0) {
            writeln!(formatter, "{name} {value}").map_err(|_| ENOSPC)?;
        }
        Ok(formatter.bytes_written())
    }

    /// As [`Snapshot::print`], but only the counters that are asked for.
    pub(crate) fn print_some(&self, wanted: &[Counter], buffer: &mut [u8]) -> Result<usize> {
        let mut formatter = Formatter::new(buffer);
        for &counter in wanted {
            let index = counter as usize;
            if let (Some(name), Some(value)) = (NAMES.get(index), self.0.get(index)) {
                writeln!(formatter, "{name} {value}").map_err(|_| ENOSPC)?;
            }
        }
        Ok(formatter.bytes_written())
    }
}
