# SPDX-License-Identifier: GPL-2.0
"""System calls as programs of 32 bits make them."""

import ctypes
import struct

from . import posix

_MAP_32BIT, _PROT_EXEC = 0x40, 4
_IO_SETUP, _IO_DESTROY, _IO_GETEVENTS, _IO_SUBMIT = 245, 246, 247, 248
_PWRITE = 1

# push rbx; mov eax, edi; mov ebx, esi; mov r10d, ecx; mov ecx, edx; mov edx, r10d; mov esi, r8d;
# mov edi, r9d; int 0x80; pop rbx; ret
_CODE = bytes.fromhex("53 89f8 89f3 4189ca 89d1 4489d2 4489c6 4489cf cd80 5b c3")


class Low:
    """Memory that has an address of 32 bits, and system calls that can use it.

    The first page is code, the second for what the calls are told, the third a buffer.
    """

    def __init__(self):
        self._start = posix.mmap(None, 3 * posix.PAGE, posix.PROT_RW | _PROT_EXEC,
                                 posix.MAP_PRIVATE | posix.MAP_ANONYMOUS | _MAP_32BIT)
        ctypes.memmove(self._start, _CODE, len(_CODE))
        self._told, self.buffer = (self._start + at * posix.PAGE for at in (1, 2))
        self._call = ctypes.CFUNCTYPE(ctypes.c_long, *[ctypes.c_long] * 6)(self._start)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        posix.munmap(self._start, 3 * posix.PAGE)

    def call(self, number, *arguments):
        """What the kernel returns, negative for an error."""
        return self._call(number, *arguments, *[0] * (5 - len(arguments)))

    def _put(self, at, data):
        ctypes.memmove(self._told + at, data, len(data))
        return self._told + at

    def _submitted(self, number, *arguments):
        result = self.call(number, *arguments)
        if result < 0:
            raise OSError(-result, f"system call {number} of 32 bits")
        return result

    def pwrite(self, fd, length, offset):
        """The result of a write of the buffer by io_submit()."""
        context_at = self._put(0, bytes(4))
        self._submitted(_IO_SETUP, 1, context_at)
        context = struct.unpack("I", ctypes.string_at(context_at, 4))[0]
        request = self._put(64, struct.pack("<QIIHhIQQqQII", 0, 0, 0, _PWRITE, 0, fd, self.buffer,
                                            length, offset, 0, 0, 0))
        self._submitted(_IO_SUBMIT, context, 1, self._put(8, struct.pack("I", request)))
        event = self._put(192, bytes(32))
        self._submitted(_IO_GETEVENTS, context, 1, 1, event, 0)
        self._submitted(_IO_DESTROY, context)
        return struct.unpack("4q", ctypes.string_at(event, 32))[2]
