# SPDX-License-Identifier: GPL-2.0
"""Memory that has gone bad: who is told, which page is marked, and what file I/O says.

Three ways to make it bad: MADV_HWPOISON runs the kernel's handling of a memory error on a mapped
page, and says that nothing has happened to the memory; a machine check says that it has; the block
device's list of bad blocks makes the driver refuse it. The pages stay marked until the device is
bound anew, which is why all this runs on a device of its own, and why the group ends with that.

A filesystem that does not handle memory failures itself (ext4, and XFS without a reverse map) leaves
them to the kernel's core, which takes the first page of a folio for the one that has failed. rdax
steps in between for a folio of several pages.
"""

import contextlib
import functools
import os
import signal

from lib import device, mce, posix
from lib.check import Failure, check, equal, raises, same_bytes
from lib.device import some, wait_for
from lib.mapping import BUS_MCEERR_AO, BUS_MCEERR_AR, SIGBUS, Map
from lib.native import Fault, probe
from lib.pattern import page, pages
from lib.pattern import file as _file
from lib.posix import PAGE, PMD
from lib.runner import case
from lib.space import free_blocks, settle
from lib.task import Task
from lib.trace import Calls, Pages

DEVICE = "pmem1"
EIO, EFAULT = 5, 14
POISON = dict(device=DEVICE, spoils=False)


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


def _bad(state, pfns):
    """The pages that carry the mark of a memory failure."""
    flag = state.flag("hwpoison")
    words = state.words(pfns, state.FLAGS)
    return {pfn for pfn, (flags,) in zip(pfns, words, strict=True) if flags & flag}


def _marks_one_page(t, skew, offset):
    """The mark of the failure is on the page that has failed and on no other."""
    state = Pages()
    fd = _file(t, PMD)
    stats = t.stats()
    with Map(fd, PMD, skew=skew) as m:
        m.touch(write=True)
        pfns = m.pfns()
        before = _bad(state, pfns)
        fault = _poison(m, offset)
        _told(fault, m, offset, (BUS_MCEERR_AR,), "the caller")
        if not skew:
            t.note(f"told with {1 << fault.lsb} bytes of doubt")
        new = _bad(state, pfns) - before
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
        before = _bad(state, pfns)
        fault = _poison(m, 6 * PAGE)
        _told(fault, m, 6 * PAGE, (BUS_MCEERR_AR,), "the caller")
        equal(fault.lsb, 12, "log2 of the bytes of doubt")
        equal(m.mapped(), PMD - PAGE, "bytes still mapped")
        equal(_bad(state, pfns) - before, {pfns[6]} - before, "page marked")
        check(pfns[6] in _bad(state, pfns), "the page that failed is not marked")
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
                mce.restore(_bad(Pages(), pfns))
            _forget(t)
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


def _unwritten(t, fd, at, length):
    """(descriptor, offset): where a file has the blocks of this one, allocated and never written."""
    ((start, at_disk, _, _),) = [e for e in posix.extents(fd) if e[0] <= at < e[0] + e[2]]
    block = at_disk + at - start
    if t.variant.kind == "ext4":
        # They stay where they are.
        posix.fallocate(fd, posix.ZERO_RANGE, at, length)
    else:
        os.ftruncate(fd, 0)
        settle(t)
        fd = t.open("all", allocate=(free_blocks(t.dir) - 4096) * PAGE)
    found = [e[0] + block - e[1] for e in posix.extents(fd) if e[1] <= block < e[1] + e[2]]
    check(found, "the blocks are in no file")
    return fd, found[0]


@case(fs=("ext4", "xfs"), **POISON)
@_for_good
def failed_page_among_new_blocks(t, fd):
    """The filesystem puts zeroes on the blocks of a failed page that a file gets, past the page."""
    _fail_page(fd, 21)
    fd, at = _unwritten(t, fd, 16 * PAGE, 16 * PAGE)
    # The page is overwritten whole, and serves again.
    equal(os.pwrite(fd, pages("n", 8, 16), at), 8 * PAGE, "bytes written")
    same_bytes(os.pread(fd, 8 * PAGE, at), pages("n", 8, 16), "the pages")


