# SPDX-License-Identifier: GPL-2.0
"""Allocations that fail, and the file that operations are done on."""

import ctypes
import errno
import os
import struct

from lib import invariants, native, posix
from lib.check import Failure, Skip, check, same_bytes
from lib.device import read, write
from lib.mapping import SIGBUS
from lib.pattern import page, pages
from lib.posix import PAGE, PMD

FS = ("xfs", "ext4")
# ext4 may leave a file among its orphans when it has no memory to cut it, for its next mount to clear.
ORPHANS = ("ext4",)
SIZE = 2 * PMD
COUNT = SIZE // PAGE

# System calls.
WRITE, OPEN, CLOSE, MPROTECT, MUNMAP, IOCTL, PREAD, PWRITE = 1, 2, 3, 10, 11, 16, 17, 18
MREMAP, MSYNC, MADVISE, SENDFILE, FSYNC, FTRUNCATE, MKDIR, RMDIR = 25, 26, 28, 40, 74, 77, 83, 84
UNLINK, MOUNT, UMOUNT, SPLICE, VMSPLICE, FALLOCATE = 87, 165, 166, 275, 278, 285
PROCESS_VM_READV, MLOCK2, COPY_FILE_RANGE = 310, 325, 326

DEBUG = "/sys/kernel/debug"
KINDS = ("failslab", "fail_page_alloc")
_BEFORE = {"failslab/ignore-gfp-wait": "N", "failslab/verbose": "0", "failslab/probability": "0",
           "fail_page_alloc/ignore-gfp-wait": "N", "fail_page_alloc/ignore-gfp-highmem": "N",
           "fail_page_alloc/min-order": "0", "fail_page_alloc/verbose": "0",
           "fail_page_alloc/probability": "0"}

# More allocations than any operation makes.
MOST = 2000
# So many fail in a row.
ROWS = (2, 3, 5, 8, 13, 21, 40)


class Failing:
    """Does things with one allocation failing."""

    def __init__(self):
        if not os.path.exists("/proc/self/fail-nth"):
            raise Skip("this kernel cannot make allocations fail")
        if not invariants.can_be_checked():
            raise Skip("the module was not built to check what must hold")
        for name, value in _BEFORE.items():
            write(f"{DEBUG}/{name}", value)
        self.lib = ctypes.CDLL(native.path("sweep.so"))
        unsigned, size = ctypes.c_uint, ctypes.c_size_t
        left = ctypes.POINTER(unsigned)
        self.lib.sweep_call.argtypes = [ctypes.c_int, unsigned, left, ctypes.c_long,
                                        ctypes.POINTER(ctypes.c_long)]
        self.lib.sweep_call.restype = ctypes.c_long
        self.lib.sweep_touch.argtypes = [ctypes.c_int, unsigned, left, ctypes.c_void_p, size, size,
                                         ctypes.c_int]
        self.lib.sweep_fork.argtypes = [ctypes.c_int, unsigned, left, ctypes.c_void_p, size]
        self.lib.sweep_fork.restype = ctypes.c_long
        self.fd = self._open()
        self.number = 0
        # Whether the operation ended before the allocation that was to fail.
        self.through = False

    def _open(self):
        return os.open("/proc/self/fail-nth", os.O_RDWR)

    def _do(self, function, *arguments, quiet=False):
        """One of the library's functions; with `quiet` nothing fails, and `through` stays as it is."""
        left = ctypes.c_uint()
        result = function(self.fd, 0 if quiet else self.number, left, *arguments)
        if not quiet:
            self.through = left.value > 0
        return result

    def call(self, number, *args, quiet=False):
        """The result of a system call, or a negative errno."""
        return self._do(self.lib.sweep_call, number, (ctypes.c_long * 6)(*args), quiet=quiet)

    def fork(self, address, length):
        """The number of a child, which has loaded from each page and is gone, or a negative errno."""
        return self._do(self.lib.sweep_fork, address, length)

    def touch(self, mapping, offset=0, length=1, step=PAGE, value=-1):
        """Load, or store the value. The kernel tries again what failed for want of memory; but a
        filesystem that lacks it before it gives the fault to DAX may answer SIGBUS (ext4 does).
        Then it is done again with nothing failing."""
        access = (mapping.address + offset, length, step, value)
        signal = self._do(self.lib.sweep_touch, *access)
        if signal == SIGBUS and not self.through:
            holds()
            signal = self._do(self.lib.sweep_touch, *access, quiet=True)
        check(not signal, f"the access got signal {signal}")


