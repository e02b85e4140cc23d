# SPDX-License-Identifier: GPL-2.0
"""Tools that walk page tables look at a mapping of 1 GiB."""

import os
import time

from lib import device, gib, posix
from lib.check import check, equal, same_bytes
from lib.gib import GibMap, PAGES
from lib.native import Writer
from lib.posix import PAGE, PMD
from lib.ptrace import await_stop, let_go_on, peek, trace_me
from lib.runner import case
from lib.task import Task
from lib.trace import Calls

from .common import GIANT, HALF, MIDDLE, check_folio_idle, check_head, moved_only, survives


def _smaps(m):
    m.smaps()


def _pagemap(m):
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        pagemap.seek((m.address + HALF) // PAGE * 8)
        equal(len(pagemap.read(8 * 512)), 8 * 512, "bytes of pagemap")


def _pagemap_scan(m):
    m.mapped()


def _mincore(m):
    seen = (b"\0" * 512)
    libc = posix._libc
    libc.mincore.argtypes = [posix._void, posix._size, posix._void]
    equal(libc.mincore(m.address + HALF, 512 * PAGE, seen), 0, "mincore")


def _clear_refs(m):
    device.write("/proc/self/clear_refs", "1")


def _numa_maps(m):
    if os.path.exists("/proc/self/numa_maps"):
        with open("/proc/self/numa_maps", encoding="ascii") as f:
            f.read()


def _mem(m):
    """Through /proc/self/mem, as a debugger does it."""
    fd = os.open("/proc/self/mem", os.O_RDWR)
    got = os.pread(fd, PAGE, m.address + HALF)
    equal(os.pwrite(fd, got, m.address + HALF), PAGE, "bytes written to /proc/self/mem")
    os.close(fd)


def _advice(number):
    def advise(m):
        try:
            m.advise(number, HALF, 4 * PMD)
        except OSError as error:
            check(error.errno == 22, f"madvise {number}: {error}")
    advise.__name__ = f"madvise_{number}"
    return advise


def _mlock(m):
    libc = posix._libc
    libc.mlock.argtypes = libc.munlock.argtypes = [posix._void, posix._size]
    equal(libc.mlock(m.address + HALF, PMD), 0, "mlock")
    equal(libc.munlock(m.address + HALF, PMD), 0, "munlock")


LOOKS = [_smaps, _pagemap, _pagemap_scan, _mincore, _clear_refs, _numa_maps, _mem, _mlock,
         _advice(20), _advice(21)]      # MADV_COLD, MADV_PAGEOUT


@case(**GIANT)
def looked_at(t):
    """Whoever walks the page table may drop the entry; the next access has it back, or what serves.

    It comes from the file's tree: the filesystem is not asked.
    """
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    asked = {"xfs": "xfs_bmapi_read", "ext4": "ext4_iomap_begin"}[t.variant.kind]
    for look in LOOKS:
        with GibMap(fd) as m:
            gib.store(m, 1, MIDDLE, 1)
            stats = t.stats()
            look(m)
            m.touch(5 * PAGE, 1, write=True)
            moved = stats.since() if stats.known else {}
            maps = {n: c for n, c in moved.items() if c and n.startswith(("read_p", "write_p"))}
            check(set(maps) <= {"read_pud", "write_pud"} and sum(maps.values()) <= 2,
                  f"{look.__name__}: faults afterwards: {maps}")
            survives(t, fd, m, [(0, 1024), (MIDDLE - 512, 1024), (PAGES - 512, 512)])
        check_folio_idle(first, f"after {look.__name__} and munmap")
    with GibMap(fd) as m:
        gib.store(m, 1, MIDDLE, 1)
        _smaps(m)
        stats = t.stats()
        with Calls(asked) as calls:
            gib.store(m, 1, MIDDLE, 1)
            if t.adopted:
                equal(calls.count(), 0, f"calls of {asked}")
        moved_only(stats, write_pud=1)


def _stops_without_rights(fd, say, had):
    """Has a mapping of a GiB that nobody may access, or not any more, and stops for a tracer."""
    with GibMap(fd, prot=posix.PROT_RW if had else posix.PROT_NONE) as m:
        if had:
            gib.store(m, 1, MIDDLE, 1)
            m.protect(posix.PROT_NONE)
        os.write(say, m.address.to_bytes(8, "little"))
        trace_me()
        if had:
            m.protect(posix.PROT_RW)
            gib.store(m, 1, MIDDLE, 1)


def _read_by_a_debugger(t, had):
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    hear, say = os.pipe()
    task = Task(_stops_without_rights, fd, say, had)
    address = int.from_bytes(os.read(hear, 8), "little")
    await_stop(task.pid)
    for at in (HALF, HALF + PAGE, HALF + PMD):
        same_bytes(peek(task.pid, address + at), os.pread(fd, 8, at), f"bytes at {at:#x}")
    let_go_on(task.pid)
    task.result()
    check_folio_idle(first, "when the task has ended")


@case(**GIANT)
def a_mapping_without_rights_is_read_by_a_debugger(t):
    """The kernel takes an entry of 1 GiB for absent where nobody may access it, and would fault for ever."""
    _read_by_a_debugger(t, had=False)


@case(**GIANT)
def a_mapping_that_loses_its_rights_is_read_by_a_debugger(t):
    """So it does with one that was there before."""
    _read_by_a_debugger(t, had=True)


@case(**GIANT)
def looked_at_all_the_time(t):
    """Stores go on while others read smaps, and none is lost."""
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    with GibMap(fd) as m:
        writer = Writer(m.address + HALF - 4 * PAGE)

        looks = os.pipe()

        def reader(pid):
            while True:
                for name in ("smaps", "smaps_rollup"):
                    with open(f"/proc/{pid}/{name}", encoding="ascii") as f:
                        f.read()
                os.write(looks[1], b"l")

        task = Task(reader, os.getpid())
        number, begun = (20 if t.settings.quick else 60), time.monotonic()
        for _ in range(number):
            equal(os.read(looks[0], 1), b"l", "the reader's sign")
            # The mapping was gone when it had looked: some store has found that.
            writer.await_stores()
        task.kill()
        task.signalled()
        stores = writer.stop()
        t.note(f"{stores} stores, {number} looks in {time.monotonic() - begun:.1f} s")
        for i in range(8):
            # The last store to each page: number n went to page (n - 1) % 8.
            last = stores - (stores - 1 - i) % 8
            wanted = last.to_bytes(8, "little")
            at = HALF - 4 * PAGE + i * PAGE
            same_bytes(m.read(at, 8), wanted, f"page {i} in the mapping")
            same_bytes(os.pread(fd, 8, at), wanted, f"page {i} by pread")
    check_head(t, first, 0, "unmapped")
