# SPDX-License-Identifier: GPL-2.0
"""R5: what was stored is written back before anybody is told that it is safe.

Nothing here can cut the power of the memory, so what is looked at are the cache write-backs
that the kernel makes: each page must be written back, whole, after the last store to it.
"""

import ctypes
import errno
import os
import threading
import time

from lib import native, posix
from lib.check import Failure, check, equal, same_bytes
from lib.device import SlowDisk, wait_for
from lib.mapping import Map
from lib.native import Writer
from lib.pattern import page, pages
from lib.pattern import file as _file
from lib.posix import PAGE, PMD
from lib.ptrace import await_stop, let_go_on, poke, trace_me
from lib.runner import case
from lib.task import Task
from lib.trace import Calls, Flushes
from lib.uffd import Missing

SPOTS = [0, 3, 4, 100, 511, 512, 700]
ANONYMOUS = posix.MAP_PRIVATE | posix.MAP_ANONYMOUS


def _now():
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def _store(m, spots=SPOTS, letter="d"):
    """Store a page at each spot; the page frames."""
    for spot in spots:
        m.write(spot * PAGE, page(letter, spot))
    return [m.pfn(spot * PAGE) for spot in spots]


@case(alone=True)
def fsync_flushes_each_page_once(t):
    fd = _file(t, 2 * PMD)
    with Map(fd, 2 * PMD, skew=PAGE) as m, Flushes() as flushes:
        pfns = _store(m)
        clean = m.pfn(50 * PAGE) if m.load(50 * PAGE) else 0
        stats = t.stats()
        flushes.clear()
        os.fsync(fd)
        flushes.check_once(pfns, "fsync")
        equal(len(flushes.of([clean])), 0, "flushes of a page that was only read")
        stats.expect(writeback_entries=len(pfns), writeback_bytes=len(pfns) * PAGE)
        flushes.clear()
        os.fsync(fd)
        equal(len(flushes.of(pfns)), 0, "flushes by a second fsync")
        again = _store(m, SPOTS[2:4])
        os.fsync(fd)
        flushes.check_once(again, "fsync after storing to two pages again")
        equal(len(flushes.of(pfns[:2] + pfns[4:])), 0, "flushes of the other pages")


@case()
def fsync_flushes_huge_entries_once(t):
    fd = _file(t, 4 * PMD)
    with Map(fd, 4 * PMD) as m, Flushes() as flushes:
        m.write(7 * PAGE, page("d", 7))
        m.write(9 * PAGE, page("d", 9))
        m.write(2 * PMD + 5, b"x")
        m.touch(3 * PMD, 1)
        equal(m.mapped_huge(), 3 * PMD, "bytes mapped by huge entries")
        stats = t.stats()
        flushes.clear()
        os.fsync(fd)
        dirty = [m.pfn(at) for at in (0, 7 * PAGE, 511 * PAGE, 2 * PMD, 2 * PMD + 300 * PAGE)]
        flushes.check_once(dirty, "fsync", size=PMD)
        equal(len(flushes.of(dirty)), 2, "flushes of two dirty entries")
        equal(len(flushes.of([m.pfn(3 * PMD)])), 0, "flushes of an entry that was only read")
        stats.expect(writeback_entries=2, writeback_bytes=2 * PMD)
        flushes.clear()
        os.fsync(fd)
        equal(len(flushes.of(dirty)), 0, "flushes by a second fsync")
        m.store(11 * PAGE, 1)
        os.fsync(fd)
        flushes.check_once(dirty[:3], "fsync after another store", size=PMD)


@case(alone=True)
def msync_flushes_its_range(t):
    fd = _file(t, 2 * PMD)
    with Map(fd, 2 * PMD, skew=PAGE) as m, Flushes() as flushes:
        pfns = _store(m)
        flushes.clear()
        m.sync(3 * PAGE, 2 * PAGE)
        flushes.check_once(pfns[1:3], "msync of two pages")
        equal(len(flushes.of(pfns[:1] + pfns[3:])), 0, "flushes of other pages")
        flushes.clear()
        os.fsync(fd)
        flushes.check_once(pfns[:1] + pfns[3:], "fsync of the rest")
        equal(len(flushes.of(pfns[1:3])), 0, "flushes of pages that msync had written")


