# SPDX-License-Identifier: GPL-2.0
"""Files mapped by 1 GiB: one entry of the third level, one folio of order 18.

Runs on a device with 8 GiB of data that begins on a multiple of 1 GiB. Tools that walk page tables
(smaps, pagemap) take an entry of 1 GiB away when they look, so that how a file is mapped is told by
the device's counters, by the process's own counts, and by the folio's references.
"""

import contextlib
import os
import resource
import signal
import subprocess
import threading
import time

from lib import device, gib, posix, uffd
from lib.check import check, equal, raises, same_bytes
from lib.device import SlowDisk, some, wait_for
from lib.gib import PAGES, GibMap
from lib.mapping import SIGSEGV, Map
from lib.native import Writer
from lib.pattern import pages
from lib.posix import GIB, PAGE, PMD
from lib.runner import case
from lib.task import Task
from lib.trace import Calls, Flushes, Pages

GIANT = dict(fs=("xfs-1g", "ext4-1g"), timeout=240)
XFS = dict(fs=("xfs-1g",), timeout=240)
EXT4 = dict(fs=("ext4-1g",), timeout=240)

HALF = GIB // 2
PMD_PAGES = PMD // PAGE
MIDDLE = PAGES // 2
LAST = PAGES - 1
# Pages at the edges of what smaller orders have, and in between.
SPOTS = [0, 1, 511, 512, MIDDLE - 1, MIDDLE, MIDDLE + 77, LAST - 512, LAST - 511, LAST]
# Pages to look at when the state of all is of interest: around each 32nd boundary of 2 MiB.
SAMPLE = sorted({at for edge in range(0, PAGES + 1, 32 * 512) for at in (edge - 1, edge, edge + 1)
                 if 0 <= at < PAGES} | {2, 3, 511, 512, 513})
PINNED = 8 * PAGE
SYNC = posix.MAP_SHARED_VALIDATE | posix.MAP_SYNC

_FAULTS = ("read_p", "write_p", "mkwrite_", "zero_p", "private_", "sync_", "cow_", "fallback_",
           "fault_")


def _only(stats, **wanted):
    """These counters of faults have moved so far, and no other has."""
    if not stats.known:
        return
    moved = {name: n for name, n in stats.since().items() if n and name.startswith(_FAULTS)}
    check(moved == wanted, f"counters moved: {moved} instead of {wanted}")


