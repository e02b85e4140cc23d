// SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note

//! `/dev/rdax`, as `rdax.h` has it, for the module and for the command. The module's build checks that both
//! files agree.

/// The version of the interface.
pub(crate) const VERSION: u32 = 1;

/// The type of the numbers of the calls.
pub(crate) const TYPE: u32 = 0xda;
/// Writes [`VERSION`].
pub(crate) const NR_VERSION: u32 = 0;
/// With [`Map`].
pub(crate) const NR_MAP: u32 = 1;
/// With [`Waits`].
pub(crate) const NR_WAITS: u32 = 2;

/// What a range of a file is held as.
pub(crate) mod kind {
    pub(crate) const UNTOUCHED: u32 = 0;
    pub(crate) const EMPTY: u32 = 1;
    pub(crate) const HOLE: u32 = 2;
    pub(crate) const DATA: u32 = 3;
}

/// More of it.
pub(crate) mod flag {
    pub(crate) const DIRTY: u32 = 1 << 0;
    pub(crate) const SHARED: u32 = 1 << 1;
    pub(crate) const LOCKED: u32 = 1 << 2;
}

/// Why an entry, or a mapping, is not of the next larger size.
pub(crate) mod why {
    pub(crate) const EXTENT: u32 = 1 << 0;
    pub(crate) const DEVICE: u32 = 1 << 1;
    pub(crate) const ADDRESS: u32 = 1 << 2;
    pub(crate) const END_OF_MAPPING: u32 = 1 << 3;
    pub(crate) const END_OF_FILE: u32 = 1 << 4;
    pub(crate) const PRIVATE: u32 = 1 << 5;
    pub(crate) const MAX_ORDER: u32 = 1 << 6;
    pub(crate) const SMALLER: u32 = 1 << 7;
    pub(crate) const UNMAPPED: u32 = 1 << 8;
}

/// Who waits.
pub(crate) mod wait {
    pub(crate) const LAYOUT: u32 = 1;
    pub(crate) const WRITE: u32 = 2;
    pub(crate) const FAULT: u32 = 3;
    pub(crate) const EVICTION: u32 = 4;
    pub(crate) const DEVICE: u32 = 5;
}

/// Whose numbers those of a device are: block and character devices have the same.
pub(crate) mod dev {
    pub(crate) const UNKNOWN: u32 = 0;
    pub(crate) const BLOCK: u32 = 1;
    pub(crate) const CHARACTER: u32 = 2;
}

/// No record follows up to the end of the range.
pub(crate) const MAP_END: u32 = 1 << 0;

/// A range of a file that is held alike (`struct rdax_map_record`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MapRecord {
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) physical: u64,
    pub(crate) kind: u32,
    pub(crate) flags: u32,
    pub(crate) order: u32,
    pub(crate) why: u32,
    pub(crate) why_mapped: u32,
    pub(crate) maps: u32,
    pub(crate) whole: u32,
    pub(crate) references: u32,
    pub(crate) vmas: u32,
    pub(crate) reserved: u32,
}

/// `struct rdax_map`
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Map {
    pub(crate) fd: i32,
    pub(crate) flags: u32,
    pub(crate) start: u64,
    pub(crate) length: u64,
    pub(crate) records: u64,
    pub(crate) record_size: u32,
    pub(crate) count: u32,
    pub(crate) next: u64,
    pub(crate) size: u64,
    pub(crate) max_order: u32,
    pub(crate) reserved: u32,
}

/// A task that waits (`struct rdax_wait_record`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct WaitRecord {
    pub(crate) waited: u64,
    pub(crate) inode: u64,
    pub(crate) offset: u64,
    pub(crate) physical: u64,
    pub(crate) kind: u32,
    pub(crate) dev_major: u32,
    pub(crate) dev_minor: u32,
    pub(crate) pid: i32,
    pub(crate) tid: i32,
    pub(crate) order: u32,
    pub(crate) references: u32,
    pub(crate) maps: u32,
    pub(crate) comm: [u8; 16],
    pub(crate) dev_type: u32,
    pub(crate) reserved: u32,
}

/// `struct rdax_waits`
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Waits {
    pub(crate) fd: i32,
    pub(crate) flags: u32,
    pub(crate) records: u64,
    pub(crate) record_size: u32,
    pub(crate) count: u32,
    pub(crate) total: u32,
    pub(crate) reserved: u32,
}
