#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Cut the power of a machine again and again, and look at what is left. Called by tests/powercut/run.

pmem0 is used by a workload and recorded; what a cut leaves of it is put on pmem1, which is adopted, and
on pmem2, which is not. Each line of the output is JSON.
"""

import argparse
import base64
import ctypes
import errno
import glob
import json
import os
import random
import re
import sys
import time

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "guest")]
# pylint: disable=wrong-import-position
from lib import device, kmsg, posix  # noqa: E402
from lib.mapping import Map  # noqa: E402

(DEVICE, RECORD, STATE, EVENT, CUT, STOP, LOAD, PEEK, LOST, LINE, COUNTS, KEEP, RESTORE, COPY,
 COPY_STATE, CLOCK, _, MISSED) = range(1, 19)
WAITS, GOOD, DAMAGED = range(3)
THREADS = 4
EVERY_FENCE = 1 << 32
# Of race.c.
SYNCERS, SLOTS = 2, 1600
KINDS = ("all", "none", "some")
MOMENTS = ("event", "fence", "access", "request")
MOUNT = "/mnt/powercut"
KEPT_AT_MOST = 12
# Of a cut's lost lines, as many are kept.
MOST_LINES = 100000
# Counters that say by which sizes files were mapped, and how much was copied on write.
FAULTS = ("write_", "mkwrite_", "cow_pages", "fallback_")
# Workloads whose files share blocks.
SHARING = ("large", "reflink", "unshare")
# Copies of devices that wait for their checker.
COPIES = 4
# The file for the image whose recovery is cut.
AGAIN = 1000
# What ext4 says when the last record of its journal is torn, and what it says besides.
TORN = re.compile(r"JBD2: journal transaction \d+ on \S+ is corrupt\.")
TORN_SUPERBLOCK = re.compile(r"EXT4-fs \(\w+\): VFS: Found ext4 filesystem with invalid superblock checksum\.  "
                             r"Run e2fsck\?")
TORN_JOURNAL = re.compile(r"JBD2: journal checksum error|EXT4-fs \(\w+\): Could not load journal inode")
# Where ext4 has its superblock, how large that and the journal's are, and where in them the checksum is.
SUPERBLOCK, SUPERBLOCK_SIZE, CHECKSUM, JOURNAL_CHECKSUM = 1024, 1024, 1020, 252
JOURNAL_SUPERBLOCK = bytes.fromhex("c03b399800000004")
# The log of XFS: how far back its head is looked for, and how its records begin; in blocks of 512 bytes.
BLOCK, LOG_SCAN, LOG_RECORD = 512, 4096, bytes.fromhex("feedbabe")
BESIDE_TORN = re.compile(r"EXT4-fs \(\w+\): (?:DAX enabled\..*|error loading journal)")
# What e2fsck does then: it recovers the journal up to there, and counts what ext4 only counts when it is
# unmounted.
REPAIRS = re.compile(r"""e2fsck\ .*|
/dev/pmem\d+:\ (?:recovering\ journal|\*\*\*\*\*\ FILE\ SYSTEM\ WAS\ MODIFIED\ \*\*\*\*\*|
    \d+/\d+\ files\ .*\ blocks)|
