# SPDX-License-Identifier: GPL-2.0
"""What the cases of /dev/rdax have in common."""

import os

from lib import ioctl
from lib.check import Skip, check, equal
from lib.posix import PAGE


def need(t):
    t.need_adopted()
    if not os.path.exists(ioctl.DEVICE):
        raise Skip("there is no /dev/rdax")


def shape(records):
    """What is to be compared of records: pages of the file, kind and order."""
    return [(r.offset // PAGE, r.length // PAGE, r.kind, r.order if r.kind else 0) for r in records]


def covers(records, size):
    """The records are the whole file, one behind the other."""
    at = 0
    for record in records:
        equal(record.offset, at, "where a record begins")
        check(record.length > 0, f"a record of nothing: {record}")
        at += record.length
    check(at >= size, f"the records end at {at:#x}, the file at {size:#x}")
