# SPDX-License-Identifier: GPL-2.0
"""What the cases of files mapped by 1 GiB have in common."""

import time

from lib import gib
from lib.check import check, equal
from lib.gib import PAGES
from lib.posix import GIB, PAGE, PMD
from lib.trace import Pages

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
FAULTS = ("read_p", "write_p", "mkwrite_", "zero_p", "private_", "sync_", "cow_", "fallback_",
           "fault_")


def moved_only(stats, **wanted):
    """These counters of faults have moved so far, and no other has."""
    if not stats.known:
        return
    moved = {name: n for name, n in stats.since().items() if n and name.startswith(FAULTS)}
    check(moved == wanted, f"counters moved: {moved} instead of {wanted}")


def process_status(name):
    """A field of the process's status, in bytes."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith(name + ":"))


def check_head(t, first, references, when):
    """The folio of 1 GiB that begins at a frame has that many references, and its tails none."""
    if t.adopted:
        equal(Pages().refcounts([first, first + 1, first + MIDDLE]), [references, 0, 0],
              f"{when}: references to the first page, the second and one in the middle")


def check_folio_idle(first, when):
    Pages().check_idle([first + at for at in SAMPLE], when)


def check_folio_free(first, when):
    Pages().check_free([first + at for at in SAMPLE], when)


def clock():
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def write_spots(m, spots=SPOTS, tag=2):
    for spot in spots:
        gib.store(m, tag, spot, 1)


def survives(t, fd, m, parts, tag=1):
    """The parts of a mapping (first page, count) are as they were, and stores to them arrive."""
    for first, count in parts:
        gib.expect(m, tag, first, count)
        for at in (first, first + count - 1):
            gib.store(m, 9, at, 1)
            gib.expect_read(fd, 9, at, 1)
            gib.store(m, tag, at, 1)
        gib.expect(m, tag, first, min(count, 2048))


def fill_pages(t, fd, at, count):
    """Give the pool's file back what was cut out of it, in the same place if all goes well."""
    t.sync()
    gib.write(fd, 1, at, count)


def flushed_once(flushes, first, when):
    """Each byte of the GiB was flushed once."""
    ranges = sorted((start, length) for _, start, length in flushes.all()
                    if first * PAGE <= start < first * PAGE + GIB)
    equal(sum(length for _, length in ranges), GIB, f"{when}: bytes flushed")
    at = first * PAGE
    for start, length in ranges:
        equal(start, at, f"{when}: where the next flush begins")
        at += length