def _status(name):
    """A field of the process's status, in bytes."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith(name + ":"))


def _minor_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _head(t, first, references, when):
    """The folio of 1 GiB that begins at a frame has that many references, and its tails none."""
    if t.adopted:
        equal(Pages().refcounts([first, first + 1, first + MIDDLE]), [references, 0, 0],
              f"{when}: references to the first page, the second and one in the middle")


def _idle(first, when):
    Pages().check_idle([first + at for at in SAMPLE], when)


def _free(first, when):
    Pages().check_free([first + at for at in SAMPLE], when)


def _now():
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def _write_spots(m, spots=SPOTS, tag=2):
    for spot in spots:
        gib.store(m, tag, spot, 1)


# ---- what maps 1 GiB ----

@case(**GIANT)
def one_fault_maps_all(t):
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    tables, resident, stats = _status("VmPTE"), _status("RssFile"), t.stats()
    with GibMap(fd) as m:
        check(not m.store(HALF + 5, 0x42).signal, "the store failed")
        _only(stats, write_pud=1)
        check(0 <= _status("RssFile") - resident - GIB < 16 * PMD,
              f"{_status('RssFile') - resident} bytes of files are resident")
        _head(t, first, 1, "mapped once")
        before = _minor_faults()
        m.touch(write=True)
        check(_minor_faults() - before < 50, f"{_minor_faults() - before} faults afterwards")
        check(_status("VmPTE") - tables <= 8 * PAGE,
              f"page tables grew by {_status('VmPTE') - tables} bytes")
        _only(stats, write_pud=1)
    check(abs(_status("RssFile") - resident) < 16 * PMD,
          f"{_status('RssFile') - resident} bytes are resident after munmap")
    _idle(first, "after munmap")
    same_bytes(os.pread(fd, 1, HALF + 5), b"\x42", "pread")
    gib.forget_entries(fd)
    _free(first, "with no entry in the file's tree")


@case(**GIANT)
def one_load_maps_all(t):
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    stats = t.stats()
    with GibMap(fd) as m:
        m.touch(GIB - PAGE, 1)
        _only(stats, read_pud=1)
        gib.expect(m, 1)
        _only(stats, read_pud=1)
        # What is mapped for reading is made writable as it is.
        check(not m.store(3 * PAGE, 7).signal, "the store failed")
        _only(stats, read_pud=1, mkwrite_pud=1)
        m.touch(write=True, step=PMD)
        _only(stats, read_pud=1, mkwrite_pud=1)
        _head(t, first, 1, "mapped once")
    same_bytes(os.pread(fd, 1, 3 * PAGE), b"\7", "pread")


@case(**GIANT)
def all_data_both_ways(t):
    """Each word of the GiB: written by write and loaded, stored and read by read."""
    fd = gib.borrow(t)
    stats = t.stats()
    with GibMap(fd) as m:
        gib.expect(m, 1, every=1)
        _only(stats, read_pud=1)
        gib.store(m, 2)
        _only(stats, read_pud=1, mkwrite_pud=1)
        gib.expect_read(fd, 2)
        gib.write(fd, 1)
        gib.expect(m, 1)
        _only(stats, read_pud=1, mkwrite_pud=1)


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
        _only(stats, write_pud=1)
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
        _only(stats, zero_pmd=64, fallback_hole=1)
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
        _only(stats, write_pmd=1, fallback_extent=1)
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
        _only(stats, read_pud=1)
        if t.adopted:
            equal(Pages().words([first], Pages.SHARE), [(PAGES,)], "index of the folio")
        gib.expect(m, 1, PAGES, PAGES, number=0)
        m.touch(77 * PAGE, 1)
        _only(stats, read_pud=1, fallback_hole=1, zero_pmd=1)
        gib.expect_zero(m, 0, 512)
        gib.store(m, 2, PAGES + MIDDLE, 1)
        _only(stats, read_pud=1, fallback_hole=1, zero_pmd=1, mkwrite_pud=1)
        with GibMap(fd, offset=GIB) as same, GibMap(fd, skew=PAGE, offset=GIB) as small:
            gib.expect(same, 1, 0, MIDDLE)
            gib.expect(same, 2, MIDDLE, 1, number=PAGES + MIDDLE)
            small.touch((MIDDLE + 5) * PAGE, 1)
            equal(small.pfn((MIDDLE + 5) * PAGE), first + MIDDLE + 5, "frame")
            stats.expect(read_pud=2)
        with Flushes() as flushes:
            os.fsync(fd)
            _flushed_once(flushes, first, "fsync")
        gib.store(m, 1, PAGES + MIDDLE, 1)
        posix.fallocate(fd, posix.COLLAPSE_RANGE, 0, GIB)
        _free(first, "after the file has been moved")
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
        _only(stats, read_pud=1)
        _head(t, first, 1, "populated")
    stats = t.stats()
    with GibMap(fd) as m:
        m.advise(posix.MADV_POPULATE_READ)
        _only(stats, read_pud=1)
        m.advise(posix.MADV_POPULATE_WRITE)
        _only(stats, read_pud=1, mkwrite_pud=1)
        gib.expect(m, 1)
    _head(t, first, 0, "unmapped")


@case(**GIANT)
def read_only_file(t):
    """Who may only read the file can have it in one entry as well."""
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    stats = t.stats()
    reader = os.open(t.path(), os.O_RDONLY)
    with GibMap(reader, prot=posix.PROT_READ) as m:
        m.touch(HALF, 1)
        _only(stats, read_pud=1)
        gib.expect(m, 1)
        equal(Task(lambda: gib.expect(m, 1, every=4099)).result(), None, "the child")
        _head(t, first, 1, "after the child has ended")
    _head(t, first, 0, "unmapped")


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
                _only(stats, read_pud=1)
                gib.store(mine, 3, LAST, 1)
                _only(stats, read_pud=1, mkwrite_pud=1)
                os.write(done[1], b"1")
                os.read(go[0], 1)
                gib.expect(mine, 4, LAST, 1)
                gib.expect(mine, 1, MIDDLE + 1, MIDDLE - 2)
            return "well"

        task = Task(other)
        equal(os.read(done[0], 1), b"1", "the other process")
        _head(t, first, 2, "mapped by two processes")
        gib.expect(m, 3, LAST, 1)
        gib.store(m, 4, LAST, 1)
        os.write(go[1], b"1")
        equal(task.result(), "well", "the other process")
        _head(t, first, 1, "the other process has ended")
    _idle(first, "after munmap")


# ---- what is done to a mapping ----

def _survives(t, fd, m, parts, tag=1):
    """The parts of a mapping (first page, count) are as they were, and stores to them arrive."""
    for first, count in parts:
        gib.expect(m, tag, first, count)
        for at in (first, first + count - 1):
            gib.store(m, 9, at, 1)
            gib.expect_read(fd, 9, at, 1)
            gib.store(m, tag, at, 1)
        gib.expect(m, tag, first, min(count, 2048))


@case(**GIANT)
def part_unmapped(t):
    """munmap of some pages, and of some MiB: the core drops the entry, the rest is faulted back."""
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    with GibMap(fd) as m:
        gib.store(m, 1, 5, 1)
        m.unmap_part(HALF + 3 * PAGE, 3 * PAGE)
        _survives(t, fd, m, [(0, MIDDLE + 3), (MIDDLE + 6, MIDDLE - 6)])
        equal(m.load(HALF + 4 * PAGE)[1].signal, SIGSEGV, "access to what was unmapped: signal")
    _idle(first, "after munmap of all")
    with GibMap(fd) as m:
        stats = t.stats()
        gib.store(m, 1, 5, 1)
        stats.expect(write_pud=1)
        m.unmap_part(GIB - 4 * PMD, 4 * PMD)
        _survives(t, fd, m, [(0, PAGES - 4 * 512)])
        m.unmap_part(0, PMD)
        _survives(t, fd, m, [(512, PAGES - 5 * 512)])
    _idle(first, "after munmap of all")
    # Nothing small is left in the file's tree: in a new mapping it is one entry again.
    with GibMap(fd) as m:
        stats = t.stats()
        gib.expect(m, 1)
        _only(stats, read_pud=1)


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
        _survives(t, fd, m, [(0, PAGES)])
        # Some pages of it only.
        m.protect(posix.PROT_READ, HALF + PAGE, 2 * PAGE)
        for spot in (HALF + PAGE, HALF + 3 * PAGE - 1):
            equal(m.store(spot, 1).signal, SIGSEGV, "store to a read-only page: signal")
        _survives(t, fd, m, [(0, MIDDLE + 1), (MIDDLE + 3, MIDDLE - 3)])
        gib.expect(m, 1)
        m.protect(posix.PROT_NONE, 0, PMD)
        equal(m.load(PMD - 1)[1].signal, SIGSEGV, "load from what has no access: signal")
        m.protect(posix.PROT_RW)
        _survives(t, fd, m, [(0, PAGES)])
    _idle(first, "after munmap")


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
            _idle(first, f"after {act.__name__} and munmap")
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
            _survives(t, fd, m, [(0, PAGES)])
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
        _survives(t, fd, m, [(6, MIDDLE - 512 - 6), (MIDDLE + 7, MIDDLE - 7)])
        equal(m.load(HALF - PMD)[1].signal, SIGSEGV, "access to what was cut off: signal")
        posix.mmap(part.address, 7 * PAGE, posix.PROT_NONE, posix.MAP_PRIVATE
                   | posix.MAP_ANONYMOUS | posix.MAP_FIXED)
    _idle(first, "after munmap")


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
            _survives(t, fd, m, [(0, 1024), (MIDDLE - 512, 1024), (PAGES - 512, 512)])
        _idle(first, f"after {look.__name__} and munmap")
    with GibMap(fd) as m:
        gib.store(m, 1, MIDDLE, 1)
        _smaps(m)
        stats = t.stats()
        with Calls(asked) as calls:
            gib.store(m, 1, MIDDLE, 1)
            if t.adopted:
                equal(calls.count(), 0, f"calls of {asked}")
        _only(stats, write_pud=1)


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
    _head(t, first, 0, "unmapped")


@case(**GIANT)
def fork_with_a_shared_mapping(t):
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    with GibMap(fd) as m:
        gib.store(m, 2, 5, 1)

        def child():
            stats = t.stats()
            _head(t, first, 1, "after fork")
            gib.expect(m, 2, 5, 1)
            _only(stats, read_pud=1)
            gib.store(m, 3, LAST, 1)
            _head(t, first, 2, "child and parent")
            if os.fork() == 0:
                gib.store(m, 4, MIDDLE, 1)
                os._exit(0)
            os.wait()

        Task(child).result()
        gib.expect(m, 3, LAST, 1)
        gib.expect(m, 4, MIDDLE, 1)
        _head(t, first, 1, "after the children have ended")
    _idle(first, "after munmap")
    gib.forget_entries(fd)
    _free(first, "with no entry in the file's tree")


@case(**GIANT)
def fork_with_a_private_mapping(t):
    """What fork copies has no entry of the third level, for which the core would not count."""
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    with GibMap(fd, flags=posix.MAP_PRIVATE) as own, GibMap(fd) as m:
        stats = t.stats()
        gib.store(m, 2, 5, 1)
        stats.expect(write_pud=1)
        gib.expect(own, 2, 5, 1)
        gib.expect(own, 1, MIDDLE, 64)
        stats.expect(read_pud=0, fallback_private=some)
        gib.store(own, 3, MIDDLE, 1)

        def child():
            gib.expect(own, 3, MIDDLE, 1)
            gib.store(own, 4, MIDDLE, 1)
            gib.store(own, 4, 7, 1)
            gib.expect(own, 1, MIDDLE + 1, 600)
            gib.store(m, 5, LAST, 1)
            gib.expect(own, 5, LAST, 1)

        Task(child).result()
        gib.expect(own, 3, MIDDLE, 1)
        gib.expect(own, 1, 7, 1)
        gib.expect(m, 5, LAST, 1)
        gib.expect(m, 1, MIDDLE, 1)
    _idle(first, "after munmap")
    gib.forget_entries(fd)
    _free(first, "with no entry in the file's tree")


def _guarded_before(m):
    m.advise(posix.MADV_GUARD_INSTALL, GIB, PAGE)
    return contextlib.nullcontext(), False


def _guarded_after(m):
    gib.store(m, 2, 5, 1)
    return _guarded_before(m)


def _guarded_once(m):
    """The guard is gone, but what says that there may be some stays."""
    _guarded_before(m)
    m.advise(posix.MADV_GUARD_REMOVE, GIB, PAGE)
    return contextlib.nullcontext(), False


def _protected_after(m):
    gib.store(m, 2, 5, 1)
    return uffd.Protected(m, protect=False), False


def _inherited_after(m):
    gib.store(m, 2, 5, 1)
    return uffd.Protected(m, protect=False, fork=True), True


def _fork(child):
    Task(child).result()


def _clone(child):
    pid = posix.clone_process()
    if pid == 0:
        try:
            child()
            os._exit(0)
        finally:
            os._exit(1)
    equal(os.waitpid(pid, 0)[1], 0, "status of the child")


def _vfork(_child):
    subprocess.run(["/bin/true"], check=True)


@case(**GIANT)
def fork_that_copies_page_tables(t):
    """Whatever makes fork copy page tables, of 1 GiB it copies nothing, as it would not count."""
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    for prepare in (_guarded_before, _guarded_after, _guarded_once, _protected_after,
                    _inherited_after):
        for make in (_fork, _clone, _vfork):
            what = f"{prepare.__name__[1:]}, {make.__name__[1:]}"
            # The pages behind are past the end of the file.
            with GibMap(fd, GIB + PMD) as m:
                context, event = prepare(m)
                with context as protected:
                    gib.store(m, 2, 5, 1)
                    _head(t, first, 1, f"{what}: before")

                    def child():
                        gib.expect(m, 2, 5, 1)
                        gib.store(m, 3, LAST, 1)

                    if event and make is not _vfork:
                        reader = threading.Thread(target=protected.read_event)
                        reader.start()
                        make(child)
                        reader.join()
                    else:
                        make(child)
                    _head(t, first, 1, f"{what}: after")
                    if make is not _vfork:
                        gib.expect(m, 3, LAST, 1)
            _idle(first, f"{what}: after munmap")
    gib.forget_entries(fd)
    _free(first, "with no entry in the file's tree")


@case(**GIANT)
def private_is_small(t):
    """A private mapping is never of 1 GiB, and its copies are its own."""
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    stats = t.stats()
    with GibMap(fd, flags=posix.MAP_PRIVATE) as own:
        # Nobody else maps it yet: for lack of a larger entry this is by 2 MiB.
        own.touch(HALF, 1)
        stats.expect(read_pud=0, write_pud=0, fallback_private=some, read_pmd=1)
        gib.store(own, 2, MIDDLE, 1)
    gib.forget_entries(fd)
    with GibMap(fd) as m, GibMap(fd, flags=posix.MAP_PRIVATE) as own:
        stats = t.stats()
        gib.store(m, 3, 7, 1)
        stats.expect(write_pud=1)
        gib.store(own, 2, MIDDLE, 1)
        stats.expect(write_pud=1, read_pud=0, fallback_private=some, private_pte=some)
        gib.expect(m, 1, MIDDLE, 1)
        gib.expect(own, 2, MIDDLE, 1)
        gib.expect(own, 3, 7, 1)
        gib.expect(own, 1, LAST, 1)
        # What was copied stays, what was not follows the file.
        gib.store(m, 4, MIDDLE, 1)
        gib.store(m, 4, LAST, 1)
        gib.expect(own, 2, MIDDLE, 1)
        gib.expect(own, 4, LAST, 1)
        gib.expect(own, 1, 1000, 2000)
        equal(stats.since().get("read_pud", 0), 0, "faults of 1 GiB in the private mapping")
    _idle(first, "after munmap")
    gib.expect_read(fd, 4, MIDDLE, 1)


@case(**GIANT)
def dropped_and_faulted_back(t):
    """MADV_DONTNEED only unmaps."""
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    with GibMap(fd) as m:
        gib.store(m, 2, MIDDLE, 1)
        resident = _status("RssFile")
        _head(t, first, 1, "mapped")
        m.advise(posix.MADV_DONTNEED)
        check(abs(resident - _status("RssFile") - GIB) < 16 * PMD,
              f"{resident - _status('RssFile')} bytes are not resident any more")
        _head(t, first, 0, "dropped")
        stats = t.stats()
        gib.expect(m, 2, MIDDLE, 1)
        _only(stats, read_pud=1)
        gib.expect(m, 1, 0, MIDDLE)
        # A part of it.
        m.advise(posix.MADV_DONTNEED, HALF, PAGE)
        gib.expect(m, 2, MIDDLE, 1)
        gib.expect(m, 1, MIDDLE + 1, MIDDLE - 1)
    _head(t, first, 0, "unmapped")


# ---- references ----

def _transfer(m, offset, write, fast=True, place=0):
    """A task that moves some pages of the mapping to or from the slow disk.

    It has the pages mapped already (which is what the fast way of pinning needs), or not.
    """
    def go():
        disk = os.open(SlowDisk.PATH, os.O_RDWR | os.O_DIRECT)
        if fast:
            m.touch(offset, 1, write=not write)
        move = posix.pwrite_from if write else posix.pread_to
        return move(disk, m.address + offset, PINNED, place)

    task = Task(go, name="direct write" if write else "direct read")
    task.blocked_in("pwrite64" if write else "pread64")
    return task


def _truncate_waits(t, write):
    """Transfers on some pages hold the whole folio; the blocks are not reused before their end."""
    slow = SlowDisk()
    state = Pages()
    fd = gib.file(t)
    first = gib.frame(t, fd)
    gib.take_rest(t)
    # The first, middle and last pages; each has its place on the disk.
    spots = [0, HALF - 4 * PAGE, GIB - PINNED]
    wanted = [pages("abc"[i], PINNED // PAGE) for i in range(3)]
    for i in range(3):
        slow.fill(bytes(PINNED) if write else wanted[i], i * PINNED)
    with GibMap(fd) as m:
        for i, spot in enumerate(spots):
            if write:
                m.write(spot, wanted[i])
        stats = t.stats()
        slow.hold()
        transfers = []
        references = 0
        for i, spot in enumerate(spots):
            transfers.append(_transfer(m, spot, write, fast=i != 1, place=i * PINNED))
            if t.adopted:
                now, = state.refcounts([first])
                # One for the process's mapping, and at least one for the transfer.
                check(now >= references + 2, f"transfer {i} has {now - references} references")
                references = now
        if t.adopted:
            _only(stats, **({"read_pud": 3} if write else {"write_pud": 3}))
        successor = t.open("successor")

        def cut_and_reuse():
            os.ftruncate(fd, 0)
            check(gib.allocate(t, successor), "the blocks did not come free")
            equal(gib.frame(t, successor), first, "the test means nothing: the blocks' place")
            for spot in spots:
                gib.write(successor, 3, spot // PAGE, PINNED // PAGE)

        waiter = Task(cut_and_reuse)
        waiter.blocked_in("ftruncate")
        equal(os.fstat(fd).st_size, GIB, "size while the transfers are under way")
        if write:
            same_bytes(slow.content(3 * PINNED), bytes(3 * PINNED), "the disk while it is held")
        slow.release()
        for transfer in transfers:
            equal(transfer.result(), PINNED, "bytes moved")
        waiter.result()
        stats.expect(layout_breaks=some, layout_waits=some, layout_wait_ns=lambda n: n > 10 ** 8)
        if write:
            same_bytes(slow.content(3 * PINNED), b"".join(wanted), "what reached the disk")
        equal(os.fstat(fd).st_size, 0, "size")
    for spot in spots:
        gib.expect_read(successor, 3, spot // PAGE, PINNED // PAGE)
    _free(first, "after truncate")


@case(**GIANT)
def truncate_waits_for_direct_writes(t):
    _truncate_waits(t, True)


@case(**GIANT)
def truncate_waits_for_direct_reads(t):
    _truncate_waits(t, False)


@case(**GIANT)
def punch_elsewhere_waits_for_the_folio(t):
    """The hole is far from the page that is in use, but both are one folio: it must stay whole."""
    slow = SlowDisk()
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    with GibMap(fd) as m:
        gib.store(m, 2, LAST - 7, 8)
        slow.hold()
        transfer = _transfer(m, GIB - PINNED, True)
        punch = Task(posix.fallocate, fd, posix.PUNCH_HOLE | posix.KEEP_SIZE, HALF, 16 * PAGE)
        punch.blocked_in("fallocate")
        # Mapped again, by this process, which keeps it when the transfer is over.
        gib.expect(m, 2, LAST - 7, 8)
        slow.release()
        equal(transfer.result(), PINNED, "bytes written")
        punch.result()
        gib.expect(m, 1, 0, MIDDLE)
        gib.expect_zero(m, MIDDLE, 16, every=1)
        gib.expect(m, 1, MIDDLE + 16, MIDDLE - 24)
        gib.expect(m, 2, LAST - 7, 8)
    _idle(first, "after munmap")
    _fill(t, fd, MIDDLE, 16)


def _fill(t, fd, at, count):
    """Give the pool's file back what was cut out of it, in the same place if all goes well."""
    t.sync()
    gib.write(fd, 1, at, count)


