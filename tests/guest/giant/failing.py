# SPDX-License-Identifier: GPL-2.0
"""Allocations that fail while a file is mapped by 1 GiB: the first, the second, and so on until the operation
needs no more, and several in a row."""

import ctypes
import errno
import os

from lib import gib, posix, uffd
from lib.check import equal
from lib.gib import GibMap
from lib.mapping import Map
from lib.posix import GIB, PAGE, PMD
from lib.runner import case
from sweep.common import (FALLOCATE, FSYNC, FTRUNCATE, IOCTL, MADVISE, MPROTECT, MREMAP, MUNMAP,
                          PROCESS_VM_READV, VMSPLICE, Bytes, Calls, holds, sweep, vectors)
from .common import check_folio_idle

PUDS = dict(fs=("xfs-1g", "ext4-1g"), timeout=1200)
ALSO = (errno.EAGAIN, errno.EFAULT, errno.EBUSY)
# Where an operation takes a part of the mapping: its pages are mapped by themselves afterwards.
PART = 7 * PMD

_room = Bytes(bytes(64 * PAGE))


def failing(act):
    """A case: act(calls, fd, m) does something with a file of 1 GiB and its mapping by one entry."""
    def run(t):
        fd = gib.borrow(t)
        first = gib.frame(t, fd)

        def once(failures):
            calls = Calls(failures)
            with GibMap(fd) as m:
                m.touch(5 * PAGE, 1, write=True)
                act(calls, fd, m)
                holds()
                for at in (0, PART // PAGE, GIB // PAGE - 8):
                    gib.expect(m, 1, at, 8)
            check_folio_idle(first, "after munmap")
            holds("after munmap")
            return calls.end()
        sweep(t, once, rows=True)
        os.fsync(fd)
        os.close(fd)
    run.__name__ = f"failing_{act.__name__}"
    case(**PUDS)(run)
    return act


def _touch(calls, m, offset=PART + PAGE, length=1, step=PAGE, value=-1):
    calls.failing.touch(m, offset, length, step, value)
    calls.did(0)


def _advise(calls, m, advice, at=PART, length=PAGE):
    done = calls.call(MADVISE, m.address + at, length, advice, others=(*ALSO, errno.EINVAL))
    _touch(calls, m)
    return done


@failing
def loads(calls, _fd, m):
    m.advise(posix.MADV_DONTNEED)
    _touch(calls, m, 5 * PAGE, GIB - 5 * PAGE, GIB // 4)


@failing
def stores(calls, _fd, m):
    m.advise(posix.MADV_DONTNEED)
    _touch(calls, m, 5 * PAGE, GIB - 5 * PAGE, GIB // 4, 7)
    for at in range(5 * PAGE, GIB, GIB // 4):
        gib.store(m, 1, at // PAGE, 1)


@failing
def advice_dontneed(calls, _fd, m):
    _advise(calls, m, posix.MADV_DONTNEED)


@failing
def advice_dontneed_for_all(calls, _fd, m):
    _advise(calls, m, posix.MADV_DONTNEED, 0, GIB)


@failing
def guards(calls, _fd, m):
    place = m.address + PART, PAGE
    calls.call(MADVISE, *place, posix.MADV_GUARD_INSTALL, others=ALSO)
    _touch(calls, m)
    posix.madvise(*place, posix.MADV_GUARD_REMOVE)


@failing
def advice_cold(calls, _fd, m):
    _advise(calls, m, 20)


@failing
def advice_populate(calls, _fd, m):
    _advise(calls, m, posix.MADV_POPULATE_READ, 0, GIB)


@failing
def mprotect(calls, _fd, m):
    calls.call(MPROTECT, m.address + PART, PAGE, posix.PROT_READ)
    _touch(calls, m)


@failing
def fork(calls, _fd, m):
    calls.did(calls.failing.fork(m.address, 64 * PAGE), errno.EAGAIN)


@failing
def fork_of_write_protected(calls, _fd, m):
    with uffd.Protected(m, protect=False) as protected:
        protected.protect(PART, PAGE)
        calls.did(calls.failing.fork(m.address, 64 * PAGE), errno.EAGAIN)


@failing
def write_protection(calls, _fd, m):
    with uffd.Protected(m, protect=False) as protected:
        request, argument = protected.protect_request(PART, 4 * PAGE)
        argument = Bytes(argument)
        calls.call(IOCTL, protected.fd, request, argument.address, others=ALSO)


@failing
def move(calls, fd, m):
    flags = posix.MREMAP_MAYMOVE | posix.MREMAP_FIXED
    with Map(-1, GIB, align=GIB, prot=posix.PROT_NONE,
             flags=posix.MAP_PRIVATE | posix.MAP_ANONYMOUS | posix.MAP_NORESERVE) as room:
        if calls.call(MREMAP, m.address, GIB, GIB, flags, room.address) > 0:
            equal(ctypes.string_at(room.address + 9 * PAGE, 8), os.pread(fd, 8, 9 * PAGE), "what was moved")
            posix.mremap(room.address, GIB, GIB, flags, m.address)


@failing
def munmap(calls, fd, m):
    at, length = 100 * PMD, 3 * PAGE
    done = calls.call(MUNMAP, m.address + at, length)
    _touch(calls, m)
    if done == 0:
        posix.mmap(m.address + at, length, posix.PROT_RW, posix.MAP_SHARED | posix.MAP_FIXED, fd, at)


@failing
def fsync(calls, fd, _m):
    calls.call(FSYNC, fd)


@failing
def truncate_behind(calls, fd, _m):
    """The file grows, and shrinks again."""
    calls.call(FTRUNCATE, fd, GIB + PAGE)
    calls.call(FTRUNCATE, fd, GIB)
    os.ftruncate(fd, GIB)


@failing
def hole_behind(calls, fd, _m):
    calls.call(FALLOCATE, fd, posix.PUNCH_HOLE | posix.KEEP_SIZE, GIB, PMD)


@failing
def process_vm_readv(calls, _fd, m):
    to, source = vectors((_room.address, 64 * PAGE)), vectors((m.address + PART, 64 * PAGE))
    calls.call(PROCESS_VM_READV, os.getpid(), to.address, 1, source.address, 1, 0, others=ALSO)


@failing
def pipe(calls, _fd, m):
    out, into = os.pipe()
    source = vectors((m.address + PART, 9 * PAGE))
    calls.call(VMSPLICE, into, source.address, 1, 0, others=ALSO)
    os.close(out)
    os.close(into)
