# SPDX-License-Identifier: GPL-2.0
"""A user without any right who tries to make others wait, lose data, read theirs, or the kernel warn.

Each case says what he tries. Files of his own, files that he may only read, and files that a victim
uses at the same time; entries of every order.
"""

import ctypes
import errno
import os
import random
import resource
import signal
import socket
import struct
import subprocess

from lib import device, gib, native, posix, task
from lib.check import Failure, Skip, check, equal, same_bytes
from lib.device import wait_for
from lib.gib import GibMap
from lib.mapping import Map
from lib.pattern import page, pages
from lib.posix import GIB, NOBODY, PAGE, PMD
from lib.runner import case
from lib.space import free_blocks
from lib.task import Task
from lib.trace import Pages
from lib.uffd import Protected

# System calls at random, if $ATTACKS does not say otherwise.
CALLS = 3000

BYTES = 2 * PMD
COUNT = BYTES // PAGE
# Pages at the edges of what the calls below are about, and elsewhere.
SPOTS = [0, 1, 300, 507, 508, 511, 512, 515, 516, 700, COUNT - 1]
# The part of a mapping that the calls are about: across the border of two entries of 2 MiB.
PART = (PMD - 4 * PAGE, 8 * PAGE)


def _as_nobody(function, *arguments, **options):
    """A task that does it as a user without rights."""
    def without_rights():
        posix.become_nobody()
        return function(*arguments)

    return Task(without_rights, name=function.__name__, **options)


def _calls():
    return int(os.environ.get("ATTACKS") or CALLS)


# ---- files that nobody uses any more, with pages that somebody holds ----

def _hold(path, *, unlink=False, pipe_first=True):
    """Put a page of a file of one's own into a pipe. The descriptors of file and pipe."""
    pipe = os.pipe() if pipe_first else None
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    pipe = pipe or os.pipe()
    os.pwrite(fd, pages("h", 512), 0)
    with Map(fd, PMD) as m:
        posix.vmsplice(pipe[1], m.address + 5 * PAGE, PAGE)
    if unlink:
        os.unlink(path)
    return fd, pipe


def _own_directory(t):
    path = t.path("own")
    os.mkdir(path)
    os.chown(path, NOBODY, NOBODY)
    return path


def _goes_away(who):
    """He ends, whatever he holds."""
    check(who.join(60), f"{who.name} does not go away:\n{task.describe(who.pid)}")


def _hold_and_end(path, pipe_first):
    _hold(path, unlink=True, pipe_first=pipe_first)
    os._exit(0)


def _hold_and_pause(path, pipe_first, ready):
    held = _hold(path, unlink=True, pipe_first=pipe_first)
    os.write(ready, b"r")
    signal.pause()
    return len(held)


@case(timeout=200)
def exit_with_a_page_of_a_removed_file_in_a_pipe(t):
    """Pipe and file are closed at the exit, in either order, and the one holds a page of the other."""
    own = _own_directory(t)
    t.sync()
    before = free_blocks(t.dir)
    for number, first in enumerate((True, False)):
        _goes_away(_as_nobody(_hold_and_end, f"{own}/{number}", first))
    for number, first in enumerate((True, False)):
        reading, writing = os.pipe()
        killed = _as_nobody(_hold_and_pause, f"{own}/{number}", first, writing)
        os.read(reading, 1)
        killed.kill()
        _goes_away(killed)
    wait_for(lambda: free_blocks(t.dir) > before - 64, "free blocks")


@case(timeout=200)
def two_exit_with_pages_of_each_others_removed_files(t):
    own = _own_directory(t)
    both = socket.socketpair()
    reading, writing = os.pipe()

    def swap(number):
        path = f"{own}/{number}"
        fd, pipe = _hold(path, unlink=True)
        socket.send_fds(both[number], [b"p"], [pipe[0]])
        for end in pipe:
            os.close(end)
        other = socket.recv_fds(both[number], 1, 1)[1][0]
        os.write(writing, b"r")
        signal.pause()
        return fd + other

    tasks = [_as_nobody(swap, number) for number in (0, 1)]
    for _ in tasks:
        os.read(reading, 1)
    for end in both:
        end.close()
    for one in tasks:
        one.kill()
    for one in tasks:
        _goes_away(one)


