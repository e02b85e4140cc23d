# SPDX-License-Identifier: GPL-2.0
"""Files that go while somebody has their pages."""

import contextlib
import os
import signal
import socket

from lib import device, posix, task
from lib.check import check, equal, same_bytes
from lib.device import run, wait_for
from lib.mapping import Map
from lib.pattern import page, pages
from lib.posix import PAGE, PMD
from lib.runner import case
from lib.space import free_blocks
from lib.task import Task

from .common import as_nobody, own_directory


def _hold(path, *, unlink=False, pipe_first=True):
    """Put a page of a file of one's own into a pipe. The descriptors of file and pipe."""
    pipe = os.pipe() if pipe_first else None
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    pipe = pipe or os.pipe()
    os.pwrite(fd, pages("h", 512), 0)
    with Map(fd, PMD) as m:
        posix.vmsplice(pipe[1], m.address + 5 * PAGE, PAGE)
    if unlink:
        os.unlink(path)
    return fd, pipe


def _goes_away(who):
    """He ends, whatever he holds."""
    check(who.join(60), f"{who.name} does not go away:\n{task.describe(who.pid)}")


def _hold_and_end(path, pipe_first):
    _hold(path, unlink=True, pipe_first=pipe_first)
    os._exit(0)


def _hold_and_pause(path, pipe_first, ready):
    held = _hold(path, unlink=True, pipe_first=pipe_first)
    os.write(ready, b"r")
    signal.pause()
    return len(held)


@case(timeout=200)
def exit_with_a_page_of_a_removed_file_in_a_pipe(t):
    """Pipe and file are closed at the exit, in either order, and the one holds a page of the other."""
    own = own_directory(t)
    t.sync()
    before = free_blocks(t.dir)
    for number, first in enumerate((True, False)):
        _goes_away(as_nobody(_hold_and_end, f"{own}/{number}", first))
    for number, first in enumerate((True, False)):
        reading, writing = os.pipe()
        killed = as_nobody(_hold_and_pause, f"{own}/{number}", first, writing)
        os.read(reading, 1)
        killed.kill()
        _goes_away(killed)
    wait_for(lambda: free_blocks(t.dir) > before - 64, "free blocks")


@case(timeout=200)
def two_exit_with_pages_of_each_others_removed_files(t):
    own = own_directory(t)
    both = socket.socketpair()
    reading, writing = os.pipe()

    def swap(number):
        path = f"{own}/{number}"
        fd, pipe = _hold(path, unlink=True)
        socket.send_fds(both[number], [b"p"], [pipe[0]])
        for end in pipe:
            os.close(end)
        other = socket.recv_fds(both[number], 1, 1)[1][0]
        os.write(writing, b"r")
        signal.pause()
        return fd + other

    tasks = [as_nobody(swap, number) for number in (0, 1)]
    for _ in tasks:
        os.read(reading, 1)
    for end in both:
        end.close()
    for one in tasks:
        one.kill()
    for one in tasks:
        _goes_away(one)


@case(timeout=200)
def removing_his_file_is_waiting_for_nobody(t):
    """Somebody else removes a file whose page he has in a pipe: at once. The page stays what it was,
    and the blocks come free when it is let go of; nobody who unmounts is told that all is done
    before."""
    own = own_directory(t)
    done, go_on = os.pipe(), os.pipe()

    def attacker():
        fd, pipe = _hold(f"{own}/file")
        os.close(fd)
        os.write(done[1], b"d")
        os.read(go_on[0], 1)
        first = os.read(pipe[0], PAGE).decode("latin-1")
        os.close(go_on[0])
        return first

    t.sync()
    holder = as_nobody(attacker)
    os.read(done[0], 1)
    t.sync()
    before = free_blocks(t.dir)
    Task(os.unlink, f"{own}/file", name="unlink").result()
    # Whoever gets blocks now does not get those.
    other = t.open("other", allocate=64 * PMD)
    with Map(other, 64 * PMD) as m:
        m.touch(write=True, step=PMD)
        m.write(0, pages("v", 512))
    os.fsync(other)
    os.close(other)
    os.unlink(t.path("other"))
    t.sync()
    check(free_blocks(t.dir) < before + 256, "the blocks came free while a page was held")
    unmounting = Task(t.fs.umount, name="umount")
    unmounting.blocked_in("umount2")
    os.write(go_on[1], b"g")
    same_bytes(holder.result().encode("latin-1"), page("h", 5), "what is in the pipe")
    unmounting.result()
    t.fs.mount()
    wait_for(lambda: free_blocks(t.dir) > before + 256, "free blocks")


