# SPDX-License-Identifier: GPL-2.0
"""Asking the module by /dev/rdax (uapi/rdax.h)."""

import ctypes
import errno
import fcntl
import os

DEVICE = "/dev/rdax"

UNTOUCHED, EMPTY, HOLE, DATA = range(4)
DIRTY, SHARED, LOCKED = (1 << at for at in range(3))
(WHY_EXTENT, WHY_DEVICE, WHY_ADDRESS, WHY_END_OF_MAPPING, WHY_END_OF_FILE, WHY_PRIVATE, WHY_MAX_ORDER,
 WHY_SMALLER, WHY_UNMAPPED) = (1 << at for at in range(9))
WAIT_LAYOUT, WAIT_WRITE, WAIT_FAULT, WAIT_EVICTION, WAIT_DEVICE = range(1, 6)
WAIT_RECORD_SIZE_VER0 = 80
DEV_UNKNOWN, DEV_BLOCK, DEV_CHARACTER = range(3)
NOWHERE = (1 << 64) - 1
END = 1

_u32, _u64, _s32 = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int32


class _Structure(ctypes.Structure):
    def __repr__(self):
        return " ".join(f"{name}={getattr(self, name)}" for name, *_ in self._fields_)


class MapRecord(_Structure):
    _fields_ = [("offset", _u64), ("length", _u64), ("physical", _u64), ("kind", _u32), ("flags", _u32),
                ("order", _u32), ("why", _u32), ("why_mapped", _u32), ("maps", _u32), ("whole", _u32),
                ("references", _u32), ("vmas", _u32), ("reserved", _u32)]


class MapCall(_Structure):
    _fields_ = [("fd", _s32), ("flags", _u32), ("start", _u64), ("length", _u64), ("records", _u64),
                ("record_size", _u32), ("count", _u32), ("next", _u64), ("size", _u64),
                ("max_order", _u32), ("reserved", _u32)]


class WaitRecord(_Structure):
    _fields_ = [("waited", _u64), ("inode", _u64), ("offset", _u64), ("physical", _u64), ("kind", _u32),
                ("dev_major", _u32), ("dev_minor", _u32), ("pid", _s32), ("tid", _s32), ("order", _u32),
                ("references", _u32), ("maps", _u32), ("comm", ctypes.c_char * 16), ("dev_type", _u32),
                ("reserved", _u32)]


class WaitsCall(_Structure):
    _fields_ = [("fd", _s32), ("flags", _u32), ("records", _u64), ("record_size", _u32), ("count", _u32),
                ("total", _u32), ("reserved", _u32)]


def number(nr, size, direction=3, kind=0xda):
    """The number of a call, as _IOC makes it."""
    return direction << 30 | size << 16 | kind << 8 | nr


VERSION = number(0, 4, direction=2)
MAP = number(1, ctypes.sizeof(MapCall))
WAITS = number(2, ctypes.sizeof(WaitsCall))

_libc = ctypes.CDLL(None, use_errno=True)


def call(fd, command, argument):
    """The errno of a call with this pointer, or 0."""
    pointer = argument if isinstance(argument, int) else ctypes.addressof(argument)
    result = _libc.ioctl(fd, ctypes.c_ulong(command), ctypes.c_void_p(pointer))
    return 0 if result >= 0 else ctypes.get_errno()


class Asker:
    """/dev/rdax, open."""

    def __init__(self):
        self.fd = os.open(DEVICE, os.O_RDONLY)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.fd)

    def version(self):
        return int.from_bytes(fcntl.ioctl(self.fd, VERSION, b"\0" * 4), "little")

    def ask(self, fd, start=0, length=NOWHERE >> 1, room=64):
        """(errno, the call as it came back, records) of one call."""
        records = (MapRecord * room)()
        asked = MapCall(fd=fd, start=start, length=length, records=ctypes.addressof(records),
                        record_size=ctypes.sizeof(MapRecord), count=room)
        error = call(self.fd, MAP, asked)
        return error, asked, list(records[:asked.count] if not error else [])

    def map(self, fd, start=0, room=64):
        """All records of a file, by as many calls as it takes."""
        found = []
        while True:
            error, asked, records = self.ask(fd, start, room=room)
            if error:
                raise OSError(error, os.strerror(error))
            found += records
            if asked.flags & END:
                return found
            if asked.next <= start:
                raise OSError(errno.ELOOP, "it does not get on")
            start = asked.next

    def waits(self, fd=-1, room=64):
        records = (WaitRecord * room)()
        asked = WaitsCall(fd=fd, records=ctypes.addressof(records),
                          record_size=ctypes.sizeof(WaitRecord), count=room)
        error = call(self.fd, WAITS, asked)
        if error:
            raise OSError(error, os.strerror(error))
        return records[:asked.count]
