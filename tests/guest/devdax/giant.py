# SPDX-License-Identifier: GPL-2.0
"""Mappings by 1 GiB."""

import errno
import os

from lib import futex, gup, posix
from lib.check import Failure, equal
from lib.mapping import Map
from lib.native import probe
from lib.posix import GIB, PAGE, PMD
from lib.ptrace import await_stop, let_go_on, peek, trace_me
from lib.runner import case
from lib.task import Task
from lib.uffd import Protected

from .common import Stats, moves, namespace, node_size, open_node, pins_last, unbinds_at_once


@case(fs=(), timeout=120, giant=True)
def giant_pages(t):
    namespace("1G", "-M", "mem")
    fd, stats = open_node(), Stats()
    size = node_size()
    with Map(fd, size, align=GIB) as m:
        for at in range(0, size, GIB):
            equal(m.store(at + 5 * PAGE, 9).signal, 0, "signal of a store")
        stats.expect(write_pud=size // GIB, write_pmd=0, write_pte=0, fallback_vma=0)
        m.touch(length=GIB, step=PMD)
        stats.expect(write_pud=size // GIB, read_pud=0, read_pmd=0, read_pte=0)
    with Map(fd, GIB, align=GIB) as m:
        # Split where one entry maps both sides, with entries of 2 MiB for data.
        data = b"".join((i << 21 | 0xE7).to_bytes(8, "little") for i in range(512))
        m.write(0, data)
        m.advise(posix.MADV_RANDOM, GIB // 2 + PAGE, PAGE)
        m.protect(posix.PROT_READ, 5 * PAGE, PMD)
        m.unmap_part(GIB // 2 - PMD - PAGE, PAGE)
        equal(m.read(0, PAGE), data, "data after the mapping was split")
    with Map(fd, GIB, align=GIB) as m:
        m.touch(step=GIB)
        for at in (0, GIB - 4 * PMD):
            os.close(posix.pin_buffer(m.address + at, 4 * PMD))
    at = posix.mmap(None, GIB, posix.PROT_RW, posix.MAP_SHARED, fd, 0)
    equal(at % GIB, 0, "address modulo 1 GiB")
    posix.munmap(at, GIB)
    stats = Stats()
    with Map(fd, 4 * PMD, offset=PMD - PAGE) as m:
        m.load_ok(0, 0, "a misaligned mapping")
        m.touch(length=16 * PAGE, write=True)
        m.touch(offset=PMD, length=PMD)
        stats.expect(read_pte=1 + 512, write_pte=15, fault_errors=0)
    os.close(fd)


@case(fs=(), timeout=120, giant=True)
def processes_meet_in_giant_pages(t):
    namespace("1G", "-M", "mem")
    fd = open_node()
    with Map(fd, GIB, align=GIB) as m:
        futex.work(m, GIB // 2 + 5 * PAGE + 64, lambda: Map(fd, GIB, align=GIB))
        futex.work(m, GIB - PAGE, lambda: Map(fd, GIB, skew=PAGE))
    os.close(fd)


@case(fs=(), timeout=120, giant=True)
def giant_pages_are_pinned(t):
    namespace("1G", "-M", "mem")
    fd = open_node()
    moves(fd, 4 * PMD, 0)
    if not gup.unfit():
        pins_last(fd, GIB, align=GIB)
    os.close(fd)
    unbinds_at_once("a pin")


def _refused(number, what, call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        equal(error.errno, number, f"errno of {what}")
        return
    raise Failure(f"{what} is possible")


@case(fs=(), timeout=120, giant=True)
def forks_copy_no_giant_entries(t):
    """The core would copy an entry of 1 GiB without a reference. What makes fork copy page tables is
    refused where there can be one."""
    namespace("1G", "-M", "mem")
    fd = open_node()
    with Map(fd, GIB, align=GIB) as m:
        _refused(errno.EINVAL, "a guard page", m.advise, posix.MADV_GUARD_INSTALL, GIB - PAGE, PAGE)
        m.store(5, 0x5a)
        _refused(errno.EINVAL, "a guard page beside what is mapped", m.advise,
                 posix.MADV_GUARD_INSTALL, GIB - PAGE, PAGE)
        _refused(errno.EINVAL, "write-protection by userfaultfd",
                 Protected(m, protect=False, fork=True).__enter__)

        def child():
            m.load_ok(5, 0x5a, "what the child sees")
            equal(m.store(7, 0x77).signal, 0, "signal of a store")

        Task(child).result()
        m.load_ok(7, 0x77, "what the parent sees")
    os.close(fd)
    unbinds_at_once("a reference")


def _stops_without_rights(fd, say):
    with Map(fd, GIB, align=GIB) as m:
        m.store(5, 0x5a)
        m.protect(posix.PROT_NONE)
        os.write(say, m.address.to_bytes(8, "little"))
        trace_me()
        m.advise(posix.MADV_RANDOM, GIB // 2, GIB // 2)
        m.protect(posix.PROT_RW)
        m.load_ok(5, 0x5a, "when it may be accessed again")


@case(fs=(), timeout=120, giant=True)
def giant_pages_without_rights(t):
    """A debugger's access does not find an entry of 1 GiB that nobody may access, and would fault for ever."""
    namespace("1G", "-M", "mem")
    fd = open_node()
    hear, say = os.pipe()
    task = Task(_stops_without_rights, fd, say)
    address = int.from_bytes(os.read(hear, 8), "little")
    await_stop(task.pid)
    equal(peek(task.pid, address)[5], 0x5a, "what the debugger reads")
    let_go_on(task.pid)
    task.result()
    os.close(fd)
    unbinds_at_once("a reference")


@case(fs=(), timeout=120, giant=True)
def giant_mappings_move(t):
    """The core's move loses entries of 1 GiB, and their references with them."""
    namespace("1G", "-M", "mem")
    fd = open_node()
    with Map(fd, GIB, align=GIB) as m, Map(fd, GIB, align=GIB) as place:
        m.store(5, 0x5a)
        ring = posix.pin_buffer(m.address, 4 * PMD)
        os.close(ring)
        posix.mremap(m.address, GIB, GIB, 1 | 2, place.address)
        place.load_ok(5, 0x5a, "after the move")
        place.touch(length=4 * PAGE)
        # Beside another mapping of the next GiB, where the two could be merged.
    room = Map(-1, 3 * GIB, prot=posix.PROT_NONE, align=GIB,
               flags=posix.MAP_PRIVATE | posix.MAP_ANONYMOUS | posix.MAP_NORESERVE)
    posix.mmap(room.address, GIB, posix.PROT_RW, posix.MAP_SHARED | posix.MAP_FIXED, fd, 0)
    with Map(fd, GIB, offset=GIB, align=GIB) as m:
        equal(m.store(7, 0x77).signal, 0, "signal of a store")
        posix.mremap(m.address, GIB, GIB, 1 | 2, room.address + GIB)
    probe().touch(room.address, 2 * GIB, PMD, True)
    room.unmap()
    os.close(fd)
    unbinds_at_once("a reference")
