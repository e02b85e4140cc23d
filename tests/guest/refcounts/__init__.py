# SPDX-License-Identifier: GPL-2.0
"""Who uses a page is counted, and nothing is given back to the filesystem under a user.

A transfer is kept waiting on a slow disk for as long as a case wants: the disk holds back all
requests until it is told to go on.
"""