@case(timeout=200)
def removing_his_file_is_waiting_for_nobody(t):
    """Somebody else removes a file whose page he has in a pipe: at once. The page stays what it was,
    and the blocks come free when it is let go of; nobody who unmounts is told that all is done
    before."""
    own = _own_directory(t)
    done, go_on = os.pipe(), os.pipe()

    def attacker():
        fd, pipe = _hold(f"{own}/file")
        os.close(fd)
        os.write(done[1], b"d")
        os.read(go_on[0], 1)
        first = os.read(pipe[0], PAGE).decode("latin-1")
        os.close(go_on[0])
        return first

    t.sync()
    holder = _as_nobody(attacker)
    os.read(done[0], 1)
    t.sync()
    before = free_blocks(t.dir)
    Task(os.unlink, f"{own}/file", name="unlink").result()
    # Whoever gets blocks now does not get those.
    other = t.open("other", allocate=64 * PMD)
    with Map(other, 64 * PMD) as m:
        m.touch(write=True, step=PMD)
        m.write(0, pages("v", 512))
    os.fsync(other)
    os.close(other)
    os.unlink(t.path("other"))
    t.sync()
    check(free_blocks(t.dir) < before + 256, "the blocks came free while a page was held")
    unmounting = Task(t.fs.umount, name="umount")
    unmounting.blocked_in("umount2")
    os.write(go_on[1], b"g")
    same_bytes(holder.result().encode("latin-1"), page("h", 5), "what is in the pipe")
    unmounting.result()
    t.fs.mount()
    wait_for(lambda: free_blocks(t.dir) > before + 256, "free blocks")


@case(timeout=200)
def many_removed_files_with_pages_held(t):
    """As many as he can get descriptors and room in pipes for; then he is killed."""
    own = _own_directory(t)
    reading, writing = os.pipe()
    t.sync()
    before = free_blocks(t.dir)

    def attacker():
        pipe = None
        for number in range(300):
            if number % 15 == 0:
                pipe = os.pipe()
            fd = os.open(f"{own}/{number}", os.O_RDWR | os.O_CREAT)
            os.write(fd, page("m", number))
            with Map(fd, PAGE) as m:
                posix.vmsplice(pipe[1], m.address, PAGE)
            os.unlink(f"{own}/{number}")
            os.close(fd)
        os.write(writing, b"r")
        signal.pause()

    holder = _as_nobody(attacker)
    os.read(reading, 1)
    check(free_blocks(t.dir) <= before - 300, "blocks came free while their pages were held")
    # All others go on.
    fd = t.open("victim", allocate=PMD)
    os.pwrite(fd, pages("v", 512), 0)
    os.fsync(fd)
    holder.kill()
    _goes_away(holder)
    os.unlink(t.path("victim"))
    os.close(fd)
    wait_for(lambda: t.sync() or free_blocks(t.dir) > before - 64, "free blocks")


# ---- every call, on every order, before and after a fork ----

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
    "smaps": _proc("smaps"), "numa_maps": _proc("numa_maps"),
    **{f"clear_refs {n}": _proc("clear_refs", str(n)) for n in range(1, 6)},
}


def _look(m, spots, wanted, what):
    """What can be seen of the file is what it has."""
    for spot in spots:
        _, fault = m.load(spot * PAGE)
        if not fault.signal:
            same_bytes(m.read(spot * PAGE, 8), wanted(spot), f"page {spot} {what}")


def _store(m, spots):
    """Store what is there already, where stores are possible."""
    for spot in spots:
        value, fault = m.load(spot * PAGE + 7)
        if not fault.signal:
            m.store(spot * PAGE + 7, value)


