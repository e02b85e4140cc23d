# SPDX-License-Identifier: GPL-2.0
"""Memory errors as the hardware reports them, which nobody made up.

The kernel has no way to ask for one that also works in an emulated machine: what it has for tests says
that nothing has happened (MF_SW_SIMULATED). A module that can be checked calls memory_failure() as
the handling of machine checks does, and takes the page out of the kernel's address space as that does.
"""

import os

from .check import Skip
from .device import write

_FAIL, _RESTORE = (f"/sys/kernel/debug/rdax/{name}_memory" for name in ("fail", "restore"))


def can_fail():
    return os.path.exists(_FAIL)


def fail(pfn):
    """Have the memory of a frame fail; it has when this returns."""
    if not can_fail():
        raise Skip("memory cannot be made to fail: the module has no check")
    write(_FAIL, f"{pfn}")


def restore(pfns):
    """Make what has failed visible to the kernel again.

    To bind the device anew does not do that: the kernel would crash where it uses the memory.
    """
    for pfn in pfns:
        write(_RESTORE, f"{pfn}")
