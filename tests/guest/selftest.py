# SPDX-License-Identifier: GPL-2.0
"""What runs the cases: one that leaves something behind fails, and no other fails for it."""

import os
import re

from lib import device, left, posix
from lib.check import Skip, check, equal
from lib.fs import VARIANTS
from lib.runner import Case, Runner, case
from lib.task import Task

DEVICE = "pmem1"
MOUNT = "/mnt/rdax-left"


def _run(t, *functions):
    """(exit status, lines) of a run of these functions as the cases of a group."""
    said = f"/tmp/selftest-{os.getpid()}"

    def run():
        posix.become_subreaper()
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        # What never goes is not worth the time here.
        left.PATIENCE = 1
        cases = [Case(function, {"fs": (), "device": DEVICE}) for function in functions]
        try:
            return Runner(t.settings).run([(None, "selftest", cases)])
        except SystemExit as end:
            return end.code

    status = Task(run).result(timeout=60)
    with open(said, encoding="utf-8") as f:
        return status, f.read().splitlines()


def _results(lines):
    """{name: whether it passed}"""
    found = (re.match(r"(not ok|ok) \d+ - (\S+)", line) for line in lines)
    return {match[2].removeprefix("selftest/"): match[1] == "ok" for match in found if match}


def _make():
    device.run(*VARIANTS["xfs"].mkfs, f"/dev/{DEVICE}")


def leaves_it_mounted(_t):
    _make()
    os.makedirs(MOUNT, exist_ok=True)
    posix.mount(f"/dev/{DEVICE}", MOUNT, "xfs", "")


def needs_it_free(_t):
    check(not os.path.ismount(MOUNT), "it is mounted still")
    _make()


def leaves_it_claimed(t):
    """By a process that has left the case's session."""
    fd = os.open(f"/dev/{DEVICE}", os.O_RDONLY | os.O_EXCL)
    if not os.fork():
        os.setsid()
        os.read(t.settings.end, 1)
        os._exit(fd < 0)


@case(fs=())
def what_is_left_mounted_is_a_failure_of_its_case(t):
    _need()
    status, lines = _run(t, leaves_it_mounted, needs_it_free)
    equal((status, _results(lines)), (1, {"leaves_it_mounted": False, "needs_it_free": True}), "results")
    check(any(MOUNT in line for line in lines), f"it is not said what was left:\n{lines}")
    check(not os.path.ismount(MOUNT), "it is mounted still")


@case(fs=())
def a_device_that_is_left_in_use_ends_the_run(t):
    _need()
    t.settings.end, end = os.pipe()
    try:
        status, lines = _run(t, leaves_it_claimed)
    finally:
        os.write(end, b"x")
    equal((status, _results(lines)), (2, {"leaves_it_claimed": True, "devices_in_use": False}), "results")
    check(any("has fd/" in line or f"-> /dev/{DEVICE}" in line for line in lines),
          f"it is not said who has it:\n{lines}")
    equal(left.claimed([DEVICE]), [], "devices in use afterwards")


def _need():
    if not device.exists(DEVICE):
        raise Skip(f"there is no {DEVICE}")
