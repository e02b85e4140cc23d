# SPDX-License-Identifier: GPL-2.0
"""Blocks that go to another file by way of the filesystem."""

import fcntl
import os
import struct

from lib import posix
from lib.check import check, equal, same_bytes
from lib.device import run
from lib.fs import EXT4, MOUNT
from lib.mapping import Map
from lib.pattern import pages
from lib.posix import NOBODY, PAGE
from lib.runner import case

from .common import as_nobody

_SETFLAGS, _DAX_FLAG, _MOVE_EXT = 0x40086602, 0x02000000, 0xC028660F


def _exchange(count):
    own = os.open(f"{MOUNT}/dax", os.O_RDONLY)
    fcntl.ioctl(own, _SETFLAGS, struct.pack("Q", _DAX_FLAG))
    with_dax = os.open(f"{MOUNT}/dax/file", os.O_RDWR | os.O_CREAT, 0o600)
    without = os.open(f"{MOUNT}/other/file", os.O_RDWR | os.O_CREAT, 0o600)
    for fd, what in ((with_dax, "d"), (without, "w")):
        os.write(fd, pages(what, count))
        os.fsync(fd)
    with Map(with_dax, count * PAGE) as m:
        m.write(0, pages("m", count))
        try:
            fcntl.ioctl(without, _MOVE_EXT, bytearray(struct.pack(
                "2I4Q", 0, with_dax, 0, 0, count, 0)))
        except OSError:
            pass
        first = os.pread(with_dax, count * PAGE, 0)
        same_bytes(m.read(0, count * PAGE), first, "what is mapped")
        m.write(0, pages("n", count))
        same_bytes(os.pread(with_dax, count * PAGE, 0), pages("n", count), "the file with DAX")
    os.ftruncate(without, 0)
    with Map(with_dax, count * PAGE) as m:
        equal((m.load(0)[1].signal, m.store(0, 1).signal), (0, 0), "signals of a load and a store")
    return True


@case(fs=())
def blocks_of_a_mapped_file_are_not_exchanged_away(t):
    """Files choose for themselves whether they have DAX. He has ext4 exchange what one with it, mapped,
    and one without have: what he stores must be that file's still."""
    t.need_adopted()
    run(*EXT4, "/dev/pmem0")
    os.makedirs(MOUNT, exist_ok=True)
    run("mount", "-t", "ext4", "/dev/pmem0", MOUNT)
    try:
        for name in ("dax", "other"):
            os.mkdir(f"{MOUNT}/{name}")
            os.chown(f"{MOUNT}/{name}", NOBODY, NOBODY)
        check(as_nobody(_exchange, 16).result(), "the attacker's end")
    finally:
        posix.umount(MOUNT)
