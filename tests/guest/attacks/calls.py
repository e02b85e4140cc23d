# SPDX-License-Identifier: GPL-2.0
"""Every call on a part of a mapping."""

import ctypes
import os
import random
import resource
import signal
import struct
import subprocess

from lib import device, gib, native, posix, task
from lib.check import Failure, Skip, check, equal, same_bytes
from lib.gib import GibMap
from lib.mapping import Map
from lib.pattern import page, pages
from lib.posix import GIB, PAGE, PMD
from lib.runner import case
from lib.task import Task
from lib.trace import Pages
from lib.uffd import Protected

from . import transfers
from .common import BYTES, COUNT, SPOTS, as_nobody, own_directory

MADV_GUARD_INSTALL = 102

# System calls at random, if $ATTACKS does not say otherwise.
CALLS = 3000

# The part of a mapping that the calls are about: across the border of two entries of 2 MiB.
PART = (PMD - 4 * PAGE, 8 * PAGE)


def _calls():
    return int(os.environ.get("ATTACKS") or CALLS)


def _at(m, part):
    return m.address + part[0], part[1]


def _advice(number, flags=None):
    def call(m, part):
        address, length = _at(m, part)
        if flags is None:
            posix.madvise(address, length, number)
            return
        vector = (ctypes.c_uint64 * 2)(address, length)
        own = os.pidfd_open(os.getpid())
        try:
            posix.syscall(440, own, ctypes.addressof(vector), 1, number, flags)
        finally:
            os.close(own)
    return call


def _protected(prot, back):
    def call(m, part):
        m.protect(prot, *part)
        if back:
            m.protect(posix.PROT_RW, *part)
    return call


