# SPDX-License-Identifier: GPL-2.0
"""Users who fault or pin all the time."""

import ctypes
import errno
import os
import signal

from lib import device, posix
from lib.check import equal, same_bytes
from lib.mapping import Map
from lib.pattern import page, pages
from lib.posix import PAGE, PMD
from lib.runner import case
from lib.task import Task

from .common import BYTES, COUNT, SPOTS, as_nobody, cut, own_directory, wait_for_himself


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
    readers = [as_nobody(_stream_of_faults, t.path(), writing) for _ in range(2)]
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
    readers = [as_nobody(_stream_of_pins, t.path(), length, writing) for _ in range(3)]
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
    own = own_directory(t)
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

    held = as_nobody(attacker)
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


WAITING = {cut: "ftruncate", _cut_by_opening: "openat", _punch: "fallocate", _collapse: "fallocate",
           _zero: "fallocate"}
WAITING_ON_XFS = {_clone_over("low"): "ioctl", _clone_over("high"): "ioctl", _clone_from: "ioctl",
                  _write_over: "pwrite64"}


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
        attacker = as_nobody(wait_for_himself, t.path(), call)
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
    # XFS goes by the files' numbers: which is its first one makes a difference.
    for held in (fd, other):
        with Map(held, BYTES) as m:
            posix.vmsplice(pipe[1], m.address + PMD, PAGE)
        for source, target in ((fd, other), (other, fd)):
            stats = device.Stats(t.device)
            equal(posix.dedupe(source, 0, BYTES, target, 0), (-errno.EAGAIN, 0), "status")
            # Who may only read a file can do this; it is locked meanwhile.
            stats.expect(layout_wait_ns=lambda ns: ns < 1e9)
        os.read(pipe[0], PAGE)
        # That he has given up is forgotten.
        equal(posix.dedupe(fd, 0, BYTES, other, 0)[0], posix.DEDUPE_SAME, "status")
    posix.clone(fd, other)
    with Map(fd, BYTES) as m:
        posix.vmsplice(pipe[1], m.address + PMD, PAGE)
    equal(os.pwrite(fd, pages("n", COUNT), 0), PMD, "bytes that were written")
    same_bytes(os.pread(fd, BYTES, 0), pages("n", 512) + pages("v", 512, 512), "the file")
    same_bytes(os.read(pipe[0], PAGE), page("v", 512), "what is in the pipe")
    equal(os.pwrite(fd, pages("n", 512, 512), PMD), PMD, "bytes that were written")
    same_bytes(os.pread(fd, BYTES, 0), pages("n", COUNT), "the file")
    same_bytes(os.pread(other, BYTES, 0), pages("v", COUNT), "the clone")
