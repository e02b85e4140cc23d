# SPDX-License-Identifier: GPL-2.0
"""Processes that meet in a file's memory, and others who ask a page for its file.

The core finds a futex that processes share by the file and the index that the page's folio says it
is at, as it finds those who are to be told of a memory failure.
"""

import os

from lib import asks, futex, posix
from lib.check import check, equal
from lib.gib import GibMap
from lib.mapping import Map
from lib.pattern import pages
from lib.posix import PAGE, PMD
from lib.runner import case


def _file(t, size=2 * PMD, name="file"):
    fd = t.open(name, allocate=size)
    os.pwrite(fd, pages("x", 4), 0)
    return fd


@case()
def in_pages(t):
    fd = _file(t)
    with Map(fd, PMD, skew=PAGE) as m:
        futex.work(m, 5 * PAGE + 64, lambda: Map(fd, PMD, skew=3 * PAGE))


@case()
def in_huge_pages(t):
    fd = _file(t)
    with Map(fd, 2 * PMD) as m:
        futex.work(m, PMD + 5 * PAGE + 64, lambda: Map(fd, 2 * PMD))
        futex.work(m, PMD, lambda: Map(fd, 2 * PMD, skew=PAGE))


@case(fs=("xfs-1g", "ext4-1g"), timeout=240)
def in_giant_pages(t):
    with GibMap(t.open(allocate=posix.GIB)) as m:
        m.touch(length=PAGE, write=True)
        futex.work(m, PMD + 5 * PAGE + 64, lambda: Map(t.open(), 2 * PMD))


@case(fs=("xfs",))
def in_clones(t):
    """The clones' futexes are not the same, though they are in one page until the first store."""
    one = _file(t)
    two = t.open("two")
    posix.clone(one, two)
    with Map(one, PMD, skew=PAGE) as m, Map(two, PMD, skew=PAGE) as other:
        m.touch()
        other.touch()
        sleeper = futex.sleeper(m.address + 5 * PAGE)
        sleeper.blocked_in("futex")
        equal(futex.wake(other.address + 5 * PAGE), 0, "sleepers in the clone")
        futex.woken(sleeper, m.address + 5 * PAGE)


@case()
def sleepers_and_truncate(t):
    """Cut off, nobody is woken; the same place of the file, when there is one again, wakes them."""
    fd = _file(t)
    for skew in (0, PAGE):
        with Map(fd, 2 * PMD, skew=skew) as m:
            m.touch(write=True)
            sleeper = futex.sleeper(m.address + PMD + 8 * PAGE)
            sleeper.blocked_in("futex")
            os.ftruncate(fd, 0)
            futex.gone(m.address + PMD + 8 * PAGE)
            check(not sleeper.done(), "the sleeper has ended")
            os.ftruncate(fd, 2 * PMD)
            futex.woken(sleeper, m.address + PMD + 8 * PAGE)


@case()
def others_ask(t):
    """What asks a page for its file, or would move it, does no harm to it."""
    fd = _file(t)
    for skew in (0, PAGE):
        with Map(fd, PMD, skew=skew) as m:
            m.touch(write=True)
            said = asks.all_ways(fd, m)
            equal(said["what was written"], "by others", "what others wrote")
            t.note(f"skew {skew}: {said}")
    with open("/sys/kernel/tracing/uprobe_events", "w", encoding="ascii") as events:
        try:
            events.write(f"p:rdax_test {t.path()}:0x100\n")
            events.flush()
            t.note("a probe in a DAX file was taken")
            # It holds the file as long as it is there.
            events.write("-:rdax_test\n")
            events.flush()
        except OSError as error:
            t.note(f"a probe in a DAX file: {error.strerror}")
