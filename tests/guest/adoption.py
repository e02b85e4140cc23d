# SPDX-License-Identifier: GPL-2.0
"""Handing devices over and taking them back; a device that goes away under a filesystem."""

import contextlib
import ctypes
import fcntl
import os
import re
import signal
import struct
import subprocess
import threading

from lib import bpf, device, posix
from lib.check import Failure, Skip, check, equal, raises, same_bytes
from lib.device import CONFIG, SlowDisk, Stats, read, run, some, wait_for, write
from lib.fs import VARIANTS, Filesystem
from lib.mapping import Map
from lib.pattern import page, pages
from lib.posix import PAGE, PMD
from lib.runner import Log, case
from lib.space import held_clone
from lib.task import Task
from lib.uffd import Missing

EIO, EBUSY, ENODEV, EINVAL, EOPNOTSUPP = 5, 16, 19, 22, 95
DEVICE, OTHER = "pmem1", "pmem0"
MOUNT = "/mnt/rdax-adoption"
BLKPG, BLKPG_ADD, BLKPG_DELETE = 0x1269, 1, 2

COUNTERS = """read_pte read_pmd read_pud write_pte write_pmd write_pud mkwrite_pte mkwrite_pmd
    mkwrite_pud zero_pte zero_pmd private_pte sync_faults cow_pages fallback_alignment fallback_vma
    fallback_eof fallback_private fallback_extent fallback_hole fallback_conflict
    fallback_max_order fallback_nomem fault_errors layout_breaks layout_waits layout_wait_ns
    entries_removed entries_flushed_on_removal writeback_entries writeback_bytes read_bytes
    write_bytes zeroed_bytes poison_faults poison_locks dedupe_compares""".split()


def _need(*names):
    if not device.module_loaded():
        raise Skip("the module is not loaded")
    for name in names:
        if not device.exists(name):
            raise Skip(f"there is no {name}")


class _Item:
    """rdax/NAME in configfs, put back as it was in the end."""

    def __init__(self, name, adopt=None):
        self.name, self.path, self.want = name, f"{CONFIG}/{name}", adopt

    def __enter__(self):
        self.there, self.was = os.path.isdir(self.path), device.adopted(self.name)
        if not self.there:
            os.mkdir(self.path)
        if self.want is not None:
            self.set(self.want)
        return self

    def __exit__(self, *_):
        if not self.there:
            if os.path.isdir(self.path):
                if self.adopted():
                    self.set(False)
                os.rmdir(self.path)
            return
        if not os.path.isdir(self.path):
            os.mkdir(self.path)
        if self.adopted() != self.was:
            self.set(self.was)

    def set(self, adopt):
        write(f"{self.path}/adopt", "1" if adopt else "0")

    def adopted(self):
        return read(f"{self.path}/adopt") == "1"


def _fs(variant="xfs", name=DEVICE):
    return Filesystem(VARIANTS[variant], name, f"{MOUNT}-{name}")


def _redirected():
    """Functions of the DAX layer whose callers are sent elsewhere, in either way."""
    text = read("/sys/kernel/tracing/enabled_functions")
    # What a function calls at its entry follows on a line of its own.
    lines = re.sub(r"\n\s*direct-->", " direct-->", text).splitlines()
    return [line.split()[0] for line in lines
            if "dax" in line.split()[0]
            and (" I " in f" {line} " or "direct-->rdax_direct_call" in line)]


@case(fs=())
def no_such_device(t):
    _need()
    with _Item("rdax-no-such-disk") as item:
        raises(ENODEV, "adopting", item.set, True)
        check(not item.adopted(), "adopt reads 1 afterwards")
        item.set(False)


@case(fs=())
def device_without_dax(t):
    """A disk in memory, and a file as a loop device."""
    _need()
    slow = SlowDisk()
    run("modprobe", "loop")
    path = "/tmp/rdax-tests/loop"
    with open(path, "wb") as f:
        f.truncate(1 << 20)
    loop = run("losetup", "--find", "--show", path).strip()
    try:
        for path in (slow.disk, loop):
            name = os.path.basename(path)
            with _Item(name) as item:
                # The disk is in use by another, which may be noticed first.
                raises((EOPNOTSUPP, EBUSY) if path == slow.disk else EOPNOTSUPP,
                       f"adopting {name}", item.set, True)
                check(not item.adopted(), "adopt reads 1 afterwards")
    finally:
        run("losetup", "--detach", loop)


@case(fs=())
def what_is_no_answer(t):
    _need(DEVICE)
    for before in (False, True):
        with _Item(DEVICE, adopt=before) as item:
            for text in ("2", "-1", "maybe", "1 1", "\n", "x" * 100):
                raises(EINVAL, f"writing {text!r}", write, f"{item.path}/adopt", text)
                equal(item.adopted(), before, f"adopted after writing {text!r}")
            write(f"{item.path}/adopt", "1\n" if before else "0\n")
            equal(item.adopted(), before, "adopted")


@case(fs=())
def mounted_device_is_busy(t):
    """Neither handed over nor given back under a mounted filesystem."""
    _need(DEVICE)
    fs = _fs()
    fs.make()
    for before in (True, False):
        with _Item(DEVICE, adopt=before) as item:
            fs.mount()
            try:
                raises(EBUSY, "giving back" if before else "adopting", item.set, not before)
                equal(item.adopted(), before, "adopted while mounted")
                item.set(before)        # no change, no error
                equal(item.adopted(), before, "adopted while mounted")
                stats = Stats(DEVICE)
                fd = os.open(f"{fs.mount_point}/file", os.O_RDWR | os.O_CREAT)
                os.ftruncate(fd, PAGE)
                with Map(fd, PAGE) as m:
                    m.write(0, page("m", 1))
                    same_bytes(os.pread(fd, PAGE, 0), page("m", 1), "the file")
                stats.expect(write_pte=1)
                os.close(fd)
            finally:
                fs.umount()
            item.set(not before)
            equal(item.adopted(), not before, "adopted after unmounting")