@case()
def zeroed_bytes_are_flushed(t):
    """Parts of pages that the filesystem has zeroed are durable when the call is over."""
    fd = _file(t, 16 * PAGE)
    with Map(fd, 16 * PAGE, skew=PAGE) as m, Flushes() as flushes:
        m.touch()
        zero, cut = m.pfn(3 * PAGE) * PAGE, m.pfn(9 * PAGE) * PAGE
        flushes.clear()
        posix.fallocate(fd, posix.ZERO_RANGE | posix.KEEP_SIZE, 3 * PAGE + 100, 50)
        os.ftruncate(fd, 9 * PAGE + 77)
        got = flushes.all()
        for first, end, what in ((zero + 100, zero + 150, "zeroed"),
                                 (cut + 77, cut + PAGE, "behind the new end")):
            check(any(start <= first and start + length >= end for _, start, length in got),
                  f"bytes that were {what} were not flushed")


@case()
def stores_make_the_inode_dirty(t):
    """Those who sync a whole filesystem look for inodes with dirty pages (I_DIRTY_PAGES)."""
    ways = ((PAGE, posix.MADV_NORMAL, "a page and what follows"),
            (PAGE, posix.MADV_RANDOM, "a page alone"), (0, posix.MADV_NORMAL, "2 MiB"))
    for number, (skew, advice, what) in enumerate(ways):
        fd = _file(t, 2 * PMD, f"file{number}")
        t.sync()  # to allocate blocks may have made it dirty in this way already
        with Map(fd, 2 * PMD, skew=skew) as m, \
                Calls("__mark_inode_dirty flags=$arg2:x32") as calls:
            posix.madvise(m.address, 2 * PMD, advice)
            calls.instance.clear()
            m.store(PAGE, 1)
            first = calls.instance.lines()
            t.sync()
            calls.instance.clear()
            m.store(PAGE, 2)
            again = calls.instance.lines()
        # A new time of change is told as I_DIRTY by some, which has this one among others.
        wanted = {"0x40"} if t.variant.name.startswith("xfs") else {"0x40", "0x70"}
        for lines, which in ((first, "the first"), (again, "the next")):
            flags = {line.rpartition("flags=")[2].strip() for line in lines}
            check(flags & wanted, f"{which} store to {what} made the inode dirty as {flags}")


@case(quick=False)
def other_ways_to_sync(t):
    """fdatasync, syncfs, O_DSYNC's write of another page."""
    fd = _file(t, 2 * PMD)
    with Map(fd, 2 * PMD, skew=PAGE) as m, Flushes() as flushes:
        for name, how in (("fdatasync", lambda: os.fdatasync(fd)), ("syncfs", t.sync)):
            pfns = _store(m)
            since = _now()
            flushes.clear()
            how()
            flushes.check_flushed(pfns, since, name)


@case(quick=False)
def unmapped_pages_are_flushed(t):
    """munmap leaves no page table entry to find; the file's tree remembers."""
    fd = _file(t, 2 * PMD)
    with Flushes() as flushes:
        for skew in (0, PAGE):
            with Map(fd, 2 * PMD, skew=skew) as m:
                pfns = _store(m)
            flushes.clear()
            os.fsync(fd)
            flushes.check_once(pfns[3:4], f"fsync after munmap (skew {skew})")
            flushes.check_flushed(pfns, 0, f"fsync after munmap (skew {skew})")


@case()
def umount_flushes(t):
    fd = _file(t, 2 * PMD)
    with Flushes() as flushes:
        with Map(fd, 2 * PMD, skew=PAGE) as m:
            pfns = _store(m)
        os.close(fd)
        since = _now()
        t.fs.umount()
        flushes.check_flushed(pfns, since, "umount")
        t.fs.mount()
    fd = t.open()
    same_bytes(os.pread(fd, PAGE, 100 * PAGE), page("d", 100), "after mounting")


