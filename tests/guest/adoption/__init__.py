# SPDX-License-Identifier: GPL-2.0
"""Handing devices over and taking them back; a device that goes away under a filesystem."""
