# SPDX-License-Identifier: GPL-2.0
"""Devices that go away under a filesystem."""

import json
import os

from lib import device, posix
from lib.check import Failure, Skip, check, equal, raises
from lib.device import Stats, run, write
from lib.mapping import Map
from lib.pattern import page, pages
from lib.posix import PAGE, PMD
from lib.runner import Log, case
from lib.task import Task

from .common import (
    DEVICE, Item, OTHER, come_back, going, mountable, mounted_on, need, redirected, splice_from,
)


@case(fs=())
def device_is_removed_and_comes_again(t):
    """What has the name of an adopted device that was removed is not adopted, but can be."""
    need(DEVICE, OTHER)
    os.environ["DM_DISABLE_UDEV"] = "1"
    run("modprobe", "dm-mod")
    table = f"0 {device.size(DEVICE) >> 9} linear /dev/{DEVICE} 0"

    with open("/proc/devices", encoding="ascii") as devices:
        major = next(line.split()[0] for line in devices if "device-mapper" in line)

    def create():
        run("dmsetup", "create", "rdax-again", "--major", major, "--minor", "77",
            "--table", table)

    with Item(DEVICE, adopt=False), Item(OTHER, adopt=False):
        create()
        try:
            with Item("dm-77", adopt=True) as item:
                run("dmsetup", "remove", "rdax-again")
                equal(item.adopted(), False, "adopt when the device was removed")
                create()
                equal(item.adopted(), False, "adopt when there is another of its name")
                item.set(True)
                equal(item.adopted(), True, "adopt of the other one")
                with mounted_on("dm-77") as directory:
                    stats = Stats("dm-77")
                    with open(f"{directory}/file", "wb") as f:
                        f.write(pages("a", 8))
                    stats.expect(write_bytes=8 * PAGE)
            equal(redirected(), [], "functions redirected after both are gone")
        finally:
            run("dmsetup", "remove", "rdax-again")


def _namespace():
    """The device's namespace, its alignment, and where its page map is."""
    need(DEVICE)
    known = [n for n in json.loads(run("ndctl", "list", "-N"))
             if n.get("blockdev") == DEVICE and n["mode"] == "fsdax"]
    if not known:
        raise Skip(f"{DEVICE} is not a namespace in mode fsdax")
    return known[0]["dev"], known[0]["align"], known[0]["map"]


@case(fs=(), timeout=300)
def namespace_of_an_adopted_device_is_made_anew(t):
    """The driver takes the memory several times, each time without the pages of the time before."""
    name, align, pages_in = _namespace()
    with Item(DEVICE, adopt=True) as item:
        for _ in range(2):
            run("ndctl", "create-namespace", "-f", "-e", name, "-m", "fsdax", "-a", str(align),
                "-M", pages_in)
            equal(item.adopted(), False, "adopt when the namespace was made anew")
            item.set(True)
        with mounted_on(DEVICE) as directory:
            stats = Stats(DEVICE)
            with open(f"{directory}/file", "wb") as f:
                f.write(pages("n", 8))
            stats.expect(write_bytes=8 * PAGE)


@case(fs=(), timeout=300)
def a_namespace_that_is_destroyed_is_told_of(t):
    """The log says of an adopted device that is removed that it is not adopted any more."""
    name, align, pages_in = _namespace()
    with Item(DEVICE, adopt=True) as item:
        log = Log()
        run("ndctl", "destroy-namespace", "-f", name)
        try:
            equal(item.adopted(), False, "adopt when the namespace was destroyed")
            said = [line for line in log.read() if line.startswith(f"rdax: {DEVICE}: ")]
            check(len(said) == 1 and "is removed, and not adopted any more" in said[0], f"the log says: {said}")
        finally:
            run("ndctl", "create-namespace", "-f", "-e", name, "-m", "fsdax", "-a", str(align),
                "-M", pages_in)
            device.wait_for(lambda: os.path.exists(f"/dev/{DEVICE}"), f"new {DEVICE}")