@case(fs=())
def opened_device_is_busy(t):
    """Whoever has the device for himself keeps it from being handed over."""
    _need(DEVICE)
    with _Item(DEVICE, adopt=False) as item:
        fd = os.open(f"/dev/{DEVICE}", os.O_RDWR | os.O_EXCL)
        raises(EBUSY, "adopting", item.set, True)
        os.close(fd)
        item.set(True)
        fd = os.open(f"/dev/{DEVICE}", os.O_RDWR | os.O_EXCL)
        raises(EBUSY, "giving back", item.set, False)
        os.close(fd)
        item.set(False)


@case(fs=())
def twice_is_once(t):
    _need(DEVICE)
    with _Item(DEVICE) as item:
        for adopt in (True, True, False, False, True):
            item.set(adopt)
            equal(item.adopted(), adopt, "adopted")


@case(fs=())
def adopted_item_stays(t):
    _need(DEVICE)
    with _Item(DEVICE, adopt=True) as item:
        raises(EBUSY, "rmdir of an adopted device", os.rmdir, item.path)
        check(item.adopted(), "the device was given back")
        item.set(False)
        os.rmdir(item.path)
        check(not os.path.exists(item.path), "the item is still there")
        os.mkdir(item.path)
        check(not item.adopted(), "a new item is adopted from the start")


@case(fs=())
def log_says(t):
    """One line when a device is adopted, one when it is released, none when nothing changes."""
    _need(DEVICE)
    with _Item(DEVICE, adopt=False) as item:
        log = Log()
        for adopt, wanted in ((True, [f"rdax: {DEVICE}: adopted"]), (True, []),
                              (False, [f"rdax: {DEVICE}: released"]), (False, [])):
            item.set(adopt)
            equal([line for line in log.read() if line.startswith("rdax")], wanted,
                  f"log after writing {int(adopt)}")


@case(fs=())
def counters_are_all_there(t):
    _need(DEVICE)
    with _Item(DEVICE, adopt=True) as item:
        lines = [line.split(" ") for line in read(f"{item.path}/stats").splitlines()]
        check(all(len(line) == 2 and line[1].isdigit() for line in lines),
              "a line is not a name and a number")
        missing = set(COUNTERS) - {line[0] for line in lines}
        equal(missing, set(), "counters that are missing")
        equal(len({line[0] for line in lines}), len(lines), "different names")


@case(fs=())
def what_was_counted_is_kept(t):
    """As long as the item is there, and the device is not adopted anew."""
    _need(DEVICE)
    with _Item(DEVICE, adopt=True) as item:
        with _Watched(_fs()) as file:
            file.use()
        stats = read(f"{item.path}/stats")
        check(re.search(r"^write_bytes [1-9]", stats, re.MULTILINE), f"nothing counted: {stats}")
        item.set(False)
        equal(read(f"{item.path}/stats"), stats, "counters of a device that was given back")
        item.set(True)
        check(re.search(r"^write_bytes 0$", read(f"{item.path}/stats"), re.MULTILINE),
              "counters are not 0 after another adoption")


SWITCHES = {
    "max_order": ("pte", "pmd", "pud"),
    "fault_around": tuple(str(PAGE << order) for order in range(5)),
    "write_order": tuple(str(order) for order in range(9)),
}


def _has_max_order(t, order, what):
    """Whether a fault in 2 MiB of a file is refused them tells of max_order."""
    with _Watched(_fs()) as file:
        os.ftruncate(file.fd, PMD)
        stats = Stats(DEVICE)
        with Map(file.fd, PMD, align=PMD) as m:
            m.load(0)
        stats.expect(fallback_max_order=some if order == "pte" else 0)
        t.note(f"{what}: {order}")


def _has_single_entries(pages):
    """Stores in sequence make an entry for each page."""
    with _Watched(_fs()) as file:
        os.ftruncate(file.fd, pages * PAGE)
        with Map(file.fd, pages * PAGE, skew=PAGE) as m:
            for at in range(0, pages * PAGE, PAGE):
                check(not m.store(at, 1).signal, "a store")
            stats = Stats(DEVICE)
            os.fsync(file.fd)
            stats.expect(writeback_entries=pages)


@case(fs=())
def switches_are_for_now_and_for_later(t):
    """Each reads as what was written, before, during and after an adoption, and applies."""
    _need(DEVICE)
    with _Item(DEVICE, adopt=False) as item:
        before = {name: read(f"{item.path}/{name}") for name in SWITCHES}
        try:
            for adopted in (False, True):
                item.set(adopted)
                for name, values in SWITCHES.items():
                    for value in values:
                        write(f"{item.path}/{name}", value)
                        equal(read(f"{item.path}/{name}"), value, name)
                    for wrong in ("", "gib", "-1", "12", values[0] + values[0]):
                        raises(EINVAL, f"{name} from {wrong!r}", write, f"{item.path}/{name}",
                               wrong + "\n")
                        equal(read(f"{item.path}/{name}"), values[-1], name)
            _has_max_order(t, "pud", "set last")
            write(f"{item.path}/max_order", "pte")
            _has_max_order(t, "pte", "set during the adoption")
            item.set(False)
            equal(read(f"{item.path}/max_order"), "pte", "max_order after it")
            item.set(True)
            _has_max_order(t, "pte", "set during the adoption before")
            item.set(False)
            write(f"{item.path}/max_order", "pmd")
            item.set(True)
            _has_max_order(t, "pmd", "set before the adoption")
            item.set(False)
            chosen = {"max_order": "pmd", "fault_around": str(16 * PAGE), "write_order": "0"}
            for name, value in chosen.items():
                write(f"{item.path}/{name}", value)
            item.set(True)
            equal({name: read(f"{item.path}/{name}") for name in SWITCHES}, chosen,
                  "all that was set before the adoption")
            _has_single_entries(64)
        finally:
            for name, value in before.items():
                write(f"{item.path}/{name}", value)


@case(fs=())
def module_stays_while_items_exist(t):
    _need(DEVICE)
    with _Item(DEVICE, adopt=False):
        done = subprocess.run(["rmmod", "rdax"], stderr=subprocess.PIPE, check=False)
        check(done.returncode != 0, "rmmod removed the module under its items")
        check(device.module_loaded(), "the module is gone")


