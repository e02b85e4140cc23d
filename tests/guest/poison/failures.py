# SPDX-License-Identifier: GPL-2.0
"""Memory failures: who is told, which page is marked, and what becomes of it."""

import contextlib
import functools
import os
import signal

from lib import device, mce, posix
from lib.check import Failure, check, equal, raises, same_bytes
from lib.device import some
from lib.mapping import BUS_MCEERR_AO, BUS_MCEERR_AR, SIGBUS, Map
from lib.native import Fault, probe
from lib.pattern import page, pages
from lib.pattern import file as _file
from lib.posix import PAGE, PMD
from lib.runner import case
from lib.space import settle
from lib.task import Task
from lib.trace import Pages

from .common import EIO, POISON, bad, forget, unwritten


def _poison(m, offset):
    """Run the memory failure code for a page of the mapping; how the caller was told."""
    fault = Fault()
    probe().probe_madvise(m.address + offset, PAGE, posix.MADV_HWPOISON, fault)
    if fault.error:
        raise Failure(f"MADV_HWPOISON: {os.strerror(fault.error)}")
    return fault


def _told(fault, m, offset, codes, what):
    """The signal names the page, as exactly as the size of its mapping allows."""
    equal(fault.signal, SIGBUS, f"{what}: signal")
    check(fault.code in codes, f"{what}: {fault} instead of code {codes}")
    lsb = max(12, fault.lsb)
    equal(fault.address >> lsb, (m.address + offset) >> lsb, f"{what}: {fault}, address >> {lsb}")


def _both_are_told(m, fd, skew):
    """Page 7 of the mapping fails; so another process is told that has mapped that of `fd`."""
    ready = os.pipe()

    def other():
        posix.die_of_poison_early()
        with Map(fd, m.length, skew=skew) as mine:
            mine.touch()
            fault = Fault()
            probe().probe_await(ready[1], fault)
            _told(fault, mine, 7 * PAGE, (BUS_MCEERR_AO, BUS_MCEERR_AR), "the other process")

    task = Task(other)
    equal(os.read(ready[0], 1), b"r", "the other process's sign")
    _told(_poison(m, 7 * PAGE), m, 7 * PAGE, (BUS_MCEERR_AR,), "the caller")
    task.result()


