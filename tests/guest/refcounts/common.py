# SPDX-License-Identifier: GPL-2.0
"""What the cases of pages in use have in common."""

import os

from lib import posix
from lib.device import SlowDisk
from lib.posix import PAGE
from lib.task import Task

PINNED = 8 * PAGE


def start_transfer(m, offset, length, write):
    """A task that moves a piece of the mapping to or from the slow disk."""
    def go():
        disk = os.open(SlowDisk.PATH, os.O_RDWR | os.O_DIRECT)
        move = posix.pwrite_from if write else posix.pread_to
        return move(disk, m.address + offset, length, 0)

    task = Task(go, name="direct write" if write else "direct read")
    task.blocked_in("pwrite64" if write else "pread64")
    return task


def truncate_whole(_, fd):
    os.ftruncate(fd, 0)


def punch_start(_, fd):
    posix.fallocate(fd, posix.PUNCH_HOLE | posix.KEEP_SIZE, 0, 64 * PAGE)
