# SPDX-License-Identifier: GPL-2.0
"""Calls of /dev/rdax at random."""

import ctypes
import errno
import os
import random
import signal

from lib import device, ioctl, posix
from lib.ioctl import Asker, MapCall, MapRecord, WaitRecord, WaitsCall
from lib.check import Skip, check, equal
from lib.device import run
from lib.fs import VARIANTS
from lib.mapping import Map
from lib.pattern import file as _file
from lib.posix import PAGE, PMD
from lib.runner import case
from lib.task import Task

from .common import covers, need


class _Random:
    """Calls with random numbers, sizes, pointers and descriptors."""

    ERRORS = (0, errno.EBADF, errno.ENODEV, errno.EOPNOTSUPP, errno.EINVAL, errno.E2BIG, errno.EFAULT,
              errno.EINTR, errno.ENOTTY)
    ROOM = 64 * PAGE

    def __init__(self, t, fd, other):
        self.random = random.Random(t.settings.seed)
        self.other = other
        self.asker = os.open(ioctl.DEVICE, os.O_RDONLY)
        # A buffer with an end that nothing is behind.
        self.buffer = Map(-1, self.ROOM, flags=posix.MAP_PRIVATE | posix.MAP_ANONYMOUS)
        self.read_only = Map(-1, PAGE, prot=posix.PROT_READ, flags=posix.MAP_PRIVATE | posix.MAP_ANONYMOUS)
        # Answers may be written to the file that is asked about.
        self.file = Map(fd, PMD)
        path = t.path()
        self.fds = [fd, fd, fd, os.open(path, os.O_RDONLY), os.open(path, os.O_WRONLY),
                    os.open(path, os.O_PATH), os.open(t.dir, os.O_RDONLY), os.open("/tmp", os.O_RDONLY),
                    os.open("/proc/self/maps", os.O_RDONLY), self.asker, os.pipe()[0], -1, -2, 1 << 20,
                    os.open(f"/dev/{t.device}", os.O_RDONLY), os.memfd_create("memory")]
        self.seen = {}

    def _descriptor(self):
        if self.random.randrange(8):
            return self.random.choice(self.fds), None
        # One that is being released, unmounted or adopted at this moment, or is not there.
        try:
            fd = os.open(self.other, os.O_RDONLY)
        except OSError:
            return -1, None
        return fd, fd

    def _pointer(self, size):
        kind = self.random.randrange(12)
        inside = self.random.randrange(0, self.ROOM // 2, 8)
        if kind < 7 or self.random.randrange(3):
            return self.buffer.address + inside
        return [self.buffer.address + self.ROOM - self.random.randrange(0, 2 * size + 8),
                self.read_only.address, self.file.address + self.random.randrange(0, PMD // 2, 8),
                self.random.choice([0, 1, PAGE - 1, 1 << 47, (1 << 64) - PAGE, 0xffff888000000000]),
                self.buffer.address + self.random.randrange(self.ROOM)][kind - 7]

    def _number(self):
        some = [0, 1, 2, 3, PAGE - 1, PAGE, PMD, PMD + 1, 1 << 32, (1 << 63) - 1, 1 << 63, ioctl.NOWHERE]
        return self.random.choice(some) if self.random.randrange(4) else self.random.getrandbits(64)

    def _small(self, right):
        return right if self.random.randrange(16) else self.random.choice([0, 1, 8, 1 << 31, (1 << 32) - 1,
                                                                           self.random.getrandbits(32)])

    def _structure(self, kind, fd):
        if kind is MapCall:
            wide = ctypes.sizeof(MapRecord)
            made = MapCall(fd=fd, start=self._number(), length=self._number(), next=self._number(),
                           record_size=self._small(wide), count=self._small(self.random.randrange(64)))
        else:
            wide = ctypes.sizeof(WaitRecord)
            made = WaitsCall(fd=fd, record_size=self._small(wide),
                             count=self._small(self.random.randrange(64)))
        made.flags, made.reserved = (self._small(0), self._small(0))
        made.records = self._pointer(wide)
        return made

    def call(self):
        fd, own = self._descriptor()
        kind = self.random.choice([MapCall, MapCall, WaitsCall])
        known = ctypes.sizeof(kind)
        size = known if self.random.randrange(4) else self.random.choice(
            [known + 8, known - 8, 0, 16383, self.random.randrange(16384)])
        nr = {MapCall: 1, WaitsCall: 2}[kind] if self.random.randrange(10) else self.random.randrange(256)
        command = ioctl.number(nr, size) if self.random.randrange(20) else self.random.getrandbits(32)
        at = self._pointer(max(size, known))
        inside = self.buffer.address <= at and at + known <= self.buffer.address + self.ROOM
        if inside:
            made = self._structure(kind, fd)
            ctypes.memmove(at, ctypes.addressof(made), known)
        if own is not None and not self.random.randrange(4):
            os.close(own)
            own = None
        found = ioctl.call(self.asker, command, at)
        if own is not None:
            os.close(own)
        check(found in self.ERRORS, f"errno {found} of call {command:#x} at {at:#x}")
        self.seen[found] = self.seen.get(found, 0) + 1


def _disturb(path, seed):
    """Keeps the file changing: mapped, written, cut, punched."""
    rng = random.Random(seed)
    fd = os.open(path, os.O_RDWR)
    while True:
        with Map(fd, PMD, skew=rng.choice([0, PAGE])) as m:
            for _ in range(8):
                m.store(rng.randrange(0, PMD, PAGE), 1)
        at = rng.randrange(0, 4 * PMD, PAGE)
        posix.fallocate(fd, posix.PUNCH_HOLE | posix.KEEP_SIZE, at, rng.choice([PAGE, PMD]))
        os.ftruncate(fd, rng.choice([4 * PMD, 4 * PMD, PMD + PAGE, 3 * PMD]))
        os.ftruncate(fd, 4 * PMD)
        os.pwrite(fd, b"x" * PAGE, rng.randrange(0, 4 * PMD, PAGE))


def _come_and_go(name, mount):
    """Keeps a device being adopted, mounted, unmounted and released.

    All by this process itself: a command that it ran would go on when it is killed, and mount what
    nobody unmounts any more.
    """
    while True:
        device.adopt(name, True)
        posix.mount(f"/dev/{name}", mount, "xfs", "dax=always")
        # Ends: the fuzzer has a file of it open for a moment only.
        while True:
            try:
                posix.umount(mount)
                break
            except OSError as error:
                equal(error.errno, errno.EBUSY, "errno of umount")
        device.adopt(name, False)


# As many calls as an ordinary run has time for, unless it is asked for more.
CALLS = int(os.environ.get("RDAX_CALLS", "5000"))


@case(fs=("xfs", "ext4"), timeout=120 + CALLS // 100)
def random_questions(t):
    """Whatever is asked gets an answer or an error, and loses nothing."""
    need(t)
    name, mount = "pmem1", "/mnt/rdax-report"
    if not device.adopted(name):
        raise Skip(f"{name} is not adopted")
    run(*VARIANTS["xfs"].mkfs, f"/dev/{name}")
    os.makedirs(mount, exist_ok=True)
    run("mount", "-o", "dax=always", f"/dev/{name}", mount)
    with open(f"{mount}/file", "wb") as f:
        f.write(b"x" * 16 * PAGE)
    posix.umount(mount)
    fd = _file(t, 4 * PMD)
    kept = t.open("kept", size=PMD, allocate=PMD)
    os.pwrite(kept, b"kept" * (PMD // 4), 0)
    fuzzer = _Random(t, fd, f"{mount}/file")
    tasks = [Task(_disturb, t.path(), t.settings.seed), Task(_come_and_go, name, mount)]
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    try:
        for _ in range(CALLS):
            fuzzer.call()
            for task in tasks:
                check(not task.done(), f"{task.name} has ended: {task.outcome() if task.done() else ''}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for task in tasks:
            task.kill()
        for task in tasks:
            check(task.join(60), f"{task.name} does not go away")
        if os.path.ismount(mount):
            posix.umount(mount)
        device.adopt(name, True)
    t.note(" ".join(f"{errno.errorcode.get(number, 'ok')}={count}"
                    for number, count in sorted(fuzzer.seen.items())))
    for wanted in (0, errno.EBADF, errno.ENODEV, errno.EINVAL, errno.EFAULT, errno.ENOTTY):
        check(fuzzer.seen.get(wanted), f"no call ended with {wanted}: {fuzzer.seen}")
    equal(os.pread(kept, PMD, 0), b"kept" * (PMD // 4), "what a file holds")
    # It answers as before.
    with Asker() as asker:
        equal(asker.version(), 1, "version")
        covers(asker.map(kept), PMD)
