# SPDX-License-Identifier: GPL-2.0
"""What the cases of attackers have in common."""

import os

from lib import posix
from lib.mapping import Map
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


def cut(fd, _path):
    os.ftruncate(fd, PAGE)


def wait_for_himself(path, call):
    """He has a page of the file in a pipe, and makes a call that waits until nobody holds it."""
    fd = os.open(path, os.O_RDWR)
    pipe = os.pipe()
    with Map(fd, PMD) as m:
        m.splice(pipe[1], 5 * PAGE)
    call(fd, path)
