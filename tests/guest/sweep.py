# SPDX-License-Identifier: GPL-2.0
"""Every operation, with its first allocation failing, its second, and so on until it needs no more.

After each failure: what must hold holds, contents are those of before the operation or those of
after it (spec, R9), and the operation can be done again.

Runs on a kernel that can make allocations fail, with a module that can check what must hold.
"""

import ctypes
import errno
import os

from lib import device, invariants, native, posix
from lib.check import Failure, Skip, check, same_bytes
from lib.device import CONFIG, read, write
from lib.mapping import SIGBUS, Map
from lib.pattern import page, pages
from lib.posix import PAGE, PMD
from lib.runner import case

FS = ("xfs", "ext4")
# ext4 may leave a file among its orphans when it has no memory to cut it, for its next mount to clear.
ORPHANS = ("ext4",)
SIZE = 2 * PMD
COUNT = SIZE // PAGE

# System calls.
WRITE, MUNMAP, FSYNC, FTRUNCATE, IOCTL, MSYNC = 1, 11, 74, 77, 16, 26
PREAD, PWRITE, FALLOCATE, MKDIR, UNLINK, MADVISE = 17, 18, 285, 83, 87, 28
CLOSE, RMDIR = 3, 84

_BEFORE = {"failslab/ignore-gfp-wait": "N", "failslab/verbose": "0", "failslab/probability": "0",
           "fail_page_alloc/ignore-gfp-wait": "N", "fail_page_alloc/ignore-gfp-highmem": "N",
           "fail_page_alloc/min-order": "0", "fail_page_alloc/verbose": "0",
           "fail_page_alloc/probability": "0"}

# More allocations than any operation makes.
MOST = 2000


class Failing:
    """Does things with an allocation failing."""

    def __init__(self):
        if not os.path.exists("/proc/self/fail-nth"):
            raise Skip("this kernel cannot make allocations fail")
        if not invariants.can_be_checked():
            raise Skip("the module was not built to check what must hold")
        for name, value in _BEFORE.items():
            write(f"/sys/kernel/debug/{name}", value)
        self.lib = ctypes.CDLL(native.path("sweep.so"))
        unsigned, size = ctypes.c_uint, ctypes.c_size_t
        self.lib.sweep_call.argtypes = [ctypes.c_int, unsigned, ctypes.POINTER(unsigned),
                                        ctypes.c_long, ctypes.POINTER(ctypes.c_long)]
        self.lib.sweep_call.restype = ctypes.c_long
        self.lib.sweep_touch.argtypes = [ctypes.c_int, unsigned, ctypes.POINTER(unsigned),
                                         ctypes.c_void_p, size, size, ctypes.c_int]
        self.fd = os.open("/proc/self/fail-nth", os.O_RDWR)
        self.number = 0
        # Whether the operation ended before the allocation that was to fail.
        self.through = False

    def call(self, number, *args):
        """The result of a system call, or a negative errno."""
        left = ctypes.c_uint()
        words = (ctypes.c_long * 6)(*args)
        result = self.lib.sweep_call(self.fd, self.number, left, number, words)
        self.through = left.value > 0
        return result

    def touch(self, mapping, offset=0, length=1, step=PAGE, value=-1):
        """Load, or store the value. The kernel tries again what failed for want of memory; but a
        filesystem that lacks it before it gives the fault to DAX may answer SIGBUS (ext4 does).
        Then it is done again with nothing failing."""
        left = ctypes.c_uint()
        signal = self.lib.sweep_touch(self.fd, self.number, left, mapping.address + offset, length,
                                      step, value)
        self.through = left.value > 0
        if signal == SIGBUS and not self.through:
            holds()
            signal = self.lib.sweep_touch(self.fd, 0, left, mapping.address + offset, length, step,
                                          value)
        check(not signal, f"the access got signal {signal}")


def _text(path):
    """A path for a system call, kept alive by its owner."""
    return ctypes.create_string_buffer(os.fsencode(path))


def sweep(t, once):
    """once(failing) prepares, does the operation once, checks, and cleans up; until it passes."""
    failing = Failing()
    for failing.number in range(1, MOST):
        try:
            once(failing)
        except Failure as failure:
            raise Failure(f"with allocation {failing.number} failing: {failure}") from failure
        if failing.through:
            t.note(f"{failing.number - 1} allocations")
            return
    raise Failure(f"did not end with {MOST} allocations")


