# SPDX-License-Identifier: GPL-2.0
"""Files mapped by 1 GiB: one entry of the third level, one folio of order 18.

Runs on a device with 8 GiB of data that begins on a multiple of 1 GiB. Tools that walk page tables
(smaps, pagemap) take an entry of 1 GiB away when they look, so that how a file is mapped is told by
the device's counters, by the process's own counts, and by the folio's references.
"""
