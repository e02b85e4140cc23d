# SPDX-License-Identifier: GPL-2.0
"""Adoption and release of a device; filesystems that are mounted and unmounted."""

import ctypes
import errno
import os

from lib import device, posix
from lib.check import Skip, check, same_bytes
from lib.device import CONFIG, read, write
from lib.mapping import Map
from lib.pattern import pages
from lib.runner import case
from .common import (COUNT, MKDIR, MOUNT, RMDIR, SIZE, UMOUNT, WRITE, Calls, holds, path_argument, sweep)

OTHER = "pmem1"


@case(fs=(), timeout=600)
def adopt_and_release(t):
    _adopt_and_release(t)


@case(fs=(), timeout=600)
def adopt_the_first_and_release_the_last(t):
    """The kernel's functions are redirected, and given back."""
    other = "pmem0"
    was = device.adopted(other)
    if was:
        write(f"{CONFIG}/{other}/adopt", "0")
    try:
        _adopt_and_release(t)
    finally:
        if was:
            write(f"{CONFIG}/{other}/adopt", "1")


def _adopt_and_release(t):
    name = OTHER
    if not device.exists(name):
        raise Skip(f"there is no {name}")
    item = f"{CONFIG}/{name}"
    was = device.adopted(name)
    if was:
        write(f"{item}/adopt", "0")
        os.rmdir(item)
    path = path_argument(item)

    def switch(calls, value):
        fd, text = os.open(f"{item}/adopt", os.O_WRONLY), path_argument(value)
        done = calls.call(WRITE, fd, ctypes.addressof(text), 1) >= 0
        check((read(f"{item}/adopt") == value) == done, "adopt says something else than it did")
        os.close(fd)
        if not done:
            write(f"{item}/adopt", value)

    def once(failing):
        calls = Calls(failing)
        if calls.call(MKDIR, ctypes.addressof(path), 0o755) < 0:
            check(not os.path.exists(item), "mkdir failed, but made a directory")
            os.mkdir(item)
        switch(calls, "1")
        holds("after adoption")
        switch(calls, "0")
        if calls.call(RMDIR, ctypes.addressof(path)) < 0:
            os.rmdir(item)
        return calls.end()

    try:
        sweep(t, once)
    finally:
        if was:
            os.makedirs(item, exist_ok=True)
            write(f"{item}/adopt", "1")


@case(fs=("xfs",), timeout=1800)
def mount_and_unmount(t):
    """A file that was mapped and stored to is what it was after the filesystem is mounted again.

    Not of ext4, whose own code warns when it had no memory for its files in /proc (remove_proc_entry()).
    """
    if not device.exists(OTHER):
        raise Skip(f"there is no {OTHER}")
    variant, at, path = t.variant, f"/mnt/sweep-{OTHER}", f"/dev/{OTHER}"
    os.makedirs(at, exist_ok=True)
    device.run(*variant.mkfs, path)
    source, target, kind, options = (path_argument(each) for each in (path, at, variant.kind, variant.options))

    def mount():
        posix.mount(path, at, variant.kind, variant.options)

    def once(failing):
        calls = Calls(failing)
        done = calls.call(MOUNT, *(ctypes.addressof(each) for each in (source, target, kind)), 0,
                          ctypes.addressof(options), others=(errno.EIO, errno.EINVAL, errno.EUCLEAN))
        holds("after mounting")
        if done < 0:
            mount()
        fd = os.open(f"{at}/file", os.O_RDWR | os.O_CREAT)
        posix.fallocate(fd, 0, 0, SIZE)
        with Map(fd, SIZE) as m:
            m.write(0, pages("u", COUNT))
        os.close(fd)
        if calls.call(UMOUNT, ctypes.addressof(target), 0, others=(errno.EBUSY,)) < 0:
            posix.umount(at)
        holds("after unmounting")
        mount()
        fd = os.open(f"{at}/file", os.O_RDONLY)
        same_bytes(os.pread(fd, SIZE, 0), pages("u", COUNT), "the file, mounted again")
        os.close(fd)
        posix.umount(at)
        return calls.end()
    # Hundreds of them, most of what is no matter of DAX.
    sweep(t, once, rows=True, step=7)
