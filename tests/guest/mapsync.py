# SPDX-License-Identifier: GPL-2.0
"""MAP_SYNC: once a store has returned, a power cut cannot take the block away.

The power cut is a shutdown of the filesystem that throws its log in memory away. The memory
itself keeps what was stored; what can be lost is that the block belongs to the file.
"""

import os

from lib import posix
from lib.check import check, equal, same_bytes
from lib.device import some
from lib.mapping import Map
from lib.pattern import page
from lib.posix import PAGE, PMD
from lib.runner import case

SYNC = posix.MAP_SHARED_VALIDATE | posix.MAP_SYNC


def _durable(t, files):
    """Store through MAP_SYNC into several files, cut the power, look.

    files: name -> (how the blocks are there at first, alignment skew, offsets to store at)
    """
    for name, (kind, _, _) in files.items():
        fd = t.open(name, allocate=2 * PMD if kind == "unwritten" else None,
                    size=2 * PMD if kind == "hole" else None)
        os.fsync(fd)
        os.close(fd)
    t.sync()
    control = t.open("control", size=PAGE)
    os.fsync(control)
    for name, (_, skew, offsets) in files.items():
        fd = t.open(name)
        with Map(fd, 2 * PMD, flags=SYNC, skew=skew) as m:
            for i, offset in enumerate(offsets):
                m.write(offset, page(name[0], i))
                same_bytes(m.read(offset, PAGE), page(name[0], i), "mapping after the store")
        os.close(fd)
    with Map(control, PAGE) as m:
        m.write(0, page("l", 0))
        # Cut the power: nothing is written from here on.
        posix.shut_down(t.fs.mount_point)
    os.close(control)
    t.fs.remount()
    for name, (_, _, offsets) in files.items():
        fd = t.open(name)
        equal(os.fstat(fd).st_size, 2 * PMD, f"size of {name}")
        written = [e for e in posix.extents(fd) if not e[3] & posix.EXTENT_UNWRITTEN]
        for i, offset in enumerate(offsets):
            check(any(e[0] <= offset < e[0] + e[2] for e in written),
                  f"{name}: no written extent at {offset:#x} after the power cut: {written}")
            same_bytes(os.pread(fd, PAGE, offset), page(name[0], i), f"{name} at {offset:#x}")
        same_bytes(os.pread(fd, PAGE, 100 * PAGE), bytes(PAGE), f"{name}: a page never stored to")
    fd = os.open(t.path("control"), os.O_RDONLY)
    lost = os.pread(fd, PAGE, 0) != page("l", 0)
    t.note("control: a store without MAP_SYNC was " + ("lost" if lost else "not lost"))


@case(spoils=True)
def small_stores_are_durable(t):
    _durable(t, {"unwritten": ("unwritten", PAGE, [0, 3 * PAGE, PMD + 7 * PAGE]),
                 "hole": ("hole", PAGE, [PAGE, PMD])})


@case(spoils=True)
def huge_stores_are_durable(t):
    _durable(t, {"unwritten": ("unwritten", 0, [5 * PAGE, PMD + 9 * PAGE]),
                 "hole": ("hole", 0, [PMD + 5 * PAGE])})


@case(spoils=True)
def store_after_load_is_durable(t):
    """The block comes with the store, also when a load was there first, or another mapping."""
    fd = t.open(size=2 * PMD)
    os.fsync(fd)
    t.sync()
    with Map(fd, 2 * PMD, flags=SYNC) as m, Map(fd, 2 * PMD, skew=PAGE) as other:
        m.touch(0, 2 * PMD, step=PMD)
        m.write(3 * PAGE, page("a", 3))
        other.write(PMD + 4 * PAGE, page("o", 4))
        m.write(PMD + 4 * PAGE, page("b", 4))
        posix.shut_down(t.fs.mount_point)
    os.close(fd)
    t.fs.remount()
    fd = t.open()
    same_bytes(os.pread(fd, PAGE, 3 * PAGE), page("a", 3), "stored after a load")
    same_bytes(os.pread(fd, PAGE, PMD + 4 * PAGE), page("b", 4), "stored by both mappings")


@case(fs=("xfs",), spoils=True)
def copy_of_shared_blocks_is_durable(t):
    """A store to a page that the file shares makes a copy, which is the file's when the store has returned."""
    old, fd = t.open("old"), t.open("file")
    os.pwrite(old, page("o", 0) * 8, 0)
    posix.clone(old, fd)
    with Map(fd, 8 * PAGE, flags=SYNC, skew=PAGE) as m:
        # The first store since the file is known changes more of its metadata.
        m.write(PAGE, page("f", 1))
        t.sync()
        m.write(3 * PAGE, page("s", 3))
        posix.shut_down(t.fs.mount_point)
    os.close(old)
    os.close(fd)
    t.fs.remount()
    fd = t.open("file")
    o = page("o", 0)
    same_bytes(os.pread(fd, 8 * PAGE, 0), o + page("f", 1) + o + page("s", 3) + o * 4, "after the power cut")


@case()
def counted(t):
    """Only stores that meet uncommitted metadata are made to wait for it."""
    fd = t.open(size=2 * PMD)
    with Map(fd, 2 * PMD, flags=SYNC, skew=PAGE) as m:
        stats = t.stats()
        m.touch(0, 3 * PAGE)
        stats.expect(sync_faults=0)
        m.store(0, 1)
        stats.expect(sync_faults=some)
        os.fsync(fd)
        stats = t.stats()
        m.store(0, 2)
        stats.expect(sync_faults=0, mkwrite_pte=some)
    with Map(fd, 2 * PMD, skew=PAGE) as m:
        stats = t.stats()
        m.store(PMD, 1)
        stats.expect(sync_faults=0)


@case()
def data_is_kept_track_of(t):
    """A page that came by a synchronous fault is dirty like any other: fsync flushes it."""
    from lib.trace import Flushes
    with Flushes() as flushes:
        for skew, size in ((PAGE, PAGE), (0, PMD)):
            fd = t.open(f"file{skew}", allocate=2 * PMD)
            with Map(fd, 2 * PMD, flags=SYNC, skew=skew) as m:
                m.write(0, page("s", 0))
                pfns = m.pfns(0, size)
                flushes.clear()
                os.fsync(fd)
                flushes.check_once(pfns[::100] + pfns[-1:] if len(pfns) > 1 else pfns, "fsync",
                                   size)
