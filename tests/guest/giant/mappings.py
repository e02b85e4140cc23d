# SPDX-License-Identifier: GPL-2.0
"""What is done to a mapping: cut, protected, moved."""

import os

from lib import gib, posix
from lib.check import check, equal, same_bytes
from lib.gib import GibMap, PAGES
from lib.mapping import Map, SIGSEGV
from lib.posix import GIB, PAGE, PMD
from lib.runner import case
from lib.task import LongCalls, Task

from .common import GIANT, HALF, LAST, MIDDLE, check_folio_idle, moved_only, survives


@case(**GIANT)
def part_unmapped(t):
    """munmap of some pages, and of some MiB: the core drops the entry, the rest is faulted back."""
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    with GibMap(fd) as m:
        gib.store(m, 1, 5, 1)
        m.unmap_part(HALF + 3 * PAGE, 3 * PAGE)
        survives(t, fd, m, [(0, MIDDLE + 3), (MIDDLE + 6, MIDDLE - 6)])
        equal(m.load(HALF + 4 * PAGE)[1].signal, SIGSEGV, "access to what was unmapped: signal")
    check_folio_idle(first, "after munmap of all")
    with GibMap(fd) as m:
        stats = t.stats()
        gib.store(m, 1, 5, 1)
        stats.expect(write_pud=1)
        m.unmap_part(GIB - 4 * PMD, 4 * PMD)
        survives(t, fd, m, [(0, PAGES - 4 * 512)])
        m.unmap_part(0, PMD)
        survives(t, fd, m, [(512, PAGES - 5 * 512)])
    check_folio_idle(first, "after munmap of all")
    # Nothing small is left in the file's tree: in a new mapping it is one entry again.
    with GibMap(fd) as m:
        stats = t.stats()
        gib.expect(m, 1)
        moved_only(stats, read_pud=1)


@case(**GIANT)
def moved_in_one_place_only(t):
    """What others have mapped stays so."""
    fd = gib.borrow(t)
    with GibMap(fd) as m, GibMap(fd) as other, Map(
            -1, GIB, prot=posix.PROT_NONE, align=GIB,
            flags=posix.MAP_PRIVATE | posix.MAP_ANONYMOUS | posix.MAP_NORESERVE) as room:
        for one in (m, other):
            gib.store(one, 1, 5, 1)
        stats = t.stats()
        posix.mremap(m.address, GIB, GIB, posix.MREMAP_MAYMOVE | posix.MREMAP_FIXED, room.address)
        for one in (room, other):
            gib.store(one, 1, 5, 1)
        if t.adopted:
            moved_only(stats, write_pud=1)


@case(**GIANT)
def mapped_again_while_it_is_unmapped(t):
    """Threads fault an entry of 1 GiB in while others have a page of it, or all, unmapped.

    With two processors they seldom meet where an entry would be taken for a broken one; that it is not, the
    KUnit test adopt/an_entry_of_1g_that_came_back_is_not_cleared shows. This shows that nothing is lost."""
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    for part in (True, False):
        with GibMap(fd) as m:
            gib.store(m, 1, 5, 1)
            gib.race(m, part, 600)
            survives(t, fd, m, [(0, 2048)])
        check_folio_idle(first, "after munmap")


@case(**GIANT)
def tables_wait_for_no_calls_of_others(t):
    """Where 1 GiB was mapped a table is made, however long somebody else is in a system call."""
    fd = gib.borrow(t)
    ways = {
        "protection": lambda m: m.protect(posix.PROT_READ, 7 * PMD, PAGE),
        "a page that is dropped": lambda m: m.advise(posix.MADV_DONTNEED, 7 * PMD, PAGE),
        "a guard page": lambda m: m.advise(posix.MADV_GUARD_INSTALL, 7 * PMD, PAGE),
        "a page that is dropped and asked for": lambda m: (
            m.advise(posix.MADV_DONTNEED, 7 * PMD, PAGE),
            m.advise(posix.MADV_POPULATE_READ, 7 * PMD, PAGE)),
    }

    def use(divide):
        with GibMap(fd) as m:
            gib.store(m, 1, 5, 1)
            divide(m)
            gib.expect(m, 1, 5, 1)

    with LongCalls() as somebody:
        for name, divide in ways.items():
            check(somebody.stays_in_one_while(lambda divide=divide: use(divide)),
                  f"{name}: the table waits until the call of somebody else ends")


