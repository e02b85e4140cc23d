# SPDX-License-Identifier: GPL-2.0
"""Files of 1 GiB that lie on a physical boundary of 1 GiB, and what is in them."""

import ctypes
import os
import time

from . import device, native, posix
from .check import Failure, check
from .mapping import Map
from .posix import GIB, PAGE

PAGES = GIB // PAGE
SLOTS = 3               # that the cases have to share; the rest of the device is taken
HOLDER = ".held"
# Slots that every filesystem has free: what the host has given for one, the next needs not wait for.
PREFERRED = (2, 5, 6)


def unfit(name):
    """Why a device cannot be used for files that are mapped by 1 GiB, or None."""
    if device.data_start(name) % GIB:
        return f"the data of {name} does not begin on a multiple of 1 GiB"
    if device.size(name) < 8 * GIB:
        return f"{name} has less than 8 GiB of data"
    return None


_lib = None


def _native():
    global _lib
    if _lib is None:
        lib = ctypes.CDLL(native.path("gib.so"))
        void, size, word = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint64
        fd, offset, tag = ctypes.c_int, ctypes.c_int64, ctypes.c_uint
        lib.gib_fill.argtypes = [void, size, word, tag]
        lib.gib_fill.restype = None
        lib.gib_check.argtypes = [void, size, word, tag, tag, size]
        lib.gib_check.restype = ctypes.c_long
        lib.gib_zero.argtypes = [void, size, size]
        lib.gib_zero.restype = ctypes.c_long
        lib.gib_write.argtypes = [fd, offset, size, word, tag]
        lib.gib_read.argtypes = [fd, offset, size, word, tag, tag, size]
        lib.gib_read.restype = ctypes.c_long
        _lib = lib
    return _lib


def _in_order(pieces, start):
    """Whether extents are one stretch, and lie as they have to for 1 GiB."""
    if not pieces or (pieces[0][1] + start - pieces[0][0]) % GIB:
        return False
    return all(a[0] + a[2] == b[0] and a[1] + a[2] == b[1] for a, b in zip(pieces, pieces[1:]))


