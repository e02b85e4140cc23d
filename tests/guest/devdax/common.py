# SPDX-License-Identifier: GPL-2.0
"""The device, and what the cases of device DAX have in common."""

import os
import subprocess

from lib import device, gup, native, posix
from lib.check import Skip, check, equal, same_bytes
from lib.device import SlowDisk, read, run, wait_for, write
from lib.mapping import Map
from lib.pattern import pages as pattern
from lib.posix import GIB, PAGE, PMD
from lib.task import Task

DEVICE = "pmem0"
NAMESPACE = "namespace0.0"
NAME = "dax0.0"
NODE = f"/dev/{NAME}"
BUS = "/sys/bus/dax"
SYSFS = f"{BUS}/devices/{NAME}"
EINVAL, ENXIO = 22, 6


def bound_driver():
    path = f"{SYSFS}/driver"
    return os.path.basename(os.readlink(path)) if os.path.islink(path) else None


def unbind_node():
    if bound_driver():
        write(f"{BUS}/drivers/{bound_driver()}/unbind", NAME)
        equal(bound_driver(), None, "driver after unbinding")


def bind_node(name="rdax"):
    if bound_driver() == name:
        return
    unbind_node()
    if name == "rdax":
        try:
            write(f"{BUS}/drivers/rdax/remove_id", NAME)
        except OSError:
            pass
        write(f"{BUS}/drivers/rdax/new_id", NAME)
    else:
        write(f"{BUS}/drivers/{name}/bind", NAME)
    equal(bound_driver(), name, "driver after binding")


def namespace(align, *more):
    """A namespace of that alignment, bound to this driver."""
    if not os.path.isdir(f"{BUS}/drivers/rdax"):
        raise Skip("there is no driver rdax on the dax bus")
    bytes_ = {"4K": PAGE, "2M": PMD, "1G": GIB}[align]
    if bytes_ == GIB:
        size = int(read("/sys/bus/nd/devices/region0/size"))
        if size < 3 * GIB:
            raise Skip(f"a pmem device of 3 GiB is needed, and has {size >> 20} MiB")
    if not os.path.isdir(SYSFS) or int(read(f"{SYSFS}/align")) != bytes_:
        if device.adopted(DEVICE):
            write(f"{device.CONFIG}/{DEVICE}/adopt", "0")
        unbind_node()
        run("ndctl", "create-namespace", "-f", "-e", NAMESPACE, "-m", "devdax", "-a", align, *more)
        wait_for(lambda: os.path.exists(NODE), NODE)
    bind_node()
    return bytes_


def unbinds_at_once(what):
    """Nobody has pages of the device any more; it is bound again afterwards."""
    unbinding = Task(unbind_node)
    check(unbinding.join(20), f"unbinding waits for {what} that should be gone")
    unbinding.result()
    bind_node()


def node_size():
    return int(read(f"{SYSFS}/size"))


def open_node():
    return os.open(NODE, os.O_RDWR)


class Stats:
    def __init__(self):
        self.before = self._now()

    @staticmethod
    def _now():
        return {name: int(value) for name, value in
                (line.split() for line in read(f"{SYSFS}/rdax/stats").splitlines())}

    def moved(self, name):
        return self._now()[name] - self.before[name]

    def expect(self, **wanted):
        now = self._now()
        moved = {name: now[name] - before for name, before in self.before.items()}
        for name, value in wanted.items():
            equal(moved[name], value, f"counter {name} (all: {moved})")


def kernel_log():
    return subprocess.run(["dmesg"], stdout=subprocess.PIPE, text=True, check=True).stdout


def moves(fd, length, skew):
    """Registered buffers in a mapping of the device: to a disk and back to another place."""
    import ctypes
    lib = ctypes.CDLL(native.path("uring.so"))
    lib.uring_move.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t,
                               ctypes.c_int]
    lib.uring_move.restype = ctypes.c_long
    slow = SlowDisk()
    slow.release()
    disk = slow.open()
    with Map(fd, length, skew=skew) as source, Map(fd, length, offset=2 * length, skew=skew) as to:
        source.write(0, pattern("u", length // PAGE))
        to.touch(write=True)
        equal(lib.uring_move(disk, source.address, length, 16 * PAGE, 1), length, "bytes written")
        equal(lib.uring_move(disk, to.address, length, 8 * PAGE, 0), length, "bytes read")
        same_bytes(to.read(0, length), pattern("u", length // PAGE), "what came back")
    os.close(disk)


def pins_last(fd, length, **place):
    gup.need()
    with Map(fd, length, **place) as m, \
            Map(-1, 16 * PAGE, flags=posix.MAP_PRIVATE | posix.MAP_ANONYMOUS) as copy:
        m.write(0, pattern("p", 16))
        for way in gup.WAYS:
            equal(gup.take(way, m.address, min(length, 8 * PMD)), min(length, 8 * PMD), way)
        for fast in (False, True):
            for write in (False, True):
                equal(gup.take_long_term(m.address, 2 * PMD, fast, write), 2 * PMD,
                      f"lasting pins, fast={fast} write={write}")
                pin = gup.LongTermPin(m.address, 16 * PAGE, fast, write)
                m.advise(posix.MADV_DONTNEED)
                pin.read(copy.address)
                same_bytes(copy.read(0, 16 * PAGE), pattern("p", 16), "the pinned pages")
                pin.drop()


def end_of_group():
    if not os.path.isdir(SYSFS):
        return
    unbind_node()
    write(f"{BUS}/drivers/rdax/remove_id", NAME)
    run("ndctl", "create-namespace", "-f", "-e", NAMESPACE, "-m", "fsdax", "-a", "2M")
    # Who made its directory wanted it adopted.
    if os.path.isdir(f"{device.CONFIG}/{DEVICE}"):
        wait_for(lambda: os.path.exists(f"/dev/{DEVICE}"), DEVICE)
        write(f"{device.CONFIG}/{DEVICE}/adopt", "1")
