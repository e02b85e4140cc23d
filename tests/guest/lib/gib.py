# SPDX-License-Identifier: GPL-2.0
"""Files of 1 GiB that lie on a physical boundary of 1 GiB, and what is in them."""

import ctypes
import errno
import os
import time

from . import device, native, posix, task
from .check import Failure, check
from .mapping import Map
from .posix import GIB, PAGE

PAGES = GIB // PAGE
SLOTS = 3               # that the cases have to share; the rest of the device is taken
ROOM = 4 << 20          # for small files, here and there
HOLDER, POOL = ".held", ".gib"
# Slots that every filesystem has: memory that the host has given for one serves the next.
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
        lib.gib_repair.argtypes = [void, size, tag]
        lib.gib_race.argtypes = [void, ctypes.c_bool, ctypes.c_ulong]
        _lib = lib
    return _lib


def race(m, part, rounds):
    """Threads use a mapping while others take it, or a page of it, out of the page table so many times."""
    check(_native().gib_race(m.address, part, rounds) == 0, "madvise of a mapping that others use")


def _contiguous(pieces):
    """Extents that lie behind each other, in the file and on the device, taken together."""
    found = []
    for logical, physical, length, _ in pieces:
        if found and (found[-1][0] + found[-1][2], found[-1][1] + found[-1][2]) == (logical,
                                                                                   physical):
            found[-1][2] += length
        else:
            found.append([logical, physical, length])
    return found


def _whole(t, fd):
    """[(number of the GiB on the device, offset in the file)] of what the file has whole."""
    start = device.data_start(t.device)
    found = []
    for logical, physical, length in _contiguous(posix.extents(fd)):
        first = -(-(physical + start) // GIB) * GIB - start
        found += [(at // GIB, logical + at - physical)
                  for at in range(first, physical + length - GIB + 1, GIB)]
    return found


def _grow(fd, enough=lambda: False):
    """Give a file blocks until it has enough, or there are none."""
    step = GIB
    while step >= 1 << 20 and not enough():
        try:
            posix.fallocate(fd, 0, os.fstat(fd).st_size, step)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            step //= 2


def _hold(t):
    """Take all of the filesystem but a few slots of 1 GiB, and room for small files here and there.

    What allocates 1 GiB then has to take a slot, whatever the filesystem's habits.
    """
    path = os.path.join(t.fs.mount_point, HOLDER)
    if os.path.exists(path):
        return
    fd = os.open(path + ".new", os.O_RDWR | os.O_CREAT)
    try:
        _grow(fd)
        whole = sorted(_whole(t, fd), key=lambda slot: (slot[0] not in PREFERRED, slot[0]))
        check(len(whole) >= SLOTS, f"only {len(whole)} whole GiB on the device")
        pieces = posix.extents(fd)
        slots = [offset for _, offset in whole[:SLOTS]]
        for offset in slots:
            posix.fallocate(fd, posix.PUNCH_HOLE | posix.KEEP_SIZE, offset, GIB)
        for logical, _, length, _ in pieces:
            for at in range(logical, logical + length - ROOM, 256 << 20):
                if not any(slot - ROOM < at < slot + GIB for slot in slots):
                    posix.fallocate(fd, posix.PUNCH_HOLE | posix.KEEP_SIZE, at, ROOM)
    finally:
        os.close(fd)
    os.rename(path + ".new", path)


def allocate(t, fd, patience=15):
    """Give an empty file 1 GiB of blocks, unwritten, in one slot. False if there is none."""
    _hold(t)
    deadline = task.Deadline(patience)
    while True:
        # What was freed last can be had when the filesystem's log is written.
        t.sync()
        _grow(fd, lambda: _whole(t, fd))
        whole = _whole(t, fd)
        if whole:
            offset = whole[0][1]
            os.ftruncate(fd, offset + GIB)
            if offset:
                posix.fallocate(fd, posix.COLLAPSE_RANGE, 0, offset)
            return True
        os.ftruncate(fd, 0)
        if deadline.over():
            return False
        time.sleep(0.1)


def take_rest(t):
    """Take all slots that are free, so that the next one to come free is where the next file is."""
    for number in range(SLOTS + 1):
        fd = t.open(f"rest{number}")
        # The tasks of the last case may be about to give theirs back.
        taken = allocate(t, fd, 3)
        os.close(fd)
        if not taken:
            os.unlink(t.path(f"rest{number}"))
            return
    raise Failure("there is more room than there should be")


def file(t, name="file", tag=1, written=True):
    """A new file of 1 GiB that one entry can map, in the writing of `tag`."""
    fd = t.open(name)
    check(allocate(t, fd), "there is no GiB to be had on a physical boundary of 1 GiB")
    if written:
        write(fd, tag)
        os.fsync(fd)
    return fd


def borrow(t, name="file", suspects=()):
    """The same in the writing of 1, but a file that other cases have used and will use again.

    Nothing may be done to it that moves its blocks. Pages that were stored to are put right, as
    are the `suspects`, whatever they look like.
    """
    path = os.path.join(t.fs.mount_point, POOL)
    if os.path.exists(path):
        fd = os.open(path, os.O_RDWR)
        written = not any(e[3] & posix.EXTENT_UNWRITTEN for e in posix.extents(fd))
        if os.fstat(fd).st_size == GIB and written and in_place(t, fd):
            with GibMap(fd) as m:
                _native().gib_repair(m.address, PAGES, 1)
                for number in suspects:
                    store(m, 1, number, 1)
            forget_entries(fd)
            os.fsync(fd)
            os.link(path, t.path(name))
            return fd
        os.close(fd)
        os.unlink(path)
    fd = file(t, name)
    os.link(t.path(name), path)
    return fd


def in_place(t, fd):
    """Whether the file's first GiB can be mapped by one entry."""
    return 0 in [at for _, at in _whole(t, fd)]


def forget_entries(fd):
    """Have the filesystem drop the file's entries, which it does whenever the size changes."""
    os.ftruncate(fd, GIB + PAGE)
    os.ftruncate(fd, GIB)


def frame(t, fd, offset=0):
    """The number of the first page frame of a GiB of a file. This writes the file back."""
    wanted = [number for number, at in _whole(t, fd) if at == offset]
    check(wanted, f"the file is not contiguous: {posix.extents(fd)}")
    return (device.data_start(t.device) + wanted[0] * GIB) // PAGE


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
