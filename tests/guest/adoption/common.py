# SPDX-License-Identifier: GPL-2.0
"""What the cases of adopted devices have in common."""

import contextlib
import os
import re

from lib import device, posix
from lib.check import Skip, check, equal, same_bytes
from lib.device import CONFIG, Stats, read, run, some, wait_for, write
from lib.fs import Filesystem, VARIANTS
from lib.mapping import Map
from lib.pattern import page, pages
from lib.posix import PAGE, PMD
from lib.runner import Log
from lib.task import Task

EIO, EBUSY, ENODEV, EINVAL, EOPNOTSUPP = 5, 16, 19, 22, 95
DEVICE, OTHER = "pmem1", "pmem0"
MOUNT = "/mnt/rdax-adoption"


def need(*names):
    if not device.module_loaded():
        raise Skip("the module is not loaded")
    for name in names:
        if not device.exists(name):
            raise Skip(f"there is no {name}")


class Item:
    """rdax/NAME in configfs, put back as it was in the end."""

    def __init__(self, name, adopt=None):
        self.name, self.path, self.want = name, f"{CONFIG}/{name}", adopt

    def __enter__(self):
        self.there, self.was = os.path.isdir(self.path), device.adopted(self.name)
        if not self.there:
            os.mkdir(self.path)
        if self.want is not None:
            self.set(self.want)
        return self

    def __exit__(self, *_):
        if not self.there:
            if os.path.isdir(self.path):
                if self.adopted():
                    self.set(False)
                os.rmdir(self.path)
            return
        if not os.path.isdir(self.path):
            os.mkdir(self.path)
        if self.adopted() != self.was:
            self.set(self.was)

    def set(self, adopt):
        write(f"{self.path}/adopt", "1" if adopt else "0")

    def adopted(self):
        return read(f"{self.path}/adopt") == "1"


@contextlib.contextmanager
def mapped(*table):
    """A device of the device mapper over others, adopted; its name."""
    os.environ["DM_DISABLE_UDEV"] = "1"
    run("modprobe", "dm-mod")
    run("dmsetup", "create", "rdax-linear", "--table", "\n".join(table))
    try:
        name = os.path.basename(os.path.realpath("/dev/mapper/rdax-linear"))
        if not name.startswith("dm-"):
            number = run("dmsetup", "info", "-c", "--noheadings", "-o", "minor", "rdax-linear")
            name = f"dm-{number.strip()}"
        with Item(name, adopt=True):
            yield name
    finally:
        run("dmsetup", "remove", "rdax-linear")


def mountable(variant="xfs", name=DEVICE):
    return Filesystem(VARIANTS[variant], name, f"{MOUNT}-{name}")


def enabled():
    """The lines about functions that something is called for."""
    text = read("/sys/kernel/tracing/enabled_functions")
    # What a function calls at its entry follows on a line of its own.
    return re.sub(r"\n\s*direct-->", " direct-->", text).splitlines()


def redirected():
    """Functions of the DAX layer whose callers are sent elsewhere, in either way."""
    return [line.split()[0] for line in enabled()
            if "dax" in line.split()[0]
            and (" I " in f" {line} " or "direct-->rdax_direct_call" in line)]


class Watched:
    """An adopted filesystem with a file of 4 pages, which is written, mapped, and synced."""

    def __init__(self, fs):
        self.fs = fs

    def __enter__(self):
        self.fs.make()
        self.fs.mount()
        self.fd = os.open(f"{self.fs.mount_point}/file", os.O_RDWR | os.O_CREAT)
        os.pwrite(self.fd, pages("a", 4), 0)
        return self

    def __exit__(self, *_):
        os.close(self.fd)
        self.fs.umount()

    def use(self):
        stats = Stats(DEVICE)
        equal(os.pwrite(self.fd, pages("b", 4), 0), 4 * PAGE, "bytes written")
        with Map(self.fd, 4 * PAGE) as m:
            same_bytes(m.read(0, 4 * PAGE), pages("b", 4), "what is mapped")
            m.write(PAGE, page("c"))
        os.fsync(self.fd)
        stats.expect(write_bytes=4 * PAGE, read_pte=some, writeback_entries=some)

    def check(self):
        expected = pages("b", 1) + page("c") + pages("b", 2, 2)
        same_bytes(os.pread(self.fd, 4 * PAGE, 0), expected, "the file")


@contextlib.contextmanager
def mounted_on(name, variant="xfs"):
    fs = mountable(variant, name)
    fs.make()
    fs.mount()
    try:
        yield fs.mount_point
    finally:
        fs.umount()


def come_back(fs, driver, name, was):
    """The driver takes the device again, which is as good as before."""
    if fs.mounted:
        Task(fs.umount).result(30)
    if was:
        write(f"{CONFIG}/{DEVICE}/adopt", "0")
    device.bind(DEVICE, driver, name)
    if was:
        write(f"{CONFIG}/{DEVICE}/adopt", "1")
    fs.make()
    fs.mount()
    stats = Stats(DEVICE)
    fd = os.open(f"{fs.mount_point}/file", os.O_RDWR | os.O_CREAT)
    posix.fallocate(fd, 0, 0, PMD)
    with Map(fd, PMD) as m:
        m.write(0, pages("n", 512))
    same_bytes(os.pread(fd, PMD, 0), pages("n", 512), "a file on the device that came back")
    os.close(fd)
    fs.umount()
    stats.expect(read_bytes=PMD)


@contextlib.contextmanager
def going(variant, hold, has, let_go=None):
    """The driver lets go of a mounted device while a page of it is in a pipe.

    `hold` puts the page there: it is given the filesystem and the pipe. Yields while the driver waits
    for it; afterwards the page comes out of the pipe and the driver goes on. `has` is what is in it.
    With `let_go` the page is held by something else, until that is called.
    """
    need(DEVICE)
    was = device.adopted(DEVICE)
    if not was:
        raise Skip("the kernel's own code crashes here")
    fs, log = mountable(variant), Log()
    if variant == "xfs":
        run(*fs.variant.mkfs, "-d", "agcount=2", fs.node)
    else:
        fs.make()
    fs.mount()
    driver, name = device.driver_of(DEVICE)
    reader, writer = os.pipe()
    hold(fs, writer)
    os.close(writer)
    unbind = Task(write, f"{driver}/unbind", name, name="unbind")
    try:
        wait_for(lambda: any("its pages are in use" in line for line in log.read()),
                 "word of pages in use")
        check(not unbind.done(), "the driver let go of memory that is in use")
        yield
        check(not unbind.done(), "the driver let go of memory that is in use")
    finally:
        out = has if let_go else os.read(reader, PAGE)
        if let_go:
            let_go()
        os.close(reader)
    same_bytes(out, has, "what comes out of the pipe")
    unbind.result(30)
    come_back(fs, driver, name, was)


def splice_from(fs, pipe, data):
    """Put a page of a new file into the pipe; the file is mapped and open no more."""
    fd = os.open(f"{fs.mount_point}/file", os.O_RDWR | os.O_CREAT)
    posix.fallocate(fd, 0, 0, PMD)
    with Map(fd, PMD) as m:
        m.write(PAGE, data)
        m.splice(pipe, PAGE)
    os.close(fd)
