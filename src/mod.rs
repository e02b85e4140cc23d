// SPDX-License-Identifier: GPL-2.0

//! The DAX layer: logic only, one file per section of the specification.

#![forbid(unsafe_code)]

pub(crate) mod adopt;
#[cfg(RDAX_CHECK)]
pub(crate) mod check;
pub(crate) mod devdax;
pub(crate) mod device;
pub(crate) mod fault;
pub(crate) mod folio;
pub(crate) mod io;
pub(crate) mod layout;
pub(crate) mod owner;
pub(crate) mod poison;
pub(crate) mod report;
pub(crate) mod sequence;
pub(crate) mod stats;
pub(crate) mod tree;
pub(crate) mod tries;
pub(crate) mod writeback;
