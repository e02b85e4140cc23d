# SPDX-License-Identifier: GPL-2.0
"""Who uses a page is counted, and nothing is given back to the filesystem under a user.

A transfer is kept waiting on a slow disk for as long as a case wants: the disk holds back all
requests until it is told to go on.
"""

import errno
import fcntl
import os
import select
import signal
import threading

from lib import posix, task
from lib.check import Failure, Skip, check, equal, raises, same_bytes
from lib.device import SlowDisk, run, some, wait_for
from lib.mapping import Map
from lib.pattern import page, pages
from lib.pattern import file as _file
from lib.posix import PAGE, PMD
from lib.runner import case
from lib.space import free_blocks, held_clone, neighbours, overlap, settle
from lib.task import Task
from lib.trace import Pages

PINNED = 8 * PAGE


def _transfer(m, offset, length, write):
    """A task that moves a piece of the mapping to or from the slow disk."""
    def go():
        disk = os.open(SlowDisk.PATH, os.O_RDWR | os.O_DIRECT)
        move = posix.pwrite_from if write else posix.pread_to
        return move(disk, m.address + offset, length, 0)

    task = Task(go, name="direct write" if write else "direct read")
    task.blocked_in("pwrite64" if write else "pread64")
    return task


@case(alone=True)
def one_reference_for_each_mapping(t):
    """R1: 0 when idle, one for each page table entry, none for the entry in the tree."""
    state = Pages()
    fd = _file(t, PMD)
    with Map(fd, PMD, skew=PAGE) as m:
        m.touch(0, 8 * PAGE, write=True)
        pfns = m.pfns(0, 8 * PAGE)
        equal(state.counts(pfns), [(1, 1)] * 8, "(references, mappings) of pages mapped once")
        with Map(fd, PMD, skew=PAGE) as other:
            other.touch(0, 4 * PAGE)
            equal(state.counts(pfns), [(2, 2)] * 4 + [(1, 1)] * 4, "with a second mapping")

            def child():
                other.touch(0, 2 * PAGE)
                return state.refcounts(pfns)

            equal(Task(child).result()[:5], [3, 3, 2, 2, 1], "with a second process")
        equal(state.counts(pfns), [(1, 1)] * 8, "with the second mapping gone")
        t.holds("with pages mapped")
    state.check_idle(pfns, "after munmap")
    os.ftruncate(fd, 0)
    state.check_free(pfns, "after truncate")


@case()
def one_reference_for_a_huge_mapping(t):
    state = Pages()
    fd = _file(t, 2 * PMD)
    with Map(fd, 2 * PMD) as m, Map(fd, 2 * PMD) as other:
        m.touch(step=PMD, write=True)
        equal(m.mapped_huge(), 2 * PMD, "bytes mapped by huge entries")
        head, *tails = m.pfns(0, PMD)
        second = m.pfn(PMD)
        equal(state.refcounts([head, second]), [1, 1], "references to the folios")
        other.touch(5 * PAGE, 1)
        equal(state.refcounts([head, second]), [2, 1], "with a second mapping of one")
        t.holds("with huge pages mapped")
        equal(set(state.refcounts(tails[::9])), {0}, "references to tail pages")
        compound = state.words(tails[::9], state.COMPOUND)
        check(all(word & 1 for (word,) in compound), "a tail page does not say it is one")
        m.advise(posix.MADV_DONTNEED)
        equal(state.refcounts([head, second]), [1, 0], "with the first mapping gone")
    state.check_idle([head, second] + tails[::9], "after munmap")
    os.ftruncate(fd, 0)
    state.check_free([head, second] + tails[::9] + tails[-1:], "after truncate")


