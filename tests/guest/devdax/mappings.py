# SPDX-License-Identifier: GPL-2.0
"""Mappings of the device, and the faults in them."""

import os
import subprocess
import time

from lib import asks, futex, posix
from lib.check import Skip, check, equal, raises
from lib.kmsg import KernelLog
from lib.mapping import Map
from lib.native import probe
from lib.posix import PAGE, PMD
from lib.runner import case

from .common import (
    EINVAL, Stats, bind_node, namespace, node_size, open_node, unbind_node,
)

MAP_SYNC_VALIDATED = 0x80003


@case(fs=())
def pages(t):
    namespace("4K")
    fd, stats = open_node(), Stats()
    with Map(fd, 4 * PMD) as m:
        m.touch(length=PMD, write=True)
        m.touch(offset=PMD, length=PMD)
        equal(m.mapped(), 2 * PMD, "bytes mapped")
        equal(m.mapped_huge(), 0, "bytes mapped by huge entries")
        stats.expect(write_pte=512, read_pte=512)
    os.close(fd)


@case(fs=(), timeout=120)
def pages_and_huge_pages_at_once(t):
    """A fault for a page makes a table where another enters 2 MiB: one gives way, without a word."""
    namespace("2M")
    fd, stats = open_node(), Stats()
    rounds = 0
    # Which of the two comes first is chance.
    while not (stats.moved("write_pte") and stats.moved("write_pmd")) or rounds < 5000:
        more = probe().table_race(fd, 32 * PMD, 2000)
        check(more > 0, "no mapping")
        rounds += more
    t.note(f"{rounds} rounds, {stats.moved('write_pte')} pages, {stats.moved('write_pmd')} entries of "
           f"2 MiB, {stats.moved('fallback_conflict')} times one gave way")
    equal(stats.moved("fault_errors"), 0, "faults that failed")
    os.close(fd)


@case(fs=())
def processes_meet_at_pages(t):
    """Futexes and mutexes that processes share, on a device that is mapped by pages."""
    namespace("4K")
    fd = open_node()
    with Map(fd, 2 * PMD) as m:
        futex.work(m, 5 * PAGE + 64, lambda: Map(fd, PMD, skew=PAGE))
    os.close(fd)


@case(fs=())
def processes_meet(t):
    """By whatever entries each of them has the memory mapped, and wherever the mapping begins."""
    namespace("2M")
    fd = open_node()
    with Map(fd, 4 * PMD) as m, Map(fd, PMD, offset=PMD, skew=PAGE) as small:
        futex.work(m, PMD + 5 * PAGE + 64, lambda: Map(fd, 4 * PMD))
        futex.work(m, PMD + 64, lambda: Map(fd, 4 * PMD, skew=PAGE))
        futex.work(small, PMD - PAGE, lambda: _shifted(fd))
        # The same page of the next 2 MiB is another place.
        sleeper = futex.sleeper(m.address + 2 * PMD)
        sleeper.blocked_in("futex")
        equal(futex.wake(m.address + 3 * PMD), 0, "sleepers in the next 2 MiB")
        futex.woken(sleeper, m.address + 2 * PMD)
    os.close(fd)


def _shifted(fd):
    """The second 2 MiB, of which the first page is unlike the place that the address is of."""
    return Map(fd, PMD, offset=PMD, skew=3 * PAGE)


@case(fs=())
def sleepers_outlive_the_device(t):
    """Who sleeps at a futex in memory that goes is not woken, can be ended, and holds up nobody."""
    namespace("2M")
    fd = open_node()
    with Map(fd, 2 * PMD) as m, Map(fd, PMD, skew=PAGE) as small:
        sleepers = [futex.sleeper(place.address + 8 * PAGE) for place in (m, small)]
        for sleeper in sleepers:
            sleeper.blocked_in("futex")
        unbind_node()
        for place in (m, small):
            futex.gone(place.address + 8 * PAGE)
        for sleeper in sleepers:
            check(not sleeper.done(), "a sleeper has ended")
            sleeper.kill()
            equal(sleeper.signalled(), 9, "signal that ended a sleeper")
    os.close(fd)
    bind_node()


@case(fs=(), timeout=120)
def others_ask(t):
    """What asks a page for its file, or would move it, gets the answer that the kernel's driver
    gives."""
    if subprocess.run(["modprobe", "device_dax"], check=False).returncode:
        raise Skip("there is no module device_dax")
    namespace("2M")
    said = {}
    for driver in ("device_dax", "rdax"):
        bind_node(driver)
        fd = open_node()
        with Map(fd, 2 * PMD) as m:
            m.load_ok(PMD, m.read(PMD, 1)[0], "a load")
            m.touch(write=True)
            said[driver] = asks.all_ways(fd, m)
        os.close(fd)
    equal(said["rdax"], said["device_dax"], "answers")
    equal(said["rdax"]["what was written"], "by others", "what others wrote")
    t.note(str(said["rdax"]))


