# SPDX-License-Identifier: GPL-2.0
"""Files that share blocks: each may go its own way, by any means, without the other noticing."""

import contextlib
import errno
import fcntl
import os
import random
import signal
import threading
import time

from lib import device, posix
from lib.check import Skip, check, equal, same_bytes
from lib.device import SlowDisk, some
from lib.fs import Filesystem
from lib.mapping import Map
from lib.pattern import noise, page, pages
from lib.pattern import file as _file
from lib.posix import PAGE, PMD
from lib.runner import case
from lib.task import Task, describe, state
from lib.trace import Flushes, Pages
from lib.uffd import Missing

XFS = ("xfs",)


def _clones(t, size):
    """Two files that share all blocks."""
    one = _file(t, size, "one")
    two = t.open("two")
    posix.clone(one, two)
    check(_shared(one) == _shared(two) == size, "cloning shared nothing")
    return one, two


def _shared(fd, start=0, end=1 << 60):
    return sum(min(e[0] + e[2], end) - max(e[0], start) for e in posix.extents(fd)
               if e[3] & posix.EXTENT_SHARED and e[0] < end and e[0] + e[2] > start)


def _is(fd, count, what, **changed):
    """The file is as _file() made it but for the pages named like p3=content."""
    wanted = bytearray(pages("f", count))
    for key, value in changed.items():
        at = int(key[1:]) * PAGE
        wanted[at:at + len(value)] = value
    same_bytes(os.pread(fd, count * PAGE + 1, 0), wanted, what)


@case(fs=XFS)
def store_leaves_the_other_alone(t):
    one, two = _clones(t, 32 * PAGE)
    stats = t.stats()
    with Map(one, 32 * PAGE, skew=PAGE) as m1, Map(two, 32 * PAGE, skew=PAGE) as m2:
        m1.touch(0, 16 * PAGE)
        m2.touch(0, 16 * PAGE)
        m2.write(3 * PAGE, page("w", 3))        # read by both before
        m2.write(20 * PAGE, page("w", 20))      # read by nobody before
        m1.write(5 * PAGE + 100, b"five")
        same_bytes(m1.read(0, 32 * PAGE)[3 * PAGE:4 * PAGE], page("f", 3), "mapping of the first")
        same_bytes(m2.read(3 * PAGE, PAGE), page("w", 3), "mapping of the second")
        same_bytes(m2.read(5 * PAGE, PAGE), page("f", 5), "second, page 5")
        t.holds("with both mapped")
    five = page("f", 5)[:100] + b"five" + page("f", 5)[104:]
    stats.expect(cow_pages=lambda n: n >= 3)
    for when in ("now", "after mounting again"):
        _is(one, 32, f"first file {when}", p5=five)
        _is(two, 32, f"second file {when}", p3=page("w", 3), p20=page("w", 20))
        if when == "now":
            os.close(one)
            os.close(two)
            t.fs.remount()
            one, two = t.open("one"), t.open("two")


@case(fs=XFS)
def pwrite_leaves_the_other_alone(t):
    """Whole pages, parts of pages, across pages: the rest of a copied page comes along."""
    one, two = _clones(t, 32 * PAGE)
    rng = random.Random(t.settings.seed)
    models = {one: bytearray(pages("f", 32)), two: bytearray(pages("f", 32))}
    with Map(one, 32 * PAGE, skew=PAGE) as m1, Map(two, 32 * PAGE, skew=PAGE) as m2:
        m1.touch()
        m2.touch()
        for step in range(24):
            fd = rng.choice((one, two))
            length = rng.choice((1, 5, 100, 4096, 5000, 8192))
            at = rng.choice((rng.randrange(32) * PAGE, rng.randrange(32 * PAGE)))
            at = min(at, 32 * PAGE - length)
            data = noise(length, step)
            equal(os.pwrite(fd, data, at), length, "pwrite")
            models[fd][at:at + length] = data
            for m, of in ((m1, one), (m2, two)):
                same_bytes(m.read(0, 32 * PAGE), models[of],
                           f"mapping of {'first' if of == one else 'second'} after step {step}, "
                           f"{length} bytes at {at:#x} into the "
                           f"{'first' if fd == one else 'second'} (seed {t.settings.seed})")
    for fd, model in models.items():
        same_bytes(os.pread(fd, 33 * PAGE, 0), model, "file")