@case()
def idle_after_exit(t):
    """A process that is killed gives everything back."""
    state = Pages()
    fd = _file(t, 2 * PMD)
    frames = t.path("frames")

    def child():
        huge, small = Map(fd, 2 * PMD), Map(fd, 2 * PMD, skew=PAGE)
        huge.touch(write=True)
        small.touch(write=True)
        with open(frames + ".new", "w", encoding="ascii") as f:
            f.write(" ".join(str(p) for p in huge.pfns()[::50]))
        os.rename(frames + ".new", frames)
        signal.pause()

    task = Task(child)
    wait_for(lambda: os.path.exists(frames), "list of frames")
    with open(frames, encoding="ascii") as f:
        pfns = [int(word) for word in f.read().split()]
    check(any(state.refcounts(pfns)), "no references while mapped")
    task.kill()
    equal(task.signalled(), 9, "signal")
    state.check_idle(pfns, "after the process was killed")


@case(alone=True)
def huge_folio_comes_apart(t):
    """R4: after truncate every page stands alone, and serves as small pages next."""
    state = Pages()
    left, fd = neighbours(t, PMD)
    with Map(fd, PMD) as m:
        m.touch(0, 1, write=True)
        equal(m.mapped_huge(), PMD, "bytes mapped by huge entries")
        pfns = m.pfns()
        os.ftruncate(fd, 0)
        state.check_free(pfns[:3] + pfns[3:500:41] + pfns[-2:], "after truncate")
    t.sync()
    posix.fallocate(left, 0, PMD, PMD)
    with Map(left, PMD, offset=PMD, skew=PAGE) as m:
        m.write(0, pages("n", 512))
        again = m.pfns()
        if not set(again) & set(pfns):
            raise Skip("the filesystem gave other blocks than those of the huge folio")
        equal(state.refcounts(again[::30]), [1] * 18, "references to small pages")
        same_bytes(m.read(0, PMD), pages("n", 512), "content")


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
        writer = _transfer(m, offset, PINNED, write=True)
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


def _truncate(_, fd):
    os.ftruncate(fd, 0)


def _truncate_middle(_, fd):
    os.ftruncate(fd, 3 * PAGE)


def _punch(_, fd):
    posix.fallocate(fd, posix.PUNCH_HOLE | posix.KEEP_SIZE, 0, 64 * PAGE)


def _collapse(_, fd):
    posix.fallocate(fd, posix.COLLAPSE_RANGE, 0, 64 * PAGE)


@case()
def truncate_waits_for_direct_write(t):
    fd, pfns = _held(t, _truncate, 64 * PAGE, PAGE, 2 * PAGE)
    equal(os.fstat(fd).st_size, 0, "size")
    Pages().check_free(pfns, "after truncate")


@case()
def truncate_waits_for_direct_write_from_huge_page(t):
    fd, pfns = _held(t, _truncate, 2 * PMD, 0, PMD + 50 * PAGE)
    equal(os.fstat(fd).st_size, 0, "size")
    Pages().check_free(pfns, "after truncate")


def _mapped_again(t, skew):
    slow = SlowDisk()
    fd = _file(t, PMD)
    with Map(fd, PMD, skew=skew) as m:
        m.touch(write=True)
        pfns = m.pfns()
        slow.hold()
        transfer = _transfer(m, 0, PINNED, True)
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
    fd, _ = _held(t, _punch, 128 * PAGE, PAGE, 2 * PAGE)
    same_bytes(os.pread(fd, 65 * PAGE, 0), bytes(64 * PAGE) + page("f", 64), "file")


@case(quick=False)
def punch_waits_for_direct_write_from_huge_page(t):
    fd, _ = _held(t, _punch, 2 * PMD, 0, 50 * PAGE)
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
        writer = _transfer(m, 0, PINNED, write=True)
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
        reader = _transfer(m, offset, PINNED, write=False)

        freed = 64 * PAGE if how is _punch else PMD

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
    _freed(t, _truncate, PAGE, 4 * PAGE)


@case(quick=False)
def truncate_waits_for_direct_read_into_huge_page(t):
    _freed(t, _truncate, 0, 100 * PAGE)


@case(quick=False)
def punch_waits_for_direct_read(t):
    _freed(t, _punch, PAGE, 4 * PAGE)


