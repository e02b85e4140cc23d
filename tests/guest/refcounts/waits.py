# SPDX-License-Identifier: GPL-2.0
"""Who waits for a page, and what ends the wait."""

import ctypes
import os
import select
import signal
import threading
import time

from lib import native, posix, ptrace, task
from lib.check import check, equal, raises, same_bytes
from lib.device import SlowDisk, run, wait_for
from lib.mapping import Map
from lib.pattern import file as _file, page, pages
from lib.posix import PAGE, PMD
from lib.runner import case
from lib.space import held_clone
from lib.task import Task
from lib.trace import Pages

from .common import PINNED, punch_start, start_transfer, truncate_whole


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
def worker_that_waits_for_a_page_leaves_the_address_space_to_others(t):
    """A worker of io_uring's has a page that somebody holds mapped for writing, for a thread; others of
    its process map and unmap memory meanwhile, and everybody can look at the process."""
    at = 100 * PAGE
    done, others = os.pipe()

    def threads():
        lib = ctypes.CDLL(native.path("uring.so"))
        lib.uring_populate.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        lib.uring_populate.restype = ctypes.c_long
        errors = []
        with Map(fd, 2 * PMD) as m:
            asking = threading.Thread(
                target=lambda: errors.append(lib.uring_populate(m.address + at, PAGE)))
            asking.start()
            workers = []
            wait_for(lambda: workers.extend(_workers()) or workers, "a worker")
            wait_for(lambda: "wait_for_held" in task.describe(os.getpid())
                     or "dax_iomap_fault" in task.describe(os.getpid()), "the worker in a fault")
            for _ in range(5):
                _use_address_space()
            os.write(others, b"d")
            asking.join()
            equal(errors, [0], "what io_uring said")
            m.write(at, page("s"))

    def look():
        with open(f"/proc/{process.pid}/cmdline", "rb") as f:
            return len(f.read())

    with held_clone(t.dir) as fd:
        process = Task(threads)
        looking = None
        try:
            wait_for(lambda: process.done() or select.select([done], [], [], 0)[0], "other threads")
            looking = Task(look, name="somebody who looks")
            looking.result()
        finally:
            if not select.select([done], [], [], 0)[0]:
                print(task.describe(process.pid), flush=True)
                process.kill()
        check(not process.done(), "the page was not waited for")
    # The page has come out of the pipe.
    process.result()
    same_bytes(os.pread(fd, 2 * PAGE, at - PAGE), page("l", 99) + page("s"), "the file")
    os.close(fd)


def _workers():
    """The threads of this process that work for io_uring."""
    found = []
    for tid in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{tid}/comm", encoding="ascii") as comm:
            if comm.read().startswith("iou-wrk"):
                found.append(tid)
    return found


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


def _interrupted(t, number, how=truncate_whole, catch=False):
    """A signal ends the wait; the file is as it was and nothing was given back."""
    slow, fd = SlowDisk(), _file(t, 64 * PAGE)
    with Map(fd, 64 * PAGE, skew=PAGE) as m:
        m.write(0, pages("h", 8))
        slow.hold()
        writer = start_transfer(m, 0, PINNED, write=True)

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
    _interrupted(t, signal.SIGKILL, how=punch_start)


@case()
def handled_signal_ends_the_wait(t):
    _interrupted(t, signal.SIGUSR1, catch=True)


@case()
def traced_call_lets_others_have_their_turn(t):
    """A call that is made again sleeps in between also where a debugger stops the task at each call."""
    seconds, reading, writing = 4, *os.pipe()
    fd = _file(t, 64 * PAGE)
    with Map(fd, 64 * PAGE, skew=PAGE) as m:
        m.splice(writing, 5 * PAGE)

    def cut():
        ptrace.trace_me()
        os.ftruncate(fd, 0)

    traced, stats = Task(cut), t.stats()
    ptrace.await_stop(traced.pid)
    # Behind the first call that waits, so that what came before does not count.
    while not stats.since()["layout_breaks"]:
        ptrace.let_go_on_to_next_call(traced.pid)
        ptrace.await_stop(traced.pid)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ptrace.let_go_on_to_next_call(traced.pid)
        ptrace.await_stop(traced.pid)
    tries = stats.since()["layout_breaks"]
    same_bytes(os.read(reading, PAGE), page("f", 5), "what is in the pipe")
    ptrace.detach(traced.pid)
    traced.result()
    equal(os.fstat(fd).st_size, 0, "size")
    t.note(f"{tries} tries")
    # Each turn is longer than the one before: 20 ms, 40 ms and so on.
    check(tries < 12, f"{tries} tries in {seconds} s")