def _remembered(t, how, spots=SPOTS, size=4 * PMD):
    """Store, change another part of the file, fsync: every page is flushed by then.

    Filesystems drop a file's entries as a whole, whatever part of it changes.
    """
    with Flushes() as flushes:
        for skew in (PAGE, 0):
            fd = _file(t, size, f"file{skew}")
            with Map(fd, size, skew=skew) as m:
                pfns = _store(m, spots)
                since = _now()
                flushes.clear()
                how(fd)
                os.fsync(fd)
                flushes.check_flushed(pfns, since, "huge entries" if not skew else "small entries")
                for spot in spots:
                    same_bytes(os.pread(fd, PAGE, spot * PAGE), page("d", spot), f"page {spot}")
                # The entries came back clean and writable only by a fault.
                again = _store(m, spots[:2], "e")
                flushes.clear()
                since = _now()
                os.fsync(fd)
                flushes.check_flushed(again, since, "stored again")
            os.close(fd)


@case()
def truncate_of_the_tail_forgets_nothing(t):
    _remembered(t, lambda fd: os.ftruncate(fd, 3 * PMD))


@case(quick=False)
def unaligned_truncate_forgets_nothing(t):
    _remembered(t, lambda fd: os.ftruncate(fd, 2 * PMD + 12345))


@case(quick=False)
def growing_forgets_nothing(t):
    _remembered(t, lambda fd: os.ftruncate(fd, 4 * PMD + 12345))


@case()
def punch_elsewhere_forgets_nothing(t):
    _remembered(t, lambda fd: posix.fallocate(
        fd, posix.PUNCH_HOLE | posix.KEEP_SIZE, 3 * PMD, 16 * PAGE))


@case(quick=False)
def zeroing_elsewhere_forgets_nothing(t):
    _remembered(t, lambda fd: posix.fallocate(
        fd, posix.ZERO_RANGE | posix.KEEP_SIZE, 3 * PMD, 16 * PAGE))


@case(quick=False)
def collapsing_elsewhere_forgets_nothing(t):
    _remembered(t, lambda fd: posix.fallocate(fd, posix.COLLAPSE_RANGE, 3 * PMD, 16 * PAGE))


@case(quick=False)
def inserting_elsewhere_forgets_nothing(t):
    _remembered(t, lambda fd: posix.fallocate(fd, posix.INSERT_RANGE, 3 * PMD, 16 * PAGE))


@case()
def truncate_inside_a_huge_entry_forgets_nothing(t):
    """The cut goes through the entry that holds the dirty page."""
    _remembered(t, lambda fd: os.ftruncate(fd, 300 * PAGE), spots=[0, 3, 100], size=PMD)


@case(alone=True)
def removal_is_counted(t):
    t.need_adopted()
    fd = _file(t, 2 * PMD)
    stats = t.stats()
    with Map(fd, 2 * PMD, skew=PAGE) as m:
        _store(m, [1, 2, 3])
        m.touch(8 * PAGE, 2 * PAGE)
        os.ftruncate(fd, PMD)
        stats.expect(entries_flushed_on_removal=3, entries_removed=lambda n: n >= 5)


@case()
def both_mappings_are_write_protected(t):
    """After fsync a store through any mapping is noticed."""
    fd = _file(t, 2 * PMD)
    with Map(fd, 2 * PMD, skew=PAGE) as m1, Map(fd, 2 * PMD, skew=2 * PAGE) as m2, \
            Map(fd, 2 * PMD) as huge, Flushes() as flushes:
        for m in (m1, m2, huge):
            _store(m, [5, 700])
        for writer, name in ((m1, "first"), (m2, "second"), (huge, "third")):
            os.fsync(fd)
            flushes.clear()
            pfns = _store(writer, [5, 700], "w")
            since = _now()
            os.fsync(fd)
            flushes.check_flushed(pfns, since, f"stored through the {name} mapping")
            t.holds("after fsync")


@case()
def stores_of_a_child_are_flushed(t):
    fd = _file(t, 2 * PMD)
    with Map(fd, 2 * PMD, skew=PAGE) as m, Flushes() as flushes:
        _store(m)
        os.fsync(fd)
        flushes.clear()
        Task(lambda: _store(m, letter="c")).result()
        since = _now()
        pfns = [m.pfn(spot * PAGE) for spot in SPOTS if not m.load(spot * PAGE)[1].signal]
        os.fsync(fd)
        flushes.check_flushed(pfns, since, "stored by a child that has ended")


