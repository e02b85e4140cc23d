# SPDX-License-Identifier: GPL-2.0
"""What maps 1 GiB."""

import os
import resource

from lib import gib, posix
from lib.check import check, equal, same_bytes
from lib.gib import GibMap, PAGES
from lib.posix import GIB, PAGE, PMD
from lib.runner import case
from lib.task import Task
from lib.trace import Flushes, Pages

from .common import (
    EXT4, GIANT, HALF, LAST, MIDDLE, XFS, check_folio_free, check_folio_idle, check_head,
    flushed_once, moved_only, process_status,
)


def _minor_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@case(**GIANT)
def one_fault_maps_all(t):
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    tables, resident, stats = process_status("VmPTE"), process_status("RssFile"), t.stats()
    with GibMap(fd) as m:
        check(not m.store(HALF + 5, 0x42).signal, "the store failed")
        moved_only(stats, write_pud=1)
        check(0 <= process_status("RssFile") - resident - GIB < 16 * PMD,
              f"{process_status('RssFile') - resident} bytes of files are resident")
        check_head(t, first, 1, "mapped once")
        before = _minor_faults()
        m.touch(write=True)
        check(_minor_faults() - before < 50, f"{_minor_faults() - before} faults afterwards")
        check(process_status("VmPTE") - tables <= 8 * PAGE,
              f"page tables grew by {process_status('VmPTE') - tables} bytes")
        moved_only(stats, write_pud=1)
    check(abs(process_status("RssFile") - resident) < 16 * PMD,
          f"{process_status('RssFile') - resident} bytes are resident after munmap")
    check_folio_idle(first, "after munmap")
    same_bytes(os.pread(fd, 1, HALF + 5), b"\x42", "pread")
    gib.forget_entries(fd)
    check_folio_free(first, "with no entry in the file's tree")


@case(**GIANT)
def one_load_maps_all(t):
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    stats = t.stats()
    with GibMap(fd) as m:
        m.touch(GIB - PAGE, 1)
        moved_only(stats, read_pud=1)
        gib.expect(m, 1)
        moved_only(stats, read_pud=1)
        # What is mapped for reading is made writable as it is.
        check(not m.store(3 * PAGE, 7).signal, "the store failed")
        moved_only(stats, read_pud=1, mkwrite_pud=1)
        m.touch(write=True, step=PMD)
        moved_only(stats, read_pud=1, mkwrite_pud=1)
        check_head(t, first, 1, "mapped once")
    same_bytes(os.pread(fd, 1, 3 * PAGE), b"\7", "pread")


@case(**GIANT)
def all_data_both_ways(t):
    """Each word of the GiB: written by write and loaded, stored and read by read."""
    fd = gib.borrow(t)
    stats = t.stats()
    with GibMap(fd) as m:
        gib.expect(m, 1, every=1)
        moved_only(stats, read_pud=1)
        gib.store(m, 2)
        moved_only(stats, read_pud=1, mkwrite_pud=1)
        gib.expect_read(fd, 2)
        gib.write(fd, 1)
        gib.expect(m, 1)
        moved_only(stats, read_pud=1, mkwrite_pud=1)


@case(**XFS)
def unwritten_blocks_are_zeroed(t):
    """What another file has left in the blocks is never seen, and a store makes them written."""
    fd = gib.file(t)
    first = gib.frame(t, fd)
    gib.take_rest(t)
    os.ftruncate(fd, 0)
    check(gib.allocate(t, fd), "the blocks did not come free")
    equal(gib.frame(t, fd), first, "the test means nothing: the blocks' place")
    stats = t.stats()
    with GibMap(fd) as m:
        gib.store(m, 2, MIDDLE, 1)
        moved_only(stats, write_pud=1)
        gib.expect_zero(m, 0, MIDDLE)
        gib.expect_zero(m, MIDDLE + 1, PAGES - MIDDLE - 1)
    check(not any(e[3] & posix.EXTENT_UNWRITTEN for e in posix.extents(fd)), "unwritten extents")
    os.close(fd)
    t.fs.remount()
    fd = t.open()
    gib.expect_read(fd, 2, MIDDLE, 1)
    gib.expect_read_zero(fd, 0, 64)


@case(**GIANT)
def unwritten_blocks_read_as_zeroes(t):
    """There are no zeroes of 1 GiB: blocks that were never written are mapped by 2 MiB."""
    fd = gib.file(t, written=False)
    stats = t.stats()
    with GibMap(fd) as m:
        m.touch(step=8 * PMD)
        moved_only(stats, zero_pmd=64, fallback_hole=1)
        gib.expect_zero(m, 0, 512)
        # A table is there now; stores are served all the same.
        gib.store(m, 2, 700, 1)
        gib.expect_zero(m, 512, 188)
        gib.expect(m, 2, 700, 1)
        gib.expect_zero(m, 701, 323)
        stats.expect(write_pud=0)
    gib.expect_read(fd, 2, 700, 1)


