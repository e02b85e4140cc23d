# SPDX-License-Identifier: GPL-2.0
"""What the kernel's tracing shows: cache write-backs, the state of pages, calls of a function."""

import os
import re
import struct
import subprocess

from . import native
from .check import Failure, Skip, check
from .posix import PAGE

TRACING = "/sys/kernel/tracing"
# A system call that nothing else in the guest makes: its probe fires when the test wants.
TRIGGER = "__x64_sys_getpriority"
MOST_ARGUMENTS = 120


def _write(path, text, append=False):
    flags = os.O_WRONLY | (os.O_APPEND if append else os.O_TRUNC)
    fd = os.open(os.path.join(TRACING, path), flags)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _read(path):
    with open(os.path.join(TRACING, path), encoding="ascii", errors="replace") as f:
        return f.read()


class _Instance:
    """A trace buffer of its own."""

    def __init__(self, name, clock=None):
        self.at = f"instances/{name}"
        path = os.path.join(TRACING, self.at)
        if not os.path.exists(os.path.join(TRACING, "kprobe_events")):
            raise Skip("this kernel has no kprobe events")
        if os.path.exists(path):
            os.rmdir(path)
        os.mkdir(path)
        if clock:
            _write(f"{self.at}/trace_clock", clock)
        # Names of commands are of no interest. To know them the kernel would patch its scheduler each time
        # that an event is switched on or off.
        if os.path.exists(f"{path}/options/record-cmd"):
            _write(f"{self.at}/options/record-cmd", "0")

    def enable(self, event, on=True):
        _write(f"{self.at}/events/rdaxtest/{event}/enable", "1" if on else "0")

    def clear(self):
        _write(f"{self.at}/trace", "\n")

    def lines(self):
        return [line for line in _read(f"{self.at}/trace").splitlines()
                if not line.startswith("#")]

    def remove(self):
        os.rmdir(os.path.join(TRACING, self.at))


class Events:
    """The module's own tracepoints, on while this is in use."""

    def __init__(self):
        if not os.path.isdir(os.path.join(TRACING, "events/rdax")):
            raise Skip("there are no events rdax:*")
        self.instance = _Instance("rdax-events")

    def __enter__(self):
        _write(f"{self.instance.at}/events/rdax/enable", "1")
        return self

    def __exit__(self, *_):
        _write(f"{self.instance.at}/events/rdax/enable", "0")
        self.instance.remove()

    def clear(self):
        self.instance.clear()

    def of(self, name, **wanted):
        """What each event of this name says, of those that have these fields."""
        found = [line.partition(f": {name}: ")[2] for line in self.instance.lines()]
        return [text for text in found
                if text and all(f"{field} {value} " in f"{text} " for field, value in wanted.items())]


def clean_up():
    """Take away what a case that was ended has left behind."""
    instances = os.path.join(TRACING, "instances")
    if not os.path.isdir(instances):
        return
    for name in os.listdir(instances):
        if name.startswith("rdax-"):
            for group in ("rdaxtest", "rdax"):
                if os.path.exists(os.path.join(instances, name, f"events/{group}/enable")):
                    _write(f"instances/{name}/events/{group}/enable", "0")
            os.rmdir(os.path.join(instances, name))
    if os.path.exists(os.path.join(TRACING, "kprobe_events")):
        for line in _read("kprobe_events").splitlines():
            if ":rdaxtest/" in line:
                _write("kprobe_events", "-:" + line.split(":", 1)[1].split()[0] + "\n", True)


def _fetch(addresses):
    """The 64-bit words at these kernel addresses (numbers or symbols)."""
    instance = _Instance("rdax-fetch")
    words = []
    try:
        for first in range(0, len(addresses), MOST_ARGUMENTS):
            part = addresses[first:first + MOST_ARGUMENTS]
            names = [a if isinstance(a, str) else f"{a:#x}" for a in part]
            _write("kprobe_events", f"p:rdaxtest/fetch {TRIGGER} " + " ".join(
                f"w{i}=@{name}:x64" for i, name in enumerate(names)) + "\n", True)
            try:
                instance.clear()
                instance.enable("fetch")
                os.getpriority(os.PRIO_PROCESS, 0)
                instance.enable("fetch", False)
                line = instance.lines()[-1]
                values = re.findall(r"w\d+=(0x[0-9a-f]+|\(fault\))", line)
                check(len(values) == len(part), f"unexpected trace line: {line}")
                if "(fault)" in values:
                    raise Failure(f"no memory at {names[values.index('(fault)')]}")
                words += [int(v, 16) for v in values]
            finally:
                _write("kprobe_events", "-:rdaxtest/fetch\n", True)
    finally:
        instance.remove()
    return words