class FailingRow(Failing):
    """Does things with the first `number` allocations failing, of the slab and of pages each."""

    def __init__(self):
        super().__init__()
        for kind in KINDS:
            for name, value in (("task-filter", "Y"), ("interval", "1"), ("space", "0")):
                write(f"{DEBUG}/{kind}/{name}", value)

    def _open(self):
        # In place of the number: whether this task's allocations can fail.
        return os.open("/proc/self/make-it-fail", os.O_RDWR)

    def _do(self, function, *arguments, quiet=False):
        if quiet or not self.number:
            return function(self.fd, 0, ctypes.c_uint(), *arguments)
        for kind in KINDS:
            write(f"{DEBUG}/{kind}/times", str(self.number))
            write(f"{DEBUG}/{kind}/probability", "100")
        try:
            return function(self.fd, 1, ctypes.c_uint(), *arguments)
        finally:
            left = [int(read(f"{DEBUG}/{kind}/times")) for kind in KINDS]
            for kind in KINDS:
                write(f"{DEBUG}/{kind}/probability", "0")
            self.through = left == [self.number] * len(KINDS)


def sweep(t, once, rows=False, step=1):
    """once(failing) prepares, does the operation once, checks, and cleans up; until it passes, and with `rows`
    once more for each row of failures. What it returns is counted for the log. With a step only so many of the
    allocations fail, from one on that the seed says."""
    answers = {}

    def turn(failing, what):
        try:
            answer = str(once(failing))
        except Failure as failure:
            raise Failure(f"with {what} failing: {failure}") from failure
        answers[answer] = answers.get(answer, 0) + 1

    failing = Failing()
    for failing.number in range(1 + t.settings.seed % step, MOST, step):
        turn(failing, f"allocation {failing.number}")
        if failing.through:
            t.note(f"{failing.number - 1} allocations" + (f", one of {step} fails" if step > 1 else ""))
            break
    else:
        raise Failure(f"did not end with {MOST} allocations")
    if rows:
        os.close(failing.fd)
        failing = FailingRow()
        for failing.number in ROWS:
            turn(failing, f"the first {failing.number} allocations")
            # Nothing is allocated at all.
            if failing.through:
                break
        t.note(f"answers: {answers}")
    os.close(failing.fd)


def holds(when="after the failure"):
    found = invariants.violations()
    check(not found, f"violations {when}:\n{found}")


def answer(result):
    """A result in words."""
    return errno.errorcode.get(-result, str(result)) if result < 0 else "done"


def ended(result, *others):
    """The call succeeded, or failed for want of memory."""
    check(result >= 0 or -result in (errno.ENOMEM, *others), f"the call failed with {answer(result)}")
    return result >= 0


class Calls:
    """Several calls in one turn, each of which has the allocation that fails."""

    def __init__(self, failing):
        self.failing, self.answers = failing, []
        self._through = True

    def call(self, number, *args, others=()):
        """The result, if it is one that may be."""
        return self.did(self.failing.call(number, *args), *others)

    def did(self, result, *others):
        ended(result, *others)
        self._through = self._through and self.failing.through
        self.answers.append(answer(result))
        return result

    def end(self):
        """All answers. The turn is the last if none of the calls had so many allocations."""
        self.failing.through = self._through
        return tuple(self.answers)


def path_argument(path):
    """A path for a system call, kept alive by its owner."""
    return ctypes.create_string_buffer(os.fsencode(path))


class Bytes:
    """What a system call is given or gives, in memory that stays where it is."""

    def __init__(self, data):
        self.room = ctypes.create_string_buffer(bytes(data), len(data))
        self.address = ctypes.addressof(self.room)


def vectors(*pairs):
    """The struct iovec for some addresses and lengths."""
    return Bytes(b"".join(struct.pack("QQ", *pair) for pair in pairs))


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

    def store_through(self, m):
        """Map all of it by a mapping, and store to a page of each half."""
        m.touch(0, PMD)
        for at in (5 * PAGE, PMD + 7 * PAGE):
            m.write(at, page("m", at // PAGE))
            self.put(at, page("m", at // PAGE))

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
