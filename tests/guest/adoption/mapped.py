# SPDX-License-Identifier: GPL-2.0
"""Devices that are made of others."""

import contextlib
import itertools
import os
import signal

from lib import device, posix
from lib.check import check, equal, same_bytes
from lib.device import CONFIG, Stats, run, some, wait_for, write
from lib.mapping import Map
from lib.pattern import page, pages
from lib.posix import PAGE, PMD
from lib.runner import Log, case
from lib.task import Task

from .common import (DEVICE, Item, MOUNT, OTHER, mapped, mountable, mounted_on, need,
                     splice_from)


@case(fs=())
def mapped_device(t):
    """A device-mapper device on top of pmem is a device of its own."""
    need(DEVICE)
    with Item(DEVICE, adopt=False), \
            mapped(f"0 {device.size(DEVICE) >> 9} linear /dev/{DEVICE} 0") as name:
        with mounted_on(name) as directory:
            stats = Stats(name)
            fd = os.open(f"{directory}/file", os.O_RDWR | os.O_CREAT)
            os.ftruncate(fd, PMD)
            with Map(fd, PMD, skew=PAGE) as m:
                m.write(0, pages("l", 64))
            same_bytes(os.pread(fd, 64 * PAGE, 0), pages("l", 64), "the file")
            os.close(fd)
            stats.expect(write_pte=some, read_bytes=64 * PAGE)


@case(fs=())
def mapped_device_is_suspended_while_its_unmount_waits(t):
    """That freezes the filesystem, which has a reference then that is nobody's mount; it comes to its end all
    the same, whether the page is idle before it is thawed or afterwards."""
    need(DEVICE)
    table = f"0 {device.size(DEVICE) >> 9} linear /dev/{DEVICE} 0"
    with Item(DEVICE, adopt=False), mapped(table) as name:
        for variant, thawed in itertools.product(("xfs", "ext4"), (False, True)):
            fs, (reader, writer) = mountable(variant, name), os.pipe()
            fs.make()
            fs.mount()
            splice_from(fs, writer, page("s", 1))
            unmount = Task(fs.umount, name="umount")
            unmount.blocked_in("umount2")
            Task(run, "dmsetup", "suspend", "rdax-linear", name="dmsetup").result()
            unmount.blocked_in("umount2")
            if thawed:
                Task(run, "dmsetup", "resume", "rdax-linear", name="dmsetup").result()
                unmount.blocked_in("umount2")
                Task(os.sync, name="sync").result()
            check(not device.is_free(name), "the filesystem has ended with a page held")
            same_bytes(os.read(reader, PAGE), page("s", 1), "what comes out of the pipe")
            unmount.result()
            if not thawed:
                check(not device.is_free(name), "the filesystem has ended while it was frozen")
                Task(run, "dmsetup", "resume", "rdax-linear", name="dmsetup").result()
            wait_for(lambda: device.is_free(name), "end of the filesystem")
            os.close(reader)
            os.close(writer)


