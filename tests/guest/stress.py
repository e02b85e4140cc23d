# SPDX-License-Identifier: GPL-2.0
"""Everything at once, with every word checked; see lib/stress.c."""

import os
import zlib

from lib import native, stressing, task
from lib.check import Skip, check, equal
from lib.device import SlowDisk, write
from lib.runner import case

# Of the time asked for.
SHARE = {"xfs": 0.5, "ext4": 0.3, "xfs-noreflink": 0.2}


def _seconds(settings, variant):
    return max(3, round(settings.seconds * (SHARE[variant] if settings.shared else 1)))


# Much less than anything lost with each operation would come to, in bytes.
MOST_GROWTH = 16 << 20


def _kernel_memory():
    """What the kernel has taken for small objects, with all that can be dropped gone, in bytes."""
    os.sync()
    write("/proc/sys/vm/drop_caches", "3")
    with open("/proc/meminfo", encoding="ascii") as meminfo:
        return next(int(line.split()[1]) << 10 for line in meminfo
                    if line.startswith("SUnreclaim:"))


@case(timeout=lambda settings: settings.seconds + 120)
def everything_at_once(t):
    before = _kernel_memory()
    seconds = _seconds(t.settings, t.variant.name)
    command = [native.path("stress"), "-d", t.dir, "-t", str(seconds), "-s",
               str(t.settings.seed), "-w", "4", "-l", str(round(40000 * task.pace))]
    if t.variant.reflink:
        command.append("-r")
    try:
        slow = SlowDisk()
        slow.delay(3)
        command += ["-D", slow.PATH]
    except Skip as skip:
        t.note(f"without direct I/O: {skip}")
    files = []
    for line in stressing.lines_of(command, t.stats(), (
            "read_pte", "write_pte", "zero_pmd", "layout_breaks", "entries_removed",
            "writeback_entries", "private_pte")):
        if line.startswith("file "):
            files.append(line.split()[1:])
        else:
            t.note(line)
    equal(len(files), 8 if t.variant.reflink else 4, "files")
    _compare(files)
    os.sync()
    t.fs.remount()
    _compare(files)
    for path, *_ in files:
        os.unlink(path)
    after = _kernel_memory()
    t.note(f"kernel memory in small objects: {before >> 10} KiB before, {after >> 10} KiB after")
    check(after - before < MOST_GROWTH, f"{after - before} bytes of kernel memory were lost")


def _compare(files):
    """The files hold what the program says that they must."""
    for path, size, crc in files:
        with open(path, "rb") as f:
            data = f.read()
        equal(len(data), int(size), f"size of {path}")
        check(zlib.crc32(data) == int(crc, 16), f"{path} is not what was written")
