# SPDX-License-Identifier: GPL-2.0
"""Filesystems that lose their last user while somebody holds pages of their files."""

import contextlib
import ctypes
import errno
import fcntl
import os
import random
import signal
import socket
import struct
import time

from lib import device, posix
from lib.check import check, equal, raises, same_bytes
from lib.device import wait_for
from lib.mapping import Map
from lib.pattern import page, pages
from lib.posix import PAGE, PMD
from lib.runner import case
from lib.task import Task

FIFREEZE, FITHAW = 0xc0045877, 0xc0045878
IN_DELETE_SELF, IN_UNMOUNT = 0x400, 0x2000
MS_RDONLY = 1


def _hold(path, pipe):
    """Open a file and put its sixth page into a pipe."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.pwrite(fd, pages("h", 512), 0)
    with Map(fd, PMD) as m:
        m.splice(pipe, 5 * PAGE)
    return fd


def _let_go(t, pipe):
    """The page comes out as it was, and the filesystem ends."""
    raises(errno.EBUSY, "the device while a page is held", os.open, f"/dev/{t.device}",
           os.O_RDONLY | os.O_EXCL)
    same_bytes(os.read(pipe[0], PAGE), page("h", 5), "what is in the pipe")
    wait_for(lambda: device.is_free(t.device), "end of the filesystem")
    for end in pipe:
        os.close(end)
    t.fs.mount()
    with open(t.path(), "rb") as f:
        same_bytes(f.read(), pages("h", 512), "the file")


def _detached(t, let_go_of):
    """A task opens a file of a mount, which is detached then; let_go_of(fd) is how the file is closed."""
    pipe, ready, go_on = os.pipe(), os.pipe(), os.pipe()

    def use():
        fd = _hold(t.path(), pipe[1])
        os.write(ready[1], b"r")
        os.read(go_on[0], 1)
        let_go_of(fd)
        return True

    user = Task(use, name="the last user")
    os.read(ready[0], 1)
    posix.umount(t.fs.mount_point, posix.MNT_DETACH)
    os.write(go_on[1], b"g")
    for end in (*ready, *go_on):
        os.close(end)
    return user, pipe


@case()
def last_file_of_a_detached_mount_is_closed_at_once(t):
    """Who closes it has nothing to do with it that somebody unmounts."""
    user, pipe = _detached(t, os.close)
    user.result()
    _let_go(t, pipe)


@case()
def a_mount_is_detached_at_once(t):
    """That is what is asked for, also where nobody else uses the filesystem."""
    pipe = os.pipe()
    os.close(_hold(t.path(), pipe[1]))
    Task(posix.umount, t.fs.mount_point, posix.MNT_DETACH, name="umount").result()
    _let_go(t, pipe)


def _umount_with_page_held(t):
    """(umount that waits for it, pipe)"""
    pipe = os.pipe()
    os.close(_hold(t.path(), pipe[1]))
    unmount = Task(posix.umount, t.fs.mount_point, name="umount")
    unmount.blocked_in("umount2")
    return unmount, pipe


def _let_it_look(task, times):
    """A task that waits is woken from time to time, to look at what it waits for: let it do so."""
    def woken():
        with open(f"/proc/{task.pid}/status", encoding="ascii") as f:
            return int(f.read().partition("\nvoluntary_ctxt_switches:")[2].split()[0])

    before = woken()
    wait_for(lambda: task.done() or woken() - before >= times, "looks of who waits", 120)


@case()
def reference_that_comes_and_goes_does_not_end_the_wait_of_umount(t):
    """A filesystem that somebody has got for mounting, and does not mount, is not in use."""
    unmount, pipe = _umount_with_page_held(t)
    fd = posix.open_filesystem(t.fs.node, t.variant.kind)
    _let_it_look(unmount, 20)
    unmount.blocked_in("umount2")
    os.close(fd)
    unmount.blocked_in("umount2")
    Task(os.sync, name="sync").result()
    _let_go(t, pipe)
    unmount.result()


def _mounts_that_fail(t, number):
    """Tasks that mount a filesystem that is mounted for writing, for reading only, again and again."""
    place = f"/run/{t.variant.name}-fails"
    os.makedirs(place, exist_ok=True)

    def fail():
        # Until it is killed. The kernel's log gets a line each time, and must not be full of them.
        while True:
            raises(errno.EBUSY, "mount for reading", posix.mount, t.fs.node, place, t.variant.kind, "",
                   MS_RDONLY)
            time.sleep(0.02)

    return [Task(fail, name="mount for reading") for _ in range(number)]


@case(timeout=200)
def mount_that_fails_ends_no_filesystem(t):
    """It has a reference for a moment, and puts it with the filesystem locked. It may be the last, as umount
    puts its own meanwhile."""
    unmount, pipe = _umount_with_page_held(t)
    failing = _mounts_that_fail(t, 3)
    _let_it_look(unmount, 20)
    unmount.blocked_in("umount2")
    for _ in range(3 if t.settings.quick else 8):
        Task(os.sync, name="sync").result()
        Task(t.fs.mount, name="mount").result()
        unmount.result()
        # It waits, or has left that to a mount that failed just then.
        unmount = Task(posix.umount, t.fs.mount_point, name="umount")
        unmount.waits_in("umount2")
    Task(os.sync, name="sync").result()
    for one in failing:
        check(not one.done(), f"a mount ended: {one.done() and one.outcome()}")
        one.kill()
        one.signalled()
    _let_go(t, pipe)
    unmount.result()


def _drop_by_thread(fd):
    """Close a file such that a thread of the kernel puts its last reference: it is in a message to a
    socket that only this message refers to."""
    ours, other = socket.socketpair()
    socket.send_fds(other, [b"c"], [fd, ours.fileno()])
    os.close(fd)
    ours.close()
    other.close()


@case()
def thread_that_puts_mounts_holds_up_no_other(t):
    """The kernel has one thread that puts mounts for those who cannot, one after the other."""
    libc = ctypes.CDLL(None, use_errno=True)
    place = f"/run/{t.variant.name}-other"
    user, pipe = _detached(t, _drop_by_thread)
    user.result()
    os.makedirs(place, exist_ok=True)
    device.run("mount", "-t", "tmpfs", "none", place)
    fd = os.open(f"{place}/file", os.O_RDWR | os.O_CREAT)
    watch = libc.inotify_init1(os.O_NONBLOCK)
    check(libc.inotify_add_watch(watch, os.fsencode(f"{place}/file"), IN_DELETE_SELF) > 0,
          "no inotify")
    posix.umount(place, posix.MNT_DETACH)
    _drop_by_thread(fd)

    def has_ended():
        with contextlib.suppress(BlockingIOError):
            return struct.unpack_from("iI", os.read(watch, 4096))[1] & IN_UNMOUNT
        return False

    wait_for(has_ended, "end of another filesystem")
    os.close(watch)
    _let_go(t, pipe)


def _may_fail(*errors):
    """For what others may be quicker with."""
    @contextlib.contextmanager
    def suppressing():
        try:
            yield
        except OSError as error:
            check(error.errno in errors, f"{error}")
    return suppressing()


def _come_and_go(t, rng, places):
    """Those who hold pages, unmount, freeze, mount and kill, all at once; the filesystem is in use by
    nobody afterwards."""
    def use(place, number, how):
        pipe = os.pipe()
        with _may_fail(errno.ENOENT):
            fd = _hold(f"{place}/{t.path()[len(t.fs.mount_point) + 1:]}-{number}", pipe[1])
            time.sleep(how[1])
            if how[0] == "close":
                os.close(fd)
            if how[0] == "read":
                os.read(pipe[0], PAGE)
            time.sleep(how[1])

    def unmount(place, flags):
        # Ends with those who use the mount, who are killed.
        while True:
            try:
                posix.umount(place, flags)
                return
            except OSError as error:
                if error.errno != errno.EBUSY:
                    equal(error.errno, errno.EINVAL, "errno of umount")
                    return
                time.sleep(0.005)

    def freeze():
        with _may_fail(errno.ENOENT, errno.EBUSY):
            fd = os.open(t.fs.mount_point, os.O_RDONLY)
            if os.path.ismount(t.fs.mount_point):
                for call in (FIFREEZE, FITHAW):
                    fcntl.ioctl(fd, call, 0)
            os.close(fd)

    def mount():
        with _may_fail(errno.EBUSY):
            os.makedirs(places[0], exist_ok=True)
            device.run("mount", "-t", t.variant.kind, "-o", t.variant.options, t.fs.node,
                       places[0], ok=(0, 32))

    def moment():
        return rng.random() / 20

    users = [Task(use, rng.choice(places), number, (rng.choice(["close", "read", "stay"]), moment()))
             for number in range(4)]
    others = [Task(freeze), Task(os.sync, name="sync")] if rng.random() < 0.5 else []
    unmounts = [Task(unmount, place, rng.choice([0, 0, posix.MNT_DETACH])) for place in places]
    if rng.random() < 0.3:
        others.append(Task(mount))
    for one in rng.sample(users + unmounts, 3):
        time.sleep(moment())
        one.kill(rng.choice([signal.SIGKILL, signal.SIGTERM]))
    others.append(Task(os.sync, name="sync"))
    for one in users:
        one.kill()
        one.signalled(60)
    for one in others:
        one.result(60)
    for one in unmounts:
        one.signalled(60)


@case(timeout=400)
def many_who_hold_unmount_and_kill_at_once(t):
    seed = t.settings.seed
    rng = random.Random(seed)
    t.note(f"seed {seed}")
    places = [t.fs.mount_point] + [f"/run/{t.variant.name}-{number}" for number in range(3)]
    for place in places:
        os.makedirs(place, exist_ok=True)
    for _ in range(4 if t.settings.quick else 12):
        for place in places[1:]:
            device.run("mount", "--bind", places[0], place)
        _come_and_go(t, rng, places)
        # What was not unmounted is left over from who was killed before.
        for place in places:
            while os.path.ismount(place):
                Task(posix.umount, place, name="umount").result(60)
        wait_for(lambda: device.is_free(t.device), f"end of the filesystem (seed {seed})")
        t.fs.mount()
