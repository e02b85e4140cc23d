# SPDX-License-Identifier: GPL-2.0
"""Which function of the running kernel calls which, by its machine code."""

import bisect
import os
import struct

PT_LOAD = 1
# The longest function that is looked at, in bytes: what is behind a symbol may be no code at all.
LONGEST = 1 << 17


class Code:
    """The kernel's code, where the kernel shows it, or as it was linked."""

    PLACES = ("/proc/kcore", "/usr/src/linux/vmlinux")

    def __init__(self):
        self.file, self.parts = None, []
        for place in self.PLACES:
            if os.path.exists(place):
                self.file = open(place, "rb", buffering=0)
                break
        if self.file is None:
            return
        header = self.file.read(64)
        offset, = struct.unpack_from("<Q", header, 32)
        size, count = struct.unpack_from("<HH", header, 54)
        for i in range(count):
            self.file.seek(offset + i * size)
            kind, _, at, address, _, length = struct.unpack("<IIQQQQ", self.file.read(40))
            if kind == PT_LOAD:
                self.parts.append((address, at, length))

    def read(self, address, length):
        for start, at, size in self.parts:
            if start <= address < start + size:
                self.file.seek(at + address - start)
                return self.file.read(min(length, start + size - address))
        return b""


class Calls:
    """The functions of the kernel and of its modules."""

    SYMBOLS = "/proc/kallsyms"

    def __init__(self):
        self.code = Code()
        places, names = [], {}
        with open(self.SYMBOLS, "rb") as symbols:
            for line in symbols:
                address, kind, name = line.split(None, 3)[:3]
                if kind in b"tTwW":
                    places.append(int(address, 16))
                    names.setdefault(name.decode(), []).append(places[-1])
        self.places, self.names = sorted(set(places)), names
        # What the compiler has made of a function: its own symbol, and NAME.part.0 and the like.
        self.parts = {}
        for name, starts in names.items():
            self.parts.setdefault(name.partition(".")[0], []).extend(starts)
        self._callees = {}

    def exists(self, name):
        return name in self.parts

    def callees(self, name):
        """The addresses that a function, or a part of it, calls or goes on at."""
        if name not in self._callees:
            self._callees[name] = set(self._find(self.parts.get(name, [])))
        return self._callees[name]

    def _find(self, starts):
        for start in starts:
            following = bisect.bisect_right(self.places, start)
            end = self.places[following] if following < len(self.places) else start + LONGEST
            code = self.code.read(start, min(end - start, LONGEST))
            # Also where an operand only looks like a call: what it would call is nothing that is asked for.
            for i in range(len(code) - 4):
                if code[i] in (0xe8, 0xe9) or (0x80 <= code[i] <= 0x8f and i and code[i - 1] == 0x0f):
                    yield start + i + 5 + struct.unpack_from("<i", code, i + 1)[0]

    def calls(self, caller, callee):
        """Whether the first calls the second, not only a part of it."""
        return not self.callees(caller).isdisjoint(self.names.get(callee, []))
