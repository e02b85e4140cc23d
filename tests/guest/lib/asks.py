# SPDX-License-Identifier: GPL-2.0
"""System calls that ask a mapped page which file it is of, or could move it or take it away."""

import ctypes
import os
import struct

from . import posix
from .posix import PAGE, system_call
from .trace import Pages

MOVE_PAGES, MBIND, MIGRATE_PAGES, MINCORE, CACHESTAT = 279, 237, 256, 27, 451
PROCESS_VM_WRITEV, MLOCK2, REMAP_FILE_PAGES, READAHEAD = 311, 325, 216, 187
MADV_FREE, MADV_REMOVE, MADV_COLD, MADV_PAGEOUT, MADV_COLLAPSE = 8, 9, 20, 21, 25
MADV_SOFT_OFFLINE = 101


def _said(call, *arguments):
    try:
        return call(*arguments)
    except OSError as error:
        return error.errno


def _move_pages(address, to):
    """Where a page is, and whether it can be moved to a node."""
    pages, nodes = (ctypes.c_uint64 * 1)(address), (ctypes.c_int * 1)(0)
    status = (ctypes.c_int * 1)(-1000)
    said = _said(system_call, "move_pages", MOVE_PAGES, 0, 1, ctypes.addressof(pages),
                 ctypes.addressof(nodes) if to else 0, ctypes.addressof(status), 2)
    return said, status[0]


def _mincore(address, length):
    resident = (ctypes.c_uint8 * (length // PAGE))()
    return _said(system_call, "mincore", MINCORE, address, length,
                 ctypes.addressof(resident)), sum(resident)


def _written_by_others(address, data):
    """Stores through references to the page: by process_vm_writev and by /proc/PID/mem."""
    source = ctypes.create_string_buffer(data, len(data))
    local = struct.pack("QQ", ctypes.addressof(source), len(data))
    remote = struct.pack("QQ", address, len(data))
    local, remote = (ctypes.create_string_buffer(v, len(v)) for v in (local, remote))
    moved = _said(system_call, "process_vm_writev", PROCESS_VM_WRITEV, os.getpid(),
                  ctypes.addressof(local), 1, ctypes.addressof(remote), 1, 0)
    with open("/proc/self/mem", "r+b", buffering=0) as memory:
        poked = _said(os.pwrite, memory.fileno(), data, address)
    return moved, poked


def all_ways(fd, m):
    """What each of them says about a file and the mapping `m` of its begin: {name: answer}."""
    mask = (ctypes.c_uint64 * 2)(1, 0)
    range_, stat = (ctypes.c_uint64 * 2)(0, m.length), (ctypes.c_uint64 * 5)()
    nodes, here = ctypes.addressof(mask), m.address
    said = {"move_pages": _move_pages(here, True), "move_pages query": _move_pages(here, False),
            "mbind": _said(system_call, "mbind", MBIND, here, m.length, 2, nodes, 65, 2),
            "mbind strict": _said(system_call, "mbind", MBIND, here, m.length, 2, nodes, 65, 3),
            "migrate_pages": _said(system_call, "migrate_pages", MIGRATE_PAGES, 0, 65, nodes,
                                   nodes),
            "mincore": _mincore(here, m.length),
            "cachestat": _said(system_call, "cachestat", CACHESTAT, fd, ctypes.addressof(range_),
                               ctypes.addressof(stat), 0),
            "readahead": _said(system_call, "readahead", READAHEAD, fd, 0, m.length),
            "fadvise": _said(os.posix_fadvise, fd, 0, m.length, os.POSIX_FADV_DONTNEED),
            "written by others": _written_by_others(here + 3 * PAGE + 5, b"by others"),
            "mlock2": _said(system_call, "mlock2", MLOCK2, here, m.length, 0)}
    system_call("munlock", 150, here, m.length)
    for name in ("MADV_FREE", "MADV_COLD", "MADV_PAGEOUT", "MADV_COLLAPSE", "MADV_SOFT_OFFLINE"):
        length = PAGE if name == "MADV_SOFT_OFFLINE" else m.length
        said[name] = _said(posix.madvise, here, length, globals()[name])
    state = Pages()
    frames = m.pfns(0, 4 * PAGE)
    said["kpageflags"] = [bool(flags & state.flag("hwpoison"))
                          for (flags,) in state.words(frames, state.FLAGS)]
    said["what was written"] = m.read(3 * PAGE + 5, 9).decode(errors="replace")
    return said
