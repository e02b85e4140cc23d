// SPDX-License-Identifier: GPL-2.0

//! KUnit tests, one or more files per file of `src/`; each test states a rule of the specification.

/// Reports a condition that does not hold, and ends the test or the helper of one.
macro_rules! check {
    ($condition:expr $(,)?) => {
        if !$condition {
            return Err($crate::kern::testing::failed(
                file!(),
                line!(),
                kernel::prelude::fmt!("not so: {}", stringify!($condition)),
            ));
        }
    };
    ($condition:expr, $($what:tt)+) => {
        if !$condition {
            return Err($crate::kern::testing::failed(
                file!(),
                line!(),
                kernel::prelude::fmt!(
                    "not so: {} ({})",
                    stringify!($condition),
                    kernel::prelude::fmt!($($what)+)
                ),
            ));
        }
    };
}

/// Reports two values that are not equal, and ends the test or the helper of one.
macro_rules! check_eq {
    ($left:expr, $right:expr $(,)?) => {
        match (&$left, &$right) {
            (left, right) => {
                if *left != *right {
                    return Err($crate::kern::testing::failed(
                        file!(),
                        line!(),
                        kernel::prelude::fmt!(
                            "{} is {:?}, not {:?}",
                            stringify!($left),
                            left,
                            right
                        ),
                    ));
                }
            }
        }
    };
    ($left:expr, $right:expr, $($what:tt)+) => {
        match (&$left, &$right) {
            (left, right) => {
                if *left != *right {
                    return Err($crate::kern::testing::failed(
                        file!(),
                        line!(),
                        kernel::prelude::fmt!(
                            "{} is {:?}, not {:?} ({})",
                            stringify!($left),
                            left,
                            right,
                            kernel::prelude::fmt!($($what)+)
                        ),
                    ));
                }
            }
        }
    };
}

// One suite may leave unused what another needs.
#[allow(dead_code)]
pub(crate) mod helpers;

mod adopt;
mod ahead;
mod around;
mod cow;
mod devdax;
mod device;
mod entry;
mod extents;
mod failure;
mod fairness;
mod fallback;
mod fault;
mod fill;
mod flush;
mod folio;
mod held;
mod holes;
mod insert;
mod io;
mod layout;
mod mapsync;
mod neighbours;
mod poison;
mod redirect;
mod refault;
mod remove;
mod report;
mod sequence;
mod shared;
mod stats;
mod tree;
mod waiters;
mod wakeups;
mod walk;
mod window;
mod write_around;
mod writeback;
mod xa;
mod zero;
