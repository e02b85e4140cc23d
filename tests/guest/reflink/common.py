# SPDX-License-Identifier: GPL-2.0
"""What the cases of shared blocks have in common."""

import os

from lib import posix
from lib.check import check, same_bytes
from lib.pattern import file as _file, pages
from lib.posix import PAGE

XFS = ("xfs",)


def make_clones(t, size):
    """Two files that share all blocks."""
    one = _file(t, size, "one")
    two = t.open("two")
    posix.clone(one, two)
    check(shared_bytes(one) == shared_bytes(two) == size, "cloning shared nothing")
    return one, two


def shared_bytes(fd, start=0, end=1 << 60):
    return sum(min(e[0] + e[2], end) - max(e[0], start) for e in posix.extents(fd)
               if e[3] & posix.EXTENT_SHARED and e[0] < end and e[0] + e[2] > start)


def is_file(fd, count, what, **changed):
    """The file is as _file() made it but for the pages named like p3=content."""
    wanted = bytearray(pages("f", count))
    for key, value in changed.items():
        at = int(key[1:]) * PAGE
        wanted[at:at + len(value)] = value
    same_bytes(os.pread(fd, count * PAGE + 1, 0), wanted, what)
