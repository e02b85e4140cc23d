# SPDX-License-Identifier: GPL-2.0
"""Files laid out so that blocks which come free are the next ones used."""

import os

from . import posix
from .check import Failure


def neighbours(t, size):
    """(left, right): two files, each in one extent, the one right behind the other on the device.

    When the right one gives its blocks back, growing the left one takes them.
    """
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