Journal\ transaction\ \d+\ was\ corrupt,\ replay\ was\ aborted\.|Pass\ \d:\ .*|
Free\ (?:blocks|inodes)\ count\ wrong\ \(\d+,\ counted=\d+\)\.|Fix\?\ yes|
Feature\ orphan_present\ is\ set\ but\ orphan\ file\ is\ clean\.|Clear\?\ yes""", re.VERBOSE)

FILESYSTEMS = {
    "xfs": (80 << 20, ["mkfs.xfs", "-q", "-f", "-K", "-d", "size=80m,su=2m,sw=1,agcount=2",
                       "-l", "size=13m", "-m", "reflink=1,rmapbt=1"], "dax=always"),
    "ext4": (64 << 20, ["mkfs.ext4", "-q", "-F", "-b", "4096", "-N", "512", "-J", "size=4", "-E",
                        "stride=512,stripe_width=512,nodiscard,lazy_itable_init=0"],
             "dax=always"),
}
# Such that a file of 1 GiB lies as its mapping does.
GIANT = {
    "xfs": (4 << 30, ["mkfs.xfs", "-q", "-f", "-K", "-d", "size=4g,agcount=2,su=1g,sw=1", "-l",
                      "size=64m", "-m", "reflink=1,rmapbt=1"], "dax=always"),
}
# With these mkfs.xfs makes filesystems of less than 300 MiB, as those who test XFS do.
SMALL = {"TEST_DIR": "1", "TEST_DEV": "1", "QA_CHECK_FS": "1"}


class _Request(ctypes.Structure):
    _fields_ = [("op", ctypes.c_uint64), ("a", ctypes.c_uint64 * 8),
                ("events", ctypes.c_uint64 * THREADS), ("kind", ctypes.c_uint64),
                ("moment", ctypes.c_uint64), ("answer", ctypes.c_int64)]


class Model:
    """What the emulator's plugin knows, and the C parts of the workloads."""

    def __init__(self, library):
        self.lib = lib = ctypes.CDLL(library)
        u64, i64, text, size = (ctypes.c_uint64, ctypes.c_int64, ctypes.c_char_p, ctypes.c_size_t)
        pointer, number, flag = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_bool
        for name, answer, arguments in (
                ("powercut_ask", i64, [u64] * 4),
                ("powercut_answer", ctypes.POINTER(_Request), []),
                ("known_answers", ctypes.c_int,
                 [pointer, u64, u64, ctypes.c_int, u64, flag, text, size]),
                ("known_answers_of_two", ctypes.c_int,
                 [pointer, u64, u64, ctypes.c_int, u64, flag, text, size]),
                ("known_answers_unseen", ctypes.c_int, [pointer, u64, u64, text, size]),
                ("workload_prepare", ctypes.c_int, [text, text]),
                ("workload_run", i64, [text, text, u64, i64, number]),
                ("workload_failure", text, []),
                ("workload_ops", size, [ctypes.POINTER(pointer)]),
                ("workload_ops_are", None, [text, size]),
                ("powercut_salt", None, [number]),
                ("oracle_answers", ctypes.c_int, [text, size]),
                ("oracle_example", i64, [number, *[ctypes.POINTER(u64)] * 3]),
                ("race_promises", None, [ctypes.POINTER(u64), text]),
                ("race_promises_are", ctypes.c_int, [u64, ctypes.POINTER(u64), text]),
                ("oracle_begin", ctypes.c_int, [text]),
                ("oracle_advance", ctypes.c_int, [u64]),
                ("oracle_check", ctypes.c_int,
                 [text, flag, text, size, ctypes.POINTER(u64), ctypes.POINTER(u64)]),
                ("log_prepare", ctypes.c_int, [text]),
                ("log_run", i64, [text, u64, i64, number]),
                ("log_recall", None, [u64]),
                ("log_check", ctypes.c_int, [text, u64, flag, text, size, ctypes.POINTER(u64)]),
                ("race_prepare", ctypes.c_int, [text, u64]),
                ("race_run", i64, [text, u64, i64, number, flag]),
                ("race_check", ctypes.c_int,
                 [text, u64, ctypes.POINTER(u64), flag, text, size, ctypes.POINTER(u64)])):
            function = getattr(lib, name)
            function.restype, function.argtypes = answer, arguments

    def ask(self, op, *values):
        return self.lib.powercut_ask(op, *values, *[0] * (3 - len(values)))

    def answer(self):
        return self.lib.powercut_answer().contents

    def become(self, state):
        # It ends: the processors stop once, and then it is so.
        while self.ask(STATE) != state:
            time.sleep(0.001)

    def record(self, seed, rate, eadr):
        self.ask(RECORD, seed, rate, int(eadr))
        self.become(1)

    def stop(self):
        self.ask(STOP)
        self.become(0)
        return self.ask(MISSED)


class Failed(Exception):
    """The tests themselves did not work."""


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


def tell(**what):
    print(json.dumps(what), flush=True)


def places(lost):
    """Where on the device the filesystem has what was found in place of what was lost; None: unknown."""
    found, extents = [], {}
    for line in lost:
        said = re.match(r"(?:(\w+) )?at (0x[0-9a-f]+):", line)
        file, at = (said[1] or "race", int(said[2], 16)) if said else (None, 0)
        if file and file not in extents:
            fd = os.open(f"{MOUNT}/{file}", os.O_RDONLY)
            extents[file] = posix.extents(fd)
            os.close(fd)
        found.append(next((device_at + at - logical for logical, device_at, length, _ in extents.get(file, [])
                           if logical <= at < logical + length), None))
    return found


class Code:
    """Which of this program's files an address of user space belongs to."""

    def __init__(self):
        self.all, starts = [], {}
        with open("/proc/self/maps", encoding="ascii") as maps:
            for line in maps:
                words = line.split(maxsplit=5)
                if len(words) == 6 and words[5].startswith("/"):
                    start, end = (int(word, 16) for word in words[0].split("-"))
                    name = words[5].rstrip()
                    self.all.append((start, end, starts.setdefault(name, start), os.path.basename(name)))

    def at(self, address):
        """The address itself, if it is the kernel's."""
        if address >> 63:
            return address
        return next((f"{name}+{address - first:#x}" for start, end, first, name in self.all
                     if start <= address < end), "user space")


def crc32c(data):
    """As ext4 has it: begun with all ones, and not inverted in the end."""
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    return crc


class FilesystemLog(kmsg.KernelLog):
    # As if the filesystem had said it.
    LOST = "(EXT4-fs, JBD2: messages were lost)"


