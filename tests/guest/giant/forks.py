# SPDX-License-Identifier: GPL-2.0
"""Processes that fork, and private mappings."""

import contextlib
import os
import subprocess
import threading

from lib import gib, posix, uffd
from lib.check import check, equal
from lib.device import some, wait_for
from lib.gib import GibMap
from lib.posix import GIB, PAGE, PMD
from lib.runner import case
from lib.task import Task

from .common import (
    GIANT, HALF, LAST, MIDDLE, check_folio_free, check_folio_idle, check_head, moved_only,
    process_status,
)


@case(**GIANT)
def fork_with_a_shared_mapping(t):
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    with GibMap(fd) as m:
        gib.store(m, 2, 5, 1)

        def child():
            stats = t.stats()
            check_head(t, first, 1, "after fork")
            gib.expect(m, 2, 5, 1)
            moved_only(stats, read_pud=1)
            gib.store(m, 3, LAST, 1)
            check_head(t, first, 2, "child and parent")
            if os.fork() == 0:
                gib.store(m, 4, MIDDLE, 1)
                os._exit(0)
            os.wait()

        Task(child).result()
        gib.expect(m, 3, LAST, 1)
        gib.expect(m, 4, MIDDLE, 1)
        check_head(t, first, 1, "after the children have ended")
    check_folio_idle(first, "after munmap")
    gib.forget_entries(fd)
    check_folio_free(first, "with no entry in the file's tree")


@case(**GIANT)
def fork_with_a_private_mapping(t):
    """What fork copies has no entry of the third level, for which the core would not count."""
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    with GibMap(fd, flags=posix.MAP_PRIVATE) as own, GibMap(fd) as m:
        stats = t.stats()
        gib.store(m, 2, 5, 1)
        stats.expect(write_pud=1)
        gib.expect(own, 2, 5, 1)
        gib.expect(own, 1, MIDDLE, 64)
        stats.expect(read_pud=0, fallback_private=some)
        gib.store(own, 3, MIDDLE, 1)

        def child():
            gib.expect(own, 3, MIDDLE, 1)
            gib.store(own, 4, MIDDLE, 1)
            gib.store(own, 4, 7, 1)
            gib.expect(own, 1, MIDDLE + 1, 600)
            gib.store(m, 5, LAST, 1)
            gib.expect(own, 5, LAST, 1)

        Task(child).result()
        gib.expect(own, 3, MIDDLE, 1)
        gib.expect(own, 1, 7, 1)
        gib.expect(m, 5, LAST, 1)
        gib.expect(m, 1, MIDDLE, 1)
    check_folio_idle(first, "after munmap")
    gib.forget_entries(fd)
    check_folio_free(first, "with no entry in the file's tree")


def _guarded_before(m):
    m.advise(posix.MADV_GUARD_INSTALL, GIB, PAGE)
    return contextlib.nullcontext(), False


def _guarded_after(m):
    gib.store(m, 2, 5, 1)
    return _guarded_before(m)


def _guarded_once(m):
    """The guard is gone, but what says that there may be some stays."""
    _guarded_before(m)
    m.advise(posix.MADV_GUARD_REMOVE, GIB, PAGE)
    return contextlib.nullcontext(), False


def _protected_after(m):
    gib.store(m, 2, 5, 1)
    return uffd.Protected(m, protect=False), False


def _inherited_after(m):
    gib.store(m, 2, 5, 1)
    return uffd.Protected(m, protect=False, fork=True), True


def _fork(child):
    Task(child).result()


def _clone(child):
    pid = posix.clone_process()
    if pid == 0:
        try:
            child()
            os._exit(0)
        finally:
            os._exit(1)
    equal(os.waitpid(pid, 0)[1], 0, "status of the child")


def _vfork(_child):
    subprocess.run(["/bin/true"], check=True)


def _await_read(thread):
    """Return when a thread of this process sleeps in read()."""
    def reads():
        with open(f"/proc/self/task/{thread}/syscall", encoding="ascii") as call:
            return call.read().startswith("0 ")
    wait_for(reads, "the thread that reads the event")


