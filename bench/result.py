# SPDX-License-Identifier: GPL-2.0
"""What the benchmark's rows are called, and what a result says about them."""

import statistics

NAMES = {"xfs": "XFS", "ext4": "ext4"}

# The rows of the table, in its order. An operation is a page or an entry, unless said.
ROWS = {
    "pte-write-first": "PTE write fault, first",
    "pte-write-there": "PTE write fault, dirty entry there",
    "pte-write-clean": "PTE write fault, clean entry there",
    "pte-write-protect": "PTE write-protect fault after fsync",
    "pte-read-first": "PTE read fault, first",
    "pte-read-there": "PTE read fault, entry there",
    "pte-hole-read": "PTE hole read",
    "pmd-write-first": "PMD write fault, first",
    "pmd-write-there": "PMD write fault, dirty entry there",
    "pmd-write-clean": "PMD write fault, clean entry there",
    "pmd-write-protect": "PMD write-protect fault after fsync",
    "pmd-read-first": "PMD read fault, first",
    "pmd-read-there": "PMD read fault, entry there",
    "pmd-hole-read": "PMD hole read",
    "pte-fsync": "fsync, per dirty PTE entry",
    "pmd-fsync": "fsync, per dirty PMD entry",
    "pte-truncate-clean": "truncate, per clean PTE entry",
    "pte-truncate-dirty": "truncate, per dirty PTE entry",
    "pmd-truncate-clean": "truncate, per clean PMD entry",
    "pmd-truncate-dirty": "truncate, per dirty PMD entry",
    "pread-4k": "pread 4 KiB",
    "pwrite-4k": "pwrite 4 KiB",
    "cached-read-4k": "file without DAX: pread 4 KiB, not in the page cache",
    "cached-write-4k": "file without DAX: pwrite 4 KiB, not in the page cache",
    "pwrite-4k-clone": "pwrite 4 KiB to shared blocks",
    "pte-write-clone": "PTE write fault on shared blocks",
    "pte-munmap": "munmap, per PTE",
    "pmd-munmap": "munmap, per PMD",
    "pte-write-first-random": "random order: PTE write fault, first",
    "pte-write-there-random": "random order: PTE write fault, dirty entry there",
    "pte-write-clean-random": "random order: PTE write fault, clean entry there",
    "pte-write-protect-random": "random order: PTE write-protect fault after fsync",
    "pte-read-first-random": "random order: PTE read fault, first",
    "pte-read-first-advised": "random order, MADV_RANDOM: PTE read fault, first",
    "pte-read-there-random": "random order: PTE read fault, entry there",
    "pte-fsync-random": "random order: fsync, per dirty PTE entry",
    "pte-truncate-dirty-random": "random order: truncate, per dirty PTE entry",
    "pte-munmap-random": "random order: munmap, per PTE",
    "pread-4k-random": "random order: pread 4 KiB",
    "pwrite-4k-random": "random order: pwrite 4 KiB",
    "pwrite-4k-clone-random": "random order: pwrite 4 KiB to shared blocks",
    "pte-write-clone-random": "random order: PTE write fault on shared blocks",
    "pte-write-sparse": "every 8th page: PTE write fault, first",
    "pte-fsync-sparse": "every 8th page: fsync, per page written",
    "pte-write-bursts": "4 of 32 pages, random: PTE write fault, first",
    "pte-fsync-bursts": "4 of 32 pages, random: fsync, per page written",
    "pte-write-unwritten": "PTE write fault that converts a block",
    "pte-write-hole": "PTE write fault that allocates a block",
    "pmd-write-unwritten": "PMD write fault that converts blocks",
    "procs-read-first": "{procs} processes: PTE read fault, first of all",
    "procs-read-there": "{procs} processes: PTE read fault, entry there",
    "procs-write-after-read": "{procs} processes: PTE write fault, mapped to read",
    "procs-write-there": "{procs} processes: PTE write fault, dirty entry there",
    "procs-write-after-fsync": "{procs} processes: PTE write-protect fault after fsync",
    "procs-fsync": "{procs} processes: fsync, per dirty PTE entry",
    "procs-truncate-dirty": "{procs} processes, gone: truncate, per dirty PTE entry",
    "pte-write-first-large": "{large} file: PTE write fault, first",
    "pte-fsync-large": "{large} file: fsync, per dirty PTE entry",
    "pte-truncate-clean-large": "{large} file: truncate, per clean PTE entry",
    "pte-truncate-dirty-large": "{large} file: truncate, per dirty PTE entry",
    "pud-write-first": "write faults on 1 GiB, first",
    "pud-write-there": "write faults on 1 GiB, dirty entries there",
    "pud-write-clean": "write faults on 1 GiB, clean entries there",
    "pud-write-protect": "write-protect faults on 1 GiB after fsync",
    "pud-read-first": "read faults on 1 GiB, first",
    "pud-read-there": "read faults on 1 GiB, entries there",
    "pud-fsync": "fsync, per dirty GiB",
    "pud-truncate-clean": "truncate, per clean GiB",
    "pud-truncate-dirty": "truncate, per dirty GiB",
    "pud-munmap": "munmap, per GiB",
}