class Device:
    def __init__(self, number, adopt):
        self.name = f"pmem{number}"
        self.node = f"/dev/{self.name}"
        self.number = number
        self.start = device.data_start(self.name)
        self.log = FilesystemLog()
        self.adopt = adopt
        if device.module_loaded():
            if not os.path.isdir(f"{device.CONFIG}/{self.name}"):
                os.mkdir(f"{device.CONFIG}/{self.name}")
            device.set_switch(self.name, "adopt", int(adopt))

    def mount(self, filesystem):
        posix.mount(self.node, MOUNT, filesystem, FILESYSTEMS[filesystem][2])

    def mount_image(self, filesystem, lost):
        """Mount what a cut has left, which has lost the lines at `lost()`; whether it was repaired before.

        ext4 takes a record of its journal or a superblock that the cut has torn for damage, and XFS a record of
        its log (docs/powercut.md). What was promised must be there when it is repaired. Whatever else keeps
        them from mounting it is damage.
        """
        self.log.skip()
        try:
            self.mount(filesystem)
            return False
        except OSError as error:
            if filesystem == "xfs" and error.errno == errno.EUCLEAN and self.mend_log():
                self.mount(filesystem)
                return True
            if filesystem != "ext4" or error.errno not in (errno.EUCLEAN, errno.EBADMSG):
                raise
            superblock = error.errno == errno.EBADMSG
        if superblock:
            self.mend_superblock(lost())
            return True
        said = [line for line in self.log.read() if re.search("EXT4-fs|JBD2", line)]
        others = [line for line in said if not TORN.fullmatch(line) and not BESIDE_TORN.fullmatch(line)]
        if others or not any(map(TORN.fullmatch, said)):
            raise OSError(errno.EUCLEAN, f"damaged, and not only a torn record: {said}")
        repaired = device.run("e2fsck", "-f", "-y", self.node, ok=(0, 1)).splitlines()
        others = [line for line in repaired if line.strip() and not REPAIRS.fullmatch(line.strip())]
        if others:
            raise OSError(errno.EUCLEAN, f"a torn record, and other damage: {others[:20]}")
        self.mount(filesystem)
        return True

    def mend_log(self):
        """Take out the record of XFS's log of whose first sector the cut has left a part; whether there is one.

        A disk writes a sector or does not. XFS relies on that, and leaves out the record before such a one.
        """
        log = XfsLog(self.node)
        torn = log.torn()
        for at, cycle in torn.items():
            log.put(at, cycle)
        return bool(torn)

    def mend_superblock(self, lost):
        """Mount when the superblock, or the journal's, of which the cut lost a part, has its checksum again."""
        said = [line for line in self.log.read() if re.search("EXT4-fs|JBD2", line)]
        blocks = Blocks(self, FILESYSTEMS["ext4"][0])
        journal = said and all(map(TORN_JOURNAL.fullmatch, said))
        at, = blocks.places(JOURNAL_SUPERBLOCK) if journal else (SUPERBLOCK,)
        torn = any(at <= line < at + SUPERBLOCK_SIZE for line in lost)
        if not torn or not (journal or (said and all(map(TORN_SUPERBLOCK.fullmatch, said)))):
            raise OSError(errno.EUCLEAN, f"damaged, and not only a torn superblock: {said}")
        block = blocks.all[at:at + SUPERBLOCK_SIZE]
        if journal:
            block[JOURNAL_CHECKSUM:JOURNAL_CHECKSUM + 4] = bytes(4)
            blocks.put(at + JOURNAL_CHECKSUM, crc32c(block).to_bytes(4, "big"))
        else:
            blocks.put(at + CHECKSUM, crc32c(block[:CHECKSUM]).to_bytes(4, "little"))
        self.mount("ext4")


def unmount():
    """Unmount what a workload has used."""
    # Ends: who serves a request of io_uring has its file for a moment yet when it has answered.
    while True:
        try:
            posix.umount(MOUNT)
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
        time.sleep(0.001)


class XfsLog:
    """The log of a filesystem that is not mounted, in blocks."""

    def __init__(self, node):
        self.node = node
        with open(node, "rb") as whole:
            sb = whole.read(BLOCK)
            start, size, ag_size = (int.from_bytes(sb[at:at + length], "big")
                                    for at, length in ((48, 8), (96, 4), (84, 4)))
            filesystem_block = int.from_bytes(sb[4:8], "big")
            group, block = start >> sb[124], start & (1 << sb[124]) - 1
            self.start = (group * ag_size + block) * filesystem_block
            self.sector = max(int.from_bytes(sb[194:196], "big"), BLOCK) // BLOCK
            whole.seek(self.start)
            self.all = whole.read(size * filesystem_block)
        self.size = len(self.all) // BLOCK

    def begins_record(self, at):
        return self.all.startswith(LOG_RECORD, at * BLOCK)

    def cycle(self, at):
        """How often the log had been filled when a block was written."""
        first = at * BLOCK + (4 if self.begins_record(at) else 0)
        return int.from_bytes(self.all[first:first + 4], "big")

    def head(self):
        """(where XFS takes the log to end, the cycle of what is there): at the first block that is not of the
        last cycle, as far back as blocks may be missing of what was under way."""
        first, last = self.cycle(0), self.cycle(self.size - 1)
        end, old = self.size, first - 1
        if first != last:
            before, end, old = 0, self.size - 1, last
            # Ends: what is between them gets smaller.
            while end - before > 1:
                middle = (before + end) // 2
                before, end = (before, middle) if self.cycle(middle) == old else (middle, end)
        scan = min(LOG_SCAN, self.size)
        for at in range(self.size - (scan - end), self.size) if end < scan else ():
            if self.cycle(at) == old - 1:
                return at, old - 1
        return next((at for at in range(max(end - scan, 0), end) if self.cycle(at) == old), end), old

    def torn(self):
        """{block: the cycle it was of} for what is there of a record's first sector, if some is missing."""
        head, old = self.head()
        first = head - head % self.sector
        if head == first or not self.begins_record(first):
            return {}
        return {at: old for at in range(first, first + self.sector) if self.cycle(at) != old}

    def put(self, at, cycle):
        """Make a block one of that cycle."""
        with open(self.node, "r+b", buffering=0) as whole:
            os.pwrite(whole.fileno(), cycle.to_bytes(4, "big"), self.start + at * BLOCK)
            os.fsync(whole.fileno())