def holds(when="after the failure"):
    found = invariants.violations()
    check(not found, f"violations {when}:\n{found}")


def ended(result, *others):
    """The call succeeded, or failed for want of memory."""
    check(result >= 0 or -result in (errno.ENOMEM, *others),
          f"the call failed with {errno.errorcode.get(-result, result)}")
    return result >= 0


class File:
    """A file of two times 2 MiB, made for one turn."""

    def __init__(self, t, kind="written", name="file"):
        self.path = t.path(name)
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        if kind == "written":
            posix.fallocate(self.fd, 0, 0, SIZE)
            os.pwrite(self.fd, pages("f", COUNT), 0)
            self.content = bytearray(pages("f", COUNT))
        else:
            if kind == "unwritten":
                posix.fallocate(self.fd, 0, 0, SIZE)
            else:
                os.ftruncate(self.fd, SIZE)
            self.content = bytearray(SIZE)
        os.fsync(self.fd)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.fd)
        os.unlink(self.path)

    def put(self, offset, data):
        self.content[offset:offset + len(data)] = data

    def is_right(self, what="the file", mapping=None):
        if mapping:
            same_bytes(mapping.read(0, SIZE), self.content, f"{what}, mapped")
        same_bytes(os.pread(self.fd, SIZE + 1, 0), self.content, what)

    def is_one_of(self, *contents, what="the file"):
        """What the file has is one of these; and so it stays."""
        got = os.pread(self.fd, SIZE * 2, 0)
        if got not in [bytes(content) for content in contents]:
            same_bytes(got, contents[-1], what)
        self.content = bytearray(got)


def _faults(t, kind, skew, write, flags=posix.MAP_SHARED, before=None):
    """The faults of one access to each half."""
    def once(failing):
        with File(t, kind) as f, Map(f.fd, SIZE, skew=skew, flags=flags) as m:
            if before:
                before(f, m)
            failing.touch(m, PAGE, SIZE - PAGE, PMD, 0x55 if write else -1)
            if write and flags != posix.MAP_PRIVATE:
                for at in range(PAGE, SIZE, PMD):
                    f.put(at, b"\x55")
            holds()
            if write and flags == posix.MAP_PRIVATE:
                wanted = bytearray(f.content)
                for at in range(PAGE, SIZE, PMD):
                    wanted[at] = 0x55
                same_bytes(m.read(0, SIZE), wanted, "the private mapping")
                f.is_right()
            else:
                f.is_right(mapping=m)
            os.fsync(f.fd)
            f.is_right("the file after fsync")
    sweep(t, once)


@case(fs=FS, timeout=600)
def read_faults_of_pages(t):
    _faults(t, "written", PAGE, False)


@case(fs=FS, timeout=600)
def read_faults_of_2_mib(t):
    _faults(t, "written", 0, False)


@case(fs=FS, timeout=600)
def read_faults_of_holes(t):
    _faults(t, "hole", PAGE, False)


@case(fs=FS, timeout=600)
def read_faults_of_holes_of_2_mib(t):
    _faults(t, "hole", 0, False)


@case(fs=FS, timeout=600)
def write_faults_of_pages(t):
    _faults(t, "written", PAGE, True)


@case(fs=FS, timeout=600)
def write_faults_of_2_mib(t):
    _faults(t, "written", 0, True)


@case(fs=FS, timeout=600)
def write_faults_that_allocate(t):
    _faults(t, "hole", PAGE, True)


@case(fs=FS, timeout=600)
def write_faults_that_convert_2_mib(t):
    _faults(t, "unwritten", 0, True)


@case(fs=FS, timeout=600)
def stores_over_zeroes(t):
    _faults(t, "hole", PAGE, True, before=lambda f, m: m.touch())


@case(fs=FS, timeout=600)
def stores_over_zeroes_of_2_mib(t):
    _faults(t, "unwritten", 0, True, before=lambda f, m: m.touch())


@case(fs=FS, timeout=600)
def stores_after_fsync(t):
    def before(f, m):
        m.touch(0, SIZE, PMD, write=True)
        os.fsync(f.fd)
    _faults(t, "written", 0, True, before=before)


