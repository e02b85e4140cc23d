# SPDX-License-Identifier: GPL-2.0
"""Files that change while 1 GiB of them is mapped."""

import os

from lib import gib, posix
from lib.check import check, equal, same_bytes
from lib.device import some, wait_for
from lib.gib import GibMap, PAGES
from lib.posix import GIB, PAGE, PMD
from lib.runner import case
from lib.trace import Flushes, Pages

from .common import (
    GIANT, HALF, LAST, MIDDLE, SAMPLE, SPOTS, check_folio_free, check_folio_idle, check_head,
    clock, fill_pages, moved_only, write_spots,
)


@case(**GIANT)
def truncate_inside(t):
    """512 MiB and a page stay, with all that was stored there; behind is nothing."""
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    spots = [spot for spot in SPOTS if spot <= MIDDLE]
    with GibMap(fd) as m, Flushes() as flushes:
        write_spots(m)
        since = clock()
        flushes.clear()
        stats = t.stats()
        os.ftruncate(fd, HALF + PAGE)
        os.fsync(fd)
        flushes.check_flushed([first + at for at in spots], since, "truncate and fsync")
        stats.expect(entries_removed=some)
        check(HALF + PAGE <= os.fstat(fd).st_blocks * 512 <= HALF + 64 * PAGE,
              f"{os.fstat(fd).st_blocks} blocks of 512 bytes are left")
        m.bus_error(HALF + PAGE, "behind the new end", write=True)
        m.bus_error(GIB - 1, "the last byte that was")
        stats = t.stats()
        for spot in spots:
            gib.expect(m, 2, spot, 1)
        stats.expect(read_pud=0, fallback_eof=some)
        gib.expect(m, 1, 0, MIDDLE + 1, other=2)
        gib.store(m, 3, MIDDLE, 1)
        gib.expect_read(fd, 3, MIDDLE, 1)
        os.ftruncate(fd, GIB)
        gib.expect(m, 3, MIDDLE, 1)
        gib.expect_zero(m, MIDDLE + 1, 4096)
        gib.expect_zero(m, PAGES - 1024, 1024)
        gib.expect(m, 1, 0, MIDDLE, other=2)
    check_folio_idle(first, "after munmap")
    Pages().check_free([first + at for at in SAMPLE if at > MIDDLE], "what was cut off")
    gib.forget_entries(fd)
    check_folio_free(first, "with no entry in the file's tree")
    fill_pages(t, fd, MIDDLE + 1, MIDDLE - 1)


@case(**GIANT)
def truncate_inside_a_page(t):
    fd = gib.borrow(t)
    with GibMap(fd) as m:
        gib.store(m, 2, MIDDLE, 1)
        os.ftruncate(fd, HALF + 100)
        os.ftruncate(fd, HALF + 2 * PAGE)
        same_bytes(m.read(HALF + 100, 2 * PAGE - 100), bytes(2 * PAGE - 100), "behind the cut")
        word = (2 << 56 | MIDDLE << 16).to_bytes(8, "little")
        same_bytes(m.read(HALF, 8), word, "before the cut")
        gib.expect(m, 1, 0, MIDDLE)
    fill_pages(t, fd, MIDDLE, MIDDLE)