def make(filesystem, on):
    size, command, _ = FILESYSTEMS[filesystem]
    device.run(*command, on.node, *([f"{size >> 20}M"] if filesystem == "ext4" else []))


def processors(all_of_them):
    """Use all processors, or the first alone: mounting waits for the others, for nothing."""
    for name in glob.glob("/sys/devices/system/cpu/cpu[1-9]*/online"):
        device.write(name, "1" if all_of_them else "0")


class Round:
    """One recording, and all that is left of it."""

    def __init__(self, model, args, fs, name, devices, seed):
        self.model, self.args, self.fs, self.devices, self.seed = model, args, fs, devices, seed
        self.name, self.workload = name, workload(model, name)
        Round.rounds += 1
        self.salt = Round.rounds % 255
        model.lib.powercut_salt(self.salt)
        self.times = {"record": 0.0, "load": 0.0, "mount": 0.0, "check": 0.0, "unmount": 0.0, "copy": 0.0}
        # Of the last cut: how much it loses, and when it came.
        self.loses = self.at = None
        # Those that are not known to be good: the number of each, and its cut.
        self.copies = []
        # What the module's counters say of the recording.
        self.faults = {}
        # Cuts after which the filesystem was repaired before it was mounted, or for it to lose nothing.
        self.torn = set()
        # While recoveries are cut: the events before the first cut.
        self.before = None

    def timed(self, what, call, *arguments):
        # The emulator's own: who else uses the machine does not matter.
        begun = self.model.ask(CLOCK)
        try:
            return call(*arguments)
        finally:
            self.times[what] += (self.model.ask(CLOCK) - begun) / 1e9

    def record(self, wanted):
        recorded, filesystem = self.devices[0], self.fs
        processors(True)
        make(filesystem, recorded)
        recorded.mount(filesystem)
        self.workload.prepare(MOUNT)
        posix.umount(MOUNT)
        self.model.record(self.seed, EVERY_FENCE if self.args.every_fence else self.args.rate,
                          self.args.eadr)
        recorded.mount(filesystem)
        stats = device.Stats(recorded.name)
        cuts = self.workload.run(MOUNT, self.seed, wanted, self.args.most)
        counts = self.model.ask(COUNTS) or list(self.model.answer().a[:4])
        unseen = self.model.stop()
        moved = stats.since()
        self.faults = {name: count for name, count in moved.items()
                       if count and name.startswith(FAULTS) and name != "write_bytes"}
        unmount()
        processors(False)
        return cuts, unseen, counts

    def look(self, cut, on, by_read, fsck):
        """(what is lost, and where, promises, why it is not mounted) after a cut, on a device."""
        self.timed("load", self.model.ask, LOAD, cut, on.number)
        answer = self.model.answer()
        events = self.before or list(answer.events)
        self.loses, self.at = KINDS[answer.kind], MOMENTS[answer.moment]
        try:
            if self.timed("mount", on.mount_image, self.fs,
                          lambda: [line for line, _ in self.lost_lines(cut)]):
                self.torn.add(cut)
        except Exception as error:  # pylint: disable=broad-exception-caught
            return [], [], 0, f"not mounted: {error}"
        lost, where, promises = self.compare(events, by_read)
        if lost and self.fs == "xfs":
            # XFS does not tell that it has left out a record. What it has lost without that is lost again.
            self.timed("load", self.model.ask, LOAD, cut, on.number)
            if on.mend_log():
                self.torn.add(cut)
            self.timed("mount", on.mount, self.fs)
            lost, where, promises = self.compare(events, by_read)
        if fsck:
            self.timed("copy", self.copy, cut, on)
        return lost, where, promises, None

    def compare(self, events, by_read):
        """(what is lost, and where, promises) of what is mounted, and unmount it."""
        try:
            self.workload.advance(events[0])
            lost, promises = self.timed("check", self.workload.check, MOUNT,
                                        {"seed": self.seed, "events": events}, by_read)
            return lost, places(lost), promises
        finally:
            self.timed("unmount", posix.umount, MOUNT)

    def copy(self, cut, on):
        """Have the filesystem's own checker look at a device, on the host, which takes a moment."""
        self.wait_for_copies(COPIES - 1)
        Round.copied += 1
        if self.model.ask(COPY, on.number, Round.copied):
            raise Failed("a device cannot be copied to the host")
        self.copies.append((Round.copied, cut))
        tell(type="copy", copy=Round.copied, fs=self.fs)

    def wait_for_copies(self, most):
        """Until so few wait; the host looks at one after the other, and ends this guest if it cannot."""
        def waiting():
            return [number for number, _ in self.copies[-COPIES:]
                    if self.model.ask(COPY_STATE, number) == WAITS]
        while len(waiting()) > most:
            time.sleep(0.002)

    def lost_lines(self, cut):
        lines, code = [], Code()
        for i in range(min(self.model.ask(LOST, cut), MOST_LINES)):
            at = self.model.ask(LINE, cut, i)
            lines.append((at - self.devices[0].start, code.at(self.model.answer().a[0])))
        return sorted(lines, key=lambda line: line[0])

    def run(self, wanted):
        cuts, unseen, counts = self.timed("record", self.record, wanted)
        sums = {"cuts": cuts, "promises": 0, "lost": 0, "damaged": 0, "unlike": 0, "unseen": unseen,
                "others": 0, "torn": 0, "again": 0, "fsck": 0, "looks": 0, "reads": 0,
                "loses": dict.fromkeys(KINDS, 0), "at": dict.fromkeys(MOMENTS, 0)}
        self.workload.begin()
        kept, bad = 0, []
        for cut in range(cuts):
            results = []
            for on in self.devices[1:]:
                if on is not self.devices[1] and cut % self.args.both:
                    continue
                fsck = on is self.devices[1] and cut % self.args.fsck == 0
                # Each device every other time, and the two of them not at once. The kernel's own code has
                # warnings and SIGBUS for files that share 2 MiB and are mapped (docs/powercut.md).
                by_read = (cut + on.number) % 2 == 0 or (not on.adopt and self.name in SHARING)
                lost, where, promises, damage = self.look(cut, on, by_read, fsck)
                results.append((on, lost, where, damage))
                sums["looks"] += 1
                # Of what cannot be mounted there is no copy.
                sums["fsck"] += fsck and not damage
                if on is self.devices[1]:
                    sums["reads"] += by_read
                    sums["loses"][self.loses] += 1
                    sums["at"][self.at] += 1
                    sums["promises"] += promises
                    sums["others"] += self.workload.others != 0 and not damage
            bad = [result for result in results if result[1] or result[3]]
            sums["lost"] += any(lost for _, lost, _, _ in results)
            sums["damaged"] += any(damage for _, _, _, damage in results)
            sums["unlike"] += len({tuple(lost) for _, lost, _, _ in results}) > 1
            if bad or cut in self.torn:
                kept += 1
                self.failure(cut, kept, [
                    {"device": on.name, "adopted": on.adopt, "lost": lost, "where": where,
                     "damage": damage} for on, lost, where, damage in bad])
            if time.monotonic() - self.said > 20:
                self.said = time.monotonic()
                tell(type="progress", workload=self.name, cut=cut, of=cuts)
        sums["torn"] = len(self.torn)
        self.timed("copy", self.wait_for_copies, 0)
        for number, cut in self.copies:
            if self.model.ask(COPY_STATE, number) == DAMAGED:
                sums["damaged"] += 1
                kept += 1
                self.failure(cut, kept, [{
                    "device": self.devices[1].name, "adopted": self.devices[1].adopt, "lost": [],
                    "where": [], "damage": None, "copy": number}])
        # What can be mounted as it is.
        if self.args.again and not bad and cuts - 1 not in self.torn:
            self.again(cuts - 1, kept, sums)
        tell(type="round", fs=self.fs, workload=self.name, seed=self.seed, counts=counts,
             faults=self.faults,
             times={name: round(value, 1) for name, value in self.times.items()}, **sums)
        return sums

    def again(self, cut, kept, sums):
        """Cut the power again, at any fence, while what this cut has left is recovered; it has to be the one
        that was looked at last. The model does not know the first cuts any more then."""
        recorded, on = self.devices[:2]
        self.model.ask(LOAD, cut, on.number)
        self.before = list(self.model.answer().events)
        if self.model.ask(KEEP, cut, AGAIN) or self.model.ask(RESTORE, AGAIN, recorded.number):
            raise Failed("an image cannot be kept")
        self.model.record(self.seed, EVERY_FENCE, self.args.eadr)
        recorded.mount(self.fs)
        cuts = self.model.ask(EVENT, 0, 0)
        sums["unseen"] += self.model.stop()
        posix.umount(MOUNT)
        self.torn = set()
        some = min(cuts, self.args.again)
        for serial in range(some):
            second = cuts * serial // some
            lost, where, _, damage = self.look(second, on, second % 2 == 0, False)
            sums["again"] += 1
            sums["lost"] += bool(lost)
            sums["damaged"] += bool(damage)
            if lost or damage:
                kept += 1
                self.failure(second, kept, [{"device": on.name, "adopted": on.adopt, "lost": lost,
                                             "where": where, "damage": damage}])
        sums["torn"] += len(self.torn)

    said = 0.0
    images, copied, rounds = [0, 0], 0, 0

    def failure(self, cut, kept, results):
        self.model.ask(LOAD, cut, self.devices[1].number)
        answer = self.model.answer()
        what = {"cut": cut, "events": self.before or list(answer.events), "loses": KINDS[answer.kind],
                "at": MOMENTS[answer.moment], "workload": self.name, "seed": self.seed,
                "fs": self.fs, "torn": cut in self.torn, "again": bool(self.before), "results": results}
        # Of each kind some: there may be many that lost something.
        rare = cut in self.torn or any(result["damage"] or "copy" in result for result in results)
        if (rare or kept <= 3) and Round.images[rare] < KEPT_AT_MOST:
            Round.images[rare] += 1
            what["image"] = sum(Round.images)
            self.model.ask(KEEP, cut, what["image"])
            what["lines"] = self.lost_lines(cut)
            what["salt"] = self.salt
            what["promised"] = base64.b64encode(self.workload.promised(what["events"])).decode()
        tell(type="failure", **what)


