# SPDX-License-Identifier: GPL-2.0
"""Devices that virtual machines are given instead of nvdimms: virtio-pmem, and CXL memory."""

import contextlib
import errno
import json
import os
import subprocess

from adoption.common import Item, mapped
from devdax.common import BUS
from lib import device, posix
from lib.check import Skip, check, equal, raises, same_bytes
from lib.device import Stats, run, some, wait_for, write
from lib.fs import Filesystem, VARIANTS
from lib.mapping import Map
from lib.pattern import page, pages
from lib.posix import PAGE, PMD
from lib.runner import case
from lib.task import Task
from lib.trace import Calls, Pages

MOUNT = "/mnt/rdax-virtual"
MEMBARRIER, MEMBARRIER_CMD_GLOBAL = 324, 1
# XFS wants two groups at least, each with room for the log.
SMALL = {"xfs": ["-d", "agcount=2"]}


def _load(*modules):
    run("modprobe", "-a", *modules, ok=(0, 1))


def _listed(*command):
    """What a command says in JSON, which is nothing where it knows of nothing; then it warns."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    return json.loads(done.stdout or "[]")


def _of_provider(name):
    """The regions of pmem that are given in that way."""
    buses = [bus for bus in _listed("ndctl", "list", "-BRN") if bus.get("provider") == name]
    return buses[0].get("regions", []) if buses else []


def _virtio():
    """The pmem device that the host has given by virtio."""
    _load("virtio_pmem", "nd_pmem")
    regions = _of_provider("virtio-pmem")
    if not regions:
        raise Skip("this machine has no virtio-pmem device (scripts/guest --virtio-pmem)")
    name = regions[0]["namespaces"][0]["blockdev"]
    wait_for(lambda: os.path.exists(f"/dev/{name}"), name)
    return name


def _make_region(kind):
    """A region of all memory of that kind of a CXL device."""
    _load("cxl_acpi", "cxl_pci", "cxl_mem", "cxl_port", "cxl_pmem", "dax_cxl")
    if not os.path.isdir("/sys/bus/cxl/devices/root0"):
        raise Skip("this machine has no CXL memory (scripts/guest --cxl)")
    size = f"{kind}_size"
    wait_for(lambda: any(m.get(size) for m in _listed("cxl", "list", "-M")), f"CXL memory ({kind})")
    if not any(r["type"] == kind for r in _listed("cxl", "list", "-R")):
        memory = next(m["memdev"] for m in _listed("cxl", "list", "-M") if m.get(size))
        run("cxl", "create-region", "-m", "-t", kind, "-d", "decoder0.0", "-w", "1", memory)


class _Filesystem(Filesystem):
    def _must_be_dax(self):
        """Not every device lets files be mapped with MAP_SYNC; that they are DAX the counters tell."""


@contextlib.contextmanager
def _adopted(name, variant):
    """A filesystem on the device, adopted; its directory."""
    fs = _Filesystem(VARIANTS[variant], name, MOUNT)
    with Item(name, adopt=True):
        run(*fs.variant.mkfs, *SMALL.get(variant, ()), fs.node)
        fs.mount()
        try:
            yield fs
        finally:
            fs.umount()
        fs.check()


def _use(fs, synchronous):
    """Stores, fsync, reads, a truncate while a page is held, and what is there when it is mounted again."""
    stats = Stats(fs.device)
    fd = os.open(f"{fs.mount_point}/file", os.O_RDWR | os.O_CREAT)
    posix.fallocate(fd, 0, 0, 4 * PMD)
    with Map(fd, 4 * PMD) as large, Map(fd, 4 * PMD, skew=PAGE) as small:
        large.write(0, pages("v", 8))
        small.write(3 * PMD, pages("w", 8))
        pfns = large.pfns(0, 8 * PAGE)
        os.fsync(fd)
        stats.expect(write_pmd=some, writeback_entries=some)
        same_bytes(os.pread(fd, 8 * PAGE, 0), pages("v", 8), "what was stored")
        os.pwrite(fd, page("x"), PMD)
        same_bytes(large.read(PMD, PAGE), page("x"), "what was written")
    flags = posix.MAP_SHARED_VALIDATE | posix.MAP_SYNC
    if synchronous:
        with Map(fd, PAGE, flags=flags) as m:
            m.write(0, page("s"))
    else:
        raises(errno.EOPNOTSUPP, "MAP_SYNC", lambda: Map(fd, PAGE, flags=flags))
    os.close(fd)
    fs.remount()
    fd = os.open(f"{fs.mount_point}/file", os.O_RDWR)
    same_bytes(os.pread(fd, 8 * PAGE, 3 * PMD), pages("w", 8), "the file, mounted again")
    reader, writer = os.pipe()
    with Map(fd, 4 * PMD) as m:
        equal(posix.vmsplice(writer, m.address + 3 * PMD, PAGE), PAGE, "bytes in the pipe")
    stats = Stats(fs.device)
    truncate = Task(os.ftruncate, fd, 0)
    try:
        truncate.blocked_in("ftruncate")
    finally:
        same_bytes(os.read(reader, PAGE), page("w"), "what comes out of the pipe")
        truncate.result()
    stats.expect(layout_waits=some)
    Pages().check_free(pfns, "after truncate")
    for end in (fd, reader, writer):
        os.close(end)


def _virtio_on(variant):
    name = _virtio()
    with _adopted(name, variant) as fs:
        _use(fs, synchronous=False)
        # What is in the host's memory is not on its disk.
        fd = os.open(f"{fs.mount_point}/flushed", os.O_RDWR | os.O_CREAT)
        posix.fallocate(fd, 0, 0, PMD)
        os.fsync(fd)
        with Map(fd, PMD) as m, Calls("virtio_pmem_flush") as flushes:
            for what, sync in (("fsync", lambda: os.fsync(fd)), ("msync", m.sync)):
                before = flushes.count()
                m.write(0, page(what[0]))
                sync()
                check(flushes.count() > before, f"{what} did not have the host flush")
            before = flushes.count()
            synchronous = os.open(f"{fs.mount_point}/flushed", os.O_WRONLY | os.O_DSYNC)
            os.pwrite(synchronous, page("d"), PAGE)
            check(flushes.count() > before, "O_DSYNC did not have the host flush")
            os.close(synchronous)
        os.close(fd)


@case(fs=(), timeout=120)
def virtio_pmem_with_xfs(t):
    _virtio_on("xfs")


@case(fs=(), timeout=120)
def virtio_pmem_with_ext4(t):
    _virtio_on("ext4")


def _maps_synchronously(fs):
    """Whether a file may be mapped with MAP_SYNC."""
    fs.mount()
    try:
        with open(f"{fs.mount_point}/file", "w+b") as file:
            file.truncate(PAGE)
            try:
                with Map(file.fileno(), PAGE, flags=posix.MAP_SHARED_VALIDATE | posix.MAP_SYNC):
                    return True
            except OSError as error:
                equal(error.errno, errno.EOPNOTSUPP, "errno of MAP_SYNC")
                return False
    finally:
        fs.umount()


def _namespaces_of(*names):
    """The namespaces of pmem devices."""
    regions = [region for bus in _listed("ndctl", "list", "-BRN") for region in bus.get("regions", [])]
    spaces = {space["blockdev"]: space["dev"] for region in regions for space in region["namespaces"]}
    return [spaces[name] for name in names]


def _disable(*namespaces):
    for namespace in namespaces:
        run("ndctl", "disable-namespace", namespace)
    # What the core has for them is freed after a grace period.
    posix.syscall(MEMBARRIER, MEMBARRIER_CMD_GLOBAL, 0, 0)


def _marked_as_synchronous(name, other):
    """An ext4 on the asynchronous device, which the core takes for synchronous: what it has allocated for
    another, and freed, it takes for this one, with the mark."""
    ours, others = _namespaces_of(name, other)
    fs = _Filesystem(VARIANTS["ext4"], name, MOUNT)
    run(*fs.variant.mkfs, fs.node)
    with Item(other, adopt=False):
        for _ in range(20):
            _disable(ours, others)
            run("ndctl", "enable-namespace", ours)
            run("ndctl", "enable-namespace", others)
            if _maps_synchronously(fs):
                return fs
    raise Skip("the core has given the device other memory each time")


@case(fs=(), timeout=120)
def mapped_device_above_virtio_pmem(t):
    """The device mapper takes the core's word for what it is made of, in part."""
    name, other = _virtio(), "pmem1"
    _marked_as_synchronous(name, other)
    sectors = device.size(name) >> 10
    table = [f"0 {sectors} linear /dev/{other} 0", f"{sectors} {sectors} linear /dev/{name} 0"]
    with Item(other, adopt=False), Item(name, adopt=False):
        for what, pieces, adopted in (("both", table, False), ("the synchronous one", table[:1], True)):
            with mapped(*pieces) as above:
                fs = _Filesystem(VARIANTS["ext4"], above, MOUNT)
                run(*fs.variant.mkfs, fs.node)
                equal(_maps_synchronously(fs), adopted, f"MAP_SYNC above {what} when it is adopted")
                device.adopt(above, False)
                equal(_maps_synchronously(fs), True, f"MAP_SYNC above {what} when it is released")
                device.adopt(above, True)


