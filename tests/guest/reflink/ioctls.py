# SPDX-License-Identifier: GPL-2.0
"""Deduplicating, unsharing, zeroing and cutting shared blocks."""

import os

from lib import posix
from lib.check import check, equal, same_bytes
from lib.device import some
from lib.mapping import Map
from lib.pattern import file as _file, page, pages
from lib.posix import PAGE, PMD
from lib.runner import case
from lib.trace import Flushes, Pages

from .common import XFS, is_file, make_clones, shared_bytes


@case(fs=XFS)
def dedupe(t):
    """Equal ranges come to share blocks; unequal ones are told apart, at any byte."""
    one, two = _file(t, 32 * PAGE, "one"), _file(t, 32 * PAGE, "two")
    with Map(one, 32 * PAGE, skew=PAGE) as m1, Map(two, 32 * PAGE, skew=PAGE) as m2:
        m1.touch()
        m2.touch(write=True)
        stats = t.stats()
        equal(posix.dedupe(one, 0, 8 * PAGE, two, 0), (posix.DEDUPE_SAME, 8 * PAGE), "equal ranges")
        stats.expect(dedupe_compares=some)
        equal(shared_bytes(two), 8 * PAGE, "bytes shared")
        for at in (16 * PAGE, 16 * PAGE + 77, 19 * PAGE + 2000, 24 * PAGE - 1):
            byte = os.pread(two, 1, at)
            m2.store(at, byte[0] ^ 0x10)
            status, _ = posix.dedupe(one, 16 * PAGE, 8 * PAGE, two, 16 * PAGE)
            equal(status, posix.DEDUPE_DIFFERS, f"ranges that differ at {at:#x}")
            m2.store(at, byte[0])
        equal(posix.dedupe(one, 16 * PAGE, 8 * PAGE, two, 16 * PAGE),
              (posix.DEDUPE_SAME, 8 * PAGE), "ranges made equal again")
        equal(shared_bytes(two), 16 * PAGE, "bytes shared")
        m2.write(17 * PAGE, page("w", 17))
        same_bytes(m1.read(0, 32 * PAGE), pages("f", 32), "mapping of the first")
    is_file(one, 32, "first file")
    is_file(two, 32, "second file", p17=page("w", 17))


@case(fs=XFS)
def dedupe_with_holes_and_ends(t):
    one, two = t.open("one", size=16 * PAGE), t.open("two", size=16 * PAGE)
    for fd in (one, two):
        os.pwrite(fd, pages("d", 2), 4 * PAGE)
    equal(posix.dedupe(one, 0, 8 * PAGE, two, 0), (posix.DEDUPE_SAME, 8 * PAGE),
          "equal holes and data")
    os.pwrite(two, bytes(PAGE - 1) + b"\1", 9 * PAGE)
    equal(posix.dedupe(one, 8 * PAGE, 8 * PAGE, two, 8 * PAGE)[0], posix.DEDUPE_DIFFERS,
          "hole against data")
    # A tail that is no whole page, at the end of both files.
    tails = [t.open(name) for name in ("three", "four")]
    for fd in tails:
        os.pwrite(fd, pages("t", 3)[:2 * PAGE + 777], 0)
    equal(posix.dedupe(tails[0], 0, 2 * PAGE + 777, tails[1], 0)[0], posix.DEDUPE_SAME, "tails")
    os.pwrite(tails[1], b"?", 2 * PAGE + 776)
    equal(posix.dedupe(tails[0], 0, 2 * PAGE + 777, tails[1], 0)[0], posix.DEDUPE_DIFFERS,
          "tails that differ in the last byte")


@case(fs=XFS)
def dedupe_unaligned(t):
    """Ranges that are not in whole blocks are refused or rounded, never mixed up."""
    one, two = _file(t, 16 * PAGE, "one"), _file(t, 16 * PAGE, "two")
    for source, target, what in ((100, 0, "source"), (0, 100, "target")):
        status, _ = posix.dedupe(one, source, PAGE, two, target)
        equal(status, -22, f"status for an unaligned {what}")
    status, done = posix.dedupe(one, 0, PAGE + 100, two, 0)
    check((status == posix.DEDUPE_SAME and done <= PAGE + 100) or status == -22,
          f"status {status}, {done} bytes, for an unaligned length")
    for fd in (one, two):
        is_file(fd, 16, "file")


@case(fs=XFS)
def unshare(t):
    """FALLOC_FL_UNSHARE_RANGE: own blocks, same content, mappings included."""
    one, two = make_clones(t, 32 * PAGE)
    with Map(one, 32 * PAGE, skew=PAGE) as m1, Map(two, 32 * PAGE, skew=PAGE) as m2:
        m1.touch()
        m2.touch()
        before = m2.pfn(5 * PAGE)
        equal(m1.pfn(5 * PAGE), before, "page frames of both")
        posix.fallocate(two, posix.UNSHARE_RANGE, 4 * PAGE, 8 * PAGE)
        equal(shared_bytes(two, 4 * PAGE, 12 * PAGE), 0, "bytes still shared")
        check(shared_bytes(two) == 24 * PAGE, f"{shared_bytes(two)} bytes shared outside the range")
        same_bytes(m2.read(0, 32 * PAGE), pages("f", 32), "mapping of the second")
        m2.write(5 * PAGE, page("w", 5))
        m1.write(6 * PAGE, page("v", 6))
        check(m2.pfn(5 * PAGE) != m1.pfn(5 * PAGE), "both still map the same page")
    is_file(one, 32, "first file", p6=page("v", 6))
    is_file(two, 32, "second file", p5=page("w", 5))


