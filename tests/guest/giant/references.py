# SPDX-License-Identifier: GPL-2.0
"""Pages of a folio of 1 GiB that are held."""

import os
import signal

from lib import gib, posix
from lib.check import check, equal, raises, same_bytes
from lib.device import SlowDisk, some
from lib.gib import GibMap, PAGES
from lib.pattern import pages
from lib.posix import GIB, PAGE, PMD
from lib.runner import case
from lib.task import Task
from lib.trace import Flushes, Pages

from .common import (
    GIANT, HALF, LAST, MIDDLE, SPOTS, check_folio_free, check_folio_idle, check_head, fill_pages,
    moved_only, write_spots,
)

PINNED = 8 * PAGE


def _transfer(m, offset, write, fast=True, place=0):
    """A task that moves some pages of the mapping to or from the slow disk.

    It has the pages mapped already (which is what the fast way of pinning needs), or not.
    """
    def go():
        disk = os.open(SlowDisk.PATH, os.O_RDWR | os.O_DIRECT)
        if fast:
            m.touch(offset, 1, write=not write)
        move = posix.pwrite_from if write else posix.pread_to
        return move(disk, m.address + offset, PINNED, place)

    task = Task(go, name="direct write" if write else "direct read")
    task.blocked_in("pwrite64" if write else "pread64")
    return task


