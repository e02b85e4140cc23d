# SPDX-License-Identifier: GPL-2.0
"""Mappings that are copied, moved, protected and guarded."""

import ctypes
import errno
import fcntl
import os

from lib import posix, uffd
from lib.check import check, same_bytes
from lib.mapping import Map
from lib.pattern import page
from lib.posix import PAGE, PMD
from lib.runner import case
from .common import FS, IOCTL, MADVISE, MREMAP, SIZE, Bytes, Calls, File, answer, ended, holds, sweep


def _fork(t, skew=0, private=False, protected=False):
    """The child loads from each page. A few allocations are made for each of a process's some two hundred areas
    of memory, nearly all of which are others."""
    def once(failing):
        with File(t) as f, Map(f.fd, SIZE, skew=skew,
                               flags=posix.MAP_PRIVATE if private else posix.MAP_SHARED) as m:
            wanted = f.content
            if private:
                m.touch(0, PMD)
                wanted = bytearray(f.content)
                for at in range(PAGE, SIZE, 97 * PAGE):
                    m.write(at, page("p", at // PAGE))
                    wanted[at:at + PAGE] = page("p", at // PAGE)
            else:
                f.store_through(m)
            if protected:
                # So the kernel copies page tables in place of leaving it to the child's faults.
                with uffd.Protected(m):
                    m.write(9 * PAGE, page("w", 9))
                    f.put(9 * PAGE, page("w", 9))
                    result = failing.fork(m.address, SIZE)
            else:
                result = failing.fork(m.address, SIZE)
            ended(result, errno.EAGAIN)
            holds()
            same_bytes(m.read(0, SIZE), wanted, "the mapping")
            f.is_right()
        return answer(min(result, 0))
    sweep(t, once, rows=True, step=7)


@case(fs=FS, timeout=1500)
def fork_of_2_mib(t):
    _fork(t)


@case(fs=FS, timeout=1500)
def fork_of_pages(t):
    _fork(t, skew=PAGE)


@case(fs=FS, timeout=1500)
def fork_of_private_2_mib(t):
    _fork(t, private=True)


@case(fs=FS, timeout=1500)
def fork_of_private_pages(t):
    _fork(t, skew=PAGE, private=True)


@case(fs=FS, timeout=1500)
def fork_of_write_protected(t):
    _fork(t, protected=True)


def _move(t, skew, to_skew):
    def once(failing):
        with File(t) as f, Map(f.fd, SIZE, skew=skew) as m, \
                Map(-1, 2 * SIZE, flags=posix.MAP_PRIVATE | posix.MAP_ANONYMOUS, prot=posix.PROT_NONE) as room:
            f.store_through(m)
            to, flags = room.address + to_skew, posix.MREMAP_MAYMOVE | posix.MREMAP_FIXED
            result = failing.call(MREMAP, m.address, SIZE, SIZE, flags, to)
            moved = ended(result)
            holds()
            at = to if moved else m.address
            same_bytes(ctypes.string_at(at, SIZE), f.content, "the mapping")
            ctypes.memset(at + 3 * PAGE, 0x5a, PAGE)
            f.put(3 * PAGE, b"\x5a" * PAGE)
            f.is_right()
            if not moved:
                posix.mremap(m.address, SIZE, SIZE, flags, to)
                same_bytes(ctypes.string_at(to, SIZE), f.content, "the mapping, moved")
            holds("at the end")
        return answer(min(result, 0))
    sweep(t, once, rows=True)


@case(fs=FS, timeout=900)
def move_of_2_mib(t):
    _move(t, 0, 0)


@case(fs=FS, timeout=900)
def move_of_2_mib_to_where_none_fit(t):
    _move(t, 0, PAGE)


@case(fs=FS, timeout=900)
def move_of_pages(t):
    _move(t, PAGE, PAGE)


@case(fs=FS, timeout=900)
def guards(t):
    def once(failing):
        calls = Calls(failing)
        with File(t) as f, Map(f.fd, SIZE) as m:
            f.store_through(m)
            place = m.address + 9 * PAGE, 4 * PAGE
            calls.call(MADVISE, *place, posix.MADV_GUARD_INSTALL)
            holds()
            if calls.call(MADVISE, *place, posix.MADV_GUARD_REMOVE) < 0:
                posix.madvise(*place, posix.MADV_GUARD_REMOVE)
            holds()
            f.is_right("the file", m)
        return calls.end()
    sweep(t, once, rows=True)


@case(fs=FS, timeout=900)
def write_protection(t):
    """Of all but the first page, so 2 MiB are split; it is registered, protected, and given up."""
    def once(failing):
        calls = Calls(failing)
        with File(t) as f, Map(f.fd, SIZE) as m:
            f.store_through(m)
            protected = uffd.Protected(m)
            for number, argument in (protected.register_request(), protected.protect_request(PAGE),
                                     protected.protect_request(PAGE, protect=False)):
                room = Bytes(argument)
                done = calls.call(IOCTL, protected.fd, number, room.address,
                                  others=(errno.EAGAIN, errno.EFAULT))
                if done < 0:
                    holds()
                    fcntl.ioctl(protected.fd, number, bytearray(argument))
                holds()
            m.write(20 * PAGE, page("u", 20))
            f.put(20 * PAGE, page("u", 20))
            os.close(protected.fd)
            holds()
            f.is_right("the file", m)
        return calls.end()
    sweep(t, once, rows=True)


@case(fs=FS, timeout=900)
def scan_that_protects(t):
    """PAGEMAP_SCAN that write-protects what was written to."""
    pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)

    def once(failing):
        with File(t) as f, Map(f.fd, SIZE) as m, uffd.Protected(m):
            f.store_through(m)
            request, argument = m.protect_written_request()
            argument = Bytes(argument)
            result = failing.call(IOCTL, pagemap, request, argument.address)
            ended(result)
            holds()
            m.write(5 * PAGE, page("v", 5))
            f.put(5 * PAGE, page("v", 5))
            f.is_right("the file", m)
        return answer(min(result, 0))
    sweep(t, once, rows=True)
    os.close(pagemap)


@case(fs=FS, timeout=900)
def store_to_write_protected_2_mib(t):
    """It is split by the fault."""
    def once(failing):
        with File(t) as f, Map(f.fd, SIZE) as m:
            f.store_through(m)
            with uffd.Protected(m):
                failing.touch(m, 9 * PAGE, 1, PAGE, 0x66)
                f.put(9 * PAGE, b"\x66")
                holds()
                check(9 in m.written(), "the store is not noted")
                f.is_right("the file", m)
    sweep(t, once, rows=True)