@case(timeout=200)
def many_removed_files_with_pages_held(t):
    """As many as he can get descriptors and room in pipes for; then he is killed."""
    own = own_directory(t)
    reading, writing = os.pipe()
    t.sync()
    before = free_blocks(t.dir)

    def attacker():
        pipe = None
        for number in range(300):
            if number % 15 == 0:
                pipe = os.pipe()
            fd = os.open(f"{own}/{number}", os.O_RDWR | os.O_CREAT)
            os.write(fd, page("m", number))
            with Map(fd, PAGE) as m:
                posix.vmsplice(pipe[1], m.address, PAGE)
            os.unlink(f"{own}/{number}")
            os.close(fd)
        os.write(writing, b"r")
        signal.pause()

    holder = as_nobody(attacker)
    os.read(reading, 1)
    check(free_blocks(t.dir) <= before - 300, "blocks came free while their pages were held")
    # All others go on.
    fd = t.open("victim", allocate=PMD)
    os.pwrite(fd, pages("v", 512), 0)
    os.fsync(fd)
    holder.kill()
    _goes_away(holder)
    os.unlink(t.path("victim"))
    os.close(fd)
    wait_for(lambda: t.sync() or free_blocks(t.dir) > before - 64, "free blocks")


@contextlib.contextmanager
def _little_memory(limit):
    """A directory for those who may use `limit` bytes of memory, as every user has one with systemd."""
    root = "/sys/fs/cgroup"
    if not os.path.exists(f"{root}/cgroup.controllers"):
        run("mount", "-t", "cgroup2", "none", root)
    device.write(f"{root}/cgroup.subtree_control", "+memory")
    group = f"{root}/little-{os.getpid()}"
    os.mkdir(group)
    try:
        device.write(f"{group}/memory.max", str(limit))
        yield group
    finally:
        try:
            os.rmdir(group)
        except OSError:
            pass  # Somebody does not go away, which is told already.


@case(fs=("xfs",), timeout=300)
def end_of_a_removed_file_for_whose_entries_memory_ran_out(t):
    """He looks at pages of a hole that are far from each other until there is no memory, in the middle of
    what one of them needs, and goes away. The file has no entry, but more than nothing in its tree."""
    own = own_directory(t)
    step = 1 << 24          # pages: each needs nodes of four levels

    def use_up(group, path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(fd, (step * PAGE) << 14)
        os.unlink(path)
        with Map(-1, PMD, flags=posix.MAP_PRIVATE | posix.MAP_ANONYMOUS) as room:
            # Keeps the page table.
            room.touch(0, PAGE, write=True)
            device.write(f"{group}/cgroup.procs", str(os.getpid()))
            posix.become_nobody()
            for number in range(1, 1 << 14):
                posix.mmap(room.address + PAGE, PAGE, posix.PROT_READ,
                           posix.MAP_SHARED | posix.MAP_FIXED, fd, number * step * PAGE)
                room.touch(PAGE, PAGE)

    with _little_memory(3 << 20) as group:
        for number in range(6):
            user = Task(use_up, group, f"{own}/{number}")
            check(user.join(20), f"he does not go away:\n{task.describe(user.pid)}")
            equal(user.signalled(), signal.SIGKILL, "what ended him")
