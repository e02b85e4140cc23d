# SPDX-License-Identifier: GPL-2.0
"""Cloning what is mapped, and folios that files share."""

import os
import time

from lib import posix
from lib.check import same_bytes
from lib.mapping import Map
from lib.pattern import file as _file, page, pages
from lib.posix import PAGE, PMD
from lib.runner import case
from lib.trace import Flushes

from .common import XFS, is_file, make_clones


@case(fs=XFS)
def own_page_of_a_huge_mapping_makes_no_other_its_own(t):
    one, two = make_clones(t, PMD)
    with Map(one, PMD) as m:
        m.touch()
        # From now on the first page is no other file's.
        os.pwrite(two, page("w", 0), 0)
        for number in (0, 300):
            m.write(number * PAGE, page("x", number))
        for number in (0, 300):
            same_bytes(os.pread(one, PAGE, number * PAGE), page("x", number), "what was stored")
        same_bytes(os.pread(two, PAGE, 300 * PAGE), page("f", 300), "the other file's page")


@case(fs=XFS)
def huge_store_leaves_the_other_alone(t):
    one, two = make_clones(t, 2 * PMD)
    with Map(one, 2 * PMD) as m1, Map(two, 2 * PMD) as m2:
        m1.touch(step=PMD)
        m2.write(7 * PAGE, page("w", 7))
        m2.write(PMD + 8 * PAGE, page("w", 520))
        same_bytes(m1.read(0, 2 * PMD), pages("f", 1024), "mapping of the first")
        m1.write(9 * PAGE, page("v", 9))
        same_bytes(m2.read(6 * PAGE, 5 * PAGE), page("f", 6) + page("w", 7) + pages("f", 3, 8),
                   "mapping of the second")
        t.holds("with both mapped")
    is_file(one, 1024, "first file", p9=page("v", 9))
    is_file(two, 1024, "second file", p7=page("w", 7), p520=page("w", 520))


@case(fs=XFS)
def clone_of_a_mapped_dirty_file(t):
    """The clone is the file as it was, stored to or not, and stays so."""
    for skew in (0, PAGE):
        fd, clone = _file(t, PMD, f"file{skew}"), t.open(f"clone{skew}")
        with Map(fd, PMD, skew=skew) as m:
            m.write(3 * PAGE, page("b", 3))
            m.write(4 * PAGE, page("b", 4))
            posix.clone(fd, clone)
            m.write(4 * PAGE, page("a", 4))
            m.write(5 * PAGE, page("a", 5))
            same_bytes(m.read(2 * PAGE, 4 * PAGE),
                       page("f", 2) + page("b", 3) + page("a", 4) + page("a", 5), "the mapping")
            is_file(clone, 512, "the clone", p3=page("b", 3), p4=page("b", 4))
            is_file(fd, 512, "the file", p3=page("b", 3), p4=page("a", 4), p5=page("a", 5))


@case(fs=XFS)
def clone_is_flushed(t):
    """What was stored before cloning is written back by the time the clone is there."""
    fd, clone = _file(t, 16 * PAGE), t.open("clone")
    with Map(fd, 16 * PAGE, skew=PAGE) as m, Flushes() as flushes:
        m.write(3 * PAGE, pages("b", 3))
        pfns = m.pfns(3 * PAGE, 3 * PAGE)
        flushes.clear()
        since = time.clock_gettime(time.CLOCK_MONOTONIC)
        posix.clone(fd, clone)
        flushes.check_flushed(pfns, since, "FICLONE")


@case(fs=XFS)
def clone_over_a_mapping(t):
    """A range that is replaced under a mapping shows the new blocks at once."""
    fd, other = _file(t, PMD), t.open("other")
    os.pwrite(other, pages("o", 64), 0)
    for skew in (0, PAGE):
        with Map(fd, PMD, skew=skew) as m:
            m.touch(write=True)
            posix.clone_range(other, 8 * PAGE, 16 * PAGE, fd, 100 * PAGE)
            same_bytes(m.read(99 * PAGE, 18 * PAGE),
                       page("f", 99) + pages("o", 16, 8) + page("f", 116), "the mapping")
            m.write(101 * PAGE, page("x", 101))
            same_bytes(os.pread(other, PAGE, 9 * PAGE), page("o", 9), "the other file")
        os.pwrite(fd, pages("f", 16, 100), 100 * PAGE)


@case(fs=XFS, quick=False)
def many_clones(t):
    """A dozen clones, stored to in turn."""
    files = [_file(t, 16 * PAGE, "f0")]
    for i in range(1, 12):
        files.append(t.open(f"f{i}"))
        posix.clone(files[-2], files[-1])
        with Map(files[-1], 16 * PAGE, skew=(i % 2) * PAGE) as m:
            m.write(i % 16 * PAGE, page("c", i))
    for i, fd in enumerate(files):
        is_file(fd, 16, f"clone {i}", **{f"p{j}": page("c", j) for j in range(1, i + 1)})
    for i in (5, 0, 11):
        os.ftruncate(files[i], 0)
    for i in (1, 6, 10):
        is_file(files[i], 16, f"clone {i} after others were cut",
            **{f"p{j}": page("c", j) for j in range(1, i + 1)})
