# SPDX-License-Identifier: GPL-2.0
"""Nothing is given back under a transfer or a pipe."""

import os

from lib import posix
from lib.check import check, equal, same_bytes
from lib.device import SlowDisk, some
from lib.mapping import Map
from lib.pattern import file as _file, page, pages
from lib.posix import PAGE, PMD
from lib.runner import case
from lib.space import neighbours, overlap, settle
from lib.task import Task
from lib.trace import Pages

from .common import PINNED, punch_start, start_transfer, truncate_whole


def _held(t, how, size, skew, offset):
    """A direct write from a mapping holds its pages; `how` has to wait for it.

    What reaches the disk must be the content of before.
    """
    state, slow = Pages(), SlowDisk()
    fd = _file(t, size)
    wanted = pages("h", PINNED // PAGE)
    with Map(fd, size, skew=skew) as m:
        m.write(offset, wanted)
        pfns = m.pfns(offset, PINNED)
        head = m.pfn(offset // PMD * PMD) if not skew else pfns[0]
        slow.fill(bytes(PINNED))
        slow.hold()
        writer = start_transfer(m, offset, PINNED, write=True)
        check(state.refcounts([head])[0] > 1, "the transfer holds no reference")
        stats = t.stats()
        waiter = Task(how, t, fd, name=how.__name__.strip("_"))
        waiter.blocked_in("ftruncate", "fallocate")
        same_bytes(slow.content(PINNED), bytes(PINNED), "the disk while it is held")
        slow.release()
        equal(writer.result(), PINNED, "bytes written")
        waiter.result()
        stats.expect(layout_breaks=some, layout_waits=some, layout_wait_ns=lambda n: n > 10 ** 8)
        same_bytes(slow.content(PINNED), wanted, "what reached the disk")
    state.check_idle([head] + pfns, "afterwards")
    return fd, pfns


def _truncate_middle(_, fd):
    os.ftruncate(fd, 3 * PAGE)


def _collapse(_, fd):
    posix.fallocate(fd, posix.COLLAPSE_RANGE, 0, 64 * PAGE)


@case()
def truncate_waits_for_direct_write(t):
    fd, pfns = _held(t, truncate_whole, 64 * PAGE, PAGE, 2 * PAGE)
    equal(os.fstat(fd).st_size, 0, "size")
    Pages().check_free(pfns, "after truncate")


@case()
def truncate_waits_for_direct_write_from_huge_page(t):
    fd, pfns = _held(t, truncate_whole, 2 * PMD, 0, PMD + 50 * PAGE)
    equal(os.fstat(fd).st_size, 0, "size")
    Pages().check_free(pfns, "after truncate")


def _mapped_again(t, skew):
    slow = SlowDisk()
    fd = _file(t, PMD)
    with Map(fd, PMD, skew=skew) as m:
        m.touch(write=True)
        pfns = m.pfns()
        slow.hold()
        transfer = start_transfer(m, 0, PINNED, True)
        waiter = Task(os.ftruncate, fd, 0)
        waiter.blocked_in("ftruncate")
        m.touch(0, PINNED)
        slow.release()
        equal(transfer.result(), PINNED, "bytes written")
        waiter.result()
        m.bus_error(0, "after truncate")
    Pages().check_free(pfns[::37], "after truncate")


@case()
def truncate_ends_though_mapped_again(t):
    """R7: only transfers are waited for, not who has mapped the pages again meanwhile."""
    _mapped_again(t, PAGE)
    _mapped_again(t, 0)


@case(quick=False)
def truncate_of_a_part_waits(t):
    """Only what is cut off matters, but a huge page that is cut is in use as a whole."""
    fd, _ = _held(t, _truncate_middle, 2 * PMD, 0, 100 * PAGE)
    same_bytes(os.pread(fd, 4 * PAGE, 0), pages("f", 3), "what is left")


@case()
def punch_waits_for_direct_write(t):
    fd, _ = _held(t, punch_start, 128 * PAGE, PAGE, 2 * PAGE)
    same_bytes(os.pread(fd, 65 * PAGE, 0), bytes(64 * PAGE) + page("f", 64), "file")


@case(quick=False)
def punch_waits_for_direct_write_from_huge_page(t):
    fd, _ = _held(t, punch_start, 2 * PMD, 0, 50 * PAGE)
    same_bytes(os.pread(fd, 65 * PAGE, 0), bytes(64 * PAGE) + page("f", 64), "file")


@case(quick=False)
def collapse_waits_for_direct_write(t):
    fd, _ = _held(t, _collapse, 128 * PAGE, PAGE, 2 * PAGE)
    same_bytes(os.pread(fd, 65 * PAGE, 0), pages("f", 64, 64), "file")


@case(quick=False)
def punch_elsewhere_leaves_pages_alone(t):
    """Filesystems may wait for the whole file, or not; what is in use stays as it is."""
    slow, fd = SlowDisk(), _file(t, 4 * PMD)
    with Map(fd, 4 * PMD) as m:
        m.write(0, pages("h", 8))
        slow.hold()
        writer = start_transfer(m, 0, PINNED, write=True)
        punch = Task(posix.fallocate, fd, posix.PUNCH_HOLE | posix.KEEP_SIZE, 2 * PMD, PMD)
        if not punch.waits_in("fallocate"):
            t.note("did not wait for pages in use elsewhere")
        slow.release()
        equal(writer.result(), PINNED, "bytes written")
        punch.result()
        same_bytes(slow.content(PINNED), pages("h", 8), "what reached the disk")
        same_bytes(m.read(2 * PMD - PAGE, PMD + PAGE), page("f", 1023) + bytes(PMD), "the hole")
        same_bytes(m.read(0, 9 * PAGE), pages("h", 8) + page("f", 8), "the pages in use")


def _freed(t, how, skew, offset):
    """A direct read into a mapping holds its pages; the freed blocks go to another file.

    The disk's data must not end up there.
    """
    slow = SlowDisk()
    other, fd = neighbours(t, PMD)
    slow.fill(pages("d", PINNED // PAGE))
    (_, physical, _, _), = posix.extents(fd)
    with Map(fd, PMD, skew=skew) as m:
        m.touch(write=True)
        slow.hold()
        reader = start_transfer(m, offset, PINNED, write=False)

        freed = 64 * PAGE if how is punch_start else PMD

        def free_and_use():
            how(t, fd)
            settle(t)
            posix.fallocate(other, 0, PMD, freed)
            for i in range(freed // PAGE):
                os.pwrite(other, page("n", i), PMD + i * PAGE)

        waiter = Task(free_and_use)
        waiter.blocked_in("ftruncate", "fallocate")
        slow.release()
        equal(reader.result(), PINNED, "bytes read")
        waiter.result()
        same_bytes(os.pread(other, freed, PMD), pages("n", freed // PAGE), "the other file")
        reused = overlap([(0, physical + offset, PINNED, 0)], posix.extents(other))
        equal(reused, PINNED, "bytes of the pages in use that the other file has got")


@case()
def truncate_waits_for_direct_read(t):
    _freed(t, truncate_whole, PAGE, 4 * PAGE)


@case(quick=False)
def truncate_waits_for_direct_read_into_huge_page(t):
    _freed(t, truncate_whole, 0, 100 * PAGE)


@case(quick=False)
def punch_waits_for_direct_read(t):
    _freed(t, punch_start, PAGE, 4 * PAGE)


@case(quick=False)
def direct_read_arrives(t):
    """Without a truncate, what was read from the disk is in the file, and is flushed by fsync."""
    slow, fd = SlowDisk(), _file(t, 2 * PMD)
    slow.fill(pages("d", 8))
    for skew in (0, PAGE):
        with Map(fd, 2 * PMD, skew=skew) as m:
            slow.hold()
            reader = start_transfer(m, PMD + PAGE, PINNED, write=False)
            slow.release()
            equal(reader.result(), PINNED, "bytes read")
            same_bytes(m.read(PMD + PAGE, PINNED), pages("d", 8), "mapping")
            same_bytes(m.read(PMD, PAGE), page("f", 512), "page before")
            same_bytes(os.pread(fd, PINNED, PMD + PAGE), pages("d", 8), "pread")
        os.pwrite(fd, pages("f", 8, 513), PMD + PAGE)


@case(quick=False)
def pages_in_a_pipe_are_held(t):
    """vmsplice takes plain references, not pins; the same must hold for them."""
    state, fd = Pages(), _file(t, 64 * PAGE)
    reader, writer = os.pipe()
    with Map(fd, 64 * PAGE, skew=PAGE) as m:
        m.write(PAGE, page("v", 1))
        pfn = m.pfn(PAGE)
        m.splice(writer, PAGE)
        equal(state.refcounts([pfn]), [2], "references with the page in a pipe")
        waiter = Task(truncate_whole, t, fd)
        waiter.blocked_in("ftruncate")
        same_bytes(os.read(reader, PAGE), page("v", 1), "what comes out of the pipe")
        waiter.result()
    state.check_idle([pfn], "afterwards")


@case()
def page_in_a_pipe_among_new_blocks_is_held(t):
    """A file does not forget who holds a page when the blocks around it are made written ones. XFS says
    of all that a write gets then that it is new, that page included."""
    state, fd = Pages(), t.open(allocate=8 * PAGE)
    reader, writer = os.pipe()
    with Map(fd, 8 * PAGE, skew=PAGE) as m:
        m.write(4 * PAGE, page("v", 4))
        pfn = m.pfn(4 * PAGE)
        m.splice(writer, 4 * PAGE)
    equal(os.pwrite(fd, pages("n", 8), 0), 8 * PAGE, "bytes written")
    equal(state.refcounts([pfn]), [1], "references of the page in the pipe")
    waiter = Task(truncate_whole, t, fd)
    waiter.blocked_in("ftruncate")
    same_bytes(os.read(reader, PAGE), page("n", 4), "what comes out of the pipe")
    waiter.result()
    state.check_idle([pfn], "afterwards")