def _move(flags, new_length=None):
    def call(m, part):
        address, length = _at(m, part)
        target = new_length(length) if new_length else length
        room = posix.mmap(None, target + 2 * PMD, posix.PROT_NONE,
                          posix.MAP_PRIVATE | posix.MAP_ANONYMOUS)
        moved = posix.mremap(address, length, target, posix.MREMAP_MAYMOVE | posix.MREMAP_FIXED
                             | flags, -(-room // PMD) * PMD + address % PMD)
        value, fault = ctypes.c_uint8(), native.Fault()
        for at in range(0, min(length, target), PAGE):
            native.probe().probe_load(moved + at, value, fault)
        posix.munmap(room, target + 2 * PMD)
    return call


def _proc(name, text=None):
    def call(_m, _part):
        if text is None:
            with open(f"/proc/self/{name}", "rb") as f:
                f.read()
            return
        device.write(f"/proc/self/{name}", text)
    return call


def _spliced(m, part):
    """Held by a pipe until the mapping is gone."""
    address, length = _at(m, part)
    reading, writing = os.pipe()
    for done in range(0, min(length, 16 * PAGE), PAGE):
        posix.vmsplice(writing, address + done, PAGE)
    m.pipes = [reading, writing]


def _process_vm(*numbers):
    """Read, or read and write back what was read."""
    def call(m, part):
        address, length = _at(m, part)
        buffer = ctypes.create_string_buffer(length)
        for number in numbers:
            local = (ctypes.c_uint64 * 2)(ctypes.addressof(buffer), length)
            remote = (ctypes.c_uint64 * 2)(address, length)
            length = posix.syscall(number, os.getpid(), ctypes.addressof(local), 1,
                                   ctypes.addressof(remote), 1, 0)
    return call


def _on(number, *more):
    """A system call that takes an address and a length first."""
    def call(m, part):
        posix.syscall(number, *_at(m, part), *more)
    return call


def _move_pages(m, part):
    address, length = _at(m, part)
    count = min(length // PAGE, 16)
    at = (ctypes.c_uint64 * count)(*[address + i * PAGE for i in range(count)])
    nodes, status = (ctypes.c_int * count)(), (ctypes.c_int * count)()
    posix.syscall(279, 0, count, ctypes.addressof(at), ctypes.addressof(nodes),
                  ctypes.addressof(status), 2)


def _mbind(m, part):
    mask = ctypes.c_uint64(1)
    posix.syscall(237, *_at(m, part), 2, ctypes.addressof(mask), 8, 3)


def _remap_file_pages(m, part):
    """Each page at its own place, again."""
    posix.syscall(216, *_at(m, part), 0, part[0] // PAGE, 0)


def _mincore(m, part):
    address, length = _at(m, part)
    vector = (ctypes.c_uint8 * (length // PAGE))()
    posix.syscall(27, address, length, ctypes.addressof(vector))


def _user_fault(m, _part):
    try:
        m.protected = Protected(m)
    except Skip as skip:
        # One call less.
        raise OSError(str(skip)) from skip
    m.protected.__enter__()


def _unmapped(m, part):
    m.unmap_part(*part)


def _private_over(m, part):
    posix.mmap(m.address + part[0], part[1], posix.PROT_RW, posix.MAP_PRIVATE | posix.MAP_FIXED,
               m.file, part[0])
    m.touch(*part, write=True)


# MADV_REMOVE makes a hole, and what is to be compared would be gone.
ADVICE = [n for n in (*range(26), 102, 103) if n != 9]
OPERATIONS = {
    **{f"madvise {n}": _advice(n) for n in ADVICE},
    **{f"process_madvise {n}": _advice(n, 0) for n in (3, 20, 21, 25, 102, 103)},
    "mprotect none": _protected(posix.PROT_NONE, False),
    "mprotect none and back": _protected(posix.PROT_NONE, True),
    "mprotect read": _protected(posix.PROT_READ, False),
    "mprotect read and back": _protected(posix.PROT_READ, True),
    "move": _move(0),
    "move and leave": _move(4),
    "move and grow": _move(0, lambda length: length + PAGE),
    "move and shrink": _move(0, lambda length: length - PAGE),
    "munmap": _unmapped,
    "private mapping over it": _private_over,
    "mlock": _on(149), "mlock on fault": _on(325, 1), "munlock": _on(150),
    "msync": _on(26, 4), "msync and invalidate": _on(26, 2 | 4), "mincore": _mincore,
    "remap_file_pages": _remap_file_pages,
    "move_pages": _move_pages, "mbind": _mbind,
    "vmsplice": _spliced, "process_vm_readv": _process_vm(310),
    "process_vm_writev": _process_vm(310, 311), "userfaultfd": _user_fault,
    **{name: _proc(name) for name in ("smaps", "smaps_rollup", "maps", "numa_maps")},
    **{f"clear_refs {n}": _proc("clear_refs", str(n)) for n in range(1, 6)},
    **transfers.OPERATIONS,
}


def _where_mapped(m, spots):
    """Those of the spots where the file is mapped: where it was taken away, this process may have got
    memory for itself since."""
    inode, areas = os.fstat(m.file).st_ino, []
    with open("/proc/self/maps", encoding="utf-8") as maps:
        for line in maps:
            area, _, _, _, number, *_ = line.split()
            if int(number) == inode:
                areas.append([int(end, 16) for end in area.split("-")])
    return [spot for spot in spots
            if any(start <= m.address + spot * PAGE < end for start, end in areas)]


def _look(m, spots, wanted, what):
    """What can be seen of the file is what it has."""
    for spot in _where_mapped(m, spots):
        _, fault = m.load(spot * PAGE)
        if not fault.signal:
            same_bytes(m.read(spot * PAGE, 8), wanted(spot), f"page {spot} {what}")


def _store(m, spots):
    """Store what is there already, where stores are possible."""
    for spot in _where_mapped(m, spots):
        value, fault = m.load(spot * PAGE + 7)
        if not fault.signal:
            m.store(spot * PAGE + 7, value)


def _close(m):
    if hasattr(m, "protected"):
        m.protected.__exit__()
    m.unmap()
    for fd in getattr(m, "pipes", []):
        os.close(fd)


def _try(fd, own, make, names, part, spots, wanted, write):
    """Some operations on a mapping; whether the last was not refused."""
    m = make()
    m.file, m.own = fd, own
    done = False
    try:
        (_store if write else lambda *_: None)(m, spots)
        _look(m, spots, wanted, "before")
        for name in names:
            done = True
            try:
                OPERATIONS[name](m, part)
            except OSError:
                done = False

        def child():
            _look(m, spots, wanted, f"in a child after {names}")
            _store(m, spots)
            _close(m)

        forked = Task(child)
        _store(m, spots)
        _look(m, spots, wanted, f"after {names}")
        forked.result()
        _store(m, spots)
        _look(m, spots, wanted, f"after {names} and a fork")
    finally:
        _close(m)
    return done


def _all_calls(t, fd, makes, part, spots, wanted, pairs, without=()):
    chance = random.Random(t.settings.seed)
    own, done = t.path("own"), set()
    every = [name for name in OPERATIONS if name not in without]
    for make in makes:
        for name in every:
            if _try(fd, own, make, [name], part, spots, wanted, bool(chance.getrandbits(1))):
                done.add(name)
    for _ in range(pairs):
        names = chance.sample(every, 3)
        # Where userfaultfd protects pages of a file, of any filesystem, the kernel goes round without end
        # when guard pages are wanted: what it takes out of the page table for them leaves markers, which
        # are in their way again. Only a signal that kills ends that.
        if any(name.endswith(f" {MADV_GUARD_INSTALL}") for name in names):
            names.sort(key=lambda name: name == "userfaultfd")
        _try(fd, own, chance.choice(makes), names, part, spots, wanted,
             bool(chance.getrandbits(1)))
    return sorted(done)


def _prepare(t):
    """What he has for files of his own; and what only others can compile."""
    own_directory(t)
    native.path("uring.so")


def _same_file(t, written):
    fd = t.open(size=BYTES, allocate=BYTES if written else None)
    data = pages("a", COUNT) if written else bytes(BYTES)
    if written:
        os.pwrite(fd, data, 0)
    os.fchmod(fd, 0o666)
    return fd, data


# What every kernel of the series lets anybody do.
EXPECTED = {"madvise 4", "madvise 22", "madvise 102", "madvise 103", "mprotect none", "move",
            "munmap", "mlock on fault", "vmsplice", "process_vm_readv", "smaps", "msync",
            *transfers.EXPECTED}


@case(timeout=300)
def every_call_on_a_part_of_every_order(t):
    """Each call for a part of a mapping, alone and after others, and forks around it: what is seen
    is what the file has, and in the end nobody holds a page."""
    fd, data = _same_file(t, True)
    makes = [lambda: Map(fd, BYTES), lambda: Map(fd, BYTES, skew=PAGE)]
    with Map(fd, BYTES) as m:
        m.touch()
        pfns = m.pfns()
    _prepare(t)
    done = as_nobody(_all_calls, t, fd, makes, PART, SPOTS,
                      lambda spot: data[spot * PAGE:spot * PAGE + 8], 30).result(timeout=250)
    check(EXPECTED <= set(done), f"refused: {EXPECTED - set(done)}")
    Pages().check_idle(pfns, "in the end")
    same_bytes(os.pread(fd, BYTES, 0), data, "the file")
    os.ftruncate(fd, 0)
    Pages().check_free(pfns[::37], "after truncate")


@case(timeout=300)
def every_call_on_a_part_of_a_hole(t):
    """The same for zeroes, which no store has made memory yet, and in a file that may only be read."""
    fd, data = _same_file(t, False)
    reader = os.open(t.path(), os.O_RDONLY)
    makes = [lambda: Map(reader, BYTES, prot=posix.PROT_READ),
             lambda: Map(reader, BYTES, flags=posix.MAP_PRIVATE),
             lambda: Map(reader, BYTES, skew=PAGE, prot=posix.PROT_READ)]
    _prepare(t)
    as_nobody(_all_calls, t, reader, makes, PART, SPOTS, lambda spot: bytes(8),
               20).result(timeout=250)
    same_bytes(os.pread(fd, BYTES, 0), data, "the file")
    equal(posix.extents(fd), [], "blocks of a file that nobody has written to")


@case(fs=("xfs",), timeout=400)
def every_call_on_a_part_of_a_clone(t):
    """The same for blocks that another file has, too, which keeps what it had."""
    fd, data = _same_file(t, True)
    other = t.open("other")

    def shared(skew):
        def make():
            os.ftruncate(fd, 0)
            posix.fallocate(fd, 0, 0, BYTES)
            os.pwrite(fd, data, 0)
            posix.clone(fd, other)
            return Map(fd, BYTES, skew=skew)
        return make

    _prepare(t)
    # Whoever has a page in a pipe, and stores to it, waits for himself.
    done = as_nobody(_all_calls, t, fd, [shared(0), shared(PAGE)], PART, SPOTS,
                     lambda spot: data[spot * PAGE:spot * PAGE + 8], 20, ["vmsplice"]).result(timeout=350)
    refused = EXPECTED - {"vmsplice", *done}
    check(not refused, f"refused: {refused}")
    same_bytes(os.pread(fd, BYTES, 0), data, "the file")
    same_bytes(os.pread(other, BYTES, 0), data, "the clone")


@case(fs=("xfs-1g", "ext4-1g"), timeout=400)
def every_call_on_a_part_of_a_gigabyte(t):
    fd = gib.borrow(t)
    os.fchmod(fd, 0o666)
    first = gib.frame(t, fd)
    middle = gib.PAGES // 2
    spots = [0, 1, 511, middle - 4, middle - 1, middle, middle + 3, middle + 4, gib.PAGES - 1]

    def wanted(spot):
        return struct.pack("Q", 1 << 56 | spot << 16)

    _prepare(t)
    done = as_nobody(_all_calls, t, fd, [lambda: GibMap(fd)], (GIB // 2 - 4 * PAGE, 8 * PAGE),
                      spots, wanted, 20).result(timeout=350)
    check(EXPECTED <= set(done), f"refused: {EXPECTED - set(done)}")
    Pages().check_idle([first, first + 1, first + middle], "in the end")
    gib.expect_read(fd, 1)


DAX_ONLY = "0x180"


@case(timeout=120)
def core_has_what_the_files_have(t):
    """A process dies with mappings of every order, and its core goes to the same filesystem."""
    pattern = device.read("/proc/sys/kernel/core_pattern")
    if pattern.startswith("|"):
        raise Skip("cores go to a program")
    fd, data = _same_file(t, True)
    own = own_directory(t)

    def dies():
        device.write("/proc/self/coredump_filter", DAX_ONLY)
        resource.setrlimit(resource.RLIMIT_CORE, (16 * PMD, 16 * PMD))
        os.chdir(own)
        with Map(fd, BYTES) as huge, Map(fd, BYTES, skew=PAGE) as small, \
                Map(fd, PMD, flags=posix.MAP_PRIVATE) as private:
            huge.touch(0, 1)
            small.touch(PMD, PMD, write=True)
            private.write(PAGE, b"p" * PAGE)
            huge.advise(17)     # MADV_DODUMP
            huge.advise(102, PMD + 7 * PAGE, PAGE)
            os.abort()

    with Map(fd, BYTES) as m:
        pfns = m.pfns() if not m.touch() else None
    died = as_nobody(dies)
    equal(died.signalled(), signal.SIGABRT, "signal")
    cores = [name for name in os.listdir(own) if "core" in name]
    equal(len(cores), 1, f"cores for the pattern {pattern}")
    with open(f"{own}/{cores[0]}", "rb") as f:
        core = f.read()
    check(core.count(data[:PMD]) == 2, "the first 2 MiB of both mappings are not in the core")
    check(core.count(data[PMD:]) == 1, "the other 2 MiB are not in the core once, but "
                                       f"{core.count(data[PMD:])} times")
    check(page("a", 0) + b"p" * PAGE + page("a", 2) in core, "the private copy is not in the core")
    Pages().check_idle(pfns, "in the end")


@case()
def file_below_an_overlay(t):
    """Files that are used through an overlay filesystem, which anybody can mount for himself."""
    for name in ("low", "up", "work", "top"):
        os.mkdir(t.path(name))
    data = pages("o", 512)
    fd = t.open("low/file", allocate=PMD)
    os.pwrite(fd, data, 0)
    top = t.path("top")
    try:
        device.run("mount", "-t", "overlay", "-o",
                   f"lowerdir={t.path('low')},upperdir={t.path('up')},workdir={t.path('work')}",
                   "overlay", top)
    except Failure as failure:
        raise Skip(f"no overlay: {failure}") from failure
    try:
        lower = os.open(f"{top}/file", os.O_RDONLY)
        with Map(lower, PMD, prot=posix.PROT_READ) as m:
            same_bytes(m.read(0, PMD), data, "mapping of the lower file")
            upper = os.open(f"{top}/file", os.O_RDWR)
            with Map(upper, PMD) as copy:
                copy.write(0, pages("u", 512))
                os.fsync(upper)
                posix.fallocate(upper, posix.PUNCH_HOLE | posix.KEEP_SIZE, 0, PAGE)
                equal(copy.load(0)[0], 0, "byte in the hole")
            same_bytes(m.read(0, PMD), data, "mapping of the lower file afterwards")
            same_bytes(os.pread(upper, PMD, 0), bytes(PAGE) + pages("u", 511, 1), "the upper file")
            os.close(upper)
        os.close(lower)
    finally:
        posix.umount(top)
    same_bytes(os.pread(fd, PMD, 0), data, "the lower file")
    with open(t.path("up/file"), "rb") as f:
        same_bytes(f.read(), bytes(PAGE) + pages("u", 511, 1), "what is on the filesystem")


@case(timeout=lambda _settings: 300 + _calls() / 100)
def calls_at_random(t):
    """Processes without rights issue system calls at random beside a victim; see lib/attack.c.

    $ATTACKS is the number of calls, 3000 in an ordinary run; 30000 or more are worth an hour that is
    left over. $ATTACKS_WITHOUT is what is left out (a list with commas).
    """
    os.chmod(t.dir, 0o755)
    command = [native.path("attack"), "-d", t.dir, "-n", str(_calls()), "-s",
               str(t.settings.seed), "-p", str(task.pace), "-x",
               os.environ.get("ATTACKS_WITHOUT", "")]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in run.stdout:
        t.note(line.rstrip())
    equal(run.wait(), 0, f"status of the attackers' program (seed {t.settings.seed})")
