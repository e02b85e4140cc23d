# SPDX-License-Identifier: GPL-2.0
"""What is in page tables after a fault, and what is counted, noted and told for it."""

import ctypes
import fcntl
import os
import signal
import struct
import threading
import time

from lib import posix
from lib.check import Failure, Skip, check, equal, same_bytes
from lib.device import SlowDisk, wait_for
from lib.mapping import Map
from lib.native import probe
from lib.pattern import page, pages
from lib.pattern import file as _file
from lib.posix import PAGE, PMD
from lib.runner import case
from lib.task import Task
from lib.trace import Pages
from lib.uffd import Missing, Protected

BLOCK = 16                      # pages that a fault maps


def _resident():
    """Bytes of files that the process has mapped, as it is counted."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssFile:"))


# ---- zeroes ----

@case()
def holes_are_not_counted(t):
    """Zeroes take no reference and are nobody's memory, however often they are mapped."""
    fd = t.open(size=32 * PMD)
    slack = 4 * PMD
    before = _resident()
    stats = t.stats()
    maps = []
    references = None
    for _ in range(4):
        m = Map(fd, 32 * PMD, align=PMD)
        m.touch(step=PMD)
        maps.append(m)
        zero = {m.pfn(at) for at in range(0, 32 * PMD, PMD)}
        equal(len(zero), 1, "frames that the holes are mapped with")
        if t.adopted and not isinstance(Pages._base, str):
            now = Pages().refcounts([zero.pop()])[0]
            # The core's own zeroes have a reference for each process, which has come with the first.
            references = now if references is None else references
            equal(now, references, "references to the zeroes")
    stats.expect(zero_pmd=4 * 32)
    check(_resident() - before < slack, f"{_resident() - before} bytes are resident for holes")
    equal(maps[0].smaps()["Rss"], 0, "Rss of a mapping of holes")

    def child():
        for m in maps:
            same_bytes(m.read(5 * PMD, PMD), bytes(PMD), "zeroes in the child")

    Task(child).result()
    maps[0].write(3 * PMD + 5 * PAGE, page("w", 1))
    for m in maps:
        same_bytes(m.read(3 * PMD + 5 * PAGE, PAGE), page("w", 1), "what was stored")
        same_bytes(m.read(2 * PMD, PMD), bytes(PMD), "a hole beside it")
        m.advise(posix.MADV_DONTNEED, PMD + PAGE, PMD)
        same_bytes(m.read(PMD, 2 * PMD), bytes(2 * PMD), "holes that were dropped in part")
        m.unmap()
    check(abs(_resident() - before) < slack, f"{_resident() - before} bytes are left")


@case()
def zero_pages_are_not_counted(t):
    fd = t.open(size=2 * PMD)
    before = _resident()
    with Map(fd, PMD, align=PMD, skew=PAGE) as m:
        m.touch()
        equal(m.mapped(), PMD, "bytes mapped")
        equal(m.smaps()["Rss"], 0, "Rss of a mapping of holes")
        check(_resident() - before < PMD, f"{_resident() - before} bytes are resident for holes")


# ---- soft-dirty ----

def _forget_stores():
    with open("/proc/self/clear_refs", "w", encoding="ascii") as clear:
        clear.write("4")


@case()
def soft_dirty_is_what_was_stored_to(t):
    fd = _file(t, 64 * PAGE)
    with Map(fd, 64 * PAGE) as m:
        m.touch(write=True)
        _forget_stores()
        if m.soft_dirty():
            raise Skip("the kernel does not know soft-dirty")
        for spots in ([3, 16, 40], [0], [7, 8, 9, 10, 11, 12], list(range(64))):
            for spot in spots:
                m.write(spot * PAGE, page("s", spot))
            equal(m.soft_dirty(), spots, "pages that were stored to")
            _forget_stores()
            equal(m.soft_dirty(), [], "pages after that was forgotten")
        # Where nothing is mapped.
        m.advise(posix.MADV_DONTNEED)
        _forget_stores()
        for spot in (5, 6, 7, 30):
            m.write(spot * PAGE, page("s", spot))
        m.touch(0, 64 * PAGE)
        equal(m.soft_dirty(), [5, 6, 7, 30], "pages that were stored to where nothing was mapped")
        os.fsync(fd)
        _forget_stores()
        for spot in (9, 10, 11, 12, 13):
            m.write(spot * PAGE, page("s", spot))
        equal(m.soft_dirty(), [9, 10, 11, 12, 13], "pages that were stored to after fsync")
    same_bytes(os.pread(fd, PAGE, 40 * PAGE), page("s", 40), "the file")