def images(model, devices, start, length, cuts):
    """Where images of cuts differ from what the model says of single words."""
    wrong, words = [], range(0, length, 8)
    for cut in sorted({0, *random.Random(1).sample(range(cuts), min(cuts, 4)), cuts - 1}):
        model.ask(LOAD, cut, devices[1].number)
        with open(devices[1].node, "rb") as image:
            image.seek(start - devices[0].start)
            whole = image.read(length)
        # Those of which it can be told whether they are this cut's, and others.
        some = [at for at in words if whole[at:at + 8] != bytes(8)][:400]
        for at in some + random.Random(cut).sample(words, 100):
            told = model.ask(PEEK, cut, start + at) & (1 << 64) - 1
            found = int.from_bytes(whole[at:at + 8], "little")
            if found != told:
                wrong.append(f"the image of cut {cut} has {found:#x} at {at:#x}, and is said to have {told:#x}")
    return wrong[:10]


def known(model, devices):
    """Programs of which everybody knows what is left of them."""
    make("ext4", devices[0])
    devices[0].mount("ext4")
    length = 2 << 20
    fd = os.open(f"{MOUNT}/known", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, bytes(length), 0)
    text = ctypes.create_string_buffer(8000)
    with Map(fd, length, flags=posix.MAP_SHARED_VALIDATE | posix.MAP_SYNC) as m:
        for what in ("ADR", "two", "eADR", "two, eADR", "unseen"):
            m.write(0, bytes(length))
            os.fsync(fd)
            pfns = m.pfns()
            if pfns != list(range(pfns[0], pfns[0] + len(pfns))):
                raise Failed("the file for the known answers is not contiguous")
            address = pfns[0] * posix.PAGE
            for at in range(0, length, posix.PAGE):
                ctypes.memset(m.address + at, 0, 8)
            eadr = "eADR" in what
            model.record(1, 0, eadr)
            expected, skipped = 0, None
            if what == "unseen":
                expected = model.lib.known_answers_unseen(m.address, length, address, text, len(text))
            elif what.startswith("two"):
                if model.lib.known_answers_of_two(m.address, length, address, fd, 0, eadr, text, len(text)) < 0:
                    skipped = "one processor"
            else:
                model.lib.known_answers(m.address, length, address, fd, 0, eadr, text, len(text))
            wrong = text.value.decode().splitlines()
            cuts = model.ask(CUT, 0) + 1
            unseen = model.stop()
            if unseen != expected:
                wrong.append(f"{unseen} lines changed unseen, in place of {expected}")
            if what == "ADR":
                wrong += images(model, devices, address, length, cuts)
            tell(type="known", what=what, wrong=wrong, skipped=skipped)
    os.close(fd)
    posix.umount(MOUNT)


