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
