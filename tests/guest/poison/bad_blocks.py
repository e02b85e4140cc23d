# SPDX-License-Identifier: GPL-2.0
"""Blocks in the driver's list of bad ones: what reads, writes and mappings of them say."""

import fcntl
import os
import struct

from lib import device, posix
from lib.check import check, equal, raises, same_bytes
from lib.device import some
from lib.mapping import BUS_MCEERR_AR, SIGBUS, Map
from lib.pattern import page, pages
from lib.pattern import file as _file
from lib.posix import PAGE, PMD
from lib.runner import case
from lib.space import settle
from lib.trace import Calls

from .common import DEVICE, EFAULT, EIO, POISON, forget, unwritten

CHECKPOINT, ZEROOUT = 0x4004662b, struct.pack("I", 2)


@case(fs=("xfs",), **POISON)
def bad_block_found_among_new_blocks(t):
    """It is found after the device was adopted, and nobody has come upon one before."""
    first = _file(t, PMD)
    os.fsync(first)
    ((start, at_disk, _, _),) = [e for e in posix.extents(first) if e[0] <= 21 * PAGE < e[0] + e[2]]
    bad = at_disk + 21 * PAGE - start
    fd, at = unwritten(t, first, 16 * PAGE, 16 * PAGE)
    posix.fallocate(fd, posix.PUNCH_HOLE | posix.KEEP_SIZE, at, 16 * PAGE)
    settle(t)
    device.write(f"/sys/block/{t.device}/badblocks", f"{bad >> 9} 8\n")
    try:
        with Map(fd, at + 16 * PAGE, skew=PAGE) as m:
            for number in range(16):
                m.store(at + number * PAGE + 100, 1)
        os.close(os.open(t.path("new"), os.O_RDWR | os.O_CREAT))
    finally:
        os.close(fd)
        os.close(first)
        forget(t)


class _BadBlock:
    """One bad page of a file, in the driver's list."""

    path = f"/sys/block/{DEVICE}/badblocks"

    def __init__(self, fd, offset):
        (start,) = [e[1] + offset - e[0] for e in posix.extents(fd)
                    if e[0] <= offset < e[0] + e[2]]
        device.write(self.path, f"{start >> 9} {PAGE >> 9}\n")
        check(f"{start >> 9} {PAGE >> 9}" in self.list(), "the driver's list did not take it")

    def list(self):
        return device.read(self.path, "").splitlines()


@case(fs=("ext4",), **POISON)
def bad_block_among_new_blocks(t):
    """A write to preallocated blocks has ext4 put zeroes on those beside it, or on its own, and one of
    them is bad: no earlier contents are shown, and what is written afterwards is there."""
    fd = t.open()
    os.pwrite(fd, b"S" * (64 * PAGE), 0)
    # The blocks stay, with what is in them; the first ones are an extent small enough to be zeroed whole.
    posix.fallocate(fd, posix.ZERO_RANGE, 0, 64 * PAGE)
    os.pwrite(fd, page("x"), 8 * PAGE)
    os.fsync(fd)
    _BadBlock(fd, 5 * PAGE)
    _BadBlock(fd, 40 * PAGE)
    try:
        os.pwrite(fd, page("a"), 0)
        os.pwrite(fd, page("w"), 3 * PAGE)
        try:
            os.pwrite(fd, b"n" * (32 * PAGE), 16 * PAGE)
        except OSError as error:
            equal(error.errno, EIO, "errno")
        os.fsync(fd)
        os.close(fd)
        # What ext4 remembers of the blocks goes.
        t.fs.umount()
        t.fs.mount()
        fd = t.open()
        same_bytes(os.pread(fd, PAGE, 0), page("a"), "the first page")
        same_bytes(os.pread(fd, PAGE, 3 * PAGE), page("w"), "what was written beside it")
        for number in range(64):
            try:
                check(b"SSSS" not in os.pread(fd, PAGE, number * PAGE), f"page {number} shows")
            except OSError as error:
                equal((error.errno, number in (5, 40)), (EIO, True), f"errno of page {number}")
    finally:
        os.close(fd)
        forget(t)


