// SPDX-License-Identifier: GPL-2.0

//! The ground of the KUnit tests, in test builds only: reports, and a small world of device memory,
//! files and threads that a test can change and look at.
//!
//! C header: [`include/kunit/test.h`](srctree/include/kunit/test.h)

// One suite may leave unused what another needs.
#![allow(dead_code)]

mod call;
mod extent;
mod file;
mod made_up;
mod model;
mod removal;
mod task;
mod thread;
mod view;
mod watch;
mod world;

pub(crate) use call::*;
pub(crate) use extent::*;
pub(crate) use file::*;
pub(crate) use made_up::*;
pub(crate) use removal::*;
pub(crate) use task::*;
pub(crate) use thread::*;
pub(crate) use view::*;
pub(crate) use watch::*;
pub(crate) use world::*;

use super::bindings;
use core::ffi::CStr;
use kernel::{
    alloc::AllocError,
    prelude::*,
    str::CString, //
};

/// A check has failed, and KUnit knows it.
///
/// A test that fails returns this, so that everything it made is taken down again: what KUnit's own
/// assertions do, ending the thread, would leave files and locks behind.
#[derive(Debug)]
pub(crate) struct Failed(());

/// The result of a test.
pub(crate) type Checked<T = ()> = Result<T, Failed>;

/// Reports a failed check.
pub(crate) fn failed(file: &str, line: u32, text: kernel::fmt::Arguments<'_>) -> Failed {
    let file = CString::try_from_fmt(fmt!("{file}"));
    let text = CString::try_from_fmt(fmt!("{text}"));
    let or_unknown = |string: &Result<CString, Error>| match string {
        Ok(string) => string.as_char_ptr(),
        Err(_) => c"?".as_char_ptr(),
    };
    // SAFETY: Both are strings that live for the call.
    unsafe { bindings::rdax_test_fail(or_unknown(&file), line as i32, or_unknown(&text)) };
    Failed(())
}

#[track_caller]
fn unexpected(error: Error) -> Failed {
    let place = core::panic::Location::caller();
    failed(
        place.file(),
        place.line(),
        fmt!("unexpected error {}", error.to_errno()),
    )
}

impl From<Error> for Failed {
    #[track_caller]
    fn from(error: Error) -> Self {
        unexpected(error)
    }
}

impl From<AllocError> for Failed {
    #[track_caller]
    fn from(_: AllocError) -> Self {
        unexpected(ENOMEM)
    }
}

/// Notes that the present test cannot be run, and why. The test returns then.
pub(crate) fn skip(why: &CStr) {
    // SAFETY: A string.
    unsafe { bindings::rdax_test_skip(why.as_char_ptr()) };
}

/// Writes a line of the test's results.
pub(crate) fn note(text: kernel::fmt::Arguments<'_>) {
    if let Ok(text) = CString::try_from_fmt(fmt!("{text}")) {
        // SAFETY: A string.
        unsafe { bindings::rdax_test_note(text.as_char_ptr()) };
    }
}

/// Whether there is a line in the kernel's log that has the text in it.
pub(crate) fn log_says(text: &CStr) -> bool {
    // SAFETY: A string.
    unsafe { bindings::rdax_test_log_says(text.as_char_ptr()) }
}

/// Has nobody else redirect a function meanwhile. One call at a time.
///
/// Errors: what ftrace says.
pub(crate) fn with_function_held<R>(name: &CStr, work: impl FnOnce() -> R) -> Result<R> {
    // SAFETY: A string; released below.
    kernel::error::to_result(unsafe { bindings::rdax_test_hold_function(name.as_char_ptr()) })?;
    let result = work();
    // SAFETY: Held above.
    unsafe { bindings::rdax_test_release_function() };
    Ok(result)
}

/// Numbers that look random, the same in every run.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// The next number (xorshift).
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `n`, which is not 0.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() >> 11) as usize % n
    }
}

/// Does what has to do with paths, which kernel threads do not know.
pub(crate) fn with_paths<R>(work: impl FnOnce() -> R) -> R {
    // SAFETY: Ended below, by the same task.
    let old = unsafe { bindings::rdax_test_begin_paths() };
    let result = work();
    // SAFETY: Begun above.
    unsafe { bindings::rdax_test_end_paths(old) };
    result
}
