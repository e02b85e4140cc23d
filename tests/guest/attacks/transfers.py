# SPDX-License-Identifier: GPL-2.0
"""Calls that move what is in a part of a mapping, or ask about it, and leave the file as it was."""

import ctypes
import fcntl
import os
import signal
import struct

from lib import native, posix
from lib.check import same_bytes
from lib.posix import PAGE
from lib.ptrace import peek, poke, trace_me

PAGEMAP_SCAN = 0xC0606610


def _at(m, part):
    return m.address + part[0], part[1]


def _pread(m, part):
    posix.pread_to(m.file, *_at(m, part), part[0])


def _pwrite(m, part):
    posix.pwrite_from(m.file, *_at(m, part), part[0])


def _uring():
    # Compiled by somebody with the right to do so.
    return ctypes.CDLL(f"{native.BUILD}/uring.so")


def _by_uring(write):
    def call(m, part):
        lib = _uring()
        lib.uring_transfer.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t,
                                       ctypes.c_size_t, ctypes.c_int]
        lib.uring_transfer.restype = ctypes.c_long
        _must(lib.uring_transfer(m.file, *_at(m, part), part[0], write))
    return call


def _populate_by_uring(m, part):
    lib = _uring()
    lib.uring_populate.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    lib.uring_populate.restype = ctypes.c_long
    _must(lib.uring_populate(*_at(m, part)))


def _must(result):
    if result < 0:
        raise OSError(-result, os.strerror(-result))


def _memfd(m, part):
    """Out of the mapping, and back."""
    address, length = _at(m, part)
    memory = os.memfd_create("part")
    try:
        length = posix.pwrite_from(memory, address, length, 0)
        posix.pread_to(memory, address, length, 0)
    finally:
        os.close(memory)


def _sendfile(m, part):
    memory = os.memfd_create("part")
    try:
        sent = os.sendfile(memory, m.file, *part)
        same_bytes(os.pread(memory, sent, 0), os.pread(m.file, sent, part[0]), "what was sent")
    finally:
        os.close(memory)


def _splice(m, part):
    """From the file, and from the mapping by way of a second pipe."""
    length = min(part[1], 8 * PAGE)
    pipe, other, memory = os.pipe(), os.pipe(), os.memfd_create("part")
    try:
        done = os.splice(m.file, pipe[1], length, offset_src=part[0])
        os.read(pipe[0], done)
        done = posix.vmsplice(pipe[1], m.address + part[0], length)
        # tee
        posix.syscall(276, pipe[0], other[1], done, 0)
        os.splice(other[0], memory, done)
        os.splice(pipe[0], memory, done)
    finally:
        for fd in (*pipe, *other, memory):
            os.close(fd)


def _copy_file_range(m, part):
    with open(f"{m.own}/copy", "w+b") as copy:
        done = os.copy_file_range(m.file, copy.fileno(), part[1], part[0], 0)
        same_bytes(os.pread(copy.fileno(), done, 0), os.pread(m.file, done, part[0]), "the copy")
    os.unlink(f"{m.own}/copy")


def _cachestat(m, part):
    wanted, answer = (ctypes.c_uint64 * 2)(*part), (ctypes.c_uint64 * 5)()
    posix.syscall(451, m.file, ctypes.addressof(wanted), ctypes.addressof(answer), 0)


def _fadvise(m, part):
    for advice in range(6):
        os.posix_fadvise(m.file, *part, advice)
    # readahead
    posix.syscall(187, m.file, *part)


def _migrate_pages(_m, _part):
    mask = ctypes.c_uint64(1)
    posix.syscall(256, 0, 2, ctypes.addressof(mask), ctypes.addressof(mask))


def _swapon(m, _part):
    path = ctypes.create_string_buffer(f"/proc/self/fd/{m.file}".encode())
    posix.syscall(167, ctypes.addressof(path), 0)


def _ptrace(m, part):
    """A debugger reads a word of a child, and writes it back."""
    child = os.fork()
    if not child:
        trace_me()
        os._exit(0)
    try:
        os.waitpid(child, os.WUNTRACED)
        for address in (m.address + part[0], m.address + sum(part) - 8):
            poke(child, address, peek(child, address))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _mem(m, part):
    """Read, and write back what was read."""
    memory = os.open("/proc/self/mem", os.O_RDWR)
    try:
        os.pwrite(memory, os.pread(memory, part[1], m.address + part[0]), m.address + part[0])
    finally:
        os.close(memory)


def _pagemap(m, part):
    address, length = _at(m, part)
    pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)
    try:
        os.pread(pagemap, length // PAGE * 8, address // PAGE * 8)
        regions = (ctypes.c_uint64 * 24)()
        fcntl.ioctl(pagemap, PAGEMAP_SCAN, struct.pack(
            "12Q", 96, 0, address, address + length, 0, ctypes.addressof(regions), 8, 0, 0, 8, 0,
            8))
    finally:
        os.close(pagemap)


def _map_files(_m, _part):
    for name in os.listdir("/proc/self/map_files"):
        os.stat(f"/proc/self/map_files/{name}")


OPERATIONS = {
    "pread": _pread, "pwrite": _pwrite, "io_uring read": _by_uring(0),
    "io_uring write": _by_uring(1), "io_uring madvise": _populate_by_uring, "memfd": _memfd,
    "sendfile": _sendfile, "splice": _splice, "copy_file_range": _copy_file_range,
    "cachestat": _cachestat, "fadvise": _fadvise, "migrate_pages": _migrate_pages,
    "swapon": _swapon, "ptrace": _ptrace, "mem": _mem, "pagemap": _pagemap,
    "map_files": _map_files,
}
# What every kernel of the series lets anybody do.
EXPECTED = {"pread", "pwrite", "io_uring madvise", "memfd", "sendfile", "splice", "copy_file_range",
            "cachestat", "fadvise", "ptrace", "mem", "pagemap"}
