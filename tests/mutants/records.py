#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""records.py verify | list | choose N/M [NUMBER | TEXT]… | name N | first N WHERE | apply N DIRECTORY

Reads tests/mutants/faults: whether every record, and those for power cuts, are in the sources exactly
once; the numbers (from 1) of those that are chosen, and of these the N-th of M shares; what is wrong in the
N-th; where to look first in WHERE, which is guest, kunit or giant; and puts it into the checkout in DIRECTORY.
"""

import os
import re
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
FAULTS = os.path.join(HERE, "faults")
# Those that only a power cut shows.
POWERCUT = os.path.join(HERE, "..", "powercut", "faults")
HEAD = re.compile(r"^== (\S+): (.*?) \[(.*)\]$")


def split(word):
    """Where to look, and for what."""
    place, colon, rest = word.partition(":")
    return (place, rest) if colon else ("guest", word)


class Record:
    def __init__(self, path, name, first):
        self.path, self.name, self.first = path, name, first
        self.old, self.new, self.kinds = [], [], []

    def add(self, line):
        kind, text = line[:1], line[1:].strip()
        if kind not in ("-", "+", " ", ""):
            sys.exit(f"{self.name}: what is the line '{line}'?")
        self.kinds.append(kind or " ")
        if kind in ("-", " "):
            self.old.append(text)
        if kind in ("+", " "):
            self.new.append(text)

    def places(self, lines):
        """The numbers of the lines where the old text begins. The last line may go on."""
        stripped = [line.strip() for line in lines]
        size = len(self.old)
        return [at for at in range(len(lines) - size + 1)
                if stripped[at:at + size - 1] == self.old[:-1]
                and (stripped[at + size - 1] == self.old[-1]
                     or (self.new and self.new[-1] == self.old[-1]
                     and stripped[at + size - 1].startswith(self.old[-1])))]

    def problem(self, root):
        with open(os.path.join(root, self.path), encoding="utf-8") as f:
            found = len(self.places(f.read().splitlines()))
        return None if found == 1 else f"is {found} times in {self.path}"

    def apply(self, root):
        path = os.path.join(root, self.path)
        with open(path, encoding="utf-8") as f:
            lines = f.read().splitlines()
        at, = self.places(lines)
        size = len(self.old)
        new = list(self.new)
        if new and new[-1] == self.old[-1]:
            new[-1] = lines[at + size - 1]
        lines[at:at + size] = new
        with open(path, "w", encoding="utf-8") as f:
            f.write("\n".join(lines) + "\n")


def read(file=FAULTS):
    records = []
    with open(file, encoding="utf-8") as f:
        for line in f.read().splitlines():
            head = HEAD.match(line)
            if head:
                records.append(Record(head[1], head[2], head[3].split()))
            elif line.startswith("=="):
                sys.exit(f"not a head: {line}")
            elif line.startswith("#") or not line.strip():
                continue
            else:
                records[-1].add(line)
    return records


def main():
    records = read()
    command, *arguments = sys.argv[1:]
    if command == "list":
        for number, record in enumerate(records, 1):
            print(f"{number:3} {record.path}: {record.name}")
        return 0
    if command == "choose":
        share, shares = map(int, arguments[0].split("/"))
        texts = arguments[1:]
        chosen = [number for number, record in enumerate(records, 1)
                  if not texts or str(number) in texts
                  or any(not text.isdigit() and text in f"{record.path}: {record.name}"
                         for text in texts)]
        for number in chosen[share - 1::shares]:
            print(number)
        return 0
    if command == "verify":
        records += read(POWERCUT)
        bad = [(record, record.problem(os.path.dirname(os.path.dirname(HERE))))
               for record in records]
        for record, problem in bad:
            if problem:
                print(f"{record.path}: {record.name}: {problem}")
        print(f"{len(records)} faults, {sum(p is not None for _, p in bad)} that do not fit")
        return any(problem for _, problem in bad)
    record = records[int(arguments[0]) - 1]
    if command == "name":
        print(f"{record.path}: {record.name}")
    elif command == "first":
        print(" ".join(word for place, word in map(split, record.first) if place == arguments[1]))
    elif command == "apply":
        record.apply(arguments[1])
    else:
        sys.exit(__doc__)
    return 0


if __name__ == "__main__":
    sys.exit(main())
