# SPDX-License-Identifier: GPL-2.0
"""The command rdax: what it does, what it says, and what it says to do."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import struct
import subprocess
import tempfile
import termios
import threading

from lib import device, gib, posix
from lib.check import Skip, check, equal
from lib.device import CONFIG, Stats, read, run, some, wait_for, write
from lib.fs import VARIANTS, Filesystem
from lib.mapping import Map
from lib.pattern import pages
from lib.posix import GIB, PAGE, PMD
from lib.runner import case
from lib.task import Task
from lib.trace import Calls

DEVICE, OTHER, GIANT = "pmem1", "pmem0", "pmem0"
MOUNT = "/mnt/rdax-tool"
ADOPTIONS = "/etc/rdax.d"


def unfit():
    return None if shutil.which("rdax") else "the command rdax is not installed"


def _rdax(*arguments, prefix=()):
    done = subprocess.run([*prefix, "rdax", *arguments], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def _succeeds(*arguments, **more):
    status, out, err = _rdax(*arguments, **more)
    equal((status, err), (0, ""), f"status and errors of rdax {' '.join(arguments)}\n{out}")
    return out


def _fails(*arguments, says, status=1, **more):
    """It fails, and what it says on that has all of these parts."""
    ended, out, err = _rdax(*arguments, **more)
    equal(ended, status, f"status of rdax {' '.join(arguments)}\n{out}{err}")
    for part in says:
        check(part in err, f"rdax {' '.join(arguments)} does not say '{part}', but: {err}")
    check("os error" not in err and "I/O error" not in err, f"no sentence for people: {err}")


def _json(*arguments):
    return json.loads(_succeeds(*arguments, "--json"))


def _entry(name):
    (entry,) = [entry for entry in _json("list") if entry.get("blockdev") == name]
    return entry


@contextlib.contextmanager
def _device(adopted, name=DEVICE):
    """A device that is adopted or not, with switches as they are at first; put back in the end."""
    if not device.module_loaded():
        raise Skip("the module is not loaded")
    if not device.exists(name):
        raise Skip(f"there is no {name}")
    there, was = os.path.isdir(f"{CONFIG}/{name}"), device.adopted(name)

    def have(wanted):
        if os.path.isdir(f"{CONFIG}/{name}"):
            device.adopt(name, False)
            os.rmdir(f"{CONFIG}/{name}")
        if wanted:
            device.adopt(name, True)

    have(adopted)
    try:
        yield
    finally:
        have(was)
        if there and not was:
            os.mkdir(f"{CONFIG}/{name}")


@contextlib.contextmanager
def _mounted(*mkfs, name=DEVICE, options="dax=always"):
    run(*mkfs, f"/dev/{name}")
    os.makedirs(MOUNT, exist_ok=True)
    run("mount", "-o", options, f"/dev/{name}", MOUNT)
    try:
        yield MOUNT
    finally:
        posix.umount(MOUNT)


XFS = VARIANTS["xfs"].mkfs


@case(fs=())
def adopts_and_releases(t):
    with _device(False):
        equal(_entry(DEVICE)["adopted"], False, "adopted, as rdax list has it")
        equal(_succeeds("adopt", f"/dev/{DEVICE}"), f"{DEVICE}: adopted\n", "what rdax says")
        check(device.adopted(DEVICE), "it is not adopted")
        equal(_succeeds("adopt", DEVICE), f"{DEVICE}: adopted already\n", "what rdax says")
        equal(_entry(DEVICE)["adopted"], True, "adopted, as rdax list has it")
        equal(_succeeds("release", DEVICE), f"{DEVICE}: released\n", "what rdax says")
        check(not os.path.isdir(f"{CONFIG}/{DEVICE}"), "the directory is left")
        equal(_succeeds("release", DEVICE), f"{DEVICE}: not adopted\n", "what rdax says")


@case(fs=())
def lists_as_ndctl_does(t):
    """What ndctl says of a namespace, in its words, and what is mounted where."""
    with _device(True), _mounted(*XFS):
        entry = _entry(DEVICE)
        listed = json.loads(run("ndctl", "list", "-N"))
        listed = listed if isinstance(listed, list) else [listed]
        (theirs,) = [each for each in listed if each.get("blockdev") == DEVICE]
        for key in ("dev", "mode", "map", "size", "uuid", "align", "blockdev"):
            equal(entry.get(key), theirs.get(key), key)
        equal([entry[key] for key in ("filesystem", "dax", "mountpoints", "max_order")],
              ["xfs", "always", [MOUNT], "pud"], "filesystem, dax, mountpoints, max_order")
        equal(entry["resource"], device.data_start(DEVICE), "physical address")
        table = _succeeds("list", DEVICE)
        check(MOUNT in table and OTHER not in table, f"the table: {table}")
    equal(_entry(DEVICE)["filesystem"], "xfs", "filesystem that is not mounted")


@case(fs=())
def switches_are_sizes(t):
    with _device(False):
        _succeeds("adopt", "--max-order", "2M", "--fault-around=16k", "--write-order=5", DEVICE)
        equal([read(f"{CONFIG}/{DEVICE}/{name}")
               for name in ("max_order", "fault_around", "write_order")],
              ["pmd", "16384", "5"], "switches")
        # Also of a device that is adopted already.
        _succeeds("adopt", "--max-order=1G", DEVICE)
        equal(read(f"{CONFIG}/{DEVICE}/max_order"), "pud", "max_order")


@case(fs=())
def what_is_in_use_is_told(t):
    with _device(False), _mounted(*XFS):
        _fails("adopt", DEVICE, says=[f"mounted on {MOUNT}", f"umount {MOUNT}"])
        check(not os.path.isdir(f"{CONFIG}/{DEVICE}"), "a directory is left")
    with _device(True), _mounted(*XFS):
        _fails("release", DEVICE, says=[f"mounted on {MOUNT}", f"umount {MOUNT}"])
        check(device.adopted(DEVICE), "it was released")
    # What only the module knows comes from the log.
    with _device(False):
        fd = os.open(f"/dev/{DEVICE}", os.O_RDWR | os.O_EXCL)
        _fails("adopt", DEVICE, says=["in use; unmount it first", "has it for itself"])
        os.close(fd)
        _succeeds("adopt", DEVICE)
        fd = os.open(f"/dev/{DEVICE}", os.O_RDWR | os.O_EXCL)
        _fails("release", DEVICE, says=["in use; unmount it first"])
        os.close(fd)


@case(fs=())
def what_is_no_pmem_device_is_told(t):
    with _device(False):
        _fails("adopt", "pmem77", says=["pmem77", "no such device", OTHER, DEVICE])
        _fails("release", "pmem77", says=["no such device"])
        run("modprobe", "loop")
        path = "/tmp/rdax-tool-loop"
        with open(path, "wb") as f:
            f.truncate(1 << 20)
        loop = run("losetup", "--find", "--show", path).strip()
        try:
            _fails("adopt", loop, says=["not capable of DAX", "ndctl create-namespace"])
        finally:
            run("losetup", "--detach", loop)
        # One failure does not keep the others from being adopted.
        status, out, _ = _rdax("adopt", "pmem77", DEVICE)
        equal((status, out), (1, f"{DEVICE}: adopted\n"), "status and output")


@case(fs=())
def who_may_not_is_told(t):
    nobody = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
    with _device(False):
        _fails("adopt", DEVICE, says=["permission denied", "as root"], prefix=nobody)
    with _device(True):
        check("nothing was counted" in _succeeds("stat", DEVICE, prefix=nobody),
              "rdax stat without rights")
        _fails("release", DEVICE, says=["permission denied", "as root"], prefix=nobody)
        check(f"{DEVICE} " in _succeeds("list", prefix=nobody), "rdax list without rights")


@case(fs=(), quick=False)
def what_is_missing_is_told_or_made(t):
    """configfs that is not mounted, a module that is not loaded."""
    alone = ("unshare", "--mount", "sh", "-c", 'umount /sys/kernel/config && exec "$@"', "sh")
    module = "/run/lab/rdax.ko"
    with _device(False):
        _fails("adopt", DEVICE, says=["configfs is not mounted", "mount -t configfs", "--load"],
               prefix=alone)
        equal(_succeeds("adopt", "--load", DEVICE, prefix=alone), f"{DEVICE}: adopted\n",
              "what rdax says")
        check(device.adopted(DEVICE), "it is not adopted")
        _succeeds("release", DEVICE)
        was = {name: device.adopted(name) for name in os.listdir(CONFIG)}
        if not os.path.exists(module):
            raise Skip(f"{module} is not there to be loaded again")
        for name in was:
            device.adopt(name, False)
            os.rmdir(f"{CONFIG}/{name}")
        try:
            device.unload_module()
            _fails("adopt", DEVICE, says=["module rdax is not loaded", "not installed"])
            # The lab's module is not where modprobe looks.
            _fails("adopt", "--load", DEVICE, says=["cannot be loaded", "rdax not found"])
            _fails("stat", says=["module rdax is not loaded"])
            with open("/tmp/rdax-release", "w", encoding="ascii") as f:
                f.write("6.12.48+deb13-amd64\n")
            _fails("adopt", "--load", DEVICE, says=["6.12.48", "7.2 and 7.3", "trixie-backports"],
                   prefix=("unshare", "--mount", "sh", "-c", "mount --bind /tmp/rdax-release "
                           '/proc/sys/kernel/osrelease && exec "$@"', "sh"))
            status, out, _ = _rdax("doctor", DEVICE)
            equal(status, 1, "status of rdax doctor")
            check("PROBLEM  module: rdax is not installed" in out, f"the doctor: {out}")
        finally:
            if not device.module_loaded():
                run("insmod", module)
            for name, adopted in was.items():
                os.mkdir(f"{CONFIG}/{name}")
                device.adopt(name, adopted)


@case(fs=())
def boot_adopts_what_is_persistent(t):
    """By the namespace's identity, whatever the name was."""
    with _device(False):
        out = _succeeds("adopt", "--persist", "--max-order=2M", DEVICE)
        try:
            uuid = _entry(DEVICE)["uuid"]
            path = f"{ADOPTIONS}/{uuid}.conf"
            check(path in out, f"rdax says {out}")
            equal(_entry(DEVICE)["persistent"], True, "persistent, as rdax list has it")
            _succeeds("release", DEVICE)
            # As if it had been called pmem7 then; and the name pmem1 were another's.
            with open(path, encoding="ascii") as f:
                kept = f.read()
            check(f"uuid={uuid}" in kept, f"what was kept: {kept}")
            os.unlink(path)
            with open(f"{ADOPTIONS}/pmem7.conf", "w", encoding="ascii") as f:
                f.write(kept.replace(f"device={DEVICE}", "device=pmem7"))
            equal(_succeeds("boot", OTHER), "", "what rdax says of a device that is not meant")
            equal(_succeeds("boot", DEVICE), f"{DEVICE}: adopted\n", "what rdax says")
            equal(read(f"{CONFIG}/{DEVICE}/max_order"), "pmd", "max_order")
            _succeeds("release", "--persist", DEVICE)
            equal(os.listdir(ADOPTIONS), [], "files in /etc/rdax.d")
            check(not device.adopted(DEVICE), "it is adopted still")
            # What failed is told later.
            with _mounted(*XFS):
                status, _, err = _rdax("adopt", "--persist", DEVICE)
                check(status == 1 and "mounted" in err, f"status {status}: {err}")
                _fails("boot", DEVICE, says=["at boot", f"mounted on {MOUNT}"])
                check(f"mounted on {MOUNT}" in _succeeds("list"), "rdax list does not tell of it")
            equal(_succeeds("adopt", DEVICE), f"{DEVICE}: adopted\n", "what rdax says")
            _succeeds("release", DEVICE)
            check("note" not in _entry(DEVICE), "rdax list tells of it still")
        finally:
            _rdax("release", "--persist", DEVICE)
            shutil.rmtree(ADOPTIONS, ignore_errors=True)


