# SPDX-License-Identifier: GPL-2.0
"""System calls that look into a file's tree, or into its mappings, and expect a page cache there.

What a call answers for a DAX file is often nothing of use. It has to end, to leave the file's data
and page counts alone, and the kernel's log empty. Each call meets entries of all sizes: dirty ones,
clean ones, and of holes.
"""

import ctypes
import errno
import os
import select
import socket
import struct

from lib import gib, posix
from lib.check import check, equal, same_bytes
from lib.gib import PAGES, GibMap
from lib.mapping import Map
from lib.pattern import pages
from lib.posix import GIB, PAGE, PMD
from lib.runner import case
from lib.task import Task

ALL = dict(fs=("xfs", "ext4", "xfs-1g", "ext4-1g"), timeout=120)

SMALL, SMALL_HOLE = 32, 8
SPOTS = [0, 1, 511, 512, PAGES // 2, PAGES - 1]

READAHEAD, REMAP_FILE_PAGES, MBIND, MIGRATE_PAGES, MOVE_PAGES = 187, 216, 237, 256, 279
SWAPON, MINCORE, SYNC_FILE_RANGE, MLOCK, MUNLOCK, MLOCK2 = 167, 27, 277, 149, 150, 325
MLOCKALL, MUNLOCKALL, PROCESS_VM_READV, PROCESS_VM_WRITEV = 151, 152, 310, 311
FADVISE64, CACHESTAT, SET_MEMPOLICY_HOME_NODE, PROCESS_MADVISE = 221, 451, 450, 440
PIDFD_OPEN = 434

MADV_REMOVE, MADV_SOFT_OFFLINE, GUARD_INSTALL, GUARD_REMOVE = 9, 101, 102, 103
# All but those of above, and the one that marks memory as bad.
ADVICE = [0, 1, 2, 3, 4, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.syscall.argtypes = [ctypes.c_long] * 7


def _call(number, *arguments):
    """(result, error number) of a system call whose answer is its own business."""
    result = _libc.syscall(number, *arguments, *[0] * (6 - len(arguments)))
    return result, ctypes.get_errno() if result == -1 else 0


def _address(of):
    return ctypes.addressof(of)


class _Part:
    """A file that is mapped by entries of one size."""

    def __init__(self, name, fd, m, content, covered):
        self.name, self.fd, self.map = name, fd, m
        # What the mapping has, None for a GiB in the writing of 1; the pages that entries cover.
        self.content, self.covered = content, covered

    def touch(self):
        self.map.touch(step=PAGE if self.content else PMD)

    def check(self, when):
        what = f"{self.name} {when}"
        if self.content is None:
            for spot in SPOTS:
                gib.expect(self.map, 1, spot, 1, what=what)
                gib.expect_read(self.fd, 1, spot, 1, what=what)
        else:
            same_bytes(self.map.read(0, len(self.content)), self.content, f"{what}, mapped")
            same_bytes(os.pread(self.fd, len(self.content), 0), self.content, f"{what}, read")


class _World:
    """Files with entries of all sizes that the filesystem can have, mapped."""

    def __init__(self, t):
        self.parts = []
        if t.variant.giant:
            fd = gib.borrow(t)
            m = GibMap(fd)
            m.touch(0, 1, write=True)
            self.parts.append(_Part("1 GiB", fd, m, None, PAGES))
            return
        size = (SMALL + SMALL_HOLE) * PAGE
        content = pages("s", SMALL) + bytes(SMALL_HOLE * PAGE)
        for name in ("dirty pages", "clean pages"):
            fd = t.open(name.replace(" ", "-"), size=size)
            m = Map(fd, size, skew=PAGE)
            m.write(0, content[:SMALL * PAGE])
            m.touch()
            if name.startswith("clean"):
                os.fsync(fd)
                m.touch()
            self.parts.append(_Part(name, fd, m, content, SMALL + SMALL_HOLE))
        content = pages("l", 1024) + bytes(PMD)
        fd = t.open("large", size=3 * PMD)
        m = Map(fd, 3 * PMD)
        m.write(0, content[:PMD])
        os.fsync(fd)
        m.write(PMD, content[PMD:2 * PMD])
        m.touch()
        self.parts.append(_Part("2 MiB", fd, m, content, 3 * 512))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for part in self.parts:
            part.map.unmap()
            os.close(part.fd)

    def __iter__(self):
        return iter(self.parts)

    def check(self, when):
        for part in self.parts:
            part.check(when)


def _cachestat(fd, offset=0, length=0):
    """(in the cache, dirty, in write-back, evicted, evicted lately), in pages."""
    asked, told = (ctypes.c_uint64 * 2)(offset, length), (ctypes.c_uint64 * 5)()
    result, error = _call(CACHESTAT, fd, _address(asked), _address(told), 0)
    equal((result, error), (0, 0), "cachestat")
    return tuple(told)


# ---- what looks at the tree ----

@case(**ALL)
def cachestat(t):
    """Nothing of a DAX file is in the cache; the core counts the entries as pages that were evicted."""
    with _World(t) as world:
        for when in ("mapped", "written back"):
            for part in world:
                end = part.covered * PAGE
                for offset, length in [(0, 0), (0, end), (0, PAGE), (5 * PAGE, 20 * PAGE),
                                       (end - 3 * PAGE, 3 * PAGE), (end // 2 + 77, end),
                                       (0, 2 ** 63 - 1), (end, PAGE), (end + GIB, 0)]:
                    told = _cachestat(part.fd, offset, length)
                    last = end - 1 if not length else min(end, offset + length) - 1
                    pages_there = max(0, last // PAGE - offset // PAGE + 1)
                    equal(told[:4], (0, 0, 0, pages_there),
                          f"{part.name}, {when}: {length} bytes from {offset} on")
                    check(told[4] <= pages_there, f"{part.name}: {told}")
                os.fsync(part.fd)
        world.check("afterwards")
        for part in world:
            part.map.unmap()
            equal(_cachestat(part.fd)[:4], (0, 0, 0, part.covered), "unmapped")


@case(**ALL)
def mincore(t):
    with _World(t) as world:
        for part in world:
            count = part.map.length // PAGE
            vector = (ctypes.c_uint8 * count)()
            equal(_call(MINCORE, part.map.address, part.map.length, _address(vector))[0], 0,
                  f"{part.name}: mincore")
            equal(sum(vector), count, f"{part.name}: pages that are mapped")
            with Map(part.fd, part.map.length) as other:
                _call(MINCORE, other.address, other.length, _address(vector))
                equal(sum(vector), 0, f"{part.name}: pages of a mapping without faults")
        world.check("afterwards")


@case(**ALL)
def advice_on_files(t):
    with _World(t) as world:
        for part in world:
            end = part.covered * PAGE
            for offset, length in [(0, 0), (0, end), (3 * PAGE, 9 * PAGE), (5, end - 9),
                                   (end, end)]:
                for advice in range(6):
                    equal(_call(FADVISE64, part.fd, offset, length, advice)[0], 0,
                          f"{part.name}: posix_fadvise {advice}")
                equal(_call(READAHEAD, part.fd, offset, length)[0], 0, f"{part.name}: readahead")
                for flags in range(8):
                    equal(_call(SYNC_FILE_RANGE, part.fd, offset, length, flags)[0], 0,
                          f"{part.name}: sync_file_range {flags}")
        world.check("afterwards")


@case(**ALL)
def data_and_holes(t):
    """Where data are said to be is a matter of the blocks; blocks that were never written may count as
    data once they were looked at."""
    with _World(t) as world:
        for part in world:
            end = os.fstat(part.fd).st_size
            equal(os.lseek(part.fd, 0, os.SEEK_DATA), 0, f"{part.name}: data")
            hole = os.lseek(part.fd, 0, os.SEEK_HOLE)
            check(hole >= (end if part.content is None else len(part.content.rstrip(b"\0"))),
                  f"{part.name}: a hole at {hole}")
    if t.variant.giant:
        return
    fd = t.open("unwritten", allocate=3 * PMD)
    with Map(fd, PMD, offset=PMD) as m:
        m.touch()
        at = os.lseek(fd, 0, os.SEEK_HOLE)
        equal(at, 0, "blocks that were never written: hole")
        m.write(5 * PAGE, b"data")
        check(os.lseek(fd, 0, os.SEEK_DATA) <= PMD + 5 * PAGE, "what was stored is not found")
        check(os.lseek(fd, PMD + 5 * PAGE, os.SEEK_HOLE) > PMD + 5 * PAGE, "data as a hole")


@case(**ALL)
def caches_are_dropped(t):
    """As an administrator does: pages, then inodes."""
    with _World(t) as world:
        for what in ("1", "2", "3"):
            with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as drop:
                drop.write(what)
            world.check(f"after drop_caches {what}")
        for part in world:
            equal(_cachestat(part.fd)[3], part.covered, f"{part.name}: pages that have entries")


@case(**ALL)
def swap(t):
    """A DAX file cannot be swapped to."""
    with _World(t) as world:
        for part in world:
            os.fchmod(part.fd, 0o600)
            path = os.readlink(f"/proc/self/fd/{part.fd}").encode()
            result, error = _call(SWAPON, ctypes.cast(path, ctypes.c_void_p).value, 0)
            check(result == -1 and error == errno.EINVAL, f"{part.name}: swapon: {error}")
        world.check("afterwards")


# ---- what copies ----

@case(**ALL)
def copies_by_the_kernel(t):
    """sendfile, splice, copy_file_range, to pipes, sockets, and files."""
    length = 20 * PAGE
    with _World(t) as world:
        for part in world:
            wanted = os.pread(part.fd, length, PAGE)
            pipe, into = os.pipe()
            equal(os.splice(part.fd, into, 4 * PAGE, offset_src=PAGE), 4 * PAGE, "splice")
            same_bytes(os.read(pipe, 4 * PAGE), wanted[:4 * PAGE], f"{part.name}: splice")
            equal(os.sendfile(into, part.fd, PAGE, 4 * PAGE), 4 * PAGE, "sendfile to a pipe")
            same_bytes(os.read(pipe, 4 * PAGE), wanted[:4 * PAGE], f"{part.name}: sendfile")
            os.write(into, wanted[:PAGE])
            equal(os.splice(pipe, part.fd, PAGE, offset_dst=PAGE), PAGE, "splice into the file")
            os.close(pipe)
            os.close(into)
            one, other = socket.socketpair()
            done = os.sendfile(one.fileno(), part.fd, PAGE, length)
            got = b""
            while len(got) < done:
                got += other.recv(done)
            same_bytes(got, wanted[:done], f"{part.name}: sendfile to a socket")
            one.close()
            other.close()
            copy = t.open("copy", flags=os.O_TRUNC)
            for name in ("sendfile", "copy_file_range"):
                os.ftruncate(copy, 0)
                os.lseek(copy, 0, os.SEEK_SET)
                done = 0
                # Each call copies something, up to the length.
                while done < length:
                    if name == "sendfile":
                        now = os.sendfile(copy, part.fd, PAGE + done, length - done)
                    else:
                        now = os.copy_file_range(part.fd, copy, length - done, PAGE + done, done)
                    check(now > 0, f"{part.name}: {name} ended after {done} bytes")
                    done += now
                same_bytes(os.pread(copy, length, 0), wanted, f"{part.name}: {name}")
            os.close(copy)
        world.check("afterwards")


@case(**ALL)
def memory_in_pipes(t):
    """vmsplice of what is mapped, also as a gift, and what tee and splice make of it."""
    with _World(t) as world:
        for part in world:
            wanted = part.map.read(2 * PAGE, 4 * PAGE)
            for flags in (0, 8):
                pipe, into = os.pipe()
                vector = struct.pack("QQ", part.map.address + 2 * PAGE, 4 * PAGE)
                at = ctypes.cast(vector, ctypes.c_void_p).value
                equal(_call(278, into, at, 1, flags)[0], 4 * PAGE, "vmsplice")
                second, second_into = os.pipe()
                equal(_call(276, pipe, second_into, 4 * PAGE, 0)[0], 4 * PAGE, "tee")
                copy = t.open("copy", flags=os.O_TRUNC)
                equal(os.splice(pipe, copy, 4 * PAGE, offset_dst=0), 4 * PAGE, "splice to a file")
                same_bytes(os.pread(copy, 4 * PAGE, 0), wanted, f"{part.name}: through the pipe")
                same_bytes(os.read(second, 4 * PAGE), wanted, f"{part.name}: through tee")
                for fd in (pipe, into, second, second_into, copy):
                    os.close(fd)
        world.check("afterwards")


@case(**ALL)
def memory_of_a_process(t):
    """process_vm_readv and _writev, and /proc/PID/mem."""
    with _World(t) as world:
        for part in world:
            wanted = part.map.read(PAGE, 3 * PAGE)
            buffer = ctypes.create_string_buffer(wanted, 3 * PAGE)
            here = (ctypes.c_uint64 * 2)(_address(buffer), 3 * PAGE)
            there = (ctypes.c_uint64 * 2)(part.map.address + PAGE, 3 * PAGE)
            for number in (PROCESS_VM_WRITEV, PROCESS_VM_READV):
                equal(_call(number, os.getpid(), _address(here), 1, _address(there), 1, 0)[0],
                      3 * PAGE, f"{part.name}: call {number}")
            same_bytes(buffer.raw[:3 * PAGE], wanted, f"{part.name}: process_vm_readv")
            fd = os.open("/proc/self/mem", os.O_RDWR)
            same_bytes(os.pread(fd, 3 * PAGE, part.map.address + PAGE), wanted, "mem")
            equal(os.pwrite(fd, wanted, part.map.address + PAGE), 3 * PAGE, "mem")
            os.close(fd)
        world.check("afterwards")


# ---- what works on mappings ----

@case(**ALL)
def advice_on_mappings(t):
    with _World(t) as world:
        for part in world:
            m = part.map
            for offset, length in ((0, m.length), (2 * PAGE, 7 * PAGE), (m.length // 2, PAGE)):
                at = m.address + offset // PAGE * PAGE
                for advice in ADVICE + [MADV_SOFT_OFFLINE]:
                    _call(28, at, length, advice)
                    m.touch(offset, PAGE)
                # Back to what is usual.
                for advice in (0, 11, 13, 17, 19):
                    _call(28, at, length, advice)
                part.check(f"after advice on {length} bytes at {offset}")
                part.touch()
        process = _call(PIDFD_OPEN, os.getpid(), 0)[0]
        for part in world:
            vector = (ctypes.c_uint64 * 2)(part.map.address, part.map.length)
            for advice in (3, 20, 21, 25):
                _call(PROCESS_MADVISE, process, _address(vector), 1, advice, 0)
        os.close(process)
        world.check("after process_madvise")


@case(**ALL)
def guard_pages(t):
    with _World(t) as world:
        for part in world:
            m = part.map
            for offset, length in ((0, m.length), (3 * PAGE, 5 * PAGE)):
                equal(_call(28, m.address + offset, length, GUARD_INSTALL)[0], 0, "guard")
                equal(m.load(offset)[1].signal, 11, f"{part.name}: signal at a guard page")
                equal(_call(28, m.address + offset, length, GUARD_REMOVE)[0], 0, "no guard")
                part.check("without the guard")


@case(fs=("xfs", "ext4"))
def pages_are_removed(t):
    """MADV_REMOVE punches holes."""
    with _World(t) as world:
        for part in world:
            equal(_call(28, part.map.address + 4 * PAGE, 2 * PAGE, MADV_REMOVE)[0], 0, "remove")
            part.content = (part.content[:4 * PAGE] + bytes(2 * PAGE) + part.content[6 * PAGE:])
            part.check("with a hole")


@case(**ALL)
def memory_policy(t):
    """Pages of a device stay where they are."""
    with _World(t) as world:
        node = (ctypes.c_uint64 * 1)(1)
        for part in world:
            m = part.map
            for spot in (0, 1, 7):
                addresses = (ctypes.c_uint64 * 1)(m.address + spot * PAGE)
                status = (ctypes.c_int32 * 1)(-1000)
                to = (ctypes.c_int32 * 1)(0)
                for target in (0, _address(to)):
                    for flags in (2, 4):
                        _call(MOVE_PAGES, os.getpid(), 1, _address(addresses), target,
                              _address(status), flags)
            for mode in (0, 1, 2, 3, 4, 5, 6):
                for flags in (0, 1, 2, 4, 7):
                    _call(MBIND, m.address, m.length, mode, _address(node), 64, flags)
            _call(SET_MEMPOLICY_HOME_NODE, m.address, m.length, 0, 0)
            _call(MBIND, m.address, m.length, 0, 0, 0, 0)
            _call(MIGRATE_PAGES, 0, 64, _address(node), _address(node))
            part.check("afterwards")


@case(**ALL)
def locked_memory(t):
    with _World(t) as world:
        for part in world:
            m = part.map
            equal(_call(MLOCK, m.address, m.length)[0], 0, f"{part.name}: mlock")
            part.check("locked")
            equal(_call(MUNLOCK, m.address + 2 * PAGE, 3 * PAGE)[0], 0, "munlock")
            equal(_call(MLOCK2, m.address, m.length, 1)[0], 0, "mlock2")
            _call(28, m.address, m.length, 24)
            part.check("locked on fault")
            equal(_call(MUNLOCK, m.address, m.length)[0], 0, "munlock")
        # Not what this process maps later.
        _call(MLOCKALL, 1)
        world.check("all locked")
        _call(MUNLOCKALL)
        world.check("unlocked")


@case(fs=("xfs", "ext4"))
def pages_are_mapped_anew(t):
    """remap_file_pages: a part of a mapping shows another part of the file."""
    with _World(t) as world:
        for part in world:
            result, error = _call(REMAP_FILE_PAGES, part.map.address + 8 * PAGE, 2 * PAGE, 0, 3, 0)
            equal((result, error), (0, 0), f"{part.name}: remap_file_pages")
            same_bytes(part.map.read(8 * PAGE, 2 * PAGE), part.content[3 * PAGE:5 * PAGE],
                       f"{part.name}: pages that were mapped anew")
            part.map.write(8 * PAGE, b"here")
            part.content = part.content[:3 * PAGE] + b"here" + part.content[3 * PAGE + 4:]
            same_bytes(os.pread(part.fd, len(part.content), 0), part.content, part.name)


@case(**ALL)
def what_proc_shows(t):
    """Files in /proc that walk page tables or ask for the file behind a mapping."""
    names = ("smaps", "smaps_rollup", "numa_maps", "maps", "status", "stat", "statm", "pagemap")
    with _World(t) as world:
        for part in world:
            for name in names:
                fd = os.open(f"/proc/self/{name}", os.O_RDONLY)
                if name == "pagemap":
                    os.lseek(fd, part.map.address // PAGE * 8, os.SEEK_SET)
                    os.read(fd, 8 * 64)
                else:
                    # Ends at the end of the file.
                    while os.read(fd, 1 << 16):
                        pass
                os.close(fd)
            with open("/proc/self/maps", "rb", buffering=0) as maps:
                _build_id(maps, part.map.address)
            part.check("after /proc")
        for what in ("1", "2", "3", "4", "5"):
            try:
                with open("/proc/self/clear_refs", "w", encoding="ascii") as clear:
                    clear.write(what)
            except OSError as error:
                equal(error.errno, errno.EINVAL, f"clear_refs {what}")
            world.check(f"after clear_refs {what}")


def _build_id(maps, address):
    """Ask for the build ID of what is mapped there (PROCMAP_QUERY); a file of data has none."""
    build_id = ctypes.create_string_buffer(64)
    query = bytearray(struct.pack("13Q", 104, 0, address, 0, 0, 0, 0, 0, 0, 0,
                                  64 << 32, 0, _address(build_id)))
    try:
        posix.fcntl.ioctl(maps, 0xC0686611, query)
    except OSError:
        pass


@case(**ALL)
def reads_with_flags(t):
    """preadv2 and pwritev2 with what asks for a cache, and without one."""
    with _World(t) as world:
        for part in world:
            wanted = os.pread(part.fd, 2 * PAGE, PAGE)
            buffer = bytearray(2 * PAGE)
            for flags in (0, 1, 2, 4, 8, 0x40, 0x80):
                try:
                    done = os.preadv(part.fd, [buffer], PAGE, flags)
                    same_bytes(bytes(buffer[:done]), wanted[:done], f"preadv2, flags {flags:#x}")
                except OSError as error:
                    check(error.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.EAGAIN),
                          f"{part.name}: preadv2 with {flags:#x}: {error}")
                try:
                    os.pwritev(part.fd, [wanted], PAGE, flags)
                except OSError as error:
                    check(error.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.EAGAIN),
                          f"{part.name}: pwritev2 with {flags:#x}: {error}")
            select.select([part.fd], [part.fd], [], 0)
        world.check("afterwards")


@case(fs=("xfs", "ext4"))
def a_program_of_a_dax_file(t):
    """A file is executed, and read by the kernel while it is mapped."""
    with open("/bin/busybox", "rb") as source:
        data = source.read()
    fd = t.open("program")
    os.write(fd, data)
    os.fchmod(fd, 0o755)
    os.close(fd)
    fd = os.open(t.path("program"), os.O_RDONLY)

    def run():
        os.execv(t.path("program"), ["busybox", "true"])

    with Map(fd, PMD, prot=posix.PROT_READ) as m:
        m.touch(0, len(data))
        with open("/proc/self/maps", "rb", buffering=0) as maps:
            _build_id(maps, m.address)
        task = Task(run)
        check(task.join(20), "the program does not end")
        equal(task.status, 0, "the program's status")
        _cachestat(fd)
    os.close(fd)