@case(fs=XFS)
def long_pwrite_keeps_all_that_it_wrote(t):
    """Wherever it begins: more than is copied in one go."""
    one, two = _clones(t, 4 * PMD)
    before = pages("f", 4 * PMD // PAGE)
    data = noise(3 * PMD + 5000, 1)
    equal(os.pwrite(one, data, 100), len(data), "pwrite")
    model = bytearray(before)
    model[100:100 + len(data)] = data
    same_bytes(os.pread(one, 4 * PMD, 0), model, "the file that was written to")
    same_bytes(os.pread(two, 4 * PMD, 0), before, "the other file")
    # And from a mapping of the file itself, no page of which is there yet.
    posix.clone(two, t.open("three"))
    check(_shared(two) == 4 * PMD, "cloning shared nothing")
    with Map(two, 4 * PMD) as m:
        equal(posix.pwrite_from(two, m.address + 2 * PMD, PMD, 100), PMD, "pwrite of itself")
    model = bytearray(before)
    model[100:100 + PMD] = before[2 * PMD:3 * PMD]
    same_bytes(os.pread(two, 4 * PMD, 0), model, "the file that was copied within")


def _write_from_itself(t, name, size, source, offset, length):
    """A clone is written to from its own mapping, which takes the source out of the page tables."""
    one = _file(t, size, name)
    two = t.open(f"{name}-clone")
    posix.clone(one, two)
    model = bytearray(pages("f", size // PAGE))
    model[offset:offset + length] = model[source:source + length]
    with Map(two, size) as m:
        m.touch()
        task = Task(posix.pwrite_from, two, m.address + source, length, offset,
                    name=f"write of {length} bytes at {source:#x} to {offset:#x}")
        equal(task.result(), length, "bytes written")
        same_bytes(m.read(0, size), model, "the mapping afterwards")
    same_bytes(os.pread(two, size, 0), model, "the file afterwards")
    same_bytes(os.pread(one, size, 0), pages("f", size // PAGE), "the other file")
    os.close(one)
    os.close(two)


@case(fs=XFS)
def pwrite_from_its_own_mapping_ends(t):
    """Each piece takes away what the next copy would be from: to the same place, one beside it,
    and one in the same huge entry, in parts of pages, and over more than is copied in one go."""
    _write_from_itself(t, "same", PMD, 0, 0, PAGE)
    _write_from_itself(t, "beside", PMD, 0, PAGE, 3 * PAGE)
    _write_from_itself(t, "entry", PMD, 0, 1 << 20, 1 << 20)
    _write_from_itself(t, "parts", PMD, 100, 60 * PAGE + 50, 50 * PAGE + 7)
    _write_from_itself(t, "large", 4 * PMD, 77, 2 * PMD - 5 * PAGE, PMD + 50 * PAGE)


class _Beside:
    """A second device, on which the kernel's own code can be had, too."""

    NAME = "pmem1"

    def __init__(self, t):
        t.need_adopted()
        if not device.exists(self.NAME):
            raise Skip(f"there is no {self.NAME}")
        self.fs = Filesystem(t.variant, self.NAME, "/mnt/rdax-beside")
        self.was = device.adopted(self.NAME)

    @contextlib.contextmanager
    def mounted(self, adopted):
        """A new filesystem, served by the module or by the kernel; the directory."""
        device.adopt(self.NAME, adopted)
        try:
            self.fs.make()
            self.fs.mount()
            try:
                yield self.fs.mount_point
            finally:
                self.fs.umount()
        finally:
            device.adopt(self.NAME, self.was)


def _overwrite(fd, how, size, rng):
    """Write all of the file anew, in a way of that name."""
    by, piece, order = how.split()
    step = {"4k": PAGE, "1m": 1 << 20}[piece]
    places = list(range(0, size, step))
    if order == "random":
        rng.shuffle(places)
    if by == "pwrite":
        for at in places:
            equal(os.pwrite(fd, bytes([at // PAGE % 251]) * step, at), step, how)
        return
    with Map(fd, size, skew=PAGE if by == "small-store" else 0) as m:
        if by == "read-store":
            m.touch()
        for at in places:
            m.write(at, bytes([at // PAGE % 251]))


# Each line on a filesystem of its own.
WAYS = (("pwrite 4k sorted", "pwrite 4k random", "pwrite 1m sorted"),
        ("store 4k sorted", "store 4k random"),
        ("small-store 4k sorted", "small-store 4k random"),
        ("read-store 4k sorted", "read-store 4k random"))


def _rewrite(directory, how, size, seed):
    """(extents, seconds of processor time) of rewriting a clone."""
    one, two = (os.open(f"{directory}/{name} {how}", os.O_RDWR | os.O_CREAT)
                for name in ("one", "two"))
    os.pwrite(one, bytes(size), 0)
    os.fsync(one)
    posix.clone(one, two)
    since = time.process_time()
    _overwrite(two, how, size, random.Random(seed))
    took = time.process_time() - since
    equal(_shared(two), 0, f"{how}: bytes that are still shared")
    extents = posix.extent_count(two)
    os.close(one)
    os.close(two)
    return extents, took


@case(fs=XFS, timeout=240)
def rewritten_clones_are_in_few_pieces(t):
    """In no more than the kernel's own code leaves: what XFS has set aside for the copy is used."""
    beside, size, found = _Beside(t), 4 << 20, {}
    for ways in WAYS:
        for adopted in (False, True):
            with beside.mounted(adopted) as directory:
                for how in ways:
                    found.setdefault(how, []).append(
                        _rewrite(directory, how, size, t.settings.seed))
    bad = []
    for how, ((theirs, before), (ours, after)) in found.items():
        t.note(f"{how}: {theirs} extents and {before:.2f} s by the kernel's own code, "
               f"{ours} and {after:.2f} s by the module")
        if ours > theirs:
            bad.append(how)
    check(not bad, f"in more pieces (seed {t.settings.seed}): {', '.join(bad)}")


@case(fs=XFS)
def pwrite_and_stores_to_shared_blocks_lose_nothing(t):
    """Each makes copies of what both files have; neither may copy over what the other wrote."""
    size, rng = 4 * PMD, random.Random(t.settings.seed)
    for turn in range(4):
        one = _file(t, size, f"one{turn}")
        two = t.open(f"two{turn}")
        posix.clone(one, two)
        spots = [rng.randrange(size // PAGE) * PAGE for _ in range(200)]

        def store(two=two, turn=turn, spots=spots):
            with Map(two, size, skew=PAGE if turn % 2 else 0) as m:
                for spot in spots:
                    equal(m.store(spot, 0x33).signal, 0, "signal of a store")

        storing = Task(store)
        equal(os.pwrite(two, b"\x22" * size, 0), size, "pwrite")
        storing.result()
        there = os.pread(two, size, 0)
        lost = [at // PAGE for at in range(0, size, PAGE)
                if there[at + 64:at + PAGE] != b"\x22" * (PAGE - 64)]
        check(not lost, f"of {len(lost)} pages the write is lost, {lost[:8]} (turn {turn}, "
                        f"seed {t.settings.seed})")
        same_bytes(os.pread(one, size, 0), pages("f", size // PAGE), "the other file")
        for fd in (one, two):
            os.close(fd)


@case(fs=XFS)
def own_page_of_a_huge_mapping_makes_no_other_its_own(t):
    one, two = _clones(t, PMD)
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
    one, two = _clones(t, 2 * PMD)
    with Map(one, 2 * PMD) as m1, Map(two, 2 * PMD) as m2:
        m1.touch(step=PMD)
        m2.write(7 * PAGE, page("w", 7))
        m2.write(PMD + 8 * PAGE, page("w", 520))
        same_bytes(m1.read(0, 2 * PMD), pages("f", 1024), "mapping of the first")
        m1.write(9 * PAGE, page("v", 9))
        same_bytes(m2.read(6 * PAGE, 5 * PAGE), page("f", 6) + page("w", 7) + pages("f", 3, 8),
                   "mapping of the second")
        t.holds("with both mapped")
    _is(one, 1024, "first file", p9=page("v", 9))
    _is(two, 1024, "second file", p7=page("w", 7), p520=page("w", 520))


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
            _is(clone, 512, "the clone", p3=page("b", 3), p4=page("b", 4))
            _is(fd, 512, "the file", p3=page("b", 3), p4=page("a", 4), p5=page("a", 5))


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
        equal(_shared(two), 8 * PAGE, "bytes shared")
        for at in (16 * PAGE, 16 * PAGE + 77, 19 * PAGE + 2000, 24 * PAGE - 1):
            byte = os.pread(two, 1, at)
            m2.store(at, byte[0] ^ 0x10)
            status, _ = posix.dedupe(one, 16 * PAGE, 8 * PAGE, two, 16 * PAGE)
            equal(status, posix.DEDUPE_DIFFERS, f"ranges that differ at {at:#x}")
            m2.store(at, byte[0])
        equal(posix.dedupe(one, 16 * PAGE, 8 * PAGE, two, 16 * PAGE),
              (posix.DEDUPE_SAME, 8 * PAGE), "ranges made equal again")
        equal(_shared(two), 16 * PAGE, "bytes shared")
        m2.write(17 * PAGE, page("w", 17))
        same_bytes(m1.read(0, 32 * PAGE), pages("f", 32), "mapping of the first")
    _is(one, 32, "first file")
    _is(two, 32, "second file", p17=page("w", 17))


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
        _is(fd, 16, "file")


@case(fs=XFS)
def unshare(t):
    """FALLOC_FL_UNSHARE_RANGE: own blocks, same content, mappings included."""
    one, two = _clones(t, 32 * PAGE)
    with Map(one, 32 * PAGE, skew=PAGE) as m1, Map(two, 32 * PAGE, skew=PAGE) as m2:
        m1.touch()
        m2.touch()
        before = m2.pfn(5 * PAGE)
        equal(m1.pfn(5 * PAGE), before, "page frames of both")
        posix.fallocate(two, posix.UNSHARE_RANGE, 4 * PAGE, 8 * PAGE)
        equal(_shared(two, 4 * PAGE, 12 * PAGE), 0, "bytes still shared")
        check(_shared(two) == 24 * PAGE, f"{_shared(two)} bytes shared outside the range")
        same_bytes(m2.read(0, 32 * PAGE), pages("f", 32), "mapping of the second")
        m2.write(5 * PAGE, page("w", 5))
        m1.write(6 * PAGE, page("v", 6))
        check(m2.pfn(5 * PAGE) != m1.pfn(5 * PAGE), "both still map the same page")
    _is(one, 32, "first file", p6=page("v", 6))
    _is(two, 32, "second file", p5=page("w", 5))


@case(fs=XFS)
def copies_are_flushed(t):
    """What is copied because it is shared is durable, like what was written."""
    one, two = _clones(t, 32 * PAGE)
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
    _is(one, 32, "first file")


@case(fs=XFS, quick=False)
def unshare_of_a_huge_file(t):
    one, two = _clones(t, 2 * PMD)
    with Map(one, 2 * PMD) as m1, Map(two, 2 * PMD) as m2:
        m1.touch(step=PMD)
        m2.touch(step=PMD)
        posix.fallocate(two, posix.UNSHARE_RANGE, 0, 2 * PMD)
        equal(_shared(one) + _shared(two), 0, "bytes still shared")
        m1.write(PMD, page("v", 512))
        same_bytes(m2.read(0, 2 * PMD), pages("f", 1024), "mapping of the second")
    _is(two, 1024, "second file")


@case(fs=XFS)
def zero_and_cut_leave_the_other_alone(t):
    """Partial pages of shared blocks are copied before they are zeroed."""
    one, two = _clones(t, 32 * PAGE)
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
    _is(one, 32, "first file")


@case(fs=XFS)
def shared_pages_are_counted(t):
    """R3: a page of several owners says how many, and ends up idle and free."""
    state = Pages()
    one, two = _clones(t, 16 * PAGE)
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


def _sizes(t, huge_first):
    """One clone mapped by 2 MiB entries, the other by 4 KiB ones."""
    state = Pages()
    one, two = _clones(t, 2 * PMD)
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
    one, two = _clones(t, PMD)
    with Map(one, PMD) as huge, Map(two, PMD, skew=PAGE) as small:
        huge.touch(0, 1)
        small.touch(0, 20 * PAGE)
        os.ftruncate(one, 0)
        t.holds("when the huge entry is gone")
        same_bytes(small.read(0, PMD), pages("f", 512), "small mapping")
        small.write(3 * PAGE, page("s", 3))
        os.fsync(two)
    _is(two, 512, "second file", p3=page("s", 3))
    with Map(two, PMD) as again:
        same_bytes(again.read(4 * PAGE, PMD - 4 * PAGE), pages("f", 508, 4), "mapped again")


def _copied_under_transfer(t, size, skew, offset):
    """pwrite() gives the file its own copy while a direct write reads the shared one."""
    state, slow = Pages(), SlowDisk()
    one, two = _clones(t, size)
    count = size // PAGE
    with Map(two, size, skew=skew) as m:
        m.touch(0, size)
        pfns = m.pfns(offset, 4 * PAGE)
        slow.hold()

        def transfer():
            return posix.pwrite_from(slow.open(), m.address + offset, 4 * PAGE, 0)

        writer = Task(transfer, name="direct write")
        writer.blocked_in("pwrite64")
        first = offset // PAGE

        def overwrite():
            return os.pwrite(two, pages("w", 4, first), offset)

        writing = Task(overwrite, name="pwrite")
        waits = writing.waits_in("pwrite64")
        if waits:
            t.note("pwrite waits for the transfer")
        else:
            equal(writing.result(), 4 * PAGE, "bytes written to the file")
            same_bytes(m.read(offset, 4 * PAGE), pages("w", 4, first), "mapping after pwrite")

        # A page that has not been copied. In a huge folio it is held as well: that may wait.
        def look():
            same_bytes(m.read(offset + 4 * PAGE, PAGE), page("f", first + 4), "the next page")

        looking = Task(look)
        if not waits and skew:
            looking.result()
        elif not waits and not looking.join(1):
            t.note("a page of the folio that is held was not to be had meanwhile")
        slow.release()
        looking.result()
        equal(writer.result(), 4 * PAGE, "bytes of the direct write")
        equal(writing.result(), 4 * PAGE, "bytes written to the file")
        same_bytes(slow.content(4 * PAGE), pages("f", 4, first), "what reached the disk")
        same_bytes(m.read(offset, 5 * PAGE), pages("w", 4, first) + page("f", first + 4),
                   "mapping afterwards")
    _is(one, count, "first file")
    _is(two, count, "second file", **{f"p{first}": pages("w", 4, first)})
    state.check_idle(pfns, "afterwards")
    with Map(one, size, skew=skew) as m:
        same_bytes(m.read(0, size), pages("f", count), "the first file, mapped afterwards")
        m.write(offset, page("z", 1))
        same_bytes(os.pread(one, PAGE, offset), page("z", 1), "stored afterwards")
    os.ftruncate(one, 0)
    os.ftruncate(two, 0)
    state.check_free(pfns, "after truncating both")


@case(fs=XFS, quick=False)
def copy_on_write_under_transfer(t):
    _copied_under_transfer(t, 32 * PAGE, PAGE, 3 * PAGE)


@case(fs=XFS)
def copy_on_write_under_transfer_from_huge_page(t):
    _copied_under_transfer(t, PMD, 0, 30 * PAGE)


@case(fs=XFS, quick=False)
def block_freed_under_transfer_waits(t):
    """The copy leaves the old block with one owner; when that goes too, the transfer counts."""
    slow = SlowDisk()
    one, two = _clones(t, 16 * PAGE)
    with Map(two, 16 * PAGE, skew=PAGE) as m:
        m.touch()
        slow.hold()
        writer = Task(lambda: posix.pwrite_from(slow.open(), m.address, 4 * PAGE, 0),
                      name="direct write")
        writer.blocked_in("pwrite64")
        waiter = Task(os.ftruncate, two, 0)
        waiter.blocked_in("ftruncate")
        slow.release()
        equal(writer.result(), 4 * PAGE, "bytes of the direct write")
        waiter.result()
        same_bytes(slow.content(4 * PAGE), pages("f", 4), "what reached the disk")
    _is(one, 16, "first file")


HELD = 64 * PAGE


def _in_a_pipe(fd, size, skew, offset=0, length=HELD):
    """The end to read a pipe from that holds pages of the file, which nothing maps any more."""
    reader, writer = os.pipe()
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 1 << 20)
    with Map(fd, size, skew=skew) as m:
        m.touch()
        equal(posix.vmsplice(writer, m.address + offset, length), length, "bytes in the pipe")
    os.close(writer)
    return reader


@contextlib.contextmanager
def _little_space(t, room):
    """Nearly all of the free blocks are taken: what is given back is used next."""
    filler, left = t.open("filler"), os.statvfs(t.dir)
    size, at = left.f_bavail * left.f_bsize - room, 0
    piece = 1 << 30
    while size - at >= PMD and piece >= PMD:
        try:
            posix.fallocate(filler, 0, at, min(piece, size - at))
            at += min(piece, size - at)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            piece >>= 1
    try:
        yield
    finally:
        os.ftruncate(filler, 0)
        os.close(filler)


def _write_until_full(t, name):
    """Another user's file, with all the blocks that there are."""
    with open(t.path(name), "wb", buffering=0) as f:
        try:
            while True:
                f.write(b"SECRET!!" * (1 << 16))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        os.fsync(f.fileno())


def _foreign(data):
    """Pages with anything but what was put into the pipe and what was written over it, which may be
    half done."""
    return [at // PAGE for at in range(0, len(data), PAGE)
            if data[at:at + PAGE].replace(b"w", b"f") != page("f", at // PAGE)]


def _goes_as_far_as_it_can(task):
    """Whether the task has ended; or it sleeps, as if it waited for somebody."""
    asleep = 0
    while asleep < 15 and not task.done():
        asleep += state(task.pid) in "SD"
        time.sleep(0.02)
    return task.done()


def _by_pwrite(t, fd, other):
    os.pwrite(fd, pages("w", HELD // PAGE), 0)


def _by_stores(t, fd, other):
    with Map(fd, PMD, skew=PAGE) as m:
        m.write(0, pages("w", HELD // PAGE))


def _by_huge_stores(t, fd, other):
    with Map(fd, PMD) as m:
        m.write(0, pages("w", HELD // PAGE))


def _by_unlink(t, fd, other):
    os.close(fd)
    os.unlink(t.path(other))


def _by_truncate(t, fd, other):
    os.ftruncate(fd, 0)


def _by_punch(t, fd, other):
    posix.fallocate(fd, posix.PUNCH_HOLE | posix.KEEP_SIZE, 0, HELD)


def _by_zeroing(t, fd, other):
    posix.fallocate(fd, posix.ZERO_RANGE, 0, HELD)


def _in_place(t, fd, other):
    """What nobody else has any more is written over where it is."""
    os.pwrite(fd, b"SECRET!!" * (HELD // 8), 0)


def _by_dedupe(t, fd, other):
    same = t.open("same")
    os.pwrite(same, pages("f", HELD // PAGE), 0)
    equal(posix.dedupe(same, 0, HELD, fd, 0)[0], posix.DEDUPE_SAME, "dedupe")


def _by_copying(t, fd, other):
    source = t.open("source")
    os.pwrite(source, b"SECRET!!" * (HELD // 8), 0)
    equal(os.copy_file_range(source, fd, HELD, 0, 0), HELD, "bytes copied")


def _nobody_sees(t, skew, overwrite, drop, number):
    """Pages of a file are in a pipe; the file gets its own copy, the other gives the blocks up, and
    somebody else's file takes what is free. Whoever has to wait goes on when the pipe was read."""
    one, two = _file(t, PMD, f"one{number}"), t.open(f"two{number}")
    posix.clone(one, two)
    with _little_space(t, 8 * PMD):
        reader = _in_a_pipe(one, PMD, skew)
        tasks = []
        for function, fd, name in ((overwrite, one, f"one{number}"), (drop, two, f"two{number}")):
            task = Task(function, t, fd, name, name=function.__name__)
            os.close(fd)
            tasks.append((task, _goes_as_far_as_it_can(task)))
        _write_until_full(t, f"secret{number}")
        data = b"".join(os.read(reader, PAGE) for _ in range(HELD // PAGE))
        os.close(reader)
        for task, _ in tasks:
            task.result()
        os.unlink(t.path(f"secret{number}"))
    what = " and ".join(f"{task.name[1:]}{'' if ended else ' (which waited)'}"
                        for task, ended in tasks)
    foreign = _foreign(data)
    check(not foreign, f"{len(foreign)} of {HELD // PAGE} pages in the pipe are another file's "
                       f"after {what} with {'small' if skew else 'huge'} entries")
    return what


def _seen_by_nobody(t, skew):
    number = 0
    for overwrite in (_by_pwrite, _by_stores, _by_huge_stores):
        for drop in (_by_unlink, _in_place) if overwrite != _by_pwrite else \
                (_by_unlink, _by_truncate, _by_punch, _by_zeroing, _in_place, _by_dedupe,
                 _by_copying):
            what = _nobody_sees(t, skew, overwrite, drop, number)
            t.note(what)
            number += 1
            for name in os.listdir(t.dir):
                os.unlink(t.path(name))


@case(fs=XFS, timeout=300)
def held_pages_show_no_other_file(t):
    """Whoever reads pages of a file that has got its own copy since sees nothing of what the old
    blocks are used for: they stay the file's as long as somebody holds them."""
    _seen_by_nobody(t, PAGE)


@case(fs=XFS, timeout=300)
def held_huge_pages_show_no_other_file(t):
    _seen_by_nobody(t, 0)


def _left_by_a_write(t, number):
    """A file with blocks set aside for a copy that was not made: the write ended before. There was
    another user's file in them."""
    one, two = _file(t, PMD, f"one{number}"), t.open(f"two{number}")
    posix.clone(one, two)
    _write_until_full(t, "secret")
    with open(t.path("secret"), "r+b", buffering=0) as secret:
        secret.truncate(0)
        os.fsync(secret.fileno())
    source = _file(t, PAGE, f"source{number}")
    with Map(source, PMD, skew=PAGE) as m:
        equal(posix.pwrite_from(two, m.address, PMD, 0), PAGE, "bytes of which there are any")
    os.close(source)
    os.close(one)
    return two


def _punched(t, fd, offset, length):
    posix.fallocate(fd, posix.PUNCH_HOLE | posix.KEEP_SIZE, offset, length)


def _zeroed(t, fd, offset, length):
    posix.fallocate(fd, posix.ZERO_RANGE | posix.KEEP_SIZE, offset, length)


def _hole_cloned(t, fd, offset, length):
    hole = t.open("hole")
    os.ftruncate(hole, PMD)
    posix.clone_range(hole, offset, length, fd, offset)
    posix.fallocate(fd, posix.UNSHARE_RANGE, offset, length)
    os.close(hole)


@case(fs=XFS, timeout=300)
def what_was_set_aside_for_a_write_is_not_taken_for_data(t):
    """What a write that ended early has not written to is nobody's data: a hole stays one."""
    wrong = []
    with _little_space(t, 8 * PMD):
        for number, way in enumerate((_punched, _zeroed, _hole_cloned)):
            fd = _left_by_a_write(t, number)
            way(t, fd, 16 * PAGE, 64 * PAGE)
            data = os.pread(fd, PMD, 0)
            if data[16 * PAGE:80 * PAGE] != bytes(64 * PAGE):
                wrong.append(f"{way.__name__}: {data[16 * PAGE:16 * PAGE + 16]}")
            with Map(fd, PMD, skew=PAGE) as m:
                if m.read(16 * PAGE, 64 * PAGE) != bytes(64 * PAGE):
                    wrong.append(f"{way.__name__}, mapped")
            same_bytes(data[:16 * PAGE], pages("f", 16), "before the hole")
            same_bytes(data[80 * PAGE:], pages("f", 512 - 80, 80), "behind the hole")
            os.close(fd)
            for name in os.listdir(t.dir):
                if name != "filler":
                    os.unlink(t.path(name))
    check(not wrong, f"a hole is not zeroes: {wrong}")


@case(fs=XFS)
def a_page_held_beside_keeps_its_blocks(t):
    """A copy of one page of a huge entry takes the whole entry away: what is held of the rest is
    still the file's when that is cut off."""
    for number, way in enumerate((lambda fd, m: os.pwrite(fd, page("w", 300), 300 * PAGE),
                                  lambda fd, m: m.write(300 * PAGE, page("w", 300)))):
        one, two = _file(t, PMD, f"one{number}"), t.open(f"two{number}")
        posix.clone(one, two)
        with Map(one, PMD) as m:
            reader = _in_a_pipe(one, PMD, 0)
            writing = Task(way, one, m, name="write beside")
            _goes_as_far_as_it_can(writing)
            cutting = [Task(os.ftruncate, fd, 0) for fd in (one, two)]
            for task in cutting:
                _goes_as_far_as_it_can(task)
            with _little_space(t, 4 * PMD):
                _write_until_full(t, "secret")
                data = b"".join(os.read(reader, PAGE) for _ in range(HELD // PAGE))
                os.close(reader)
                for task in cutting:
                    task.result()
                # A store behind the end of what is left of the file ends in a signal.
                if number == 0:
                    writing.result()
                else:
                    writing.join(30)
                os.unlink(t.path("secret"))
        equal(_foreign(data), [], "pages of another file")
        os.close(one)
        os.close(two)


@case(fs=XFS)
def read_that_waits_for_its_buffer_shows_no_other_file(t):
    """While a read waits, stores give the file other blocks, and the old ones go to another file."""
    count = 256
    one, two = _clones(t, count * PAGE)
    with Map(-1, count * PAGE, flags=posix.MAP_PRIVATE | posix.MAP_ANONYMOUS) as buffer, \
            Missing(buffer) as missing, _little_space(t, 4 * PMD):
        done = []
        reading = threading.Thread(
            target=lambda: done.append(posix.pread_to(one, buffer.address, count * PAGE, 0)))
        reading.start()
        equal(missing.wait(), buffer.address, "address that is wanted")
        with Map(one, count * PAGE, skew=PAGE) as m:
            for at in range(count):
                m.write(at * PAGE, page("w", at))
        os.fsync(one)
        os.close(two)
        os.unlink(t.path("two"))
        os.sync()
        _write_until_full(t, "secret")
        missing.give(bytes(count * PAGE))
        reading.join()
        equal(done, [count * PAGE], "bytes that were read")
        data = buffer.read(0, count * PAGE)
        os.unlink(t.path("secret"))
    foreign = [at for at in range(count)
               if data[at * PAGE:(at + 1) * PAGE] not in (page("f", at), page("w", at))]
    equal(foreign, [], "pages of another file")
    os.close(one)


@case(fs=XFS)
def what_comes_before_a_held_page_is_written(t):
    """A page that somebody holds keeps a long write from its own place on, and from there only. The
    write ends before that page when it has waited for a while, and the next waits with nothing held."""
    one, two = _clones(t, PMD)
    at = 300 * PAGE
    reader = _in_a_pipe(one, PMD, PAGE, at, PAGE)
    old, data = os.pread(two, PMD, 0), pages("n", 512)

    def write():
        done = 0
        while done < PMD:
            done += os.pwrite(one, data[done:], done)
            check(done in (at, PMD), f"{done} bytes were written")

    writing = Task(write)
    with Map(one, PMD, skew=PAGE) as m:
        device.wait_for(lambda: m.read(at - PAGE, PAGE) == data[at - PAGE:at], "data before the page")
        writing.blocked_in("pwrite64")
        same_bytes(m.read(0, at), data[:at], "what comes before the page")
        same_bytes(m.read(at, PMD - at), old[at:], "the rest")
        same_bytes(os.read(reader, PAGE), old[at:at + PAGE], "what is in the pipe")
        writing.result()
        same_bytes(m.read(0, PMD), data, "the file")
    same_bytes(os.pread(two, PMD, 0), old, "the clone")
    for fd in (one, two, reader):
        os.close(fd)


def _ended_by(t, number, overwrite, catch, call):
    """The wait for somebody who holds the old page ends with a signal, and nothing was done."""
    one, two = _file(t, PMD, "one"), t.open("two")
    posix.clone(one, two)
    reader = _in_a_pipe(one, PMD, PAGE)

    def write():
        if catch:
            signal.signal(number, lambda *_: os._exit(77))
            signal.siginterrupt(number, True)
        overwrite(t, one, "one")

    writing = Task(write, name=overwrite.__name__)
    try:
        if call:
            writing.blocked_in(call)
        else:
            check(not _goes_as_far_as_it_can(writing),
                  "a store to a page that is held did not wait")
        writing.kill(number)
        if catch:
            check(writing.join(20), "the signal was not handled:\n" + describe(writing.pid))
            equal(os.waitstatus_to_exitcode(writing.status), 77, "status")
        else:
            equal(writing.signalled(20), number, "signal that ended the wait")
        data = os.read(reader, PAGE)
        same_bytes(data, page("f", 0), "what was in the pipe")
    finally:
        os.close(reader)
    _is(one, 512, "the file")
    _is(two, 512, "the clone")
    os.pwrite(one, page("w", 0), 0)
    _is(one, 512, "the file that was written to then", p0=page("w", 0))
    os.close(one)
    os.close(two)


@case(fs=XFS)
def signals_end_the_wait_for_a_held_page(t):
    t.need_adopted()
    for number, catch in ((signal.SIGKILL, False), (signal.SIGTERM, False), (signal.SIGUSR1, True)):
        _ended_by(t, number, _by_pwrite, catch, "pwrite64")
        if not catch:
            # Python's own handlers would run after the store.
            _ended_by(t, number, _by_stores, catch, None)


@case(fs=XFS)
def sigkill_ends_a_clone_over_held_pages(t):
    """XFS looks at the pages of two files, and waits for those of one; for the others' it tries again
    and again."""
    low, high = sorted((_file(t, PMD, name) for name in ("one", "two")),
                       key=lambda fd: os.fstat(fd).st_ino)
    for source, target in ((low, high), (high, low)):
        reader = _in_a_pipe(target, PMD, PAGE)
        try:
            task = Task(posix.clone, source, target)
            check(not _goes_as_far_as_it_can(task),
                  "a clone over pages that are held did not wait")
            task.kill()
            equal(task.signalled(20), signal.SIGKILL, "signal that ended the clone")
            same_bytes(os.read(reader, PAGE), page("f", 0), "what was in the pipe")
        finally:
            os.close(reader)
        equal(_shared(target), 0, "bytes shared after the clone was ended")
        posix.clone(source, target)
        _is(target, 512, "the clone")
        os.pwrite(target, pages("f", 512), 0)


@case(fs=XFS)
def a_pipe_goes_back_where_it_came_from(t):
    """The write that would wait for its own source says so; elsewhere it is written."""
    one, two = _file(t, PMD, "one"), t.open("two")
    posix.clone(one, two)
    for target, name in ((0, "to the same place"), (3 * PAGE, "over a part of itself")):
        reader = _in_a_pipe(one, PMD, PAGE)
        task = Task(os.splice, reader, one, HELD, None, target, name=f"splice {name}")
        check(task.join(20), f"splice {name} does not end:\n" + describe(task.pid))
        kind, text = task.outcome()
        check(kind == "result" or f"[Errno {errno.EDEADLK}]" in text or f"({errno.EDEADLK}," in text,
              f"splice {name}: {kind} {text}")
        os.close(reader)
        if kind == "fail":
            _is(one, 512, f"the file after a splice {name}")
    reader = _in_a_pipe(one, PMD, PAGE)
    equal(Task(os.splice, reader, one, HELD, None, 100 * PAGE).result(), HELD, "bytes spliced")
    os.close(reader)
    _is(one, 512, "the file", p100=pages("f", HELD // PAGE))
    _is(two, 512, "the clone")


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
        _is(fd, 16, f"clone {i}", **{f"p{j}": page("c", j) for j in range(1, i + 1)})
    for i in (5, 0, 11):
        os.ftruncate(files[i], 0)
    for i in (1, 6, 10):
        _is(files[i], 16, f"clone {i} after others were cut",
            **{f"p{j}": page("c", j) for j in range(1, i + 1)})