@case(fs=())
def nothing_is_redirected_without_a_device(t):
    """The kernel's own code serves as soon as the last device was given back."""
    _need(DEVICE, OTHER)
    with _Item(DEVICE, adopt=False) as one, _Item(OTHER, adopt=False) as two:
        equal(_redirected(), [], "functions redirected with no device adopted")
        one.set(True)
        functions = _redirected()
        check("dax_iomap_fault" in functions and "dax_iomap_rw" in functions,
              f"functions redirected with a device adopted: {functions}")
        two.set(True)
        one.set(False)
        equal(_redirected(), functions, "functions redirected with the other device adopted")
        two.set(False)
        equal(_redirected(), [], "functions redirected with both given back")
        fs = _fs()
        fs.make()
        fs.mount()
        try:
            fd = os.open(f"{fs.mount_point}/file", os.O_RDWR | os.O_CREAT)
            os.ftruncate(fd, PMD)
            with Map(fd, PMD) as m:
                m.write(0, pages("k", 512))
            same_bytes(os.pread(fd, PMD, 0), pages("k", 512), "a file served by the kernel")
            os.close(fd)
        finally:
            fs.umount()


@case(fs=(), quick=False)
def module_unloads_and_loads(t):
    """With all items gone rmmod works, and the module can be loaded again."""
    _need(DEVICE)
    module = "/run/lab/rdax.ko"
    if not os.path.exists(module):
        raise Skip(f"{module} is not there to be loaded again")
    was = {name: device.adopted(name) for name in os.listdir(CONFIG)}
    for name, adopted in was.items():
        if adopted:
            write(f"{CONFIG}/{name}/adopt", "0")
        os.rmdir(f"{CONFIG}/{name}")
    log = Log()
    try:
        device.unload_module()
        check(not device.module_loaded(), "the module is still there")
    finally:
        if not device.module_loaded():
            run("insmod", module)
        for name, adopted in was.items():
            os.mkdir(f"{CONFIG}/{name}")
            if adopted:
                write(f"{CONFIG}/{name}/adopt", "1")
    check(any(line.startswith("rdax") for line in log.read()), "loading says nothing in the log")


@case(fs=())
def twenty_times(t):
    """Adopt, use, release, use again: files made by one are read by the other."""
    _need(DEVICE)
    fs = _fs()
    fs.make()
    with _Item(DEVICE) as item:
        for turn in range(20):
            adopt = turn % 2 == 0
            item.set(adopt)
            item.set(not adopt)
            item.set(adopt)
            if turn % 5:
                continue
            fs.mount()
            try:
                fd = os.open(f"{fs.mount_point}/file", os.O_RDWR | os.O_CREAT)
                if turn:
                    same_bytes(os.pread(fd, 64 * PAGE, 0), pages("t", 64, turn - 5),
                               f"file from before turn {turn}")
                os.ftruncate(fd, PMD)
                with Map(fd, PMD) as m:
                    m.write(0, pages("t", 64, turn))
                os.close(fd)
            finally:
                fs.umount()


