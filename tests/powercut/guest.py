#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Cut the power of a machine again and again, and look at what is left. Called by tests/powercut/run.

pmem0 is used by a workload and recorded; what a cut leaves of it is put on pmem1, which is adopted, and
on pmem2, which is not. Each line of the output is JSON.
"""

import argparse
import base64
import glob
import json
import os
import re
import sys
import time

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "guest")]
# pylint: disable=wrong-import-position
from filesystems import FILESYSTEMS, GIANT, MOUNT, SMALL, Device, make, unmount  # noqa: E402
from known import known, left_out, noticed, refused  # noqa: E402
from lib import device, posix  # noqa: E402
from model import (CLOCK, COPY, COPY_STATE, COUNTS, DAMAGED, DEVICE, EVENT, EVERY_FENCE, KEEP, LINE,  # noqa: E402
                   LOAD, LOST, RESTORE, SURVIVED, SURVIVOR, WAITS, Failed, Model, tell)
from workloads import workload  # noqa: E402

KINDS = ("all", "none", "some")
MOMENTS = ("event", "fence", "access", "request")
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
            if self.timed("mount", on.mount_image, self.fs, lambda: self.open_lines(cut)):
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

    def survivors(self, cut):
        return [self.model.ask(SURVIVOR, cut, i) - self.devices[0].start
                for i in range(min(self.model.ask(SURVIVED, cut), MOST_LINES))]

    def open_lines(self, cut):
        """Those that had been stored to and were not durable."""
        return [line for line, _ in self.lost_lines(cut)] + self.survivors(cut)

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
            what["survivors"] = self.survivors(cut)
            what["salt"] = self.salt
            what["promised"] = base64.b64encode(self.workload.promised(what["events"])).decode()
        tell(type="failure", **what)


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
        torn = on.mount_image(what["fs"], lambda: [line for line, _ in what["lines"]] + what["survivors"])
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
