# SPDX-License-Identifier: GPL-2.0
"""userfaultfd: memory that is write-protected, in the mode in which the kernel notes stores itself, and
memory that is brought in by hand."""

import ctypes
import errno
import fcntl
import os
import struct

from . import posix
from .check import Skip

_USER_MODE_ONLY = 1
_API, _REGISTER, _WRITEPROTECT = 0xC018AA3F, 0xC020AA00, 0xC018AA06
_COPY = 0xC028AA03
_VERSION = 0xAA
_WP_UNPOPULATED, _WP_ASYNC = 1 << 13, 1 << 15
_MODE_REGISTER_MISSING, _MODE_REGISTER_WP, _MODE_PROTECT = 1, 2, 1


class Protected:
    """A mapping whose pages all are write-protected, mapped or not, until it is left.

    `Map.written` tells which were stored to.
    """

    def __init__(self, m):
        self.map = m
        try:
            self.fd = posix.userfaultfd(os.O_CLOEXEC | _USER_MODE_ONLY)
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            raise Skip("the kernel has no userfaultfd") from error
        try:
            fcntl.ioctl(self.fd, _API, struct.pack("3Q", _VERSION, _WP_UNPOPULATED | _WP_ASYNC, 0))
        except OSError as error:
            os.close(self.fd)
            raise Skip("the kernel's userfaultfd does not write-protect files") from error

    def __enter__(self):
        fcntl.ioctl(self.fd, _REGISTER, struct.pack("4Q", self.map.address, self.map.length,
                                                    _MODE_REGISTER_WP, 0))
        self.protect()
        return self

    def protect(self, offset=0, length=None):
        """Write-protect pages, again."""
        fcntl.ioctl(self.fd, _WRITEPROTECT, struct.pack(
            "3Q", self.map.address + offset, length or self.map.length - offset, _MODE_PROTECT))

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
