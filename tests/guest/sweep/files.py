# SPDX-License-Identifier: GPL-2.0
"""Ranges that are allocated, zeroed and inserted; what goes from one file to another, through a pipe, or to and
from memory that is not there yet."""

import errno
import os

from lib import posix
from lib.check import check, same_bytes
from lib.mapping import Map
from lib.pattern import page, pages
from lib.posix import PAGE, PMD
from lib.runner import case
from .common import (COPY_FILE_RANGE, FALLOCATE, FS, IOCTL, PREAD, PWRITE, SENDFILE, SIZE, SPLICE, VMSPLICE,
                     Bytes, Calls, File, answer, ended, holds, sweep, vectors)


def _fallocate(t, mode, start, length, change):
    """change(content) makes what the file has afterwards of what it had before."""
    def once(failing):
        with File(t) as f, Map(f.fd, SIZE) as m:
            f.store_through(m)
            wanted = bytearray(f.content)
            change(wanted)
            result = failing.call(FALLOCATE, f.fd, mode, start, length)
            got = os.pread(f.fd, 4 * SIZE, 0)
            if ended(result):
                same_bytes(got, wanted, "the file, changed")
            holds()
            size = min(len(got), SIZE)
            same_bytes(m.read(0, size), got[:size], "the mapping")
            m.write(11 * PAGE, page("z", 11))
            same_bytes(os.pread(f.fd, PAGE, 11 * PAGE), page("z", 11), "a store afterwards")
            os.fsync(f.fd)
        return answer(result)
    sweep(t, once, rows=True)


@case(fs=FS, timeout=900)
def insert_range(t):
    def change(content):
        content[PMD:PMD] = bytes(PMD)
    _fallocate(t, posix.INSERT_RANGE, PMD, PMD, change)


def _zeroed(content):
    content[3 * PAGE + 100:12 * PAGE + 100] = bytes(9 * PAGE)


@case(fs=FS, timeout=900)
def zero_range(t):
    _fallocate(t, posix.ZERO_RANGE, 3 * PAGE + 100, 9 * PAGE, _zeroed)


@case(fs=FS, timeout=900)
def zero_range_that_keeps_the_size(t):
    _fallocate(t, posix.ZERO_RANGE | posix.KEEP_SIZE, 3 * PAGE + 100, 9 * PAGE, _zeroed)


@case(fs=FS, timeout=900)
def allocation_behind_the_end(t):
    _fallocate(t, 0, SIZE, PMD, lambda content: content.extend(bytes(PMD)))


def _between(t, act, others=()):
    """Two files that are mapped. act(f, g) gives the call, what it is to keep alive, and a function of what
    both had and of the result: what they may have afterwards."""
    def once(failing):
        with File(t) as f, File(t, name="other") as g, Map(f.fd, SIZE) as m, Map(g.fd, SIZE) as n:
            m.write(5 * PAGE, page("m", 5))
            n.touch(write=True)
            number, arguments, _kept, after = act(f, g)
            before = os.pread(f.fd, SIZE, 0), os.pread(g.fd, SIZE, 0)
            result = failing.call(number, *arguments)
            done = ended(result, *others)
            holds()
            got = os.pread(f.fd, SIZE, 0), os.pread(g.fd, SIZE, 0)
            wanted = after(*before, result)
            check(got in wanted or (not done and got == before), f"the files' contents after {answer(result)}")
            same_bytes(m.read(0, SIZE), got[0], "the first, mapped")
            same_bytes(n.read(0, SIZE), got[1], "the second, mapped")
            m.write(6 * PAGE, page("m", 66))
            n.write(7 * PAGE, page("n", 77))
            for fd, at, data, what in ((f.fd, 6, page("m", 66), "the first, stored to"),
                                       (f.fd, 7, got[0][7 * PAGE:8 * PAGE], "the first, beside it"),
                                       (g.fd, 7, page("n", 77), "the second, stored to"),
                                       (g.fd, 6, got[1][6 * PAGE:7 * PAGE], "the second, beside it")):
                same_bytes(os.pread(fd, PAGE, at * PAGE), data, what)
            os.fsync(f.fd)
            os.fsync(g.fd)
        return answer(result)
    sweep(t, once, rows=True)


