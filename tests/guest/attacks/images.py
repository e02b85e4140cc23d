# SPDX-License-Identifier: GPL-2.0
"""Files that others may read and a block device is made of."""

import contextlib
import errno
import os
import signal

from lib import device, posix
from lib.check import check, equal, raises, same_bytes
from lib.device import wait_for
from lib.mapping import Map
from lib.pattern import page, pages
from lib.posix import PAGE, PMD
from lib.runner import case
from lib.task import Task

from .common import as_nobody, cut, own_directory, wait_for_himself


def _hold(path, _own, at, told, go_on):
    """Who may read a file has a page of it in a pipe."""
    fd, pipe = os.open(path, os.O_RDONLY), os.pipe()
    with Map(fd, PMD, offset=at - at % PMD, skew=PAGE, prot=posix.PROT_READ) as m:
        m.splice(pipe[1], at % PMD)
    os.write(told, b"h")
    os.read(go_on, 1)
    return os.read(pipe[0], PAGE).decode("latin-1")


def _clone_and_hold(path, own, at, told, go_on):
    """The same, and the file shares its blocks with one of his."""
    posix.clone(os.open(path, os.O_RDONLY), os.open(own, os.O_RDWR | os.O_CREAT))
    return _hold(path, own, at, told, go_on)


@contextlib.contextmanager
def _loop(path):
    """A loop device that is made of a file, which everybody may read."""
    os.chmod(path, 0o644)
    device.run("modprobe", "-q", "loop", ok=(0, 1))
    loop = device.run("losetup", "--find", "--show", "--direct-io=on", path).strip()
    try:
        yield loop
    finally:
        device.run("losetup", "--detach", loop)


@contextlib.contextmanager
def _held(t, hold, at, data):
    """(statistics, pipe to have the holder let go): somebody holds a page of the image."""
    told, go_on = os.pipe(), os.pipe()
    holder = as_nobody(hold, t.path(), f"{own_directory(t)}/clone", at, told[1], go_on[0])
    equal(os.read(told[0], 1), b"h", "the holder's sign")
    yield t.stats(), go_on[1]
    same_bytes(holder.result().encode("latin-1"), data, "what was held")


