# SPDX-License-Identifier: GPL-2.0
"""The module's own check of what must hold (src/check.rs), in a build that has it."""

import os
import time

from . import task

CHECK = "/sys/kernel/debug/rdax/check"


def can_be_checked():
    return os.path.exists(CHECK)


def look():
    """(violations or None, {what was counted: sum over the devices})"""
    with open(CHECK, encoding="ascii") as f:
        text = f.read()
    numbers = {}
    for line in text.splitlines():
        if line.startswith("# "):
            words = line[2:].split()
            for name, value in zip(words[::2], words[1::2], strict=True):
                numbers[name] = numbers.get(name, 0) + int(value)
    return (None if text.endswith("ok\n") else text), numbers


def violations(patience=3):
    """What is violated, None if nothing. What the kernel does a moment later is waited for."""
    deadline = task.Deadline(patience)
    while True:
        found = look()[0]
        if not found or deadline.over():
            return found
        time.sleep(0.05)
