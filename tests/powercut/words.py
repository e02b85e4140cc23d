# SPDX-License-Identifier: GPL-2.0
"""A failure in words: when the cut came, and what it lost that had been stored by whom."""

import bisect
import collections
import subprocess
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent.parent.parent / "scripts"
MOMENTS = {"event": "", "fence": ", at a fence", "access": ", at a store or a write-back",
           "request": ", when another sync was under way still"}
LINE = 64


class Symbols:
    """What is at addresses: of the kernel's code, and of guest.so, which is in `directory`."""

    def __init__(self, symbols, directory):
        self.all = sorted((int(entry[0], 16), entry[1]) for entry in symbols)
        self.starts = [start for start, _ in self.all]
        self.directory = directory

    def kernel(self, address):
        found = bisect.bisect_right(self.starts, address) - 1
        if found < 0:
            return f"{address:#x}"
        return f"{self.all[found][1]}+{address - self.all[found][0]:#x}"

    def names(self, places):
        """{place: name}; a place is an address of the kernel's code, or "FILE+OFFSET" of user space."""
        names = {place: self.kernel(place) if isinstance(place, int) else place for place in places}
        ours = [place for place in names if str(place).startswith("guest.so+")]
        if ours:
            said = subprocess.run(
                [SCRIPTS / "in-root", "--ro", self.directory, "/build", "--", "addr2line", "-f", "-s", "-e",
                 "/build/guest.so", *(place.partition("+")[2] for place in ours)],
                check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
            # A line for the function, and one for its place.
            names.update((place, f"{function} ({at.split(' ')[0]})")
                         for place, function, at in zip(ours, said[::2], said[1::2], strict=True))
        return names


def stored_by(failure):
    """Which instructions had stored the lines that a cut lost."""
    by = collections.Counter(str(place) for _, place in failure["lines"])
    for place, count in by.most_common(8):
        yield f"  lines lost that were stored by {place}: {count}"


def lines_of(failure):
    """All lines that a cut lost."""
    runs = []
    for offset, place in failure["lines"]:
        if runs and runs[-1][1:] == [offset, place]:
            runs[-1][1] = offset + LINE
        else:
            runs.append([offset, offset + LINE, place])
    for first, end, place in runs:
        yield f"  {first:#10x} to {end - 1:#10x}: stored by {place}"


def with_lines(failure, lost, where):
    """What a cut has lost, and who had stored it if its lines are known."""
    lines = dict(failure.get("lines", []))
    for line, at in zip(lost, where, strict=True):
        if not lines or at is None:
            yield line
        elif at // LINE * LINE in lines:
            yield f"{line}; its line, {at // LINE * LINE:#x}, was stored by {lines[at // LINE * LINE]} and lost"
        else:
            yield f"{line}; its line, {at // LINE * LINE:#x}, was not lost in this cut"


def moment(failure):
    """When a cut came, in the words of its workload."""
    name, events = failure["workload"], failure["events"]
    if name in ("race", "beside", "giant"):
        return f"after {events[0]} syncs of one thread and {events[1]} of the other"
    what, first = ("transaction", 1) if name in ("sqlite", "lmdb") else ("operation", 0)
    if events[0] % 2:
        return f"while {what} {events[0] // 2 + first} was under way"
    return f"after {what} {events[0] // 2 - 1 + first}" if events[0] else "before all"