def _close(m):
    if hasattr(m, "protected"):
        m.protected.__exit__()
    m.unmap()
    for fd in getattr(m, "pipes", []):
        os.close(fd)


def _try(fd, make, names, part, spots, wanted, write):
    """Some operations on a mapping; whether the last was not refused."""
    m = make()
    m.file = fd
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


def _all_calls(t, fd, makes, part, spots, wanted, pairs):
    chance = random.Random(t.settings.seed)
    done = set()
    for make in makes:
        for name in OPERATIONS:
            if _try(fd, make, [name], part, spots, wanted, bool(chance.getrandbits(1))):
                done.add(name)
    for _ in range(pairs):
        names = chance.sample(list(OPERATIONS), 3)
        _try(fd, chance.choice(makes), names, part, spots, wanted, bool(chance.getrandbits(1)))
    return sorted(done)


def _same_file(t, written):
    fd = t.open(size=BYTES, allocate=BYTES if written else None)
    data = pages("a", COUNT) if written else bytes(BYTES)
    if written:
        os.pwrite(fd, data, 0)
    os.fchmod(fd, 0o666)
    return fd, data


# What every kernel of the series lets anybody do.
EXPECTED = {"madvise 4", "madvise 22", "madvise 102", "madvise 103", "mprotect none", "move",
            "munmap", "mlock on fault", "vmsplice", "process_vm_readv", "smaps", "msync"}


@case(timeout=300)
def every_call_on_a_part_of_every_order(t):
    """Each call for a part of a mapping, alone and after others, and forks around it: what is seen
    is what the file has, and in the end nobody holds a page."""
    fd, data = _same_file(t, True)
    makes = [lambda: Map(fd, BYTES), lambda: Map(fd, BYTES, skew=PAGE)]
    with Map(fd, BYTES) as m:
        m.touch()
        pfns = m.pfns()
    done = _as_nobody(_all_calls, t, fd, makes, PART, SPOTS,
                      lambda spot: data[spot * PAGE:][:8], 30).result(timeout=250)
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
    _as_nobody(_all_calls, t, reader, makes, PART, SPOTS, lambda spot: bytes(8),
               20).result(timeout=250)
    same_bytes(os.pread(fd, BYTES, 0), data, "the file")
    equal(posix.extents(fd), [], "blocks of a file that nobody has written to")


