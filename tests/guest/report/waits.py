# SPDX-License-Identifier: GPL-2.0
"""What /dev/rdax tells of waits, and to whom."""

import os
import re

from lib import ioctl, posix
from lib.ioctl import Asker
from lib.check import check, equal
from lib.device import wait_for
from lib.kmsg import KernelLog
from lib.mapping import Map
from lib.pattern import file as _file
from lib.posix import PAGE, PMD
from lib.runner import case
from lib.task import Task
from lib.trace import Calls

from .common import need


def _held(t, name="file"):
    """(descriptor, pipe) of a file a page of which lies in the pipe."""
    fd = _file(t, PMD) if name == "file" else t.open(name, size=PMD, allocate=PMD)
    reader, writer = os.pipe()
    m = Map(fd, PMD)
    m.touch(0, PMD, write=True)
    m.splice(writer, 3 * PAGE)
    m.unmap()
    return fd, reader


@case()
def a_truncate_that_waits_is_found(t):
    need(t)
    fd, pipe = _held(t)

    def cut():
        os.ftruncate(fd, 0)

    task = Task(cut)
    with Asker() as asker:
        wait_for(lambda: asker.waits(fd), "wait")
        (wait,) = asker.waits(fd)
        status = os.fstat(fd)
        equal((wait.kind, wait.pid, wait.tid, wait.inode),
              (ioctl.WAIT_LAYOUT, task.pid, task.pid, status.st_ino), "kind, process, task, inode")
        equal((wait.dev_major, wait.dev_minor), (os.major(status.st_dev), os.minor(status.st_dev)), "device")
        check(wait.offset in (0, 3 * PAGE), f"offset: {wait}")
        equal((wait.references, wait.maps), (1, 0), "references, mappings")
        check(wait.physical, "the administrator is told no address")
        check(wait.comm, "it has no name")
        first = wait.waited
        wait_for(lambda: asker.waits(fd)[0].waited > first, "time that goes on")

        def nobody():
            posix.become_nobody()
            with Asker() as other:
                return len(other.waits())

        equal(Task(nobody).result(), 0, "waits that others are told")
        other = t.open("other")
        equal(len(asker.waits(other)), 0, "waits for another file")
        os.read(pipe, PAGE)
        task.result()
        equal(len(asker.waits(fd)), 0, "waits when it is over")


def _cut_as_nobody(fd):
    posix.become_nobody()
    os.ftruncate(fd, 0)


@case()
def own_waits_are_told_without_rights(t):
    need(t)
    path = t.path()
    fd, pipe = _held(t)
    os.chmod(path, 0o666)

    task = Task(_cut_as_nobody, fd)

    def nobody():
        posix.become_nobody()
        with Asker() as asker:
            wait_for(asker.waits, "wait of its own")
            (wait,) = asker.waits()
            return wait.pid, wait.physical

    equal(Task(nobody).result(), [task.pid, 0], "process, physical address")
    os.read(pipe, PAGE)
    task.result()


@case()
def waits_of_a_neighbour_are_not_told(t):
    """Of the same user, in a PID namespace that the asker does not see."""
    need(t)
    path = t.path()
    fd, pipe = _held(t)
    os.chmod(path, 0o666)

    def ask(own):
        posix.become_nobody()
        with Asker() as asker:
            wait_for(lambda: asker.waits() or not own, "wait of its own")
            return [(wait.pid, wait.comm.decode()) for wait in asker.waits()]

    def contained():
        posix.unshare(posix.CLONE_NEWPID)
        return Task(ask, False).result()

    task = Task(_cut_as_nobody, fd)
    equal(len(Task(ask, True).result()), 1, "waits in the same namespace")
    equal(Task(contained).result(), [], "waits in another namespace")
    os.read(pipe, PAGE)
    task.result()