def _changed(t, mode, at, count, parts):
    """fallocate() of `count` pages from page `at` on in a dirty GiB.

    What must be there then: [(page, count, number of the page that was there, or None for zero)].
    """
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    dirty = sorted(set(SPOTS) | {at - 1, at, at + count - 1, at + count})
    shift = {posix.COLLAPSE_RANGE: -count, posix.INSERT_RANGE: count}.get(mode, 0)
    with GibMap(fd) as m, Flushes() as flushes:
        write_spots(m, dirty)
        since = clock()
        blocks = os.fstat(fd).st_blocks
        flushes.clear()
        posix.fallocate(fd, mode, at * PAGE, count * PAGE)
        os.fsync(fd)
        lost = range(at, at + count) if mode != posix.INSERT_RANGE else range(0)
        kept = [spot for spot in dirty if spot not in lost]
        flushes.check_flushed([first + spot for spot in kept], since, "the call and fsync")
        if mode in (posix.PUNCH_HOLE | posix.KEEP_SIZE, posix.COLLAPSE_RANGE):
            freed = (blocks - os.fstat(fd).st_blocks) * 512 // PAGE
            check(count - 16 <= freed <= count, f"{freed} of {count} blocks came free")
        size = PAGES + shift
        equal(os.fstat(fd).st_size, size * PAGE, "size")
        for page_, pages_, number in parts:
            here = min(pages_, PAGES - page_)
            if number is None:
                gib.expect_zero(m, page_, here, every=1)
                gib.expect_read_zero(fd, page_, min(pages_, 600))
            else:
                gib.expect(m, 1, page_, here, other=2, number=number)
                gib.expect_read(fd, 1, page_, min(pages_, 600), other=2, number=number)
        if size < PAGES:
            m.bus_error(size * PAGE, "behind the end")
        for spot in kept:
            moved = spot + shift if spot >= at else spot
            gib.expect_read(fd, 2, moved, 1, number=spot)
            if moved < PAGES:
                gib.expect(m, 2, moved, 1, number=spot)
                gib.store(m, 3, moved, 1)
                gib.expect_read(fd, 3, moved, 1)
    check_folio_idle(first, "after munmap")
    if mode == posix.INSERT_RANGE:
        posix.fallocate(fd, posix.COLLAPSE_RANGE, at * PAGE, count * PAGE)
    else:
        if mode == posix.COLLAPSE_RANGE:
            posix.fallocate(fd, posix.INSERT_RANGE, at * PAGE, count * PAGE)
        fill_pages(t, fd, at, count)
    gib.forget_entries(fd)
    check_folio_free(first, "with no entry in the file's tree")


@case(**GIANT)
def punch_inside(t):
    """A hole whose edges are inside the entry, and inside 2 MiB."""
    at, count = 300 * 512 + 5, 2 * 512
    _changed(t, posix.PUNCH_HOLE | posix.KEEP_SIZE, at, count,
             [(0, at, 0), (at, count, None), (at + count, PAGES - at - count, at + count)])


@case(**GIANT)
def punch_at_the_edges(t):
    """Holes that begin or end where the entry does."""
    _changed(t, posix.PUNCH_HOLE | posix.KEEP_SIZE, LAST - 599, 600 - 1,
             [(0, LAST - 599, 0), (LAST - 599, 599, None), (LAST, 1, LAST)])


@case(**GIANT)
def zero_inside(t):
    at, count = 77, 700
    _changed(t, posix.ZERO_RANGE | posix.KEEP_SIZE, at, count,
             [(0, at, 0), (at, count, None), (at + count, PAGES - at - count, at + count)])


@case(**GIANT)
def collapse_inside(t):
    at, count = MIDDLE + 3, 5
    _changed(t, posix.COLLAPSE_RANGE, at, count,
             [(0, at, 0), (at, PAGES - at - count, at + count)])


@case(**GIANT)
def insert_inside(t):
    at, count = 511, 3
    _changed(t, posix.INSERT_RANGE, at, count,
             [(0, at, 0), (at, count, None), (at + count, PAGES - at - count, at)])


@case(**GIANT)
def zeroed_bytes_inside(t):
    """Zeroing of some bytes, which the kernel writes itself."""
    fd = gib.borrow(t)
    with GibMap(fd) as m:
        gib.store(m, 2, MIDDLE, 2)
        posix.fallocate(fd, posix.PUNCH_HOLE | posix.KEEP_SIZE, HALF + 100, PAGE)
        for got, what in ((m.read(HALF, 2 * PAGE), "mapping"),
                          (os.pread(fd, 2 * PAGE, HALF), "pread")):
            same_bytes(got[100:100 + PAGE], bytes(PAGE), what)
            check(any(got[:100]) and any(got[100 + PAGE:]), f"{what}: too much was zeroed")
        gib.expect(m, 1, 0, MIDDLE)
        gib.expect(m, 1, MIDDLE + 2, MIDDLE - 2)


@case(**GIANT)
def writes_are_seen(t):
    """write() and loads, read() and stores, on the same pages."""
    fd = gib.borrow(t)
    with GibMap(fd) as m:
        stats = t.stats()
        for spot in SPOTS:
            gib.store(m, 2, spot, 1)
            gib.expect_read(fd, 2, spot, 1)
            gib.write(fd, 3, spot, 1)
            gib.expect(m, 3, spot, 1, every=1)
        moved_only(stats, write_pud=1)
        gib.expect(m, 1, other=3)