@case(**GIANT)
def signal_ends_the_wait(t):
    slow = SlowDisk()
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    with GibMap(fd) as m:
        gib.store(m, 2, MIDDLE, 8)
        slow.hold()
        transfer = _transfer(m, HALF, True)
        waiter = Task(os.ftruncate, fd, 0)
        waiter.blocked_in("ftruncate")
        waiter.kill(signal.SIGTERM)
        equal(waiter.signalled(), signal.SIGTERM, "signal that ended the waiter")
        check(not transfer.done(), "the transfer has ended by itself")
        equal(os.fstat(fd).st_size, GIB, "size")
        gib.expect(m, 2, MIDDLE, 8)
        gib.expect(m, 1, 0, MIDDLE)
        slow.release()
        equal(transfer.result(), PINNED, "bytes written")
    _head(t, first, 0, "unmapped")


@case(**GIANT)
def pages_in_a_pipe_are_held(t):
    """Plain references (vmsplice) to the first, a middle and the last page."""
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    reader, writer = os.pipe()
    spots = (0, MIDDLE, LAST)
    with GibMap(fd) as m:
        for i, at in enumerate(spots):
            gib.store(m, 2, at, 1)
            equal(posix.vmsplice(writer, m.address + at * PAGE, PAGE), PAGE, "bytes in the pipe")
            _head(t, first, 2 + i, "with pages in a pipe")
        # Wherever the cut, the folio is one.
        waiter = Task(os.ftruncate, fd, GIB - PMD)
        waiter.blocked_in("ftruncate")
        for at in spots:
            check(not waiter.done(), "truncate has not waited for the last page")
            data = os.read(reader, PAGE)
            equal(int.from_bytes(data[:8], "little"), 2 << 56 | at << 16, "what was in the pipe")
        waiter.result()
        m.bus_error(GIB - PMD, "behind the cut")
        gib.expect(m, 1, 0, PAGES - 512, other=2)
    _fill(t, fd, PAGES - 512, 512)
    gib.forget_entries(fd)
    _free(first, "afterwards")