def noticed(model, devices):
    """Whether what must not be there after a cut is found: put there by hand."""
    make("ext4", devices[0])
    devices[0].mount("ext4")
    files = Files(model, "map")
    files.prepare(MOUNT)
    files.run(MOUNT, 1, 1 << 40, 400)
    files.begin()
    files.advance(800)
    wrong = [f"nothing was lost, and found is: {line}" for by_read in (False, True)
             for line in files.check(MOUNT, None, by_read)[0]]
    text = ctypes.create_string_buffer(8000)
    if model.lib.oracle_answers(text, len(text)) or text.value:
        wrong += ["of files that shared blocks:", *text.value.decode().splitlines()]
    files.begin()
    files.advance(800)
    promised, older, others = (ctypes.c_uint64() for _ in range(3))
    at = model.lib.oracle_example(0, promised, older, others)
    if at < 0:
        raise Failed("nothing was promised")
    earlier = promised.value ^ 1 << 20
    with open(f"{MOUNT}/file0", "r+b", buffering=0) as file:
        for value, what in ((0, "zero"), (older.value, "older"), (others.value, "another file's"),
                            (earlier, "of an earlier recording")):
            os.pwrite(file.fileno(), value.to_bytes(8, "little"), at)
            for by_read in (False, True):
                found, _ = files.check(MOUNT, None, by_read)
                if len(found) != 1 or what not in found[0]:
                    wrong.append(f"{what} in place of what was promised: {found}")
        os.pwrite(file.fileno(), promised.value.to_bytes(8, "little"), at)
        size = os.fstat(file.fileno()).st_size
        os.truncate(file.fileno(), size - 8)
        if not files.check(MOUNT, None, False)[0]:
            wrong.append("a size that was promised is not missed")
    unmount()
    tell(type="noticed", wrong=wrong)


