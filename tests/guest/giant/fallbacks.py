# SPDX-License-Identifier: GPL-2.0
"""Why a fault is not served by 1 GiB, and smaller faults inside such an entry."""

import os

from lib import device, gib, posix
from lib.check import check, equal, raises
from lib.device import some
from lib.gib import GibMap, PAGES
from lib.mapping import Map
from lib.posix import GIB, PAGE, PMD
from lib.runner import case
from lib.task import Task
from lib.trace import Flushes, Pages

from .common import (
    GIANT, HALF, LAST, MIDDLE, SAMPLE, SPOTS, XFS, check_folio_free, check_folio_idle, clock,
    fill_pages, moved_only,
)


def _again(t):
    """Huge faults that are tried again when a fault comes down to a page.

    The core then gives up its lock of the VMA alone if that has no map_pages, as ext4's, and starts
    over with all of the address space locked.
    """
    return 1 if t.variant.kind == "ext4" else 0


@case(alone=True, **GIANT)
def hole_inside(t):
    """What is around the hole is mapped by 2 MiB, what is beside it by pages."""
    fd = gib.borrow(t)
    hole = 350 * 512 + 100
    posix.fallocate(fd, posix.PUNCH_HOLE | posix.KEEP_SIZE, hole * PAGE, 16 * PAGE)
    stats = t.stats()
    with GibMap(fd) as m:
        m.touch(5 * PAGE, 1)
        moved_only(stats, read_pmd=1, fallback_extent=1)
        m.touch((hole - 1) * PAGE, 1)
        again = _again(t)
        moved_only(stats, read_pmd=1, read_pte=1, fallback_extent=2 + again)
        m.touch(hole * PAGE, 1)
        moved_only(stats, read_pmd=1, read_pte=1, zero_pte=1, fallback_extent=2 + again)
        gib.expect(m, 1, 0, hole)
        gib.expect_zero(m, hole, 16, every=1)
        gib.expect(m, 1, hole + 16, PAGES - hole - 16)
        stats.expect(read_pud=0, read_pmd=511, read_pte=496, zero_pte=16)
        # Filled, in whatever place: stores to the hole arrive.
        t.sync()
        gib.store(m, 1, hole, 16)
        gib.expect_read(fd, 1, hole - 1, 18)
    # Nobody keeps the small entries: with the hole filled, all is one again if the place is right.
    gib.forget_entries(fd)
    if gib.in_place(t, fd):
        stats = t.stats()
        with GibMap(fd) as m:
            gib.expect(m, 1)
            moved_only(stats, read_pud=1)
    else:
        t.note("the hole was filled from elsewhere")


@case(**GIANT)
def hole_at_the_beginning(t):
    fd = gib.borrow(t)
    posix.fallocate(fd, posix.PUNCH_HOLE | posix.KEEP_SIZE, 0, 2 * PMD)
    stats = t.stats()
    with GibMap(fd) as m:
        m.touch(HALF, 1)
        moved_only(stats, read_pmd=1, fallback_hole=1)
        gib.expect_zero(m, 0, 1024)
        moved_only(stats, read_pmd=1, zero_pmd=2, fallback_hole=1)
        gib.expect(m, 1, 1024, PAGES - 1024)
    fill_pages(t, fd, 0, 1024)


def _allocated(fd):
    return os.fstat(fd).st_blocks * 512


@case(**GIANT)
def stores_to_sparse_files_allocate_2_mib(t):
    """What cannot be mapped by 1 GiB yet is not allocated because one byte is stored."""
    fd = t.open("sparse")
    os.ftruncate(fd, GIB)
    # How to ask a filesystem that shares blocks is known once a file of it was read.
    os.pread(fd, 1, 0)
    stats = t.stats()
    with GibMap(fd) as m:
        before = _allocated(fd)
        gib.store(m, 2, MIDDLE + 100, 1)
        stats.expect(write_pud=0, fallback_hole=1)
        check(_allocated(fd) - before <= PMD + 16 * PAGE, f"{_allocated(fd) - before} bytes for a page")
        gib.expect_zero(m, MIDDLE, 100, every=1)
        gib.expect(m, 2, MIDDLE + 100, 1)
    os.close(fd)


