// SPDX-License-Identifier: GPL-2.0

//! Tasks that wait for somebody's reference to a page, for those who ask (`report.h`), and for the log.

use super::{
    bdev::BlockDevice,
    bindings,
    fs::Inode,
    page::DevFolio,
    uapi::{self, dev, wait},
    vm, //
};
use core::ptr;
use kernel::types::NotThreadSafe;

/// The kind of call that waits.
#[derive(Clone, Copy)]
pub(crate) enum Waiter {
    /// Truncate, hole punch or the like.
    Layout,
    /// A write, or zeroing.
    Write,
    /// A page fault that has to copy.
    Fault,
    /// A file that goes.
    Eviction,
    /// A device that goes.
    Device,
}

impl Waiter {
    fn number(self) -> u32 {
        match self {
            Self::Layout => wait::LAYOUT,
            Self::Write => wait::WRITE,
            Self::Fault => wait::FAULT,
            Self::Eviction => wait::EVICTION,
            Self::Device => wait::DEVICE,
        }
    }
}

/// That this task waits, or is about to wait again, while it lives.
///
/// # Invariants
///
/// If true, the wait is known, and its end is this value's.
#[must_use = "the wait is over at once"]
pub(crate) struct Waiting(bool, NotThreadSafe);

impl Waiting {
    /// For pages of a file.
    pub(crate) fn for_file(who: Waiter, inode: &Inode) -> Self {
        // SAFETY: The inode is alive.
        let known =
            unsafe { bindings::rdax_wait_begin(who.number(), inode.as_ptr(), 0, dev::UNKNOWN) };
        // INVARIANT: As it says.
        Self(known, NotThreadSafe)
    }

    /// For those of a device, which may not be known.
    pub(crate) fn for_device(bdev: Option<&BlockDevice>) -> Self {
        match bdev {
            Some(bdev) => Self::for_number(bdev.number(), dev::BLOCK),
            None => Self::for_number(0, dev::UNKNOWN),
        }
    }

    /// For those of the character device of this number (`dev_t`).
    pub(crate) fn for_character(number: u32) -> Self {
        Self::for_number(number, dev::CHARACTER)
    }

    fn for_number(number: u32, kind: u32) -> Self {
        let who = Waiter::Device.number();
        // SAFETY: There is no inode.
        let known = unsafe { bindings::rdax_wait_begin(who, ptr::null_mut(), number, kind) };
        // INVARIANT: As it says.
        Self(known, NotThreadSafe)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.0 {
            // SAFETY: By the type invariant; it is dropped by the task that has made it.
            unsafe { bindings::rdax_wait_end() };
        }
    }
}

/// Notes whom this task waits for, if it does, and tells the log if it has for long.
pub(crate) fn note(folio: DevFolio<'_>) {
    // SAFETY: These are numbers.
    unsafe {
        bindings::rdax_wait_note(
            folio.owner(),
            folio.index().get(),
            folio.head().pfn().to_bits(),
            folio.order().bits() as u32,
            folio.refcount(),
            folio.mapcount(),
        )
    };
}

/// The same of a folio of device DAX, which begins at this byte of the device.
pub(crate) fn note_at(folio: DevFolio<'_>, offset: u64) {
    // Idle is one reference here: the page map's.
    let references = folio.refcount() - 1;
    // SAFETY: These are numbers.
    unsafe {
        bindings::rdax_wait_note_at(
            offset,
            folio.head().pfn().to_bits(),
            folio.order().bits() as u32,
            references,
            folio.mapcount(),
        )
    };
}

/// Calls `f` for the tasks that wait, of a file or of all, that the caller may see, until that says that it
/// is enough; with `None` now and then where there are many others. Sleeps.
pub(crate) fn visit(
    file: Option<&Inode>,
    admin: bool,
    mut f: impl FnMut(Option<&uapi::WaitRecord>) -> bool,
) {
    let inode = file.map_or(ptr::null_mut(), Inode::as_ptr);
    let mut cursor = 0;
    let mut record: bindings::rdax_wait_record = pin_init::zeroed();
    // Ends: each turn is for tasks behind the last one's, in the order of their addresses.
    loop {
        // SAFETY: The inode is alive, or there is none.
        let found = unsafe { bindings::rdax_wait_next(&mut cursor, inode, admin, &mut record) };
        let goes_on = match found {
            0 => break,
            1 => f(Some(&uapi::WaitRecord {
                waited: record.waited,
                inode: record.inode,
                offset: record.offset,
                physical: record.physical,
                kind: record.kind,
                dev_major: record.dev_major,
                dev_minor: record.dev_minor,
                pid: record.pid,
                tid: record.tid,
                order: record.order,
                references: record.references,
                maps: record.maps,
                comm: record.comm,
                dev_type: record.dev_type,
                reserved: 0,
            })),
            _ => f(None),
        };
        if !goes_on {
            break;
        }
        vm::cond_resched();
    }
}
