# SPDX-License-Identifier: GPL-2.0
"""System calls that change a file which is mapped, and those that flush it."""

import ctypes
import errno
import os

from lib import posix
from lib.check import check, same_bytes
from lib.mapping import Map
from lib.pattern import page, pages
from lib.posix import PAGE, PMD
from lib.runner import case
from .common import (CLOSE, FALLOCATE, FS, FSYNC, FTRUNCATE, MADVISE, MSYNC, MUNMAP, ORPHANS, PREAD, PWRITE,
                     SIZE, UNLINK, File, ended, holds, path_argument, sweep)


def _changes(t, change, after=None, skew=0, errors=()):
    """A system call that changes a file which is mapped and dirty."""
    def once(failing):
        with File(t) as f, Map(f.fd, SIZE, skew=skew) as m:
            m.touch(0, PMD)
            m.write(5 * PAGE, page("m", 5))
            m.write(PMD + 7 * PAGE, page("m", 7))
            f.put(5 * PAGE, page("m", 5))
            f.put(PMD + 7 * PAGE, page("m", 7))
            wanted = bytearray(f.content)
            if after:
                after(wanted)
            if ended(failing.call(*change(f, m)), *errors):
                f.content = wanted
                f.is_one_of(wanted)
            else:
                f.is_one_of(f.content, wanted)
            holds()
            size = min(len(f.content), SIZE)
            same_bytes(m.read(0, size), f.content[:size], "the mapping")
            # Once more, with nothing failing.
            failing.number, number = 0, failing.number
            through = failing.through
            ended(failing.call(*change(f, m)), *errors)
            failing.number, failing.through = number, through
            holds("after a second time")
    sweep(t, once)


@case(fs=FS, timeout=600, spoils=ORPHANS)
def truncate(t):
    def cut(wanted):
        del wanted[PMD + 3 * PAGE + 100:]
    _changes(t, lambda f, m: (FTRUNCATE, f.fd, PMD + 3 * PAGE + 100), cut)


@case(fs=FS, timeout=600, spoils=ORPHANS)
def truncate_a_file_mapped_by_pages(t):
    def cut(wanted):
        del wanted[3 * PAGE + 100:]
    _changes(t, lambda f, m: (FTRUNCATE, f.fd, 3 * PAGE + 100), cut, skew=PAGE)


@case(fs=FS, timeout=600)
def punch_a_hole(t):
    start, length = 3 * PAGE + 100, 4 * PAGE

    def once(failing):
        with File(t) as f, Map(f.fd, SIZE) as m:
            m.touch(0, PMD)
            m.write(20 * PAGE, page("m", 20))
            f.put(20 * PAGE, page("m", 20))
            wanted = bytearray(f.content)
            wanted[start:start + length] = bytes(length)
            done = ended(failing.call(FALLOCATE, f.fd, posix.PUNCH_HOLE | posix.KEEP_SIZE, start,
                                      length))
            got = os.pread(f.fd, SIZE + 1, 0)
            same_bytes(got[:start] + got[start + length:],
                       f.content[:start] + f.content[start + length:], "around the hole")
            if done:
                same_bytes(got, wanted, "the file with its hole")
            # What was zeroed before the failure stays so.
            for at in range(start, start + length):
                check(got[at] in (0, f.content[at]), f"byte {at} is neither old nor zero")
            f.content = bytearray(got)
            holds()
            f.is_right("the file", m)
    sweep(t, once)


@case(fs=FS, timeout=600)
def collapse(t):
    def once(failing):
        with File(t) as f, Map(f.fd, SIZE) as m:
            m.touch(0, PMD)
            m.write(PMD + 7 * PAGE, page("m", 7))
            f.put(PMD + 7 * PAGE, page("m", 7))
            wanted = bytearray(f.content[PMD:])
            result = failing.call(FALLOCATE, f.fd, posix.COLLAPSE_RANGE, 0, PMD)
            if ended(result):
                f.is_one_of(wanted)
            else:
                # The blocks may be gone already, and what is behind them not moved yet.
                f.is_one_of(f.content, wanted, bytes(PMD) + bytes(f.content[PMD:]))
            holds()
            size = len(f.content)
            same_bytes(m.read(0, size), f.content, "the mapping")
    sweep(t, once)


@case(fs=FS, timeout=600)
def write_and_read(t):
    data = ctypes.create_string_buffer(pages("w", 600))
    room = ctypes.create_string_buffer(SIZE)

    def once(failing):
        with File(t, "unwritten") as f, Map(f.fd, SIZE) as m:
            m.touch(0, PMD)
            done = failing.call(PWRITE, f.fd, ctypes.addressof(data), 600 * PAGE, 100)
            written = failing.through
            if ended(done):
                f.put(100, pages("w", 600)[:done])
            holds()
            f.is_right("the file", m)
            done = failing.call(PREAD, f.fd, ctypes.addressof(room), SIZE, 0)
            if ended(done):
                same_bytes(room.raw[:done], f.content[:done], "what was read")
            failing.through = failing.through and written
    sweep(t, once)


@case(fs=FS, timeout=600)
def write_over_dirty_pages(t):
    data = ctypes.create_string_buffer(pages("w", 3))

    def once(failing):
        with File(t, "hole") as f, Map(f.fd, SIZE, skew=PAGE) as m:
            m.write(5 * PAGE, page("m", 5))
            f.put(5 * PAGE, page("m", 5))
            m.touch(0, 8 * PAGE)
            done = failing.call(PWRITE, f.fd, ctypes.addressof(data), 3 * PAGE, 4 * PAGE + 100)
            if ended(done):
                f.put(4 * PAGE + 100, pages("w", 3)[:done])
            holds()
            f.is_right("the file", m)
    sweep(t, once)


@case(fs=FS, timeout=600)
def fsync(t):
    _changes(t, lambda f, m: (FSYNC, f.fd))


@case(fs=FS, timeout=600)
def msync(t):
    _changes(t, lambda f, m: (MSYNC, m.address, SIZE, posix.MS_SYNC))


@case(fs=FS, timeout=600)
def munmap_of_a_part(t):
    def once(failing):
        with File(t) as f, Map(f.fd, SIZE) as m:
            m.write(5 * PAGE, page("m", 5))
            f.put(5 * PAGE, page("m", 5))
            ended(failing.call(MUNMAP, m.address + 3 * PAGE, PMD))
            holds()
            f.is_right()
    sweep(t, once)


@case(fs=FS, timeout=600)
def populate(t):
    def once(failing):
        with File(t, "unwritten") as f, Map(f.fd, SIZE, skew=PAGE) as m:
            result = failing.call(MADVISE, m.address, 8 * PAGE, posix.MADV_POPULATE_WRITE)
            ended(result, errno.EFAULT)
            holds()
            f.is_right("the file", m)
    sweep(t, once)


@case(fs=FS, timeout=600, spoils=ORPHANS)
def unlink_and_close(t):
    """The last name and the last user go."""
    def once(failing):
        f = File(t)
        with Map(f.fd, SIZE) as m:
            m.touch(write=True)
        path = path_argument(f.path)
        gone = ended(failing.call(UNLINK, ctypes.addressof(path)))
        unlinked = failing.through
        failing.call(CLOSE, f.fd)
        failing.through = failing.through and unlinked
        holds()
        if not gone:
            os.unlink(f.path)
    sweep(t, once)