@case(**GIANT)
def transfers_of_all_kinds_arrive(t):
    """Direct I/O across the edges of what smaller orders have, of pages that are not mapped yet."""
    slow = SlowDisk()
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    disk = slow.open()
    with GibMap(fd) as m:
        stats = t.stats()
        for at in (0, 510, MIDDLE - 3, LAST - 7):
            m.advise(posix.MADV_DONTNEED)
            equal(posix.pwrite_from(disk, m.address + at * PAGE, PINNED, 0), PINNED, "bytes")
            data = slow.content(PINNED)
            for i in range(8):
                equal(int.from_bytes(data[i * PAGE:i * PAGE + 8], "little"), 1 << 56 | at + i << 16,
                      f"page {at + i} on the disk")
            slow.fill(pages("d", 8, at))
            m.advise(posix.MADV_DONTNEED)
            equal(posix.pread_to(disk, m.address + at * PAGE, PINNED, 0), PINNED, "bytes")
            same_bytes(os.pread(fd, PINNED, at * PAGE), pages("d", 8, at), "read from the disk")
            gib.store(m, 1, at, 8)
        stats.expect(read_pte=0, read_pmd=0, write_pte=0, write_pmd=0, read_pud=some,
                     write_pud=some)
        gib.expect(m, 1)
        # The other way round: the file itself is read into its own mapping.
        equal(posix.pread_to(fd, m.address + HALF, 4 * PMD, PMD), 4 * PMD, "bytes read")
        gib.expect(m, 1, MIDDLE, 4 * 512, number=512)
        equal(posix.pwrite_from(fd, m.address, PMD, HALF), PMD, "bytes written")
        gib.expect(m, 1, MIDDLE, 512, number=0)
    _head(t, first, 0, "unmapped")


