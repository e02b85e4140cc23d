// SPDX-License-Identifier: GPL-2.0

//! The DAX layer: logic only, one file per section of the specification.

#![forbid(unsafe_code)]
