# SPDX-License-Identifier: GPL-2.0
"""Devices that go away while something waits."""

import contextlib
import fcntl
import os
import signal
import threading

from lib import device, posix
from lib.check import check, equal, same_bytes
from lib.device import CONFIG, SlowDisk, read, wait_for, write
from lib.mapping import Map
from lib.pattern import page, pages
from lib.posix import PAGE, PMD
from lib.runner import case
from lib.space import held_clone
from lib.task import Task
from lib.uffd import Missing

from .common import DEVICE, EIO, Item, OTHER, come_back, going, mountable, need, splice_from

# FIFREEZE, FITHAW
FREEZE, THAW = 0xC0045877, 0xC0045878


def _errno(call, *args):
    try:
        call(*args)
    except OSError as error:
        return error.errno
    return 0


def _truncate(path):
    os.truncate(path, 0)


def _punch(path):
    fd = os.open(path, os.O_RDWR)
    posix.fallocate(fd, posix.PUNCH_HOLE | posix.KEEP_SIZE, 0, PMD)


def _goes_under(change, hold=None, let_go=None):
    """The device goes while a system call waits for a page of it, which is told so at once."""
    waiters = []

    def begin(fs, pipe):
        if hold:
            hold(fs)
        else:
            splice_from(fs, pipe, page("w", 1))
        path = f"{fs.mount_point}/file"
        waiters.append(Task(_errno, change, path, name=change.__name__.strip("_")))
        waiters[0].blocked_in("truncate", "fallocate")

    with going("ext4", begin, page("w", 1), let_go):
        equal(waiters[0].result(30), EIO, "error")


@case(fs=())
def device_goes_while_a_truncate_waits(t):
    _goes_under(_truncate)


@case(fs=())
def device_goes_while_a_punch_waits(t):
    _goes_under(_punch)


@case(fs=())
def device_goes_while_a_truncate_waits_for_a_transfer(t):
    """Direct I/O has pins, and a mapping that is taken away meanwhile."""
    slow, writers = SlowDisk(), []

    def hold(fs):
        path = f"{fs.mount_point}/file"
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        posix.fallocate(fd, 0, 0, 2 * PMD)
        os.close(fd)

        def transfer():
            disk, fd = slow.open(), os.open(path, os.O_RDWR)
            m = Map(fd, 2 * PMD)
            m.write(PMD, pages("d", 8))
            return posix.pwrite_from(disk, m.address + PMD, 8 * PAGE, 0)

        slow.hold()
        writers.append(Task(transfer, name="direct write"))
        writers[0].blocked_in("pwrite64")

    def let_go():
        slow.release()
        equal(writers[0].result(30), 8 * PAGE, "bytes written")

    _goes_under(_truncate, hold, let_go)


@case(fs=())
def device_goes_while_its_unmount_waits(t):
    """Nobody else removes the file's entries, as it is being evicted."""
    unmounts = []

    def hold(fs, pipe):
        splice_from(fs, pipe, page("u", 1))
        unmounts.append(Task(fs.umount, name="umount"))
        unmounts[0].blocked_in("umount2")

    with going("ext4", hold, page("u", 1)):
        unmounts[0].result(30)


@case(fs=())
def device_goes_while_a_thread_waits_to_unmount(t):
    """Who unmounted was killed, and a thread of the kernel waits in his place; it ends with the device."""
    def hold(fs, pipe):
        splice_from(fs, pipe, page("u", 1))
        unmount = Task(fs.umount, name="umount")
        unmount.blocked_in("umount2")
        unmount.kill()
        equal(unmount.signalled(), signal.SIGKILL, "signal for who unmounts")

    with going("ext4", hold, page("u", 1)):
        pass


@contextlib.contextmanager
def _unmount_that_waits(name):
    """A filesystem is being unmounted that has a page in a pipe."""
    fs = mountable("ext4", name)
    fs.make()
    fs.mount()
    reader, writer = os.pipe()
    splice_from(fs, writer, page("p", 1))
    unmount = Task(fs.umount, name="umount")
    try:
        unmount.blocked_in("umount2")
        yield
        check(not unmount.done(), "the unmount has not waited")
    finally:
        out = os.read(reader, PAGE)
        os.close(reader)
        os.close(writer)
        unmount.result(30)
    same_bytes(out, page("p", 1), "what comes out of the pipe")


@contextlib.contextmanager
def _fault_that_waits(name):
    """A task stores to a page that somebody holds, on a device."""
    fs = mountable("xfs", name)
    fs.make()
    fs.mount()
    try:
        with held_clone(fs.mount_point) as fd:
            def store():
                with Map(fd, PMD, skew=PAGE) as m:
                    m.write(9 * PAGE, page("s"))

            victim = Task(store)
            victim.must_fault()
            yield
            check(not victim.done(), "the page was not waited for")
        victim.result()
        os.close(fd)
    finally:
        fs.umount()


