# SPDX-License-Identifier: GPL-2.0
"""Everything at once."""

import os

from lib import gib
from lib.check import equal
from lib.device import SlowDisk, some
from lib.runner import case


@case(timeout=lambda settings: settings.seconds + 240, fs=("xfs-1g", "ext4-1g"))
def everything_at_once(t):
    """See lib/gib-stress.c."""
    import subprocess
    from lib import native
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
    stats = t.stats()
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in run.stdout:
        t.note(line.rstrip())
    equal(run.wait(), 0, f"status of the stress program (seed {t.settings.seed})")
    stats.expect(read_pud=some, write_pud=some, layout_breaks=some, entries_removed=some,
                 writeback_entries=some, read_pte=some, write_pte=some)
    t.fs.remount()
    done = subprocess.run(command + ["-v"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, check=False)
    equal(done.returncode, 0, f"after mounting again (seed {t.settings.seed}): {done.stdout}")