@case(fs=FS, timeout=600)
def synchronous_faults(t):
    flags = posix.MAP_SHARED_VALIDATE | posix.MAP_SYNC
    _faults(t, "hole", PAGE, True, flags=flags)


@case(fs=FS, timeout=600)
def synchronous_faults_of_2_mib(t):
    flags = posix.MAP_SHARED_VALIDATE | posix.MAP_SYNC
    _faults(t, "unwritten", 0, True, flags=flags)


@case(fs=FS, timeout=600)
def private_stores(t):
    _faults(t, "written", 0, True, flags=posix.MAP_PRIVATE)


@case(fs=FS, timeout=600)
def private_stores_over_holes(t):
    _faults(t, "hole", PAGE, True, flags=posix.MAP_PRIVATE)


def _clones(t, skew, act):
    """Something with one of two files that share all blocks and are mapped."""
    def once(failing):
        with File(t) as f, File(t, "hole", "clone") as g:
            posix.clone(f.fd, g.fd)
            g.content = bytearray(f.content)
            with Map(f.fd, SIZE, skew=skew) as m, Map(g.fd, SIZE, skew=skew) as n:
                m.touch(0, PMD)
                n.touch(0, PMD)
                act(failing, f, g, m)
                holds()
                f.is_right("the file", m)
                g.is_right("the clone", n)
    sweep(t, once)


def _store_to_clone(failing, f, _, m):
    failing.touch(m, PAGE, SIZE - PAGE, PMD, 0x55)
    for at in range(PAGE, SIZE, PMD):
        f.put(at, b"\x55")


@case(fs=("xfs",), timeout=600)
def copies_on_write_of_pages(t):
    _clones(t, PAGE, _store_to_clone)


@case(fs=("xfs",), timeout=600)
def copies_on_write_of_2_mib(t):
    _clones(t, 0, _store_to_clone)


@case(fs=("xfs",), timeout=600)
def write_to_a_clone(t):
    data = ctypes.create_string_buffer(pages("w", 3))

    def act(failing, f, _, __):
        done = failing.call(PWRITE, f.fd, ctypes.addressof(data), 3 * PAGE, 100)
        if ended(done):
            f.put(100, pages("w", 3)[:done])
        f.is_one_of(f.content)
    _clones(t, 0, act)


@case(fs=("xfs",), timeout=600)
def unshare(t):
    def act(failing, f, _, __):
        ended(failing.call(FALLOCATE, f.fd, posix.UNSHARE_RANGE, 0, SIZE))
    _clones(t, 0, act)


@case(fs=("xfs",), timeout=600)
def clone(t):
    """Of a mapped and dirty file, over one that is mapped."""
    def once(failing):
        with File(t) as f, File(t, "written", "clone") as g:
            g.put(0, page("g"))
            os.pwrite(g.fd, page("g"), 0)
            with Map(f.fd, SIZE) as m, Map(g.fd, SIZE) as n:
                m.write(5 * PAGE, page("m", 5))
                f.put(5 * PAGE, page("m", 5))
                n.touch(write=True)
                if ended(failing.call(IOCTL, g.fd, posix.FICLONE, f.fd)):
                    g.content = bytearray(f.content)
                else:
                    g.is_one_of(g.content, f.content)
                holds()
                f.is_right("the file", m)
                g.is_right("the clone", n)
                m.write(7 * PAGE, page("m", 7))
                f.put(7 * PAGE, page("m", 7))
                f.is_right("the file, stored to", m)
                g.is_right("the clone, when the file was stored to", n)
    sweep(t, once)


def _changes(t, change, after=None, skew=0, errors=()):
    """A system call that changes a file which is mapped and dirty."""
    def once(failing):
        with File(t) as f, Map(f.fd, SIZE, skew=skew) as m:
            m.touch(0, PMD)
            m.write(5 * PAGE, page("m", 5))
            m.write(PMD + 7 * PAGE, page("m", 7))
            f.put(5 * PAGE, page("m", 5))
            f.put(PMD + 7 * PAGE, page("m", 7))
            wanted = bytearray(f.content)
            if after:
                after(wanted)
            if ended(failing.call(*change(f, m)), *errors):
                f.content = wanted
                f.is_one_of(wanted)
            else:
                f.is_one_of(f.content, wanted)
            holds()
            size = min(len(f.content), SIZE)
            same_bytes(m.read(0, size), f.content[:size], "the mapping")
            # Once more, with nothing failing.
            failing.number, number = 0, failing.number
            through = failing.through
            ended(failing.call(*change(f, m)), *errors)
            failing.number, failing.through = number, through
            holds("after a second time")
    sweep(t, once)