@case(fs=("ext4", "xfs"), **POISON)
@_for_good
def failed_page_shows_nothing_of_its_last_owner(t, fd):
    """Whoever gets its block and stores to it has zeroes around what he stored, and it can be zeroed again."""
    _fail_page(fd, 21)
    fd, at = _unwritten(t, fd, 16 * PAGE, 16 * PAGE)
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
        fd, at = _unwritten(t, first, 16 * PAGE, 16 * PAGE)
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
        _forget(t)
    with open(path, "rb") as file:
        file.seek(at + 5 * PAGE)
        found = file.read(PAGE)
    check(set(found) <= {0, ord("x")}, f"the page has {found[:64]!r}")


@case(fs=("xfs",), **POISON)
def bad_block_found_among_new_blocks(t):
    """It is found after the device was adopted, and nobody has come upon one before."""
    first = _file(t, PMD)
    os.fsync(first)
    ((start, at_disk, _, _),) = [e for e in posix.extents(first) if e[0] <= 21 * PAGE < e[0] + e[2]]
    bad = at_disk + 21 * PAGE - start
    fd, at = _unwritten(t, first, 16 * PAGE, 16 * PAGE)
    posix.fallocate(fd, posix.PUNCH_HOLE | posix.KEEP_SIZE, at, 16 * PAGE)
    settle(t)
    device.write(f"/sys/block/{t.device}/badblocks", f"{bad >> 9} 8\n")
    try:
        with Map(fd, at + 16 * PAGE, skew=PAGE) as m:
            for number in range(16):
                m.store(at + number * PAGE + 100, 1)
        os.close(os.open(t.path("new"), os.O_RDWR | os.O_CREAT))
    finally:
        os.close(fd)
        os.close(first)
        _forget(t)


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
    equal(_bad(state, pfns), {pfns[1]}, "page marked")
    for length, at in ((100, 50), (PAGE - 1, 0), (PAGE - 8, 8)):
        raises(EIO, f"write of {length} bytes at {at} of the failed page",
               os.pwrite, fd, b"x" * length, 21 * PAGE + at)
    # Up to the page, and then no further.
    got = os.pwrite(fd, pages("v", 2, 20)[:PAGE + 100], 20 * PAGE)
    equal(got, PAGE, "bytes written up to the failed page")
    raises(EIO, "pread after that", os.pread, fd, 1, 21 * PAGE)
    equal(os.pwrite(fd, pages("w", 4, 19), 19 * PAGE), 4 * PAGE, "bytes written across the page")
    same_bytes(os.pread(fd, 4 * PAGE, 19 * PAGE), pages("w", 4, 19), "what was written")
    equal(_bad(state, pfns), set(), "pages marked after all of it was written")
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


class _BadBlock:
    """One bad page of a file, in the driver's list."""

    path = f"/sys/block/{DEVICE}/badblocks"

    def __init__(self, fd, offset):
        (start,) = [e[1] + offset - e[0] for e in posix.extents(fd)
                    if e[0] <= offset < e[0] + e[2]]
        device.write(self.path, f"{start >> 9} {PAGE >> 9}\n")
        check(f"{start >> 9} {PAGE >> 9}" in self.list(), "the driver's list did not take it")

    def list(self):
        return device.read(self.path, "").splitlines()


def _forget(t):
    """What the list holds cannot be taken out again: bind the device anew."""
    t.fs.umount()
    rebind()
    t.fs.mount()


