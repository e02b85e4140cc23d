# SPDX-License-Identifier: GPL-2.0
"""/dev/rdax: what it tells of files and of waits, to whom, and what it refuses."""
