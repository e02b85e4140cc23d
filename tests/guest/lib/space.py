# SPDX-License-Identifier: GPL-2.0
"""Files laid out so that blocks which come free are the next ones used, or pages that nobody has."""

import contextlib
import os

from . import posix
from .check import Failure, equal, same_bytes
from .mapping import Map
from .pattern import page, pages
from .posix import PAGE, PMD


def settle(t):
    """What files have given back can be had by others.

    ext4 has the blocks when its journal's thread is done with the commit, which those who wait for the
    commit may learn of a moment before. The thread is done when it makes the next one.
    """
    t.sync()
    os.utime(t.dir)
    t.sync()


def neighbours(t, size):
    """(left, right): two files, each in one extent, the one right behind the other on the device.

    When the right one gives its blocks back, growing the left one takes them: filesystems take the first
    that fit, and what earlier cases have given back is not to come free meanwhile before these.
    """
    settle(t)
    made = []
    for i in range(24):
        fd = t.open(f"neighbour{i}", allocate=size)
        extents = posix.extents(fd)
        if len(extents) == 1:
            made.append((extents[0][1], fd))
            for at, left in made:
                for behind, right in made:
                    if at + size == behind:
                        for _, other in made:
                            if other not in (left, right):
                                os.close(other)
                        return left, right
        else:
            os.close(fd)
    raise Failure("no two files of 24 lie side by side")


def overlap(one, two):
    """Bytes of the device that two lists of extents share."""
    return sum(max(0, min(a[1] + a[2], b[1] + b[2]) - max(a[1], b[1]))
               for a in one for b in two)


def free_blocks(path):
    return os.statvfs(path).f_bfree


@contextlib.contextmanager
def held_clone(directory):
    """A file of 4 MiB that shares all its blocks with a clone, and a page of whose first 2 MiB, which
    are one folio, is in a pipe: stores there have to wait, as the file gives up the folio for a copy.

    Its pages are pages("l").
    """
    fd, clone = (os.open(f"{directory}/{name}", os.O_RDWR | os.O_CREAT)
                 for name in ("file", "clone"))
    reader, writer = os.pipe()
    try:
        posix.fallocate(fd, 0, 0, 2 * PMD)
        os.pwrite(fd, pages("l", 2 * PMD // PAGE), 0)
        posix.clone(fd, clone)
        with Map(fd, PMD) as m:
            m.touch()
            equal(m.mapped_huge(), PMD, "bytes mapped by huge entries")
            m.splice(writer, PAGE)
        yield fd
        same_bytes(os.read(reader, PAGE), page("l", 1), "what comes out of the pipe")
    finally:
        for number in (clone, reader, writer):
            os.close(number)