@case(fs=("xfs",), timeout=240, quick=False)
def waits_of_many_are_looked_at_in_turns(t):
    """Whoever may not be told of them keeps nobody from waiting or waking meanwhile."""
    need(t)
    tasks, pipes = [], []
    for number in range(70):
        fd, pipe = _held(t, f"file {number}")
        tasks.append(Task(os.ftruncate, fd, 0))
        pipes.append(pipe)

    def nobody():
        posix.become_nobody()
        with Asker() as asker:
            return len(asker.waits())

    with Asker() as asker:
        wait_for(lambda: len(asker.waits(room=128)) == len(tasks), "all of them wait")
        with Calls("rdax_wait_next") as calls:
            equal(Task(nobody).result(), 0, "waits that nobody is told")
            # The last one finds that there are no more.
            equal(calls.count(), 2, "times that the lock was taken")
        equal(len(asker.waits(room=128)), len(tasks), "waits that the administrator is told")
    for pipe in pipes:
        os.read(pipe, PAGE)
    for task in tasks:
        task.result()


@case(fs=("xfs",), timeout=120)
def writes_and_faults_that_wait_are_found(t):
    """Of a page whose blocks a clone has, too, and that somebody holds."""
    need(t)
    fd = _file(t, PMD)
    posix.clone(fd, t.open("clone"))
    reader, writer = os.pipe()
    m = Map(fd, PMD, skew=PAGE)
    m.advise(posix.MADV_RANDOM)
    m.touch(3 * PAGE, 1)
    m.splice(writer, 3 * PAGE)

    def store():
        m.store(3 * PAGE, 7)

    def put():
        os.pwrite(fd, b"x" * PAGE, 3 * PAGE)

    with Asker() as asker:
        for work, kind in ((store, ioctl.WAIT_FAULT), (put, ioctl.WAIT_WRITE)):
            task = Task(work)

            def is_seen(longer, kind=kind):
                return any(wait.kind == kind and wait.waited > longer for wait in asker.waits(fd))

            wait_for(lambda is_seen=is_seen: is_seen(0), f"wait of kind {kind}")
            # Also one that is tried again and again goes on.
            wait_for(lambda is_seen=is_seen: is_seen(10**9), f"wait of kind {kind} that goes on")
            task.kill()
            task.signalled()
            equal(len(asker.waits(fd)), 0, "waits when the task is gone")
    os.read(reader, PAGE)


def _lines(log):
    return [line for line in log.read() if "a truncate or the like has waited for" in line]


def _told(log, tasks):
    """Lines of the log that tell of truncates, once there is one for each of these tasks."""
    found = []

    def all_are():
        found.extend(_lines(log))
        return all(any(f"[{task.pid}]" in line for line in found) for task in tasks)

    wait_for(all_are, "lines in the log", timeout=120)
    return found


@case(timeout=240, quick=False)
def a_long_wait_is_told_to_the_log(t):
    need(t)
    log = KernelLog()
    fd, pipe = _held(t)
    task = Task(os.ftruncate, fd, 0)
    status = os.fstat(fd)
    device = f"block device {os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    told = []
    # The second time when it is four times as long.
    for at_least in (10, 40):
        (line,) = _told(log, [task])
        for part in (f"{device} inode {status.st_ino} ", "1 references"):
            check(part in line, f"no '{part}' in {line}")
        told.append(int(re.search(r"has waited for (\d+) s", line)[1]))
        check(told[-1] >= at_least, f"told after {told}")
    check(told[1] >= 4 * told[0], f"told after {told}")
    os.read(pipe, PAGE)
    task.result()
    equal(_lines(log), [], "lines about it later")


@case(fs=("xfs",), timeout=240, quick=False)
def long_waits_of_many_are_all_told_to_the_log(t):
    """Of more than the log is told of at once."""
    need(t)
    log = KernelLog()
    tasks, pipes = [], []
    for number in range(8):
        fd, pipe = _held(t, f"file {number}")
        tasks.append(Task(os.ftruncate, fd, 0))
        pipes.append(pipe)
    equal(len(_told(log, tasks)), len(tasks), "lines in the log")
    for pipe in pipes:
        os.read(pipe, PAGE)
    for task in tasks:
        task.result()
    equal(_lines(log), [], "lines about them later")
