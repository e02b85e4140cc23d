# SPDX-License-Identifier: GPL-2.0
"""Stores and writes to shared blocks."""

import contextlib
import os
import random
import time

from lib import device, posix
from lib.check import Skip, check, equal, same_bytes
from lib.fs import Filesystem
from lib.mapping import Map
from lib.pattern import file as _file, noise, page, pages
from lib.posix import PAGE, PMD
from lib.runner import case
from lib.task import Task

from .common import XFS, is_file, make_clones, shared_bytes


@case(fs=XFS)
def store_leaves_the_other_alone(t):
    one, two = make_clones(t, 32 * PAGE)
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
        is_file(one, 32, f"first file {when}", p5=five)
        is_file(two, 32, f"second file {when}", p3=page("w", 3), p20=page("w", 20))
        if when == "now":
            os.close(one)
            os.close(two)
            t.fs.remount()
            one, two = t.open("one"), t.open("two")


@case(fs=XFS)
def pwrite_leaves_the_other_alone(t):
    """Whole pages, parts of pages, across pages: the rest of a copied page comes along."""
    one, two = make_clones(t, 32 * PAGE)
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
    one, two = make_clones(t, 4 * PMD)
    before = pages("f", 4 * PMD // PAGE)
    data = noise(3 * PMD + 5000, 1)
    equal(os.pwrite(one, data, 100), len(data), "pwrite")
    model = bytearray(before)
    model[100:100 + len(data)] = data
    same_bytes(os.pread(one, 4 * PMD, 0), model, "the file that was written to")
    same_bytes(os.pread(two, 4 * PMD, 0), before, "the other file")
    # And from a mapping of the file itself, no page of which is there yet.
    posix.clone(two, t.open("three"))
    check(shared_bytes(two) == 4 * PMD, "cloning shared nothing")
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
    equal(shared_bytes(two), 0, f"{how}: bytes that are still shared")
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