COMMIT = bytes.fromhex("c03b399800000002")
# The begin of the directory lost+found: itself, and the directory above it.
LOST_AND_FOUND = bytes.fromhex("0b0000000c0001022e000000") + bytes.fromhex("02000000")


class Blocks:
    """The blocks of a device that is not mounted."""

    def __init__(self, on, size):
        self.on = on
        with open(on.node, "rb") as whole:
            self.all = bytearray(whole.read(size))

    def places(self, of):
        return [at for at in range(0, len(self.all), posix.PAGE) if self.all.startswith(of, at)]

    def put(self, at, data):
        with open(self.on.node, "r+b", buffering=0) as whole:
            os.pwrite(whole.fileno(), data, at)
            os.fsync(whole.fileno())


def refused(model, devices):
    """Whether a torn record of ext4's journal is told from damage, both put there by hand."""
    recorded, on = devices[:2]
    make("ext4", recorded)
    model.record(1, 0, False)
    recorded.mount("ext4")
    files = Files(model, "map")
    files.prepare(MOUNT)
    cut = model.ask(CUT, 0)
    model.stop()
    posix.umount(MOUNT)
    wrong = []

    def torn(blocks):
        # Of the records of this journal the last one.
        at = max(blocks.places(COMMIT), key=lambda at: int.from_bytes(blocks.all[at + 8:at + 12], "big"))
        blocks.put(at + 12, b"\xff" * 48)

    def descriptor(blocks):
        at = posix.PAGE + 0x1e
        blocks.put(at, bytes(byte ^ 0xff for byte in blocks.all[at:at + 2]))

    def directory(blocks):
        at, = blocks.places(LOST_AND_FOUND)
        blocks.put(at + len(LOST_AND_FOUND) - 4, bytes(4))

    def superblock(blocks):
        # The blocks that are free.
        at = SUPERBLOCK + 0xc
        blocks.put(at, bytes(byte ^ 1 for byte in blocks.all[at:at + 1]))

    def journal(blocks):
        # A byte that means nothing.
        at, = blocks.places(JOURNAL_SUPERBLOCK)
        blocks.put(at + 0x60, bytes(byte ^ 1 for byte in blocks.all[at + 0x60:at + 0x61]))

    for name, changes, lost, expected in (
            ("nothing", (), (), "mounted"), ("a torn record", (torn,), (), "torn"),
            ("a wrong checksum in a group descriptor", (descriptor,), (), "damaged"),
            ("a torn record, and a damaged directory", (torn, directory), (), "damaged"),
            ("a torn superblock", (superblock,), (SUPERBLOCK,), "torn"),
            ("a damaged superblock", (superblock,), (SUPERBLOCK + SUPERBLOCK_SIZE,), "damaged"),
            ("a torn superblock of the journal", (journal,), range(0, FILESYSTEMS["ext4"][0], 64), "torn"),
            ("a damaged superblock of the journal", (journal,), (SUPERBLOCK,), "damaged")):
        model.ask(LOAD, cut, on.number)
        blocks = Blocks(on, FILESYSTEMS["ext4"][0])
        for change in changes:
            change(blocks)
        try:
            found = "torn" if on.mount_image("ext4", lambda lost=lost: lost) else "mounted"
            posix.umount(MOUNT)
        except OSError as error:
            found = "damaged" if error.errno == errno.EUCLEAN else str(error)
        if found != expected:
            wrong.append(f"{name}: is {found}, not {expected}")
    tell(type="refused", wrong=wrong)


def left_out(model, devices):
    """Whether a torn record of the log of XFS is told from whole ones, put there by hand, and taken out."""
    recorded, on = devices[:2]
    make("xfs", recorded)
    recorded.mount("xfs")
    files = Files(model, "map")
    files.prepare(MOUNT)
    posix.umount(MOUNT)
    model.record(1, 0, False)
    recorded.mount("xfs")
    files.run(MOUNT, 1, 1 << 40, 30)
    cut = model.ask(CUT, 0)
    model.stop()
    unmount()
    wrong = []
    # Of each block of the record so much. XFS itself finds where the last one ends.
    for name, parts, torn in (("its first eight bytes", (8,), True),
                              ("its first sector but for two blocks", 3 * (512,) + (0, 512, 0, 512, 512), True),
                              ("its first sector", 8 * (512,), False),
                              ("its first sector, and a part of the next", 9 * (512,), False),
                              ("all of its first sector but the first block", (0,) + 7 * (512,), False)):
        model.ask(LOAD, cut, on.number)
        log = XfsLog(on.node)
        head, old = log.head()
        if head % log.sector or log.torn():
            raise Failed(f"the log ends at {head}, within a sector")
        last = max(at for at in range(head) if log.begins_record(at))
        record = bytearray(log.all[last * BLOCK:(last + len(parts)) * BLOCK])
        with open(on.node, "r+b", buffering=0) as whole:
            for number, there in enumerate(parts):
                at = number * BLOCK
                if number:
                    record[at:at + 4] = (old + 1).to_bytes(4, "big")
                os.pwrite(whole.fileno(), record[at:at + there], log.start + head * BLOCK + at)
            os.fsync(whole.fileno())
        if on.mend_log() != torn:
            wrong.append(f"{name} of a record: is {'not ' * torn}torn")
        if not torn:
            continue
        if XfsLog(on.node).head() != (head, old):
            wrong.append(f"{name} of a record: the log does not end where it did")
        on.mount("xfs")
        files.begin()
        files.advance(60)
        wrong += [f"{name} of a record: {line}" for line in files.check(MOUNT, None, True)[0]]
        posix.umount(MOUNT)
    tell(type="left out", wrong=wrong)


