# SPDX-License-Identifier: GPL-2.0
"""Runs cases one by one and reports them as KTAP.

A case is a function of one argument (the Test below) marked with @case. It runs in a child with
a session of its own, so that whatever it leaves behind can be found and ended, and so that the
run outlives a case that hangs. The child changes the state of the filesystem (mounted or not)
only in ways that the parent can see in /proc/self/mounts.
"""

import argparse
import fnmatch
import importlib
import os
import pkgutil
import re
import shutil
import signal
import sys
import time
import warnings

from . import device, gib, invariants, kmsg, left, native, posix, trace
from . import task as tasks
from .check import Failure, Skip
from .fs import ORDINARY, VARIANTS, Filesystem
from .posix import PAGE
from .task import Task, describe, session_of

GROUPS = ["data", "orders", "around", "insert", "counts", "refcounts", "private", "mapsync", "reflink",
          "durability", "gup", "mm", "syscalls", "futex", "giant", "space", "sweep", "erofs", "stress",
          "attacks", "stressng", "poison", "adoption", "devdax", "virtual", "report", "tracing", "tool",
          "selftest"]

# Groups and cases that run only if --only names them.
UNASKED = ["stressng", "calls_at_random", "copies_on_write"]

# What a group needs compiled.
NATIVE = [("stress", "stress"), ("attacks", "attack"), ("sweep", "sweep.so"), ("giant", "gib.so"),
          ("giant", "gib-stress"), ("devdax", "uring.so"), ("refcounts", "uring.so"),
          ("durability", "uring.so"), ("gup", "gup_test"),
          ("gup", "gup_longterm"), ("gup", "gib.so"), ("syscalls", "gib.so"), ("counts", "gib.so"),
          *[("mm", name) for name in ("guard-regions", "soft-dirty", "pagemap_ioctl", "cow")]]

# What a quick run does on other filesystems than XFS.
QUICK_ELSEWHERE = ["data", "around", "refcounts", "mapsync", "durability", "giant", "stress",
                   "attacks"]

LOG_LINES = 40

_cases = []


class Case:
    def __init__(self, function, options):
        self.function = function
        self.group = function.__module__.partition(".")[0]
        self.name = function.__name__
        # Variants of the filesystem; empty: the case makes what it needs by itself.
        self.fs = options.pop("fs", ORDINARY)
        self.device = options.pop("device", "pmem0")
        self.timeout = options.pop("timeout", 60)
        self.quick = options.pop("quick", True)
        # The case needs a device of some GiB that begins at a multiple of 1 GiB.
        self.giant = options.pop("giant", any(VARIANTS[fs].giant for fs in self.fs))
        # The case counts what each page's own fault did: none is mapped along with another.
        self.alone = options.pop("alone", False)
        # The case leaves a filesystem behind that no other should use: any, or one of these.
        self._spoils = options.pop("spoils", False)
        assert not options, options

    def spoils(self, filesystem):
        return filesystem.variant.name in self._spoils if isinstance(self._spoils, tuple) \
            else self._spoils


def case(**options):
    def mark(function):
        _cases.append(Case(function, dict(options)))
        return function
    return mark


class Test:
    """What a case is given."""

    def __init__(self, case_, filesystem, settings):
        self.case, self.fs, self.settings = case_, filesystem, settings
        self.device = case_.device
        self.adopted = device.adopted(self.device)
        self.dir = None

    @property
    def variant(self):
        return self.fs.variant

    def path(self, name="file"):
        return os.path.join(self.dir, name)

    def open(self, name="file", size=None, flags=0, allocate=None):
        """A file of the case's own directory, made if need be."""
        fd = os.open(self.path(name), os.O_RDWR | os.O_CREAT | flags)
        if allocate is not None:
            posix.fallocate(fd, 0, 0, allocate)
        if size is not None:
            os.ftruncate(fd, size)
        return fd

    def sync(self):
        """Everything of the filesystem is on the device."""
        fd = os.open(self.dir, os.O_RDONLY)
        posix.syncfs(fd)
        os.close(fd)

    def stats(self):
        return device.Stats(self.device)

    @staticmethod
    def holds(when):
        """What must hold does, as far as the module can tell: now, with the files in use by nobody
        else. After every case it is looked at anyway."""
        if invariants.can_be_checked():
            found = invariants.violations()
            if found:
                raise Failure(f"violations {when}:\n{found}")

    def need_adopted(self):
        if not self.adopted:
            raise Skip(f"{self.device} is not adopted")

    @staticmethod
    def note(text):
        for line in str(text).splitlines():
            print(f"# {line}", flush=True)


