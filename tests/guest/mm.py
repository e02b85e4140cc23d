# SPDX-License-Identifier: GPL-2.0
"""The kernel's own tests of memory management (tools/testing/selftests/mm) that take a file, with it here.

They are run from the filesystem itself, so that it serves their text and data as well. The others of that
directory map anonymous memory, shared memory or huge pages only.
"""

import shutil
import subprocess

from lib import ktap, native
from lib.check import check, equal
from lib.device import some
from lib.runner import case

# DAX mappings have no VM_LOCKED, so that guard pages can be installed in what mlock was called for.
FAIL = {"guard-regions": {"guard_regions.file.mlock"}}
# What the kernel's own code fails besides, where a device is not adopted.
KERNEL_FAILS = {"soft-dirty": {"Test test_mprotect-file soft-dirty after rewritten"}}


def _run(t, name, least):
    """All but the known ones pass, and at least so many."""
    program = shutil.copy(native.selftest(name), t.path(name))
    # Files of tmpfile() are in /tmp.
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c",
               'mount --bind "$1" /tmp && cd "$1" && exec "$2"', "sh", t.dir, program]
    stats = t.stats()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          stdin=subprocess.DEVNULL, text=True, errors="replace", check=False)
    results = ktap.results(done.stdout)
    passed = [one for one in results if one.passed and not one.skipped]
    failed = {one.name for one in results if not one.passed}
    wanted = FAIL.get(name, set()) | (set() if t.adopted else KERNEL_FAILS.get(name, set()))
    if failed != wanted:
        t.note(done.stdout[-8000:])
    equal(failed, wanted, f"what fails of {name}")
    check(len(passed) >= least, f"{name}: {len(passed)} passed, status {done.returncode}:\n"
                                f"{done.stdout[-4000:]}")
    check(ktap.is_whole(done.stdout), f"{name} ended early:\n{done.stdout[-4000:]}")
    stats.expect(private_pte=some)
    return stats


@case(fs=("xfs",), timeout=120)
def guard_regions(t):
    """Guard pages in mappings of anonymous memory, shared memory and a file of this filesystem."""
    _run(t, "guard-regions", 60).expect(write_pte=some)


@case(fs=("xfs",), timeout=180)
def soft_dirty(t):
    """Among them: a page of a file that is written, cleared, and written again."""
    _run(t, "soft-dirty", 15).expect(mkwrite_pte=some)


@case(fs=("xfs",), timeout=180)
def pagemap_ioctl(t):
    """PAGEMAP_SCAN, of files as well."""
    _run(t, "pagemap_ioctl", 100).expect(around_pte=some)


@case(fs=("xfs",), timeout=180)
def copies_on_write(t):
    """Of private mappings of a file as well. Takes a while, most of it with anonymous memory: only if --only
    names it."""
    _run(t, "cow", 250)