@case()
def stores_race_with_fsync(t):
    """Whenever a store comes, it is flushed by a later fsync, or faults again."""
    fd = _file(t, 2 * PMD)
    for skew in (PAGE, 0):
        with Map(fd, 2 * PMD, skew=skew) as m, Flushes() as flushes:
            writer = Writer(m.address)
            rounds, end = 0, time.monotonic() + (0.5 if t.settings.quick else 1.5)
            while time.monotonic() < end or rounds < 2 or writer.stores() <= 16:
                os.fsync(fd)
                rounds += 1
                if rounds % 8 == 0:
                    flushes.clear()
            writer.await_stores()
            stores, last = writer.stop(), writer.last()
            pfns = m.pfns(0, 8 * PAGE)
            # What the loop has not covered, this one must.
            os.fsync(fd)
            flushes.check_flushed(pfns, last, f"after {stores} stores and {rounds} rounds")


@case()
def transfer_into_the_mapping_is_flushed(t):
    """A direct read stores too."""
    slow, fd = SlowDisk(), _file(t, 2 * PMD)
    slow.fill(pages("d", 4))
    with Flushes() as flushes:
        for skew in (PAGE, 0):
            with Map(fd, 2 * PMD, skew=skew) as m:
                m.touch(0, PMD, write=True)
                os.fsync(fd)
                flushes.clear()
                equal(posix.pread_to(slow.open(), m.address + 8 * PAGE, 4 * PAGE, 0), 4 * PAGE,
                      "bytes read")
                pfns = m.pfns(8 * PAGE, 4 * PAGE)
                since = _now()
                os.fsync(fd)
                flushes.check_flushed(pfns, since, "read into the mapping")


def _into_the_mapping(m, offset, length):
    """A task that reads from the slow disk, which is held, straight into pages of the mapping."""
    def go():
        return posix.pread_to(SlowDisk().open(), m.address + offset, length, 0)

    task = Task(go, name="direct read")
    task.blocked_in("pread64")
    return task


@case(alone=True)
def fsync_in_the_middle_of_a_transfer(t):
    """What arrives after fsync in pages that were held meanwhile is flushed by the next one."""
    slow, fd = SlowDisk(), _file(t, 2 * PMD)
    slow.fill(pages("d", 4))
    for skew in (PAGE, 0):
        for how in (os.fsync, posix.syncfs):
            for mapped in (True, False):
                what = f"{how.__name__}, {'2 MiB' if not skew else 'pages'}, mapped: {mapped}"
                with Map(fd, 2 * PMD, skew=skew) as m, Flushes() as flushes:
                    m.touch(0, PMD, write=True)
                    os.fsync(fd)
                    m.touch(40 * PAGE, 1, write=True)
                    slow.hold()
                    transfer = _into_the_mapping(m, 8 * PAGE, 4 * PAGE)
                    m.touch(8 * PAGE, 4 * PAGE)
                    pfns, other = m.pfns(8 * PAGE, 4 * PAGE), m.pfn(40 * PAGE)
                    if not mapped:
                        m.unmap()
                    flushes.clear()
                    how(fd)
                    flushes.check_flushed(pfns + [other], 0, f"{what}: in the middle")
                    flushes.clear()
                    how(fd)
                    flushes.check_flushed(pfns, 0, f"{what}: in the middle, again")
                    if skew:
                        equal(flushes.of([other]), [], f"{what}: flushes of what nobody holds")
                    slow.release()
                    equal(transfer.result(), 4 * PAGE, "bytes read")
                    since = _now()
                    how(fd)
                    flushes.check_flushed(pfns, since, f"{what}: afterwards")
                    flushes.clear()
                    os.fsync(fd)
                    equal(flushes.of(pfns), [], f"{what}: flushes when all is done")
    same_bytes(os.pread(fd, 4 * PAGE, 8 * PAGE), pages("d", 4), "what was read")


@case()
def a_sync_comes_to_what_is_held_a_few_times(t):
    """What stays dirty is no progress, for which syncfs would come back until the clock's next tick."""
    t.need_adopted()
    fd = _file(t, PMD)
    reader, writer = os.pipe()
    with Map(fd, PMD, skew=PAGE) as m:
        m.touch(0, PAGE, write=True)
        m.splice(writer, 0)
    stats = t.stats()
    for how in (posix.syncfs, os.fsync):
        before = stats.since().get("writeback_entries", 0)
        how(fd)
        times = stats.since().get("writeback_entries", 0) - before
        check(1 <= times <= 4, f"{how.__name__} has written one entry {times} times")
    os.read(reader, PAGE)
    os.close(reader)
    os.close(writer)