@case(alone=True, **GIANT)
def truncate_gives_back(t):
    """The blocks come free, and their pages serve by any size in the next file."""
    fd = gib.file(t)
    first = gib.frame(t, fd)
    gib.take_rest(t)
    t.sync()
    before = os.statvfs(t.dir).f_bfree
    with GibMap(fd) as m:
        gib.store(m, 2, MIDDLE, 1)
        check_head(t, first, 1, "mapped")
        os.ftruncate(fd, 0)
        check_folio_free(first, "after truncate, in a mapping that is still there")
        m.bus_error(HALF, "after truncate")
    t.sync()
    wait_for(lambda: os.statvfs(t.dir).f_bfree >= before + PAGES, "free blocks")
    # By pages first, then 2 MiB, then 1 GiB again.
    for tag, skew, order in ((3, PAGE, "pte"), (4, PMD, "pmd"), (5, 0, "pud"), (6, PAGE, "pte")):
        heir = gib.file(t, f"heir{tag}", tag, written=order == "pud")
        equal(gib.frame(t, heir), first, "the test means nothing: the blocks' place")
        if order != "pud":
            for spot in SPOTS:
                gib.write(heir, tag, spot & ~511, 512)
        stats = t.stats()
        with GibMap(heir, skew=skew) as m:
            m.touch(HALF + 3 * PAGE, 1)
            stats.expect(**{"read_pte": 0, "read_pmd": 0, "read_pud": 0, f"read_{order}": 1})
            if order == "pte":
                equal(m.pfn(HALF + 3 * PAGE), first + MIDDLE + 3, "frame")
                equal(Pages().refcounts([first + MIDDLE + 3, first + MIDDLE + 4]), [1, 0],
                      "references to a page of its own and its neighbour")
            for spot in SPOTS:
                gib.expect(m, tag, spot, 1, every=1)
                gib.store(m, 2, spot, 1)
            gib.expect(m, tag, 0, 1024, other=2)
        os.unlink(t.path(f"heir{tag}"))
        os.close(heir)
        wait_for(lambda: not _owned(first), "end of the file")
        check_folio_free(first, f"after a file mapped by {order}")


def _owned(first):
    return any(word for (word,) in Pages().words([first + MIDDLE + 3, first], Pages.MAPPING))


@case(**GIANT)
def unlink_gives_back(t):
    """A file without a name lives as long as it is mapped."""
    fd = gib.file(t)
    first = gib.frame(t, fd)
    t.sync()
    before = os.statvfs(t.dir).f_bfree
    with GibMap(fd) as m:
        gib.store(m, 2, MIDDLE, 1)
        os.unlink(t.path())
        os.close(fd)
        t.sync()
        gib.expect(m, 2, MIDDLE, 1)
        gib.expect(m, 1, 0, MIDDLE)
        check(os.statvfs(t.dir).f_bfree < before + PAGES // 2, "blocks came free under a mapping")
        with Flushes() as flushes:
            m.unmap()
            t.sync()
            wait_for(lambda: os.statvfs(t.dir).f_bfree >= before + PAGES, "free blocks")
            equal(flushes.of(range(first, first + PAGES)), [], "flushes of a deleted file")
    check_folio_free(first, "after the file is gone")


@case(**GIANT)
def extents_are_as_before(t):
    """Mapping changes nothing of where the file lies; it cannot be swapped to."""
    fd = gib.borrow(t)
    before = posix.extents(fd)
    with GibMap(fd) as m:
        gib.store(m, 1, MIDDLE, 1)
        m.advise(posix.MADV_DONTNEED, HALF, PAGE)
        gib.expect(m, 1, 0, 512)
    os.fsync(fd)
    equal(posix.extents(fd), before, "extents")
    posix._libc.swapon.argtypes = [posix.ctypes.c_char_p, posix._int]
    equal(posix._libc.swapon(os.fsencode(t.path()), 0), -1, "swapon of a DAX file")
    gib.expect_read(fd, 1, 0, 512)
