# SPDX-License-Identifier: GPL-2.0
"""What the cases of attackers have in common."""

import os

from lib import posix
from lib.posix import NOBODY, PAGE, PMD
from lib.task import Task

BYTES = 2 * PMD
COUNT = BYTES // PAGE

# Pages at the edges of what the calls below are about, and elsewhere.
SPOTS = [0, 1, 300, 507, 508, 511, 512, 515, 516, 700, COUNT - 1]


def as_nobody(function, *arguments, **options):
    """A task that does it as a user without rights."""
    def without_rights():
        posix.become_nobody()
        return function(*arguments)

    return Task(without_rights, name=function.__name__, **options)


def own_directory(t):
    path = t.path("own")
    os.mkdir(path)
    os.chown(path, NOBODY, NOBODY)
    return path
