# SPDX-License-Identifier: GPL-2.0
"""Device DAX: a namespace of that mode, bound to this driver and back to the kernel's.

The namespace of pmem0 is made anew for every alignment, and at the end as it was.
"""

from .common import end_of_group  # noqa: F401