def _two(variant):
    """One device adopted, the other not, each under load at the same time, and then crosswise."""
    _need(DEVICE, OTHER)
    for adopted in (DEVICE, OTHER):
        plain = OTHER if adopted == DEVICE else DEVICE
        with _Item(adopted, adopt=True), _Item(plain, adopt=False):
            both = [_fs(variant, name) for name in (adopted, plain)]
            for fs in both:
                fs.make()
                fs.mount()
            try:
                mine, other = Stats(adopted), read(f"{CONFIG}/{plain}/stats", "nothing")
                loads = [subprocess.Popen(
                    ["fio", "--output-format=terse", "--thread=1", "--verify=crc32c",
                     "--verify_fatal=1", "--verify_state_save=0", "--size=2m",
                     f"--directory={fs.mount_point}", "--name=mmap", "--ioengine=mmap",
                     "--rw=randwrite", "--bs=4k", "--name=psync", "--ioengine=psync",
                     "--rw=randwrite", "--bs=16k"],
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for fs in both]
                for load, fs in zip(loads, both, strict=True):
                    said = load.communicate()[0]
                    equal(load.returncode, 0, f"status of fio on {fs.device}: {said}")
                mine.expect(write_bytes=lambda n: n >= 2 << 20, read_bytes=some)
                faults = mine.since()
                check(faults["write_pte"] + faults["write_pmd"] > 0, "no write fault was counted")
                equal(read(f"{CONFIG}/{plain}/stats", "nothing"), other,
                      "counters of the device that is not adopted")
            finally:
                for fs in both:
                    if fs.mounted:
                        fs.umount()
            for fs in both:
                fs.check()


class _Watched:
    """An adopted filesystem with a file of 4 pages, which is written, mapped, and synced."""

    def __init__(self, fs):
        self.fs = fs

    def __enter__(self):
        self.fs.make()
        self.fs.mount()
        self.fd = os.open(f"{self.fs.mount_point}/file", os.O_RDWR | os.O_CREAT)
        os.pwrite(self.fd, pages("a", 4), 0)
        return self

    def __exit__(self, *_):
        os.close(self.fd)
        self.fs.umount()

    def use(self):
        stats = Stats(DEVICE)
        equal(os.pwrite(self.fd, pages("b", 4), 0), 4 * PAGE, "bytes written")
        with Map(self.fd, 4 * PAGE) as m:
            same_bytes(m.read(0, 4 * PAGE), pages("b", 4), "what is mapped")
            m.write(PAGE, page("c"))
        os.fsync(self.fd)
        stats.expect(write_bytes=4 * PAGE, read_pte=some, writeback_entries=some)

    def check(self):
        expected = pages("b", 1) + page("c") + pages("b", 2, 2)
        same_bytes(os.pread(self.fd, 4 * PAGE, 0), expected, "the file")


@case(fs=())
def traced_functions_go_the_same_way(t):
    """Somebody who traces the redirected functions sees their calls, which go where they did."""
    _need(DEVICE)
    tracing = "/sys/kernel/tracing"
    if "function" not in read(f"{tracing}/available_tracers").split():
        raise Skip("this kernel has no function tracer")
    traced = ("dax_iomap_fault", "dax_iomap_rw", "dax_writeback_mapping_range")
    with _Item(DEVICE, adopt=True), _Watched(_fs()) as file:
        write(f"{tracing}/set_ftrace_filter", "dax_*")
        write(f"{tracing}/current_tracer", "function")
        try:
            file.use()
            seen = read(f"{tracing}/trace")
        finally:
            write(f"{tracing}/current_tracer", "nop")
            write(f"{tracing}/set_ftrace_filter", "")
        for name in traced:
            check(f"{name} <-" in seen, f"the tracer has not seen {name}")
        file.check()


@case(fs=())
def functions_with_a_bpf_program_go_the_same_way(t):
    """Of two that have ftrace call them at once only the first can; the module has another way."""
    _need(DEVICE, OTHER)
    names = ("dax_iomap_fault", "dax_iomap_rw")
    with _Item(DEVICE, adopt=False) as item, _Item(OTHER, adopt=False):
        with bpf.Attached(names) as programs:
            item.set(True)
            equal({name for name in names if name in _redirected()}, set(names), "redirected")
            check("rdax_direct_call" not in read("/sys/kernel/tracing/enabled_functions"),
                  "the module has the way that the BPF programs have")
            with _Watched(_fs()) as file:
                file.use()
                file.check()
            for name in names:
                check(programs.calls(name) > 0, f"the program at {name} has seen no call")
        # The programs are gone, and the functions remain redirected.
        with _Watched(_fs()) as file:
            file.use()
            file.check()
        item.set(False)
        item.set(True)
        check("rdax_direct_call" in read("/sys/kernel/tracing/enabled_functions"),
              "with nobody else there, the module has not taken the shorter way")
        with _Watched(_fs()) as file:
            raises((EBUSY, EINVAL), "a BPF program while the module has the place",
                   bpf.Attached(names).__enter__)
            file.use()
            file.check()


@case(fs=())
def one_adopted_one_not_xfs(t):
    _two("xfs")


@case(fs=(), quick=False)
def one_adopted_one_not_ext4(t):
    _two("ext4")


@case(fs=())
def name_of_another_device(t):
    """A device is adopted by its own name, whatever else leads to it."""
    _need(DEVICE)
    os.symlink(f"/dev/{DEVICE}", "/dev/rdax-alias")
    try:
        with _Item("rdax-alias") as item:
            raises(ENODEV, "adopting by another name", item.set, True)
            equal(item.adopted(), False, "adopt after the error")
    finally:
        os.unlink("/dev/rdax-alias")


@case(fs=())
def device_is_removed_and_comes_again(t):
    """What has the name of an adopted device that was removed is not adopted, but can be."""
    _need(DEVICE, OTHER)
    os.environ["DM_DISABLE_UDEV"] = "1"
    run("modprobe", "dm-mod")
    table = f"0 {device.size(DEVICE) >> 9} linear /dev/{DEVICE} 0"

    with open("/proc/devices", encoding="ascii") as devices:
        major = next(line.split()[0] for line in devices if "device-mapper" in line)

    def create():
        run("dmsetup", "create", "rdax-again", "--major", major, "--minor", "77",
            "--table", table)

    with _Item(DEVICE, adopt=False), _Item(OTHER, adopt=False):
        create()
        try:
            with _Item("dm-77", adopt=True) as item:
                run("dmsetup", "remove", "rdax-again")
                equal(item.adopted(), False, "adopt when the device was removed")
                create()
                equal(item.adopted(), False, "adopt when there is another of its name")
                item.set(True)
                equal(item.adopted(), True, "adopt of the other one")
                with _mounted("dm-77") as directory:
                    stats = Stats("dm-77")
                    with open(f"{directory}/file", "wb") as f:
                        f.write(pages("a", 8))
                    stats.expect(write_bytes=8 * PAGE)
            equal(_redirected(), [], "functions redirected after both are gone")
        finally:
            run("dmsetup", "remove", "rdax-again")


@case(fs=())
def files_without_dax_are_merged_as_ever(t):
    """Only for mappings of DAX files does the module answer what is asked of KSM."""
    _need(DEVICE)
    if not os.path.isdir("/sys/kernel/mm/ksm"):
        raise Skip("the kernel has no KSM")
    fs = _fs()
    path = f"{fs.mount_point}/file"
    with _Item(DEVICE, True):
        fs.make()
        os.makedirs(fs.mount_point, exist_ok=True)
        for options, merged in (("dax=inode", True), ("dax=always", False)):
            run("mount", "-t", fs.variant.kind, "-o", options, fs.node, fs.mount_point)
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT)
                try:
                    os.ftruncate(fd, 16 * PAGE)
                    with Map(fd, 16 * PAGE, flags=posix.MAP_PRIVATE) as m:
                        m.touch(0, 16 * PAGE, write=True)
                        m.advise(posix.MADV_MERGEABLE)
                        equal("mg" in m.flags(), merged, f"whether it is merged with {options}")
                finally:
                    os.close(fd)
            finally:
                fs.umount()


@contextlib.contextmanager
def _mapped(*table):
    """A device of the device mapper over others, adopted; its name."""
    os.environ["DM_DISABLE_UDEV"] = "1"
    run("modprobe", "dm-mod")
    run("dmsetup", "create", "rdax-linear", "--table", "\n".join(table))
    try:
        name = os.path.basename(os.path.realpath("/dev/mapper/rdax-linear"))
        if not name.startswith("dm-"):
            number = run("dmsetup", "info", "-c", "--noheadings", "-o", "minor", "rdax-linear")
            name = f"dm-{number.strip()}"
        with _Item(name, adopt=True):
            yield name
    finally:
        run("dmsetup", "remove", "rdax-linear")


@contextlib.contextmanager
def _mounted(name, variant="xfs"):
    fs = _fs(variant, name)
    fs.make()
    fs.mount()
    try:
        yield fs.mount_point
    finally:
        fs.umount()


