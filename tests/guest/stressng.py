# SPDX-License-Identifier: GPL-2.0
"""stress-ng's stressors of mappings, files, ranges of files, and forks, without a line in the log.

Not part of an ordinary run: `tests/guest/run --only stressng --seconds 600` runs them one after the
other on each filesystem, for that time altogether (without --seconds, ten minutes).
"""

import os
import shutil
import subprocess

from lib.check import Failure, Skip, check
from lib.runner import case

NOBODY = 65534
# What only measures, sleeps, or has nothing to do with memory or files is left out.
STRESSORS = [
    "mmap", "mmapaddr", "mmapcow", "mmapfixed", "mmapfork", "mmaphuge", "mmapmany", "mmaptorture",
    "mremap", "msync", "msyncmany", "madvise", "mincore", "mlock", "mlockmany", "mprotect",
    "mseal", "munmap", "pagemove", "vm", "vma", "vm-addr", "vm-rw", "vm-segv", "vm-splice",
    "userfaultfd", "fault", "stackmmap", "pkey", "physpage", "remap", "splice", "sendfile", "tee",
    "io-uring", "aio", "aiol", "iomix", "ioprio", "readahead", "memfd", "copy-file", "fallocate",
    "fpunch", "fsize", "hdd", "file-ioctl", "fiemap", "sync-file", "seek", "pseek", "touch", "io",
    "dup", "open", "rename", "dentry", "link", "symlink", "unlink", "flock", "lockf", "lockofd",
    "lease", "locka", "metamix", "fcntl", "fstat", "utime", "getdent", "fork", "vfork",
    "vforkmany", "clone", "fd-fork", "exec", "daemon", "exit-group", "prefetch", "revio", "rawdev",
    "chattr", "inode-flags", "procfs",
]
SIZES = ["--mmap-file", "--mmap-bytes", "32M", "--mmap-madvise", "--vm-bytes", "64M",
         "--hdd-bytes", "64M", "--iomix-bytes", "64M", "--copy-file-bytes", "128M",
         "--fallocate-bytes", "64M", "--mremap-bytes", "16M", "--sync-file-bytes", "64M"]
# Statuses of a run in which some stressors could not run here.
CANNOT = (0, 3, 4)


def _known():
    done = subprocess.run(["stress-ng", "--stressors"], stdout=subprocess.PIPE, text=True,
                          check=False)
    return done.stdout.split()


@case(fs=("xfs", "ext4"), timeout=lambda settings: 2 * settings.stressng + 600)
def stressors_one_after_the_other(t):
    if not shutil.which("stress-ng"):
        raise Skip("there is no stress-ng")
    known = _known()
    chosen = [name for name in STRESSORS if name in known]
    check(len(chosen) > 50, f"stress-ng knows only {chosen}")
    only = os.environ.get("STRESSORS")
    chosen = only.split(",") if only else chosen
    os.chown(t.dir, NOBODY, NOBODY)
    each = max(1, t.settings.stressng // len(chosen))
    t.note(f"{len(chosen)} stressors for {each} s each: {' '.join(chosen)}")
    command = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
               "stress-ng", "--seq", "2", "--with", ",".join(chosen), "--timeout", f"{each}s",
               "--temp-path", t.dir, "--verify", "--oomable", "--seed", str(t.settings.seed),
               *SIZES]
    stats = t.stats()
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                           cwd=t.dir)
    wrong = []
    for line in run.stdout:
        if " fail: " in line or " error: " in line:
            wrong.append(line.rstrip())
        if " info: " not in line or "skipped" in line or "passed" in line or "failed" in line:
            t.note(line.rstrip())
    status = run.wait()
    if stats.known:
        t.note(" ".join(f"{name}={n}" for name, n in stats.since().items() if n))
    if status not in CANNOT or wrong:
        raise Failure("\n".join([f"stress-ng ended with status {status} (seed {t.settings.seed})"]
                                + wrong))