@case(quick=False)
def direct_read_arrives(t):
    """Without a truncate, what was read from the disk is in the file, and is flushed by fsync."""
    slow, fd = SlowDisk(), _file(t, 2 * PMD)
    slow.fill(pages("d", 8))
    for skew in (0, PAGE):
        with Map(fd, 2 * PMD, skew=skew) as m:
            slow.hold()
            reader = _transfer(m, PMD + PAGE, PINNED, write=False)
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
        equal(posix.vmsplice(writer, m.address + PAGE, PAGE), PAGE, "bytes in the pipe")
        equal(state.refcounts([pfn]), [2], "references with the page in a pipe")
        waiter = Task(_truncate, t, fd)
        waiter.blocked_in("ftruncate")
        same_bytes(os.read(reader, PAGE), page("v", 1), "what comes out of the pipe")
        waiter.result()
    state.check_idle([pfn], "afterwards")


def _store(fd, at):
    with Map(fd, 2 * PMD, skew=PAGE) as m:
        m.write(at, page("s"))


@case(fs=("xfs",))
def fault_that_waits_for_a_page_stops_nobody(t):
    """Whoever needs a page that somebody holds keeps nothing meanwhile that others need."""
    at = 100 * PAGE
    with held_clone(t.dir) as fd:
        victim = Task(_store, fd, at, name="store")
        victim.must_fault()
        behind = [Task(_store, fd, at, name="another store") for _ in range(2)]
        for task_ in behind:
            task_.must_fault()

        def use():
            _store(fd, PMD + at)
            os.fsync(fd)
            run("fsfreeze", "--freeze", t.dir)
            run("fsfreeze", "--unfreeze", t.dir)

        Task(use, name="another user").result(30)
        for task_ in behind:
            task_.kill()
            equal(task_.signalled(), signal.SIGKILL, "the signal that ended it")
        check(not victim.done(), "the page was not waited for")
        third = Task(_store, fd, at, name="a third store")
        third.must_fault()
    # The page has come out of the pipe.
    for task_ in (victim, third):
        task_.result()
    same_bytes(os.pread(fd, 2 * PAGE, at - PAGE), page("l", 99) + page("s"), "the file")
    os.close(fd)


def _use_address_space():
    for _ in range(20):
        posix.munmap(posix.mmap(None, PAGE, posix.PROT_RW,
                                posix.MAP_PRIVATE | posix.MAP_ANONYMOUS), PAGE)


@case(fs=("xfs",))
def kernel_access_that_waits_for_a_page_leaves_the_address_space_to_others(t):
    """A thread writes to a page that somebody holds by process_vm_writev; others of its process map
    and unmap memory meanwhile."""
    at = 100 * PAGE
    done, others = os.pipe()

    def threads():
        with Map(fd, 2 * PMD) as m, \
                Map(-1, PAGE, flags=posix.MAP_PRIVATE | posix.MAP_ANONYMOUS) as source:
            source.write(0, page("s"))
            writer = threading.Thread(target=posix.process_vm_write, args=(
                os.getpid(), source.address, m.address + at, PAGE))
            writer.start()
            wait_for(lambda: task.syscall(writer.native_id) == 311, "the writer in its call")
            for _ in range(5):
                _use_address_space()
                wait_for(lambda: task.syscall(writer.native_id) == 311, "the writer in its call")
            os.write(others, b"d")
            writer.join()

    with held_clone(t.dir) as fd:
        process = Task(threads)
        wait_for(lambda: process.done() or select.select([done], [], [], 0)[0], "other threads")
        check(not process.done(), "the page was not waited for")
    # The page has come out of the pipe.
    process.result()
    same_bytes(os.pread(fd, 2 * PAGE, at - PAGE), page("l", 99) + page("s"), "the file")
    os.close(fd)