@case(fs=())
def mapped_device_in_pieces(t):
    """Where a device's memory lies in pieces, nothing is mapped or copied across their border."""
    need(DEVICE)
    # Not where 2 MiB begin; the second piece lies before the first.
    border, size = 301 * PMD // 2, 300 * PMD
    table = [f"0 {border >> 9} linear /dev/{DEVICE} {size >> 9}",
             f"{border >> 9} {(size - border) >> 9} linear /dev/{DEVICE} 0"]
    with Item(DEVICE, adopt=False), mapped(*table) as name:
        with mounted_on(name, "ext4") as directory:
            fd = os.open(f"{directory}/file", os.O_RDWR | os.O_CREAT)
            os.posix_fallocate(fd, 0, 220 * PMD)
            # The extent that the border is in the middle of.
            begins = [logical + border - physical for logical, physical, length, _ in
                      posix.extents(fd) if physical + PMD <= border <= physical + length - PMD]
            check(begins, f"no extent reaches over {border}: {posix.extents(fd)}")
            first = (begins[0] - PMD) // PMD * PMD
            os.pwrite(fd, pages("p", 4 * PMD // PAGE), first)
            os.fsync(fd)
            same_bytes(os.pread(fd, 4 * PMD, first), pages("p", 4 * PMD // PAGE), "the file")
            for write in (False, True):
                with Map(fd, 4 * PMD, offset=first) as m:
                    m.touch(write=write)
                    same_bytes(m.read(0, 4 * PMD), pages("p", 4 * PMD // PAGE), "the mapping")
            with Map(fd, 4 * PMD, offset=first) as m:
                m.write(0, pages("q", 4 * PMD // PAGE))
            same_bytes(os.pread(fd, 4 * PMD, first), pages("q", 4 * PMD // PAGE), "what was stored")
            os.close(fd)


@contextlib.contextmanager
def _driver_of(name):
    """Lets the driver go from a pmem device, and has it back in the end."""
    path = os.path.realpath(f"/sys/block/{name}/device")
    driver, below = os.path.realpath(f"{path}/driver"), os.path.basename(path)
    try:
        yield lambda: write(f"{driver}/unbind", below)
    finally:
        if not os.path.exists(f"{driver}/{below}"):
            write(f"{driver}/bind", below)
        wait_for(lambda: os.path.exists(f"/dev/{name}"), f"new {name}")


@case(fs=())
def mapped_device_loses_what_is_below(t):
    """It is told although it stays itself: its users are, and pages in use are waited for."""
    need(DEVICE)
    log, ready, pipe = Log(), os.pipe(), os.pipe()
    with Item(DEVICE, adopt=False), _driver_of(DEVICE) as let_go, \
            mapped(f"0 {device.size(DEVICE) >> 9} linear /dev/{DEVICE} 0") as name, \
            mounted_on(name, "ext4") as directory:

        def user():
            fd = os.open(f"{directory}/file", os.O_RDWR | os.O_CREAT)
            posix.fallocate(fd, 0, 0, 4 * PMD)
            huge, small = Map(fd, 4 * PMD), Map(fd, 4 * PMD, skew=PAGE)
            huge.write(0, pages("d", 8))
            small.write(2 * PMD, pages("d", 8))
            huge.splice(pipe[1], PAGE)
            os.write(ready[1], b"r")
            signal.pause()

        task = Task(user)
        equal(os.read(ready[0], 1), b"r", "the user's sign")
        unbind = Task(let_go, name="unbind")
        try:
            wait_for(lambda: unbind.done() or any("its pages are in use" in line
                                                  for line in log.read()), "word of pages in use")
            check(not unbind.done(), "the driver let go of memory that is in use")
        finally:
            out = os.read(pipe[0], PAGE)
            unbind.result(30)
            task.kill()
            equal(task.signalled(), signal.SIGKILL, "the signal that ended the user")
        same_bytes(out, page("d", 1), "what comes out of the pipe")


@case(fs=())
def mapped_device_gets_other_memory(t):
    """What was not there when it was adopted could not be waited for: it is read and written only."""
    need(DEVICE, OTHER)
    sectors = min(device.size(DEVICE), device.size(OTHER)) >> 9
    with Item(DEVICE, adopt=False), Item(OTHER, adopt=False), \
            mapped(f"0 {sectors} linear /dev/{DEVICE} 0") as name:
        run("dmsetup", "reload", "rdax-linear", "--table", f"0 {sectors} linear /dev/{OTHER} 0")
        run("dmsetup", "resume", "rdax-linear")
        for known in (False, True):
            fs, path = mountable("ext4", name), f"{MOUNT}-{name}/file"
            fs.make()
            fs.mount()
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT)
                posix.fallocate(fd, 0, 0, PMD)
                os.pwrite(fd, pages("k", 8), 0)
                same_bytes(os.pread(fd, 8 * PAGE, 0), pages("k", 8), "the file")
                with Map(fd, PMD) as m:
                    if known:
                        same_bytes(m.read(0, 8 * PAGE), pages("k", 8), "the mapping")
                    else:
                        m.bus_error(0, "memory that is not known")
                os.close(fd)
            finally:
                fs.umount()
            write(f"{CONFIG}/{name}/adopt", "0")
            write(f"{CONFIG}/{name}/adopt", "1")


@case(fs=(), quick=False)
def partition(t):
    """A partition is named by its own name; the whole disk is another device."""
    need(DEVICE)
    with Item(DEVICE, adopt=False), device.partition(DEVICE) as part, Item(part, adopt=True):
        # With reflink XFS takes whole disks only.
        fs = mountable("xfs-noreflink", name=part)
        fs.make()
        fs.mount()
        try:
            stats = Stats(part)
            fd = os.open(f"{fs.mount_point}/file", os.O_RDWR | os.O_CREAT)
            posix.fallocate(fd, 0, 0, 2 * PMD)
            with Map(fd, 2 * PMD) as m:
                m.write(0, pages("p", 64))
                same_bytes(os.pread(fd, 64 * PAGE, 0), pages("p", 64), "the file")
            os.close(fd)
            stats.expect(write_pmd=some)
        finally:
            fs.umount()
