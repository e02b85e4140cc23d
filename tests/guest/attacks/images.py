# SPDX-License-Identifier: GPL-2.0
"""Files that others may read and a block device is made of."""

import contextlib
import errno
import os

from lib import device, posix
from lib.check import check, equal, raises, same_bytes
from lib.device import wait_for
from lib.mapping import Map
from lib.pattern import page, pages
from lib.posix import PAGE, PMD
from lib.runner import case
from lib.task import Task

from .common import as_nobody, own_directory


def _hold(path, _own, at, told, go_on):
    """Who may read a file has a page of it in a pipe."""
    fd, pipe = os.open(path, os.O_RDONLY), os.pipe()
    with Map(fd, PMD, skew=PAGE, prot=posix.PROT_READ) as m:
        posix.vmsplice(pipe[1], m.address + at, PAGE)
    os.write(told, b"h")
    os.read(go_on, 1)
    return os.read(pipe[0], PAGE).decode("latin-1")


def _clone_and_hold(path, own, at, told, go_on):
    """The same, and the file shares its blocks with one of his."""
    posix.clone(os.open(path, os.O_RDONLY), os.open(own, os.O_RDWR | os.O_CREAT))
    return _hold(path, own, at, told, go_on)


@contextlib.contextmanager
def _image(t, hold, at):
    """(file, loop device, statistics, pipe to have the holder let go): the file can be read by everybody,
    and somebody holds a page of it."""
    fd = t.open()
    os.pwrite(fd, pages("o", 512), 0)
    os.fchmod(fd, 0o644)
    device.run("modprobe", "-q", "loop", ok=(0, 1))
    loop = device.run("losetup", "--find", "--show", "--direct-io=on", t.path()).strip()
    told, go_on = os.pipe(), os.pipe()
    try:
        holder = as_nobody(hold, t.path(), f"{own_directory(t)}/clone", at, told[1], go_on[0])
        equal(os.read(told[0], 1), b"h", "the holder's sign")
        yield fd, loop, t.stats(), go_on[1]
        same_bytes(holder.result().encode("latin-1"), page("o", at // PAGE), "what was held")
    finally:
        device.run("losetup", "--detach", loop)


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
