# SPDX-License-Identifier: GPL-2.0
"""A user without any right who tries to make others wait, lose data, read theirs, or the kernel warn.

Each case says what he tries. Files of his own, files that he may only read, and files that a victim
uses at the same time; entries of every order.
"""