def _truncate_waits(t, write):
    """Transfers on some pages hold the whole folio; the blocks are not reused before their end."""
    slow = SlowDisk()
    state = Pages()
    fd = gib.file(t)
    first = gib.frame(t, fd)
    gib.take_rest(t)
    # The first, middle and last pages; each has its place on the disk.
    spots = [0, HALF - 4 * PAGE, GIB - PINNED]
    wanted = [pages("abc"[i], PINNED // PAGE) for i in range(3)]
    for i in range(3):
        slow.fill(bytes(PINNED) if write else wanted[i], i * PINNED)
    with GibMap(fd) as m:
        for i, spot in enumerate(spots):
            if write:
                m.write(spot, wanted[i])
        stats = t.stats()
        slow.hold()
        transfers = []
        references = 0
        for i, spot in enumerate(spots):
            transfers.append(_transfer(m, spot, write, fast=i != 1, place=i * PINNED))
            if t.adopted:
                now, = state.refcounts([first])
                # One for the process's mapping, and at least one for the transfer.
                check(now >= references + 2, f"transfer {i} has {now - references} references")
                references = now
        if t.adopted:
            moved_only(stats, **({"read_pud": 3} if write else {"write_pud": 3}))
        successor = t.open("successor")

        def cut_and_reuse():
            os.ftruncate(fd, 0)
            check(gib.allocate(t, successor), "the blocks did not come free")
            equal(gib.frame(t, successor), first, "the test means nothing: the blocks' place")
            for spot in spots:
                gib.write(successor, 3, spot // PAGE, PINNED // PAGE)

        waiter = Task(cut_and_reuse)
        waiter.blocked_in("ftruncate")
        equal(os.fstat(fd).st_size, GIB, "size while the transfers are under way")
        if write:
            same_bytes(slow.content(3 * PINNED), bytes(3 * PINNED), "the disk while it is held")
        slow.release()
        for transfer in transfers:
            equal(transfer.result(), PINNED, "bytes moved")
        waiter.result()
        stats.expect(layout_breaks=some, layout_waits=some, layout_wait_ns=lambda n: n > 10 ** 8)
        if write:
            same_bytes(slow.content(3 * PINNED), b"".join(wanted), "what reached the disk")
        equal(os.fstat(fd).st_size, 0, "size")
    for spot in spots:
        gib.expect_read(successor, 3, spot // PAGE, PINNED // PAGE)
    check_folio_free(first, "after truncate")


@case(**GIANT)
def truncate_waits_for_direct_writes(t):
    _truncate_waits(t, True)


@case(**GIANT)
def truncate_waits_for_direct_reads(t):
    _truncate_waits(t, False)


@case(**GIANT)
def punch_elsewhere_waits_for_the_folio(t):
    """The hole is far from the page that is in use, but both are one folio: it must stay whole."""
    slow = SlowDisk()
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    with GibMap(fd) as m:
        gib.store(m, 2, LAST - 7, 8)
        slow.hold()
        transfer = _transfer(m, GIB - PINNED, True)
        punch = Task(posix.fallocate, fd, posix.PUNCH_HOLE | posix.KEEP_SIZE, HALF, 16 * PAGE)
        punch.blocked_in("fallocate")
        # Mapped again, by this process, which keeps it when the transfer is over.
        gib.expect(m, 2, LAST - 7, 8)
        slow.release()
        equal(transfer.result(), PINNED, "bytes written")
        punch.result()
        gib.expect(m, 1, 0, MIDDLE)
        gib.expect_zero(m, MIDDLE, 16, every=1)
        gib.expect(m, 1, MIDDLE + 16, MIDDLE - 24)
        gib.expect(m, 2, LAST - 7, 8)
    check_folio_idle(first, "after munmap")
    fill_pages(t, fd, MIDDLE, 16)


@case(**GIANT)
def signal_ends_the_wait(t):
    slow = SlowDisk()
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    with GibMap(fd) as m:
        gib.store(m, 2, MIDDLE, 8)
        slow.hold()
        transfer = _transfer(m, HALF, True)
        waiter = Task(os.ftruncate, fd, 0)
        waiter.blocked_in("ftruncate")
        waiter.kill(signal.SIGTERM)
        equal(waiter.signalled(), signal.SIGTERM, "signal that ended the waiter")
        check(not transfer.done(), "the transfer has ended by itself")
        equal(os.fstat(fd).st_size, GIB, "size")
        gib.expect(m, 2, MIDDLE, 8)
        gib.expect(m, 1, 0, MIDDLE)
        slow.release()
        equal(transfer.result(), PINNED, "bytes written")
    check_head(t, first, 0, "unmapped")


@case(**GIANT)
def pages_in_a_pipe_are_held(t):
    """Plain references (vmsplice) to the first, a middle and the last page."""
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    reader, writer = os.pipe()
    spots = (0, MIDDLE, LAST)
    with GibMap(fd) as m:
        for i, at in enumerate(spots):
            gib.store(m, 2, at, 1)
            m.splice(writer, at * PAGE)
            check_head(t, first, 2 + i, "with pages in a pipe")
        # Wherever the cut, the folio is one.
        waiter = Task(os.ftruncate, fd, GIB - PMD)
        waiter.blocked_in("ftruncate")
        for at in spots:
            check(not waiter.done(), "truncate has not waited for the last page")
            data = os.read(reader, PAGE)
            equal(int.from_bytes(data[:8], "little"), 2 << 56 | at << 16, "what was in the pipe")
        waiter.result()
        m.bus_error(GIB - PMD, "behind the cut")
        gib.expect(m, 1, 0, PAGES - 512, other=2)
    fill_pages(t, fd, PAGES - 512, 512)
    gib.forget_entries(fd)
    check_folio_free(first, "afterwards")


@case(**GIANT)
def transfers_of_all_kinds_arrive(t):
    """Direct I/O across the edges of what smaller orders have, of pages that are not mapped yet."""
    slow = SlowDisk()
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    disk = slow.open()
    with GibMap(fd) as m:
        stats = t.stats()
        for at in (0, 510, MIDDLE - 3, LAST - 7):
            m.advise(posix.MADV_DONTNEED)
            equal(posix.pwrite_from(disk, m.address + at * PAGE, PINNED, 0), PINNED, "bytes")
            data = slow.content(PINNED)
            for i in range(8):
                equal(int.from_bytes(data[i * PAGE:i * PAGE + 8], "little"), 1 << 56 | at + i << 16,
                      f"page {at + i} on the disk")
            slow.fill(pages("d", 8, at))
            m.advise(posix.MADV_DONTNEED)
            equal(posix.pread_to(disk, m.address + at * PAGE, PINNED, 0), PINNED, "bytes")
            same_bytes(os.pread(fd, PINNED, at * PAGE), pages("d", 8, at), "read from the disk")
            gib.store(m, 1, at, 8)
        stats.expect(read_pte=0, read_pmd=0, write_pte=0, write_pmd=0, read_pud=some,
                     write_pud=some)
        gib.expect(m, 1)
        # The other way round: the file itself is read into its own mapping.
        equal(posix.pread_to(fd, m.address + HALF, 4 * PMD, PMD), 4 * PMD, "bytes read")
        gib.expect(m, 1, MIDDLE, 4 * 512, number=512)
        equal(posix.pwrite_from(fd, m.address, PMD, HALF), PMD, "bytes written")
        gib.expect(m, 1, MIDDLE, 512, number=0)
    check_head(t, first, 0, "unmapped")


@case(**GIANT)
def long_term_pins_are_refused(t):
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    with GibMap(fd) as m:
        gib.store(m, 1, 0, 1)
        for _ in range(2):
            error = raises((14, 22, 95, 12), "registering a page", posix.register_buffer,
                           m.address + HALF, 4 * PAGE)
            check_head(t, first, 1 if m.load(0) else 0, "after the refusal")
        t.note(error)
    check_head(t, first, 0, "unmapped")


@case(**GIANT)
def idle_after_crash(t):
    """A process is killed while it stores: nothing is held, and nothing stored is forgotten."""
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    ready = os.pipe()

    def child():
        with GibMap(fd) as m:
            write_spots(m)
            os.write(ready[1], b"1")
            while True:
                gib.store(m, 3, MIDDLE + 512, 512)

    task = Task(child)
    equal(os.read(ready[0], 1), b"1", "the child")
    check_head(t, first, 1, "mapped by the child")
    with Flushes() as flushes:
        task.kill()
        equal(task.signalled(), 9, "signal")
        check_folio_idle(first, "after the process was killed")
        os.fsync(fd)
        flushes.check_once([first + at for at in SPOTS], "fsync after the crash")
    for spot in SPOTS:
        gib.expect_read(fd, 2, spot, 1)
    gib.expect_read(fd, 3, MIDDLE + 1024 - 1, 1, other=1)
    gib.expect_read(fd, 1, MIDDLE + 1024, 64)
    gib.forget_entries(fd)
    check_folio_free(first, "with no entry in the file's tree")