@case(alone=True)
def fsync_in_the_middle_of_process_vm_writev(t):
    """The pages of the target are held while a page of the source is brought in."""
    fd = _file(t, 2 * PMD)
    for skew in (PAGE, 0):
        with Map(fd, 2 * PMD, skew=skew) as m, Map(-1, 2 * PAGE, flags=ANONYMOUS) as source, \
                Missing(source) as missing, Flushes() as flushes:
            writer = threading.Thread(target=posix.process_vm_write, args=(
                os.getpid(), source.address, m.address + 8 * PAGE, 2 * PAGE))
            writer.start()
            equal(missing.wait(), source.address, "address that is wanted")
            m.touch(8 * PAGE, 2 * PAGE)
            pfns = m.pfns(8 * PAGE, 2 * PAGE)
            os.fsync(fd)
            missing.give(pages("v", 2))
            writer.join()
            since = _now()
            os.fsync(fd)
            flushes.check_flushed(pfns, since, "what process_vm_writev wrote")
        same_bytes(os.pread(fd, 2 * PAGE, 8 * PAGE), pages("v", 2), "what was written")


@case(alone=True)
def fsync_in_the_middle_of_an_io_uring_read(t):
    """As of a direct read, by a worker of io_uring's."""
    slow, fd = SlowDisk(), _file(t, 2 * PMD)
    slow.fill(pages("u", 4))
    lib = ctypes.CDLL(native.path("uring.so"))
    lib.uring_transfer.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t,
                                   ctypes.c_int]
    lib.uring_transfer.restype = ctypes.c_long
    for skew in (PAGE, 0):
        with Map(fd, 2 * PMD, skew=skew) as m, Flushes() as flushes, Calls("delay_map") as requests:
            m.touch(8 * PAGE, 4 * PAGE, write=True)
            pfns = m.pfns(8 * PAGE, 4 * PAGE)
            os.fsync(fd)
            slow.hold()
            before = requests.count()
            read = Task(lambda m=m: lib.uring_transfer(slow.open(), m.address + 8 * PAGE, 4 * PAGE, 0, 0),
                        name="io_uring")
            wait_for(lambda n=before, read=read: requests.count() > n or read.done(), "the read")
            for what in ("in the middle", "in the middle, again"):
                flushes.clear()
                os.fsync(fd)
                flushes.check_flushed(pfns, 0, what)
            slow.release()
            equal(read.result(), 4 * PAGE, "bytes read")
            since = _now()
            os.fsync(fd)
            flushes.check_flushed(pfns, since, "afterwards")
            flushes.clear()
            os.fsync(fd)
            equal(flushes.of(pfns), [], "flushes when all is done")
    same_bytes(os.pread(fd, 4 * PAGE, 8 * PAGE), pages("u", 4), "what was read")


@case(alone=True)
def fsync_while_pages_are_given_to_a_pipe(t):
    """Also as a gift, by which their owner says that he does not store to them: he may."""
    fd = _file(t, 2 * PMD)
    for skew in (PAGE, 0):
        for flags in (0, posix.SPLICE_F_GIFT):
            reader, writer = os.pipe()
            with Map(fd, 2 * PMD, skew=skew) as m, Flushes() as flushes:
                m.touch(8 * PAGE, 2 * PAGE, write=True)
                pfns = m.pfns(8 * PAGE, 2 * PAGE)
                equal(posix.vmsplice(writer, m.address + 8 * PAGE, 2 * PAGE, flags), 2 * PAGE, "bytes given")
                for what in ("in the pipe", "in the pipe, again"):
                    flushes.clear()
                    os.fsync(fd)
                    flushes.check_flushed(pfns, 0, f"{what}, flags {flags}")
                m.write(8 * PAGE, pages("g", 2))
                same_bytes(os.read(reader, 2 * PAGE), pages("g", 2), "what comes out of the pipe")
                since = _now()
                os.fsync(fd)
                flushes.check_flushed(pfns, since, f"afterwards, flags {flags}")
                flushes.clear()
                os.fsync(fd)
                equal(flushes.of(pfns), [], "flushes when all is done")
            os.close(reader)
            os.close(writer)