@case(**GIANT)
def long_term_pins_are_refused(t):
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    with GibMap(fd) as m:
        gib.store(m, 1, 0, 1)
        for _ in range(2):
            error = raises((14, 22, 95, 12), "registering a page", posix.register_buffer,
                           m.address + HALF, 4 * PAGE)
            _head(t, first, 1 if m.load(0) else 0, "after the refusal")
        t.note(error)
    _head(t, first, 0, "unmapped")


@case(**GIANT)
def idle_after_crash(t):
    """A process is killed while it stores: nothing is held, and nothing stored is forgotten."""
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    ready = os.pipe()

    def child():
        with GibMap(fd) as m:
            _write_spots(m)
            os.write(ready[1], b"1")
            while True:
                gib.store(m, 3, MIDDLE + 512, 512)

    task = Task(child)
    equal(os.read(ready[0], 1), b"1", "the child")
    _head(t, first, 1, "mapped by the child")
    with Flushes() as flushes:
        task.kill()
        equal(task.signalled(), 9, "signal")
        _idle(first, "after the process was killed")
        os.fsync(fd)
        flushes.check_once([first + at for at in SPOTS], "fsync after the crash")
    for spot in SPOTS:
        gib.expect_read(fd, 2, spot, 1)
    gib.expect_read(fd, 3, MIDDLE + 1024 - 1, 1, other=1)
    gib.expect_read(fd, 1, MIDDLE + 1024, 64)
    gib.forget_entries(fd)
    _free(first, "with no entry in the file's tree")