@contextlib.contextmanager
def _transfer_that_waits(name, transfer):
    """A file on a device is read or written, and the buffer is memory that is missing."""
    fs = mountable("xfs", name)
    fs.make()
    fs.mount()
    (reader, writer), (missed, missing_now) = os.pipe(), os.pipe()
    fd = os.open(f"{fs.mount_point}/file", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, pages("f", 4), 0)

    def work():
        done = []
        with Map(-1, 4 * PAGE, flags=posix.MAP_PRIVATE | posix.MAP_ANONYMOUS) as buffer, \
                Missing(buffer) as missing:
            thread = threading.Thread(
                target=lambda: done.append(transfer(fd, buffer.address, 4 * PAGE, 0)))
            thread.start()
            equal(missing.wait(), buffer.address, "address that is wanted")
            os.write(missing_now, b"m")
            os.read(reader, 1)
            missing.give(pages("b", 4))
            thread.join()
            equal(done, [4 * PAGE], "bytes that were transferred")
            return buffer.read(0, 4 * PAGE).hex()

    try:
        task = Task(work)
        equal(os.read(missed, 1), b"m", "the sign that the buffer is waited for")
        try:
            yield
            check(not task.done(), "the buffer was not waited for")
        finally:
            os.write(writer, b"g")
        same_bytes(bytes.fromhex(task.result()), os.pread(fd, 4 * PAGE, 0), "the buffer")
        same_bytes(os.pread(fd, 4 * PAGE, 0),
                   pages("f" if transfer == posix.pread_to else "b", 4), "the file")
    finally:
        for end in (fd, reader, writer, missed, missing_now):
            os.close(end)
        fs.umount()


def _goes_beside():
    """The driver lets go of a mounted device that nobody holds a page of, and comes back."""
    was = device.adopted(DEVICE)
    path = os.path.realpath(f"/sys/block/{DEVICE}/device")
    driver, name = os.path.realpath(f"{path}/driver"), os.path.basename(path)
    fs = mountable("ext4")
    fs.make()
    fs.mount()
    fd = os.open(f"{fs.mount_point}/file", os.O_RDWR | os.O_CREAT)
    posix.fallocate(fd, 0, 0, PMD)
    m = Map(fd, PMD)
    m.write(0, pages("g", 8))
    Task(write, f"{driver}/unbind", name, name="unbind").result(30)
    m.bus_error(0, "memory of the device that is gone")
    m.unmap()
    os.close(fd)
    come_back(fs, driver, name, was)


@case(fs=())
def device_goes_while_another_is_unmounted(t):
    """What its filesystem has to do with is waited for, and nothing else of its kind. The kernel's own code
    keeps the lock of the filesystem that it unmounts."""
    need(DEVICE, OTHER)
    for adopt in (True, False):
        with Item(DEVICE, adopt=True), Item(OTHER, adopt=adopt), _unmount_that_waits(OTHER):
            _goes_beside()


@case(fs=())
def device_goes_while_a_fault_waits_on_another(t):
    need(DEVICE, OTHER)
    with Item(DEVICE, adopt=True), Item(OTHER, adopt=True), _fault_that_waits(OTHER):
        _goes_beside()


@case(fs=())
def device_goes_while_a_buffer_is_waited_for(t):
    """A user who can have his memory take as long as he likes has no device wait for that."""
    need(DEVICE, OTHER)
    for transfer in (posix.pread_to, posix.pwrite_from):
        with Item(DEVICE, adopt=True), Item(OTHER, adopt=True), \
                _transfer_that_waits(OTHER, transfer):
            _goes_beside()


@case(fs=())
def another_device_is_released_while_one_goes(t):
    """And adopted again; the module stays meanwhile."""
    need(DEVICE, OTHER)

    def hold(fs, pipe):
        splice_from(fs, pipe, page("o", 1))

    with Item(OTHER, adopt=True) as item, going("ext4", hold, page("o", 1)):
        for adopt in (False, True):
            Task(item.set, adopt, name="release").result(10)
            equal(item.adopted(), adopt, "adopted")
        check(int(read("/sys/module/rdax/refcnt")) > len(os.listdir(CONFIG)),
              "nothing keeps the module but the devices")


@case(fs=())
def another_device_is_released_while_a_filesystem_waits_to_be_frozen(t):
    """What becomes known of stores meanwhile is noted when it is thawed, which nobody waits for."""
    need(DEVICE, OTHER)
    fs = mountable()
    with Item(OTHER, adopt=True) as item, Item(DEVICE, adopt=True), \
            Map(-1, PAGE, flags=posix.MAP_PRIVATE | posix.MAP_ANONYMOUS) as buffer, \
            Missing(buffer) as missing:
        fs.make()
        fs.mount()
        fd, other = (os.open(f"{fs.mount_point}/{name}", os.O_RDWR | os.O_CREAT)
                     for name in ("file", "other"))
        os.pwrite(fd, pages("f", 64), 0)
        m = Map(fd, 64 * PAGE)
        # In sequence, so that pages are mapped ahead and stored to without a fault.
        m.write(0, pages("s", 64))
        writing = threading.Thread(target=posix.pwrite_from, args=(other, buffer.address, PAGE, 0))
        writing.start()
        missing.wait()
        freeze = Task(fcntl.ioctl, fd, FREEZE, 0)
        try:
            freeze.blocked_in("ioctl")
            m.unmap()
            for adopt in (False, True):
                Task(item.set, adopt, name="release").result()
                equal(item.adopted(), adopt, "adopted")
        finally:
            missing.give(page("w"))
            writing.join()
            freeze.result()
            fcntl.ioctl(fd, THAW, 0)
            os.close(fd)
            os.close(other)
            # What was put off keeps the file until it is done.
            wait_for(lambda: _errno(fs.umount) == 0, "unmounting")