@case(fs=(), timeout=120)
def virtio_pmem_in_the_place_of_another_device(t):
    name, other = _virtio(), "pmem1"
    fs = _marked_as_synchronous(name, other)
    with Item(name, adopt=True):
        equal(_maps_synchronously(fs), False, "MAP_SYNC when it is adopted")
    equal(_maps_synchronously(fs), True, "MAP_SYNC when it is released")


@case(fs=(), timeout=240)
def another_device_in_the_place_of_virtio_pmem_that_is_gone(t):
    """What the core had for a device that is adopted, and gone, it takes for another, which is synchronous."""
    name, other = _virtio(), "pmem1"
    ours, others = _namespaces_of(name, other)
    fs = _Filesystem(VARIANTS["ext4"], other, MOUNT)
    with Item(other, adopt=False):
        run(*fs.variant.mkfs, fs.node)
        with Item(name, adopt=True) as item:
            _disable(ours)
            try:
                for _ in range(10):
                    _disable(others)
                    run("ndctl", "enable-namespace", others)
                    equal(_maps_synchronously(fs), True, "MAP_SYNC on the other device")
            finally:
                item.set(False)
                run("ndctl", "enable-namespace", ours)
                wait_for(lambda: os.path.exists(f"/dev/{name}"), name)


def _namespaces(region):
    return _listed("ndctl", "list", "-N", "-r", region)


