# SPDX-License-Identifier: GPL-2.0
"""Copies on write and freed blocks while a transfer uses the old pages."""

import os

from lib import posix
from lib.check import equal, same_bytes
from lib.device import SlowDisk
from lib.mapping import Map
from lib.pattern import page, pages
from lib.posix import PAGE, PMD
from lib.runner import case
from lib.task import Task
from lib.trace import Pages

from .common import XFS, is_file, make_clones


def _copied_under_transfer(t, size, skew, offset):
    """pwrite() gives the file its own copy while a direct write reads the shared one."""
    state, slow = Pages(), SlowDisk()
    one, two = make_clones(t, size)
    count = size // PAGE
    with Map(two, size, skew=skew) as m:
        m.touch(0, size)
        pfns = m.pfns(offset, 4 * PAGE)
        slow.hold()

        def transfer():
            return posix.pwrite_from(slow.open(), m.address + offset, 4 * PAGE, 0)

        writer = Task(transfer, name="direct write")
        writer.blocked_in("pwrite64")
        first = offset // PAGE

        def overwrite():
            return os.pwrite(two, pages("w", 4, first), offset)

        writing = Task(overwrite, name="pwrite")
        waits = writing.waits_in("pwrite64")
        if waits:
            t.note("pwrite waits for the transfer")
        else:
            equal(writing.result(), 4 * PAGE, "bytes written to the file")
            same_bytes(m.read(offset, 4 * PAGE), pages("w", 4, first), "mapping after pwrite")

        # A page that has not been copied. In a huge folio it is held as well: that may wait.
        def look():
            same_bytes(m.read(offset + 4 * PAGE, PAGE), page("f", first + 4), "the next page")

        looking = Task(look)
        if not waits and skew:
            looking.result()
        elif not waits and not looking.join(1):
            t.note("a page of the folio that is held was not to be had meanwhile")
        slow.release()
        looking.result()
        equal(writer.result(), 4 * PAGE, "bytes of the direct write")
        equal(writing.result(), 4 * PAGE, "bytes written to the file")
        same_bytes(slow.content(4 * PAGE), pages("f", 4, first), "what reached the disk")
        same_bytes(m.read(offset, 5 * PAGE), pages("w", 4, first) + page("f", first + 4),
                   "mapping afterwards")
    is_file(one, count, "first file")
    is_file(two, count, "second file", **{f"p{first}": pages("w", 4, first)})
    state.check_idle(pfns, "afterwards")
    with Map(one, size, skew=skew) as m:
        same_bytes(m.read(0, size), pages("f", count), "the first file, mapped afterwards")
        m.write(offset, page("z", 1))
        same_bytes(os.pread(one, PAGE, offset), page("z", 1), "stored afterwards")
    os.ftruncate(one, 0)
    os.ftruncate(two, 0)
    state.check_free(pfns, "after truncating both")


@case(fs=XFS, quick=False)
def copy_on_write_under_transfer(t):
    _copied_under_transfer(t, 32 * PAGE, PAGE, 3 * PAGE)


@case(fs=XFS)
def copy_on_write_under_transfer_from_huge_page(t):
    _copied_under_transfer(t, PMD, 0, 30 * PAGE)


@case(fs=XFS, quick=False)
def block_freed_under_transfer_waits(t):
    """The copy leaves the old block with one owner; when that goes too, the transfer counts."""
    slow = SlowDisk()
    one, two = make_clones(t, 16 * PAGE)
    with Map(two, 16 * PAGE, skew=PAGE) as m:
        m.touch()
        slow.hold()
        writer = Task(lambda: posix.pwrite_from(slow.open(), m.address, 4 * PAGE, 0),
                      name="direct write")
        writer.blocked_in("pwrite64")
        waiter = Task(os.ftruncate, two, 0)
        waiter.blocked_in("ftruncate")
        slow.release()
        equal(writer.result(), 4 * PAGE, "bytes of the direct write")
        waiter.result()
        same_bytes(slow.content(4 * PAGE), pages("f", 4), "what reached the disk")
    is_file(one, 16, "first file")