def _load_once(fd):
    with GibMap(fd) as m:
        m.read(5 * PAGE, 1)


@case(**GIANT)
def mapped_very_often(t):
    """The entries of 1 GiB of the same memory are limited: where one goes is remembered, and all go at once."""
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    entries, more = 4096, 4
    with Map(-1, (entries + more) * GIB, prot=posix.PROT_NONE, align=GIB,
             flags=posix.MAP_PRIVATE | posix.MAP_ANONYMOUS | posix.MAP_NORESERVE) as room:
        for number in range(entries + more):
            posix.mmap(room.address + number * GIB, GIB, posix.PROT_RW,
                       posix.MAP_SHARED | posix.MAP_FIXED, fd)
        # In the second round the last ones have their small pages.
        for refused in (more, 0):
            stats = t.stats()
            for number in range(entries + more):
                room.read(number * GIB + 5 * PAGE, 1)
            if stats.known:
                moved = stats.since()
                equal(moved["read_pud"], entries, "loads that map 1 GiB")
                equal(moved["fallback_nomem"], refused, "loads that are above the limit")
            # Whoever may read the file can do this: its owner is not to lose his entries by it.
            stats = t.stats()
            Task(_load_once, fd).result()
            if stats.known:
                equal(stats.since()["read_pud"], 1, "loads of another process that map 1 GiB")
            # The core cannot write-protect them: they are unmapped.
            room.write(17 * GIB + 5 * PAGE, b"x")
            os.fsync(fd)
        equal(room.read((entries + 1) * GIB + 5 * PAGE, 1), b"x", "what was stored by another mapping")
    check_folio_idle(first, "after munmap of all")


@case(**GIANT)
def divided_without_rights(t):
    """What nobody may access is divided in its middle, and the halves are moved, unmapped and given rights."""
    fd = gib.borrow(t)
    first = gib.frame(t, fd)

    def divide(m):
        gib.store(m, 1, 5, 1)
        m.protect(posix.PROT_NONE)
        m.advise(posix.MADV_RANDOM, HALF, HALF)

    with GibMap(fd) as m, Map(-1, GIB, prot=posix.PROT_NONE, align=GIB,
                              flags=posix.MAP_PRIVATE | posix.MAP_ANONYMOUS | posix.MAP_NORESERVE) as room:
        divide(m)
        posix.mremap(m.address + HALF, HALF, HALF, posix.MREMAP_MAYMOVE | posix.MREMAP_FIXED,
                     room.address + HALF)
        posix.mprotect(room.address + HALF, HALF, posix.PROT_RW)
        same_bytes(room.read(HALF, 8), os.pread(fd, 8, HALF), "what was moved")
    check_folio_idle(first, "after munmap of halves that were moved")
    with GibMap(fd) as m:
        divide(m)
        m.unmap_part(HALF, HALF)
        m.protect(posix.PROT_RW, 0, HALF)
        survives(t, fd, m, [(0, MIDDLE)])
    check_folio_idle(first, "after munmap of halves")
    with GibMap(fd) as m:
        divide(m)
        m.protect(posix.PROT_RW)
        survives(t, fd, m, [(0, PAGES)])
    check_folio_idle(first, "after munmap")


@case(**GIANT)
def protection(t):
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    with GibMap(fd) as m:
        gib.store(m, 1, 5, 1)
        m.protect(posix.PROT_READ)
        equal(m.store(77 * PAGE, 1).signal, SIGSEGV, "store to a read-only mapping: signal")
        gib.expect(m, 1)
        m.protect(posix.PROT_RW)
        survives(t, fd, m, [(0, PAGES)])
        # Some pages of it only.
        m.protect(posix.PROT_READ, HALF + PAGE, 2 * PAGE)
        for spot in (HALF + PAGE, HALF + 3 * PAGE - 1):
            equal(m.store(spot, 1).signal, SIGSEGV, "store to a read-only page: signal")
        survives(t, fd, m, [(0, MIDDLE + 1), (MIDDLE + 3, MIDDLE - 3)])
        gib.expect(m, 1)
        m.protect(posix.PROT_NONE, 0, PMD)
        equal(m.load(PMD - 1)[1].signal, SIGSEGV, "load from what has no access: signal")
        m.protect(posix.PROT_RW)
        survives(t, fd, m, [(0, PAGES)])
    check_folio_idle(first, "after munmap")