def _wipe_journal(t):
    """Has ext4 put zeroes on its journal, as root may."""
    fd = os.open(t.dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(fd, CHECKPOINT, ZEROOUT)
    finally:
        os.close(fd)


def _journal(t):
    """The blocks of the journal, which are pages. It begins anew at the first ones when it was wiped."""
    said = device.run("debugfs", "-R", "blocks <8>", t.fs.node).split()
    return [int(word) for word in said if word.isdigit()]


@case(fs=("ext4",), **POISON)
def journal_on_a_bad_block_is_not_said_to_be_wiped(t):
    _wipe_journal(t)
    sector = _journal(t)[-8] * PAGE >> 9
    device.write(_BadBlock.path, f"{sector} {PAGE >> 9}\n")
    try:
        raises(EIO, "wiping the journal", _wipe_journal, t)
        os.close(t.open("new"))
    finally:
        forget(t)


@case(quick=False, **POISON)
def bad_block_reads(t):
    """Reads give what lies before the bad page, then EIO; the rest of the file is well."""
    fd = _file(t, 2 * PMD)
    _BadBlock(fd, 20 * PAGE)
    try:
        raises(EIO, "pread of the bad page", os.pread, fd, PAGE, 20 * PAGE)
        raises(EIO, "pread of a byte in it", os.pread, fd, 1, 20 * PAGE + 777)
        try:
            got = os.pread(fd, 8 * PAGE, 16 * PAGE)
            check(len(got) <= 4 * PAGE, f"{len(got)} bytes read across the bad page")
            same_bytes(got, pages("f", 4, 16)[:len(got)], "bytes before the bad page")
            t.note(f"a read across the bad page gave {len(got)} bytes")
        except OSError as error:
            equal(error.errno, EIO, "errno of a read across the bad page")
            t.note("a read across the bad page gave EIO")
        same_bytes(os.pread(fd, 20 * PAGE, 0), pages("f", 20), "pages before")
        same_bytes(os.pread(fd, 20 * PAGE, 21 * PAGE), pages("f", 20, 21), "pages behind")
    finally:
        os.close(fd)
        forget(t)


@case(**POISON)
def bad_block_mapped(t):
    """An access to the bad page gets SIGBUS with its address; its neighbours serve."""
    fd = _file(t, 2 * PMD)
    _BadBlock(fd, 20 * PAGE)
    try:
        for skew in (PAGE, 0):
            with Map(fd, 2 * PMD, skew=skew) as m:
                stats = t.stats()
                for write in (False, True):
                    fault = m.store(20 * PAGE + 8, 1) if write else m.load(20 * PAGE + 8)[1]
                    what = f"{'store' if write else 'load'}, skew {skew}"
                    equal(fault.signal, SIGBUS, f"{what}: signal")
                    check(fault.address >> 12 == (m.address >> 12) + 20, f"{what}: {fault}")
                    equal(fault.code, BUS_MCEERR_AR, f"{what}: {fault}: code")
                same_bytes(m.read(0, 20 * PAGE), pages("f", 20), "pages before")
                same_bytes(m.read(21 * PAGE, PAGE), page("f", 21), "page behind")
                same_bytes(m.read(PMD, PMD), pages("f", 512, 512), "the next 2 MiB")
                stats.expect(poison_faults=some)
    finally:
        os.close(fd)
        forget(t)


@case(**POISON)
def bad_block_of_a_known_page(t):
    """Memory that was mapped before it became bad is not mapped again, be it as a neighbour."""
    fd = _file(t, 64 * PAGE)
    with Map(fd, 64 * PAGE, skew=PAGE) as m:
        m.touch(write=True)
    _BadBlock(fd, 20 * PAGE)
    try:
        for write in (False, True):
            with Map(fd, 64 * PAGE, skew=PAGE) as m:
                for at in (19, 21):
                    m.touch(at * PAGE, PAGE, write=write)
                fault = m.store(20 * PAGE, 1) if write else m.load(20 * PAGE)[1]
                equal(fault.signal, SIGBUS, "signal of an access to the bad page")
    finally:
        os.close(fd)
        forget(t)


@case(**POISON)
def bad_block_written(t):
    """A write of part of the page fails; a write of all of it is tried in recovery mode.

    A driver that does not recover copies nothing, which is EFAULT; else the error is EIO.
    """
    fd = _file(t, PMD)
    bad = _BadBlock(fd, 20 * PAGE)
    try:
        raises((EIO, EFAULT), "write of part of the bad page", os.pwrite, fd, b"x" * 100, 20 * PAGE + 50)
        equal(len(bad.list()), 1, "bad blocks after a partial write")
        raises(EIO, "pread after the partial write", os.pread, fd, 1, 20 * PAGE)
        with Calls("pmem_recovery_write") as recovery:
            try:
                written = os.pwrite(fd, page("w", 20), 20 * PAGE)
            except OSError as error:
                check(error.errno in (EIO, EFAULT), f"the write failed with {error}")
                written = None
            check(recovery.count() > 0, "the write was not tried in recovery mode")
        if written is None:
            # This bus cannot clear errors: the write must have failed as a whole.
            t.note("the device cannot clear errors")
            equal(len(bad.list()), 1, "bad blocks")
            raises(EIO, "pread after the failed write", os.pread, fd, PAGE, 20 * PAGE)
        else:
            equal(written, PAGE, "bytes written")
            equal(bad.list(), [], "bad blocks after the write")
            same_bytes(os.pread(fd, PAGE, 20 * PAGE), page("w", 20), "the page")
            bad = _BadBlock(fd, 20 * PAGE)
        nothing = posix.mmap(None, PAGE, posix.PROT_NONE, posix.MAP_PRIVATE | posix.MAP_ANONYMOUS)
        raises(EFAULT, "write from memory that is not there", posix.pwrite_from, fd, nothing, PAGE,
               20 * PAGE)
        posix.munmap(nothing, PAGE)
        os.pwrite(fd, pages("w", 20), 0)
        same_bytes(os.pread(fd, 20 * PAGE, 0), pages("w", 20), "pages before")
    finally:
        os.close(fd)
        forget(t)


@case(fs=("xfs",), **POISON)
def bad_block_shared(t):
    """Copying away from a bad page fails and leaves both files as they were."""
    one, two = _file(t, 64 * PAGE, "one"), t.open("two")
    posix.clone(one, two)
    _BadBlock(one, 20 * PAGE)
    try:
        # Part of the page would have to come from the bad one.
        raises(EIO, "partial write to the shared bad page", os.pwrite, two, b"x", 20 * PAGE + 5)
        with Map(two, 64 * PAGE, skew=PAGE) as m:
            equal(m.store(20 * PAGE, 1).signal, SIGBUS, "store to the shared bad page: signal")
            check(not m.store(21 * PAGE, 1).signal, "store to the next page failed")
        for fd, changed in ((one, page("f", 21)), (two, b"\1" + page("f", 21)[1:])):
            same_bytes(os.pread(fd, PAGE, 21 * PAGE), changed, "the next page")
    finally:
        os.close(one)
        os.close(two)
        forget(t)