@contextlib.contextmanager
def _image(t, hold, at):
    """(file, loop device, statistics, pipe to have the holder let go): the file can be read by everybody,
    and somebody holds a page of it."""
    fd = t.open()
    os.pwrite(fd, pages("o", 512), 0)
    with _loop(t.path()) as loop, _held(t, hold, at, page("o", at // PAGE)) as (stats, go_on):
        yield fd, loop, stats, go_on


@case(fs=("xfs",), quick=False, timeout=300)
def write_to_a_loop_device_that_gives_up_is_an_error(t):
    """Whoever holds a page of its file holds the filesystem up for a while; then whoever writes is told so."""
    length = 64 * PAGE
    with _image(t, _clone_and_hold, 20 * PAGE) as (fd, loop, stats, go_on):
        def write():
            disk = os.open(loop, os.O_RDWR | os.O_DIRECT)
            with Map(-1, length, flags=posix.MAP_PRIVATE | posix.MAP_ANONYMOUS) as buffer:
                buffer.write(0, pages("n", 64))
                return posix.pwrite_from(disk, buffer.address, length, 0)

        writer = Task(lambda: raises(errno.EIO, "write", write) and None)
        wait_for(lambda: writer.done() or stats.since()["layout_waits"], "wait for the page")
        check(not writer.done(), "the page was not waited for")
        # It has waited for as long as threads of the kernel do.
        writer.result(120)
        syncer = Task(os.sync, name="sync")
        syncer.result()
        os.write(go_on, b"g")
        same_bytes(os.pread(fd, PAGE, 20 * PAGE), page("o", 20), "the page that was held")


@case()
def discard_on_a_loop_device_waits_for_a_page(t):
    """The blocks are the file's until he lets go; neither can the filesystem be unmounted before."""
    with _image(t, _hold, 20 * PAGE) as (fd, loop, stats, go_on):
        discard = Task(device.run, "blkdiscard", "--offset", str(16 * PAGE), "--length",
                       str(16 * PAGE), loop)
        wait_for(lambda: discard.done() or stats.since()["layout_waits"], "wait for the page")
        check(not discard.done(), "the page was not waited for")
        raises(errno.EBUSY, "umount", posix.umount, t.fs.mount_point)
        os.write(go_on, b"g")
        discard.result()
        same_bytes(os.pread(fd, 34 * PAGE, 0),
                   pages("o", 16) + bytes(16 * PAGE) + pages("o", 2, 32), "the file")


UPPER = "/mnt/rdax-upper"


@contextlib.contextmanager
def _mounted(loop):
    """A filesystem on the loop device; a file there with 512 pages that are written."""
    device.run("mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "nodiscard", loop)
    os.makedirs(UPPER, exist_ok=True)
    device.run("mount", "-t", "ext4", loop, UPPER)
    try:
        fd = os.open(f"{UPPER}/file", os.O_RDWR | os.O_CREAT)
        os.pwrite(fd, pages("u", 512), 0)
        os.fsync(fd)
        yield fd
    finally:
        posix.umount(UPPER)


def _freeze(directory):
    Task(device.run, "fsfreeze", "--freeze", directory, name=f"freezing {directory}").result()


def _thaw(directory):
    Task(device.run, "fsfreeze", "--unfreeze", directory, name=f"thawing {directory}").result()


def _trim():
    """Whether all that is free was discarded."""
    return not device.run("sh", "-c", f"fstrim {UPPER} || echo failed")


def _use_file(path):
    """What does not need what is held: another file, or a block device that is made of one."""
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, pages("n", 8), PMD)
    os.fsync(fd)
    same_bytes(os.pread(fd, 8 * PAGE, PMD), pages("n", 8), "what was written")
    with Map(fd, 8 * PAGE, offset=PMD) as m:
        m.store(1, 7)
        m.load_ok(1, 7, "what was stored")
    os.close(fd)


@contextlib.contextmanager
def _image_in_use(t):
    """(place of a page of the image that can be held, what uses other files): a filesystem is mounted from an
    image, and another image is beside it."""
    os.chmod(t.dir, 0o755)
    for name, size in (("file", 32 * PMD), ("other", 2 * PMD), ("image", 2 * PMD)):
        os.fchmod(t.open(name, allocate=size), 0o666)
    with _loop(t.path("image")) as beside, _loop(t.path()) as loop, _mounted(loop) as fd:
        def use():
            for path in (t.path("other"), beside):
                Task(_use_file, path, name=f"use of {path}").result()

        logical, at, length, _ = posix.extents(fd)[0]
        check(logical == 0 and length > 20 * PAGE, f"the file is in pieces: {posix.extents(fd)}")
        os.close(fd)
        yield at + 20 * PAGE, use


@case(timeout=300)
def freezing_beside_a_held_page_of_an_image(t):
    """A filesystem on a loop device, and the one below, are frozen and thawed while somebody holds a page of
    the image, and waits himself to cut another file."""
    os.fchmod(t.open("cut", allocate=PMD), 0o666)
    os.pwrite(t.open("cut"), pages("c", 512), 0)
    lower = t.fs.mount_point
    with _image_in_use(t) as (at, use), _held(t, _hold, at, page("u", 20)) as (_, go_on):
        cutter = as_nobody(wait_for_himself, t.path("cut"), cut)
        try:
            cutter.blocked_in("ftruncate")
            for one in (UPPER, lower):
                _freeze(one)
                _thaw(one)
            _freeze(UPPER)
            use()
            _freeze(lower)
            _thaw(lower)
            _thaw(UPPER)
            cutter.blocked_in("ftruncate")
        finally:
            os.write(go_on, b"g")
            cutter.kill()
        equal(cutter.signalled(), signal.SIGKILL, "the signal that ended who cuts")


# ext4 warns of whoever comes to it while it is frozen, as a loop device does with a discard.
@case(fs=("xfs",), timeout=300)
def freezing_beside_a_discard_that_waits(t):
    """The same while a discard waits for the page."""
    lower = t.fs.mount_point
    with _image_in_use(t) as (at, use):
        with _held(t, _hold, at, page("u", 20)) as (stats, go_on):
            os.unlink(f"{UPPER}/file")
            device.run("sync", "--file-system", UPPER)
            before = stats.since()["layout_waits"]
            trim = Task(_trim, name="fstrim")
            wait_for(lambda: trim.done() or stats.since()["layout_waits"] > before,
                     "wait for the page")
            check(not trim.done(), "the page was not waited for")
            _freeze(lower)
            _thaw(lower)
            use()
            # Who uses the image waits for the discard, which goes on when the page is let go.
            frozen = Task(device.run, "fsfreeze", "--freeze", UPPER, name="freezing the upper")
            use()
            _freeze(lower)
            os.write(go_on, b"g")
            _thaw(lower)
            trimmed = trim.result()
            frozen.result()
            use()
            _thaw(UPPER)
        # Threads of the kernel wait for 30 s, which is not for long on a slow machine.
        same_bytes(os.pread(t.open(), PAGE, at), bytes(PAGE) if trimmed else page("u", 20),
                   "the page that was held")
