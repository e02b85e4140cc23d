# SPDX-License-Identifier: GPL-2.0
"""A BPF program at the entry of a kernel function that does nothing but be counted."""

import ctypes
import os
import re
import struct

from lib import posix
from lib.check import Skip
from lib.device import read, write

BTF = "/sys/kernel/btf/vmlinux"
COUNTING = "/proc/sys/kernel/bpf_stats_enabled"
PROG_LOAD, RAW_TRACEPOINT_OPEN = 5, 17
TRACING, TRACE_FENTRY = 26, 24
KIND_FUNC = 12

# "r0 = 0; exit"
PROGRAM = struct.pack("<BBhi", 0xB7, 0, 0, 0) + struct.pack("<BBhi", 0x95, 0, 0, 0)


def _size_behind(kind, length):
    """Bytes behind the common part of a type in BTF, which has `length` members."""
    each = {3: 0, 4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}
    once = {1: 4, 3: 12, 14: 4, 17: 4}
    return once.get(kind, 0) + each.get(kind, 0) * length


def functions(names):
    """The numbers in BTF of functions of the kernel, by name."""
    if not os.path.exists(BTF):
        raise Skip("this kernel does not describe its functions (BTF)")
    with open(BTF, "rb") as f:
        data = f.read()
    head, types, types_length, strings, _ = struct.unpack_from("<IIIII", data, 4)
    types, strings = types + head, strings + head
    wanted, found = {}, {}
    for name in names:
        at = data.find(b"\0" + name.encode() + b"\0", strings)
        wanted[at + 1 - strings] = name
    at, number = types, 1
    while at < types + types_length:
        name, info = struct.unpack_from("<II", data, at)
        kind = info >> 24 & 0x1F
        if kind == KIND_FUNC and name in wanted:
            found[wanted[name]] = number
        at += 12 + _size_behind(kind, info & 0xFFFF)
        number += 1
    missing = set(names) - set(found)
    if missing:
        raise Skip(f"the kernel does not describe {', '.join(sorted(missing))} (BTF)")
    return found


class Attached:
    """A program at the entry of each of the functions; their calls are counted."""

    def __init__(self, names):
        self.names, self.fds, self.programs = names, [], {}

    def __enter__(self):
        numbers = functions(self.names)
        self.counting = read(COUNTING)
        write(COUNTING, "1")
        try:
            for name in self.names:
                program = self._load(numbers[name])
                self.programs[name] = program
                self.fds.append(self._call(RAW_TRACEPOINT_OPEN, struct.pack("<QI4x", 0, program)))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for fd in self.fds:
            os.close(fd)
        self.fds, self.programs = [], {}
        write(COUNTING, self.counting)

    def calls(self, name):
        info = read(f"/proc/self/fdinfo/{self.programs[name]}")
        return int(re.search(r"^run_cnt:\s*(\d+)", info, re.MULTILINE)[1])

    def _load(self, number):
        code = ctypes.create_string_buffer(PROGRAM, len(PROGRAM))
        license_ = ctypes.create_string_buffer(b"GPL")
        fd = self._call(PROG_LOAD, struct.pack(
            "<IIQQIIQII16sIIIIQIIQII", TRACING, len(PROGRAM) // 8, ctypes.addressof(code),
            ctypes.addressof(license_), 0, 0, 0, 0, 0, b"rdax_test", 0, TRACE_FENTRY, 0, 0, 0, 0,
            0, 0, 0, number))
        self.fds.append(fd)
        return fd

    @staticmethod
    def _call(command, attributes):
        buffer = ctypes.create_string_buffer(attributes, len(attributes))
        return posix.bpf(command, ctypes.addressof(buffer), len(attributes))