@case(fs=())
def mapped_device(t):
    """A device-mapper device on top of pmem is a device of its own."""
    _need(DEVICE)
    with _Item(DEVICE, adopt=False), \
            _mapped(f"0 {device.size(DEVICE) >> 9} linear /dev/{DEVICE} 0") as name:
        with _mounted(name) as directory:
            stats = Stats(name)
            fd = os.open(f"{directory}/file", os.O_RDWR | os.O_CREAT)
            os.ftruncate(fd, PMD)
            with Map(fd, PMD, skew=PAGE) as m:
                m.write(0, pages("l", 64))
            same_bytes(os.pread(fd, 64 * PAGE, 0), pages("l", 64), "the file")
            os.close(fd)
            stats.expect(write_pte=some, read_bytes=64 * PAGE)


@case(fs=())
def mapped_device_in_pieces(t):
    """Where a device's memory lies in pieces, nothing is mapped or copied across their border."""
    _need(DEVICE)
    # Not where 2 MiB begin; the second piece lies before the first.
    border, size = 301 * PMD // 2, 300 * PMD
    table = [f"0 {border >> 9} linear /dev/{DEVICE} {size >> 9}",
             f"{border >> 9} {(size - border) >> 9} linear /dev/{DEVICE} 0"]
    with _Item(DEVICE, adopt=False), _mapped(*table) as name:
        with _mounted(name, "ext4") as directory:
            fd = os.open(f"{directory}/file", os.O_RDWR | os.O_CREAT)
            os.posix_fallocate(fd, 0, 220 * PMD)
            # The extent that the border is in the middle of.
            begins = [logical + border - physical for logical, physical, length, _ in
                      posix.extents(fd) if physical + PMD <= border <= physical + length - PMD]
            check(begins, f"no extent reaches over {border}: {posix.extents(fd)}")
            first = (begins[0] - PMD) // PMD * PMD
            os.pwrite(fd, pages("p", 4 * PMD // PAGE), first)
            os.fsync(fd)
            same_bytes(os.pread(fd, 4 * PMD, first), pages("p", 4 * PMD // PAGE), "the file")
            for write in (False, True):
                with Map(fd, 4 * PMD, offset=first) as m:
                    m.touch(write=write)
                    same_bytes(m.read(0, 4 * PMD), pages("p", 4 * PMD // PAGE), "the mapping")
            with Map(fd, 4 * PMD, offset=first) as m:
                m.write(0, pages("q", 4 * PMD // PAGE))
            same_bytes(os.pread(fd, 4 * PMD, first), pages("q", 4 * PMD // PAGE), "what was stored")
            os.close(fd)


@contextlib.contextmanager
def _driver_of(name):
    """Lets the driver go from a pmem device, and has it back in the end."""
    path = os.path.realpath(f"/sys/block/{name}/device")
    driver, below = os.path.realpath(f"{path}/driver"), os.path.basename(path)
    try:
        yield lambda: write(f"{driver}/unbind", below)
    finally:
        if not os.path.exists(f"{driver}/{below}"):
            write(f"{driver}/bind", below)
        wait_for(lambda: os.path.exists(f"/dev/{name}"), f"new {name}")


@case(fs=())
def mapped_device_loses_what_is_below(t):
    """It is told although it stays itself: its users are, and pages in use are waited for."""
    _need(DEVICE)
    log, ready, pipe = Log(), os.pipe(), os.pipe()
    with _Item(DEVICE, adopt=False), _driver_of(DEVICE) as let_go, \
            _mapped(f"0 {device.size(DEVICE) >> 9} linear /dev/{DEVICE} 0") as name, \
            _mounted(name, "ext4") as directory:

        def user():
            fd = os.open(f"{directory}/file", os.O_RDWR | os.O_CREAT)
            posix.fallocate(fd, 0, 0, 4 * PMD)
            huge, small = Map(fd, 4 * PMD), Map(fd, 4 * PMD, skew=PAGE)
            huge.write(0, pages("d", 8))
            small.write(2 * PMD, pages("d", 8))
            equal(posix.vmsplice(pipe[1], huge.address + PAGE, PAGE), PAGE, "bytes in the pipe")
            os.write(ready[1], b"r")
            signal.pause()

        task = Task(user)
        equal(os.read(ready[0], 1), b"r", "the user's sign")
        unbind = Task(let_go, name="unbind")
        try:
            wait_for(lambda: unbind.done() or any("its pages are in use" in line
                                                  for line in log.read()), "word of pages in use")
            check(not unbind.done(), "the driver let go of memory that is in use")
        finally:
            out = os.read(pipe[0], PAGE)
            unbind.result(30)
            task.kill()
            equal(task.signalled(), signal.SIGKILL, "the signal that ended the user")
        same_bytes(out, page("d", 1), "what comes out of the pipe")


@case(fs=())
def mapped_device_gets_other_memory(t):
    """What was not there when it was adopted could not be waited for: it is read and written only."""
    _need(DEVICE, OTHER)
    sectors = min(device.size(DEVICE), device.size(OTHER)) >> 9
    with _Item(DEVICE, adopt=False), _Item(OTHER, adopt=False), \
            _mapped(f"0 {sectors} linear /dev/{DEVICE} 0") as name:
        run("dmsetup", "reload", "rdax-linear", "--table", f"0 {sectors} linear /dev/{OTHER} 0")
        run("dmsetup", "resume", "rdax-linear")
        for known in (False, True):
            fs, path = _fs("ext4", name), f"{MOUNT}-{name}/file"
            fs.make()
            fs.mount()
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT)
                posix.fallocate(fd, 0, 0, PMD)
                os.pwrite(fd, pages("k", 8), 0)
                same_bytes(os.pread(fd, 8 * PAGE, 0), pages("k", 8), "the file")
                with Map(fd, PMD) as m:
                    if known:
                        same_bytes(m.read(0, 8 * PAGE), pages("k", 8), "the mapping")
                    else:
                        m.bus_error(0, "memory that is not known")
                os.close(fd)
            finally:
                fs.umount()
            write(f"{CONFIG}/{name}/adopt", "0")
            write(f"{CONFIG}/{name}/adopt", "1")


def _blkpg(fd, operation, number, start=0, length=0):
    """Add or delete a partition without a table on the disk."""
    data = ctypes.create_string_buffer(struct.pack("qqi64s64s4x", start, length, number, b"", b""))
    fcntl.ioctl(fd, BLKPG, struct.pack("iiiiQ", operation, 0, len(data) - 1, 0,
                                       ctypes.addressof(data)))


@case(fs=(), quick=False)
def partition(t):
    """A partition is named by its own name; the whole disk is another device."""
    _need(DEVICE)
    part = f"{DEVICE}p1"
    with _Item(DEVICE, adopt=False):
        disk = os.open(f"/dev/{DEVICE}", os.O_RDWR)
        _blkpg(disk, BLKPG_ADD, 1, 2 * PMD, device.size(DEVICE) - 4 * PMD)
        try:
            wait_for(lambda: os.path.exists(f"/dev/{part}"), part)
            with _Item(part, adopt=True):
                # With reflink XFS takes whole disks only.
                fs = _fs("xfs-noreflink", name=part)
                fs.make()
                fs.mount()
                try:
                    stats = Stats(part)
                    fd = os.open(f"{fs.mount_point}/file", os.O_RDWR | os.O_CREAT)
                    posix.fallocate(fd, 0, 0, 2 * PMD)
                    with Map(fd, 2 * PMD) as m:
                        m.write(0, pages("p", 64))
                        same_bytes(os.pread(fd, 64 * PAGE, 0), pages("p", 64), "the file")
                    os.close(fd)
                    stats.expect(write_pmd=some)
                finally:
                    fs.umount()
        finally:
            _blkpg(disk, BLKPG_DELETE, 1)
            os.close(disk)


def _file_of_last_group(fs):
    """A file whose blocks are in the last of two allocation groups.

    Told that a device goes away, XFS of this kernel series walks the files of every group, and
    for all groups but the last it takes each file to have four thousand million pages.
    """
    for i in range(16):
        os.mkdir(f"{fs.mount_point}/{i}")
        path = f"{fs.mount_point}/{i}/file"
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        posix.fallocate(fd, 0, 0, 4 * PMD)
        extents = posix.extents(fd)
        os.close(fd)
        if all(e[1] >= device.size(DEVICE) // 2 for e in extents):
            return path
        os.unlink(path)
    raise Failure("no file lies in the last allocation group")


def _gone(t, variant, mapped):
    """The driver lets go of the device under a mounted filesystem in use."""
    fs = _fs(variant)
    if not device.exists(DEVICE):
        raise Skip(f"there is no {DEVICE}")
    if variant != "xfs" and not device.adopted(DEVICE):
        raise Skip("the kernel's own code crashes here")
    was = device.adopted(DEVICE)
    file = f"{fs.mount_point}/file"
    if variant == "xfs":
        run(*fs.variant.mkfs, "-d", "agcount=2", fs.node)
        fs.mount()
        file = _file_of_last_group(fs)
    else:
        fs.make()
        fs.mount()
    driver, name = device.driver_of(DEVICE)
    ready = os.pipe()

    def user():
        """Uses files until that fails, as it must; how it failed."""
        fd = os.open(file, os.O_RDWR | os.O_CREAT)
        posix.fallocate(fd, 0, 0, 4 * PMD)
        huge, small = (Map(fd, 4 * PMD), Map(fd, 4 * PMD, skew=PAGE)) if mapped else (None, None)
        told = False
        while True:
            try:
                os.pwrite(fd, pages("u", 4), 8 * PAGE)
                os.pread(fd, PAGE, 3 * PMD)
            except OSError as error:
                return f"errno {error.errno}"
            if mapped:
                for m in (huge, small):
                    fault = m.store(PMD + 5 * PAGE, 1)
                    if fault.signal:
                        return f"signal {fault.signal}"
                    # Come by a fault again each time.
                    m.advise(posix.MADV_DONTNEED)
            if not told:
                os.write(ready[1], b"r")
                told = True

    task = Task(user)
    equal(os.read(ready[0], 1), b"r", "the user's sign")
    unbind = Task(write, f"{driver}/unbind", name, name="unbind")
    unbind.result()
    if task.join(30) and os.WIFSIGNALED(task.status):
        ended = f"signal {os.WTERMSIG(task.status)}, which killed it"
    else:
        ended = task.result()
    t.note(f"the user ended with {ended}")
    try:
        fd = os.open(file, os.O_RDONLY)
        raises((5, 6, 19), "reading a file of the lost device", os.pread, fd, PAGE, 0)
        os.close(fd)
    except OSError as error:
        check(error.errno in (5, 6, 19), f"opening a file of the lost device: {error}")
    _come_back(fs, driver, name, was)


def _come_back(fs, driver, name, was):
    """The driver takes the device again, which is as good as before."""
    if fs.mounted:
        Task(fs.umount).result(30)
    if was:
        write(f"{CONFIG}/{DEVICE}/adopt", "0")
    device.bind(DEVICE, driver, name)
    if was:
        write(f"{CONFIG}/{DEVICE}/adopt", "1")
    fs.make()
    fs.mount()
    stats = Stats(DEVICE)
    fd = os.open(f"{fs.mount_point}/file", os.O_RDWR | os.O_CREAT)
    posix.fallocate(fd, 0, 0, PMD)
    with Map(fd, PMD) as m:
        m.write(0, pages("n", 512))
    same_bytes(os.pread(fd, PMD, 0), pages("n", 512), "a file on the device that came back")
    os.close(fd)
    fs.umount()
    stats.expect(read_bytes=PMD)


@case(fs=(), quick=False)
def device_goes_under_xfs(t):
    _gone(t, "xfs", mapped=False)


@case(fs=())
def device_goes_under_xfs_with_mappings(t):
    _gone(t, "xfs", mapped=True)


@case(fs=())
def device_goes_under_xfs_without_reverse_map(t):
    """This filesystem is not told, so nobody is killed beforehand."""
    _gone(t, "xfs-noreflink", mapped=True)


@contextlib.contextmanager
def _going(variant, hold, has, let_go=None):
    """The driver lets go of a mounted device while a page of it is in a pipe.

    `hold` puts the page there: it is given the filesystem and the pipe. Yields while the driver waits
    for it; afterwards the page comes out of the pipe and the driver goes on. `has` is what is in it.
    With `let_go` the page is held by something else, until that is called.
    """
    _need(DEVICE)
    was = device.adopted(DEVICE)
    if not was:
        raise Skip("the kernel's own code crashes here")
    fs, log = _fs(variant), Log()
    if variant == "xfs":
        run(*fs.variant.mkfs, "-d", "agcount=2", fs.node)
    else:
        fs.make()
    fs.mount()
    driver, name = device.driver_of(DEVICE)
    reader, writer = os.pipe()
    hold(fs, writer)
    os.close(writer)
    unbind = Task(write, f"{driver}/unbind", name, name="unbind")
    try:
        wait_for(lambda: any("its pages are in use" in line for line in log.read()),
                 "word of pages in use")
        check(not unbind.done(), "the driver let go of memory that is in use")
        yield
        check(not unbind.done(), "the driver let go of memory that is in use")
    finally:
        out = has if let_go else os.read(reader, PAGE)
        if let_go:
            let_go()
        os.close(reader)
    same_bytes(out, has, "what comes out of the pipe")
    unbind.result(30)
    _come_back(fs, driver, name, was)


def _splice(fs, pipe, data):
    """Put a page of a new file into the pipe; the file is mapped and open no more."""
    fd = os.open(f"{fs.mount_point}/file", os.O_RDWR | os.O_CREAT)
    posix.fallocate(fd, 0, 0, PMD)
    with Map(fd, PMD) as m:
        m.write(PAGE, data)
        equal(posix.vmsplice(pipe, m.address + PAGE, PAGE), PAGE, "bytes in the pipe")
    os.close(fd)


@case(fs=())
def device_with_pages_in_use_goes(t):
    """The driver waits for who holds a page of it, and then goes on.

    Meanwhile accesses to other pages of the entry that the page is of fail at once: whoever makes
    them may be the one who holds the page.
    """
    held = []

    def hold(fs, pipe):
        fd = os.open(f"{fs.mount_point}/file", os.O_RDWR | os.O_CREAT)
        posix.fallocate(fd, 0, 0, 2 * PMD)
        m = Map(fd, 2 * PMD)
        held.extend((fd, m))
        m.write(0, pages("h", 1024))
        equal(posix.vmsplice(pipe, m.address + PMD + PAGE, PAGE), PAGE, "bytes in the pipe")

    with _going("ext4", hold, page("h", PMD // PAGE + 1)):
        fd, m = held

        def touch():
            for offset in (PMD + PAGE, PMD + 5 * PAGE, 0):
                m.bus_error(offset, "memory of the device that is going")
                m.bus_error(offset, "memory of the device that is going", write=True)

        Task(touch).result(10)
        m.unmap()
        os.close(fd)


@case(fs=())
def device_with_pages_in_use_goes_that_no_file_has(t):
    """XFS lets go of its files before; the pages are waited for all the same."""

    def hold(fs, pipe):
        file = _file_of_last_group(fs)

        def splice():
            fd = os.open(file, os.O_RDWR)
            with Map(fd, 2 * PMD) as m:
                m.write(PMD + PAGE, page("x", 1))
                os.fsync(fd)
                equal(posix.vmsplice(pipe, m.address + PMD + PAGE, PAGE), PAGE,
                      "bytes in the pipe")
            os.close(fd)

        Task(splice).result(30)

    with _going("xfs", hold, page("x", 1)):
        pass


@case(fs=())
def device_with_a_deleted_file_in_use_goes(t):
    """A file that waits to be evicted cannot be found any more, and still has its pages."""

    def hold(fs, pipe):
        _splice(fs, pipe, page("c", 1))
        Task(os.unlink, f"{fs.mount_point}/file", name="unlink").result()

    with _going("ext4", hold, page("c", 1)):
        pass


def _errno(call, *args):
    try:
        call(*args)
    except OSError as error:
        return error.errno
    return 0


def _truncate(path):
    os.truncate(path, 0)


def _punch(path):
    fd = os.open(path, os.O_RDWR)
    posix.fallocate(fd, posix.PUNCH_HOLE | posix.KEEP_SIZE, 0, PMD)


def _goes_under(change, hold=None, let_go=None):
    """The device goes while a system call waits for a page of it, which is told so at once."""
    waiters = []

    def begin(fs, pipe):
        if hold:
            hold(fs)
        else:
            _splice(fs, pipe, page("w", 1))
        path = f"{fs.mount_point}/file"
        waiters.append(Task(_errno, change, path, name=change.__name__.strip("_")))
        waiters[0].blocked_in("truncate", "fallocate")

    with _going("ext4", begin, page("w", 1), let_go):
        equal(waiters[0].result(30), EIO, "error")


@case(fs=())
def device_goes_while_a_truncate_waits(t):
    _goes_under(_truncate)


@case(fs=())
def device_goes_while_a_punch_waits(t):
    _goes_under(_punch)


@case(fs=())
def device_goes_while_a_truncate_waits_for_a_transfer(t):
    """Direct I/O has pins, and a mapping that is taken away meanwhile."""
    slow, writers = SlowDisk(), []

    def hold(fs):
        path = f"{fs.mount_point}/file"
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        posix.fallocate(fd, 0, 0, 2 * PMD)
        os.close(fd)

        def transfer():
            disk, fd = slow.open(), os.open(path, os.O_RDWR)
            m = Map(fd, 2 * PMD)
            m.write(PMD, pages("d", 8))
            return posix.pwrite_from(disk, m.address + PMD, 8 * PAGE, 0)

        slow.hold()
        writers.append(Task(transfer, name="direct write"))
        writers[0].blocked_in("pwrite64")

    def let_go():
        slow.release()
        equal(writers[0].result(30), 8 * PAGE, "bytes written")

    _goes_under(_truncate, hold, let_go)


@case(fs=())
def device_goes_while_its_unmount_waits(t):
    """Nobody else removes the file's entries, as it is being evicted."""
    unmounts = []

    def hold(fs, pipe):
        _splice(fs, pipe, page("u", 1))
        unmounts.append(Task(fs.umount, name="umount"))
        unmounts[0].blocked_in("umount2")

    with _going("ext4", hold, page("u", 1)):
        unmounts[0].result(30)


@contextlib.contextmanager
def _unmount_that_waits(name):
    """A filesystem is being unmounted that has a page in a pipe."""
    fs = _fs("ext4", name)
    fs.make()
    fs.mount()
    reader, writer = os.pipe()
    _splice(fs, writer, page("p", 1))
    unmount = Task(fs.umount, name="umount")
    try:
        unmount.blocked_in("umount2")
        yield
        check(not unmount.done(), "the unmount has not waited")
    finally:
        out = os.read(reader, PAGE)
        os.close(reader)
        os.close(writer)
        unmount.result(30)
    same_bytes(out, page("p", 1), "what comes out of the pipe")


@contextlib.contextmanager
def _fault_that_waits(name):
    """A task stores to a page that somebody holds, on a device."""
    fs = _fs("xfs", name)
    fs.make()
    fs.mount()
    try:
        with held_clone(fs.mount_point) as fd:
            def store():
                with Map(fd, PMD, skew=PAGE) as m:
                    m.write(9 * PAGE, page("s"))

            victim = Task(store)
            victim.must_fault()
            yield
            check(not victim.done(), "the page was not waited for")
        victim.result()
        os.close(fd)
    finally:
        fs.umount()


@contextlib.contextmanager
def _transfer_that_waits(name, transfer):
    """A file on a device is read or written, and the buffer is memory that is missing."""
    fs = _fs("xfs", name)
    fs.make()
    fs.mount()
    (reader, writer), (missed, missing_now) = os.pipe(), os.pipe()
    fd = os.open(f"{fs.mount_point}/file", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, pages("f", 4), 0)

    def work():
        done = []
        with Map(-1, 4 * PAGE, flags=posix.MAP_PRIVATE | posix.MAP_ANONYMOUS) as buffer, \
                Missing(buffer) as missing:
            thread = threading.Thread(
                target=lambda: done.append(transfer(fd, buffer.address, 4 * PAGE, 0)))
            thread.start()
            equal(missing.wait(), buffer.address, "address that is wanted")
            os.write(missing_now, b"m")
            os.read(reader, 1)
            missing.give(pages("b", 4))
            thread.join()
            equal(done, [4 * PAGE], "bytes that were transferred")
            return buffer.read(0, 4 * PAGE).hex()

    try:
        task = Task(work)
        equal(os.read(missed, 1), b"m", "the sign that the buffer is waited for")
        try:
            yield
            check(not task.done(), "the buffer was not waited for")
        finally:
            os.write(writer, b"g")
        same_bytes(bytes.fromhex(task.result()), os.pread(fd, 4 * PAGE, 0), "the buffer")
        same_bytes(os.pread(fd, 4 * PAGE, 0),
                   pages("f" if transfer == posix.pread_to else "b", 4), "the file")
    finally:
        for end in (fd, reader, writer, missed, missing_now):
            os.close(end)
        fs.umount()


def _goes_beside():
    """The driver lets go of a mounted device that nobody holds a page of, and comes back."""
    was = device.adopted(DEVICE)
    path = os.path.realpath(f"/sys/block/{DEVICE}/device")
    driver, name = os.path.realpath(f"{path}/driver"), os.path.basename(path)
    fs = _fs("ext4")
    fs.make()
    fs.mount()
    fd = os.open(f"{fs.mount_point}/file", os.O_RDWR | os.O_CREAT)
    posix.fallocate(fd, 0, 0, PMD)
    m = Map(fd, PMD)
    m.write(0, pages("g", 8))
    Task(write, f"{driver}/unbind", name, name="unbind").result(30)
    m.bus_error(0, "memory of the device that is gone")
    m.unmap()
    os.close(fd)
    _come_back(fs, driver, name, was)


@case(fs=())
def device_goes_while_another_is_unmounted(t):
    """What its filesystem has to do with is waited for, and nothing else of its kind."""
    _need(DEVICE, OTHER)
    with _Item(DEVICE, adopt=True), _Item(OTHER, adopt=True), _unmount_that_waits(OTHER):
        _goes_beside()


@case(fs=())
def device_goes_while_a_fault_waits_on_another(t):
    _need(DEVICE, OTHER)
    with _Item(DEVICE, adopt=True), _Item(OTHER, adopt=True), _fault_that_waits(OTHER):
        _goes_beside()


@case(fs=())
def device_goes_while_a_buffer_is_waited_for(t):
    """A user who can have his memory take as long as he likes has no device wait for that."""
    _need(DEVICE, OTHER)
    for transfer in (posix.pread_to, posix.pwrite_from):
        with _Item(DEVICE, adopt=True), _Item(OTHER, adopt=True), \
                _transfer_that_waits(OTHER, transfer):
            _goes_beside()


@case(fs=())
def another_device_is_released_while_one_goes(t):
    """And adopted again; the module stays meanwhile."""
    _need(DEVICE, OTHER)

    def hold(fs, pipe):
        _splice(fs, pipe, page("o", 1))

    with _Item(OTHER, adopt=True) as item, _going("ext4", hold, page("o", 1)):
        for adopt in (False, True):
            Task(item.set, adopt, name="release").result(10)
            equal(item.adopted(), adopt, "adopted")
        check(int(read("/sys/module/rdax/refcnt")) > len(os.listdir(CONFIG)),
              "nothing keeps the module but the devices")


@case(fs=(), quick=False)
def device_goes_under_ext4(t):
    _gone(t, "ext4", mapped=False)


@case(fs=())
def device_goes_under_ext4_with_mappings(t):
    _gone(t, "ext4", mapped=True)
