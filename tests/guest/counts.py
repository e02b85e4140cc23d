# SPDX-License-Identifier: GPL-2.0
"""What is counted of mappings is what it was once they are gone, whatever was done to them meanwhile: the
process's pages of files, and the node's mapped pages, by any entry and by those of 2 MiB (spec, section 11).

The kernel only looks whether a process's count is zero when its address space ends, which is before the
node's counts would show anything.
"""

import ctypes
import os

from lib import gib, posix
from lib.check import Skip, check
from lib.device import write
from lib.gib import GibMap
from lib.mapping import Map
from lib.native import probe
from lib.pattern import file as _file
from lib.posix import GIB, PAGE, PMD
from lib.runner import case
from lib.task import Task
from lib.uffd import Protected

MLOCK, MUNLOCK = 149, 150
MADV_COLLAPSE = 25
BYTES = 2 * PMD
# A page that is forgotten each time is told from what others map and unmap meanwhile.
TIMES, NOISE = 12, 8


def _counts():
    # The processors' own differences are added up.
    write("/proc/sys/vm/stat_refresh", "1")
    found = {}
    for path in ("/proc/vmstat", "/proc/self/status"):
        with open(path, encoding="ascii") as lines:
            found.update(words[:2] for line in lines if len(words := line.split()) > 1)
    return {"nr_mapped": int(found["nr_mapped"]), "nr_file_pmdmapped": int(found["nr_file_pmdmapped"]),
            "RssFile": int(found["RssFile:"]) * 1024 // PAGE}


def _fork(m, _fd, part):
    def child():
        m.touch(*part, write=True)
        m.advise(posix.MADV_DONTNEED, *part)
        m.touch(*part)

    task = Task(child)
    m.touch(*part, write=True)
    task.result()


def _moved(length):
    """Moves the first bytes of the mapping elsewhere, where they are used and unmapped."""
    def move(m, _fd, part):
        span = length or m.length
        align = GIB if m.length >= GIB else PMD
        room = span + 2 * align
        reserved = posix.mmap(None, room, posix.PROT_NONE, posix.MAP_PRIVATE | posix.MAP_ANONYMOUS
                              | posix.MAP_NORESERVE)
        to = -(-reserved // align) * align + m.address % align
        posix.mremap(m.address, span, span, posix.MREMAP_MAYMOVE | posix.MREMAP_FIXED, to)
        probe().touch(to, span, PAGE if span < GIB else PMD, 1)
        posix.munmap(reserved, room)
        # What was moved away is not the mapping's any more.
        posix.mmap(m.address, span, posix.PROT_NONE, posix.MAP_PRIVATE | posix.MAP_ANONYMOUS
                   | posix.MAP_NORESERVE | posix.MAP_FIXED)
    return move


def _protected(prot):
    def protect(m, _fd, part):
        m.protect(prot, *part)
        m.protect(posix.PROT_RW, *part)
        m.touch(*part, write=True)
    return protect


def _locked(m, _fd, part):
    address, length = m.address + part[0], part[1]
    posix.syscall(MLOCK, address, length)
    m.touch(write=True, step=PMD)
    posix.syscall(MUNLOCK, address, length)


def _user_fault(m, _fd, part):
    with Protected(m):
        m.touch(*part, write=True)
        m.touch(*part)


def _soft_dirty(m, _fd, part):
    write("/proc/self/clear_refs", "4")
    m.touch(*part, write=True)


def _forgotten(whole):
    def forget(m, _fd, part):
        at = (0, m.length) if whole else part
        m.advise(posix.MADV_DONTNEED, *at)
        m.touch(*part, write=True)
    return forget


def _collapsed(m, _fd, _part):
    try:
        m.advise(MADV_COLLAPSE)
    except OSError:
        # Device memory is not collapsed; what was counted must stay so, too.
        pass


def _guarded(m, _fd, part):
    try:
        m.advise(posix.MADV_GUARD_INSTALL, *part)
    except OSError as error:
        raise Skip(f"the kernel has no guard pages for files: {error}") from error
    m.advise(posix.MADV_GUARD_REMOVE, *part)
    m.touch(*part)


def _raced(m, _fd, part):
    counts = (ctypes.c_long * 4)()
    check(not probe().guard_race(m.address, m.length, PAGE, *part, 20, counts), "no thread")


def _written_back(m, fd, part):
    os.fsync(fd)
    m.touch(*part, write=True)


def _truncated(_m, fd, part):
    size = os.fstat(fd).st_size
    os.ftruncate(fd, part[0])
    os.ftruncate(fd, size)
    posix.fallocate(fd, 0, 0, size)


def _mapped_twice(m, fd, part):
    with Map(fd, m.length, skew=PAGE) as other:
        other.touch(*part, write=True)
        m.advise(posix.MADV_DONTNEED, *part)
        m.touch(*part)


WAYS = {
    "nothing": lambda *_: None,
    "fork": _fork,
    "mremap": _moved(0), "mremap of a part": _moved(PMD),
    "mprotect none": _protected(posix.PROT_NONE), "mprotect read": _protected(posix.PROT_READ),
    "mlock": _locked, "userfaultfd": _user_fault, "clear_refs": _soft_dirty,
    "MADV_DONTNEED of a part": _forgotten(False), "MADV_DONTNEED of all, and its tables": _forgotten(True),
    "MADV_COLLAPSE": _collapsed, "guard pages": _guarded,
    "munmap of a part": lambda m, _, part: m.unmap_part(*part),
    "fsync": _written_back, "another mapping": _mapped_twice,
}
# Those that change the file's blocks, or take time for each page.
MORE = {"truncate": _truncated, "a thread that installs guard pages": _raced}


def _change(once):
    before = _counts()
    for _ in range(TIMES):
        once()
    after = _counts()
    return {what: after[what] - before[what] for what in before}


def _counted(t, ways, make, fd, part, step):
    for name, way in ways.items():
        def once(way=way):
            with make() as m:
                m.touch(step=step, write=True)
                way(m, fd, part)
        try:
            # Whatever Python and the libraries map when it is done for the first time.
            once()
        except Skip as skip:
            t.note(f"{name}: {skip}")
            continue
        changed = _change(once)
        if any(abs(change) >= NOISE for change in changed.values()):
            # A library's pages that were not mapped yet are once.
            changed = _change(once)
        check(all(abs(change) < NOISE for change in changed.values()),
              f"{name}, {TIMES} times: the counts have changed by {changed}")


@case(timeout=240)
def counts_of_small_entries_are_what_they_were(t):
    fd = _file(t, BYTES)
    _counted(t, WAYS | MORE, lambda: Map(fd, BYTES, skew=PAGE), fd, (PMD - 4 * PAGE, 9 * PAGE), PAGE)


@case(timeout=240)
def counts_of_entries_of_2_mib_are_what_they_were(t):
    fd = _file(t, BYTES)
    _counted(t, WAYS | MORE, lambda: Map(fd, BYTES), fd, (PMD - 4 * PAGE, 9 * PAGE), PMD)


@case(fs=("xfs-1g", "ext4-1g"), timeout=400)
def counts_of_entries_of_1_gib_are_what_they_were(t):
    fd = gib.borrow(t)
    _counted(t, WAYS, lambda: GibMap(fd), fd, (GIB // 2 - 4 * PAGE, 9 * PAGE), GIB)
