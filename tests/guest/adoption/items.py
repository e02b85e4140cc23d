# SPDX-License-Identifier: GPL-2.0
"""Devices handed over and taken back by name."""

import os
import re
import subprocess
from errno import EACCES

from lib import btf, device, posix
from lib.check import Skip, check, equal, raises, same_bytes
from lib.device import SlowDisk, Stats, read, run, some, write
from lib.mapping import Map
from lib.pattern import page, pages
from lib.posix import PAGE, PMD
from lib.runner import Log, case
from lib.task import LongCalls, Task

from .common import (DEVICE, EBUSY, EINVAL, ENODEV, EOPNOTSUPP, Item, OTHER, Watched, mountable,
                     need)

COUNTERS = """read_pte read_pmd read_pud write_pte write_pmd write_pud mkwrite_pte mkwrite_pmd
    mkwrite_pud zero_pte zero_pmd private_pte sync_faults cow_pages fallback_alignment fallback_vma
    fallback_eof fallback_private fallback_extent fallback_hole fallback_conflict
    fallback_max_order fallback_nomem fault_errors layout_breaks layout_waits layout_wait_ns
    entries_removed entries_flushed_on_removal writeback_entries writeback_bytes read_bytes
    write_bytes zeroed_bytes poison_faults poison_locks dedupe_compares""".split()


@case(fs=())
def no_such_device(t):
    need()
    with Item("rdax-no-such-disk") as item:
        raises(ENODEV, "adopting", item.set, True)
        check(not item.adopted(), "adopt reads 1 afterwards")
        item.set(False)


@case(fs=())
def device_without_dax(t):
    """A disk in memory, and a file as a loop device."""
    need()
    slow = SlowDisk()
    run("modprobe", "loop")
    path = "/tmp/rdax-tests/loop"
    with open(path, "wb") as f:
        f.truncate(1 << 20)
    loop = run("losetup", "--find", "--show", path).strip()
    try:
        for path in (slow.disk, loop):
            name = os.path.basename(path)
            with Item(name) as item:
                # The disk is in use by another, which may be noticed first.
                raises((EOPNOTSUPP, EBUSY) if path == slow.disk else EOPNOTSUPP,
                       f"adopting {name}", item.set, True)
                check(not item.adopted(), "adopt reads 1 afterwards")
    finally:
        run("losetup", "--detach", loop)


@case(fs=())
def what_is_no_answer(t):
    need(DEVICE)
    for before in (False, True):
        with Item(DEVICE, adopt=before) as item:
            for text in ("2", "-1", "maybe", "1 1", "\n", "x" * 100):
                raises(EINVAL, f"writing {text!r}", write, f"{item.path}/adopt", text)
                equal(item.adopted(), before, f"adopted after writing {text!r}")
            write(f"{item.path}/adopt", "1\n" if before else "0\n")
            equal(item.adopted(), before, "adopted")


@case(fs=())
def mounted_device_is_busy(t):
    """Neither handed over nor given back under a mounted filesystem."""
    need(DEVICE)
    fs = mountable()
    fs.make()
    for before in (True, False):
        with Item(DEVICE, adopt=before) as item:
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
    need(DEVICE)
    with Item(DEVICE, adopt=False) as item:
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
    need(DEVICE)
    with Item(DEVICE) as item:
        for adopt in (True, True, False, False, True):
            item.set(adopt)
            equal(item.adopted(), adopt, "adopted")


@case(fs=())
def adopted_item_stays(t):
    need(DEVICE)
    with Item(DEVICE, adopt=True) as item:
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
    need(DEVICE)
    with Item(DEVICE, adopt=False) as item:
        log = Log()
        for adopt, wanted in ((True, [f"rdax: {DEVICE}: adopted"]), (True, []),
                              (False, [f"rdax: {DEVICE}: released"]), (False, [])):
            item.set(adopt)
            equal([line for line in log.read() if line.startswith("rdax")], wanted,
                  f"log after writing {int(adopt)}")


@case(fs=())
def counters_are_all_there(t):
    need(DEVICE)
    with Item(DEVICE, adopt=True) as item:
        lines = [line.split(" ") for line in read(f"{item.path}/stats").splitlines()]
        check(all(len(line) == 2 and line[1].isdigit() for line in lines),
              "a line is not a name and a number")
        missing = set(COUNTERS) - {line[0] for line in lines}
        equal(missing, set(), "counters that are missing")
        equal(len({line[0] for line in lines}), len(lines), "different names")


@case(fs=())
def what_was_counted_is_kept(t):
    """As long as the item is there, and the device is not adopted anew."""
    need(DEVICE)
    with Item(DEVICE, adopt=True) as item:
        with Watched(mountable()) as file:
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
    "fault_around": tuple(str(PAGE << order) for order in range(10)),
    "write_order": tuple(str(order) for order in range(9)),
}


def _has_max_order(t, order, what):
    """Whether a fault in 2 MiB of a file is refused them tells of max_order."""
    with Watched(mountable()) as file:
        os.ftruncate(file.fd, PMD)
        stats = Stats(DEVICE)
        with Map(file.fd, PMD, align=PMD) as m:
            m.load(0)
        stats.expect(fallback_max_order=some if order == "pte" else 0)
        t.note(f"{what}: {order}")


