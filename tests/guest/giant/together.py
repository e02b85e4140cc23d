# SPDX-License-Identifier: GPL-2.0
"""Everything at once."""

import os
import subprocess

from lib import gib, native, stressing
from lib.check import equal
from lib.device import SlowDisk
from lib.runner import case


@case(timeout=lambda settings: settings.seconds + 240, fs=("xfs-1g", "ext4-1g"))
def everything_at_once(t):
    """See lib/gib-stress.c."""
    fd = gib.file(t, "steady", 1)
    wild = gib.file(t, "wild", 128)
    os.close(fd)
    os.close(wild)
    seconds = max(8, t.settings.seconds // 2)
    seconds = seconds if t.variant.kind == "xfs" else seconds * 2 // 3
    command = [native.path("gib-stress"), "-d", t.dir, "-t", str(seconds), "-s",
               str(t.settings.seed), "-w", "4"]
    if t.variant.reflink:
        command.append("-r")
    slow = SlowDisk()
    slow.delay(3)
    command += ["-D", slow.PATH]
    for line in stressing.lines_of(command, t.stats(), (
            "read_pud", "write_pud", "layout_breaks", "entries_removed", "writeback_entries",
            "read_pte", "write_pte")):
        t.note(line)
    t.fs.remount()
    done = subprocess.run(command + ["-v"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, check=False)
    equal(done.returncode, 0, f"after mounting again (seed {t.settings.seed}): {done.stdout}")
