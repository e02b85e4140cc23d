# SPDX-License-Identifier: GPL-2.0
"""Filesystems that have memory of several devices."""

import contextlib
import os
import time

from lib import device, posix
from lib.check import check, equal, same_bytes
from lib.device import run, write
from lib.mapping import SIGBUS, Map
from lib.pattern import page, pages
from lib.posix import PAGE, PMD
from lib.runner import Log, case
from lib.task import Task

from .common import DEVICE, Item, MOUNT, OTHER, need

# The filesystem's own device, and the one that its files are on.
MAIN, REALTIME = DEVICE, OTHER
FILE = f"{MOUNT}/file"


class _File:
    """An open file of 2 MiB."""

    def __init__(self):
        self.fd = os.open(FILE, os.O_RDWR | os.O_CREAT)
        os.pwrite(self.fd, pages("r", PMD // PAGE), 0)

    def map(self):
        return Map(self.fd, PMD)

    def hold(self):
        """The reader of a pipe in which a page of the file is."""
        reader, writer = os.pipe()
        with self.map() as m:
            check(not m.store(3 * PAGE, 1).signal, "a store got a signal")
            m.splice(writer, 3 * PAGE)
        os.close(writer)
        return reader

    def close(self):
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None


@contextlib.contextmanager
def _realtime(adopted=True):
    """XFS whose files are on its realtime device; mounted. Yields a file."""
    need(MAIN, REALTIME)
    with Item(MAIN, adopt=True), Item(REALTIME, adopt=adopted):
        os.makedirs(MOUNT, exist_ok=True)
        run("mkfs.xfs", "-q", "-f", "-K", "-m", "reflink=0,rmapbt=0", "-d", "rtinherit=1",
            "-r", f"rtdev=/dev/{REALTIME}", f"/dev/{MAIN}")
        posix.mount(f"/dev/{MAIN}", MOUNT, "xfs", f"dax=always,rtdev=/dev/{REALTIME}")
        try:
            file = _File()
            try:
                yield file
            finally:
                file.close()
        finally:
            with open("/proc/self/mounts", encoding="utf-8") as mounts:
                if any(line.split()[1] == MOUNT for line in mounts):
                    posix.umount(MOUNT)


def _alone(reader, call, *arguments):
    """For a child that has inherited the pipe."""
    os.close(reader)
    call(*arguments)


def _ticks(pid):
    """What a process has used of processors in the kernel, in ticks."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
        return int(stat.read().rpartition(") ")[2].split()[12])


@case(fs=())
def truncate_waits_for_memory_of_the_other_device(t):
    with _realtime() as file:
        reader = file.hold()
        cut = Task(_alone, reader, os.ftruncate, file.fd, 0, name="truncate")
        cut.blocked_in("ftruncate")
        os.close(reader)
        cut.result(30)
        equal(os.fstat(file.fd).st_size, 0, "the file's size")


@case(fs=())
def unmount_sleeps_until_memory_of_the_other_device_is_free(t):
    with _realtime() as file:
        reader = file.hold()
        file.close()
        unmount = Task(_alone, reader, posix.umount, MOUNT, name="umount")
        unmount.blocked_in("umount2")
        before, start = _ticks(unmount.pid), time.monotonic()
        unmount.blocked_in("umount2", hold=2)
        used = (_ticks(unmount.pid) - before) / os.sysconf("SC_CLK_TCK")
        passed = time.monotonic() - start
        check(used < passed / 4, f"it has used {used} of {passed:.1f} s of a processor")
        check(not unmount.done(), "it does not wait")
        os.close(reader)
        unmount.result(30)


@case(fs=(), timeout=120)
def the_other_device_goes(t):
    """Its memory is unmapped, and waited for, while files of the filesystem are mapped."""
    with _realtime() as file:
        reader = file.hold()
        with file.map() as m:
            equal(m.store(7 * PAGE, 1).signal, 0, "the signal for a store before")
            driver, name = device.driver_of(REALTIME)
            log = Log()
            unbind = Task(_alone, reader, write, f"{driver}/unbind", name, name="unbind")
            try:
                device.wait_for(lambda: any("its pages are in use" in line for line in log.read()),
                                "word of pages in use")
                check(not unbind.done(), "the driver let go of memory that is in use")
                equal(m.store(7 * PAGE, 2).signal, SIGBUS, "the signal for a store")
            finally:
                os.close(reader)
                unbind.result(60)
        file.close()
        Task(posix.umount, MOUNT).result(30)
        device.bind(REALTIME, driver, name)
    # As good as before, when it is adopted anew.
    with _realtime() as file, file.map() as m:
        equal(m.store(PAGE, 3).signal, 0, "the signal for a store afterwards")
        same_bytes(os.pread(file.fd, 1, PAGE), b"\3", "what was stored")


@case(fs=())
def memory_of_a_device_that_is_not_adopted_is_not_mapped(t):
    """What goes with such a device would be waited for by nobody."""
    log = Log()
    with _realtime(adopted=False) as file:
        same_bytes(os.pread(file.fd, PAGE, 5 * PAGE), pages("r", 1, 5), "what is read")
        os.pwrite(file.fd, page("w"), 5 * PAGE)
        same_bytes(os.pread(file.fd, PAGE, 5 * PAGE), page("w"), "what was written")
        with file.map() as m:
            m.bus_error(5 * PAGE, "memory of a device that is not adopted")
            equal(m.store(5 * PAGE, 1).signal, SIGBUS, "the signal for a store")
    said = [line for line in log.read() if "not adopted: adopt all devices" in line]
    # Once since the module was loaded.
    check(len(said) <= 1, f"the log says: {said}")


@case(fs=(), timeout=120)
def the_main_device_goes(t):
    """What is mapped of the other one stays, and is not looked up in what went with the main one."""
    with _realtime() as file:
        with file.map() as m:
            equal(m.store(7 * PAGE, 1).signal, 0, "the signal for a store before")
            driver, name = device.driver_of(MAIN)
            Task(write, f"{driver}/unbind", name, name="unbind").result(60)
        with file.map() as m:
            equal(m.load(7 * PAGE)[1].signal, SIGBUS, "the signal for a load without the main device")
        file.close()
        Task(posix.umount, MOUNT).result(30)
        device.bind(MAIN, driver, name)


@case(fs=())
def bad_blocks_of_the_other_device_are_not_mapped(t):
    with _realtime() as file:
        with file.map() as m:
            equal(m.store(7 * PAGE, 1).signal, 0, "the signal for a store before")
            pfn = m.pfn(7 * PAGE)
            ((_, at, _, _),) = posix.extents(file.fd)
        driver, name = device.driver_of(REALTIME)
        write(f"/sys/block/{REALTIME}/badblocks", f"{at + 7 * PAGE >> 9} 8\n")
        try:
            # The entry is there, of all of the file or of this page.
            with file.map() as m:
                equal(m.load(7 * PAGE)[1].signal, SIGBUS, f"the signal for a load of page {pfn:#x}")
        finally:
            # The driver forgets the list when the device is bound anew.
            file.close()
            posix.umount(MOUNT)
            write(f"{driver}/unbind", name)
            device.bind(REALTIME, driver, name)


def _both_truncate():
    """Two that wait for the same page: whoever is second finds nothing to be removed."""
    with _realtime() as file:
        reader = file.hold()
        cuts = [Task(_alone, reader, os.ftruncate, file.fd, 0, name="truncate") for _ in range(2)]
        for cut in cuts:
            cut.blocked_in("ftruncate")
        os.close(reader)
        for cut in cuts:
            cut.result(30)


@case(fs=(), timeout=120)
def the_other_device_was_adopted_anew(t):
    """What it was before, released or removed, is no memory that goes, for those who wait at once."""
    need(MAIN, REALTIME)
    with Item(MAIN, adopt=True):
        for _ in range(2):
            with _realtime() as file, file.map() as m:
                equal(m.store(PAGE, 3).signal, 0, "the signal for a store")
        _both_truncate()
        driver, name = device.driver_of(REALTIME)
        write(f"{driver}/unbind", name)
        device.bind(REALTIME, driver, name)
        with _realtime() as file, file.map() as m:
            equal(m.store(PAGE, 3).signal, 0, "the signal for a store")
        # More than what went while they wait.
        for _ in range(3):
            _both_truncate()