@case(fs=("ext4",), **POISON)
def bad_block_among_new_blocks(t):
    """A write to preallocated blocks has ext4 put zeroes on those beside it, or on its own, and one of
    them is bad: no earlier contents are shown, and what is written afterwards is there."""
    fd = t.open()
    os.pwrite(fd, b"S" * (64 * PAGE), 0)
    # The blocks stay, with what is in them; the first ones are an extent small enough to be zeroed whole.
    posix.fallocate(fd, posix.ZERO_RANGE, 0, 64 * PAGE)
    os.pwrite(fd, page("x"), 8 * PAGE)
    os.fsync(fd)
    _BadBlock(fd, 5 * PAGE)
    _BadBlock(fd, 40 * PAGE)
    try:
        os.pwrite(fd, page("a"), 0)
        os.pwrite(fd, page("w"), 3 * PAGE)
        try:
            os.pwrite(fd, b"n" * (32 * PAGE), 16 * PAGE)
        except OSError as error:
            equal(error.errno, EIO, "errno")
        os.fsync(fd)
        os.close(fd)
        # What ext4 remembers of the blocks goes.
        t.fs.umount()
        t.fs.mount()
        fd = t.open()
        same_bytes(os.pread(fd, PAGE, 0), page("a"), "the first page")
        same_bytes(os.pread(fd, PAGE, 3 * PAGE), page("w"), "what was written beside it")
        for number in range(64):
            try:
                check(b"SSSS" not in os.pread(fd, PAGE, number * PAGE), f"page {number} shows")
            except OSError as error:
                equal((error.errno, number in (5, 40)), (EIO, True), f"errno of page {number}")
    finally:
        os.close(fd)
        _forget(t)


@case(quick=False, **POISON)
def bad_block_reads(t):
    """Reads give what lies before the bad page, then EIO; the rest of the file is well."""
    fd = _file(t, 2 * PMD)
    _BadBlock(fd, 20 * PAGE)
    try:
        raises(EIO, "pread of the bad page", os.pread, fd, PAGE, 20 * PAGE)
        raises(EIO, "pread of a byte in it", os.pread, fd, 1, 20 * PAGE + 777)
        try:
            got = os.pread(fd, 8 * PAGE, 16 * PAGE)
            check(len(got) <= 4 * PAGE, f"{len(got)} bytes read across the bad page")
            same_bytes(got, pages("f", 4, 16)[:len(got)], "bytes before the bad page")
            t.note(f"a read across the bad page gave {len(got)} bytes")
        except OSError as error:
            equal(error.errno, EIO, "errno of a read across the bad page")
            t.note("a read across the bad page gave EIO")
        same_bytes(os.pread(fd, 20 * PAGE, 0), pages("f", 20), "pages before")
        same_bytes(os.pread(fd, 20 * PAGE, 21 * PAGE), pages("f", 20, 21), "pages behind")
    finally:
        os.close(fd)
        _forget(t)


@case(**POISON)
def bad_block_mapped(t):
    """An access to the bad page gets SIGBUS with its address; its neighbours serve."""
    fd = _file(t, 2 * PMD)
    _BadBlock(fd, 20 * PAGE)
    try:
        for skew in (PAGE, 0):
            with Map(fd, 2 * PMD, skew=skew) as m:
                stats = t.stats()
                for write in (False, True):
                    fault = m.store(20 * PAGE + 8, 1) if write else m.load(20 * PAGE + 8)[1]
                    what = f"{'store' if write else 'load'}, skew {skew}"
                    equal(fault.signal, SIGBUS, f"{what}: signal")
                    check(fault.address >> 12 == (m.address >> 12) + 20, f"{what}: {fault}")
                    equal(fault.code, BUS_MCEERR_AR, f"{what}: {fault}: code")
                same_bytes(m.read(0, 20 * PAGE), pages("f", 20), "pages before")
                same_bytes(m.read(21 * PAGE, PAGE), page("f", 21), "page behind")
                same_bytes(m.read(PMD, PMD), pages("f", 512, 512), "the next 2 MiB")
                stats.expect(poison_faults=some)
    finally:
        os.close(fd)
        _forget(t)


@case(**POISON)
def bad_block_of_a_known_page(t):
    """Memory that was mapped before it became bad is not mapped again, be it as a neighbour."""
    fd = _file(t, 64 * PAGE)
    with Map(fd, 64 * PAGE, skew=PAGE) as m:
        m.touch(write=True)
    _BadBlock(fd, 20 * PAGE)
    try:
        for write in (False, True):
            with Map(fd, 64 * PAGE, skew=PAGE) as m:
                for at in (19, 21):
                    m.touch(at * PAGE, PAGE, write=write)
                fault = m.store(20 * PAGE, 1) if write else m.load(20 * PAGE)[1]
                equal(fault.signal, SIGBUS, "signal of an access to the bad page")
    finally:
        os.close(fd)
        _forget(t)