@case()
def large_entries_are_soft_dirty_when_stored_to(t):
    fd = _file(t, 1536 * PAGE)
    with Map(fd, 3 * PMD, align=PMD) as m:
        m.touch(write=True, step=PMD)
        check(m.mapped_huge() == 3 * PMD, "the file is not mapped by 2 MiB")
        _forget_stores()
        if m.soft_dirty():
            raise Skip("the kernel does not know soft-dirty")
        m.write(PMD + 5 * PAGE, page("s", 5))
        equal(m.soft_dirty(), list(range(512, 1024)), "pages of the entry that was stored to")


# ---- markers ----

def _race(m, step, guarded, length, milliseconds=1500):
    counts = (ctypes.c_long * 4)()
    error = probe().guard_race(m.address, m.length, step, guarded, length, milliseconds, counts)
    equal(error, 0, "error of the thread")
    accesses, _, outside, other = counts
    check(not outside, f"{outside} of {accesses} accesses to pages that nobody guards got SIGSEGV")
    check(not other, f"{other} of {accesses} accesses got another signal")


def _guards_or_skip(m):
    try:
        m.advise(posix.MADV_GUARD_INSTALL, 0, PAGE)
        m.advise(posix.MADV_GUARD_REMOVE, 0, PAGE)
    except OSError as error:
        raise Skip(f"the kernel has no guard pages for files: {error}") from error


