# SPDX-License-Identifier: GPL-2.0
"""Memory that fails while its files are used in every way, by chance."""

import os
import random
import time

from lib import posix
from lib.check import check
from lib.device import some
from lib.mapping import SIGBUS, Map
from lib.native import Fault, probe
from lib.posix import PAGE, PMD
from lib.runner import case
from lib.task import Task

from .common import POISON, forget

FILES, LENGTH = 4, 4 * PMD
# So many, the first, have no holes: what fails is memory of the device, not the kernel's page of zeroes.
WHOLE = 2
# The bytes of the first file, which is in no clone; those of the others are smaller.
ALONE = 99


def _seconds(settings):
    return max(3, settings.seconds // 4)


class _User:
    """Does with the files whatever comes. An access may fail, but shows no other file's bytes."""

    def __init__(self, t, seed):
        self.random = random.Random(seed)
        self.clones = t.variant.reflink
        self.paths = [f"{t.dir}/{n}" for n in range(FILES)]
        self.maps = {}
        self.done = {}

    def _fd(self, n):
        return os.open(self.paths[n], os.O_RDWR)

    def _at(self, pages=1):
        return self.random.randrange(LENGTH // PAGE - pages + 1) * PAGE

    def _map(self, n, flags=None):
        if n not in self.maps:
            fd = self._fd(n)
            private = flags is None and self.random.random() < 0.3
            flags = posix.MAP_PRIVATE if private else posix.MAP_SHARED
            self.maps[n] = Map(fd, LENGTH, skew=self.random.choice((0, PAGE)), flags=flags)
            os.close(fd)
        return self.maps[n]

    @staticmethod
    def _right(n, value, what):
        theirs = (ALONE,) if n == 0 else range(1, FILES)
        check(value in (0, *theirs), f"{what} of file {n}: a byte {value}")

    def load(self, n):
        value, fault = self._map(n).load(self._at())
        check(fault.signal in (0, SIGBUS), f"a load got {fault}")
        if not fault.signal:
            self._right(n, value, "load")

    def store(self, n):
        fault = self._map(n).store(self._at(), ALONE if n == 0 else n)
        check(fault.signal in (0, SIGBUS), f"a store got {fault}")

    def read(self, n):
        fd = self._fd(n)
        try:
            for value in set(os.pread(fd, 16 * PAGE, self._at(16))):
                self._right(n, value, "read")
        finally:
            os.close(fd)

    def write(self, n):
        fd = self._fd(n)
        try:
            length = self.random.choice((100, PAGE, 16 * PAGE))
            os.pwrite(fd, bytes([ALONE if n == 0 else n]) * length, self._at(17))
        finally:
            os.close(fd)

    def cut(self, n):
        fd = self._fd(max(n, WHOLE))
        try:
            os.ftruncate(fd, self._at())
            os.ftruncate(fd, LENGTH)
        finally:
            os.close(fd)

    def punch(self, n):
        fd = self._fd(max(n, WHOLE))
        try:
            mode = self.random.choice((posix.PUNCH_HOLE, posix.ZERO_RANGE))
            posix.fallocate(fd, mode | posix.KEEP_SIZE, self._at(512), self.random.choice((PAGE, 100, PMD)))
        finally:
            os.close(fd)

    def sync(self, n):
        fd = self._fd(n)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def clone(self, n):
        other = self.random.randrange(WHOLE, FILES)
        if n in (0, other) or not self.clones:
            return
        source, target = self._fd(n), self._fd(other)
        try:
            posix.clone(source, target)
        finally:
            os.close(source)
            os.close(target)

    def fork(self, n):
        m, at = self._map(n), self._at()
        pid = os.fork()
        if not pid:
            m.load(at)
            m.store(at, ALONE if n == 0 else n)
            os._exit(0)
        os.waitpid(pid, 0)

    def pipe(self, n):
        reader, writer = os.pipe()
        try:
            m, at = self._map(n), self._at()
            if not m.load(at)[1].signal:
                posix.vmsplice(writer, m.address + at, PAGE)
                time.sleep(self.random.random() / 50)
                for value in set(os.read(reader, PAGE)):
                    self._right(n, value, "pipe")
        finally:
            os.close(reader)
            os.close(writer)

    def unmap(self, n):
        if n in self.maps:
            self.maps.pop(n).unmap()

    def discard(self, n):
        at = self._at()
        self._map(n).advise(posix.MADV_DONTNEED, at, min(LENGTH - at, PMD))

    def fail(self, n):
        n %= WHOLE
        m, at = self._map(n, flags=posix.MAP_SHARED), self._at()
        if not m.store(at, ALONE if n == 0 else n).signal:
            fault = Fault()
            probe().probe_madvise(m.address + at, PAGE, posix.MADV_HWPOISON, fault)

    WAYS = ("load", "load", "store", "store", "read", "write", "cut", "punch", "sync", "clone", "fork",
            "pipe", "unmap", "discard")

    def go(self, until, ways):
        while not until():
            way = self.random.choice(ways)
            try:
                getattr(self, way)(self.random.randrange(FILES))
                self.done[way] = self.done.get(way, 0) + 1
            except OSError as error:
                name = f"{way} {error.errno}"
                self.done[name] = self.done.get(name, 0) + 1
        for m in self.maps.values():
            m.unmap()
        return self.done


@case(fs=("xfs", "ext4"), timeout=lambda settings: _seconds(settings) + 240, **POISON)
def failures_beside_everything(t):
    for n in range(FILES):
        fd = os.open(f"{t.dir}/{n}", os.O_RDWR | os.O_CREAT)
        os.pwrite(fd, bytes([n or ALONE]) * LENGTH, 0)
        os.close(fd)
    stats = t.stats()
    end = time.monotonic() + _seconds(t.settings)
    stop = f"{t.dir}/stop"
    users = [Task(_User(t, t.settings.seed + n).go, lambda: os.path.exists(stop), _User.WAYS, name=f"user {n}")
             for n in range(3)]
    failing = _User(t, t.settings.seed - 1)
    failing.go(lambda: time.monotonic() > end, ("fail", "fail", "unmap"))
    with open(stop, "wb"):
        pass
    done = {}
    for user in users:
        for way, count in user.result().items():
            done[way] = done.get(way, 0) + count
    t.note(f"failures: {failing.done}; others: {dict(sorted(done.items()))}")
    stats.expect(poison_locks=some)
    for n in range(FILES):
        os.unlink(f"{t.dir}/{n}")
    forget(t)
