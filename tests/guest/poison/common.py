# SPDX-License-Identifier: GPL-2.0
"""What the cases of memory that has gone bad have in common."""

import os

from lib import device, posix
from lib.check import check
from lib.device import wait_for
from lib.posix import PAGE
from lib.space import free_blocks, settle

DEVICE = "pmem1"
EIO, EFAULT = 5, 14
POISON = dict(device=DEVICE, spoils=False)


def bad(state, pfns):
    """The pages that carry the mark of a memory failure."""
    flag = state.flag("hwpoison")
    words = state.words(pfns, state.FLAGS)
    return {pfn for pfn, (flags,) in zip(pfns, words, strict=True) if flags & flag}


def unwritten(t, fd, at, length):
    """(descriptor, offset): where a file has the blocks of this one, allocated and never written."""
    ((start, at_disk, _, _),) = [e for e in posix.extents(fd) if e[0] <= at < e[0] + e[2]]
    block = at_disk + at - start
    if t.variant.kind == "ext4":
        # They stay where they are.
        posix.fallocate(fd, posix.ZERO_RANGE, at, length)
    else:
        os.ftruncate(fd, 0)
        settle(t)
        fd = t.open("all", allocate=(free_blocks(t.dir) - 4096) * PAGE)
    found = [e[0] + block - e[1] for e in posix.extents(fd) if e[1] <= block < e[1] + e[2]]
    check(found, "the blocks are in no file")
    return fd, found[0]


def forget(t):
    """What the list holds cannot be taken out again: bind the device anew."""
    t.fs.umount()
    rebind()
    t.fs.mount()


def rebind():
    """Bind the pmem driver anew, which forgets all marks; adopt again what was adopted."""
    if not device.exists(DEVICE):
        return
    adopted = device.adopted(DEVICE)
    if adopted:
        device.write(f"{device.CONFIG}/{DEVICE}/adopt", "0")
    driver, name = device.driver_of(DEVICE)
    device.write(f"{driver}/unbind", name)
    wait_for(lambda: not device.exists(DEVICE), f"end of {DEVICE}")
    device.bind(DEVICE, driver, name)
    if adopted:
        device.write(f"{device.CONFIG}/{DEVICE}/adopt", "1")


def end_of_group():
    rebind()