def _has_single_entries(pages):
    """Stores in sequence make an entry for each page."""
    with Watched(mountable()) as file:
        os.ftruncate(file.fd, pages * PAGE)
        with Map(file.fd, pages * PAGE, skew=PAGE) as m:
            for at in range(0, pages * PAGE, PAGE):
                check(not m.store(at, 1).signal, "a store")
            stats = Stats(DEVICE)
            os.fsync(file.fd)
            stats.expect(writeback_entries=pages)


@case(fs=())
def switches_take_what_people_write(t):
    """Sizes and names, in capitals or not; what is none is told to the log."""
    need(DEVICE)
    with Item(DEVICE, adopt=False) as item:
        for name, values in (("max_order", {"PTE": "pte", "4K": "pte", "pmd": "pmd", "2m": "pmd", "PUD": "pud",
                                            "1G": "pud"}),
                             ("fault_around", {"4k": "4096", "8K": "8192", "16k": "16384", "32K": "32768",
                                               "64k": "65536", "2M": "2097152", "64K": "65536"})):
            for value, wanted in values.items():
                write(f"{item.path}/{name}", value)
                equal(read(f"{item.path}/{name}"), wanted, f"{name} from {value}")
        log = Log()
        raises(EINVAL, "a switch that is none", write, f"{item.path}/fault_around", "4m")
        said = [line for line in log.read() if "fault_around is 4096 to 2097152" in line]
        equal(len(said), 1, "lines in the log")
        equal(read(f"{item.path}/fault_around"), "65536", "fault_around after that")
        for name, value in (("max_order", "pud"), ("fault_around", "65536")):
            write(f"{item.path}/{name}", value)


@case(fs=())
def everybody_may_read_counters(t):
    """Monitoring has no need of rights; to change something has."""
    need(DEVICE)
    with Item(DEVICE) as item:
        def nobody():
            posix.become_nobody()
            read_all = {name: read(f"{item.path}/{name}") for name in ("adopt", "stats", *SWITCHES)}
            for name in ("adopt", *SWITCHES):
                raises(EACCES, f"writing {name}", write, f"{item.path}/{name}", read_all[name])
            return read_all["adopt"], "read_pte" in read_all["stats"]

        equal(Task(nobody).result(), ["1", True], "what nobody reads")
        raises(EACCES, "making counters writable", os.open, f"{item.path}/stats", os.O_WRONLY)


@case(fs=())
def switches_are_for_now_and_for_later(t):
    """Each reads as what was written, before, during and after an adoption, and applies."""
    need(DEVICE)
    with Item(DEVICE, adopt=False) as item:
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
    need(DEVICE)
    with Item(DEVICE, adopt=False):
        done = subprocess.run(["rmmod", "rdax"], stderr=subprocess.PIPE, check=False)
        check(done.returncode != 0, "rmmod removed the module under its items")
        check(device.module_loaded(), "the module is gone")


@case(fs=(), quick=False)
def module_unloads_and_loads(t):
    """With all items gone rmmod works, and the module can be loaded again."""
    need(DEVICE)
    log = Log()
    with device.without_module():
        check(not device.module_loaded(), "the module is still there")
    check(any(line.startswith("rdax") for line in log.read()), "loading says nothing in the log")


@case(fs=(), quick=False)
def functions_of_another_kernel(t):
    """A kernel whose functions are declared otherwise than expected is refused, with their names."""
    need(DEVICE)
    path = "/sys/kernel/btf/vmlinux"
    if not os.path.exists(path):
        raise Skip("this kernel has no BTF")
    with open(path, "rb") as f:
        changed = btf.with_changed_parameter(f.read(), "copy_huge_pud")
    other = "/tmp/rdax-tests/btf"
    with open(other, "wb") as f:
        f.write(changed)
    log = Log()
    with device.without_module() as module:
        run("mount", "--bind", other, path)
        try:
            run("insmod", module)
            with Item(DEVICE) as item:
                raises(EOPNOTSUPP, "adopting", item.set, True)
                check(not item.adopted(), "adopt reads 1 afterwards")
        finally:
            run("umount", path)
            if device.module_loaded():
                device.unload_module()
    named = [line for line in log.read() if "this kernel has" in line]
    equal(len(named), 1, f"functions named in the log: {named}")
    check("int copy_huge_pud(struct mm_struct *, struct mm_struct *, pud_t *" in named[0]
          and "int copy_huge_pud(void, struct mm_struct *, pud_t *" in named[0],
          f"what the log says: {named[0]}")
    with Item(DEVICE) as item:
        item.set(True)


@case(fs=())
def twenty_times(t):
    """Adopt, use, release, use again: files made by one are read by the other."""
    need(DEVICE)
    fs = mountable()
    fs.make()
    with Item(DEVICE) as item:
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


@case(fs=())
def released_beside_long_calls_of_others(t):
    """Who releases one of two devices waits for nobody who has nothing to do with them."""
    del t
    need(DEVICE, OTHER)

    def change():
        item.set(False)
        item.set(True)

    with Item(OTHER, adopt=True), Item(DEVICE, adopt=True) as item, LongCalls() as somebody:
        check(Task(somebody.stays_in_one_while, change).result(timeout=300),
              "the release of a device waits until the call of somebody else ends")


@case(fs=())
def name_of_another_device(t):
    """A device is adopted by its own name, whatever else leads to it."""
    need(DEVICE)
    os.symlink(f"/dev/{DEVICE}", "/dev/rdax-alias")
    try:
        with Item("rdax-alias") as item:
            raises(ENODEV, "adopting by another name", item.set, True)
            equal(item.adopted(), False, "adopt after the error")
    finally:
        os.unlink("/dev/rdax-alias")