@case(fs=("xfs",), timeout=900)
def dedupe(t):
    def act(f, g):
        os.pwrite(g.fd, os.pread(f.fd, PMD, 0), 0)
        request = Bytes(posix.dedupe_request(0, PMD, g.fd, 0))
        return IOCTL, (f.fd, posix.FIDEDUPERANGE, request.address), request, lambda a, b, _: [(a, b)]
    _between(t, act)


@case(fs=("xfs",), timeout=900)
def clone_of_a_range(t):
    def act(f, g):
        request = Bytes(posix.clone_range_request(f.fd, 0, PMD, PMD))
        arguments = g.fd, posix.FICLONERANGE, request.address
        return IOCTL, arguments, request, lambda a, b, _: [(a, b[:PMD] + a[:PMD])]
    _between(t, act)


@case(fs=FS, timeout=900)
def copy_file_range(t):
    def act(f, g):
        start, to = Bytes((0).to_bytes(8, "little")), Bytes(PMD.to_bytes(8, "little"))

        def copied(a, b, done):
            # A copy that fails may have copied some of it.
            return ((a, b[:PMD] + a[:size] + b[PMD + size:])
                    for size in ([done] if done >= 0 else range(0, PMD + 1, PAGE)))
        return COPY_FILE_RANGE, (f.fd, start.address, g.fd, to.address, PMD, 0), (start, to), copied
    _between(t, act)


@case(fs=("xfs",), timeout=900)
def swap_of_extents(t):
    def act(f, g):
        request = Bytes(posix.swap_extents_request(f.fd, g.fd))
        return IOCTL, (f.fd, posix.XFS_IOC_SWAPEXT, request.address), request, lambda a, b, _: [(b, a)]
    # Files that are mapped may not be what it is for.
    _between(t, act, (errno.EBUSY, errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL))


@case(fs=("xfs",), timeout=900)
def exchange_of_ranges(t):
    def act(f, g):
        request = Bytes(posix.exchange_range_request(g.fd, 0, SIZE))
        return IOCTL, (f.fd, posix.XFS_IOC_EXCHANGE_RANGE, request.address), request, lambda a, b, _: [(b, a)]
    _between(t, act, (errno.EBUSY, errno.EAGAIN, errno.EOPNOTSUPP))


@case(fs=FS, timeout=900)
def pipes(t):
    """Pages of the mapping and of the file are put into a pipe; and what is in one into the file."""
    start, there = bytes(8), (9 * PAGE).to_bytes(8, "little")

    def once(failing):
        calls = Calls(failing)
        with File(t) as f, Map(f.fd, SIZE, skew=PAGE) as m:
            f.store_through(m)
            for number, arguments in (
                    (VMSPLICE, lambda into: (into, vectors((m.address, 9 * PAGE)), 1, 0)),
                    (SPLICE, lambda into: (f.fd, Bytes(start), into, 0, 9 * PAGE, 0)),
                    (SENDFILE, lambda into: (into, f.fd, Bytes(start), 9 * PAGE))):
                out, into = os.pipe()
                kept = arguments(into)
                done = calls.call(number, *[getattr(each, "address", each) for each in kept],
                                  others=(errno.EFAULT, errno.EAGAIN))
                if done > 0:
                    same_bytes(os.read(out, done), f.content[:done], "what is in the pipe")
                os.close(out)
                os.close(into)
                holds()
            out, into = os.pipe()
            os.write(into, pages("q", 3))
            offset = Bytes(there)
            done = calls.call(SPLICE, out, 0, f.fd, offset.address, 3 * PAGE, 0)
            if done > 0:
                f.put(9 * PAGE, pages("q", 3)[:done])
            os.close(out)
            os.close(into)
            holds()
            f.is_right("the file", m)
        return calls.end()
    sweep(t, once, rows=True)


