# SPDX-License-Identifier: GPL-2.0
"""Memory that has gone bad: who is told, which page is marked, and what file I/O says.

Three ways to make it bad: MADV_HWPOISON runs the kernel's handling of a memory error on a mapped
page, and says that nothing has happened to the memory; a machine check says that it has; the block
device's list of bad blocks makes the driver refuse it. The pages stay marked until the device is
bound anew, which is why all this runs on a device of its own, and why the group ends with that.

A filesystem that does not handle memory failures itself (ext4, and XFS without a reverse map) leaves
them to the kernel's core, which takes the first page of a folio for the one that has failed. rdax
steps in between for a folio of several pages.
"""

from .common import end_of_group  # noqa: F401