def replay(model, args, devices):
    """Look at an image that was kept once more."""
    with open(args.replay, encoding="utf-8") as described:
        what = json.load(described)
    begin(model, devices, what["fs"], what["fs"])
    model.lib.powercut_salt(what["salt"])

    def restore(on):
        if model.ask(RESTORE, what["image"], on.number):
            raise Failed("the image cannot be read")

    def look(on, torn):
        files = workload(model, what["workload"])
        files.recall(base64.b64decode(what["promised"]), what)
        found = []
        for by_read in (False, True):
            if not by_read and not on.adopt and what["workload"] in SHARING:
                continue
            lost, promises = files.check(MOUNT, what, by_read)
            found.append({"device": on.name, "adopted": on.adopt, "by_read": by_read, "lost": lost,
                          "where": places(lost), "promises": promises, "torn": torn})
        posix.umount(MOUNT)
        return found

    for on in devices[1:]:
        restore(on)
        torn = on.mount_image(what["fs"], lambda: [line for line, _ in what["lines"]])
        found = look(on, torn)
        if what["fs"] == "xfs" and any(one["lost"] for one in found):
            restore(on)
            if on.mend_log():
                on.mount("xfs")
                found = look(on, True)
        for one in found:
            tell(type="replay", **one)
    tell(type="end")


def begin(model, devices, fs, largest):
    """The model is to look at as much of the devices as the filesystem uses."""
    for name in dict.fromkeys((largest, fs)):
        for one in devices:
            model.ask(DEVICE, one.number, one.start, FILESYSTEMS[name][0])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--library", required=True)
    parser.add_argument("--fs", choices=list(FILESYSTEMS), action="append")
    parser.add_argument("--cuts", type=int, default=100)
    parser.add_argument("--round", type=int, default=250)
    parser.add_argument("--rate", type=int, default=6000)
    parser.add_argument("--fsck", type=int, default=1)
    parser.add_argument("--both", type=int, default=1)
    parser.add_argument("--every-fence", action="store_true")
    parser.add_argument("--again", type=int, default=0)
    parser.add_argument("--most", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--native", action="store_true")
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--eadr", action="store_true")
    parser.add_argument("--known", action="store_true")
    parser.add_argument("--giant", action="store_true")
    parser.add_argument("--replay")
    parser.add_argument("workloads", nargs="*")
    args = parser.parse_args()

    if args.giant:
        FILESYSTEMS.update(GIANT)
    os.environ.update(SMALL)
    os.makedirs(MOUNT, exist_ok=True)
    # Mounting and unmounting wait for grace periods, and nothing is measured here.
    device.write("/sys/kernel/rcu_expedited", "1")
    model = Model(args.library)
    # The one that is recorded; one to look at what is left with the same code, and one without the module.
    devices = [Device(0, not args.native), Device(1, not args.native)]
    if not args.native and not args.once:
        devices.append(Device(2, False))
    if args.known:
        begin(model, devices, "ext4", args.fs[0])
        known(model, devices)
        noticed(model, devices)
        refused(model, devices)
        if "xfs" in args.fs:
            begin(model, devices, "xfs", "xfs")
            left_out(model, devices)
    if args.replay:
        replay(model, args, devices)
        return
    failed = False
    for fs in args.fs:
        begin(model, devices, fs, fs)
        names = [name for name in args.workloads if fs == "xfs" or name not in ("reflink", "unshare")]
        # Together as many as were asked for.
        left = {name: args.cuts * (serial + 1) // len(names) - args.cuts * serial // len(names)
                for serial, name in enumerate(names)}
        seed = args.seed
        while any(wanted > 0 for wanted in left.values()):
            # Each in turn, so that of a run that is cut short each has had its part.
            for name in (name for name in names if left[name] > 0):
                one = Round(model, args, fs, name, devices, seed)
                sums = one.run(min(left[name], args.round))
                failed |= bool(sums["lost"] or sums["damaged"] or sums["torn"] or sums["unseen"])
                # Each round makes some cuts, or its workload is over too soon.
                if not sums["cuts"]:
                    raise Failed(f"{name} has made no cuts")
                left[name] -= sums["cuts"]
            seed += 1000
    if failed:
        with open("/proc/kallsyms", encoding="ascii") as symbols:
            tell(type="symbols", symbols=[line.split()[::2] for line in symbols
                                          if line.split()[1] in "tTwW"])
    tell(type="end")


main()