@case(fs=(), timeout=120)
def cxl_persistent_memory(t):
    """It is pmem like any other, with MAP_SYNC."""
    _make_region("pmem")
    wait_for(lambda: _of_provider("CXL"), "region of pmem")
    below = _of_provider("CXL")[0]["dev"]
    if not _namespaces(below):
        run("ndctl", "create-namespace", "-r", below, "-m", "fsdax")
    name = _namespaces(below)[0]["blockdev"]
    for variant in ("xfs", "ext4"):
        with _adopted(name, variant) as fs:
            _use(fs, synchronous=True)


@case(fs=(), timeout=120)
def cxl_volatile_memory(t):
    """It is a device of device DAX, which the module's driver takes."""
    _make_region("ram")
    device_ = next(d["chardev"] for d in _listed("daxctl", "list", "-D")
                   if "/decoder" in os.path.realpath(f"{BUS}/devices/{d['chardev']}"))
    bound = f"{BUS}/devices/{device_}/driver"
    was = os.path.basename(os.readlink(bound)) if os.path.islink(bound) else None
    if was:
        write(f"{BUS}/drivers/{was}/unbind", device_)
    write(f"{BUS}/drivers/rdax/new_id", device_)
    try:
        wait_for(lambda: os.path.exists(f"/dev/{device_}"), device_)
        fd = os.open(f"/dev/{device_}", os.O_RDWR)
        with Map(fd, 2 * PMD) as m:
            m.write(PMD - 4 * PAGE, pages("c", 8))
            same_bytes(m.read(PMD - 4 * PAGE, 8 * PAGE), pages("c", 8), "the mapping")
        with Map(fd, 2 * PMD) as m:
            same_bytes(m.read(PMD - 4 * PAGE, 8 * PAGE), pages("c", 8), "another mapping")
        os.close(fd)
    finally:
        # It waits for whoever has a page.
        Task(write, f"{BUS}/drivers/rdax/unbind", device_).result()
        write(f"{BUS}/drivers/rdax/remove_id", device_)
        if was:
            write(f"{BUS}/drivers/{was}/bind", device_)