@case(**EXT4)
def unwritten_blocks_are_small_in_a_transaction(t):
    """With a transaction open around the fault, blocks cannot all be made written in it."""
    fd = gib.file(t, written=False)
    stats = t.stats()
    with GibMap(fd) as m:
        gib.store(m, 2, MIDDLE, 1)
        moved_only(stats, write_pmd=1, fallback_extent=1)
        gib.expect_zero(m, MIDDLE + 1, 511)
        gib.store(m, 2, 5, 1)
    gib.expect_read(fd, 2, 5, 1)


@case(**GIANT)
def second_gigabyte(t):
    """Not the first of its file: the folio knows its place."""
    fd = gib.borrow(t)
    posix.fallocate(fd, posix.INSERT_RANGE, 0, GIB)
    equal(os.fstat(fd).st_size, 2 * GIB, "size")
    first = gib.frame(t, fd, GIB)
    stats = t.stats()
    with GibMap(fd, 2 * GIB) as m:
        m.touch(GIB + 5, 1)
        moved_only(stats, read_pud=1)
        if t.adopted:
            equal(Pages().words([first], Pages.SHARE), [(PAGES,)], "index of the folio")
        gib.expect(m, 1, PAGES, PAGES, number=0)
        m.touch(77 * PAGE, 1)
        moved_only(stats, read_pud=1, fallback_hole=1, zero_pmd=1)
        gib.expect_zero(m, 0, 512)
        gib.store(m, 2, PAGES + MIDDLE, 1)
        moved_only(stats, read_pud=1, fallback_hole=1, zero_pmd=1, mkwrite_pud=1)
        with GibMap(fd, offset=GIB) as same, GibMap(fd, skew=PAGE, offset=GIB) as small:
            gib.expect(same, 1, 0, MIDDLE)
            gib.expect(same, 2, MIDDLE, 1, number=PAGES + MIDDLE)
            small.touch((MIDDLE + 5) * PAGE, 1)
            equal(small.pfn((MIDDLE + 5) * PAGE), first + MIDDLE + 5, "frame")
            stats.expect(read_pud=2)
        with Flushes() as flushes:
            os.fsync(fd)
            flushed_once(flushes, first, "fsync")
        gib.store(m, 1, PAGES + MIDDLE, 1)
        posix.fallocate(fd, posix.COLLAPSE_RANGE, 0, GIB)
        check_folio_free(first, "after the file has been moved")
        gib.store(m, 2, 5, 1)
        stats.expect(write_pud=1)
        gib.expect(m, 1, 6, MIDDLE - 6)
        m.bus_error(GIB, "behind the end")


@case(**GIANT)
def populated_at_once(t):
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    stats = t.stats()
    with GibMap(fd, flags=posix.MAP_SHARED | posix.MAP_POPULATE):
        moved_only(stats, read_pud=1)
        check_head(t, first, 1, "populated")
    stats = t.stats()
    with GibMap(fd) as m:
        m.advise(posix.MADV_POPULATE_READ)
        moved_only(stats, read_pud=1)
        m.advise(posix.MADV_POPULATE_WRITE)
        moved_only(stats, read_pud=1, mkwrite_pud=1)
        gib.expect(m, 1)
    check_head(t, first, 0, "unmapped")


@case(**GIANT)
def read_only_file(t):
    """Who may only read the file can have it in one entry as well."""
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    stats = t.stats()
    reader = os.open(t.path(), os.O_RDONLY)
    with GibMap(reader, prot=posix.PROT_READ) as m:
        m.touch(HALF, 1)
        moved_only(stats, read_pud=1)
        gib.expect(m, 1)
        equal(Task(lambda: gib.expect(m, 1, every=4099)).result(), None, "the child")
        check_head(t, first, 1, "after the child has ended")
    check_head(t, first, 0, "unmapped")


@case(**GIANT)
def two_processes(t):
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    go, done = os.pipe(), os.pipe()
    with GibMap(fd) as m:
        gib.store(m, 2, MIDDLE, 1)

        def other():
            stats = t.stats()
            with GibMap(fd) as mine:
                gib.expect(mine, 2, MIDDLE, 1)
                moved_only(stats, read_pud=1)
                gib.store(mine, 3, LAST, 1)
                moved_only(stats, read_pud=1, mkwrite_pud=1)
                os.write(done[1], b"1")
                os.read(go[0], 1)
                gib.expect(mine, 4, LAST, 1)
                gib.expect(mine, 1, MIDDLE + 1, MIDDLE - 2)
            return "well"

        task = Task(other)
        equal(os.read(done[0], 1), b"1", "the other process")
        check_head(t, first, 2, "mapped by two processes")
        gib.expect(m, 3, LAST, 1)
        gib.store(m, 4, LAST, 1)
        os.write(go[1], b"1")
        equal(task.result(), "well", "the other process")
        check_head(t, first, 1, "the other process has ended")
    check_folio_idle(first, "after munmap")
