# SPDX-License-Identifier: GPL-2.0
"""No space is left, or none of the user's quota, while files are mapped: what could not be had is refused,
and all else is as it was (spec, R9). All of it is done by an ordinary user."""

import errno
import os

from lib import posix
from lib.check import Failure, Skip, check, equal, same_bytes
from lib.device import run
from lib.mapping import SIGBUS, Map
from lib.pattern import pages
from lib.posix import PAGE, PMD
from lib.runner import case
from lib.task import Task

FS = ("xfs", "ext4")
SIZE = 2 * PMD
COUNT = SIZE // PAGE
NONE_LEFT = (errno.ENOSPC, errno.EDQUOT)
SYNC = posix.MAP_SHARED_VALIDATE | posix.MAP_SYNC


class Full:
    """A file that has all the space there is."""

    def __init__(self, t):
        self.t, self.path = t, t.path("filler")
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT)
        # What XFS had set aside comes free with each flush: again.
        for _ in range(3):
            step = 256 << 20
            while step >= PAGE:
                try:
                    posix.fallocate(fd, 0, os.fstat(fd).st_size, step)
                except OSError as error:
                    if error.errno not in NONE_LEFT:
                        raise
                    step //= 2
            t.sync()
        os.close(fd)

    def end(self):
        os.unlink(self.path)
        self.t.sync()


def _stores(m, value):
    """Store to each page. How often each signal came, and the offsets of the stores that went through."""
    signals, through = {}, []
    for at in range(100, SIZE, PAGE):
        fault = m.store(at, value)
        signals[fault.signal] = signals.get(fault.signal, 0) + 1
        if not fault.signal:
            through.append(at)
        elif fault.signal != SIGBUS:
            raise Failure(f"a store at {at:#x}: {fault}")
    return signals, through


def _put(content, through, value):
    for at in through:
        content[at] = value


def _all_go_through(m, content, full):
    """Stores to each page, when there is space again."""
    full.end()
    signals, through = _stores(m, 0x32)
    equal(signals, {0: COUNT}, "how stores with space end")
    _put(content, through, 0x32)
    same_bytes(m.read(0, SIZE), content, "the mapping")


def _holes(t, skew, flags=posix.MAP_SHARED, loaded=False):
    """Stores to a file that has no blocks."""
    fd = t.open("holes", size=SIZE)
    content = bytearray(SIZE)
    with Map(fd, SIZE, skew=skew, flags=flags) as m:
        if loaded:
            m.touch()
        full = Full(t)
        signals, through = _stores(m, 0x31)
        check(SIGBUS in signals, f"all stores went through: {signals}")
        _put(content, through, 0x31)
        same_bytes(m.read(0, SIZE), content, "the mapping, with no space")
        same_bytes(os.pread(fd, SIZE, 0), content, "the file, with no space")
        _all_go_through(m, content, full)
        os.fsync(fd)
        same_bytes(os.pread(fd, SIZE, 0), content, "the file")
    os.close(fd)
    os.unlink(t.path("holes"))


def _refused(call):
    """What a call answers, or None if there was no space for it."""
    try:
        return call()
    except OSError as error:
        if error.errno not in NONE_LEFT:
            raise
        return None


def _by_store(_fd, m, content):
    _put(content, _stores(m, 0x31)[1], 0x31)


def _by_write(fd, _m, content):
    done = _refused(lambda: os.pwrite(fd, b"w" * (SIZE - 200), 100)) or 0
    content[100:100 + done] = b"w" * done


def _by_zeroing(fd, _m, content):
    done = _refused(lambda: posix.fallocate(fd, posix.ZERO_RANGE | posix.KEEP_SIZE, 100, SIZE - 200) or True)
    got = os.pread(fd, SIZE, 0)
    for at in range(100, SIZE - 100):
        check(got[at] == 0 or (not done and got[at] == content[at]), f"byte {at} is neither old nor zero")
    content[100:SIZE - 100] = got[100:SIZE - 100]


def _by_unsharing(fd, _m, _content):
    _refused(lambda: posix.fallocate(fd, posix.UNSHARE_RANGE, 0, SIZE))


def _clones(t, skew, change):
    """Something with one of two files that share all blocks and are mapped."""
    fd, other = t.open("file"), t.open("clone")
    posix.fallocate(fd, 0, 0, SIZE)
    old = pages("f", COUNT)
    os.pwrite(fd, old, 0)
    posix.clone(fd, other)
    content = bytearray(old)

    def are_right(when):
        same_bytes(os.pread(fd, SIZE, 0), content, f"the file, {when}")
        same_bytes(os.pread(other, SIZE, 0), old, f"the clone, {when}")
    with Map(fd, SIZE, skew=skew) as m, Map(other, SIZE, skew=skew) as n:
        m.touch()
        n.touch()
        full = Full(t)
        change(fd, m, content)
        same_bytes(m.read(0, SIZE), content, "the mapping, with no space")
        same_bytes(n.read(0, SIZE), old, "the clone's mapping, with no space")
        are_right("with no space")
        os.fsync(fd)
        _all_go_through(m, content, full)
        os.fsync(fd)
        are_right("at the end")
    for each, name in ((fd, "file"), (other, "clone")):
        os.close(each)
        os.unlink(t.path(name))


def _as_nobody(t, do):
    os.chmod(t.dir, 0o777)

    def child():
        posix.become_nobody()
        do(t)
    Task(child).result(300)
    t.holds("afterwards")


def _case(name, fs, do, *arguments, **options):
    def run_it(t):
        _as_nobody(t, lambda t: do(t, *arguments, **options))
    run_it.__name__ = name
    case(fs=fs, timeout=400)(run_it)


for _kind, _skew in (("pages", PAGE), ("2_mib", 0)):
    _case(f"holes_stored_to_by_{_kind}", FS, _holes, _skew)
    _case(f"zeroes_stored_to_by_{_kind}", FS, _holes, _skew, loaded=True)
    _case(f"holes_stored_to_synchronously_by_{_kind}", FS, _holes, _skew, SYNC)
    for _what, _change in (("stored_to", _by_store), ("written_to", _by_write), ("zeroed", _by_zeroing),
                           ("unshared", _by_unsharing)):
        _case(f"clones_{_what}_mapped_by_{_kind}", ("xfs",), _clones, _skew, _change)


@case(fs=("xfs",), timeout=600)
def quota(t):
    """The user's quota is used up, in place of the space."""
    name, at = "pmem1", "/mnt/quota"
    if not os.path.exists(f"/dev/{name}"):
        raise Skip(f"there is no {name}")
    run(*t.variant.mkfs, f"/dev/{name}")
    os.makedirs(at, exist_ok=True)
    posix.mount(f"/dev/{name}", at, "xfs", f"{t.variant.options},uquota")
    try:
        run("xfs_quota", "-x", "-c", f"limit bhard=40m {posix.NOBODY}", at)
        t.dir = f"{at}/directory"
        os.mkdir(t.dir)

        def all_of_it(t):
            _holes(t, PAGE)
            _holes(t, 0, loaded=True)
            for skew, change in ((0, _by_store), (PAGE, _by_write), (0, _by_zeroing), (PAGE, _by_unsharing)):
                _clones(t, skew, change)
        _as_nobody(t, all_of_it)
    finally:
        posix.umount(at)