@case(fs=())
def counters_are_shown(t):
    with _device(True), _mounted(*XFS) as mount:
        stats = Stats(DEVICE)
        fd = os.open(f"{mount}/file", os.O_RDWR | os.O_CREAT)
        os.pwrite(fd, pages("c", 1024), 0)
        os.fsync(fd)
        with Map(fd, 2 * PMD) as m:
            m.touch()
        os.close(fd)
        moved = stats.since()
        (shown,) = _json("stat", DEVICE)["devices"]
        equal({name: shown["counters"][name] for name in ("write_bytes", "read_pmd")},
              {name: moved[name] for name in ("write_bytes", "read_pmd")}, "counters")
        table = dict(line.split(None, 1) for line in _succeeds("stat", DEVICE).splitlines())
        equal(table["write_bytes"], "4 MiB", "write_bytes")
        check("poison_faults" not in table, "a counter of 0 is shown")
        check("poison_faults" in _succeeds("stat", "--all", DEVICE), "it is not shown when asked for")
        lines = _succeeds("stat", "-j", "-i", "1", "-c", "2", DEVICE).splitlines()
        equal([json.loads(line)["devices"][0]["per_second"]["write_bytes"] for line in lines],
              [0, 0], "rates while nothing is done")
    with _device(False):
        _fails("stat", DEVICE, says=[f"rdax adopt {DEVICE}"])


