# SPDX-License-Identifier: GPL-2.0
"""The workloads as guest.py sees them: what they do, and what they were promised."""

import ctypes

from model import EVENT, THREADS, Failed

# Of race.c.
SYNCERS, SLOTS = 2, 1600


def lines_of(count, text):
    """What a check has told, which must be something if it counts something."""
    lines = text.value.decode().splitlines()
    if bool(lines) != bool(count):
        raise Failed(f"a check counts {count}, and tells {lines}")
    return lines


class Files:
    """The workloads of workload.c, which oracle.c knows."""

    # Words of other files that shared blocks, in what was checked last.
    others = 0

    def __init__(self, model, name):
        self.lib, self.name = model.lib, name.encode()

    def prepare(self, path):
        if self.lib.workload_prepare(path.encode(), self.name):
            raise Failed(self.lib.workload_failure().decode())

    def run(self, path, seed, wanted, most):
        cuts = self.lib.workload_run(path.encode(), self.name, seed, wanted, most)
        if cuts < 0:
            raise Failed(self.lib.workload_failure().decode())
        return cuts

    def begin(self):
        if self.lib.oracle_begin(self.name):
            raise Failed("no memory")

    def advance(self, events):
        if self.lib.oracle_advance(events):
            raise Failed("cuts are not in order")

    def check(self, path, _what, by_read):
        """(what is wrong, promises) after the cut that `what` tells of, by read or through a mapping."""
        text, promises = ctypes.create_string_buffer(4000), ctypes.c_uint64()
        others = ctypes.c_uint64()
        count = self.lib.oracle_check(path.encode(), by_read, text, len(text), promises, others)
        self.others = others.value
        return lines_of(count, text), promises.value

    def promised(self, _events):
        """What it needs to know again what was promised."""
        at = ctypes.c_void_p()
        size = self.lib.workload_ops(at)
        return ctypes.string_at(at, size)

    def recall(self, promised, what):
        self.lib.workload_ops_are(promised, len(promised))
        self.begin()
        self.advance(what["events"][0])


class Log(Files):
    """A log through a MAP_SYNC mapping."""

    def prepare(self, path):
        if self.lib.log_prepare(path.encode()):
            raise Failed("log")

    def run(self, path, seed, wanted, most):
        cuts = self.lib.log_run(path.encode(), seed, wanted, most)
        if cuts < 0:
            raise Failed("log")
        return cuts

    def begin(self):
        pass

    def advance(self, events):
        pass

    def check(self, path, what, by_read):
        text, promises = ctypes.create_string_buffer(400), ctypes.c_uint64()
        count = self.lib.log_check(path.encode(), what["events"][0], by_read, text, len(text), promises)
        return lines_of(count, text), promises.value

    def promised(self, _events):
        return b""

    def recall(self, _promised, what):
        self.lib.log_recall(what["seed"])


class Race(Files):
    """A thread that stores while others sync."""

    size = 8 << 20
    beside = False

    def prepare(self, path):
        if self.lib.race_prepare(path.encode(), self.size):
            raise Failed("race")

    def run(self, path, seed, wanted, most):
        cuts = self.lib.race_run(path.encode(), seed, wanted, most, self.beside)
        if cuts < 0:
            raise Failed("race")
        return cuts

    def begin(self):
        pass

    def advance(self, events):
        pass

    def check(self, path, what, by_read):
        text, promises = ctypes.create_string_buffer(4000), ctypes.c_uint64()
        count = self.lib.race_check(path.encode(), what["seed"], (ctypes.c_uint64 * THREADS)(*what["events"]),
                                    by_read, text, len(text), promises)
        return lines_of(count, text), promises.value

    def promised(self, events):
        to = ctypes.create_string_buffer(SYNCERS * SLOTS * 8)
        self.lib.race_promises((ctypes.c_uint64 * THREADS)(*events), to)
        return to.raw

    def recall(self, promised, what):
        if self.lib.race_promises_are(self.size, (ctypes.c_uint64 * THREADS)(*what["events"]),
                                      promised):
            raise Failed("race")


class Beside(Race):
    """The same, and another thread cuts off, punches and clones beside them."""

    beside = True


class Giant(Race):
    """The same in a file that is mapped by 1 GiB."""

    size = 1 << 30


class Program:
    """Those of programs.py."""

    others = 0

    def __init__(self, model, name):
        import programs  # pylint: disable=import-outside-toplevel
        self.store = {"sqlite": programs.Sqlite, "lmdb": programs.Lmdb}[name](
            lambda count: model.ask(EVENT, 0, count))
        self.prepare, self.run, self.check = self.store.prepare, self.store.run, self.store.check

    def begin(self):
        pass

    def advance(self, events):
        pass

    def promised(self, _events):
        return b""

    def recall(self, _promised, what):
        self.store.recall(what["seed"], (what["events"][0] + 1) // 2)


def workload(model, name):
    others = {"log": Log, "race": Race, "beside": Beside, "giant": Giant, "sqlite": Program, "lmdb": Program}
    return others.get(name, Files)(model, name)
