// SPDX-License-Identifier: GPL-2.0

//! Which tasks wait for others who use a page.

use crate::kern::{
    fs::FileRef,
    report::{self, least, Call, Records},
    uapi,
    waiting, //
};
use kernel::{error::code::*, prelude::*};

/// Tasks that are looked at in one call at most.
const MOST: u32 = 1 << 16;

/// Answers a call: writes a record for each.
///
/// Errors: `EBADF` for a descriptor that may not be read, `ENODEV` for one of no regular file, `EINVAL`,
/// `E2BIG`, `EFAULT`, `EINTR`.
pub(super) fn answer(call: Call) -> Result {
    let mut asked: uapi::Waits = call.read(least::WAITS)?;
    if asked.flags != 0 || asked.reserved != 0 || asked.fd < -1 {
        return Err(EINVAL);
    }
    let size = asked.record_size;
    let mut records = Records::new(asked.records, size, asked.count, least::WAIT_RECORD)?;
    let file = match asked.fd {
        -1 => None,
        fd => Some(FileRef::readable(fd)?),
    };
    let inode = match &file {
        Some(file) => Some(file.inode().ok_or(ENODEV)?),
        None => None,
    };
    let mut total = 0;
    let mut result = Ok(());
    waiting::visit(inode, report::is_admin(), |record| {
        result = match (report::signal(), record) {
            (true, _) => Err(EINTR),
            (false, Some(record)) => {
                total += 1;
                records.push(record)
            }
            (false, None) => Ok(()),
        };
        result.is_ok() && total < MOST
    });
    result?;
    asked.count = records.written();
    asked.total = total;
    call.write(&asked)
}