@case(alone=True)
def what_a_debugger_writes_is_flushed(t):
    """By ptrace and by /proc/PID/mem, after an fsync that has protected the pages: the kernel has the page for
    the copy alone, so that nothing can come between."""
    fd = _file(t, 2 * PMD)

    def traced(m):
        trace_me()
        m.load(0)

    for skew in (PAGE, 0):
        with Map(fd, 2 * PMD, skew=skew) as m, Flushes() as flushes:
            m.touch(8 * PAGE, 4 * PAGE, write=True)
            pfns = m.pfns(8 * PAGE, 4 * PAGE)
            task = Task(traced, m)
            await_stop(task.pid)
            with open(f"/proc/{task.pid}/mem", "r+b", buffering=0) as memory:
                for word in (b"debugger", b"and mem."):
                    os.fsync(fd)
                    poke(task.pid, m.address + 8 * PAGE + 16, word)
                    memory.seek(m.address + 9 * PAGE)
                    memory.write(word)
                    since = _now()
                    flushes.clear()
                    os.fsync(fd)
                    flushes.check_flushed(pfns[:2], since, "what the debugger wrote")
                    if skew:
                        equal(flushes.of(pfns[2:]), [], "flushes of what it did not write")
            let_go_on(task.pid)
            task.result()
    same_bytes(os.pread(fd, 8, 8 * PAGE + 16), word, "what ptrace wrote")
    same_bytes(os.pread(fd, 8, 9 * PAGE), word, "what was written to mem")


@case(quick=False)
def nothing_stored_nothing_flushed(t):
    fd = _file(t, 2 * PMD)
    for skew in (0, PAGE):
        with Map(fd, 2 * PMD, skew=skew) as m, Flushes() as flushes:
            m.touch()
            pfns = m.pfns()
            os.fsync(fd)
            posix.fallocate(fd, posix.PUNCH_HOLE | posix.KEEP_SIZE, 3 * PMD, PAGE)
            equal(len(flushes.of(pfns)), 0, "flushes of pages that were only read")


@case(fs=("xfs", "ext4"))
def after_a_shutdown_nothing_is_stored(t):
    """Where a filesystem was shut down, stores would be lost: they end in SIGBUS, also in pages of
    which the last fault has left nothing to ask."""
    size = 2 * PMD
    fd = _file(t, size)
    with Map(fd, size) as known, Map(fd, size, skew=PAGE) as small, Map(fd, size) as other, \
            Map(fd, size, skew=PAGE) as small_other:
        # In turn, so that each size has entries that need nothing for a store.
        known.touch(0, PMD, write=True)
        small.touch(PMD, 32 * PAGE, write=True)
        os.fsync(fd)
        for m, offset in ((known, 0), (small, PMD)):
            m.touch(offset, 16 * PAGE, write=True)
        os.fsync(fd)
        posix.shut_down(t.fs.mount_point)
        for m, offset in ((other, 5 * PAGE), (small_other, PMD + 5 * PAGE), (known, 7 * PAGE),
                          (small, PMD + 7 * PAGE), (small, PMD + 20 * PAGE)):
            m.bus_error(offset, "a store after the shutdown", write=True)
        if t.variant.kind == "xfs":
            for m, offset in ((other, 9 * PAGE), (small_other, PMD + 9 * PAGE)):
                m.bus_error(offset, "a load after the shutdown")
        try:
            os.fsync(fd)
        except OSError as error:
            equal(error.errno, errno.EIO, "fsync after the shutdown")
        else:
            raise Failure("fsync says that all is well after the shutdown")
    os.close(fd)
    t.fs.remount()
    fd = t.open()
    with Map(fd, size) as m:
        check(not m.store(7 * PAGE, 0x55).signal, "a store after the next mount fails")
        os.fsync(fd)
    same_bytes(os.pread(fd, 1, 7 * PAGE), b"\x55", "what was stored after the next mount")
    os.close(fd)