@case(fs=("xfs",))
def kernel_access_that_keeps_the_address_space_gives_up(t):
    """One that is made with the address space locked, such as a debugger's, fails when the page is
    held for long, and works later."""
    at = 100 * PAGE

    def debugger():
        with Map(fd, 2 * PMD) as m:
            memory = os.open("/proc/self/mem", os.O_RDWR)
            thread = threading.Thread(target=lambda: errors.append(
                raises((5,), "a write to memory that is held", os.pwrite, memory, page("s"),
                       m.address + at)))
            errors = []
            thread.start()
            thread.join()
            _use_address_space()
            equal(len(errors), 1, "errors")
            os.write(others, b"d")
            os.read(go_on, 1)
            equal(os.pwrite(memory, page("s"), m.address + at), PAGE, "bytes written")

    done, others = os.pipe()
    go_on, going = os.pipe()
    with held_clone(t.dir) as fd:
        process = Task(debugger)
        wait_for(lambda: process.done() or select.select([done], [], [], 0)[0], "the error")
    os.write(going, b"g")
    process.result()
    same_bytes(os.pread(fd, 2 * PAGE, at - PAGE), page("l", 99) + page("s"), "the file")
    os.close(fd)


@case()
def long_term_pins_are_refused(t):
    """io_uring's registered buffers would hold pages for ever."""
    fd, state = _file(t, 2 * PMD), Pages()
    with Map(-1, PAGE, flags=posix.MAP_PRIVATE | posix.MAP_ANONYMOUS) as m:
        m.touch(write=True)
        try:
            posix.register_buffer(m.address, PAGE)
        except OSError as error:
            t.note(f"io_uring cannot register ordinary memory either: {error}")
    for skew in (0, PAGE):
        with Map(fd, 2 * PMD, skew=skew) as m:
            m.touch(write=True)
            pfn = m.pfn(0)
            before = state.refcounts([pfn])
            error = raises((14, 22, 95, 12), "registering a DAX page", posix.register_buffer,
                           m.address, 4 * PAGE)
            t.note(error)
            equal(state.refcounts([pfn]), before, "references after the refusal")
    state.check_idle([pfn], "afterwards")


def _interrupted(t, number, how=_truncate, catch=False):
    """A signal ends the wait; the file is as it was and nothing was given back."""
    slow, fd = SlowDisk(), _file(t, 64 * PAGE)
    with Map(fd, 64 * PAGE, skew=PAGE) as m:
        m.write(0, pages("h", 8))
        slow.hold()
        writer = _transfer(m, 0, PINNED, write=True)

        def wait():
            if catch:
                signal.signal(number, lambda *_: None)
                signal.siginterrupt(number, True)
                raises(4, "ftruncate", posix.ftruncate_once, fd, 0)
                return "interrupted"
            return how(t, fd)

        waiter = Task(wait, name="waiter")
        waiter.blocked_in("ftruncate", "fallocate")
        waiter.kill(number)
        if catch:
            equal(waiter.result(), "interrupted", "the waiter")
        else:
            equal(waiter.signalled(), number, "signal that ended the waiter")
        check(not writer.done(), "the direct write has ended by itself")
        equal(os.fstat(fd).st_size, 64 * PAGE, "size after the interrupted call")
        same_bytes(m.read(0, 9 * PAGE), pages("h", 8) + page("f", 8), "content")
        again = Task(how, t, fd)
        again.blocked_in("ftruncate", "fallocate")
        slow.release()
        equal(writer.result(), PINNED, "bytes written")
        again.result()
        same_bytes(slow.content(PINNED), pages("h", 8), "what reached the disk")


@case()
def sigkill_ends_the_wait(t):
    _interrupted(t, signal.SIGKILL)


@case(quick=False)
def sigterm_ends_the_wait(t):
    _interrupted(t, signal.SIGTERM)


@case(quick=False)
def sigkill_ends_the_wait_of_punch(t):
    _interrupted(t, signal.SIGKILL, how=_punch)


@case()
def handled_signal_ends_the_wait(t):
    _interrupted(t, signal.SIGUSR1, catch=True)