@case(fs=FS, timeout=600, spoils=ORPHANS)
def truncate(t):
    def cut(wanted):
        del wanted[PMD + 3 * PAGE + 100:]
    _changes(t, lambda f, m: (FTRUNCATE, f.fd, PMD + 3 * PAGE + 100), cut)


@case(fs=FS, timeout=600, spoils=ORPHANS)
def truncate_a_file_mapped_by_pages(t):
    def cut(wanted):
        del wanted[3 * PAGE + 100:]
    _changes(t, lambda f, m: (FTRUNCATE, f.fd, 3 * PAGE + 100), cut, skew=PAGE)


@case(fs=FS, timeout=600)
def punch_a_hole(t):
    start, length = 3 * PAGE + 100, 4 * PAGE

    def once(failing):
        with File(t) as f, Map(f.fd, SIZE) as m:
            m.touch(0, PMD)
            m.write(20 * PAGE, page("m", 20))
            f.put(20 * PAGE, page("m", 20))
            wanted = bytearray(f.content)
            wanted[start:start + length] = bytes(length)
            done = ended(failing.call(FALLOCATE, f.fd, posix.PUNCH_HOLE | posix.KEEP_SIZE, start,
                                      length))
            got = os.pread(f.fd, SIZE + 1, 0)
            same_bytes(got[:start] + got[start + length:],
                       f.content[:start] + f.content[start + length:], "around the hole")
            if done:
                same_bytes(got, wanted, "the file with its hole")
            # What was zeroed before the failure stays so.
            for at in range(start, start + length):
                check(got[at] in (0, f.content[at]), f"byte {at} is neither old nor zero")
            f.content = bytearray(got)
            holds()
            f.is_right("the file", m)
    sweep(t, once)


@case(fs=FS, timeout=600)
def collapse(t):
    def once(failing):
        with File(t) as f, Map(f.fd, SIZE) as m:
            m.touch(0, PMD)
            m.write(PMD + 7 * PAGE, page("m", 7))
            f.put(PMD + 7 * PAGE, page("m", 7))
            wanted = bytearray(f.content[PMD:])
            result = failing.call(FALLOCATE, f.fd, posix.COLLAPSE_RANGE, 0, PMD)
            if ended(result):
                f.is_one_of(wanted)
            else:
                # The blocks may be gone already, and what is behind them not moved yet.
                f.is_one_of(f.content, wanted, bytes(PMD) + bytes(f.content[PMD:]))
            holds()
            size = len(f.content)
            same_bytes(m.read(0, size), f.content, "the mapping")
    sweep(t, once)


@case(fs=FS, timeout=600)
def write_and_read(t):
    data = ctypes.create_string_buffer(pages("w", 600))
    room = ctypes.create_string_buffer(SIZE)

    def once(failing):
        with File(t, "unwritten") as f, Map(f.fd, SIZE) as m:
            m.touch(0, PMD)
            done = failing.call(PWRITE, f.fd, ctypes.addressof(data), 600 * PAGE, 100)
            written = failing.through
            if ended(done):
                f.put(100, pages("w", 600)[:done])
            holds()
            f.is_right("the file", m)
            done = failing.call(PREAD, f.fd, ctypes.addressof(room), SIZE, 0)
            if ended(done):
                same_bytes(room.raw[:done], f.content[:done], "what was read")
            failing.through = failing.through and written
    sweep(t, once)