# What is run without the module too: what may not be slower on devices that are not adopted.
ABSENT = (
    "pte-write-first", "pte-write-there", "pte-write-protect", "pte-read-first", "pte-read-there",
    "pte-hole-read", "pmd-write-first", "pmd-write-there", "pte-fsync", "pte-truncate-clean",
    "pread-4k", "pwrite-4k", "cached-read-4k", "cached-write-4k",
)

NOTE = ("Truncate of dirty entries: rdax writes them back before it removes them, the kernel's own "
        "code does not.")

STATES = ("rdax", "kernel", "beside", "absent")


class Row:
    """A row on one filesystem: instructions per operation in each state that was measured."""

    def __init__(self, name, label, data):
        self.name, self.label, self.operations = name, label, data["operations"]
        self.rounds = {state: data["ns"][state] for state in STATES if state in data["ns"]}
        self._faults = data["faults"]

    def has(self, *states):
        return all(state in self.rounds for state in states)

    def cost(self, state):
        return statistics.median(self.rounds[state]) / self.operations

    def ratio(self, state, to):
        return self.cost(state) / self.cost(to)

    def spread(self):
        """The largest difference between rounds of one state, as a part of their median."""
        return max((max(r) - min(r)) / statistics.median(r) for r in self.rounds.values())

    def faults(self, state):
        return statistics.median(self._faults[state]) / self.operations


class Result:
    """What bench/run wrote."""

    def __init__(self, data):
        self.data = data

    def systems(self):
        return [fs for fs in NAMES if fs in self.data["rows"]]

    def rows(self, fs, *states):
        """The rows that were measured in all of these states."""
        found = self.data["rows"][fs]
        rows = [Row(name, ROWS[name].format(**self.data), found[name])
                for name in ROWS if name in found]
        return [row for row in rows if row.has(*states)]

    def title(self):
        return (f"Instructions per operation, kernel {self.data['kernel']}, commit "
                f"{self.data['commit']}, files of {self.data['size']}, median of rounds")

    def table(self):
        lines = [
            self.title() + ".",
            "rdax: adopted. kernel: the kernel's own code, nothing adopted. beside: the same, to",
            "kernel, while another device is adopted. spread: largest difference between the",
            f"{self.data['rounds']} rounds of one of them. faults: page faults per operation.",
            NOTE,
        ]
        for fs in self.systems():
            lines += ["", f"{NAMES[fs]:54} {'rdax':>9} {'kernel':>9} {'ratio':>7} {'beside':>7} "
                          f"{'spread':>7}  faults"]
            for row in self.rows(fs, "rdax", "kernel"):
                beside = f"{row.ratio('beside', 'kernel'):.3f}" if row.has("beside") else ""
                faults = f"{row.faults('rdax'):.3g} / {row.faults('kernel'):.3g}"
                lines.append(f"{row.label:54} {row.cost('rdax'):9.0f} {row.cost('kernel'):9.0f} "
                             f"{row.ratio('rdax', 'kernel'):7.3f} {beside:>7} "
                             f"{100 * row.spread():6.2f}%  {faults}")
        for fs in self.systems():
            rows = self.rows(fs, "absent", "kernel", "beside")
            if rows:
                lines += ["", f"{NAMES[fs] + ', device not adopted':54} {'absent':>9} "
                              f"{'loaded':>9} {'ratio':>7} {'beside':>9} {'ratio':>7}"]
            for row in rows:
                lines.append(f"{row.label:54} {row.cost('absent'):9.0f} {row.cost('kernel'):9.0f} "
                             f"{row.ratio('kernel', 'absent'):7.3f} {row.cost('beside'):9.0f} "
                             f"{row.ratio('beside', 'absent'):7.3f}")
        return "\n".join(lines)
