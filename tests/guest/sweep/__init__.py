# SPDX-License-Identifier: GPL-2.0
"""Every operation, with its first allocation failing, its second, and so on until it needs no more; many of
them also with the first two failing, the first three, and so on.

After each failure: what must hold holds, contents are those of before the operation or those of
after it (spec, R9), and the operation can be done again.

Runs on a kernel that can make allocations fail, with a module that can check what must hold.
"""