class Pages:
    """struct page as it is in memory. The layout is checked against a page of known state."""

    SIZE = 64
    FLAGS, COMPOUND, MAPPING, SHARE, COUNTS = 0, 1, 3, 4, 6

    _base = None    # where struct pages are, or why that is not known; found once

    def __init__(self):
        self.find()
        if isinstance(Pages._base, str):
            raise Skip(Pages._base)
        self.base = Pages._base

    @classmethod
    def find(cls):
        if cls._base is not None:
            return
        try:
            cls._base = _fetch(["vmemmap_base"])[0]
            cls._base = cls._doubt() or cls._base
        except (OSError, Skip) as error:
            cls._base = f"struct page cannot be read here: {error}"

    @classmethod
    def _doubt(cls):
        """What is odd about the struct page of a page of known state: anonymous, mapped once."""
        from .mapping import Map
        from . import posix
        with Map(-1, PAGE, flags=posix.MAP_PRIVATE | posix.MAP_ANONYMOUS) as m:
            m.touch(write=True)
            at = cls._base + m.pfn(0) * cls.SIZE
            mapping, index, counts = _fetch([at + 8 * cls.MAPPING, at + 8 * cls.SHARE,
                                             at + 8 * cls.COUNTS])
        # The list of fresh pages may hold a reference of its own.
        if (mapping & 3, index, counts & 0xFFFFFFFF) != (1, m.address // PAGE, 0) or \
                not 1 <= counts >> 32 <= 2:
            return f"unknown layout of struct page ({mapping:#x} {index:#x} {counts:#x})"
        return None

    def words(self, pfns, *fields):
        """[(field, …)] for each page."""
        got = _fetch([self.base + pfn * self.SIZE + 8 * field for pfn in pfns for field in fields])
        return [tuple(got[i:i + len(fields)]) for i in range(0, len(got), len(fields))]

    @staticmethod
    def flag(name):
        """The bit of a page flag, from the kernel's type information."""
        try:
            with open("/sys/kernel/btf/vmlinux", "rb") as f:
                data = f.read()
        except OSError:
            return Pages._flag_in_source(name)
        head, types, _, strings, length = struct.unpack_from("<IIIII", data, 4)
        names = data[head + strings:head + strings + length]
        # An enumerator is the offset of its name and its value.
        offset = names.find(f"\0PG_{name}\0".encode("ascii")) + 1
        at = head + types - 4
        while offset:
            at = data.find(struct.pack("<I", offset), at + 4)
            if at < 0:
                break
            value, neighbour = struct.unpack_from("<II", data, at + 4)
            if value < 64 and names[neighbour:neighbour + 3] in (b"PG_", b"__N"):
                return 1 << value
        raise Skip(f"no page flag {name} in this kernel")

    @staticmethod
    def _flag_in_source(name):
        """The same, from the kernel's source and configuration."""
        include = f"{native.KERNEL}/include"
        try:
            with open(f"{include}/linux/page-flags.h", encoding="utf-8") as header:
                found = re.search(r"^enum pageflags \{.*?^\};", header.read(), re.M | re.S)
        except OSError as error:
            raise Skip(f"no type information and no source: {error}") from error
        program = os.path.join(native.BUILD, f"PG_{name}")
        built = subprocess.run(["gcc", "-w", f"-I{include}", "-include",
                                f"{include}/linux/kconfig.h", "-x", "c", "-", "-o", program],
                               input=f"{found[0]}\nint main(void) {{ return PG_{name}; }}\n",
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               check=False)
        if built.returncode:
            raise Skip(f"no page flag {name} in this kernel:\n{built.stdout}")
        return 1 << subprocess.run([program], check=False).returncode

    def counts(self, pfns):
        """[(refcount, mapcount)], the map count being that of single-page mappings."""
        found = []
        for (word,) in self.words(pfns, self.COUNTS):
            refcount, mapcount = word >> 32, word & 0xFFFFFFFF
            found.append((refcount, (mapcount + 1) & 0xFFFFFFFF))
        return found

    def refcounts(self, pfns):
        return [refcount for refcount, _ in self.counts(pfns)]

    def check_idle(self, pfns, when):
        """R1: nobody holds these pages."""
        busy = [(hex(pfn), refcount) for pfn, refcount in zip(pfns, self.refcounts(pfns), strict=True)
                if refcount]
        check(not busy, f"{when}: {len(busy)} of {len(pfns)} pages are busy: {busy[:4]}")

    def check_free(self, pfns, when):
        """R4: the folio was taken apart."""
        words = self.words(pfns, self.COMPOUND, self.MAPPING, self.SHARE, self.COUNTS)
        maps = {w[0] for w in words}
        for pfn, (compound, mapping, share, counts) in zip(pfns, words, strict=True):
            check(not compound & 1, f"{when}: page {pfn:#x} is still a tail page")
            check(mapping == 0, f"{when}: page {pfn:#x} still has mapping {mapping:#x}")
            check(share == 0, f"{when}: page {pfn:#x} still has share count {share}")
            check(counts == 0xFFFFFFFF, f"{when}: page {pfn:#x} has refcount {counts >> 32}, "
                                        f"map count {counts & 0xffffffff:#x}")
        check(len(maps) == 1 and maps.pop() >> 47, f"{when}: the pages' pgmap differs: {maps}")


class Flushes:
    """Records which memory had its cache lines written back, and when."""

    def __init__(self):
        self.instance = _Instance("rdax-flush", clock="mono")
        _write("kprobe_events",
               "p:rdaxtest/flush arch_wb_cache_pmem addr=$arg1 size=$arg2\n", True)
        self.base = _fetch(["page_offset_base"])[0]

    def __enter__(self):
        self.instance.enable("flush")
        return self

    def __exit__(self, *_):
        self.instance.enable("flush", False)
        self.instance.remove()
        _write("kprobe_events", "-:rdaxtest/flush\n", True)

    def clear(self):
        self.instance.clear()

    def all(self):
        """[(seconds of CLOCK_MONOTONIC, physical address, bytes)] since the last clear()."""
        found = []
        for line in self.instance.lines():
            if "LOST" in line:
                raise Failure("the trace buffer was too small")
            m = re.search(r"\s([0-9]+\.[0-9]+): flush: .* addr=(\S+) size=(\S+)", line)
            check(m, f"unexpected trace line: {line}")
            found.append((float(m[1]), int(m[2], 16) - self.base, int(m[3], 16)))
        return found

    def of(self, pfns):
        """Those that touch one of these pages."""
        pages = set(pfns)
        return [f for f in self.all()
                if any(p in pages for p in range(f[1] // PAGE, (f[1] + f[2] - 1) // PAGE + 1))]

    def check_once(self, pfns, when, size=None):
        """Each of these pages was flushed, whole and once, alone or with its neighbours."""
        got = self.of(pfns)
        for _, start, length in got:
            check(length >= PAGE and length % PAGE == 0 and start % PAGE == 0,
                  f"{when}: flush of {length:#x} bytes at {start:#x} is not of whole pages")
            check(size is None or length == size,
                  f"{when}: flush of {length:#x} bytes instead of {size}")
        for pfn in pfns:
            times = sum(start <= pfn * PAGE < start + length for _, start, length in got)
            check(times == 1, f"{when}: page {pfn:#x} was flushed {times} times")

    def check_flushed(self, pfns, since, when):
        """R5: each of these pages was flushed as a whole after its last store."""
        got = self.all()
        for i, pfn in enumerate(pfns):
            after = since[i] if isinstance(since, list) else since
            check(any(start <= pfn * PAGE and start + length >= (pfn + 1) * PAGE and at >= after
                      for at, start, length in got),
                  f"{when}: page {pfn:#x} ({i + 1} of {len(pfns)}) was never flushed after the "
                  f"store at {after:.6f}; {len(got)} flushes in all")


class Calls:
    """Counts calls of a kernel function."""

    def __init__(self, function):
        self.instance = _Instance("rdax-calls")
        try:
            _write("kprobe_events", f"p:rdaxtest/call {function}\n", True)
        except OSError as error:
            self.instance.remove()
            raise Skip(f"{function} cannot be probed: {error}") from error

    def __enter__(self):
        self.instance.enable("call")
        return self

    def __exit__(self, *_):
        self.instance.enable("call", False)
        self.instance.remove()
        _write("kprobe_events", "-:rdaxtest/call\n", True)

    def count(self):
        return len(self.instance.lines())