@case(fs=FS, timeout=600)
def write_over_dirty_pages(t):
    data = ctypes.create_string_buffer(pages("w", 3))

    def once(failing):
        with File(t, "hole") as f, Map(f.fd, SIZE, skew=PAGE) as m:
            m.write(5 * PAGE, page("m", 5))
            f.put(5 * PAGE, page("m", 5))
            m.touch(0, 8 * PAGE)
            done = failing.call(PWRITE, f.fd, ctypes.addressof(data), 3 * PAGE, 4 * PAGE + 100)
            if ended(done):
                f.put(4 * PAGE + 100, pages("w", 3)[:done])
            holds()
            f.is_right("the file", m)
    sweep(t, once)


@case(fs=FS, timeout=600)
def fsync(t):
    _changes(t, lambda f, m: (FSYNC, f.fd))


@case(fs=FS, timeout=600)
def msync(t):
    _changes(t, lambda f, m: (MSYNC, m.address, SIZE, posix.MS_SYNC))


@case(fs=FS, timeout=600)
def munmap_of_a_part(t):
    def once(failing):
        with File(t) as f, Map(f.fd, SIZE) as m:
            m.write(5 * PAGE, page("m", 5))
            f.put(5 * PAGE, page("m", 5))
            ended(failing.call(MUNMAP, m.address + 3 * PAGE, PMD))
            holds()
            f.is_right()
    sweep(t, once)


@case(fs=FS, timeout=600)
def populate(t):
    def once(failing):
        with File(t, "unwritten") as f, Map(f.fd, SIZE, skew=PAGE) as m:
            result = failing.call(MADVISE, m.address, 8 * PAGE, posix.MADV_POPULATE_WRITE)
            check(result in (0, -errno.ENOMEM, -errno.EFAULT),
                  f"MADV_POPULATE_WRITE failed with {errno.errorcode.get(-result, result)}")
            holds()
            f.is_right("the file", m)
    sweep(t, once)


@case(fs=FS, timeout=600, spoils=ORPHANS)
def unlink_and_close(t):
    """The last name and the last user go."""
    def once(failing):
        f = File(t)
        with Map(f.fd, SIZE) as m:
            m.touch(write=True)
        path = _text(f.path)
        gone = ended(failing.call(UNLINK, ctypes.addressof(path)))
        unlinked = failing.through
        failing.call(CLOSE, f.fd)
        failing.through = failing.through and unlinked
        holds()
        if not gone:
            os.unlink(f.path)
    sweep(t, once)


@case(fs=(), timeout=600)
def adopt_and_release(t):
    _adopt_and_release(t)


@case(fs=(), timeout=600)
def adopt_the_first_and_release_the_last(t):
    """The kernel's functions are redirected, and given back."""
    other = "pmem0"
    was = device.adopted(other)
    if was:
        write(f"{CONFIG}/{other}/adopt", "0")
    try:
        _adopt_and_release(t)
    finally:
        if was:
            write(f"{CONFIG}/{other}/adopt", "1")


def _adopt_and_release(t):
    name = "pmem1"
    if not device.exists(name):
        raise Skip(f"there is no {name}")
    item = f"{CONFIG}/{name}"
    was = device.adopted(name)
    if was:
        write(f"{item}/adopt", "0")
        os.rmdir(item)
    path, one, zero = _text(item), _text("1"), _text("0")

    def once(failing):
        through = []

        def call(*args):
            result = failing.call(*args)
            through.append(failing.through)
            return ended(result)

        if not call(MKDIR, ctypes.addressof(path), 0o755):
            check(not os.path.exists(item), "mkdir failed, but made a directory")
            os.mkdir(item)
        fd = os.open(f"{item}/adopt", os.O_WRONLY)
        done = call(WRITE, fd, ctypes.addressof(one), 1)
        check((read(f"{item}/adopt") == "1") == done, "adopt says something else than it did")
        os.close(fd)
        if not done:
            write(f"{item}/adopt", "1")
        holds("after adoption")
        fd = os.open(f"{item}/adopt", os.O_WRONLY)
        done = call(WRITE, fd, ctypes.addressof(zero), 1)
        check((read(f"{item}/adopt") == "0") == done, "adopt says something else than it did")
        os.close(fd)
        if not done:
            write(f"{item}/adopt", "0")
        if not call(RMDIR, ctypes.addressof(path)):
            os.rmdir(item)
        failing.through = all(through)

    try:
        sweep(t, once)
    finally:
        if was:
            os.makedirs(item, exist_ok=True)
            write(f"{item}/adopt", "1")