class Log(kmsg.KernelLog):
    """The kernel's log from here on."""

    # What fails the case during which it comes, shared with scripts/kernel-log.
    PATTERNS = os.path.join(os.path.dirname(__file__), "../../../scripts/kernel-log.patterns")

    def __init__(self):
        with open(self.PATTERNS, encoding="ascii") as f:
            lines = [line.rstrip("\n") for line in f if line.strip() and line[0] != "#"]
        self.report = re.compile("|".join(f"(?:{line})" for line in lines if line[0] != "!"))
        self.none = re.compile("|".join(f"(?:{line[1:]})" for line in lines if line[0] == "!"))
        self.allowed = None
        super().__init__()

    def trouble(self):
        """The lines from the first report on, if there is any."""
        lines = self.read()
        for i, line in enumerate(lines):
            if line.startswith("lab: allow "):
                allowed = line.removeprefix("lab: allow ")
                self.allowed = None if allowed == "end" else re.compile(allowed)
            elif self.report.search(line) and not self.none.search(line) \
                    and not (self.allowed and self.allowed.search(line)):
                return lines[i:i + LOG_LINES]
        return []


class Runner:
    def __init__(self, settings):
        self.settings = settings
        self.number = self.failed = self.skipped = 0
        self.log = Log()
        self.bad = set()        # filesystems to make anew
        self.filesystems = {}   # of the group that runs, by device
        self.mounts = left.Mounts()
        self._last = {}         # variant of the filesystem on each device

    # One bounded step in a child: (kind, value, seconds).
    def bounded(self, function, *args, timeout):
        task = Task(function, *args, session=True)
        start = time.monotonic()
        if task.join(timeout):
            kind, value = task.outcome()
        else:
            pids = session_of(task.pid)
            where = "\n".join(describe(pid) for pid in pids)
            kind, value = "fail", f"no end after {timeout * tasks.pace:.0f} s\n{where}"
        return kind, value, time.monotonic() - start, task

    def end_session(self, task):
        """End whatever a case left; False if something cannot be ended."""
        deadline, attempt = tasks.Deadline(20), 0
        while not deadline.over():
            if task.done() and not self.children():
                return True
            pids = session_of(task.pid)
            if not pids and task.status is not None:
                return True
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            attempt += 1
            if attempt == 2:
                # A page that is held on the slow disk keeps its owner from dying.
                Task(device.SlowDisk.release_if_there).join(10)
            time.sleep(0.1)
        return False

    @staticmethod
    def children():
        """Reap what has ended; whether any child is left, orphans of the case's among them."""
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
            return True
        except ChildProcessError:
            return False

    def report(self, name, kind, text, seconds=0):
        self.number += 1
        if kind == "skip":
            self.skipped += 1
            print(f"ok {self.number} - {name} # SKIP {text}")
        else:
            if kind == "fail":
                self.failed += 1
                for line in str(text).splitlines():
                    print(f"# {line}")
            print(f"{'not ok' if kind == 'fail' else 'ok'} {self.number} - {name}"
                  + (f" # {seconds:.1f} s" if self.settings.times else ""))
        sys.stdout.flush()
        if kind == "fail" and self.settings.stop:
            self.finish()
            sys.exit(1)

    def bail_out(self, why):
        print(f"Bail out! {why}")
        self.finish()
        sys.exit(2)

    def finish(self):
        print(f"1..{self.number}")
        print(f"# {self.number - self.failed - self.skipped} passed, {self.failed} failed, "
              f"{self.skipped} skipped, {time.monotonic() - self.settings.started:.0f} s",
              flush=True)

    def prepare(self, filesystem):
        """Have it mounted, made anew if it was spoiled."""
        key = (filesystem.variant.name, filesystem.device)
        if filesystem.mounted:
            filesystem.umount()
        if key in self.bad or not filesystem.made:
            filesystem.make()
        filesystem.mount()

    def have(self, filesystem):
        if filesystem.mounted and (filesystem.variant.name, filesystem.device) not in self.bad:
            return "result", None
        kind, value, _, task = self.bounded(self.prepare, filesystem, timeout=60)
        if not self.end_session(task):
            self.bail_out(f"mounting cannot be ended\n{value}")
        if kind != "fail":
            filesystem.made = True
            self.bad.discard((filesystem.variant.name, filesystem.device))
        elif not filesystem.mounted and left.is_claimed(filesystem.device):
            value = f"{value}\n{filesystem.device} is used by:\n{left.users(filesystem.device)}"
        return kind, value

    def body(self, case_, filesystem):
        test = Test(case_, filesystem, self.settings)
        if filesystem is not None:
            test.dir = os.path.join(filesystem.mount_point, case_.name)
            os.mkdir(test.dir)
        case_.function(test)

    @staticmethod
    def clean(filesystem, name):
        if filesystem.mounted:
            shutil.rmtree(os.path.join(filesystem.mount_point, name))

    def look_for_violations(self, kind, value, when):
        """What must hold must hold now that nobody uses a file."""
        if not invariants.can_be_checked():
            return kind, value
        outcome, violations, _, task = self.bounded(invariants.violations, timeout=30)
        self.end_session(task)
        if outcome == "result" and not violations:
            return kind, value
        value = ("" if kind != "fail" else f"{value}\n") + f"violations {when}:\n{violations}"
        return "fail", value

    def look_for_left(self, kind, value, name):
        """Nothing is mounted but what the group's cases share. What a case leaves makes it fail, and is
        unmounted, so that no other fails for it."""
        found = self.mounts.left([filesystem.mount_point for filesystem in self.filesystems.values()])
        if not found:
            return kind, value
        value = ("" if kind != "fail" else f"{value}\n") + "left mounted:\n" \
            + "\n".join(f"  {line}" for _, line in found)
        outcome, why, _, task = self.bounded(left.unmount, [point for point, _ in found], timeout=60)
        if not self.end_session(task) or outcome == "fail" or why:
            self.report(name, "fail", f"{value}\n{why}\n" + "\n".join(map(left.users, left.devices())))
            self.bail_out(f"what {name} has left cannot be unmounted")
        return "fail", value

    def run_case(self, case_, filesystem, name):
        kind, value = "result", None
        seconds = 0
        tasks.keep_pace()
        if case_.alone and device.adopted(case_.device):
            device.set_switch(case_.device, "fault_around", PAGE)
        if filesystem is not None:
            kind, value = self.have(filesystem)
            if kind == "fail":
                value = f"no filesystem to run on: {value}"
        if kind != "fail":
            timeout = case_.timeout(self.settings) if callable(case_.timeout) else case_.timeout
            kind, value, seconds, task = self.bounded(self.body, case_, filesystem,
                                                      timeout=timeout)
            if not self.end_session(task):
                self.report(name, "fail", value)
                self.bail_out(f"{name} left processes that cannot be ended:\n"
                              + "\n".join(describe(p) for p in session_of(task.pid)))
            kind, value = self.look_for_violations(kind, value, "with the case's files")
        trace.clean_up()
        if case_.alone and device.adopted(case_.device):
            device.set_switch(case_.device, "fault_around", 16 * PAGE)
        if filesystem is not None:
            if kind == "fail" or case_.spoils(filesystem):
                self.bad.add((filesystem.variant.name, filesystem.device))
            if filesystem.mounted and (kind != "fail" or not case_.spoils(filesystem)):
                # Files that cannot be removed have pages that somebody still holds.
                cleaned, why, _, task = self.bounded(self.clean, filesystem, case_.name,
                                                     timeout=20)
                if not self.end_session(task):
                    self.report(name, "fail", why)
                    self.bail_out(f"the files of {name} cannot be removed")
                if cleaned == "fail" and kind != "fail":
                    kind, value = "fail", f"the case's files cannot be removed: {why}"
                    self.bad.add((filesystem.variant.name, filesystem.device))
        kind, value = self.look_for_left(kind, value, name)
        kind, value = self.look_for_violations(kind, value, "afterwards")
        trouble = self.log.trouble()
        if trouble:
            value = ("" if kind != "fail" else f"{value}\n") + "the kernel's log says:\n" \
                    + "\n".join(f"  {line}" for line in trouble)
            kind = "fail"
        self.report(name, kind, value, seconds)

    def leave(self, filesystem, name):
        """Unmount after a group: nothing may be busy, and the checker must find nothing."""
        if filesystem is None or not filesystem.mounted:
            return
        spoiled = (filesystem.variant.name, filesystem.device) in self.bad

        def unmount():
            why = left.unmount([filesystem.mount_point])
            if why:
                raise Failure(f"{why}\n{left.users(filesystem.device)}")
            if not spoiled:
                filesystem.check()

        kind, value, seconds, task = self.bounded(unmount, timeout=40)
        ended = self.end_session(task)
        trouble = self.log.trouble()
        if trouble:
            kind, value = "fail", "\n".join([str(value)] + trouble)
        if kind == "fail" and spoiled and not trouble:
            kind, value = "skip", f"a failed case left this: {value}".replace("\n", " ")
        self.report(f"{name}/unmount_and_check", kind, value, seconds)
        if not ended or filesystem.mounted:
            self.bail_out(f"{filesystem.mount_point} cannot be unmounted")

    def end_group(self, group, function):
        """Put back what the group's cases share; only a failure is worth a line."""
        kind, value, seconds, task = self.bounded(function, timeout=60)
        ended = self.end_session(task)
        if kind == "fail":
            self.report(f"{group}/end_of_group", kind, value, seconds)
        if not ended:
            self.bail_out(f"what ends the group {group} cannot be ended")

    def must_be_free(self, name):
        """After a group nobody has a device any more, or what comes next would fail for it."""
        if not any(map(left.is_claimed, left.devices())):
            return
        kind, found, _, task = self.bounded(left.claimed, left.devices(), timeout=60)
        if self.end_session(task) and kind == "result" and not found:
            return
        self.report(f"{name}/devices_in_use", "fail", "\n".join(
            [str(found), *(f"{one} is used by:\n{left.users(one)}" for one in left.devices())]))
        self.bail_out(f"{name} has left devices in use")

    def run(self, plan):
        print("KTAP version 1")
        print(f"# kernel {os.uname().release}; " + ", ".join(
            f"{name} {'adopted' if device.adopted(name) else 'not adopted'}"
            for name in ("pmem0", "pmem1") if device.exists(name)))
        if self.settings.seed:
            print(f"# seed {self.settings.seed}")
        if invariants.can_be_checked():
            print("# what must hold is checked after every case")
        sys.stdout.flush()
        tasks.measure_pace()
        if tasks.pace > 1:
            print(f"# slow by {tasks.pace:.1f}: limits of time are stretched", flush=True)
        groups = {group for _, group, _ in plan}
        # What a whole group needs and this kernel or machine lacks.
        lacks = {group: why for group in groups
                 if (why := getattr(sys.modules[group], "unfit", lambda: None)())}
        for group in sorted(lacks):
            self.report(group, "skip", lacks[group])
        plan = [part for part in plan if part[1] not in lacks]
        parts = dict.fromkeys(["probe.so"] + [part for group, part in NATIVE
                                              if group in groups - set(lacks)])
        native.start(*parts)
        native.path("probe.so")
        trace.Pages.find()
        for part in parts:
            native.path(part)
        for variant, group, cases in plan:
            unfit = gib.unfit("pmem0") if variant and VARIANTS[variant].giant else None
            if unfit:
                self.report(f"{variant}/{group}", "skip", unfit)
                continue
            filesystems = self.filesystems = {}
            for case_ in cases:
                filesystem = None
                if variant:
                    key = case_.device
                    if key not in filesystems:
                        filesystems[key] = Filesystem(
                            VARIANTS[variant], key,
                            "/mnt/rdax-test" + ("" if key == "pmem0" else f"-{key}"))
                        filesystems[key].made = self.same_as_last(variant, key)
                    filesystem = filesystems[key]
                name = "/".join(filter(None, (variant, group, case_.name)))
                if filesystem is not None and not device.exists(case_.device):
                    self.report(name, "skip", f"there is no {case_.device}")
                    continue
                self.run_case(case_, filesystem, name)
            for filesystem in filesystems.values():
                self.leave(filesystem, "/".join(filter(None, (variant, group))))
            if not variant:
                # These cases put on the devices what they want.
                self._last.clear()
            module = sys.modules[group]
            if hasattr(module, "end_of_group"):
                self.end_group(group, module.end_of_group)
            self.must_be_free("/".join(filter(None, (variant, group))))
        self.finish()
        return 1 if self.failed else 0

    def same_as_last(self, variant, name):
        """Whether the device still holds a filesystem of this variant."""
        same = self._last.get(name) == variant
        self._last[name] = variant
        return same