def _cut_part(m):
    m.unmap_part(HALF + 3 * PAGE, 3 * PAGE)


def _advise_part(m):
    """Split into three, and merged again."""
    m.advise(posix.MADV_RANDOM, 5 * PMD + PAGE, PMD)
    m.touch(0, 1, write=True)
    m.advise(posix.MADV_NORMAL, 5 * PMD + PAGE, PMD)


def _protect_part(m):
    m.protect(posix.PROT_READ, HALF - PAGE, PAGE)


def _give_part_to_neighbour(m):
    """The end of the VMA moves, and nothing is split."""
    m.advise(posix.MADV_RANDOM, GIB, PMD)
    m.touch(0, 1, write=True)
    m.advise(posix.MADV_RANDOM, GIB - PAGE, PAGE)


@case(**GIANT)
def data_is_no_page_table(t):
    """When a VMA is split, the core takes what an entry of 1 GiB maps for a table of smaller ones."""
    fd = gib.borrow(t)
    os.ftruncate(fd, GIB + PMD)
    first = gib.frame(t, fd)
    # Entries of 2 MiB that are present, writable, for users, accessed and dirty; and junk that is
    # not present.
    tables = [[(first + 512 * i) * PAGE | 0xE7 for i in range(512)],
              [i * 0x9E3779B97F4A7C15 % 2 ** 64 & ~0x181 | 2 for i in range(512)]]
    for table in tables:
        data = b"".join(word.to_bytes(8, "little") for word in table)
        for act in (_cut_part, _advise_part, _protect_part, _give_part_to_neighbour):
            with GibMap(fd, GIB + PMD) as m:
                stats = t.stats()
                m.write(0, data)
                stats.expect(write_pud=1)
                act(m)
                same_bytes(os.pread(fd, PAGE, 0), data, f"data after {act.__name__}")
                same_bytes(m.read(0, PAGE), data, f"mapping after {act.__name__}")
                gib.expect(m, 1, 1, 600)
                gib.expect(m, 1, LAST - 600, 600)
            check_folio_idle(first, f"after {act.__name__} and munmap")
    os.ftruncate(fd, GIB)


@case(**GIANT)
def moved(t):
    """mremap of all of it, to places that agree with 1 GiB and not, and of parts."""
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    both = posix.MREMAP_MAYMOVE | posix.MREMAP_FIXED
    with GibMap(fd) as m, Map(-1, GIB, flags=posix.MAP_PRIVATE | posix.MAP_ANONYMOUS
                              | posix.MAP_NORESERVE, align=GIB) as target:
        gib.store(m, 1, 5, 1)
        here, there = m.address, target.address
        for new, old in ((there, here), (here + PAGE, there), (here, here + PAGE)):
            if abs(new - old) < GIB:
                # Source and target must not lie in each other.
                posix.mremap(old, GIB, GIB, both, there)
                posix.mremap(there, GIB, GIB, both, new)
            else:
                posix.mremap(old, GIB, GIB, both, new)
            m.address = new
            survives(t, fd, m, [(0, PAGES)])
            Task(gib.expect, m, 1, 0, PAGES, None, None, 4099).result()
        # The parts in the middle change places with nothing; the last ones are given up.
        posix.mremap(here + HALF, 7 * PAGE, 7 * PAGE, both, there + HALF + PMD)
        part = Map.__new__(Map)
        part.address, part.length = there + HALF + PMD, 7 * PAGE
        gib.expect(part, 1, 0, 7, number=MIDDLE)
        gib.store(part, 1, 0, 1)
        gib.store(m, 3, 5, 1)
        gib.expect_read(fd, 1, 0, 1, number=0)
        posix.mremap(here, HALF, HALF - PMD, 0)
        survives(t, fd, m, [(6, MIDDLE - 512 - 6), (MIDDLE + 7, MIDDLE - 7)])
        equal(m.load(HALF - PMD)[1].signal, SIGSEGV, "access to what was cut off: signal")
        posix.mmap(part.address, 7 * PAGE, posix.PROT_NONE, posix.MAP_PRIVATE
                   | posix.MAP_ANONYMOUS | posix.MAP_FIXED)
    check_folio_idle(first, "after munmap")
