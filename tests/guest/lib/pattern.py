# SPDX-License-Identifier: GPL-2.0
"""Contents that tell where they belong."""

import random

from .posix import PAGE


def page(tag, number=0):
    """A page full of one 8-byte word: a letter and the page's number."""
    return f"{tag}{number:07d}".encode("ascii") * (PAGE // 8)


def pages(tag, count, first=0):
    return b"".join(page(tag, first + i) for i in range(count))


def noise(length, seed):
    return random.Random(seed).randbytes(length)


ZERO = bytes(PAGE)
