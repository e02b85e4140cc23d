// SPDX-License-Identifier: GPL-2.0

//! The answers that a test has the filesystem give, and what it looks at afterwards.

use crate::kern::{bindings, vm::FaultCode};
use kernel::prelude::*;

/// The kind of an extent of a file.
#[derive(Clone, Copy)]
pub(crate) struct TestExtent {
    pub(super) first: usize,
    pub(super) pages: usize,
    pub(super) kind: u32,
    pub(super) flags: u32,
    pub(super) place: usize,
    pub(super) source: Option<usize>,
    pub(super) elsewhere: bool,
}

impl TestExtent {
    fn new(first: usize, pages: usize, kind: u32, place: usize) -> Self {
        Self {
            first,
            pages,
            kind,
            flags: 0,
            place,
            source: None,
            elsewhere: false,
        }
    }

    /// `pages` pages of data from page `first` of the file on, at a place on the device.
    pub(crate) fn mapped(first: usize, pages: usize, place: usize) -> Self {
        Self::new(first, pages, bindings::IOMAP_MAPPED, place)
    }

    /// Blocks without data.
    pub(crate) fn unwritten(first: usize, pages: usize, place: usize) -> Self {
        Self::new(first, pages, bindings::IOMAP_UNWRITTEN, place)
    }

    /// Nothing.
    pub(crate) fn hole(first: usize, pages: usize) -> Self {
        Self::new(first, pages, bindings::IOMAP_HOLE, 0)
    }

    /// An extent that DAX cannot serve.
    pub(crate) fn inline(first: usize, pages: usize) -> Self {
        Self::new(first, pages, bindings::IOMAP_INLINE, 0)
    }

    fn with(mut self, flag: u32) -> Self {
        self.flags |= flag;
        self
    }

    /// Allocated by the call that tells of it.
    pub(crate) fn new_blocks(self) -> Self {
        self.with(bindings::IOMAP_F_NEW)
    }

    /// Shared with other files.
    pub(crate) fn shared(self) -> Self {
        self.with(bindings::IOMAP_F_SHARED)
    }

    /// With metadata that is not durable.
    pub(crate) fn dirty(self) -> Self {
        self.with(bindings::IOMAP_F_DIRTY)
    }

    /// On another device, which is only named: whoever accesses it there crashes.
    pub(crate) fn elsewhere(mut self) -> Self {
        self.elsewhere = true;
        self
    }

    /// In the place of data that is to be copied from another place on the device.
    pub(crate) fn copy_of(mut self, place: usize) -> Self {
        self.source = Some(place);
        self
    }
}

/// Which of the filesystem's answers fails, counted from 0, and how.
#[derive(Clone, Copy)]
pub(crate) struct Failing {
    pub(crate) call: usize,
    pub(crate) error: Error,
}

/// A call of the filesystem's `iomap_end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) position: u64,
    pub(crate) length: u64,
    pub(crate) written: usize,
}

/// The result of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) order: u32,
    pub(crate) code: FaultCode,
    pub(crate) error: i32,
}
