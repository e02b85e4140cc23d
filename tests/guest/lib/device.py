# SPDX-License-Identifier: GPL-2.0
"""The block devices under test, adoption, and a slow disk."""

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
import subprocess
import time

from . import task
from .check import Failure, Skip, check, equal

CONFIG = "/sys/kernel/config/rdax"


def read(path, default=None):
    try:
        with open(path, encoding="ascii") as f:
            return f.read().strip()
    except OSError:
        if default is None:
            raise
        return default


def write(path, text):
    """Write in one call, so that the answer is the kernel's."""
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def run(*command, ok=(0,)):
    """Run a command; its output. A status that is not in `ok` fails the case."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode not in ok:
        raise Failure(f"{' '.join(command)}: status {done.returncode}\n{done.stdout}")
    return done.stdout


def module_loaded():
    return os.path.isdir(CONFIG)


def unload_module():
    """Remove the module; a coverage build's counters are kept for the end of the run."""
    counters = "/sys/kernel/debug/rdax-coverage"
    if os.path.exists(counters):
        with open(counters, "rb") as now, open("/tmp/rdax-coverage", "ab") as kept:
            kept.write(now.read())
    run("rmmod", "rdax")


@contextlib.contextmanager
def without_module():
    """All items go, and the module; afterwards it is loaded, and has the items that it had."""
    module = "/run/lab/rdax.ko"
    if not os.path.exists(module):
        raise Skip(f"{module} is not there to be loaded again")
    was = {name: adopted(name) for name in os.listdir(CONFIG)}
    for name, is_adopted in was.items():
        if is_adopted:
            write(f"{CONFIG}/{name}/adopt", "0")
        os.rmdir(f"{CONFIG}/{name}")
    try:
        unload_module()
        yield module
    finally:
        if not module_loaded():
            run("insmod", module)
        for name, is_adopted in was.items():
            os.mkdir(f"{CONFIG}/{name}")
            if is_adopted:
                write(f"{CONFIG}/{name}/adopt", "1")


def adopted(name):
    return read(f"{CONFIG}/{name}/adopt", "0") == "1"


def adopt(name, wanted):
    """Have a device adopted, or not; it must not be mounted."""
    if adopted(name) != wanted:
        if not os.path.isdir(f"{CONFIG}/{name}"):
            os.mkdir(f"{CONFIG}/{name}")
        write(f"{CONFIG}/{name}/adopt", "1" if wanted else "0")


def set_switch(name, switch, value):
    """Set a switch of an adopted device in configfs."""
    write(f"/sys/kernel/config/rdax/{name}/{switch}", str(value))


def exists(name):
    return os.path.exists(f"/sys/class/block/{name}")


def data_start(name):
    """Physical address of the first byte of a pmem device."""
    return int(read(f"/sys/block/{name}/device/resource"), 16)


def size(name):
    return int(read(f"/sys/block/{name}/size")) * 512


_BLKPG, _BLKPG_ADD, _BLKPG_DELETE = 0x1269, 1, 2


def _blkpg(fd, operation, number, start=0, length=0):
    data = ctypes.create_string_buffer(struct.pack("qqi64s64s4x", start, length, number, b"", b""))
    fcntl.ioctl(fd, _BLKPG, struct.pack("iiiiQ", operation, 0, len(data) - 1, 0, ctypes.addressof(data)))


@contextlib.contextmanager
def partition(name):
    """A partition of a disk, without a table on it: all but 4 MiB at each end. Yields its name."""
    part = f"{name}p1"
    disk = os.open(f"/dev/{name}", os.O_RDWR)
    try:
        _blkpg(disk, _BLKPG_ADD, 1, 4 << 20, size(name) - (8 << 20))
        try:
            wait_for(lambda: os.path.exists(f"/dev/{part}"), part)
            yield part
        finally:
            _blkpg(disk, _BLKPG_DELETE, 1)
    finally:
        os.close(disk)


def is_free(name):
    """Whether no filesystem has the device any more."""
    try:
        os.close(os.open(f"/dev/{name}", os.O_RDONLY | os.O_EXCL))
    except OSError as error:
        equal(error.errno, errno.EBUSY, "errno")
        return False
    return True


def driver_of(name):
    """(directory of the driver of a pmem device, the name by which it is bound there)"""
    path = os.path.realpath(f"/sys/block/{name}/device")
    return os.path.realpath(f"{path}/driver"), os.path.basename(path)


def bind(name, driver, at):
    """Bind a pmem device that is not bound; it has a block device afterwards."""
    write(f"{driver}/bind", at)
    wait_for(lambda: os.path.exists(f"/dev/{name}"), f"new {name}")