@case(fs=("xfs-1g", "ext4-1g"), timeout=400)
def every_call_on_a_part_of_a_gigabyte(t):
    fd = gib.borrow(t)
    os.fchmod(fd, 0o666)
    first = gib.frame(t, fd)
    middle = gib.PAGES // 2
    spots = [0, 1, 511, middle - 4, middle - 1, middle, middle + 3, middle + 4, gib.PAGES - 1]

    def wanted(spot):
        return struct.pack("Q", 1 << 56 | spot << 16)

    done = _as_nobody(_all_calls, t, fd, [lambda: GibMap(fd)], (GIB // 2 - 4 * PAGE, 8 * PAGE),
                      spots, wanted, 20).result(timeout=350)
    check(EXPECTED <= set(done), f"refused: {EXPECTED - set(done)}")
    Pages().check_idle([first, first + 1, first + middle], "in the end")
    gib.expect_read(fd, 1)


# ---- memory that somebody looks at ----

DAX_ONLY = "0x180"


@case(timeout=120)
def core_has_what_the_files_have(t):
    """A process dies with mappings of every order, and its core goes to the same filesystem."""
    pattern = device.read("/proc/sys/kernel/core_pattern")
    if pattern.startswith("|"):
        raise Skip("cores go to a program")
    fd, data = _same_file(t, True)
    own = _own_directory(t)

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
    died = _as_nobody(dies)
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


# ---- others made to wait ----

def _stream_of_faults(path, started):
    fd = os.open(path, os.O_RDONLY)
    with Map(fd, BYTES, prot=posix.PROT_READ) as m, \
            Map(fd, BYTES, skew=PAGE, prot=posix.PROT_READ) as small:
        os.write(started, b"s")
        while True:
            for one in (m, small):
                for spot in SPOTS:
                    one.load(spot * PAGE)
                one.advise(posix.MADV_DONTNEED)


@case(timeout=180)
def stream_of_faults_holds_nobody_up(t):
    """Readers who fault pages in all the time: fsync, truncate and writes come to an end."""
    fd = t.open(allocate=BYTES)
    os.fchmod(fd, 0o644)
    data = pages("v", COUNT)
    reading, writing = os.pipe()
    readers = [_as_nobody(_stream_of_faults, t.path(), writing) for _ in range(2)]
    for _ in readers:
        os.read(reading, 1)

    def victim():
        with Map(fd, BYTES) as m:
            for _ in range(8):
                os.pwrite(fd, data, 0)
                for spot in SPOTS:
                    m.store(spot * PAGE, 7)
                    m.store(spot * PAGE, data[spot * PAGE])
                os.fsync(fd)
                posix.fallocate(fd, posix.PUNCH_HOLE | posix.KEEP_SIZE, PMD, PAGE)
            os.pwrite(fd, data, 0)

    Task(victim).result(timeout=120)
    for reader in readers:
        reader.kill()
        equal(reader.signalled(), signal.SIGKILL, "signal")
    same_bytes(os.pread(fd, BYTES, 0), data, "the file")


def _stream_of_pins(path, length, started):
    """Short references to pages of a file, taken and dropped again and again, for ever."""
    fd = os.open(path, os.O_RDONLY)
    m = Map(fd, length, prot=posix.PROT_READ)
    target = posix.mmap(None, length, posix.PROT_RW, posix.MAP_PRIVATE | posix.MAP_ANONYMOUS)
    local = (ctypes.c_uint64 * 2)(target, length)
    remote = (ctypes.c_uint64 * 2)(m.address, length)
    os.write(started, b"s")
    while True:
        try:
            posix.syscall(310, os.getpid(), ctypes.addressof(local), 1, ctypes.addressof(remote),
                          1, 0)
        except OSError:
            pass        # The file is cut just now.


def _among_pins(t, length, victim):
    """The victim does it while others take and drop references to the file."""
    reading, writing = os.pipe()
    readers = [_as_nobody(_stream_of_pins, t.path(), length, writing) for _ in range(3)]
    for _ in readers:
        os.read(reading, 1)
    Task(victim).result(timeout=60)
    for reader in readers:
        reader.kill()
        equal(reader.signalled(), signal.SIGKILL, "signal")


@case(timeout=180)
def stream_of_references_holds_no_truncate_up(t):
    """Readers who pin the file's pages all the time, each time for a moment: whoever wants nobody
    to hold a page gets there."""
    fd = t.open(allocate=BYTES)
    os.fchmod(fd, 0o644)
    data = pages("v", COUNT)
    os.pwrite(fd, data, 0)

    def victim():
        for number in range(8):
            os.ftruncate(fd, (number + 1) * 50 * PAGE)
            posix.fallocate(fd, posix.PUNCH_HOLE | posix.KEEP_SIZE, 0, 9 * PAGE)
            os.ftruncate(fd, 0)
            os.pwrite(fd, data, 0)
        os.fsync(fd)

    _among_pins(t, BYTES, victim)
    same_bytes(os.pread(fd, BYTES, 0), data, "the file")


@case(fs=("xfs",), timeout=180)
def stream_of_references_holds_no_copy_up(t):
    """The same, and whoever writes to blocks that another file has, too, or stores to them, or zeroes
    or unshares them, gets copies of them."""
    fd = t.open(allocate=PMD)
    os.fchmod(fd, 0o644)
    before, data = pages("b", 512), pages("v", 512)
    clones = []

    def share():
        os.pwrite(fd, before, 0)
        clones.append(t.open(f"clone{len(clones)}"))
        posix.clone(fd, clones[-1])

    def victim():
        for write in (lambda: os.pwrite(fd, data, 0),
                      lambda: [m.write(at, page("s")) for at in (0, 7 * PAGE, PMD - PAGE)],
                      lambda: posix.fallocate(fd, posix.ZERO_RANGE, 7 * PAGE, 5 * PAGE),
                      lambda: posix.fallocate(fd, posix.UNSHARE_RANGE, 0, PMD)):
            share()
            with Map(fd, PMD) as m:
                write()
        os.pwrite(fd, data, 0)
        os.fsync(fd)
        for clone in clones:
            same_bytes(os.pread(clone, PMD, 0), before, "a clone")

    share()
    _among_pins(t, PMD, victim)
    same_bytes(os.pread(fd, PMD, 0), data, "the file")


@case(fs=("xfs",))
def reader_who_holds_shared_pages_delays_a_writer_at_most(t):
    """He clones a file that he may read, and has pages of it in a pipe: who writes there waits for him
    and can be killed, and gets on when he lets go. What is in the pipe stays what it was."""
    fd = t.open(allocate=PMD)
    os.fchmod(fd, 0o644)
    before, after = pages("b", 512), pages("n", 512)
    os.pwrite(fd, before, 0)
    os.fsync(fd)
    own = _own_directory(t)
    done, go_on = os.pipe(), os.pipe()

    def attacker():
        source = os.open(t.path(), os.O_RDONLY)
        target = os.open(f"{own}/clone", os.O_RDWR | os.O_CREAT, 0o600)
        posix.clone(source, target)
        pipe = os.pipe()
        with Map(source, PMD, prot=posix.PROT_READ) as m:
            for i in range(8):
                posix.vmsplice(pipe[1], m.address + i * PAGE, PAGE)
        os.write(done[1], b"d")
        os.read(go_on[0], 1)
        return os.read(pipe[0], 8 * PAGE).decode("latin-1")

    held = _as_nobody(attacker)
    os.read(done[0], 1)

    def victim():
        os.pwrite(fd, after[:4 * PAGE], 0)
        with Map(fd, PMD) as m:
            m.write(4 * PAGE, after[4 * PAGE:])
        os.fsync(fd)

    killed = Task(victim)
    killed.blocked_in("pwrite64")
    killed.kill()
    equal(killed.signalled(), signal.SIGKILL, "signal")
    writer = Task(victim)
    writer.blocked_in("pwrite64")
    os.write(go_on[1], b"g")
    same_bytes(held.result().encode("latin-1"), before[:8 * PAGE], "what is in the pipe")
    writer.result()
    same_bytes(os.pread(fd, PMD, 0), after, "the file")
    with open(f"{own}/clone", "rb") as f:
        same_bytes(f.read(), before, "the clone")


def _cut(fd, _path):
    os.ftruncate(fd, PAGE)


def _cut_by_opening(_fd, path):
    os.open(path, os.O_RDWR | os.O_TRUNC)


def _punch(fd, _path):
    posix.fallocate(fd, posix.PUNCH_HOLE | posix.KEEP_SIZE, 0, PMD)


def _collapse(fd, _path):
    posix.fallocate(fd, posix.COLLAPSE_RANGE, 0, PMD)


def _clone_over(other):
    def call(fd, path):
        posix.clone(os.open(os.path.join(os.path.dirname(path), other), os.O_RDWR), fd)
    call.__name__ = f"_clone_over_from_{other}"
    return call


def _clone_from(fd, path):
    posix.clone(fd, os.open(os.path.join(os.path.dirname(path), "low"), os.O_RDWR))


def _write_over(fd, _path):
    os.pwrite(fd, pages("a", 16), 0)


def _zero(fd, _path):
    posix.fallocate(fd, posix.ZERO_RANGE, 0, 8 * PAGE)


WAITING = {_cut: "ftruncate", _cut_by_opening: "openat", _punch: "fallocate", _collapse: "fallocate",
           _zero: "fallocate"}
WAITING_ON_XFS = {_clone_over("low"): "ioctl", _clone_over("high"): "ioctl", _clone_from: "ioctl",
                  _write_over: "pwrite64"}


def _wait_for_himself(path, call):
    """He has a page of the file in a pipe, and makes a call that waits until nobody holds it."""
    fd = os.open(path, os.O_RDWR)
    pipe = os.pipe()
    with Map(fd, PMD) as m:
        equal(posix.vmsplice(pipe[1], m.address + 5 * PAGE, PAGE), PAGE, "bytes in the pipe")
    call(fd, path)


def _use_a_file(path, at):
    """What its other users do with a file, and who freezes the filesystem."""
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, b"v", at)
    equal(os.pread(fd, 1, at), b"v", "what was written")
    with Map(fd, PAGE, offset=PMD) as m:
        m.store(1, 7)
    os.fsync(fd)
    os.fstat(fd)
    os.fchmod(fd, 0o666)
    os.close(fd)
    device.run("fsfreeze", "--freeze", os.path.dirname(path))
    device.run("fsfreeze", "--unfreeze", os.path.dirname(path))