# ---- durability ----

def _flushed_once(flushes, first, when):
    """Each byte of the GiB was flushed once."""
    ranges = sorted((start, length) for _, start, length in flushes.all()
                    if first * PAGE <= start < first * PAGE + GIB)
    equal(sum(length for _, length in ranges), GIB, f"{when}: bytes flushed")
    at = first * PAGE
    for start, length in ranges:
        equal(start, at, f"{when}: where the next flush begins")
        at += length


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
        _flushed_once(flushes, first, "fsync")
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
            _flushed_once(flushes, first, "fsync after another store")
        # msync of a page, sync of everything; what is not mapped any more.
        gib.store(m, 4, MIDDLE, 1)
        flushed(m.sync, HALF, PAGE)
        _flushed_once(flushes, first, "msync of the page")
        gib.store(m, 5, MIDDLE, 1)
        m.unmap()
        other.unmap()
        flushed(t.sync)
        _flushed_once(flushes, first, "syncfs after munmap")
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
            _write_spots(m)
            since = _now()
        os.close(fd)
        t.fs.umount()
        flushes.check_flushed([first + at for at in SPOTS], since, "umount")
        t.fs.mount()
    _free(first, "after umount")
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
        _only(stats, sync_faults=1, write_pud=1)
        _write_spots(m)
        _only(stats, sync_faults=1, write_pud=1)
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
        _only(stats, sync_faults=1, write_pud=1)
        gib.store(m, 2, LAST, 1)
        _only(stats, sync_faults=1, write_pud=1)
        flushes.clear()
        os.fsync(fd)
        _flushed_once(flushes, first, "fsync")
        stats = t.stats()
        gib.store(m, 3, 6, 1)
        _only(stats, write_pud=1)
        # A store where something is mapped for reading, and by another way of mapping.
        gib.forget_entries(fd)
        m.touch(HALF, 1)
        stats = t.stats()
        gib.store(m, 3, 7, 1)
        _only(stats, sync_faults=1, mkwrite_pud=1)
        flushes.clear()
        os.fsync(fd)
        _flushed_once(flushes, first, "fsync after a load and a store")
    for spot, tag in ((5, 2), (6, 3), (7, 3), (LAST, 2)):
        gib.expect_read(fd, tag, spot, 1)