class Stats:
    """The adopted device's counters since this was made; knows nothing if it is not adopted."""

    def __init__(self, name):
        self.path = f"{CONFIG}/{name}/stats"
        self.known = adopted(name)
        self.before = self._read()

    def _read(self):
        if not self.known:
            return {}
        words = [line.split() for line in read(self.path).splitlines()]
        return {word[0]: int(word[1]) for word in words}

    def since(self):
        now = self._read()
        for name, value in self.before.items():
            check(now.get(name, -1) >= value, f"counter {name} went back from {value} "
                                              f"to {now.get(name)}")
        return {name: value - self.before.get(name, 0) for name, value in now.items()}

    def expect(self, **wanted):
        """The counters that must have moved: by a number, or as a function of it says."""
        if not self.known:
            return
        moved = self.since()
        for name, value in wanted.items():
            check(name in moved, f"there is no counter {name}")
            if callable(value):
                check(value(moved[name]), f"counter {name} moved by {moved[name]}; "
                                          f"all that moved: {_moved(moved)}")
            elif moved[name] != value:
                raise Failure(f"counter {name} moved by {moved[name]} instead of {value}; "
                              f"all that moved: {_moved(moved)}")


def _moved(values):
    return " ".join(f"{name}={value}" for name, value in values.items() if value) or "nothing"


def some(value):
    return value > 0


class SlowDisk:
    """A disk whose requests, once held, wait until they are released.

    dm-delay on a ramdisk, or on a file in memory where the kernel has no ramdisks.
    """

    NAME = "rdax-slow"
    PATH = f"/dev/mapper/{NAME}"
    FILE = "/tmp/rdax-tests/disk"
    BYTES = 32 << 20
    HELD_MS = 1000000

    def __init__(self):
        os.environ["DM_DISABLE_UDEV"] = "1"
        if os.path.exists(self.PATH):
            self.disk = self._below()
            return
        self._load("dm-delay")
        try:
            self._load("brd", "rd_nr=1", f"rd_size={self.BYTES >> 10}")
            self.disk = "/dev/ram0"
        except Skip:
            self._load("loop")
            with open(self.FILE, "wb") as f:
                f.truncate(self.BYTES)
            self.disk = run("losetup", "--find", "--show", self.FILE).strip()
        run("dmsetup", "create", self.NAME, "--table", self._table(0))

    @staticmethod
    def _load(*command):
        done = subprocess.run(["modprobe", *command], stderr=subprocess.PIPE, text=True,
                              check=False)
        if done.returncode:
            raise Skip(f"no slow disk: {done.stderr.strip()}")

    @classmethod
    def _below(cls):
        """The disk that an earlier case has put below."""
        number = run("dmsetup", "table", cls.NAME).split()[3]
        return "/dev/" + os.path.basename(os.path.realpath(f"/sys/dev/block/{number}"))

    def _table(self, ms):
        one = f"{self.disk} 0 {ms}"
        return f"0 {self.BYTES >> 9} delay {one} {one}"

    def _set(self, ms):
        run("dmsetup", "reload", self.NAME, "--table", self._table(ms))
        # Suspending sends everything on its way that the old table has held back.
        run("dmsetup", "resume", self.NAME)

    def hold(self):
        self._set(self.HELD_MS)

    def delay(self, ms):
        """Every request takes that long."""
        self._set(ms)

    def release(self):
        self._set(0)

    @classmethod
    def release_if_there(cls):
        if os.path.exists(cls.PATH):
            cls().release()

    def open(self):
        return os.open(self.PATH, os.O_RDWR | os.O_DIRECT)

    def content(self, length, offset=0):
        """What is on the disk now, past all delay."""
        from .mapping import Map
        from . import posix
        fd = os.open(self.disk, os.O_RDONLY | os.O_DIRECT)
        try:
            with Map(-1, length, flags=posix.MAP_PRIVATE | posix.MAP_ANONYMOUS) as m:
                equal(posix.pread_to(fd, m.address, length, offset), length, "read of the disk")
                return m.read(0, length)
        finally:
            os.close(fd)

    def fill(self, data, offset=0):
        from .mapping import Map
        from . import posix
        fd = os.open(self.disk, os.O_WRONLY | os.O_DIRECT)
        try:
            with Map(-1, len(data), flags=posix.MAP_PRIVATE | posix.MAP_ANONYMOUS) as m:
                m.write(0, data)
                equal(posix.pwrite_from(fd, m.address, len(data), offset), len(data),
                      "write to the disk")
        finally:
            os.close(fd)


def wait_for(condition, what, timeout=20):
    deadline = task.Deadline(timeout)
    while not condition():
        check(not deadline.over(), f"no {what} after {timeout * task.pace:.0f} s")
        time.sleep(0.02)