@case(fs=XFS)
def copies_are_flushed(t):
    """What is copied because it is shared is durable, like what was written."""
    one, two = make_clones(t, 32 * PAGE)
    with Map(two, 32 * PAGE, skew=PAGE) as m, Flushes() as flushes:
        posix.fallocate(two, posix.UNSHARE_RANGE, 4 * PAGE, 4 * PAGE)
        os.pwrite(two, b"part", 20 * PAGE + 1000)
        posix.fallocate(two, posix.ZERO_RANGE | posix.KEEP_SIZE, 25 * PAGE + 300, 100)
        got = flushes.all()
        m.touch()
        for index, parts, what in ((4, [(0, PAGE)], "unshared"), (7, [(0, PAGE)], "unshared"),
                                   (20, [(0, 1000), (1004, PAGE)], "written in part"),
                                   (25, [(0, 300), (300, 400), (400, PAGE)], "zeroed in part")):
            at = m.pfn(index * PAGE) * PAGE
            for first, end in parts:
                check(any(start <= at + first and start + length >= at + end
                          for _, start, length in got),
                      f"page {index}, {what}: bytes {first} to {end} were not flushed")
    is_file(one, 32, "first file")


@case(fs=XFS, quick=False)
def unshare_of_a_huge_file(t):
    one, two = make_clones(t, 2 * PMD)
    with Map(one, 2 * PMD) as m1, Map(two, 2 * PMD) as m2:
        m1.touch(step=PMD)
        m2.touch(step=PMD)
        posix.fallocate(two, posix.UNSHARE_RANGE, 0, 2 * PMD)
        equal(shared_bytes(one) + shared_bytes(two), 0, "bytes still shared")
        m1.write(PMD, page("v", 512))
        same_bytes(m2.read(0, 2 * PMD), pages("f", 1024), "mapping of the second")
    is_file(two, 1024, "second file")


@case(fs=XFS)
def zero_and_cut_leave_the_other_alone(t):
    """Partial pages of shared blocks are copied before they are zeroed."""
    one, two = make_clones(t, 32 * PAGE)
    with Map(two, 32 * PAGE, skew=PAGE) as m2:
        m2.touch()
        posix.fallocate(two, posix.ZERO_RANGE | posix.KEEP_SIZE, PAGE + 100, PAGE)
        posix.fallocate(two, posix.PUNCH_HOLE | posix.KEEP_SIZE, 9 * PAGE + 5, 3 * PAGE)
        os.ftruncate(two, 20 * PAGE + 50)
        os.ftruncate(two, 32 * PAGE)
        wanted = bytearray(pages("f", 32))
        for start, length in ((PAGE + 100, PAGE), (9 * PAGE + 5, 3 * PAGE),
                              (20 * PAGE + 50, 12 * PAGE - 50)):
            wanted[start:start + length] = bytes(length)
        same_bytes(m2.read(0, 32 * PAGE), wanted, "mapping of the second")
        same_bytes(os.pread(two, 32 * PAGE, 0), wanted, "second file")
    is_file(one, 32, "first file")


@case(fs=XFS)
def shared_pages_are_counted(t):
    """R3: a page of several owners says how many, and ends up idle and free."""
    state = Pages()
    one, two = make_clones(t, 16 * PAGE)
    three = t.open("three")
    posix.clone(one, three)
    with Map(one, 16 * PAGE, skew=PAGE) as m1, Map(two, 16 * PAGE, skew=PAGE) as m2, \
            Map(three, 16 * PAGE, skew=PAGE) as m3:
        for m in (m1, m2, m3):
            m.touch()
        pfns = m1.pfns()
        equal(m2.pfns(), pfns, "page frames of the second")
        for mapping, share in state.words(pfns, state.MAPPING, state.SHARE):
            equal((mapping, share), (0, 3), "(owner, share count)")
        equal(state.refcounts(pfns), [3] * 16, "references")
        os.ftruncate(three, 8 * PAGE)
        equal([share for _, share in state.words(pfns, state.MAPPING, state.SHARE)][8:], [2] * 8,
              "share counts after one file was cut")
        os.pwrite(two, page("w", 12), 12 * PAGE)
        equal(state.words([pfns[12]], state.SHARE)[0][0], 1, "share count after another's copy")
    state.check_idle(pfns, "after munmap")
    for fd in (one, two, three):
        os.ftruncate(fd, 0)
    state.check_free(pfns, "after truncating all")
