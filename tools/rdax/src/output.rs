// SPDX-License-Identifier: GPL-2.0

//! Answers, on the standard output.

use anyhow::{
    Context,
    Result, //
};
use serde::Serialize;
use std::io::{
    self,
    ErrorKind,
    Write, //
};

/// Prints; whether there is somebody who reads on. That nobody does is no error.
pub fn print(text: &str) -> Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("the answer cannot be printed"),
    }
}

/// Prints a value as JSON, for people, too.
pub fn json(value: &impl Serialize) -> Result<bool> {
    print(&(serde_json::to_string_pretty(value)? + "\n"))
}