def make_plan(settings):
    """[(variant or None, group, cases)] in the order of the run."""
    def wanted(variant, case_):
        name = "/".join(filter(None, (variant, case_.group, case_.name)))
        patterns = settings.only
        asked = [name for name in (case_.group, case_.name) if name in UNASKED]
        if asked and not any(asked[0] in p for p in patterns):
            return False
        if settings.giant is not None and case_.giant != settings.giant:
            return False
        if settings.quick and not (case_.quick and (variant in (None, "xfs") or settings.fs
                                                    or case_.group in QUICK_ELSEWHERE)):
            return False
        return not patterns or any(fnmatch.fnmatch(name, p) or p in name for p in patterns)

    plan = []
    # Once memory has failed, nothing is mapped along any more: the groups with such cases come last.
    early = [g for g in GROUPS if g not in ("sweep", "erofs", "stress", "attacks", "stressng",
                                          "poison", "adoption", "devdax", "virtual",
                                          "tracing", "tool", "selftest")]
    for variant in settings.variants:
        if settings.quick and variant == "xfs-noreflink" and not settings.fs:
            continue
        for group in early:
            cases = [c for c in _cases if c.group == group and variant in c.fs
                     and wanted(variant, c)]
            plan.append((variant, group, cases))
    for group in GROUPS:
        for variant in settings.variants if group not in early else ():
            if settings.quick and variant == "xfs-noreflink" and not settings.fs:
                continue
            cases = [c for c in _cases if c.group == group and variant in c.fs
                     and wanted(variant, c)]
            plan.append((variant, group, cases))
        if not settings.fs or group in settings.fs or "none" in settings.fs:
            plan.append((None, group, [c for c in _cases if c.group == group and not c.fs
                                       and wanted(None, c)]))
    return [part for part in plan if part[2]]


