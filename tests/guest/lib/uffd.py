# SPDX-License-Identifier: GPL-2.0
"""userfaultfd: memory that is write-protected, in the mode in which the kernel notes stores itself, and
memory that is brought in by hand."""

import ctypes
import errno
import fcntl
import os
import struct

from . import posix
from .check import Skip, check

_USER_MODE_ONLY = 1
_API, _REGISTER, _WRITEPROTECT = 0xC018AA3F, 0xC020AA00, 0xC018AA06
_COPY = 0xC028AA03
_VERSION = 0xAA
_EVENT_FORK, _WP_UNPOPULATED, _WP_ASYNC = 1 << 1, 1 << 13, 1 << 15
_MODE_REGISTER_MISSING, _MODE_REGISTER_WP, _MODE_PROTECT = 1, 2, 1
_EVENT_IS_FORK = 0x13


class Protected:
    """A mapping whose pages all are write-protected, mapped or not, until it is left.

    `Map.written` tells which were stored to. With `fork`, children inherit the protection, and whoever
    forks has to let `read_event` go on beside it. With `protect` false nothing is protected yet.
    """

    def __init__(self, m, protect=True, fork=False):
        self.map = m
        self.at_once = protect
        features = _WP_UNPOPULATED | _WP_ASYNC | (_EVENT_FORK if fork else 0)
        try:
            self.fd = posix.userfaultfd(os.O_CLOEXEC | _USER_MODE_ONLY)
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            raise Skip("the kernel has no userfaultfd") from error
        try:
            fcntl.ioctl(self.fd, _API, struct.pack("3Q", _VERSION, features, 0))
        except OSError as error:
            os.close(self.fd)
            raise Skip("the kernel's userfaultfd does not write-protect files") from error

    def register_request(self):
        """The ioctl that makes its mapping one of this userfaultfd's, and its argument."""
        return _REGISTER, struct.pack("4Q", self.map.address, self.map.length, _MODE_REGISTER_WP, 0)

    def protect_request(self, offset, length=None, protect=True):
        """The ioctl that write-protects pages, or no longer, and its argument."""
        return _WRITEPROTECT, struct.pack("3Q", self.map.address + offset,
                                          length or self.map.length - offset,
                                          _MODE_PROTECT if protect else 0)

    def __enter__(self):
        fcntl.ioctl(self.fd, *self.register_request())
        if self.at_once:
            self.protect()
        return self

    def read_event(self):
        """Take the event of a fork, which waits for that."""
        event = os.read(self.fd, 32)
        check(event[0] == _EVENT_IS_FORK, f"the event is {event[0]:#x}")
        os.close(struct.unpack_from("I", event, 8)[0])

    def protect(self, offset=0, length=None):
        """Write-protect pages, again."""
        fcntl.ioctl(self.fd, *self.protect_request(offset, length))

    def __exit__(self, *_):
        os.close(self.fd)


class Missing:
    """An anonymous mapping whose pages are missing until they are given. Whoever touches one waits,
    also in a system call."""

    def __init__(self, m):
        self.map = m
        try:
            self.fd = posix.userfaultfd(os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            raise Skip("the kernel has no userfaultfd") from error
        fcntl.ioctl(self.fd, _API, struct.pack("3Q", _VERSION, 0, 0))

    def __enter__(self):
        fcntl.ioctl(self.fd, _REGISTER, struct.pack("4Q", self.map.address, self.map.length,
                                                    _MODE_REGISTER_MISSING, 0))
        return self

    def wait(self):
        """The address of the page that somebody waits for, when somebody does."""
        return struct.unpack("4Q", os.read(self.fd, 32))[2]

    def give(self, data):
        """What the pages hold, from the first on. Wakes whoever waits for them."""
        buffer = posix.mmap(None, self.map.length, posix.PROT_RW,
                            posix.MAP_PRIVATE | posix.MAP_ANONYMOUS)
        ctypes.memmove(buffer, data, len(data))
        fcntl.ioctl(self.fd, _COPY, bytearray(struct.pack("4Qq", self.map.address, buffer,
                                                          len(data), 0, 0)))
        posix.munmap(buffer, self.map.length)

    def __exit__(self, *_):
        os.close(self.fd)
