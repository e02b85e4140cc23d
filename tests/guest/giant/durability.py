# SPDX-License-Identifier: GPL-2.0
"""What fsync, unmounting and MAP_SYNC flush of a folio of 1 GiB."""

import os
import time

from lib import gib, posix
from lib.check import check, equal
from lib.gib import GibMap, PAGES
from lib.native import Writer
from lib.posix import GIB, PAGE
from lib.runner import case
from lib.trace import Flushes

from .common import (
    EXT4, GIANT, HALF, LAST, MIDDLE, SPOTS, XFS, check_folio_free, clock, flushed_once, moved_only,
    write_spots,
)

SYNC = posix.MAP_SHARED_VALIDATE | posix.MAP_SYNC


@case(**GIANT)
def fsync_flushes_all_once(t):
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    with GibMap(fd) as m, GibMap(fd) as other, Flushes() as flushes:
        def flushed(how, *args):
            flushes.clear()
            how(*args)
            return flushes.of(range(first, first + PAGES))

        equal(flushed(os.fsync, fd), [], "flushes of a file that is not mapped")
        m.touch(5 * PAGE, 1)
        equal(flushed(os.fsync, fd), [], "flushes of what was only read")
        gib.store(m, 2, MIDDLE, 1)
        other.touch(HALF, 1)
        stats = t.stats()
        flushed(os.fsync, fd)
        flushed_once(flushes, first, "fsync")
        stats.expect(writeback_entries=1, writeback_bytes=GIB)
        equal(flushed(os.fsync, fd), [], "flushes by a second fsync")
        gib.expect(m, 2, MIDDLE, 1)
        equal(flushed(os.fsync, fd), [], "flushes after a load")
        # A store is noticed again, whoever makes it.
        for mapping, spot in ((m, 0), (other, LAST)):
            stats = t.stats()
            gib.store(mapping, 3, spot, 1)
            moved = stats.since()
            if t.adopted:
                equal(moved["write_pud"] + moved["mkwrite_pud"], 1, "write faults after fsync")
            flushed(os.fsync, fd)
            flushed_once(flushes, first, "fsync after another store")
        # msync of a page, sync of everything; what is not mapped any more.
        gib.store(m, 4, MIDDLE, 1)
        flushed(m.sync, HALF, PAGE)
        flushed_once(flushes, first, "msync of the page")
        gib.store(m, 5, MIDDLE, 1)
        m.unmap()
        other.unmap()
        flushed(t.sync)
        flushed_once(flushes, first, "syncfs after munmap")
    gib.expect_read(fd, 3, 0, 1)
    gib.expect_read(fd, 5, MIDDLE, 1)


@case(**GIANT)
def stores_race_with_fsync(t):
    """Whenever a store comes, it is flushed by a later fsync, or faults again."""
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    with GibMap(fd) as m, Flushes() as flushes:
        writer = Writer(m.address + GIB - 8 * PAGE)
        rounds, end = 0, time.monotonic() + (0.5 if t.settings.quick else 1)
        while time.monotonic() < end or rounds < 2 or writer.stores() <= 16:
            flushes.clear()
            os.fsync(fd)
            rounds += 1
        writer.await_stores()
        stores, last = writer.stop(), writer.last()
        os.fsync(fd)
        flushes.check_flushed([first + LAST - 7 + i for i in range(8)], last,
                              f"after {stores} stores and {rounds} rounds")


@case(**GIANT)
def umount_flushes(t):
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    with Flushes() as flushes:
        with GibMap(fd) as m:
            write_spots(m)
            since = clock()
        os.close(fd)
        t.fs.umount()
        flushes.check_flushed([first + at for at in SPOTS], since, "umount")
        t.fs.mount()
    check_folio_free(first, "after umount")
    fd = t.open()
    for spot in SPOTS:
        gib.expect_read(fd, 2, spot, 1)


def _sync_store(t, written):
    """A store through MAP_SYNC to blocks that the log does not have yet outlives a power cut."""
    fd = t.open()
    check(gib.allocate(t, fd), "no room")
    os.fsync(fd)
    t.sync()
    if written:
        gib.write(fd, 1)
    stats = t.stats()
    with GibMap(fd, flags=SYNC) as m:
        gib.store(m, 2, MIDDLE, 1)
        moved_only(stats, sync_faults=1, write_pud=1)
        write_spots(m)
        moved_only(stats, sync_faults=1, write_pud=1)
        posix.shut_down(t.fs.mount_point)
    os.close(fd)
    t.fs.remount()
    fd = t.open()
    equal(os.fstat(fd).st_size, GIB, "size")
    check(not any(e[3] & posix.EXTENT_UNWRITTEN for e in posix.extents(fd)),
          f"blocks are unwritten after the power cut: {posix.extents(fd)}")
    for spot in SPOTS:
        gib.expect_read(fd, 2, spot, 1)
    if written:
        gib.expect_read(fd, 1, MIDDLE + 100, 64)
    else:
        gib.expect_read_zero(fd, MIDDLE + 100, 64)


@case(spoils=True, **EXT4)
def synchronous_store_is_durable(t):
    _sync_store(t, True)


@case(spoils=True, **XFS)
def synchronous_store_to_unwritten_blocks_is_durable(t):
    _sync_store(t, False)


@case(**GIANT)
def synchronous_store_is_dirty(t):
    """fsync flushes what a synchronous fault has mapped; once all is in the log, none is needed."""
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    with GibMap(fd, flags=SYNC) as m, Flushes() as flushes:
        # Something of the file that the log does not have.
        gib.forget_entries(fd)
        stats = t.stats()
        gib.store(m, 2, 5, 1)
        moved_only(stats, sync_faults=1, write_pud=1)
        gib.store(m, 2, LAST, 1)
        moved_only(stats, sync_faults=1, write_pud=1)
        flushes.clear()
        os.fsync(fd)
        flushed_once(flushes, first, "fsync")
        stats = t.stats()
        gib.store(m, 3, 6, 1)
        moved_only(stats, write_pud=1)
        # A store where something is mapped for reading, and by another way of mapping.
        gib.forget_entries(fd)
        m.touch(HALF, 1)
        stats = t.stats()
        gib.store(m, 3, 7, 1)
        moved_only(stats, sync_faults=1, mkwrite_pud=1)
        flushes.clear()
        os.fsync(fd)
        flushed_once(flushes, first, "fsync after a load and a store")
    for spot, tag in ((5, 2), (6, 3), (7, 3), (LAST, 2)):
        gib.expect_read(fd, tag, spot, 1)