# ---- why not ----




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
        _only(stats, read_pmd=1, fallback_extent=1)
        m.touch((hole - 1) * PAGE, 1)
        again = _again(t)
        _only(stats, read_pmd=1, read_pte=1, fallback_extent=2 + again)
        m.touch(hole * PAGE, 1)
        _only(stats, read_pmd=1, read_pte=1, zero_pte=1, fallback_extent=2 + again)
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
            _only(stats, read_pud=1)
    else:
        t.note("the hole was filled from elsewhere")


@case(**GIANT)
def hole_at_the_beginning(t):
    fd = gib.borrow(t)
    posix.fallocate(fd, posix.PUNCH_HOLE | posix.KEEP_SIZE, 0, 2 * PMD)
    stats = t.stats()
    with GibMap(fd) as m:
        m.touch(HALF, 1)
        _only(stats, read_pmd=1, fallback_hole=1)
        gib.expect_zero(m, 0, 1024)
        _only(stats, read_pmd=1, zero_pmd=2, fallback_hole=1)
        gib.expect(m, 1, 1024, PAGES - 1024)
    _fill(t, fd, 0, 1024)


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
            _only(stats, read_pud=1)
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
        _only(stats, write_pud=1)
        gib.expect(m, 1, MIDDLE + 1, MIDDLE - 2)
        m.load_ok(GIB - 100, 0, "the first byte behind the end")
        m.bus_error(GIB, "the first page behind the end", write=True)
        m.bus_error(2 * GIB - 1, "far behind the end")
        _only(stats, write_pud=1, **({"fault_errors": stats.since()["fault_errors"]}
                                     if stats.known else {}))
    os.ftruncate(fd, GIB - PAGE)
    stats = t.stats()
    with GibMap(fd) as m:
        m.touch(HALF, 1)
        _only(stats, read_pmd=1, fallback_eof=1)
        m.bus_error(GIB - PAGE, "the page behind the end")
        os.ftruncate(fd, GIB)
        m.load_ok(GIB - 1, 0, "the last byte of the hole")
    _fill(t, fd, LAST, 1)


@case(**GIANT)
def nohugepage(t):
    fd = gib.borrow(t)
    stats = t.stats()
    with GibMap(fd) as m:
        m.advise(posix.MADV_NOHUGEPAGE)
        m.touch(HALF, 1)
        _only(stats, read_pte=1)
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
            _only(stats)
            with GibMap(fd) as other:
                gib.store(other, 2, MIDDLE, 1)
                stats.expect(write_pud=0, fallback_max_order=some, write_pte=1)
                gib.expect(m, 2, MIDDLE, 1)
        gib.forget_entries(fd)
        stats = t.stats()
        with GibMap(fd) as m:
            gib.expect(m, 2, MIDDLE, 1)
            _only(stats, read_pmd=1, fallback_max_order=1)
        device.write(switch, "pte")
        gib.forget_entries(fd)
        stats = t.stats()
        with GibMap(fd) as m:
            gib.expect(m, 2, MIDDLE, 1)
            _only(stats, read_pte=1, fallback_max_order=2 + _again(t))
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
            _only(stats, read_pud=1)
    finally:
        device.write(switch, "pud")


# ---- smaller faults inside the entry ----

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
                since = _now()
                os.fsync(fd)
                flushes.check_flushed([first + spot], since, "stored through a small entry")
    _idle(first, "after munmap")


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
    _free(first, "afterwards")