@case(fs=())
def huge_pages(t):
    namespace("2M")
    fd, stats = open_node(), Stats()
    with Map(fd, 8 * PMD) as m:
        for at in range(0, 4 * PMD, PMD):
            equal(m.store(at, 7).signal, 0, "signal of a store")
        m.touch(offset=4 * PMD)
        equal(m.mapped_huge(), 8 * PMD, "bytes mapped by huge entries")
        stats.expect(write_pmd=4, read_pmd=4, read_pte=0, write_pte=0)
        m.protect(posix.PROT_READ)
        m.protect(posix.PROT_RW)
        m.touch(write=True)
        stats.expect(read_pte=0, write_pte=0)
        m.unmap_part(PMD + PAGE, PAGE)
        m.load_ok(PMD, 7, "beside the hole")
    os.close(fd)


@case(fs=())
def address_is_chosen_well(t):
    align = namespace("2M")
    fd = open_node()
    for offset in (0, PAGE, PMD + 5 * PAGE):
        for length in (PMD, 3 * PMD + PAGE):
            at = posix.mmap(None, length, posix.PROT_RW, posix.MAP_SHARED, fd, offset)
            equal(at % align, offset % align, f"address of a mapping of {offset:#x}")
            posix.munmap(at, length)
    os.close(fd)


@case(fs=())
def misaligned_mappings_work(t):
    """The kernel's own driver refuses addresses that are not aligned."""
    namespace("2M")
    fd = open_node()
    with Map(fd, 2 * PMD) as m:
        m.write(0, b"".join(bytes([i % 251 + 1]) * PAGE for i in range(1024)))
    for offset, skew, length in ((PAGE, 0, PMD), (0, PAGE, 2 * PMD), (PAGE, PAGE, PMD),
                                 (0, 0, PAGE), (PMD - PAGE, PMD - PAGE, 2 * PAGE)):
        stats = Stats()
        with Map(fd, length, offset=offset, skew=skew) as m:
            for at in range(0, length, PAGE):
                m.load_ok(at, ((offset + at) // PAGE) % 251 + 1, f"{offset:#x}+{skew:#x}")
        stats.expect(read_pmd=0, read_pte=length // PAGE, fault_errors=0)
    # Aligned to each other: pages at the edges, huge pages between.
    stats = Stats()
    with Map(fd, 3 * PMD, offset=PAGE, skew=PAGE) as m:
        m.touch(write=True)
        equal(m.mapped_huge(), 2 * PMD, "bytes mapped by huge entries")
        stats.expect(write_pmd=2, write_pte=512)
    os.close(fd)


@case(fs=())
def what_is_refused(t):
    namespace("2M")
    fd, size = open_node(), node_size()
    said = KernelLog()
    raises(EINVAL, "MAP_PRIVATE", posix.mmap, None, PMD, posix.PROT_RW, posix.MAP_PRIVATE, fd, 0)
    raises(EINVAL, "past the end", posix.mmap, None, PMD, posix.PROT_RW, posix.MAP_SHARED, fd,
           size)
    log = "\n".join(said.read())
    check("MAP_PRIVATE" in log and "no such page" in log, "the log does not say why")
    with Map(fd, 2 * PMD, offset=size - PMD) as m:
        m.touch(length=PMD, write=True)
        m.bus_error(PMD, "past the end")
        m.bus_error(PMD + PAGE, "past the end", write=True)
    with Map(fd, PMD, flags=MAP_SYNC_VALIDATED) as m:
        equal(m.store(0, 1).signal, 0, "signal of a store with MAP_SYNC")
    os.close(fd)


@case(fs=())
def refusals_do_not_flood_the_log(t):
    namespace("2M")
    fd, size = open_node(), node_size()
    said = KernelLog()
    began = time.monotonic()
    for _ in range(100):
        for what in ((posix.MAP_PRIVATE, 0), (posix.MAP_SHARED, size), (posix.MAP_SHARED, 4 * size)):
            raises(EINVAL, str(what), posix.mmap, None, PMD, posix.PROT_RW, what[0], fd, what[1])
    lines = [line for line in said.read() if "is refused" in line]
    # Ten of each of the two kinds every five seconds.
    most = 20 * (int(time.monotonic() - began) // 5 + 2)
    check(1 <= len(lines) <= most, f"{len(lines)} lines for 300 refusals, and not {most} at most")
    check(any("multiples of 2048 KiB" in line for line in lines), f"no alignment in {lines[:3]}")
    os.close(fd)
