# SPDX-License-Identifier: GPL-2.0
"""What is counted for mappings."""

import os
import signal

from lib import posix
from lib.check import Skip, check, equal, same_bytes
from lib.device import wait_for
from lib.mapping import Map
from lib.pattern import file as _file, pages
from lib.posix import PAGE, PMD
from lib.runner import case
from lib.space import neighbours
from lib.task import Task
from lib.trace import Pages


@case(alone=True)
def one_reference_for_each_mapping(t):
    """R1: 0 when idle, one for each page table entry, none for the entry in the tree."""
    state = Pages()
    fd = _file(t, PMD)
    with Map(fd, PMD, skew=PAGE) as m:
        m.touch(0, 8 * PAGE, write=True)
        pfns = m.pfns(0, 8 * PAGE)
        equal(state.counts(pfns), [(1, 1)] * 8, "(references, mappings) of pages mapped once")
        with Map(fd, PMD, skew=PAGE) as other:
            other.touch(0, 4 * PAGE)
            equal(state.counts(pfns), [(2, 2)] * 4 + [(1, 1)] * 4, "with a second mapping")

            def child():
                other.touch(0, 2 * PAGE)
                return state.refcounts(pfns)

            equal(Task(child).result()[:5], [3, 3, 2, 2, 1], "with a second process")
        equal(state.counts(pfns), [(1, 1)] * 8, "with the second mapping gone")
        t.holds("with pages mapped")
    state.check_idle(pfns, "after munmap")
    os.ftruncate(fd, 0)
    state.check_free(pfns, "after truncate")


@case()
def one_reference_for_a_huge_mapping(t):
    state = Pages()
    fd = _file(t, 2 * PMD)
    with Map(fd, 2 * PMD) as m, Map(fd, 2 * PMD) as other:
        m.touch(step=PMD, write=True)
        equal(m.mapped_huge(), 2 * PMD, "bytes mapped by huge entries")
        head, *tails = m.pfns(0, PMD)
        second = m.pfn(PMD)
        equal(state.refcounts([head, second]), [1, 1], "references to the folios")
        other.touch(5 * PAGE, 1)
        equal(state.refcounts([head, second]), [2, 1], "with a second mapping of one")
        t.holds("with huge pages mapped")
        equal(set(state.refcounts(tails[::9])), {0}, "references to tail pages")
        compound = state.words(tails[::9], state.COMPOUND)
        check(all(word & 1 for (word,) in compound), "a tail page does not say it is one")
        m.advise(posix.MADV_DONTNEED)
        equal(state.refcounts([head, second]), [1, 0], "with the first mapping gone")
    state.check_idle([head, second] + tails[::9], "after munmap")
    os.ftruncate(fd, 0)
    state.check_free([head, second] + tails[::9] + tails[-1:], "after truncate")


@case()
def idle_after_exit(t):
    """A process that is killed gives everything back."""
    state = Pages()
    fd = _file(t, 2 * PMD)
    frames = t.path("frames")

    def child():
        huge, small = Map(fd, 2 * PMD), Map(fd, 2 * PMD, skew=PAGE)
        huge.touch(write=True)
        small.touch(write=True)
        with open(frames + ".new", "w", encoding="ascii") as f:
            f.write(" ".join(str(p) for p in huge.pfns()[::50]))
        os.rename(frames + ".new", frames)
        signal.pause()

    task = Task(child)
    wait_for(lambda: os.path.exists(frames), "list of frames")
    with open(frames, encoding="ascii") as f:
        pfns = [int(word) for word in f.read().split()]
    check(any(state.refcounts(pfns)), "no references while mapped")
    task.kill()
    equal(task.signalled(), 9, "signal")
    state.check_idle(pfns, "after the process was killed")


@case(alone=True)
def huge_folio_comes_apart(t):
    """R4: after truncate every page stands alone, and serves as small pages next."""
    state = Pages()
    left, fd = neighbours(t, PMD)
    with Map(fd, PMD) as m:
        m.touch(0, 1, write=True)
        equal(m.mapped_huge(), PMD, "bytes mapped by huge entries")
        pfns = m.pfns()
        os.ftruncate(fd, 0)
        state.check_free(pfns[:3] + pfns[3:500:41] + pfns[-2:], "after truncate")
    t.sync()
    posix.fallocate(left, 0, PMD, PMD)
    with Map(left, PMD, offset=PMD, skew=PAGE) as m:
        m.write(0, pages("n", 512))
        again = m.pfns()
        if not set(again) & set(pfns):
            raise Skip("the filesystem gave other blocks than those of the huge folio")
        equal(state.refcounts(again[::30]), [1] * 18, "references to small pages")
        same_bytes(m.read(0, PMD), pages("n", 512), "content")
