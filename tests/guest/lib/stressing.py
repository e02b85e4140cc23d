# SPDX-License-Identifier: GPL-2.0
"""Programs that use files in every way at once, by chance (see worker.h)."""

import subprocess
import threading

from lib.check import equal
from lib.device import some

PAUSE = 0.2


def lines_of(command, stats, seen):
    """Run a program for its seconds, and until the counters named in `seen` have moved.

    By chance alone one of them may not in a run that is short on a slow machine. Gives the lines
    that the program prints; it has to end well. What never moves is for the case's limit of time.
    """
    with subprocess.Popen([*command, "-u"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True) as run:
        ended = threading.Event()
        watcher = threading.Thread(target=_watch, args=(run, stats, seen, ended))
        watcher.start()
        try:
            for line in run.stdout:
                yield line.rstrip()
        finally:
            ended.set()
            watcher.join()
        equal(run.wait(), 0, f"status of {' '.join(command)}")
    stats.expect(**dict.fromkeys(seen, some))


def _watch(run, stats, seen, ended):
    try:
        while stats.known and not all(stats.since()[name] for name in seen):
            if ended.wait(PAUSE):
                return
    finally:
        run.stdin.close()