@case(**GIANT)
def stores_beside_a_hole_do_not_fill_it(t):
    fd = gib.borrow(t)
    posix.fallocate(fd, posix.PUNCH_HOLE | posix.KEEP_SIZE, HALF, PMD)
    before = _allocated(fd)
    stats = t.stats()
    with GibMap(fd) as m:
        gib.store(m, 2, 5, 1)
        stats.expect(write_pud=0, write_pmd=1)
    gib.expect_read(fd, 2, 5, 1)
    equal(_allocated(fd), before, "bytes of the file after a store beside its hole")
    gib.write(fd, 1, 5, 1)
    fill_pages(t, fd, MIDDLE, PMD // PAGE)


@case(**XFS)
def unwritten_blocks_out_of_place_are_left_unwritten(t):
    """Blocks that can never be mapped by 1 GiB are not zeroed and written because one byte is stored."""
    fd = t.open("unwritten")
    posix.fallocate(fd, 0, 0, 8 * PMD)
    os.ftruncate(fd, GIB)
    os.pread(fd, 1, 0)
    with GibMap(fd) as m:
        gib.store(m, 2, 5, 1)
        gib.expect_zero(m, 0, 5, every=1)
    written = sum(e[2] for e in posix.extents(fd) if not e[3] & posix.EXTENT_UNWRITTEN)
    check(written <= PMD, f"{written} bytes are written after a store of a page")
    os.close(fd)


@case(**GIANT)
def small_entry_in_the_way(t):
    fd = gib.borrow(t)
    for skew, order in ((PAGE, "pte"), (PMD, "pmd")):
        stats = t.stats()
        with GibMap(fd, skew=skew) as small, GibMap(fd) as m:
            small.touch(HALF + 7 * PAGE, 1, write=True)
            stats.expect(**{f"write_{order}": 1, "fallback_conflict": 0})
            gib.store(m, 2, 5, 1)
            stats.expect(write_pud=0, read_pud=0, fallback_conflict=some)
            gib.expect(small, 2, 5, 1)
            gib.store(m, 3, MIDDLE + 7, 1)
            gib.expect(small, 3, MIDDLE + 7, 1)
        gib.forget_entries(fd)
        stats = t.stats()
        with GibMap(fd) as m:
            gib.expect(m, 3, MIDDLE + 7, 1)
            moved_only(stats, read_pud=1)
        gib.forget_entries(fd)


@case(**GIANT)
def misaligned(t):
    """File offset and address have to agree."""
    fd = gib.borrow(t)
    os.ftruncate(fd, GIB + PMD)
    stats = t.stats()
    with GibMap(fd, offset=PMD) as m:
        m.touch(HALF, 1, write=True)
        stats.expect(read_pud=0, write_pud=0, fallback_alignment=some, write_pmd=1)
        gib.expect(m, 1, 0, PAGES - 512, number=512)
    os.ftruncate(fd, GIB)
    for skew, order in ((PMD, "pmd"), (3 * PAGE, "pte")):
        stats = t.stats()
        with GibMap(fd, skew=skew) as m:
            m.touch(HALF, 1)
            stats.expect(read_pud=0, fallback_alignment=some, **{f"read_{order}": 1})
            gib.expect(m, 1, MIDDLE - 600, 1200)
        gib.forget_entries(fd)


@case(**GIANT)
def short_vma(t):
    fd = gib.borrow(t)
    for length, offset, skew in ((GIB - PAGE, 0, 0), (GIB - PMD, PMD, PMD)):
        stats = t.stats()
        with GibMap(fd, length, offset=offset, skew=skew) as m:
            m.touch(HALF, 1)
            stats.expect(read_pud=0, fallback_vma=1, read_pmd=1)
            gib.expect(m, 1, MIDDLE, 600, number=MIDDLE + offset // PAGE)
        gib.forget_entries(fd)


@case(**GIANT)
def end_of_file(t):
    """The file has to reach into the last page of the GiB; the mapping may reach behind it."""
    fd = gib.borrow(t)
    os.ftruncate(fd, GIB - 100)
    stats = t.stats()
    with GibMap(fd, 2 * GIB) as m:
        gib.store(m, 2, MIDDLE, 1)
        moved_only(stats, write_pud=1)
        gib.expect(m, 1, MIDDLE + 1, MIDDLE - 2)
        m.load_ok(GIB - 100, 0, "the first byte behind the end")
        m.bus_error(GIB, "the first page behind the end", write=True)
        m.bus_error(2 * GIB - 1, "far behind the end")
        moved_only(stats, write_pud=1, **({"fault_errors": stats.since()["fault_errors"]}
                                     if stats.known else {}))
    os.ftruncate(fd, GIB - PAGE)
    stats = t.stats()
    with GibMap(fd) as m:
        m.touch(HALF, 1)
        moved_only(stats, read_pmd=1, fallback_eof=1)
        m.bus_error(GIB - PAGE, "the page behind the end")
        os.ftruncate(fd, GIB)
        m.load_ok(GIB - 1, 0, "the last byte of the hole")
    fill_pages(t, fd, LAST, 1)


@case(**GIANT)
def nohugepage(t):
    fd = gib.borrow(t)
    stats = t.stats()
    with GibMap(fd) as m:
        m.advise(posix.MADV_NOHUGEPAGE)
        m.touch(HALF, 1)
        moved_only(stats, read_pte=1)
        gib.expect(m, 1, MIDDLE, 1)


@case(**GIANT)
def largest_order_is_set(t):
    """The device's max_order, from one mapping to the next."""
    t.need_adopted()
    fd = gib.borrow(t)
    switch = f"{device.CONFIG}/{t.device}/max_order"
    equal(device.read(switch), "pud", "max_order")
    try:
        with GibMap(fd) as m:
            gib.store(m, 1, MIDDLE, 1)
            device.write(switch, "pmd")
            equal(device.read(switch), "pmd", "max_order")
            # What is mapped stays, what comes next obeys.
            stats = t.stats()
            gib.expect(m, 1)
            moved_only(stats)
            with GibMap(fd) as other:
                gib.store(other, 2, MIDDLE, 1)
                stats.expect(write_pud=0, fallback_max_order=some, write_pte=1)
                gib.expect(m, 2, MIDDLE, 1)
        gib.forget_entries(fd)
        stats = t.stats()
        with GibMap(fd) as m:
            gib.expect(m, 2, MIDDLE, 1)
            moved_only(stats, read_pmd=1, fallback_max_order=1)
        device.write(switch, "pte")
        gib.forget_entries(fd)
        stats = t.stats()
        with GibMap(fd) as m:
            gib.expect(m, 2, MIDDLE, 1)
            moved_only(stats, read_pte=1, fallback_max_order=2 + _again(t))
        raises(22, "an order that does not exist", device.write, switch, "huge")
        equal(device.read(switch), "pte", "max_order")
        device.write(switch, "pud")
        stats = t.stats()
        with GibMap(fd) as m:
            gib.expect(m, 1, 0, 512)
            stats.expect(read_pud=0, fallback_conflict=some, fallback_max_order=0)
        gib.forget_entries(fd)
        stats = t.stats()
        with GibMap(fd) as m:
            gib.expect(m, 1, 0, 512)
            moved_only(stats, read_pud=1)
    finally:
        device.write(switch, "pud")


@case(**GIANT)
def small_faults_find_their_page(t):
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    with GibMap(fd) as m, GibMap(fd, skew=PMD) as two, GibMap(fd, skew=PAGE) as one, \
            Map(fd, 4 * PMD, offset=HALF + PMD) as part, \
            Map(fd, PAGE, offset=GIB - PAGE) as single:
        gib.store(m, 1, 5, 1)
        stats = t.stats()
        for spot in SPOTS:
            for small in (two, one):
                small.touch(spot * PAGE, 1)
                equal(small.pfn(spot * PAGE), first + spot, f"frame of page {spot}")
                check(not small.store(spot * PAGE + 4000, 0xAB).signal, "the store failed")
                m.load_ok(spot * PAGE + 4000, 0xAB, "stored through a small entry")
                gib.store(m, 1, spot, 1)
                gib.expect(small, 1, spot, 1, every=1)
        for at in (0, 511, 512, 2047):
            part.touch(at * PAGE, 1)
            equal(part.pfn(at * PAGE), first + MIDDLE + 512 + at, "frame in the part")
        single.touch(write=True)
        equal(single.pfn(0), first + LAST, "frame of the last page")
        stats.expect(read_pud=0, write_pud=0)
        gib.expect(m, 1)
        if t.adopted:
            check(Pages().refcounts([first])[0] > 2 * len(SPOTS),
                  "small mappings hold no references to the folio")
        os.fsync(fd)
        # All of them were write-protected: a store by any is noticed.
        with Flushes() as flushes:
            for small, spot in ((one, 512), (two, MIDDLE), (part, MIDDLE + 512)):
                flushes.clear()
                if small is part:
                    small.store(7, 1)
                else:
                    gib.store(small, 1, spot, 1)
                since = clock()
                os.fsync(fd)
                flushes.check_flushed([first + spot], since, "stored through a small entry")
    check_folio_idle(first, "after munmap")


@case(**GIANT)
def race_for_the_first_fault(t):
    """Processes with mappings of every kind fault at once: they see one file."""
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    state = Pages()
    skews = [0, 0, PMD, PAGE]
    for number in range(3 if t.settings.quick else 8):
        gate, ready = os.pipe(), os.pipe()

        def racer(mine, number=number, gate=gate, ready=ready):
            with GibMap(fd, skew=skews[mine]) as m:
                os.write(ready[1], b"r")
                os.read(gate[0], 1)
                spots = [SPOTS[(mine + i) % len(SPOTS)] for i in range(len(SPOTS))]
                for spot in spots:
                    m.store(spot * PAGE + 8 * mine, number + 1)

        tasks = [Task(racer, mine) for mine in range(4)]
        for _ in tasks:
            equal(os.read(ready[0], 1), b"r", "a racer's sign")
        os.write(gate[1], b"1234")
        for task in tasks:
            task.result()
        for spot in SPOTS:
            got = os.pread(fd, 32, spot * PAGE)
            equal([got[8 * i] for i in range(4)], [number + 1] * 4, f"page {spot}, round {number}")
        state.check_idle([first + at for at in SAMPLE[:40]], "after the race")
        gib.forget_entries(fd)
        for end in (*gate, *ready):
            os.close(end)
    check_folio_free(first, "afterwards")