def _hold(t):
    """Take all of the filesystem but a few slots of 1 GiB, and room for small files here and there.

    What allocates 1 GiB then has to take a slot, whatever the filesystem's habits.
    """
    path = os.path.join(t.fs.mount_point, HOLDER)
    if os.path.exists(path):
        return
    start = device.data_start(t.device)
    fd = os.open(path + ".new", os.O_RDWR | os.O_CREAT)
    try:
        size, step = 0, 512 << 20
        while step >= 16 << 20:
            try:
                posix.fallocate(fd, 0, size, step)
                size += step
            except OSError:
                step //= 2
        # (number on the device, offset in the file) of every whole GiB.
        whole = []
        pieces = posix.extents(fd)
        for logical, physical, length, _ in pieces:
            first = -(-(physical + start) // GIB) * GIB - start
            for at in range(first, physical + length - GIB + 1, GIB):
                whole.append((at // GIB, logical + at - physical))
        whole.sort(key=lambda slot: (slot[0] not in PREFERRED, slot[0]))
        check(len(whole) >= SLOTS, f"only {len(whole)} whole GiB on the device: {pieces}")
        free = set()
        for _, offset in whole[:SLOTS]:
            posix.fallocate(fd, posix.PUNCH_HOLE | posix.KEEP_SIZE, offset, GIB)
            free.update(range(offset, offset + GIB, 16 << 20))
        for logical, _, length, _ in pieces:
            for at in range(logical, logical + length - (16 << 20), 256 << 20):
                if not any(at - (16 << 20) < taken < at + (16 << 20) for taken in free):
                    posix.fallocate(fd, posix.PUNCH_HOLE | posix.KEEP_SIZE, at, 16 << 20)
    finally:
        os.close(fd)
    os.rename(path + ".new", path)
    t.sync()


def allocate(t, fd, offset=0):
    """Give a file 1 GiB of blocks, unwritten, in one slot."""
    _hold(t)
    end = time.monotonic() + 15
    while True:
        # What was freed last can be had when the filesystem's log is written.
        t.sync()
        try:
            posix.fallocate(fd, 0, offset, GIB)
            if _in_order(_pieces(fd, offset), device.data_start(t.device)):
                return
            posix.fallocate(fd, posix.PUNCH_HOLE | posix.KEEP_SIZE, offset, GIB)
        except OSError as error:
            if error.errno != 28:
                raise
        if time.monotonic() > end:
            raise Failure("there is no GiB to be had on a physical boundary of 1 GiB")
        time.sleep(0.1)


def _pieces(fd, offset=0):
    return [e for e in posix.extents(fd) if offset <= e[0] < offset + GIB]


def file(t, name="file", tag=1, offset=0, written=True):
    """A file with 1 GiB at `offset` that one entry can map, in the writing of `tag`."""
    fd = t.open(name)
    allocate(t, fd, offset)
    if written:
        write(fd, tag, offset=offset)
        os.fsync(fd)
    return fd


def frame(t, fd, offset=0):
    """The number of the first page frame of a GiB that lies in one stretch."""
    pieces = _pieces(fd, offset)
    start = device.data_start(t.device)
    check(_in_order(pieces, start), f"the file does not lie in one stretch: {pieces}")
    return (start + pieces[0][1] - (pieces[0][0] - offset)) // PAGE


def write(fd, tag, first=0, count=PAGES, offset=0):
    """Write pages by write(). Page 0 is the one at `offset`."""
    error = _native().gib_write(fd, offset + first * PAGE, count, first, tag)
    check(not error, f"write of {count} pages: {os.strerror(error)}")


def store(m, tag, first=0, count=PAGES):
    """Write pages through a mapping."""
    check((first + count) * PAGE <= m.length, "test writes past its mapping")
    _native().gib_fill(m.address + first * PAGE, count, first, tag)


def expect(m, tag, first=0, count=PAGES, other=None, number=None, every=509, what="mapping"):
    """The pages of a mapping are in the writing of `tag` (some may be in that of `other`).

    They say that they are page `number` and so on, if that is not `first`. A few words of each
    page are looked at, and all words of every page in `every`.
    """
    check((first + count) * PAGE <= m.length, "test reads past its mapping")
    number = first if number is None else number
    at = m.address + first * PAGE
    wrong = _native().gib_check(at, count, number, tag, tag if other is None else other, every)
    if wrong >= 0:
        word = ctypes.c_uint64.from_address(at + wrong).value
        raise Failure(f"{what}: {word:#018x} at page {first + wrong // PAGE} + {wrong % PAGE:#x}, "
                      f"which should be page {number + wrong // PAGE} of {tag}")


def expect_zero(m, first, count, every=509, what="mapping"):
    check((first + count) * PAGE <= m.length, "test reads past its mapping")
    at = m.address + first * PAGE
    wrong = _native().gib_zero(at, count, every)
    if wrong >= 0:
        word = ctypes.c_uint64.from_address(at + wrong).value
        raise Failure(f"{what}: {word:#018x} at page {first + wrong // PAGE} + {wrong % PAGE:#x}, "
                      "which should be zero")


def expect_read(fd, tag, first=0, count=PAGES, other=None, number=None, offset=0, what="file"):
    """Pages as read() gives them; every word is looked at."""
    number = first if number is None else number
    wrong = _native().gib_read(fd, offset + first * PAGE, count, number, tag,
                               tag if other is None else other, 1)
    if wrong < -1:
        raise Failure(f"{what}: read of {count} pages from page {first} on: "
                      f"{os.strerror(-2 - wrong)}")
    check(wrong < 0, f"{what}: page {first + wrong // PAGE} + {wrong % PAGE:#x} is not page "
                     f"{number + wrong // PAGE} of {tag}")


def expect_read_zero(fd, first, count, offset=0, what="file"):
    data = os.pread(fd, count * PAGE, offset + first * PAGE)
    check(len(data) == count * PAGE, f"{what}: short read of {count} pages from page {first} on")
    check(not any(data), f"{what}: {count} pages from page {first} on are not all zeroes")


class GibMap(Map):
    """A mapping of 1 GiB of a file, at an address that is `skew` bytes above a multiple of that."""

    def __init__(self, fd, length=GIB, **options):
        super().__init__(fd, length, align=GIB, **options)
