// SPDX-License-Identifier: GPL-2.0

//! Reads and writes of the tests of I/O.

use crate::{
    dax::io::{self},
    kern::{
        order::Order,
        testing::{Buffer, Checked, File, Share, TestExtent, View, World},
    },
    tests::helpers::*,
};
use kernel::prelude::*;

pub(crate) const PAGE: usize = Order::PTE.bytes();

/// The result, and where the file is then.
pub(crate) type Done = (Result<usize>, u64);

pub(crate) fn transfer(file: &File<'_>, position: usize, flags: u32, buffer: Buffer<'_>) -> Done {
    file.transfer(position as u64, flags, buffer, |iocb, iter| {
        let result = io::iomap_rw(iocb, iter, file.ops());
        (result, iocb.position())
    })
}

pub(crate) fn read(file: &File<'_>, position: usize, bytes: &mut [u8]) -> Done {
    transfer(file, position, 0, Buffer::Read(bytes))
}

pub(crate) fn write(file: &File<'_>, position: usize, bytes: &[u8]) -> Done {
    transfer(file, position, 0, Buffer::Write(bytes))
}

pub(crate) fn filled(len: usize, byte: u8) -> Checked<KVVec<u8>> {
    Ok(KVVec::from_elem(byte, len, GFP_KERNEL)?)
}

pub(crate) fn all(bytes: &[u8], byte: u8) -> bool {
    bytes.iter().all(|b| *b == byte)
}

/// User memory of `bytes` bytes, filled with 0x44, and nothing behind it.
pub(crate) fn with_short_buffer<R>(
    world: &World,
    bytes: usize,
    work: impl FnOnce(usize) -> Checked<R>,
) -> Checked<R> {
    let memory = world.file(1)?;
    let place = world.take(Order::PTE)?;
    memory.set_extents(&[TestExtent::mapped(0, 1, place)])?;
    world.fill(place, 1, 0x44);
    let view = View::new(&memory, 0, 1, Share::Shared, 0)?;
    view.load(0)?;
    let result = work(view.address(0) + PAGE - bytes);
    drop(view);
    clear(&memory);
    result
}