@case(**POISON)
def bad_block_written(t):
    """A write of part of the page fails; a write of all of it is tried in recovery mode.

    A driver that does not recover copies nothing, which is EFAULT; else the error is EIO.
    """
    fd = _file(t, PMD)
    bad = _BadBlock(fd, 20 * PAGE)
    try:
        raises((EIO, EFAULT), "write of part of the bad page", os.pwrite, fd, b"x" * 100, 20 * PAGE + 50)
        equal(len(bad.list()), 1, "bad blocks after a partial write")
        raises(EIO, "pread after the partial write", os.pread, fd, 1, 20 * PAGE)
        with Calls("pmem_recovery_write") as recovery:
            try:
                written = os.pwrite(fd, page("w", 20), 20 * PAGE)
            except OSError as error:
                check(error.errno in (EIO, EFAULT), f"the write failed with {error}")
                written = None
            check(recovery.count() > 0, "the write was not tried in recovery mode")
        if written is None:
            # This bus cannot clear errors: the write must have failed as a whole.
            t.note("the device cannot clear errors")
            equal(len(bad.list()), 1, "bad blocks")
            raises(EIO, "pread after the failed write", os.pread, fd, PAGE, 20 * PAGE)
        else:
            equal(written, PAGE, "bytes written")
            equal(bad.list(), [], "bad blocks after the write")
            same_bytes(os.pread(fd, PAGE, 20 * PAGE), page("w", 20), "the page")
            bad = _BadBlock(fd, 20 * PAGE)
        nothing = posix.mmap(None, PAGE, posix.PROT_NONE, posix.MAP_PRIVATE | posix.MAP_ANONYMOUS)
        raises(EFAULT, "write from memory that is not there", posix.pwrite_from, fd, nothing, PAGE,
               20 * PAGE)
        posix.munmap(nothing, PAGE)
        os.pwrite(fd, pages("w", 20), 0)
        same_bytes(os.pread(fd, 20 * PAGE, 0), pages("w", 20), "pages before")
    finally:
        os.close(fd)
        _forget(t)


@case(fs=("xfs",), **POISON)
def bad_block_shared(t):
    """Copying away from a bad page fails and leaves both files as they were."""
    one, two = _file(t, 64 * PAGE, "one"), t.open("two")
    posix.clone(one, two)
    _BadBlock(one, 20 * PAGE)
    try:
        # Part of the page would have to come from the bad one.
        raises(EIO, "partial write to the shared bad page", os.pwrite, two, b"x", 20 * PAGE + 5)
        with Map(two, 64 * PAGE, skew=PAGE) as m:
            equal(m.store(20 * PAGE, 1).signal, SIGBUS, "store to the shared bad page: signal")
            check(not m.store(21 * PAGE, 1).signal, "store to the next page failed")
        for fd, changed in ((one, page("f", 21)), (two, b"\1" + page("f", 21)[1:])):
            same_bytes(os.pread(fd, PAGE, 21 * PAGE), changed, "the next page")
    finally:
        os.close(one)
        os.close(two)
        _forget(t)


def rebind():
    """Bind the pmem driver anew, which forgets all marks; adopt again what was adopted."""
    if not device.exists(DEVICE):
        return
    adopted = device.adopted(DEVICE)
    if adopted:
        device.write(f"{device.CONFIG}/{DEVICE}/adopt", "0")
    driver, name = device.driver_of(DEVICE)
    device.write(f"{driver}/unbind", name)
    wait_for(lambda: not device.exists(DEVICE), f"end of {DEVICE}")
    device.bind(DEVICE, driver, name)
    if adopted:
        device.write(f"{device.CONFIG}/{DEVICE}/adopt", "1")


def end_of_group():
    rebind()