# ---- the file changes ----

@case(**GIANT)
def truncate_inside(t):
    """512 MiB and a page stay, with all that was stored there; behind is nothing."""
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    spots = [spot for spot in SPOTS if spot <= MIDDLE]
    with GibMap(fd) as m, Flushes() as flushes:
        _write_spots(m)
        since = _now()
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
    _idle(first, "after munmap")
    Pages().check_free([first + at for at in SAMPLE if at > MIDDLE], "what was cut off")
    gib.forget_entries(fd)
    _free(first, "with no entry in the file's tree")
    _fill(t, fd, MIDDLE + 1, MIDDLE - 1)


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
    _fill(t, fd, MIDDLE, MIDDLE)


def _changed(t, mode, at, count, parts):
    """fallocate() of `count` pages from page `at` on in a dirty GiB.

    What must be there then: [(page, count, number of the page that was there, or None for zero)].
    """
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    dirty = sorted(set(SPOTS) | {at - 1, at, at + count - 1, at + count})
    shift = {posix.COLLAPSE_RANGE: -count, posix.INSERT_RANGE: count}.get(mode, 0)
    with GibMap(fd) as m, Flushes() as flushes:
        _write_spots(m, dirty)
        since = _now()
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
    _idle(first, "after munmap")
    if mode == posix.INSERT_RANGE:
        posix.fallocate(fd, posix.COLLAPSE_RANGE, at * PAGE, count * PAGE)
    else:
        if mode == posix.COLLAPSE_RANGE:
            posix.fallocate(fd, posix.INSERT_RANGE, at * PAGE, count * PAGE)
        _fill(t, fd, at, count)
    gib.forget_entries(fd)
    _free(first, "with no entry in the file's tree")


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
        _only(stats, write_pud=1)
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
        _head(t, first, 1, "mapped")
        os.ftruncate(fd, 0)
        _free(first, "after truncate, in a mapping that is still there")
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
        _free(first, f"after a file mapped by {order}")


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
    _free(first, "after the file is gone")


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


# ---- reflink ----

@case(**XFS)
def clone_of_a_dirty_file(t):
    """Two files, one GiB: both are mapped by one entry, and a store to one leaves the other."""
    fd, copy = gib.borrow(t), t.open("copy")
    first = gib.frame(t, fd)
    with GibMap(fd) as m, GibMap(copy) as c, Flushes() as flushes:
        _write_spots(m)
        since = _now()
        posix.clone(fd, copy)
        flushes.check_flushed([first + at for at in SPOTS], since, "clone")
        equal(gib.frame(t, copy), first, "the copy's place")
        stats = t.stats()
        m.touch(HALF, 1)
        c.touch(HALF, 1)
        _only(stats, read_pud=2)
        if t.adopted:
            (mapping, share), = Pages().words([first], Pages.MAPPING, Pages.SHARE)
            equal((mapping, share), (0, 2), "(owner, share count) of the shared folio")
            _head(t, first, 2, "mapped by two files")
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
    _free(first, "with no entry in any tree")


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
    _free(first, "with no entry in any tree")


@case(**XFS)
def clones_mapped_at_different_sizes(t):
    fd, copy = gib.borrow(t), t.open("copy")
    first = gib.frame(t, fd)
    posix.clone(fd, copy)
    # The large entry first: the small one points into it.
    with GibMap(copy) as c, GibMap(fd, skew=PAGE) as small:
        stats = t.stats()
        c.touch(HALF, 1)
        _only(stats, read_pud=1)
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
    _free(first, "with no entry in any tree")
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
    _free(first, "with no entry in any tree")


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
    _free(first, "after both are gone")


# ---- everything at once ----

@case(timeout=lambda settings: settings.seconds + 240, fs=("xfs-1g", "ext4-1g"))
def everything_at_once(t):
    """See lib/gib-stress.c."""
    import subprocess
    from lib import native
    fd = gib.file(t, "steady", 1)
    wild = gib.file(t, "wild", 128)
    os.close(fd)
    os.close(wild)
    seconds = max(8, t.settings.seconds // 2)
    seconds = seconds if t.variant.kind == "xfs" else seconds * 2 // 3
    command = [native.path("gib-stress"), "-d", t.dir, "-t", str(seconds), "-s",
               str(t.settings.seed), "-w", "4"]
    if t.variant.reflink:
        command.append("-r")
    slow = SlowDisk()
    slow.delay(3)
    command += ["-D", slow.PATH]
    stats = t.stats()
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in run.stdout:
        t.note(line.rstrip())
    equal(run.wait(), 0, f"status of the stress program (seed {t.settings.seed})")
    stats.expect(read_pud=some, write_pud=some, layout_breaks=some, entries_removed=some,
                 writeback_entries=some, read_pte=some, write_pte=some)
    t.fs.remount()
    done = subprocess.run(command + ["-v"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, check=False)
    equal(done.returncode, 0, f"after mounting again (seed {t.settings.seed}): {done.stdout}")