@case(timeout=300)
def who_waits_for_his_own_page_holds_nobody_up(t):
    """He may write to a file, and holds a page of it, so that whatever takes its blocks waits for him.
    His own calls wait, and can be killed; all others get on with the file meanwhile."""
    os.chmod(t.dir, 0o755)
    t.open("low", allocate=PMD)
    fd = t.open(allocate=BYTES)
    t.open("high", allocate=PMD)
    for name in ("low", "file", "high"):
        os.chmod(t.path(name), 0o666)
    data = pages("v", COUNT)
    os.pwrite(fd, data, 0)
    calls = WAITING | (WAITING_ON_XFS if t.variant.reflink else {})
    for call, number in calls.items():
        if call is _write_over:
            posix.clone(fd, t.open("clone"))
        attacker = _as_nobody(_wait_for_himself, t.path(), call)
        try:
            attacker.blocked_in(number)
            # In the middle of the wait, however long it has been.
            Task(_use_a_file, t.path(), BYTES - 1, name=f"a user beside {call.__name__}").result()
            attacker.blocked_in(number)
        finally:
            attacker.kill()
        equal(attacker.signalled(), signal.SIGKILL, f"signal for {call.__name__}")
    want = bytearray(data)
    want[-1], want[PMD + 1] = ord("v"), 7
    same_bytes(os.pread(fd, BYTES, 0), bytes(want), "the file")


