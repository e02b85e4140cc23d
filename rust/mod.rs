// SPDX-License-Identifier: GPL-2.0

//! The kernel, as this module sees it.
//!
//! One file per kernel concept, each a safe wrapper around what the `kernel` crate does not have.
//! All `unsafe` code of the module is on this floor.

/// The kernel's C interface: the `kernel` crate's bindings, and beside them what those lack and
/// `bindings.names` asks for.
#[allow(
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    dead_code,
    improper_ctypes,
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unreachable_pub,
    unsafe_op_in_unsafe_fn,
    unused_imports
)]
pub(crate) mod bindings {
    use kernel::ffi;
    use pin_init::{
        MaybeZeroable,
        Zeroable, //
    };

    pub(crate) use kernel::bindings::*;

    include!(env!("RDAX_BINDINGS"));
}

/// The state of the other files for as long as the module is loaded: locks and queues that have to be
/// made ready, and memory that has to be given back.
///
/// # Invariants
///
/// Everything is ready. There is one at most.
pub(crate) struct Runtime(());

impl Runtime {
    /// Makes everything ready.
    ///
    /// # Safety
    ///
    /// To be called once, before anything of this folder is used that has a table, a queue or a lock.
    pub(crate) unsafe fn new() -> Self {
        // SAFETY: By this function's safety requirements.
        unsafe {
            bindings::rdax_tables_init();
            bindings::rdax_ext4_init();
            bindings::rdax_zero_folio_find();
            page::GiganticLock::init();
            memory::MEMORIES.init();
            redirect::CALLERS.init();
            redirect::SWITCH.init();
            entry_points::init();
        }
        #[cfg(RDAX_COVERAGE)]
        // SAFETY: By this function's safety requirements.
        unsafe {
            bindings::rdax_coverage_show();
        }
        // INVARIANT: As above.
        Self(())
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        // Nothing is redirected any more; calls that had paused may have come back since.
        redirect::settle();
        // SAFETY: The state is used for as long as a file is served, and none is any more; nor does anybody wait.
        unsafe {
            bindings::rdax_ext4_exit();
            bindings::rdax_report_exit();
            iomap::IomapOps::release();
        }
        #[cfg(RDAX_COVERAGE)]
        // SAFETY: By the type invariant `new` was called.
        unsafe {
            bindings::rdax_coverage_hide();
        }
    }
}

pub(crate) mod bdev;
mod btf;
#[cfg(RDAX_CHECK)]
pub(crate) mod check;
pub(crate) mod compat;
pub(crate) mod configfs;
pub(crate) mod dax;
pub(crate) mod dax_bus;
pub(crate) mod entry;
pub(crate) mod entry_points;
pub(crate) mod error;
pub(crate) mod fs;
pub(crate) mod iomap;
pub(crate) mod iov;
pub(crate) mod members;
pub(crate) mod memory;
pub(crate) mod once;
pub(crate) mod order;
pub(crate) mod page;
pub(crate) mod page_table;
pub(crate) mod percpu;
pub(crate) mod percpu_rwsem;
pub(crate) mod prototypes;
pub(crate) mod redirect;
pub(crate) mod report;
#[cfg(RDAX_TEST)]
pub(crate) mod testing;
pub(crate) mod trace;
#[path = "../uapi/rdax.rs"]
pub(crate) mod uapi;
pub(crate) mod vm;
pub(crate) mod wait;
pub(crate) mod waiting;
pub(crate) mod xa;