@case(**GIANT)
def fork_that_copies_page_tables(t):
    """Whatever makes fork copy page tables, of 1 GiB it copies nothing, as it would not count."""
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    for prepare in (_guarded_before, _guarded_after, _guarded_once, _protected_after,
                    _inherited_after):
        for make in (_fork, _clone, _vfork):
            what = f"{prepare.__name__[1:]}, {make.__name__[1:]}"
            # The pages behind are past the end of the file.
            with GibMap(fd, GIB + PMD) as m:
                context, event = prepare(m)
                with context as protected:
                    gib.store(m, 2, 5, 1)
                    check_head(t, first, 1, f"{what}: before")

                    def child():
                        gib.expect(m, 2, 5, 1)
                        gib.store(m, 3, LAST, 1)

                    if event and make is not _vfork:
                        reader = threading.Thread(target=protected.read_event)
                        reader.start()
                        # A child that is made while the thread has the interpreter's lock never gets that.
                        _await_read(reader.native_id)
                        make(child)
                        reader.join()
                    else:
                        make(child)
                    check_head(t, first, 1, f"{what}: after")
                    if make is not _vfork:
                        gib.expect(m, 3, LAST, 1)
            check_folio_idle(first, f"{what}: after munmap")
    gib.forget_entries(fd)
    check_folio_free(first, "with no entry in the file's tree")


@case(**GIANT)
def private_is_small(t):
    """A private mapping is never of 1 GiB, and its copies are its own."""
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    stats = t.stats()
    with GibMap(fd, flags=posix.MAP_PRIVATE) as own:
        # Nobody else maps it yet: for lack of a larger entry this is by 2 MiB.
        own.touch(HALF, 1)
        stats.expect(read_pud=0, write_pud=0, fallback_private=some, read_pmd=1)
        gib.store(own, 2, MIDDLE, 1)
    gib.forget_entries(fd)
    with GibMap(fd) as m, GibMap(fd, flags=posix.MAP_PRIVATE) as own:
        stats = t.stats()
        gib.store(m, 3, 7, 1)
        stats.expect(write_pud=1)
        gib.store(own, 2, MIDDLE, 1)
        stats.expect(write_pud=1, read_pud=0, fallback_private=some, private_pte=some)
        gib.expect(m, 1, MIDDLE, 1)
        gib.expect(own, 2, MIDDLE, 1)
        gib.expect(own, 3, 7, 1)
        gib.expect(own, 1, LAST, 1)
        # What was copied stays, what was not follows the file.
        gib.store(m, 4, MIDDLE, 1)
        gib.store(m, 4, LAST, 1)
        gib.expect(own, 2, MIDDLE, 1)
        gib.expect(own, 4, LAST, 1)
        gib.expect(own, 1, 1000, 2000)
        equal(stats.since().get("read_pud", 0), 0, "faults of 1 GiB in the private mapping")
    check_folio_idle(first, "after munmap")
    gib.expect_read(fd, 4, MIDDLE, 1)


@case(**GIANT)
def dropped_and_faulted_back(t):
    """MADV_DONTNEED only unmaps."""
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    with GibMap(fd) as m:
        gib.store(m, 2, MIDDLE, 1)
        resident = process_status("RssFile")
        check_head(t, first, 1, "mapped")
        m.advise(posix.MADV_DONTNEED)
        check(abs(resident - process_status("RssFile") - GIB) < 16 * PMD,
              f"{resident - process_status('RssFile')} bytes are not resident any more")
        check_head(t, first, 0, "dropped")
        stats = t.stats()
        gib.expect(m, 2, MIDDLE, 1)
        moved_only(stats, read_pud=1)
        gib.expect(m, 1, 0, MIDDLE)
        # A part of it.
        m.advise(posix.MADV_DONTNEED, HALF, PAGE)
        gib.expect(m, 2, MIDDLE, 1)
        gib.expect(m, 1, MIDDLE + 1, MIDDLE - 1)
    check_head(t, first, 0, "unmapped")
