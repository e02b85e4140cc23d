# SPDX-License-Identifier: GPL-2.0
"""Contents that tell where they belong."""

import os
import random

from .posix import PAGE, PMD


def page(tag, number=0):
    """A page full of one 8-byte word: a letter and the page's number."""
    return f"{tag}{number:07d}".encode("ascii") * (PAGE // 8)


def pages(tag, count, first=0):
    return b"".join(page(tag, first + i) for i in range(count))


def file(t, size, name="file"):
    """A file of the case's directory that holds pages of "f", and is on the device."""
    fd = t.open(name, allocate=size)
    for at in range(0, size, PMD):
        os.pwrite(fd, pages("f", min(PMD, size - at) // PAGE, at // PAGE), at)
    os.fsync(fd)
    return fd


def noise(length, seed):
    return random.Random(seed).randbytes(length)


ZERO = bytes(PAGE)