@case(fs=("xfs",), timeout=200)
def calls_that_cannot_be_made_again_give_up(t):
    """Calls that tell of errors in another way than by what they return are not made again, and end
    while their file is locked; so does a write that has written something."""
    fd, other = t.open(allocate=BYTES), t.open("other", allocate=BYTES)
    for one in (fd, other):
        os.pwrite(one, pages("v", COUNT), 0)
    pipe = os.pipe()
    with Map(fd, BYTES) as m:
        posix.vmsplice(pipe[1], m.address + PMD, PAGE)
    for source, target in ((fd, other), (other, fd)):
        equal(posix.dedupe(source, 0, BYTES, target, 0), (-errno.EAGAIN, 0), "status")
    os.read(pipe[0], PAGE)
    posix.clone(fd, other)
    with Map(fd, BYTES) as m:
        posix.vmsplice(pipe[1], m.address + PMD, PAGE)
    equal(os.pwrite(fd, pages("n", COUNT), 0), PMD, "bytes that were written")
    same_bytes(os.pread(fd, BYTES, 0), pages("n", 512) + pages("v", 512, 512), "the file")
    same_bytes(os.read(pipe[0], PAGE), page("v", 512), "what is in the pipe")
    equal(os.pwrite(fd, pages("n", 512, 512), PMD), PMD, "bytes that were written")
    same_bytes(os.pread(fd, BYTES, 0), pages("n", COUNT), "the file")
    same_bytes(os.pread(other, BYTES, 0), pages("v", COUNT), "the clone")


# ---- everything at random ----

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