@case(timeout=120)
def guard_pages_come_and_go_among_faults(t):
    """A marker that comes while a fault is served is nothing that a fault fails for."""
    fd = _file(t, 1024 * PAGE)
    with Map(fd, 64 * PAGE, align=PMD, skew=PAGE) as m:
        _guards_or_skip(m)
        _race(m, PAGE, 5 * PAGE, PAGE)
        _race(m, PAGE, 0, 64 * PAGE)
    with Map(fd, 2 * PMD, align=PMD) as m:
        _race(m, PMD // 8, PMD + 5 * PAGE, PAGE)
        _race(m, PMD // 2, 0, PMD)
    hole = t.open("hole", size=2 * PMD)
    with Map(hole, 2 * PMD, prot=posix.PROT_READ, align=PMD) as m:
        m.touch()
        m.advise(posix.MADV_GUARD_INSTALL, PMD, PAGE)
        m.advise(posix.MADV_GUARD_REMOVE, PMD, PAGE)
        same_bytes(m.read(0, 2 * PMD), bytes(2 * PMD), "holes that were guarded")


@case()
def only_what_is_accessed_is_mapped_where_accesses_count(t):
    t.need_adopted()
    fd = _file(t, 64 * PAGE)
    with Map(fd, 64 * PAGE, align=PMD, skew=PAGE) as m:
        with Protected(m, protect=False):
            m.touch(20 * PAGE, PAGE)
            for at in (3, 4, 5, 6):
                m.write(at * PAGE, page("w", at))
            equal(m.mapped(), 5 * PAGE, "bytes mapped")


def _stored_after_scan(fd, kernel):
    with Map(fd, 2 * PMD) as m:
        m.touch(step=PMD, write=True)
        with Protected(m, protect=False):
            m.protect_written()
            equal(m.mapped_huge(), 2 * PMD, "bytes mapped by huge entries")
            equal(m.written(), [], "pages that were stored to")
            if kernel:
                with Map(-1, PAGE, flags=posix.MAP_PRIVATE | posix.MAP_ANONYMOUS) as source:
                    source.write(0, page("s"))
                    posix.process_vm_write(os.getpid(), source.address, m.address + 9 * PAGE, PAGE)
            else:
                m.write(9 * PAGE, page("s"))
            check(9 in m.written(), "the store was not noted")
            check(not any(at >= PMD // PAGE for at in m.written()), "a store that was none was noted")


@case()
def store_to_a_huge_entry_that_was_protected_by_a_scan(t):
    """PAGEMAP_SCAN protects an entry of 2 MiB as it is; nobody takes it apart before the store."""
    for kernel in (False, True):
        fd = _file(t, 2 * PMD)
        store = Task(_stored_after_scan, fd, kernel, name="store")
        try:
            store.result()
        finally:
            store.kill()
        os.close(fd)


# ---- times ----

STEP = 0.03                     # seconds between stores; the clock of files has steps of 4 ms
REALTIME_COARSE = 5


def _now():
    """By the clock that files have, which may be late."""
    return time.clock_gettime_ns(REALTIME_COARSE)


def _read_file(t, size):
    """A file that was read: before a filesystem reads, it is not known how, and nothing is mapped ahead
    for writing."""
    fd = _file(t, size)
    os.pread(fd, 1, 0)
    return fd


def _changed(fd):
    return os.fstat(fd).st_mtime_ns


def _store_slowly(fd, m, spots):
    """Store to pages one after the other. Returns when the last store was, at the earliest."""
    for spot in spots:
        time.sleep(STEP)
        before = _now()
        m.write(spot * PAGE, page("t", spot))
    return before


PATTERNS = ([0, 1, 2, 3, 4, 5], list(range(10, 19)), [40, 41, 42, 47], [50, 51, 52, 53, 53, 54, 55],
            [63])


def _told(fd, since, what):
    check(_changed(fd) >= since,
          f"{what}: st_mtime is {(since - _changed(fd)) / 1e6:.0f} ms older than the last store")


@case()
def times_tell_of_every_store(t):
    """Whatever was mapped ahead, the file's times move when somebody has stored to it."""
    fd = _read_file(t, 64 * PAGE)

    def end_by_unmap(m):
        m.unmap()

    def end_by_drop(m):
        m.advise(posix.MADV_DONTNEED)
        m.unmap()

    def end_by_protection(m):
        m.protect(posix.PROT_READ)
        os.fsync(fd)
        m.unmap()

    def end_by_no_access(m):
        m.protect(posix.PROT_NONE)
        m.unmap()

    def end_by_sync_without_access(m):
        m.protect(posix.PROT_NONE)
        os.fsync(fd)
        m.unmap()

    def end_by_move(m):
        with Map(-1, m.length, flags=posix.MAP_PRIVATE | posix.MAP_ANONYMOUS) as place:
            posix.mremap(m.address, m.length, m.length,
                         posix.MREMAP_MAYMOVE | posix.MREMAP_FIXED, place.address)
            place.sync()

    def end_by_sync(m):
        m.sync()
        m.unmap()

    def end_by_truncate(m):
        os.ftruncate(fd, 65 * PAGE)
        os.ftruncate(fd, 64 * PAGE)

    for spots in PATTERNS:
        for end in (end_by_sync, end_by_unmap, end_by_drop, end_by_protection, end_by_no_access,
                    end_by_sync_without_access, end_by_move, end_by_truncate):
            what = f"{end.__name__}, {spots}"
            m = Map(fd, 64 * PAGE)
            before = _store_slowly(fd, m, spots)
            end(m)
            _told(fd, before, what)
            os.fsync(fd)
            _told(fd, before, f"{what}, fsync")
            m.unmap()

        def child(spots=spots):
            return _store_slowly(fd, Map(fd, 64 * PAGE), spots)

        _told(fd, Task(child).result(), f"exit, {spots}")
        os.fsync(fd)
        # Pages that are written back already.
        for protect in (False, True):
            with Map(fd, 64 * PAGE) as m:
                m.touch(write=True)
                os.fsync(fd)
                before = _store_slowly(fd, m, spots)
                if protect:
                    m.protect(posix.PROT_READ)
                os.fsync(fd)
                _told(fd, before, f"write-protected, {spots}")


@case()
def times_tell_of_stores_of_who_is_killed(t):
    fd = _read_file(t, 64 * PAGE)
    reader, writer = os.pipe()

    def child():
        os.write(writer, struct.pack("q", _store_slowly(fd, Map(fd, 64 * PAGE), PATTERNS[0])))
        signal.pause()

    task = Task(child)
    before, = struct.unpack("q", os.read(reader, 8))
    task.kill()
    equal(task.signalled(), signal.SIGKILL, "the signal that ended it")
    os.fsync(fd)
    _told(fd, before, "after SIGKILL")


def _opened(t, fd, m):
    """Have a page mapped ahead, and say which."""
    # What is known of a sequence may be lost at any time.
    for _ in range(10):
        m.write(0, pages("t", 6))
        os.fsync(fd)
        stats = t.stats()
        m.write(0, pages("t", 3))
        if not t.adopted or stats.since()["around_pte"]:
            return 3
        os.fsync(fd)
    raise Failure("nothing was mapped ahead")


@case()
def times_tell_of_what_the_kernel_writes(t):
    """It needs no fault of the processor for a page that is mapped for writing."""
    fd = _read_file(t, 64 * PAGE)
    disk = SlowDisk().open()
    memory = os.open("/proc/self/mem", os.O_RDWR)
    with Map(-1, PAGE, flags=posix.MAP_PRIVATE | posix.MAP_ANONYMOUS) as source:
        source.write(0, page("k"))
        ways = {
            "direct read": lambda to: posix.pread_to(disk, to, PAGE, 0),
            "process_vm_writev":
                lambda to: posix.process_vm_write(os.getpid(), source.address, to, PAGE),
            "/proc/self/mem": lambda to: os.pwrite(memory, page("k"), to),
        }
        for end in (lambda m: os.fsync(fd), lambda m: m.unmap()):
            for name, way in ways.items():
                with Map(fd, 64 * PAGE) as m:
                    spot = _opened(t, fd, m)
                    time.sleep(STEP)
                    before = _now()
                    equal(way(m.address + spot * PAGE), PAGE, f"{name}: bytes")
                    end(m)
                    _told(fd, before, name)
                os.fsync(fd)
    os.close(disk)
    os.close(memory)


@case()
def times_tell_of_stores_that_fault_for_nothing(t):
    """A page that is mapped for writing already is nothing that a fault asks the filesystem for."""
    fd, other = _read_file(t, 64 * PAGE), _file(t, 2 * PAGE, "other")
    for end in (lambda m: os.fsync(fd), lambda m: m.unmap()):
        with Map(fd, 64 * PAGE) as m, \
                Map(-1, PAGE, flags=posix.MAP_PRIVATE | posix.MAP_ANONYMOUS) as missing:
            spot = _opened(t, fd, m)
            time.sleep(STEP)
            before = _now()
            # The first is missing, so the kernel has all that follow there.
            buffers = [(ctypes.c_char * PAGE).from_address(at)
                       for at in (missing.address, m.address + spot * PAGE)]
            equal(os.preadv(other, buffers, 0), 2 * PAGE, "bytes that were read")
            end(m)
            _told(fd, before, "read into a page mapped ahead")
        os.fsync(fd)


FREEZE, THAW = 0xC0045877, 0xC0045878


@case()
def times_tell_of_stores_before_a_freeze(t):
    """Also of those that become known while a filesystem waits until it can be frozen."""
    fd, other = _read_file(t, 64 * PAGE), t.open("other")
    with Map(-1, PAGE, flags=posix.MAP_PRIVATE | posix.MAP_ANONYMOUS) as buffer, \
            Missing(buffer) as missing:
        m = Map(fd, 64 * PAGE)
        before = _store_slowly(fd, m, PATTERNS[0])
        writing = threading.Thread(target=posix.pwrite_from, args=(other, buffer.address, PAGE, 0))
        writing.start()
        missing.wait()
        freeze = Task(fcntl.ioctl, fd, FREEZE, 0)
        try:
            freeze.blocked_in("ioctl")
            m.unmap()
        finally:
            missing.give(page("w"))
            writing.join()
            freeze.result()
            fcntl.ioctl(fd, THAW, 0)
    os.fsync(fd)
    wait_for(lambda: _changed(fd) >= before, "the time of the last store")
    same_bytes(os.pread(other, PAGE, 0), page("w"), "what was written before the freeze")


@case()
def times_do_not_move_without_a_store(t):
    """What was mapped ahead and left alone is not taken for written to."""
    fd = _read_file(t, 64 * PAGE)
    for end in (lambda m: os.fsync(fd), lambda m: m.unmap(), lambda m: m.protect(posix.PROT_READ)):
        with Map(fd, 64 * PAGE) as m:
            m.write(0, pages("t", 6))
            os.fsync(fd)
            # The third has the fourth mapped ahead, which would be stored to without a fault.
            stats = t.stats()
            m.write(0, pages("t", 3))
            if t.adopted:
                check(stats.since()["around_pte"], "nothing was mapped ahead")
            changed = _changed(fd)
            time.sleep(STEP)
            end(m)
            m.unmap()
            os.fsync(fd)
            equal(_changed(fd), changed, "st_mtime")


@case()
def sequences_are_still_cheap(t):
    t.need_adopted()
    fd = _read_file(t, 512 * PAGE)
    with Map(fd, 512 * PAGE, align=PMD, skew=PAGE) as m:
        stats = t.stats()
        m.touch(write=True)
        faults = stats.since()
        check(faults["write_pte"] + faults["mkwrite_pte"] < 512 // 4,
              f"512 stores in a row took {faults['write_pte']} faults")
    same_bytes(os.pread(fd, BLOCK * PAGE, 0), pages("f", BLOCK), "the file")