def import_group(directory, group):
    """Make a group's cases known: they are in a file, or in those of a folder."""
    if os.path.exists(os.path.join(directory, f"{group}.py")):
        importlib.import_module(group)
    elif os.path.isdir(folder := os.path.join(directory, group)):
        importlib.import_module(group)
        for part in sorted(part.name for part in pkgutil.iter_modules([folder])):
            importlib.import_module(f"{group}.{part}")


def main(directory):
    parser = argparse.ArgumentParser(
        prog="tests/guest/run", description="Test DAX filesystems inside a guest; prints KTAP.")
    parser.add_argument("--list", action="store_true", help="list the cases and end")
    parser.add_argument("--compile", metavar="DIR",
                        help="compile the C parts into DIR, which is /share/native in a guest, and end")
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN",
                        help="run the cases whose name holds or matches PATTERN; repeatable")
    parser.add_argument("--fs", metavar="LIST",
                        help=f"of {','.join(VARIANTS)},erofs, and none for the cases that make "
                             "their own, or need none (default: all)")
    parser.add_argument("--giant", action=argparse.BooleanOptionalAction,
                        help="only the cases for a device of 9G that was made with an alignment "
                             "of 1G, or none of them (default: all that can run)")
    parser.add_argument("--quick", action="store_true",
                        help="leave out what is long or nearly said twice (also: QUICK=1)")
    parser.add_argument("--seconds", type=int, metavar="N",
                        help="length of the stress run (default: 60, on all filesystems together; 20 on "
                             "the debug kernel; 10 with --quick), or of stressng (only run if --only names it; "
                             "default: 600 on each filesystem)")
    parser.add_argument("--seed", type=int, default=None,
                        help="for what is random (default: $SEED, or from the clock)")
    parser.add_argument("--stop", action="store_true", help="stop at the first failure")
    parser.add_argument("--times", action="store_true", help="say how long each case took")
    settings = parser.parse_args()
    if settings.compile:
        return 0 if native.compile_all(settings.compile) else 1
    settings.started = time.monotonic()
    settings.quick = settings.quick or os.environ.get("QUICK", "") not in ("", "0")
    settings.stressng = settings.seconds or 600
    # A time that was asked for, on filesystems that were, is the time on each of them.
    settings.shared = not settings.seconds or not settings.fs
    settings.seconds = settings.seconds or (
        10 if settings.quick else 20 if os.uname().release.endswith("-rdax-debug") else 60)
    settings.fs = settings.fs.split(",") if settings.fs else []
    unknown = [f for f in settings.fs if f not in (*VARIANTS, "erofs", "none")]
    if unknown:
        parser.error(f"unknown filesystem {unknown[0]}")
    settings.variants = [v for v in VARIANTS if not settings.fs or v in settings.fs]
    if settings.seed is None:
        settings.seed = int(os.environ.get("SEED") or time.time_ns() // 1000 % 1000000007)

    # Forking beside a thread that only waits in a system call is what some cases are about.
    warnings.simplefilter("ignore", DeprecationWarning)
    sys.path.insert(0, directory)
    for group in GROUPS:
        import_group(directory, group)
    plan = make_plan(settings)
    if settings.list:
        for variant, group, cases in plan:
            for case_ in cases:
                print("/".join(filter(None, (variant, group, case_.name))))
        return 0
    if not plan:
        parser.error("no case is left to run")
    if os.geteuid():
        parser.error("must run as root")
    if not device.exists("pmem0"):
        parser.error("there is no /dev/pmem0")
    posix.become_subreaper()
    return Runner(settings).run(plan)