def _file_of_last_group(fs):
    """A file whose blocks are in the last of two allocation groups.

    Told that a device goes away, XFS of this kernel series walks the files of every group, and
    for all groups but the last it takes each file to have four thousand million pages.
    """
    for i in range(16):
        os.mkdir(f"{fs.mount_point}/{i}")
        path = f"{fs.mount_point}/{i}/file"
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        posix.fallocate(fd, 0, 0, 4 * PMD)
        extents = posix.extents(fd)
        os.close(fd)
        if all(e[1] >= device.size(DEVICE) // 2 for e in extents):
            return path
        os.unlink(path)
    raise Failure("no file lies in the last allocation group")


def _gone(t, variant, mapped):
    """The driver lets go of the device under a mounted filesystem in use."""
    fs = mountable(variant)
    if not device.exists(DEVICE):
        raise Skip(f"there is no {DEVICE}")
    if variant != "xfs" and not device.adopted(DEVICE):
        raise Skip("the kernel's own code crashes here")
    was = device.adopted(DEVICE)
    file = f"{fs.mount_point}/file"
    if variant == "xfs":
        run(*fs.variant.mkfs, "-d", "agcount=2", fs.node)
        fs.mount()
        file = _file_of_last_group(fs)
    else:
        fs.make()
        fs.mount()
    driver, name = device.driver_of(DEVICE)
    ready = os.pipe()

    def user():
        """Uses files until that fails, as it must; how it failed."""
        fd = os.open(file, os.O_RDWR | os.O_CREAT)
        posix.fallocate(fd, 0, 0, 4 * PMD)
        huge, small = (Map(fd, 4 * PMD), Map(fd, 4 * PMD, skew=PAGE)) if mapped else (None, None)
        told = False
        while True:
            try:
                os.pwrite(fd, pages("u", 4), 8 * PAGE)
                os.pread(fd, PAGE, 3 * PMD)
            except OSError as error:
                return f"errno {error.errno}"
            if mapped:
                for m in (huge, small):
                    fault = m.store(PMD + 5 * PAGE, 1)
                    if fault.signal:
                        return f"signal {fault.signal}"
                    # Come by a fault again each time.
                    m.advise(posix.MADV_DONTNEED)
            if not told:
                os.write(ready[1], b"r")
                told = True

    # Of the same group.
    new = os.open(os.path.join(os.path.dirname(file), "new"), os.O_RDWR | os.O_CREAT)
    posix.fallocate(new, 0, 0, PMD)
    task = Task(user)
    equal(os.read(ready[0], 1), b"r", "the user's sign")
    unbind = Task(write, f"{driver}/unbind", name, name="unbind")
    unbind.result()
    # There are no zeroes to be put on these blocks any more.
    raises((5, 6, 19, 30), "writing to new blocks of the lost device", os.pwrite, new, page("n"), 0)
    os.close(new)
    if task.join(30) and os.WIFSIGNALED(task.status):
        ended = f"signal {os.WTERMSIG(task.status)}, which killed it"
    else:
        ended = task.result()
    t.note(f"the user ended with {ended}")
    try:
        fd = os.open(file, os.O_RDONLY)
        raises((5, 6, 19), "reading a file of the lost device", os.pread, fd, PAGE, 0)
        os.close(fd)
    except OSError as error:
        check(error.errno in (5, 6, 19), f"opening a file of the lost device: {error}")
    come_back(fs, driver, name, was)


@case(fs=(), quick=False)
def device_goes_under_xfs(t):
    _gone(t, "xfs", mapped=False)


@case(fs=())
def device_goes_under_xfs_with_mappings(t):
    _gone(t, "xfs", mapped=True)


@case(fs=())
def device_goes_under_xfs_without_reverse_map(t):
    """This filesystem is not told, so nobody is killed beforehand."""
    _gone(t, "xfs-noreflink", mapped=True)


@case(fs=())
def device_with_pages_in_use_goes(t):
    """The driver waits for who holds a page of it, and then goes on.

    Meanwhile accesses to other pages of the entry that the page is of fail at once: whoever makes
    them may be the one who holds the page.
    """
    held = []

    def hold(fs, pipe):
        fd = os.open(f"{fs.mount_point}/file", os.O_RDWR | os.O_CREAT)
        posix.fallocate(fd, 0, 0, 2 * PMD)
        m = Map(fd, 2 * PMD)
        held.extend((fd, m))
        m.write(0, pages("h", 1024))
        m.splice(pipe, PMD + PAGE)

    with going("ext4", hold, page("h", PMD // PAGE + 1)):
        fd, m = held

        def touch():
            for offset in (PMD + PAGE, PMD + 5 * PAGE, 0):
                m.bus_error(offset, "memory of the device that is going")
                m.bus_error(offset, "memory of the device that is going", write=True)

        Task(touch).result(10)
        m.unmap()
        os.close(fd)


@case(fs=())
def device_with_pages_in_use_goes_that_no_file_has(t):
    """XFS lets go of its files before; the pages are waited for all the same."""

    def hold(fs, pipe):
        file = _file_of_last_group(fs)

        def splice():
            fd = os.open(file, os.O_RDWR)
            with Map(fd, 2 * PMD) as m:
                m.write(PMD + PAGE, page("x", 1))
                os.fsync(fd)
                m.splice(pipe, PMD + PAGE)
            os.close(fd)

        Task(splice).result(30)

    with going("xfs", hold, page("x", 1)):
        pass


@case(fs=())
def device_with_a_deleted_file_in_use_goes(t):
    """A file that waits to be evicted cannot be found any more, and still has its pages."""

    def hold(fs, pipe):
        splice_from(fs, pipe, page("c", 1))
        Task(os.unlink, f"{fs.mount_point}/file", name="unlink").result()

    with going("ext4", hold, page("c", 1)):
        pass


@case(fs=(), quick=False)
def device_goes_under_ext4(t):
    _gone(t, "ext4", mapped=False)


@case(fs=())
def device_goes_under_ext4_with_mappings(t):
    _gone(t, "ext4", mapped=True)