def _marks_one_page(t, skew, offset):
    """The mark of the failure is on the page that has failed and on no other."""
    state = Pages()
    fd = _file(t, PMD)
    stats = t.stats()
    with Map(fd, PMD, skew=skew) as m:
        m.touch(write=True)
        pfns = m.pfns()
        before = bad(state, pfns)
        fault = _poison(m, offset)
        _told(fault, m, offset, (BUS_MCEERR_AR,), "the caller")
        if not skew:
            t.note(f"told with {1 << fault.lsb} bytes of doubt")
        new = bad(state, pfns) - before
        equal([i for i, pfn in enumerate(pfns) if pfn in new], [offset // PAGE], "pages marked")
        stats.expect(poison_locks=some)
    for i in {offset // PAGE - 1, min(offset // PAGE + 1, 511)} - {offset // PAGE}:
        same_bytes(os.pread(fd, PAGE, i * PAGE), page("f", i), f"page {i} of the file")


@case(**POISON)
def small_page(t):
    _marks_one_page(t, PAGE, 5 * PAGE)


@case(**POISON)
def page_inside_huge_page(t):
    """Page 5 of 512."""
    _marks_one_page(t, 0, 5 * PAGE)


@case(quick=False, **POISON)
def last_page_of_huge_page(t):
    _marks_one_page(t, 0, 511 * PAGE)


@case(**POISON)
def page_of_a_huge_page_mapped_by_pages(t):
    """Of a folio that is mapped by pages, only the one that has failed loses its mapping."""
    fd = _file(t, PMD)
    with Map(fd, PMD) as m:
        check(not m.store(0, 1).signal, "a store")
    with Map(fd, PMD, skew=PAGE) as m:
        m.touch(write=True)
        pfns = m.pfns()
        state = Pages()
        # The memory may have been marked in another file, and be as good as any.
        before = bad(state, pfns)
        fault = _poison(m, 6 * PAGE)
        _told(fault, m, 6 * PAGE, (BUS_MCEERR_AR,), "the caller")
        equal(fault.lsb, 12, "log2 of the bytes of doubt")
        equal(m.mapped(), PMD - PAGE, "bytes still mapped")
        equal(bad(state, pfns) - before, {pfns[6]} - before, "page marked")
        check(pfns[6] in bad(state, pfns), "the page that failed is not marked")
        for number in (5, 6, 7):
            equal(m.load(number * PAGE)[1].signal, 0, f"signal of an access to page {number}")


@case(**POISON)
def mapping_goes_from_every_process(t):
    """All who map the page are told, with their own address, and lose the mapping of it."""
    fd = _file(t, PMD)
    with Map(fd, PMD, skew=PAGE) as m:
        m.touch(write=True)
        _both_are_told(m, fd, 3 * PAGE)
        equal(m.mapped(), PMD - PAGE, "bytes still mapped")


@case(**POISON)
def kills_who_does_not_listen(t):
    fd = _file(t, PMD)

    def deaf():
        with Map(fd, PMD, skew=PAGE) as m:
            m.touch()
            signal.signal(signal.SIGBUS, signal.SIG_DFL)
            posix.madvise(m.address + 9 * PAGE, PAGE, posix.MADV_HWPOISON)

    equal(Task(deaf).signalled(), SIGBUS, "signal that ended the process")


def _fail_page(fd, number):
    """Have a page of 64 that were stored to fail; the frames of all."""
    with Map(fd, 64 * PAGE, skew=PAGE) as m:
        m.touch(write=True)
        pfns = m.pfns()
    os.fsync(fd)
    mce.fail(pfns[number])
    return pfns


def _for_good(test):
    """What failed in earnest is nothing that others should get: bind the device anew at the end."""
    @functools.wraps(test)
    def forgotten(t):
        fd = _file(t, PMD)
        with Map(fd, PMD) as m:
            m.touch()
            pfns = m.pfns()
        try:
            # A process of its own, for what goes wrong here is a signal.
            Task(test, t, fd).result()
        finally:
            os.close(fd)
            if mce.can_fail():
                mce.restore(bad(Pages(), pfns))
            forget(t)
    return forgotten


@case(**POISON)
def made_up_failures_leave_the_memory_in_use(t):
    """Who injects a failure is told of it, each time; the memory serves as before."""
    fd = _file(t, PMD)
    for skew, number in ((0, 5), (PAGE, 5), (PAGE, 6)):
        _is_injected_twice(fd, skew, number)


@case(fs=("xfs",), **POISON)
def made_up_failures_of_clones(t):
    one, two = _file(t, 64 * PAGE, "one"), t.open("two")
    posix.clone(one, two)
    for fd in (one, two, one):
        _is_injected_twice(fd, PAGE, 7, 64 * PAGE)
    same_bytes(os.pread(two, PAGE, 8 * PAGE), page("f", 8), "the next page of the clone")


def _is_injected_twice(fd, skew, number, length=PMD):
    at, what = number * PAGE, f"page {number}, skew {skew}"
    for turn in (1, 2):
        with Map(fd, length, skew=skew) as m:
            m.touch()
            _told(_poison(m, at), m, at, (BUS_MCEERR_AR,), f"{what}, time {turn}")
            # Nobody has forgotten what was there, and it can be marked again at once.
            _told(_poison(m, at), m, at, (BUS_MCEERR_AR,), f"{what}, time {turn} again")
        with Map(fd, length, skew=skew) as m:
            equal(m.load(at)[1].signal, 0, f"{what}: signal of a load by a new mapping")
            same_bytes(os.pread(fd, PAGE, at), m.read(at, PAGE), f"{what}: pread")
            equal(os.pwrite(fd, b"some", at + 100), 4, f"{what}: bytes of a partial pwrite")
            equal(m.read(at + 100, 4), b"some", f"{what}: what was written")
            equal(m.store(at + 200, turn).signal, 0, f"{what}: signal of a store")
    os.fsync(fd)


@case(**POISON)
@_for_good
def failed_page_is_dirty(_t, fd):
    """What was stored before a page failed is lost with it; nobody flushes it, nor its neighbours not."""
    for skew, first, number in ((0, 0, 9), (PAGE, 10, 21)):
        with Map(fd, PMD, skew=skew) as m:
            m.touch(first * PAGE, write=True)
            pfn = m.pfn(number * PAGE)
            m.write((number + 1) * PAGE, b"beside")
            mce.fail(pfn)
            os.fsync(fd)
            m.touch(first * PAGE, (number - first) * PAGE, write=True)
        raises(EIO, "pread of the failed page", os.pread, fd, 1, number * PAGE)
        equal(os.pread(fd, 6, (number + 1) * PAGE), b"beside", "what is beside it")
    with Map(fd, PMD, skew=PAGE) as m:
        m.touch(0, PAGE, write=True)
    os.ftruncate(fd, 0)


@case(**POISON)
@_for_good
def failed_page_zeroed(_t, fd):
    _fail_page(fd, 21)
    posix.fallocate(fd, posix.ZERO_RANGE | posix.KEEP_SIZE, 21 * PAGE, PAGE)
    equal(os.pread(fd, PAGE, 21 * PAGE), bytes(PAGE), "the page")
    posix.fallocate(fd, posix.PUNCH_HOLE | posix.KEEP_SIZE, 21 * PAGE + 100, 1000)


@case(fs=("ext4", "xfs"), **POISON)
@_for_good
def failed_page_among_new_blocks(t, fd):
    """The filesystem puts zeroes on the blocks of a failed page that a file gets, past the page."""
    _fail_page(fd, 21)
    fd, at = unwritten(t, fd, 16 * PAGE, 16 * PAGE)
    # The page is overwritten whole, and serves again.
    equal(os.pwrite(fd, pages("n", 8, 16), at), 8 * PAGE, "bytes written")
    same_bytes(os.pread(fd, 8 * PAGE, at), pages("n", 8, 16), "the pages")


@case(fs=("ext4", "xfs"), **POISON)
@_for_good
def failed_page_shows_nothing_of_its_last_owner(t, fd):
    """Whoever gets its block and stores to it has zeroes around what he stored, and it can be zeroed again."""
    _fail_page(fd, 21)
    fd, at = unwritten(t, fd, 16 * PAGE, 16 * PAGE)
    with Map(fd, at + 16 * PAGE, skew=PAGE) as m:
        for number in range(16):
            if m.store(at + number * PAGE + 100, 1).signal:
                continue
            same_bytes(m.read(at + number * PAGE, PAGE), bytes(100) + b"\1" + bytes(PAGE - 101),
                       f"page {16 + number}")
    posix.fallocate(fd, posix.PUNCH_HOLE | posix.KEEP_SIZE, at, 16 * PAGE)
    settle(t)
    posix.fallocate(fd, 0, at, 16 * PAGE)
    equal(os.pwrite(fd, pages("m", 16), at), 16 * PAGE, "bytes written")
    same_bytes(os.pread(fd, 16 * PAGE, at), pages("m", 16), "the pages")


@case(fs=("ext4", "xfs"), **POISON)
def failed_page_is_zero_when_it_is_forgotten(t):
    """It was not written to after a file got its block; who knows of it goes with the driver."""
    first = _file(t, PMD)
    pfns = _fail_page(first, 21)
    try:
        fd, at = unwritten(t, first, 16 * PAGE, 16 * PAGE)
        path = os.readlink(f"/proc/self/fd/{fd}")

        def write():
            for number, length in ((4, PAGE + 2000), (6, PAGE)):
                with contextlib.suppress(OSError):
                    os.pwrite(fd, b"x" * length, at + number * PAGE)

        Task(write).result()
        os.close(fd)
        if fd != first:
            os.close(first)
    finally:
        mce.restore([pfns[21]])
        forget(t)
    with open(path, "rb") as file:
        file.seek(at + 5 * PAGE)
        found = file.read(PAGE)
    check(set(found) <= {0, ord("x")}, f"the page has {found[:64]!r}")


@case(**POISON)
@_for_good
def neighbours_do_not_bring_it_back(_t, fd):
    """A fault of a page beside a bad one does not map the bad one along with it."""
    _fail_page(fd, 21)
    for write in (False, True):
        with Map(fd, 64 * PAGE, skew=PAGE) as m:
            for at in (20, 22):
                m.touch(at * PAGE, PAGE, write=write)
            fault = m.store(21 * PAGE, 1) if write else m.load(21 * PAGE)[1]
            equal(fault.signal, SIGBUS, "signal of an access to the bad page")


@case(**POISON)
@_for_good
def failed_page_written(_t, fd):
    """A part of a page that has failed cannot be written, for the rest of it is lost; all of it can."""
    pfns = _fail_page(fd, 21)[20:24]
    state = Pages()
    equal(bad(state, pfns), {pfns[1]}, "page marked")
    for length, at in ((100, 50), (PAGE - 1, 0), (PAGE - 8, 8)):
        raises(EIO, f"write of {length} bytes at {at} of the failed page",
               os.pwrite, fd, b"x" * length, 21 * PAGE + at)
    # Up to the page, and then no further.
    got = os.pwrite(fd, pages("v", 2, 20)[:PAGE + 100], 20 * PAGE)
    equal(got, PAGE, "bytes written up to the failed page")
    raises(EIO, "pread after that", os.pread, fd, 1, 21 * PAGE)
    equal(os.pwrite(fd, pages("w", 4, 19), 19 * PAGE), 4 * PAGE, "bytes written across the page")
    same_bytes(os.pread(fd, 4 * PAGE, 19 * PAGE), pages("w", 4, 19), "what was written")
    equal(bad(state, pfns), set(), "pages marked after all of it was written")
    with Map(fd, 64 * PAGE, skew=PAGE) as m:
        same_bytes(m.read(19 * PAGE, 4 * PAGE), pages("w", 4, 19), "what is mapped")


@case(fs=("xfs",), **POISON)
def shared_page(t):
    """Of a reflinked page every file's users are told, by the filesystem's reverse map."""
    one, two = _file(t, 64 * PAGE, "one"), t.open("two")
    posix.clone(one, two)
    with Map(one, 64 * PAGE, skew=PAGE) as m:
        m.touch()
        _both_are_told(m, two, PAGE)


@case(**POISON)
def page_in_use_by_a_transfer(t):
    """A pinned page fails: nobody waits for ever, nothing crashes."""
    slow = device.SlowDisk()
    fd = _file(t, 64 * PAGE)
    with Map(fd, 64 * PAGE, skew=PAGE) as m:
        m.touch()
        slow.hold()
        writer = Task(lambda: posix.pwrite_from(slow.open(), m.address, 4 * PAGE, 0),
                      name="direct write")
        writer.blocked_in("pwrite64")

        def fail():
            _told(_poison(m, PAGE), m, PAGE, (BUS_MCEERR_AR,), "the caller")

        Task(fail).result()
        slow.release()
        equal(writer.result(), 4 * PAGE, "bytes written")
    os.ftruncate(fd, 0)