def _missing():
    """Memory whose pages are not there."""
    return Map(-1, SIZE, flags=posix.MAP_PRIVATE | posix.MAP_ANONYMOUS)


@case(fs=FS, timeout=900)
def buffers_that_are_not_there(t):
    def once(failing):
        calls = Calls(failing)
        with File(t) as f, Map(f.fd, SIZE) as m, _missing() as buffer:
            f.store_through(m)
            done = calls.call(PREAD, f.fd, buffer.address + 77, 70 * PAGE, 100, others=(errno.EFAULT,))
            if done > 0:
                same_bytes(buffer.read(77, done), f.content[100:100 + done], "what was read")
            holds()
            buffer.advise(posix.MADV_DONTNEED)
            done = calls.call(PWRITE, f.fd, buffer.address + 77, 70 * PAGE, 100, others=(errno.EFAULT,))
            if done > 0:
                f.put(100, bytes(done))
            holds()
            f.is_right("the file", m)
        return calls.end()
    sweep(t, once, rows=True)


class Clones:
    """Two files that share all their blocks, and a mapping of each."""

    def __init__(self, t):
        self.files = File(t), File(t, "hole", "clone")
        posix.clone(self.files[0].fd, self.files[1].fd)
        self.files[1].content = bytearray(self.files[0].content)
        self.maps = [Map(each.fd, SIZE) for each in self.files]
        for m in self.maps:
            m.touch(0, SIZE)

    def __enter__(self):
        return self.files[0], self.maps[0]

    def are_right(self):
        for each, m, what in zip(self.files, self.maps, ("the file", "the clone"), strict=True):
            each.is_right(what, m)

    def __exit__(self, *_):
        for each, m in zip(self.files, self.maps, strict=True):
            m.unmap()
            each.__exit__()


def _write_to_clone(t, own):
    """From memory that is not there, or from a mapping of the very blocks."""
    def once(failing):
        clones = Clones(t)
        with clones as (f, m), _missing() as buffer:
            source = (m if own else buffer).address + 5 * PAGE
            data = bytes(f.content[5 * PAGE:75 * PAGE]) if own else bytes(70 * PAGE)
            at = 100 + (200 * PAGE if own else 0)
            done = failing.call(PWRITE, f.fd, source, 70 * PAGE, at)
            if ended(done, errno.EFAULT):
                f.put(at, data[:done])
            f.is_one_of(f.content)
            holds()
            clones.are_right()
            os.fsync(f.fd)
        return answer(done)
    sweep(t, once, rows=True)


@case(fs=("xfs",), timeout=900)
def write_to_clone_from_memory_that_is_not_there(t):
    _write_to_clone(t, False)


@case(fs=("xfs",), timeout=900)
def write_to_clone_from_its_own_mapping(t):
    _write_to_clone(t, True)


def _zero_clone(t, mode):
    at, length = 3 * PAGE + 100, 600 * PAGE

    def once(failing):
        clones = Clones(t)
        with clones as (f, _):
            wanted = bytearray(f.content)
            wanted[at:at + length] = bytes(length)
            done = failing.call(FALLOCATE, f.fd, mode | posix.KEEP_SIZE, at, length)
            got = os.pread(f.fd, SIZE, 0)
            if ended(done):
                same_bytes(got, wanted, "the file, zeroed")
            same_bytes(got[:at] + got[at + length:], wanted[:at] + wanted[at + length:], "around it")
            f.content = bytearray(got)
            holds()
            clones.are_right()
        return answer(done)
    sweep(t, once, rows=True)


@case(fs=("xfs",), timeout=900)
def zeroes_in_a_part_of_a_clone(t):
    _zero_clone(t, posix.ZERO_RANGE)


@case(fs=("xfs",), timeout=900)
def hole_in_a_part_of_a_clone(t):
    _zero_clone(t, posix.PUNCH_HOLE)
