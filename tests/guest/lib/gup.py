# SPDX-License-Identifier: GPL-2.0
"""References to user pages as the kernel takes them: its own test device and its own selftests.

The device is there if the kernel was built with CONFIG_GUP_TEST; it takes references in one of the
kernel's ways, looks whether what it pinned looks pinned (a warning in the log if not), and drops
them again. The selftests come from the source of the kernel that runs.
"""

import fcntl
import os
import struct

from .check import Skip

DEVICE = "/sys/kernel/debug/gup_test"


def _request(direction, number, size):
    return direction << 30 | size << 16 | ord("g") << 8 | number


_TEST = "4Q3I8I4x"
_LONG_TERM = "2QI4x"
_WRITE, _READ_WRITE = 1, 3

# How references are taken: plain or pins, under the lock of the address space or without it first.
WAYS = {name: _request(_READ_WRITE, number, struct.calcsize(_TEST)) for name, number in
        (("get fast", 1), ("pin fast", 2), ("get", 4), ("pin", 5))}
_PIN_LONG_TERM = _request(_READ_WRITE, 3, struct.calcsize(_TEST))
_START = _request(_WRITE, 7, struct.calcsize(_LONG_TERM))
_STOP = _request(0, 8, 0)
_READ = _request(_WRITE, 9, 8)
_FOLL_WRITE, _FOLL_LONGTERM = 1, 1 << 8


def unfit():
    """Why this cannot be used here, or None."""
    if not os.path.exists(DEVICE):
        return f"there is no {DEVICE}: this kernel was built without CONFIG_GUP_TEST"
    return None


def need():
    if unfit():
        raise Skip(unfit())


def _take(request, address, length, flags, at_once):
    fd = os.open(DEVICE, os.O_RDWR)
    try:
        query = bytearray(struct.pack(_TEST, 0, 0, address, length, at_once, flags, 0, *[0] * 8))
        fcntl.ioctl(fd, request, query)
        return struct.unpack(_TEST, query)[3]
    finally:
        os.close(fd)


def take(way, address, length, write=True, at_once=512):
    """Take and drop references to all pages, some at once; the bytes that were reached."""
    return _take(WAYS[way], address, length, _FOLL_WRITE if write else 0, at_once)


def take_long_term(address, length, fast=False, write=True, at_once=512):
    """The same for pins that are to last."""
    return _take(WAYS["pin fast"] if fast else _PIN_LONG_TERM, address, length,
                 (_FOLL_WRITE if write else 0) | _FOLL_LONGTERM, at_once)


class LongTermPin:
    """Pins of some memory, that last until they are dropped. OSError if the kernel refuses."""

    def __init__(self, address, length, fast=False, write=True):
        self.fd = os.open(DEVICE, os.O_RDWR)
        self.length = length
        try:
            fcntl.ioctl(self.fd, _START, struct.pack(_LONG_TERM, address, length, write | fast << 1))
        except OSError:
            os.close(self.fd)
            raise

    def read(self, target):
        """Have the kernel copy the pinned pages to memory at `target`."""
        fcntl.ioctl(self.fd, _READ, struct.pack("Q", target))

    def drop(self):
        fcntl.ioctl(self.fd, _STOP)
        os.close(self.fd)
