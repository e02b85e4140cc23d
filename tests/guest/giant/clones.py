# SPDX-License-Identifier: GPL-2.0
"""Files that share blocks and are mapped by 1 GiB."""

import os
import time

from lib import gib, posix
from lib.check import check, equal, same_bytes
from lib.device import some
from lib.gib import GibMap, PAGES
from lib.posix import PAGE, PMD
from lib.runner import case
from lib.task import Task
from lib.trace import Flushes, Pages

from .common import (
    HALF, LAST, MIDDLE, SPOTS, XFS, check_folio_free, check_head, clock, moved_only, write_spots,
)


@case(**XFS)
def clone_of_a_dirty_file(t):
    """Two files, one GiB: both are mapped by one entry, and a store to one leaves the other."""
    fd, copy = gib.borrow(t), t.open("copy")
    first = gib.frame(t, fd)
    with GibMap(fd) as m, GibMap(copy) as c, Flushes() as flushes:
        write_spots(m)
        since = clock()
        posix.clone(fd, copy)
        flushes.check_flushed([first + at for at in SPOTS], since, "clone")
        equal(gib.frame(t, copy), first, "the copy's place")
        stats = t.stats()
        m.touch(HALF, 1)
        c.touch(HALF, 1)
        moved_only(stats, read_pud=2)
        if t.adopted:
            (mapping, share), = Pages().words([first], Pages.MAPPING, Pages.SHARE)
            equal((mapping, share), (0, 2), "(owner, share count) of the shared folio")
            check_head(t, first, 2, "mapped by two files")
        gib.expect(m, 1, other=2)
        gib.expect(c, 1, other=2)
        # By small pages, so that only those are copied.
        with GibMap(copy, skew=PAGE) as small:
            for at in (0, MIDDLE, LAST):
                gib.store(small, 3, at, 1)
                gib.expect(m, 2, at, 1)
                gib.expect(c, 3, at, 1)
                gib.expect_read(fd, 2, at, 1)
                gib.expect_read(copy, 3, at, 1)
        if stats.known:
            check(3 <= stats.since()["cow_pages"] <= 3 * 512, "pages copied")
        gib.expect(m, 1, other=2)
        gib.expect(c, 1, 1, MIDDLE - 1, other=2)
        gib.expect(c, 1, MIDDLE + 1, MIDDLE - 2, other=2)
        os.ftruncate(copy, 0)
        c.bus_error(0, "the copy that was cut")
        gib.expect(m, 1, other=2)
    gib.forget_entries(fd)
    check_folio_free(first, "with no entry in any tree")


@case(**XFS)
def copy_of_all(t):
    """A store to a clone copies what its order has, 1 GiB here, unless the process is killed."""
    fd, copy = gib.borrow(t), t.open("copy")
    first = gib.frame(t, fd)
    posix.clone(fd, copy)
    with GibMap(fd) as m, GibMap(copy) as c:
        m.touch(0, 1)
        stats = t.stats()
        task = Task(gib.store, c, 2, MIDDLE, 1)
        # Emulation needs a minute for it; somebody who asks for long runs can have it all.
        if not task.join(1.5) and t.settings.seconds <= 60:
            started = time.monotonic()
            task.kill()
            equal(task.signalled(), 9, "signal")
            t.note(f"the copy was given up {time.monotonic() - started:.2f} s after SIGKILL")
            gib.expect_read(copy, 1, MIDDLE - 1, 3)
            gib.expect(c, 1, MIDDLE - 512, 1024)
            gib.expect(c, 1)
        else:
            task.result(400)
            if stats.known:
                moved = stats.since()
                equal(moved["cow_pages"], {1: PAGES, 0: 512}[moved["write_pud"]], "pages copied")
            gib.expect(c, 2, MIDDLE, 1)
            gib.expect(c, 1, 0, MIDDLE)
            gib.expect(c, 1, MIDDLE + 1, MIDDLE - 1)
            gib.expect_read(copy, 2, MIDDLE, 1)
        gib.expect(m, 1)
    os.ftruncate(copy, 0)
    gib.forget_entries(fd)
    check_folio_free(first, "with no entry in any tree")


@case(**XFS)
def clones_mapped_at_different_sizes(t):
    fd, copy = gib.borrow(t), t.open("copy")
    first = gib.frame(t, fd)
    posix.clone(fd, copy)
    # The large entry first: the small one points into it.
    with GibMap(copy) as c, GibMap(fd, skew=PAGE) as small:
        stats = t.stats()
        c.touch(HALF, 1)
        moved_only(stats, read_pud=1)
        for spot in SPOTS:
            small.touch(spot * PAGE, 1)
            equal(small.pfn(spot * PAGE), first + spot, f"frame of page {spot}")
            gib.expect(small, 1, spot, 1)
        os.ftruncate(copy, 0)
        # What is left of the large folio serves the other file.
        gib.expect(small, 1, 0, 1024)
        with GibMap(fd) as m:
            gib.expect(m, 1, 0, 4096)
            gib.expect(m, 1, MIDDLE, 600)
    gib.forget_entries(fd)
    check_folio_free(first, "with no entry in any tree")
    # The small entry first: the large one has to be small, too.
    posix.clone(fd, copy)
    with GibMap(fd, skew=PAGE) as small, GibMap(copy) as c:
        small.touch(HALF, 1)
        stats = t.stats()
        c.touch(HALF, 1)
        stats.expect(read_pud=0, fallback_conflict=some)
        c.touch(0, 1)
        gib.expect(c, 1, 0, 8192)
        gib.expect(c, 1, MIDDLE - 600, 1200)
        gib.expect(small, 1, MIDDLE, 1)
    os.ftruncate(copy, 0)
    gib.forget_entries(fd)
    check_folio_free(first, "with no entry in any tree")


@case(**XFS)
def part_of_a_giant_is_cloned_and_deduped(t):
    """Some MiB of the GiB are shared: what is mapped shows it, what is stored afterwards parts."""
    fd, other = gib.file(t), t.open("other")
    first = gib.frame(t, fd)
    with GibMap(fd) as m:
        gib.store(m, 2, MIDDLE + 512, 512)
        posix.clone_range(fd, HALF + PMD, PMD, other, 0)
        gib.expect_read(other, 2, 0, 512, number=MIDDLE + 512)
        stats = t.stats()
        gib.store(m, 3, MIDDLE + 512 + 7, 1)
        stats.expect(cow_pages=some)
        gib.expect_read(other, 2, 0, 512, number=MIDDLE + 512)
        gib.expect(m, 3, MIDDLE + 512 + 7, 1)
        gib.expect(m, 2, MIDDLE + 512, 512, other=3)
        gib.expect(m, 1, 0, MIDDLE + 512)
        gib.expect(m, 1, MIDDLE + 1024, MIDDLE - 1024)
        # Back into the place of a GiB that is mapped.
        gib.write(other, 1, 512, 512)
        data = m.read(PMD, PMD)
        os.pwrite(other, data, PMD)
        os.fsync(other)
        equal(posix.dedupe(fd, PMD, PMD, other, PMD), (posix.DEDUPE_SAME, PMD), "dedupe")
        gib.store(m, 4, 512, 1)
        same_bytes(os.pread(other, PAGE, PMD), data[:PAGE], "the other file after a store")
        gib.expect(m, 4, 512, 1)
    os.ftruncate(other, 0)
    os.ftruncate(fd, 0)
    check_folio_free(first, "after both are gone")
