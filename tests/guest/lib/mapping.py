# SPDX-License-Identifier: GPL-2.0
"""Mappings of files at chosen addresses."""

import ctypes
import fcntl
import struct

from . import posix
from .check import Failure, check, equal
from .native import Fault, probe
from .posix import PAGE, PMD

SIGBUS, SIGSEGV = 7, 11
BUS_ADRERR, BUS_MCEERR_AR, BUS_MCEERR_AO = 2, 4, 5

_PAGEMAP_SCAN = 0xC0606610
_PM_SCAN_WP_MATCHING, _PM_SCAN_CHECK_WPASYNC = 1, 2
_PAGE_IS_WRITTEN, _PAGE_IS_PRESENT, _PAGE_IS_HUGE, _PAGE_IS_SOFT_DIRTY = (1 << at for at in
                                                                          (1, 3, 6, 7))


class Map:
    """A mapping whose address is `skew` bytes above a multiple of `align`.

    It is a context manager; leaving it unmaps.
    """

    def __init__(self, fd, length, offset=0, prot=posix.PROT_RW, flags=posix.MAP_SHARED,
                 align=PMD, skew=0):
        self.length = length
        room = length + skew + align
        self._reserved = posix.mmap(None, room, posix.PROT_NONE, posix.MAP_PRIVATE
                                    | posix.MAP_ANONYMOUS | posix.MAP_NORESERVE)
        self._room = room
        at = -(-self._reserved // align) * align + skew
        try:
            self.address = posix.mmap(at, length, prot, flags | posix.MAP_FIXED, fd, offset)
        except OSError:
            posix.munmap(self._reserved, room)
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.unmap()

    def unmap(self):
        if self._reserved:
            posix.munmap(self._reserved, self._room)
            self._reserved = 0

    def unmap_part(self, offset, length):
        """Make a hole in the mapping; its addresses stay taken."""
        posix.mmap(self.address + offset, length, posix.PROT_NONE, posix.MAP_PRIVATE
                   | posix.MAP_ANONYMOUS | posix.MAP_NORESERVE | posix.MAP_FIXED)

    def splice(self, pipe, offset, length=PAGE):
        """Put a part of the mapping into a pipe, which refers to its pages until they are read from it."""
        equal(posix.vmsplice(pipe, self.address + offset, length), length, "bytes in the pipe")

    def read(self, offset, length):
        check(offset + length <= self.length, "test reads past its mapping")
        return ctypes.string_at(self.address + offset, length)

    def write(self, offset, data):
        check(offset + len(data) <= self.length, "test writes past its mapping")
        ctypes.memmove(self.address + offset, bytes(data), len(data))

    def touch(self, offset=0, length=None, step=PAGE, write=False):
        """Load a byte every `step`, or store to it without changing it."""
        length = self.length - offset if length is None else length
        probe().touch(self.address + offset, length, step, write)

    def load(self, offset):
        """(byte, how it ended) of a load that may fault."""
        value, fault = ctypes.c_uint8(), Fault()
        probe().probe_load(self.address + offset, value, fault)
        return value.value, fault

    def store(self, offset, value):
        fault = Fault()
        probe().probe_store(self.address + offset, value, fault)
        return fault

    def load_ok(self, offset, wanted, what):
        value, fault = self.load(offset)
        check(not fault.signal, f"{what}: load at {offset:#x} got {fault}")
        check(value == wanted, f"{what}: {value:#x} instead of {wanted:#x} at {offset:#x}")

    def bus_error(self, offset, what, write=False, code=BUS_ADRERR):
        """The access must raise SIGBUS with this very address."""
        fault = self.store(offset, 0x77) if write else self.load(offset)[1]
        check(fault.signal == SIGBUS, f"{what}: {fault} instead of SIGBUS")
        check(fault.code == code, f"{what}: {fault} instead of code {code}")
        check(fault.address == self.address + offset,
              f"{what}: {fault} instead of address {self.address + offset:#x}")

    def protect(self, prot, offset=0, length=None):
        posix.mprotect(self.address + offset, length or self.length, prot)

    def advise(self, advice, offset=0, length=None):
        posix.madvise(self.address + offset, length or self.length, advice)

    def sync(self, offset=0, length=None, flags=posix.MS_SYNC):
        posix.msync(self.address + offset, length or self.length, flags)

    def pfn(self, offset):
        """The page frame mapped at this offset; it must be mapped."""
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
            pagemap.seek((self.address + offset) // PAGE * 8)
            entry = struct.unpack("Q", pagemap.read(8))[0]
        check(entry >> 63, f"nothing is mapped at offset {offset:#x}")
        return entry & ((1 << 55) - 1)

    def pfns(self, offset=0, length=None):
        return [self.pfn(o) for o in range(offset, offset + (length or self.length), PAGE)]

    def _regions(self, categories):
        """[(first byte, the one behind)] of the mapping in these categories (PAGEMAP_SCAN)."""
        start, found_all, regions = self.address, [], (ctypes.c_uint64 * (3 * 512))()
        end = self.address + self.length
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
            while start < end:
                query = bytearray(struct.pack("12Q", 96, 0, start, end, 0,
                                              ctypes.addressof(regions), 512, 0,
                                              0, categories, 0, categories))
                found = fcntl.ioctl(pagemap, _PAGEMAP_SCAN, query)
                for i in range(found):
                    found_all.append((regions[3 * i] - self.address,
                                      regions[3 * i + 1] - self.address))
                start = struct.unpack_from("Q", query, 32)[0]
        return found_all

    def _scan(self, categories):
        return sum(end - start for start, end in self._regions(categories))

    def _pages(self, categories):
        return [at // PAGE for start, end in self._regions(categories)
                for at in range(start, end, PAGE)]

    def written(self):
        """The numbers of the pages that are not write-protected by userfaultfd."""
        return self._pages(_PAGE_IS_WRITTEN)

    def protect_written_request(self):
        """The ioctl on /proc/self/pagemap, and its argument, of the following."""
        return _PAGEMAP_SCAN, struct.pack(
            "12Q", 96, _PM_SCAN_WP_MATCHING | _PM_SCAN_CHECK_WPASYNC, self.address,
            self.address + self.length, 0, 0, 0, 0, 0, _PAGE_IS_WRITTEN, 0, _PAGE_IS_WRITTEN)

    def protect_written(self):
        """Write-protect by userfaultfd the pages that are not, in one call that says which those are."""
        request, argument = self.protect_written_request()
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
            fcntl.ioctl(pagemap, request, bytearray(argument))

    def soft_dirty(self):
        """The numbers of the pages that were stored to since that was forgotten last."""
        return self._pages(_PAGE_IS_SOFT_DIRTY)

    def mapped(self):
        """Bytes that have a page table entry of any size."""
        return self._scan(_PAGE_IS_PRESENT)

    def mapped_huge(self):
        """Bytes mapped by entries of 2 MiB or more."""
        return self._scan(_PAGE_IS_HUGE | _PAGE_IS_PRESENT)

    def _smaps(self):
        """The words of each of the mapping's lines in /proc/self/smaps."""
        lines, here = [], False
        with open("/proc/self/smaps", encoding="ascii") as smaps:
            for line in smaps:
                word = line.split()
                if "-" in word[0] and not word[0].endswith(":"):
                    start, end = (int(x, 16) for x in word[0].split("-"))
                    here = start <= self.address < end
                elif here:
                    lines.append(word)
        if not lines:
            raise Failure("the mapping is not in /proc/self/smaps")
        return lines

    def smaps(self):
        """The mapping's fields in /proc/self/smaps, in bytes."""
        return {word[0][:-1]: int(word[1]) * 1024 for word in self._smaps()
                if len(word) == 3 and word[2] == "kB"}

    def flags(self):
        """The two letters of each flag that the mapping has."""
        return [flag for word in self._smaps() if word[0] == "VmFlags:" for flag in word[1:]]
