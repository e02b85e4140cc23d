# SPDX-License-Identifier: GPL-2.0
"""Memory that fails."""

import os
import select
import signal
import subprocess

from lib import asks, device, mce, posix
from lib.check import Skip, check, equal, raises
from lib.device import wait_for, write
from lib.mapping import BUS_MCEERR_AO, BUS_MCEERR_AR, Map, SIGBUS
from lib.native import Fault, probe
from lib.posix import GIB, PAGE, PMD
from lib.runner import case
from lib.task import Task

from .common import Stats, bind_node, bound_driver, namespace, open_node, unbind_node


def _inject(m, at):
    """How the process is told of a failure of a page that it has mapped."""
    fault = Fault()
    probe().probe_madvise(m.address + at, PAGE, posix.MADV_HWPOISON, fault)
    equal(fault.error, 0, "error of MADV_HWPOISON")
    return fault


def _is_told(m, at, bits, what):
    """As the kernel tells of a page of an entry of 2 to the `bits` bytes, but always of that page."""
    for turn in ("first", "second", "third"):
        m.touch(at, PAGE)
        fault = _inject(m, at)
        equal((fault.signal, fault.code, fault.lsb), (SIGBUS, BUS_MCEERR_AR, bits),
              f"{what}, {turn} time: signal, code, log2 of the bytes in doubt")
        if bound_driver() == "rdax":
            equal(fault.address, m.address + at, f"{what}, {turn} time: address")
        else:
            equal(fault.address >> bits, (m.address + at) >> bits, f"{what}: address")
        # Nothing has happened to it.
        equal(m.load(at)[1].signal, 0, f"{what}: signal of a load after that")


def _others_are_told(fd, m, at, length, **place):
    """Who asked for it is told early, of the address that is its own; who did not goes on."""
    ready, end = os.pipe(), os.pipe()

    def early():
        posix.die_of_poison_early()
        with Map(fd, length, **place) as mine:
            mine.touch(at, PAGE)
            fault = Fault()
            probe().probe_await(ready[1], fault)
            equal((fault.signal, fault.code), (SIGBUS, BUS_MCEERR_AO), "signal and code")
            equal(fault.address, mine.address + at, "address")

    def calm():
        with Map(fd, length, **place) as mine:
            mine.touch(at, PAGE)
            os.write(ready[1], b"r")
            os.read(end[0], 1)
            equal(mine.load(at)[1].signal, 0, "signal of a load afterwards")

    def deaf():
        with Map(fd, length, **place) as mine:
            mine.touch(at, PAGE)
            signal.signal(signal.SIGBUS, signal.SIG_DFL)
            posix.madvise(mine.address + at, PAGE, posix.MADV_HWPOISON)

    tasks = [Task(early), Task(calm)]
    for _ in tasks:
        wait_for(lambda: select.select([ready[0]], [], [], 0)[0] or any(task.done() for task in tasks),
                 "another process")
        for task in tasks:
            if task.done():
                task.result()
        equal(os.read(ready[0], 1), b"r", "another process")
    _inject(m, at)
    os.write(end[1], b"e")
    for task in tasks:
        task.result()
    equal(Task(deaf).signalled(), SIGBUS, "signal that ended who does not listen")
    for pipe in ready + end:
        os.close(pipe)


@case(fs=())
def failures_of_pages_are_told(t):
    namespace("4K")
    fd = open_node()
    with Map(fd, PMD) as m:
        _is_told(m, 7 * PAGE, 12, "a page")
        _others_are_told(fd, m, 7 * PAGE, PMD, skew=PAGE)
    os.close(fd)


@case(fs=(), timeout=120)
def failures_are_told(t):
    """With the kernel's own driver beside it, which tells of the first page of 2 MiB."""
    drivers = ["rdax"]
    if not subprocess.run(["modprobe", "device_dax"], check=False).returncode:
        drivers.insert(0, "device_dax")
    namespace("2M")
    for driver in drivers:
        bind_node(driver)
        fd = open_node()
        with Map(fd, 2 * PMD) as m:
            _is_told(m, PMD + 5 * PAGE, 21, f"{driver}: a page of 2 MiB")
            raises(5, "soft offlining", posix.madvise, m.address, PAGE, asks.MADV_SOFT_OFFLINE)
        os.close(fd)
    bind_node()
    fd = open_node()
    with Map(fd, 2 * PMD) as m, Map(fd, 2 * PMD, skew=PAGE) as small:
        # Neither the first page of the 2 MiB, nor is that one mapped.
        _is_told(small, PMD + 5 * PAGE, 12, "a page of 2 MiB mapped by pages")
        _others_are_told(fd, small, PMD + 6 * PAGE, 2 * PMD)
        _others_are_told(fd, m, PMD + 6 * PAGE, 2 * PMD, skew=3 * PAGE)
        small.touch(PMD)
        before = small.mapped()
        _inject(small, PMD + 6 * PAGE)
        equal(before - small.mapped(), PAGE, "bytes that were unmapped with a page")
    os.close(fd)


@case(fs=(), timeout=120, giant=True)
def failures_in_giant_pages_are_told(t):
    namespace("1G", "-M", "mem")
    fd = open_node()
    with Map(fd, GIB, align=GIB) as m:
        _is_told(m, GIB // 2 + 5 * PAGE, 30, "a page of 1 GiB")
        _others_are_told(fd, m, GIB // 2 + 5 * PAGE, GIB, skew=PAGE)
    os.close(fd)


@case(fs=(), timeout=120)
def failures_are_told_without_adoption(t):
    """And with it: the function by which the core asks is served for files of adopted devices too."""
    namespace("2M")
    others = [name for name in ("pmem1", "pmem2") if device.exists(name)]
    if not others:
        raise Skip("there is no other pmem device")
    for adopt in ("0", "1"):
        for name in others:
            write(f"{device.CONFIG}/{name}/adopt", adopt)
        fd = open_node()
        with Map(fd, PMD) as m:
            _is_told(m, 5 * PAGE, 21, f"adopted: {adopt}")
        os.close(fd)


@case(fs=())
def bad_memory(t):
    namespace("2M")
    fd = open_node()
    with Map(fd, 2 * PMD) as m:
        m.touch(step=PMD)
        bad = m.pfn(0) + 5
        mce.fail(bad)
        stats = Stats()
        m.bus_error(5 * PAGE, "bad memory", code=BUS_MCEERR_AR)
        m.bus_error(5 * PAGE, "bad memory", write=True, code=BUS_MCEERR_AR)
        for at in (0, 4 * PAGE, 6 * PAGE, PMD - PAGE, PMD):
            equal(m.load(at)[1].signal, 0, f"signal of a load at {at:#x}")
        stats.expect(poison_faults=2)
        check(m.mapped_huge() >= PMD, "the next 2 MiB are not mapped by a huge entry")
    os.close(fd)
    mce.restore([bad])
    unbind_node()
    bind_node()
    fd = open_node()
    with Map(fd, PMD) as m:
        equal(m.load(5 * PAGE)[1].signal, 0, "signal after binding anew")
    os.close(fd)
