# SPDX-License-Identifier: GPL-2.0
"""The tracepoints rdax:*."""

import os
import re
import shlex
import shutil
import sys

from lib import device, posix
from lib.check import Skip, check, equal
from lib.device import run, wait_for
from lib.mapping import Map
from lib.native import Fault, probe
from lib.pattern import file as _file
from lib.posix import PAGE, PMD
from lib.runner import case
from lib.task import Task
from lib.trace import Events


@case()
def faults_and_what_they_insert(t):
    t.need_adopted()
    fd = _file(t, 2 * PMD)
    ino = os.fstat(fd).st_ino
    with Events() as events:
        with Map(fd, PMD) as m:
            m.store(5, 1)
            pfn = m.pfn(0)
        equal(len(events.of("rdax_fault", ino=ino, index="0x0", order=9, write="result", reason="none")), 1,
              "faults of 2 MiB that were served")
        equal(len(events.of("rdax_insert", ino=ino, index="0x0", pfn=f"{pfn:#x}", order="9 write")), 1,
              "what they inserted")
        events.clear()
        with Map(fd, PMD, PMD, skew=PAGE) as m:
            m.touch(0, 1)
        # Where the core wants mmap_lock for a single page (ext4), it begins anew with 2 MiB.
        fell = events.of("rdax_fault", ino=ino, order="9 read", reason="alignment")
        check(fell and all("FALLBACK" in fault for fault in fell), f"faults that fell back: {fell}")
        equal(len(events.of("rdax_fault", ino=ino, order="0 read", index="0x200", reason="none")), 1,
              "faults of a page")
        events.clear()
        with Map(fd, 4 * PMD) as m:
            m.bus_error(2 * PMD, "behind the end")
        check(any("SIGBUS" in fault for fault in events.of("rdax_fault", ino=ino)),
              f"no fault ends with SIGBUS: {events.of('rdax_fault')}")


@case()
def writeback_and_removal(t):
    t.need_adopted()
    fd = _file(t, 2 * PMD)
    ino = os.fstat(fd).st_ino
    with Events() as events, Map(fd, 2 * PMD) as m:
        m.store(0, 1)
        os.fsync(fd)
        equal(len(events.of("rdax_writeback", ino=ino, count=512)), 1, "write-backs of 2 MiB")
        os.fsync(fd)
        equal(len(events.of("rdax_writeback", ino=ino, count=512)), 1, "and of what is clean")
        m.store(0, 2)
        # The part of an entry that stays is not to be forgotten.
        os.ftruncate(fd, PMD + PAGE)
        flushed = events.of("rdax_remove_flush", ino=ino)
        check(flushed or t.variant.kind == "ext4", "nothing tells of what is flushed as it is removed")


@case()
def waits(t):
    t.need_adopted()
    fd = _file(t, PMD)
    ino = os.fstat(fd).st_ino
    reader, writer = os.pipe()
    with Events() as events, Map(fd, PMD) as m:
        m.touch(0, 1)
        m.splice(writer, 0)

        def cut():
            os.ftruncate(fd, 0)

        task = Task(cut)
        wait_for(lambda: events.of("rdax_wait_begin", ino=ino, who="layout"), "begin of a wait")
        equal(events.of("rdax_wait_end", ino=ino), [], "ends of it")
        os.read(reader, PAGE)
        task.result()
        (end,) = events.of("rdax_wait_end", ino=ino, who="layout")
        check(int(end.split()[-2]) > 0, f"how long: {end}")


@case(fs=())
def adoption(t):
    name = "pmem1"
    if not device.adopted(name):
        raise Skip(f"{name} is not adopted")
    number = device.read(f"/sys/block/{name}/dev")
    with Events() as events:
        device.adopt(name, False)
        device.adopt(name, True)
        equal(events.of("rdax_adopt", dev=number), [f"dev {number} released", f"dev {number} adopted"],
              "events")


# Maps a file's first page, loads from it and stores to it.
TOUCH = ("import mmap, sys\n"
         "with open(sys.argv[1], 'r+b') as f, mmap.mmap(f.fileno(), mmap.PAGESIZE) as m:\n"
         "    m[0] = m[1] + 1\n")


def _tool(name):
    path = shutil.which(name)
    if not path:
        raise Skip(f"{name} is not installed")
    return path


def _command(t):
    """One without quotes, as not every tool has a shell run it."""
    program, path = "/tmp/rdax-tests/touch.py", t.path("touched")
    with open(program, "w", encoding="ascii") as f:
        f.write(TOUCH)
    with open(path, "wb") as f:
        f.write(bytes(PAGE))
        os.fsync(f.fileno())
    return (sys.executable, program, path)


@case(fs=("xfs",), quick=False, timeout=300)
def shown_by_perf(t):
    """perf trace and perf record, as the documentation has them."""
    perf = _tool("perf")
    t.need_adopted()
    command = _command(t)
    said = run(perf, "trace", "-e", "rdax:*", "--no-syscalls", *command)
    for event in ("rdax:rdax_fault(", "rdax:rdax_insert("):
        check(event in said, f"perf trace has no {event}: {said}")
    data = "/tmp/rdax-tests/perf.data"
    run(perf, "record", "-q", "-e", "rdax:*", "-o", data, *command)
    said = run(perf, "script", "-i", data)
    os.unlink(data)
    for part in ("rdax:rdax_fault:", "rdax:rdax_insert:", "reason"):
        check(part in said, f"perf script has no {part}: {said}")


@case(fs=("xfs",), quick=False, timeout=300)
def shown_by_bpftrace(t):
    """The line that the documentation has, which counts faults by order and reason."""
    bpftrace = _tool("bpftrace")
    t.need_adopted()
    with open("/src/docs/tracing.md", encoding="utf-8") as text:
        (line,) = [line for line in text if line.startswith("    bpftrace -e ")]
    (program,) = shlex.split(line)[2:]
    said = run(bpftrace, "-e", program, "-c", " ".join(_command(t)))
    counts = re.findall(r"^@\[(\d+), (\d+)\]: (\d+)$", said, re.M)
    check(any((order, reason) == ("0", "0") and int(count) for order, reason, count in counts),
          f"no page was served, as bpftrace has it: {said}")


@case(spoils=True, quick=False)
def poison(t):
    t.need_adopted()
    fd = _file(t, PMD)
    ino = os.fstat(fd).st_ino

    def hurt():
        posix.die_of_poison_early()
        with Map(fd, PMD, skew=PAGE) as m:
            m.touch(0, PAGE)
            probe().probe_madvise(m.address, PAGE, posix.MADV_HWPOISON, Fault())

    with Events() as events:
        task = Task(hurt)
        task.join(60)
        check(events.of("rdax_poison", ino=ino, index="0x0"), "nothing tells of bad memory")
