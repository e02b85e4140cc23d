# SPDX-License-Identifier: GPL-2.0
"""Which calls /dev/rdax refuses, and that it stays while somebody may ask."""

import ctypes
import errno
import os

from lib import device, ioctl, posix
from lib.ioctl import Asker, MapCall, MapRecord, WaitRecord, WaitsCall
from lib.check import Skip, check, equal
from lib.device import CONFIG, run
from lib.fs import VARIANTS
from lib.mapping import Map
from lib.pattern import file as _file
from lib.posix import PAGE, PMD
from lib.runner import case

from .common import need


def _refusals(asker, make, nr, record):
    """What is wrong in the call itself; `make` makes a right one."""
    known = ctypes.sizeof(type(make()))

    def error(size=known, nr=nr, tail=b"", **fields):
        room = ctypes.create_string_buffer(max(size, known) + 64)
        asked = make()
        for name, value in fields.items():
            setattr(asked, name, value)
        ctypes.memmove(room, ctypes.addressof(asked), known)
        ctypes.memmove(ctypes.addressof(room) + known, tail, len(tail))
        before = bytes(room)
        found = ioctl.call(asker.fd, ioctl.number(nr, size), ctypes.addressof(room))
        check(bytes(room)[size:] == before[size:], f"more than {size} bytes were written")
        return found

    equal(error(), 0, "errno of the call as it should be")
    equal(error(size=known - 8), errno.EINVAL, "errno of a structure that is too small")
    equal(error(size=0), errno.EINVAL, "errno of one of nothing")
    equal(error(size=known + 32), 0, "errno of a larger one with zeroes")
    equal(error(size=known + 32, tail=b"\0" * 31 + b"\1"), errno.E2BIG, "errno with more than is known")
    equal(error(size=16383), 0, "errno of the largest with zeroes")
    for field in ("flags", "reserved"):
        equal(error(**{field: 1}), errno.EINVAL, f"errno for {field}")
    for size in (0, 4, record - 8, record + 4, 8192):
        equal(error(record_size=size), errno.EINVAL, f"errno for records of {size} bytes")
    equal(error(record_size=record + 8), 0, "errno for larger records")
    for nr_ in (3, 77, 255):
        equal(error(nr=nr_), errno.ENOTTY, f"errno of call {nr_}")
    for pointer in (0, 8, PAGE - 8, 1 << 47, (1 << 64) - 8):
        equal(ioctl.call(asker.fd, ioctl.number(nr, known), pointer), errno.EFAULT, f"errno at {pointer:#x}")
    other = ioctl.number(nr, known, kind=0xdb)
    equal(ioctl.call(asker.fd, other, make()), errno.ENOTTY, "errno of another type")


@case()
def calls_that_are_wrong_are_refused(t):
    need(t)
    fd = _file(t, PMD)
    with Asker() as asker, Map(fd, PMD) as m:
        m.touch(0, 1)
        room = (MapRecord * 16)()
        wide = ctypes.sizeof(MapRecord)
        _refusals(asker, lambda: MapCall(fd=fd, length=PMD, records=ctypes.addressof(room), count=4,
                                         record_size=wide), 1, wide)
        error, asked, _ = asker.ask(fd, start=ioctl.NOWHERE, length=ioctl.NOWHERE)
        equal((error, asked.flags), (0, ioctl.END), "a range that is too large")
        waits = (WaitRecord * 16)()
        least = ioctl.WAIT_RECORD_SIZE_VER0
        _refusals(asker, lambda: WaitsCall(fd=fd, records=ctypes.addressof(waits), count=4,
                                           record_size=least), 2, least)
        # Records where nothing can be written.
        asked = MapCall(fd=fd, length=PMD, records=8, count=4, record_size=ctypes.sizeof(MapRecord))
        equal(ioctl.call(asker.fd, ioctl.MAP, asked), errno.EFAULT, "errno of a bad address of records")
        equal(ioctl.call(asker.fd, ioctl.VERSION, 8), errno.EFAULT, "errno of the version to a bad address")


@case()
def records_may_be_larger_than_is_known(t):
    """What a later version adds is zero, and nothing is written behind."""
    need(t)
    fd = _file(t, PMD)
    with Asker() as asker, Map(fd, PMD) as m:
        m.touch(0, 1)
        wide = ctypes.sizeof(MapRecord) + 24
        room = ctypes.create_string_buffer(b"\xff" * (2 * wide), 2 * wide)
        asked = MapCall(fd=fd, length=PMD, records=ctypes.addressof(room), count=2, record_size=wide)
        equal(ioctl.call(asker.fd, ioctl.MAP, asked), 0, "errno")
        equal(asked.count, 1, "records")
        equal(bytes(room)[wide - 24:wide], b"\0" * 24, "what is not known of the record")
        equal(bytes(room)[wide:], b"\xff" * wide, "what is behind the record")


@case(fs=())
def what_is_no_dax_file_is_told_apart(t):
    name, mount = "pmem1", "/mnt/rdax-report"
    if not device.adopted(name):
        raise Skip(f"{name} is not adopted")
    run(*VARIANTS["xfs"].mkfs, f"/dev/{name}")
    os.makedirs(mount, exist_ok=True)
    run("mount", "-o", "dax=never", f"/dev/{name}", mount)
    try:
        with open(f"{mount}/file", "w+b") as f, Asker() as asker:
            equal(asker.ask(f.fileno())[0], errno.EOPNOTSUPP, "errno")
    finally:
        posix.umount(mount)


@case(fs=(), quick=False)
def the_module_stays_while_somebody_may_ask(t):
    if not device.module_loaded() or not os.path.exists("/run/lab/rdax.ko"):
        raise Skip("the module is not one that can be loaded again")
    names = [name for name in os.listdir(CONFIG) if device.adopted(name)]
    directories = os.listdir(CONFIG)
    for name in directories:
        device.adopt(name, False)
        os.rmdir(f"{CONFIG}/{name}")
    try:
        with Asker():
            said = run("rmmod", "rdax", ok=(1,))
            check("in use" in said, f"rmmod: {said}")
    finally:
        for name in directories:
            os.mkdir(f"{CONFIG}/{name}")
        for name in names:
            device.adopt(name, True)
