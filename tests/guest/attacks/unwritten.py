# SPDX-License-Identifier: GPL-2.0
"""Users who load from blocks that were allocated and not written, while they are written."""

import os

from lib import posix
from lib.check import equal
from lib.mapping import Map
from lib.posix import PAGE
from lib.runner import case
from lib.task import Task

MIB = 1 << 20
LENGTH = 128 * MIB


@case(timeout=240)
def blocks_show_nothing_before_they_are_written(t):
    """A file's blocks have an earlier file's data until a write of 128 MiB converts them: loads
    meanwhile see zeroes or what is written, and nothing else."""
    fd = t.open()
    earlier, new = b"S" * MIB, b"n" * LENGTH
    seen = set()
    for _ in range(3):
        for at in range(0, LENGTH, MIB):
            os.pwrite(fd, earlier, at)
        # The blocks stay, with what is in them.
        posix.fallocate(fd, posix.ZERO_RANGE, 0, LENGTH)
        with Map(fd, LENGTH, prot=posix.PROT_READ) as m:
            writer = Task(lambda: os.pwrite(fd, new, 0))
            while not writer.done():
                m.advise(posix.MADV_DONTNEED)
                seen.update(m.load(LENGTH - (1 + 31 * spot) * PAGE)[0] for spot in range(64))
            equal(writer.result(), LENGTH, "written")
    equal(seen - {0, ord("n")}, set(), "bytes that were seen")