def _findings(*arguments, status=0):
    ended, out, err = _rdax("doctor", "--json", *arguments)
    equal((ended, err), (status, ""), f"status and errors of rdax doctor {' '.join(arguments)}\n{out}")
    return json.loads(out)


def _has(findings, status, *parts):
    """Whether a line of that status says all of it, with the fix where it is no good news."""
    def says(finding):
        text = f"{finding['text']} {finding.get('fix', '')}"
        return finding["status"] == status and all(part in text for part in parts)

    found = [finding for finding in findings if says(finding)]
    check(found, f"no {status} of {parts} in {json.dumps(findings, indent=1)}")
    check(status != "problem" or found[0].get("fix"), f"no fix: {found[0]}")


@case(fs=())
def the_doctor_knows_how_a_file_is_mapped(t):
    """What it says of a file is what faults find."""
    with _device(True), _mounted(*XFS) as mount:
        def make(name, *parts):
            """A file; a part is (length, whether it has blocks)."""
            fd, at = os.open(f"{mount}/{name}", os.O_RDWR | os.O_CREAT), 0
            for length, has_blocks in parts:
                if has_blocks:
                    os.pwrite(fd, pages("d", length // PAGE), at)
                at += length
            os.ftruncate(fd, at)
            os.fsync(fd)
            return fd

        good = make("good", (4 * PMD, True))
        _has(_findings(f"{mount}/good"), "ok", "all of its 4 ranges of 2 MiB")
        stats = Stats(DEVICE)
        with Map(good, 4 * PMD) as m:
            m.touch()
        stats.expect(read_pmd=4, read_pte=0)
        os.close(good)

        holes = make("holes", (PMD, True), (PMD, False), (PMD, True))
        _has(_findings(f"{mount}/holes", status=1), "problem", "2 of its 3 ranges of 2 MiB",
             "1 holes", "fallocate")
        stats = Stats(DEVICE)
        with Map(holes, 3 * PMD) as m:
            m.touch()
        stats.expect(read_pmd=2)
        os.close(holes)

        # Moved by a page against what it was allocated for.
        moved = make("moved", (4 * PMD, True))
        posix.fallocate(moved, posix.COLLAPSE_RANGE, 0, PAGE)
        os.fsync(moved)
        _has(_findings(f"{mount}/moved", status=1), "problem",
             "0 of its 3 ranges of 2 MiB", "not aligned on the device", "extsize 2m")
        stats = Stats(DEVICE)
        with Map(moved, 3 * PMD) as m:
            m.touch()
        stats.expect(read_pmd=0, fallback_extent=some)
        os.close(moved)


@case(fs=())
def the_doctor_says_what_is_in_the_way(t):
    with _device(False):
        with _mounted("mkfs.xfs", "-q", "-f", "-K", "-d", "noalign", options="dax=never") as mount:
            found = _findings(mount, status=1)
            _has(found, "ok", "of a series that rdax supports")
            _has(found, "problem", "is not adopted", f"umount {mount}")
            _has(found, "problem", "dax=never", "dax=always")
            _has(found, "note", "not told to align files", "su=2m")
            _has(found, "note", "is not adopted at boot", "--persist")
            fd = os.open(f"{mount}/file", os.O_RDWR | os.O_CREAT)
            os.close(fd)
            _has(_findings(f"{mount}/file", status=1), "problem", "is not a DAX file")
        run("mkfs.ext4", "-q", "-F", "-b", "1024", f"/dev/{DEVICE}")
        _has(_findings(DEVICE, status=1), "problem", "1 KiB", "mkfs.ext4 -b 4096")
        run(*VARIANTS["ext4"].mkfs, f"/dev/{DEVICE}")
        _has(_findings(DEVICE, status=1), "ok", "ext4 aligns files to 2 MiB")
    _fails("doctor", "/tmp", says=["tmpfs", "no block device"], status=2)
    _fails("doctor", "/nowhere", says=["no such device, directory or file"], status=2)


@case(fs=())
def layouts_are_refused_before_anything_is_written(t):
    """On a filesystem that is not mounted for it, and where there is no room."""
    with _device(True):
        with _mounted(*XFS, options="dax=never") as mount:
            _fails("layout", "create", f"{mount}/file", "1G", status=2, says=["dax=always"])
            equal(os.listdir(mount), [], "files that are left")
        with _mounted(*XFS) as mount:
            _fails("layout", "create", f"{mount}/file", "64G", status=2, says=["there is room for"])
            equal(os.listdir(mount), [], "files that are left")
            fd = os.open(f"{mount}/file", os.O_RDWR | os.O_CREAT)
            posix.fallocate(fd, 0, 0, 8 * PMD)
            os.close(fd)
            status, out, _ = _rdax("layout", "check", f"{mount}/file")
            equal(status, 1, "status of rdax layout check")
            check("16 MiB: no: the file ends before 1 GiB" in out, f"rdax layout check: {out}")
    _fails("layout", "check", "/tmp", status=2, says=["/tmp is no regular file"])
    with tempfile.NamedTemporaryFile() as elsewhere:
        _fails("layout", "check", elsewhere.name, status=2, says=["no block device"])


@case(fs=(), giant=True, timeout=400)
def layouts_are_mapped_by_one_entry(t):
    """A file of 2 GiB that was laid out, on each filesystem, is mapped by two faults."""
    why = gib.unfit(GIANT)
    if why:
        raise Skip(why)
    for name in ("xfs-1g", "ext4-1g"):
        with _device(True, GIANT):
            fs = Filesystem(VARIANTS[name], GIANT, MOUNT)
            fs.make()
            fs.mount()
            try:
                path = f"{MOUNT}/file"
                out = _succeeds("layout", "create", path, "2G")
                check("GiB 1: yes" in out, f"rdax layout create: {out}")
                equal(_json("layout", "check", path)["mappable"], True, "mappable")
                _has(_findings(path), "ok", "all of its 2 ranges of 1 GiB")
                stats = Stats(GIANT)
                fd = os.open(path, os.O_RDWR)
                with Map(fd, 2 * GIB, align=GIB) as m:
                    for at in range(0, 2 * GIB, GIB // 4):
                        m.write(at, b"x")
                os.close(fd)
                stats.expect(write_pud=2, write_pmd=0, write_pte=0)
            finally:
                fs.umount()


@contextlib.contextmanager
def _opened(path, *more):
    fd = os.open(path, os.O_RDWR | os.O_CREAT, *more)
    try:
        yield fd
    finally:
        os.close(fd)


@case(fs=())
def a_map_says_what_a_test_wants_to_know(t):
    """What is mapped by 2 MiB is as expected; what is not says why, and is when it was done so."""
    path = f"{MOUNT}/file"
    with _device(True), _mounted(*XFS):
        with _opened(path) as fd:
            os.pwrite(fd, pages("m", 2 * PMD // PAGE), 0)
            os.fsync(fd)
            _fails("map", path, "--expect=2M", says=["4 MiB of 4 MiB are not mapped by 2 MiB"])
            with Map(fd, 2 * PMD, skew=PAGE) as m:
                m.touch()
                _fails("map", path, "--expect=2M", says=["4 MiB of 4 MiB are not mapped by 2 MiB"])
                _, out, _ = _rdax("map", "-v", path)
                for part in ("mapped: 4 MiB by 4 KiB", "address (4 MiB)", "mmap with an address",
                             str(os.getpid()), f"{m.address:#x}"):
                    check(part in out, f"rdax map does not say '{part}', but: {out}")
        # Its entries stay for the mappings that come: that is told, with what to do.
        with _opened(path) as fd, Map(fd, 2 * PMD) as m:
            m.touch()
            _, out, _ = _rdax("map", path)
            check("smaller entries (4 MiB)" in out and "mount it again" in out, f"rdax map: {out}")
        posix.umount(MOUNT)
        run("mount", "-o", "dax=always", f"/dev/{DEVICE}", MOUNT)
        with _opened(path) as fd, Map(fd, 2 * PMD) as m:
            m.touch(write=True)
            out = _succeeds("map", path, "--expect=2M")
            check("mapped: 4 MiB by 2 MiB" in out, f"rdax map: {out}")
            found = _json("map", path)
            equal([(r["offset"], r["length"], r["entry"], r["dirty"]) for r in found["ranges"]],
                  [(0, 2 * PMD, PMD, True)], "ranges")
            (process,) = found["processes"]
            equal((process["pid"], process["open"]), (os.getpid(), [fd]), "process, descriptors")
            equal(process["mappings"][0]["address"], m.address, "address of the mapping")
            _fails("map", path, "--expect=1G", says=["are not mapped by 1 GiB"])
        _fails("map", MOUNT, says=["is no regular file"], status=2)
    _fails("map", "/proc/self/status", says=["no file on a device that is adopted"], status=2)
    _fails("map", "/nowhere", says=["/nowhere: there is no such file"], status=2)


def _on_a_terminal(*arguments, locale, columns=0):
    """What the command prints on one of so many columns; 0: it does not tell."""
    ours, its = os.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 0, columns, 0, 0))
    variables = {name: value for name, value in os.environ.items()
                 if name != "LANG" and not name.startswith("LC_")}
    try:
        subprocess.run(["rdax", *arguments], stdin=subprocess.DEVNULL, stdout=its, check=True,
                       env={**variables, **locale})
    finally:
        os.close(its)
    said = b""
    with contextlib.suppress(OSError):      # when there is no more
        while some_more := os.read(ours, 1 << 16):
            said += some_more
    os.close(ours)
    return said.decode()


@case(fs=())
def a_picture_is_what_the_terminal_has(t):
    path = f"{MOUNT}/file"
    with _device(True), _mounted(*XFS), _opened(path) as fd:
        os.pwrite(fd, pages("m", 2 * PMD // PAGE), 0)
        with Map(fd, 2 * PMD) as m:
            m.touch()
            for locale in ({"LC_ALL": "C", "LANG": "C.UTF-8"}, {"LANG": "POSIX"}, {}):
                out = _on_a_terminal("map", path, locale=locale)
                check(out.isascii() and "= 2 MiB" in out, f"with {locale}: {out}")
            out = _on_a_terminal("map", path, locale={"LANG": "C.UTF-8"})
            check("\u2593 2 MiB" in out, f"with UTF-8: {out}")
            for columns in (0, 200, 40):
                out = _on_a_terminal("map", path, locale={}, columns=columns)
                widths = [len(line) for line in out.splitlines() if line and set(line) <= set("#=-o_.")]
                equal(max(widths), min(columns or 64, 64), f"width of the picture: {out}")
        check("2 MiB each" not in _succeeds("map", path), "a picture for a program")


@case(fs=())
def a_map_is_for_everybody_who_may_read(t):
    nobody = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
    with _device(True), _mounted(*XFS) as mount:
        path = f"{mount}/file"
        with _opened(path) as fd:
            os.pwrite(fd, pages("m", PMD // PAGE), 0)
            os.fsync(fd)
            os.chmod(path, 0o644)
            with Map(fd, PMD) as m:
                m.touch()
                out = _succeeds("map", path, prefix=nobody)
                check("mapped: 2 MiB by 2 MiB" in out and "may not be looked at" in out, f"rdax map: {out}")
            os.chmod(path, 0)
            _fails("map", path, says=["you may not read it"], status=2, prefix=nobody)


@case(fs=())
def a_truncate_that_is_blocked_is_found(t):
    """Which task waits, for which page of which file, and which process has it."""
    reader, writer = os.pipe()
    with _device(True), _mounted(*XFS) as mount, _opened(f"{mount}/file") as fd:
        path = f"{mount}/file"
        os.pwrite(fd, pages("w", PMD // PAGE), 0)
        with Map(fd, PMD) as m:
            m.touch(write=True)
            equal(posix.vmsplice(writer, m.address + PAGE, PAGE), PAGE, "bytes in the pipe")
        out = _succeeds("who", path)
        check("nobody waits" in out and str(os.getpid()) in out, f"rdax who: {out}")

        def cut():
            os.ftruncate(fd, 0)

        task = Task(cut)
        try:
            task.blocked_in("ftruncate")
            for target in (path, DEVICE, f"/dev/{DEVICE}"):
                found = _json("who", target)
                (wait,) = found["waits"]
                equal((wait["pid"], wait["what"], wait["inode"], wait["references"]),
                      (task.pid, "truncate or the like", os.fstat(fd).st_ino, 1),
                      f"the wait of {target}")
                check(os.getpid() in [process["pid"] for process in found["processes"]],
                      f"the process that has the file is not found: {found}")
                out = _succeeds("who", target)
                check("truncate or the like" in out and str(task.pid) in out, f"rdax who: {out}")
            equal(len(_json("who")["waits"]), 1, "waits of all devices")
            equal(len(_json("who", OTHER)["waits"]), 0, "waits of another device")
        finally:
            os.read(reader, PAGE)
            task.result()
        check("nobody waits" in _succeeds("who", path), "rdax who tells of what is over")
    _fails("who", "/nowhere", says=["there is no such file or device"])
    _fails("who", "/tmp", says=["neither a file nor a device"])


@case(fs=(), timeout=240)
def a_disk_answers_for_its_partitions(t):
    """Who waits for a page of a filesystem on one, and who has it, is asked of either; each is named."""
    reader, writer = os.pipe()
    with _device(False), device.partition(DEVICE) as part, _device(True, part), \
            _mounted(*VARIANTS["ext4"].mkfs, name=part) as mount, _opened(f"{mount}/file") as fd:
        os.pwrite(fd, pages("w", PMD // PAGE), 0)
        with Map(fd, PMD) as m:
            m.touch(write=True)
            equal(posix.vmsplice(writer, m.address + PAGE, PAGE), PAGE, "bytes in the pipe")
        out = _succeeds("who", DEVICE)
        check("nobody waits" in out and part in out, f"rdax who: {out}")
        task = Task(os.ftruncate, fd, 0)
        try:
            task.blocked_in("ftruncate")
            for target in (DEVICE, part):
                found = _json("who", target)
                (wait,) = found["waits"]
                equal((wait["pid"], wait["blockdev"]), (task.pid, part), f"the wait of {target}")
                check((os.getpid(), part) in [(user["pid"], user["blockdev"]) for user in found["processes"]],
                      f"the process that has the file is not found: {found}")
                out = _succeeds("who", target)
                check(f" {part} " in out and "truncate or the like" in out, f"rdax who: {out}")
            equal(_json("who", DEVICE)["devices"], [{"blockdev": DEVICE}, {"blockdev": part}], "devices")
            equal(_json("who", OTHER)["waits"], [], "waits of another device")
        finally:
            os.read(reader, PAGE)
            task.result()


def _splice(mount, pipe, **place):
    """Put a page of a new file into a pipe; the file is mapped and open no more. Returns its address in
    memory."""
    with _opened(f"{mount}/held") as fd:
        os.pwrite(fd, pages("s", PMD // PAGE), 0)
        with Map(fd, PMD, **place) as m:
            m.touch(write=True)
            equal(posix.vmsplice(pipe, m.address + PAGE, PAGE), PAGE, "bytes in the pipe")
            return m.pfn(PAGE) * PAGE


def _answers(*arguments):
    """What the command says, in a process of its own: one that hangs cannot be ended."""
    status, out, err = Task(_rdax, *arguments, name=f"rdax {' '.join(arguments)}").result()
    return status, out + err


def _points_to_who(*arguments, to=f"rdax who {DEVICE}"):
    _, said = _answers(*arguments)
    check(to in said, f"rdax {' '.join(arguments)} does not point to '{to}': {said}")


def _is_told_to_be_unbound(*arguments):
    """With what that waits for, and no advice that cannot be taken now."""
    _, said = _answers(*arguments)
    for part in (f"{DEVICE}: is being unbound", f"rdax who {DEVICE}"):
        check(part in said, f"rdax {' '.join(arguments)} does not say '{part}': {said}")
    for part in (f"umount {MOUNT}", f"rdax adopt {DEVICE}", "not persistent memory"):
        check(part not in said, f"rdax {' '.join(arguments)} says '{part}': {said}")


def _unbind_waits(driver, at):
    """The commands answer while it holds the device's lock, and point to who tells more."""
    reader, writer = os.pipe()
    with _device(True):
        run(*VARIANTS["ext4"].mkfs, f"/dev/{DEVICE}")
        os.makedirs(MOUNT, exist_ok=True)
        run("mount", "-o", "dax=always", f"/dev/{DEVICE}", MOUNT)
        held = _splice(MOUNT, writer, skew=PAGE)
        unbind = Task(write, f"{driver}/unbind", at, name="unbind")
        try:
            wait_for(lambda: any(wait["what"] == "unbind" for wait in _json("who")["waits"]), "the wait")
            for arguments in (("list",), ("doctor",), ("doctor", DEVICE), ("doctor", MOUNT)):
                _is_told_to_be_unbound(*arguments)
            for arguments in (("list", "--json"), ("stat",), ("release", DEVICE), ("adopt", DEVICE),
                              ("map", f"{MOUNT}/held"), ("who", f"{MOUNT}/held"), ("boot", DEVICE)):
                _answers(*arguments)
            _, said = _answers("who", DEVICE)
            check("unbind" in said and str(unbind.pid) in said, f"rdax who: {said}")
            (wait,) = _json("who", DEVICE)["waits"]
            equal((wait["physical"], wait["references"], wait["device_type"]), (held, 1, "block"),
                  "page, references, type of the device")
            equal(_json("who", DEVICE)["unbinding"], [DEVICE], "devices that are being unbound")
            check(not unbind.done(), "the unbind has not waited")
        finally:
            os.read(reader, PAGE)
            unbind.result()
            posix.umount(MOUNT)
            # What is left of it.
            write(f"{CONFIG}/{DEVICE}/adopt", "0")
            device.bind(DEVICE, driver, at)


@case(fs=(), timeout=240)
def an_unbind_that_waits_holds_nobody_up(t):
    _unbind_waits(*device.driver_of(DEVICE))


@case(fs=(), timeout=240)
def an_unbind_of_a_region_is_called_so(t):
    """Which takes away first what sysfs tells of its devices."""
    path = os.path.dirname(os.path.realpath(f"/sys/block/{DEVICE}/device"))
    _unbind_waits(os.path.realpath(f"{path}/driver"), os.path.basename(path))


@case(fs=(), timeout=240)
def an_unmount_that_waits_is_pointed_to(t):
    """It is in no list of mounts any more, and the device is busy: that has a reason which can be asked for."""
    reader, writer = os.pipe()
    with _device(True):
        run(*XFS, f"/dev/{DEVICE}")
        os.makedirs(MOUNT, exist_ok=True)
        run("mount", "-o", "dax=always", f"/dev/{DEVICE}", MOUNT)
        _splice(MOUNT, writer)
        unmount = Task(posix.umount, MOUNT, name="umount")
        try:
            unmount.blocked_in("umount2")
            _points_to_who("list")
            _points_to_who("doctor", DEVICE)
            _points_to_who("release", DEVICE)
            status, said = _answers("who", DEVICE)
            check(status == 0 and str(unmount.pid) in said, f"rdax who: {said}")
        finally:
            os.read(reader, PAGE)
            unmount.result()


@case(fs=())
def waits_of_others_are_not_denied(t):
    """Who is not told of all waits is told that."""
    nobody = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
    with _device(True):
        check("nobody waits" in _succeeds("who"), "nobody waits, and root is not told so")
        out = _succeeds("who", prefix=nobody)
        check("nobody waits" not in out and "told to root only" in out, f"rdax who: {out}")


_CLONE_FILES, _THREADS = 0x400, 40


def _start_threads(path):
    """Many threads, one of which has a table of descriptors for itself, with a file in it."""
    ready = threading.Barrier(_THREADS + 1)

    def idle():
        ready.wait()
        signal.pause()

    def apart():
        posix.unshare(_CLONE_FILES)
        with _opened(path):
            idle()

    for work in [apart] + [idle] * (_THREADS - 1):
        threading.Thread(target=work, daemon=True).start()
    ready.wait()


@case(fs=())
def descriptors_of_threads_are_read_once(t):
    """However many have the same; and what one has for itself is found."""
    reader, writer = os.pipe()
    with _device(True), _mounted(*XFS) as mount:
        path = f"{mount}/file"
        with _opened(path):
            pass

        def have_threads():
            _start_threads(path)
            os.write(writer, b"x")
            signal.pause()

        with Calls("proc_fd_link") as calls:
            _json("who", path)
            before = calls.count()
        task = Task(have_threads)
        os.read(reader, 1)
        descriptors = len(os.listdir(f"/proc/{task.pid}/fd"))
        with Calls("proc_fd_link") as calls:
            found = [process for process in _json("who", path)["processes"] if process["pid"] == task.pid]
            added = calls.count() - before
        task.kill()
        task.signalled()
        equal(len(found), 1, "the process with the thread that has the file")
        # There are two tables, and a descriptor may be looked at twice.
        check(0 < added <= 10 * descriptors,
              f"{added} looks more at the {descriptors} descriptors of {_THREADS} threads")


@case(fs=())
def files_of_a_ring_are_found_by_any_path(t):
    """By a hard link, by another mount, and of a process that has closed its descriptor of the file."""
    other = f"{MOUNT}-bound"
    with _device(True), _mounted(*XFS) as mount:
        with _opened(f"{mount}/file"):
            os.link(f"{mount}/file", f"{mount}/link")
        os.makedirs(other, exist_ok=True)
        run("mount", "--bind", mount, other)
        try:
            for path in (f"{mount}/file", f"{mount}/link", f"{other}/file"):
                with _opened(path) as fd:
                    ring = posix.register_file(fd)
                try:
                    for asked in (f"{mount}/file", f"{mount}/link", DEVICE):
                        found = {process["pid"]: process["io_uring"]
                                 for process in _json("who", asked)["processes"]}
                        equal(found.get(os.getpid()), [ring], f"rings with {path}, asked of {asked}")
                finally:
                    posix.close_ring_with_files(ring)
        finally:
            posix.umount(other)


@case(fs=())
def files_of_a_ring_below_a_mount_are_not_taken_for_others(t):
    """What is mounted over a file of the root filesystem has one of the same name."""
    hidden = f"{MOUNT}/file"
    os.makedirs(MOUNT, exist_ok=True)
    for is_hidden in (False, True):
        with contextlib.ExitStack() as stack:
            if is_hidden:
                stack.callback(os.unlink, hidden)
                with _opened(hidden) as fd:
                    ring = posix.register_file(fd)
                stack.callback(posix.close_ring_with_files, ring)
            stack.enter_context(_device(True))
            stack.enter_context(_mounted(*XFS))
            with _opened(hidden) as fd:
                if not is_hidden:
                    ring = posix.register_file(fd)
                    stack.callback(posix.close_ring_with_files, ring)
            found = _json("who", hidden)
            rings = [process["io_uring"] for process in found["processes"] if process["pid"] == os.getpid()]
            unclear = os.getpid() in [process["pid"] for process in found["unclear_processes"]]
            equal((rings, unclear), ([], True) if is_hidden else ([[ring]], False), "rings, what is unclear")


@contextlib.contextmanager
def _overlaid(lower, upper, work):
    """Where these are mounted as an overlay."""
    merged = f"{MOUNT}-merged"
    for directory in (lower, upper, work, merged):
        os.makedirs(directory, exist_ok=True)
    run("mount", "-t", "overlay", "-o", f"lowerdir={lower},upperdir={upper},workdir={work}", "overlay", merged)
    try:
        yield merged
    finally:
        posix.umount(merged)


def _users(asked):
    """Of this process: what it has mapped, its descriptors, and which overlays are unclear."""
    found, own = _json("who", asked), os.getpid()
    processes = [process for process in found["processes"] if process["pid"] == own]
    unclear = [process.get("overlay") for process in found["unclear_processes"] if process["pid"] == own]
    return ([vma["address"] for process in processes for vma in process["mappings"]],
            [fd for process in processes for fd in process["open"]], unclear)


@case(fs=())
def users_through_an_overlay_are_found(t):
    """By the path there, in the layers: /proc tells the overlay's device and inode."""
    with _device(True), _mounted(*XFS) as mount:
        lower, upper = f"{mount}/lower", f"{mount}/upper"
        os.makedirs(lower)
        for name in ("file", "other"):
            with _opened(f"{lower}/{name}") as fd:
                os.ftruncate(fd, PMD)
        with _overlaid(lower, upper, f"{mount}/work") as merged:
            fd = os.open(f"{merged}/file", os.O_RDONLY)
            try:
                with Map(fd, PMD, prot=posix.PROT_READ) as m:
                    m.touch()
                    mine = ([m.address], [fd], [])
                    for asked in (f"{lower}/file", DEVICE):
                        equal(_users(asked), mine, f"users of {asked}")
                    equal(_users(f"{lower}/other"), ([], [], []), "users of another file")
                    (process,) = _json("map", f"{lower}/file")["processes"]
                    equal(process["mappings"][0]["address"], m.address, "address that rdax map tells")
                    # What was written since is in another file; which of them is mapped is not seen.
                    with _opened(f"{merged}/file") as written:
                        os.pwrite(written, b"x", 0)
                    for asked in (f"{lower}/file", f"{upper}/file"):
                        equal(_users(asked), ([], [], [merged]), f"users of {asked}, which was copied up")
                        check(f"the overlay on {merged}" in _succeeds("who", asked), "nothing is said of it")
            finally:
                os.close(fd)
            # One that was made there.
            with _opened(f"{merged}/new") as fd:
                os.ftruncate(fd, PMD)
                with Map(fd, PMD) as m:
                    m.touch(write=True)
                    equal(_users(f"{upper}/new"), ([m.address], [fd], []), "users of a new file")


@case(fs=())
def mapped_holes_are_mapped(t):
    """Zeroes are mapped, too, and by which size."""
    path = f"{MOUNT}/hole"
    with _device(True), _mounted(*XFS):
        with _opened(path) as fd:
            os.ftruncate(fd, 2 * PMD)
            _fails("map", path, "--expect=2M", says=["4 MiB of 4 MiB are not mapped by 2 MiB"])
            with Map(fd, 2 * PMD) as m:
                m.touch()
                by_2m = "mapped: 4 MiB by 2 MiB" in _rdax("map", path)[1]
                if by_2m:
                    _succeeds("map", path, "--expect=2M")
            with Map(fd, 2 * PMD, skew=PAGE) as m:
                m.touch()
                _, out, _ = _rdax("map", path)
                check("mapped: 4 MiB by 4 KiB" in out, f"rdax map: {out}")
            _, out, _ = _rdax("map", path)
            check("mapped: 4 MiB not mapped" in out, f"rdax map, of what is not mapped any more: {out}")
            check(by_2m, "2 MiB of zeroes are not mapped at once")