def _orphan_transfer(t, path, length):
    """A task whose direct write is the only thing that holds the file's pages.

    The mapping is gone and the file is closed when it has said so; its result is what
    pwrite() returned.
    """
    ready = t.path("ready")

    def go():
        disk = os.open(SlowDisk.PATH, os.O_RDWR | os.O_DIRECT)
        fd = os.open(path, os.O_RDWR)
        m = Map(fd, length, skew=PAGE)
        m.write(0, pages("o", length // PAGE))
        done = []
        thread = threading.Thread(
            target=lambda: done.append(posix.pwrite_from(disk, m.address, length, 0)))
        thread.start()
        wait_for(lambda: any(
            task.syscall(f"self/task/{tid}") == task.SYSCALLS["pwrite64"]
            and task.state(f"self/task/{tid}") == "D" for tid in os.listdir("/proc/self/task")),
            "transfer under way")
        m.unmap()
        os.close(fd)
        with open(ready, "w", encoding="ascii"):
            pass
        thread.join()
        return done[0]

    task_ = Task(go, name="direct write")

    def is_ready():
        if task_.done():
            raise Failure(str(task_.outcome()))
        return os.path.exists(ready)

    wait_for(is_ready, "transfer under way")
    os.unlink(ready)
    return task_


@case()
def removed_file_keeps_what_is_in_use(t):
    """The last name goes while a transfer reads the pages: the blocks stay until it is over, and
    nobody is made to wait for that."""
    slow = SlowDisk()
    os.close(_file(t, 4 * PMD))
    slow.hold()
    writer = _orphan_transfer(t, t.path(), PINNED)
    t.sync()
    before = free_blocks(t.dir)
    # Not open, not mapped: the name is all that keeps the file.
    Task(os.unlink, t.path(), name="unlink").result()
    t.sync()
    check(free_blocks(t.dir) < before + PMD // PAGE, "blocks came free under the transfer")
    slow.release()
    equal(writer.result(), PINNED, "bytes written")
    same_bytes(slow.content(PINNED), pages("o", 8), "what reached the disk")
    wait_for(lambda: free_blocks(t.dir) > before + 3 * PMD // PAGE, "free blocks")


@case()
def umount_waits(t):
    slow = SlowDisk()
    os.close(_file(t, 64 * PAGE))
    slow.hold()
    writer = _orphan_transfer(t, t.path(), PINNED)
    unmount = Task(t.fs.umount, name="umount")
    unmount.blocked_in("umount2")
    slow.release()
    equal(writer.result(), PINNED, "bytes written")
    unmount.result()
    same_bytes(slow.content(PINNED), pages("o", 8), "what reached the disk")
    t.fs.mount()
    fd = t.open()
    same_bytes(os.pread(fd, 10 * PAGE, 0), pages("o", 8) + pages("f", 2, 8), "after mounting")


@case()
def fork_under_transfer(t):
    """A child made while a transfer is under way neither copies nor keeps the page."""
    state, slow, fd = Pages(), SlowDisk(), _file(t, 64 * PAGE)
    with Map(fd, 64 * PAGE, skew=PAGE) as m:
        m.write(0, pages("h", 8))
        pfns = m.pfns(0, PINNED)
        slow.hold()
        writer = _transfer(m, 0, PINNED, write=True)

        def child():
            m.write(0, pages("c", 1))
            return m.pfn(0)

        equal(Task(child).result(), pfns[0], "page frame in the child")
        slow.release()
        equal(writer.result(), PINNED, "bytes written")
        same_bytes(slow.content(PINNED), pages("c", 1) + pages("h", 7, 1), "the disk")
    state.check_idle(pfns, "afterwards")


@case()
def transfer_from_pages_not_faulted(t):
    """Pages come in by the slow path of pinning, at every order, and from holes."""
    slow, fd = SlowDisk(), t.open(size=4 * PMD)
    os.pwrite(fd, pages("f", 512, 512), PMD)
    for skew in (0, PAGE):
        with Map(fd, 4 * PMD, skew=skew) as m:
            disk = slow.open()
            slow.fill(b"\xff" * (3 * PAGE), offset=0)
            equal(posix.pwrite_from(disk, m.address + PMD + 10 * PAGE, 3 * PAGE, 0), 3 * PAGE,
                  "write from data")
            same_bytes(slow.content(3 * PAGE), pages("f", 3, 522), "written from data")
            equal(posix.pwrite_from(disk, m.address, 2 * PAGE, 0), 2 * PAGE, "write from a hole")
            same_bytes(slow.content(2 * PAGE), bytes(2 * PAGE), "written from a hole")
            slow.fill(pages("d", 3))
            equal(posix.pread_to(disk, m.address + 3 * PMD, 3 * PAGE, 0), 3 * PAGE, "read")
            same_bytes(os.pread(fd, 4 * PAGE, 3 * PMD), pages("d", 3) + bytes(PAGE),
                       "read into a hole")
            os.ftruncate(fd, 3 * PMD)
            os.ftruncate(fd, 4 * PMD)


@case(fs=("xfs", "xfs-noreflink"))
def files_that_are_exchanged_give_up_no_page_that_is_held(t):
    """XFS_IOC_SWAPEXT, which breaks no layout: with entries it works, without a word, and with a page
    that somebody holds it is refused."""
    t.need_adopted()
    names, count = ("one", "two"), 1024
    fds = [t.open(name, allocate=count * PAGE) for name in names]
    for name, fd in zip(names, fds, strict=True):
        os.pwrite(fd, pages(name[0], count), 0)
    reader, writer = os.pipe()
    expected = [bytearray(pages(name[0], count)) for name in names]
    for skew in (0, PAGE):
        with Map(fds[0], count * PAGE, skew=skew) as one, \
                Map(fds[1], count * PAGE, skew=skew) as two:

            def are_right(when, maps=(one, two)):
                for m, fd, content in zip(maps, fds, expected, strict=True):
                    same_bytes(m.read(0, count * PAGE), content, f"mapping {when}")
                    same_bytes(os.pread(fd, count * PAGE, 0), content, f"file {when}")

            one.write(3 * PAGE, page("d", skew))
            expected[0][3 * PAGE:4 * PAGE] = page("d", skew)
            are_right("before")
            os.fsync(fds[0])
            one.write(3 * PAGE, page("d", skew))
            posix.swap_extents(*fds)
            expected.reverse()
            are_right("afterwards")
            for held in (one, two):
                equal(posix.vmsplice(writer, held.address + 5 * PAGE, PAGE), PAGE, "bytes in the pipe")
                raises(errno.EBUSY, "an exchange of what somebody holds", posix.swap_extents, *fds)
                are_right("when it was refused")
                same_bytes(os.read(reader, PAGE), held.read(5 * PAGE, PAGE), "what was in the pipe")
            posix.swap_extents(*fds)
            expected.reverse()
            are_right("when nobody holds any more")
    for fd in (*fds, reader, writer):
        os.close(fd)


@case(fs=("ext4",))
def exchange_with_the_boot_loader(t):
    """EXT4_IOC_SWAP_BOOT breaks no layout either: no word of the entries, nothing is lost, and with a page
    that somebody holds it is refused."""
    t.need_adopted()
    fd = t.open("file", allocate=1024 * PAGE)
    os.pwrite(fd, pages("b", 1024), 0)
    with Map(fd, 1024 * PAGE) as m:
        m.touch()
        m.write(5 * PAGE, page("s"))
        os.fsync(fd)
        reader, writer = os.pipe()
        posix.vmsplice(writer, m.address + 5 * PAGE, PAGE)
        raises(errno.EBUSY, "an exchange of what somebody holds", fcntl.ioctl, fd,
               posix.EXT4_IOC_SWAP_BOOT)
        m.write(6 * PAGE, page("t"))
        same_bytes(os.read(reader, PAGE), page("s"), "what was in the pipe")
        fcntl.ioctl(fd, posix.EXT4_IOC_SWAP_BOOT)
        equal(m.mapped(), 0, "bytes mapped of what the file has no more")
        fcntl.ioctl(fd, posix.EXT4_IOC_SWAP_BOOT)
        same_bytes(m.read(0, 1024 * PAGE), pages("b", 5) + page("s") + page("t") + pages("b", 1017, 7),
                   "the mapping when it is back")
    os.close(fd)
