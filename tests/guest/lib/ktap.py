# SPDX-License-Identifier: GPL-2.0
"""What the kernel's own test programs say: KTAP."""

import re
from typing import NamedTuple


class Result(NamedTuple):
    """Of one test: what it is called, and the lines that came before, since the result of another."""

    passed: bool
    name: str
    before: list

    @property
    def skipped(self):
        return "# SKIP" in self.name


def results(text):
    """Of all tests, in the order in which they were told."""
    found, before = [], []
    for line in text.splitlines():
        told = re.match(r"(not ok|ok) \d+ (?:- )?(.*)$", line)
        if told:
            found.append(Result(told[1] == "ok", told[2], before))
            before = []
        else:
            before.append(line.strip("# "))
    return found


def has_failures(text):
    """Whether any has failed, also where threads of the program have mixed their lines."""
    return "not ok" in text


def is_whole(text):
    """Whether as many results were told as were planned."""
    plan = re.search(r"^1\.\.(\d+)$", text, re.MULTILINE)
    return plan is not None and len(results(text)) == int(plan[1])
