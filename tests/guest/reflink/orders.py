# SPDX-License-Identifier: GPL-2.0
"""Clones that are mapped by entries of different sizes."""

import os

from lib.check import check, equal, same_bytes
from lib.mapping import Map
from lib.pattern import page, pages
from lib.posix import PAGE, PMD
from lib.runner import case
from lib.trace import Pages

from .common import XFS, is_file, make_clones


def _sizes(t, huge_first):
    """One clone mapped by 2 MiB entries, the other by 4 KiB ones."""
    state = Pages()
    one, two = make_clones(t, 2 * PMD)
    with Map(one, 2 * PMD) as huge, Map(two, 2 * PMD, skew=PAGE) as small:
        first, second = (huge, small) if huge_first else (small, huge)
        for m in (first, second):
            for at in (0, 5 * PAGE, 511 * PAGE, PMD, PMD + 77 * PAGE):
                value, fault = m.load(at)
                check(not fault.signal, f"load at {at:#x} of the "
                                        f"{'huge' if m is huge else 'small'} mapping: {fault}")
                equal(value, page("f", at // PAGE)[0], f"byte at {at:#x}")
        same_bytes(huge.read(0, 2 * PMD), pages("f", 1024), "huge mapping")
        same_bytes(small.read(0, 2 * PMD), pages("f", 1024), "small mapping")
        t.holds("with both mapped")
        if huge_first:
            equal(huge.mapped_huge(), 2 * PMD, "bytes mapped by huge entries")
        equal(huge.pfn(6 * PAGE), small.pfn(6 * PAGE), "page frame of the same block")
        pfns = huge.pfns()[::37]
        huge.write(6 * PAGE, page("h", 6))
        small.write(7 * PAGE, page("s", 7))
        same_bytes(huge.read(5 * PAGE, 4 * PAGE), page("f", 5) + page("h", 6) + pages("f", 2, 7),
                   "huge mapping after stores")
        same_bytes(small.read(5 * PAGE, 4 * PAGE),
                   pages("f", 2, 5) + page("s", 7) + page("f", 8), "small mapping after stores")
        t.holds("after stores to both")
        os.fsync(one)
        os.fsync(two)
        os.ftruncate(two if huge_first else one, 0)
        survivor = huge if huge_first else small
        same_bytes(survivor.read(PMD, PMD), pages("f", 512, 512), "the file that is left")
    state.check_idle(pfns, "after munmap")
    os.ftruncate(one, 0)
    os.ftruncate(two, 0)
    state.check_free(pfns, "after truncating both")


@case(fs=XFS)
def clones_mapped_huge_then_small(t):
    _sizes(t, huge_first=True)


@case(fs=XFS)
def clones_mapped_small_then_huge(t):
    _sizes(t, huge_first=False)


@case(fs=XFS, quick=False)
def small_clone_outlives_huge_one(t):
    """The huge entry goes first: the small entries still point to the right pages."""
    one, two = make_clones(t, PMD)
    with Map(one, PMD) as huge, Map(two, PMD, skew=PAGE) as small:
        huge.touch(0, 1)
        small.touch(0, 20 * PAGE)
        os.ftruncate(one, 0)
        t.holds("when the huge entry is gone")
        same_bytes(small.read(0, PMD), pages("f", 512), "small mapping")
        small.write(3 * PAGE, page("s", 3))
        os.fsync(two)
    is_file(two, 512, "second file", p3=page("s", 3))
    with Map(two, PMD) as again:
        same_bytes(again.read(4 * PAGE, PMD - 4 * PAGE), pages("f", 508, 4), "mapped again")
