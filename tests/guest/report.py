# SPDX-License-Identifier: GPL-2.0
"""/dev/rdax: what it tells of files and of waits, to whom, and what it refuses."""

import ctypes
import errno
import os
import random
import signal
import stat

from lib import device, ioctl, posix
from lib.ioctl import Asker, MapCall, MapRecord, WaitRecord, WaitsCall
from lib.check import Skip, check, equal
from lib.device import CONFIG, run, wait_for, write
from lib.fs import VARIANTS
from lib.mapping import Map
from lib.pattern import file as _file
from lib.posix import PAGE, PMD
from lib.runner import case
from lib.task import Task
from lib.trace import Calls


def _need(t):
    t.need_adopted()
    if not os.path.exists(ioctl.DEVICE):
        raise Skip("there is no /dev/rdax")


def _shape(records):
    """What is to be compared of records: pages of the file, kind and order."""
    return [(r.offset // PAGE, r.length // PAGE, r.kind, r.order if r.kind else 0) for r in records]


def _covers(records, size):
    """The records are the whole file, one behind the other."""
    at = 0
    for record in records:
        equal(record.offset, at, "where a record begins")
        check(record.length > 0, f"a record of nothing: {record}")
        at += record.length
    check(at >= size, f"the records end at {at:#x}, the file at {size:#x}")


@case()
def everybody_may_ask(t):
    _need(t)
    equal(stat.S_IMODE(os.stat(ioctl.DEVICE).st_mode), 0o666, "rights of /dev/rdax")
    with Asker() as asker:
        equal(asker.version(), 1, "version")


@case()
def a_map_tells_sizes_and_mappings(t):
    _need(t)
    fd = _file(t, 4 * PMD)
    with Asker() as asker:
        equal(_shape(asker.map(fd)), [(0, 2048, ioctl.UNTOUCHED, 0)], "of a file that nobody has mapped")
        with Map(fd, 2 * PMD) as m, Map(fd, PMD, 2 * PMD, skew=PAGE) as skewed:
            m.touch(step=PMD)
            m.touch(0, 1, write=True)
            skewed.touch(0, 3 * PAGE)
            one, two, *pages = asker.map(fd)
            equal(_shape([one, two]), [(0, 512, ioctl.DATA, 9), (512, 512, ioctl.DATA, 9)], "2 MiB each")
            equal((one.flags & ioctl.DIRTY, two.flags & ioctl.DIRTY), (ioctl.DIRTY, 0), "dirty")
            equal((one.maps, one.whole, one.references, one.vmas), (1, 1, 0, 1), "maps of the first")
            equal(one.physical, m.pfn(0) * PAGE, "physical address")
            equal(pages[0].order, 0, "order of what is mapped at an odd address")
            check(pages[0].why & ioctl.WHY_ADDRESS, f"why no larger: {pages[0]}")
            equal(pages[0].maps, 1, "mappings of a page")
            with Map(fd, PMD) as other:
                other.touch(0, 1)
                again = asker.map(fd)[0]
                equal((again.maps, again.whole, again.vmas), (2, 2, 2), "with a second mapping")
            with Map(fd, PMD, skew=PAGE) as other:
                other.touch(0, PAGE)
                again = asker.map(fd)[0]
                check(again.maps > again.whole == 1, f"with one by pages: {again}")
                check(again.why_mapped & ioctl.WHY_ADDRESS, f"why by pages: {again}")
        os.fsync(fd)
        equal([r.flags & ioctl.DIRTY for r in asker.map(fd)], [0] * len(asker.map(fd)), "after fsync")
        _covers(asker.map(fd), 4 * PMD)


@case()
def a_map_tells_holes_and_ends(t):
    _need(t)
    fd = t.open(size=PMD + 5 * PAGE)
    with Asker() as asker, Map(fd, 2 * PMD) as m:
        m.touch(0, 1)
        m.touch(PMD, PAGE)
        records = asker.map(fd)
        _covers(records, PMD + 5 * PAGE)
        equal(records[0].kind, ioctl.HOLE, "what is read of a hole")
        equal(records[0].references, 0, "references of a hole")
        equal((records[0].maps, records[0].whole), (1, records[0].order // 9), "what maps a hole")
        # Every mapping counts, and none that has gone. A small one ends that of 2 MiB.
        with Map(fd, PMD, skew=PAGE) as small:
            small.touch(0, PAGE)
            found = asker.map(fd)[0]
            equal((found.kind, found.order, found.whole), (ioctl.HOLE, 0, 0), "a page of a hole")
            before = found.maps
            m.touch(0, 1)
            equal(asker.map(fd)[0].maps, 2, f"what maps a page of a hole; {before} before")
        equal(asker.map(fd)[0].maps, 1, "what maps it afterwards")
        last = next(r for r in records if r.offset >= PMD)
        check(last.why & ioctl.WHY_END_OF_FILE, f"why no larger at the end: {last}")
        error, asked, found = asker.ask(fd, start=1 << 40)
        equal((error, asked.flags, len(found)), (0, ioctl.END, 0), "behind the end")
        equal(asked.size, PMD + 5 * PAGE, "size")


@case()
def a_map_tells_max_order_and_what_is_in_the_way(t):
    _need(t)
    fd = _file(t, PMD)
    path = f"{CONFIG}/{t.device}/max_order"
    with Asker() as asker:
        write(path, "pte")
        try:
            with Map(fd, PMD) as m:
                m.touch(0, PAGE)
                error, asked, records = asker.ask(fd)
                equal((error, asked.max_order), (0, 0), "error, max_order")
                check(records[0].why & ioctl.WHY_MAX_ORDER, f"why no larger: {records[0]}")
                write(path, "pud")
                why = asker.map(fd)[0].why
                equal(why, ioctl.WHY_SMALLER, "why no larger, when all else is right")
        finally:
            write(path, "pud")


@case()
def a_map_tells_who_holds_a_page(t):
    _need(t)
    fd = _file(t, PMD)
    reader, writer = os.pipe()
    with Asker() as asker, Map(fd, PMD) as m:
        m.touch(0, 1)
        equal(posix.vmsplice(writer, m.address + PAGE, PAGE), PAGE, "bytes in the pipe")
        equal(asker.map(fd)[0].references, 1, "references")
        os.read(reader, PAGE)
        equal(asker.map(fd)[0].references, 0, "references when the pipe was read")


@case(fs=("xfs",))
def a_map_tells_of_clones(t):
    _need(t)
    fd = _file(t, PMD)
    clone = t.open("clone")
    posix.clone(fd, clone)
    with Asker() as asker, Map(fd, PMD) as m, Map(clone, PMD) as n:
        m.touch(0, 1)
        n.touch(0, 1)
        for which in (fd, clone):
            check(asker.map(which)[0].flags & ioctl.SHARED, f"shared: {asker.map(which)[0]}")


@case()
def a_map_goes_on_where_it_ended(t):
    """Many records, by calls with room for few: the same, whole, each once."""
    _need(t)
    fd = _file(t, 8 * PMD)
    with Asker() as asker, Map(fd, 8 * PMD, skew=PAGE) as m:
        m.advise(posix.MADV_RANDOM)
        for at in range(0, 8 * PMD, 8 * PAGE):
            m.touch(at, 1, write=at % (16 * PAGE) == 0)
        all_at_once = asker.map(fd, room=4096)
        _covers(all_at_once, 8 * PMD)
        for room in (1, 3, 64):
            found = asker.map(fd, room=room)
            _covers(found, 8 * PMD)
            equal(_shape(found), _shape(all_at_once), f"records with room for {room}")
        error, asked, _ = asker.ask(fd, room=0)
        equal((error, asked.count, asked.next, asked.flags), (0, 0, 0, 0), "with room for none")
        # From the middle of an entry: it is told whole.
        first = asker.ask(fd, start=5 * PMD + 1, room=1)[2][0]
        check(first.offset <= 5 * PMD + 1 < first.offset + first.length, f"from the middle: {first}")


@case()
def only_who_may_read_is_told(t):
    _need(t)
    path = t.path()
    fd = _file(t, PMD)

    def error(which):
        with Asker() as asker:
            return asker.ask(which)[0]

    equal(error(os.open(path, os.O_WRONLY)), errno.EBADF, "errno for a file that may be written only")
    equal(error(os.open(path, os.O_PATH)), errno.EBADF, "errno for O_PATH")
    equal(error(-1), errno.EBADF, "errno for -1")
    equal(error(1 << 20), errno.EBADF, "errno for a number that no file is open as")
    for other in ("/tmp", "/proc/self/status", "/dev/zero", ioctl.DEVICE, f"/dev/{t.device}", t.dir):
        equal(error(os.open(other, os.O_RDONLY)), errno.ENODEV, f"errno for {other}")
    with open("/tmp/rdax-report", "w+b") as f:
        equal(error(f.fileno()), errno.ENODEV, "errno for a file of another filesystem")
    equal(error(os.pipe()[0]), errno.ENODEV, "errno for a pipe")
    equal(error(fd), 0, "errno for a file that may be read")


@case()
def only_the_administrator_is_told_addresses(t):
    _need(t)
    fd = _file(t, PMD)
    with Map(fd, PMD) as m:
        m.touch(0, 1)

        def nobody():
            posix.become_nobody()
            with Asker() as asker:
                return [(r.physical, r.kind, r.maps) for r in asker.map(fd)]

        equal(Task(nobody).result(), [[0, ioctl.DATA, 1]], "what nobody is told")
        with Asker() as asker:
            check(asker.map(fd)[0].physical, "the administrator is told no address")


def _refusals(asker, make, nr, record):
    """What is wrong in the call itself; `make` makes a right one."""
    known = ctypes.sizeof(type(make()))

    def error(size=known, nr=nr, tail=b"", **fields):
        room = ctypes.create_string_buffer(max(size, known) + 64)
        asked = make()
        for name, value in fields.items():
            setattr(asked, name, value)
        ctypes.memmove(room, ctypes.addressof(asked), known)
        ctypes.memmove(ctypes.addressof(room) + known, tail, len(tail))
        before = bytes(room)
        found = ioctl.call(asker.fd, ioctl.number(nr, size), ctypes.addressof(room))
        check(bytes(room)[size:] == before[size:], f"more than {size} bytes were written")
        return found

    equal(error(), 0, "errno of the call as it should be")
    equal(error(size=known - 8), errno.EINVAL, "errno of a structure that is too small")
    equal(error(size=0), errno.EINVAL, "errno of one of nothing")
    equal(error(size=known + 32), 0, "errno of a larger one with zeroes")
    equal(error(size=known + 32, tail=b"\0" * 31 + b"\1"), errno.E2BIG, "errno with more than is known")
    equal(error(size=16383), 0, "errno of the largest with zeroes")
    for field in ("flags", "reserved"):
        equal(error(**{field: 1}), errno.EINVAL, f"errno for {field}")
    for size in (0, 4, record - 8, record + 4, 8192):
        equal(error(record_size=size), errno.EINVAL, f"errno for records of {size} bytes")
    equal(error(record_size=record + 8), 0, "errno for larger records")
    for nr_ in (3, 77, 255):
        equal(error(nr=nr_), errno.ENOTTY, f"errno of call {nr_}")
    for pointer in (0, 8, PAGE - 8, 1 << 47, (1 << 64) - 8):
        equal(ioctl.call(asker.fd, ioctl.number(nr, known), pointer), errno.EFAULT, f"errno at {pointer:#x}")
    other = ioctl.number(nr, known, kind=0xdb)
    equal(ioctl.call(asker.fd, other, make()), errno.ENOTTY, "errno of another type")


@case()
def calls_that_are_wrong_are_refused(t):
    _need(t)
    fd = _file(t, PMD)
    with Asker() as asker, Map(fd, PMD) as m:
        m.touch(0, 1)
        room = (MapRecord * 16)()
        wide = ctypes.sizeof(MapRecord)
        _refusals(asker, lambda: MapCall(fd=fd, length=PMD, records=ctypes.addressof(room), count=4,
                                         record_size=wide), 1, wide)
        error, asked, _ = asker.ask(fd, start=ioctl.NOWHERE, length=ioctl.NOWHERE)
        equal((error, asked.flags), (0, ioctl.END), "a range that is too large")
        waits = (WaitRecord * 16)()
        least = ioctl.WAIT_RECORD_SIZE_VER0
        _refusals(asker, lambda: WaitsCall(fd=fd, records=ctypes.addressof(waits), count=4,
                                           record_size=least), 2, least)
        # Records where nothing can be written.
        asked = MapCall(fd=fd, length=PMD, records=8, count=4, record_size=ctypes.sizeof(MapRecord))
        equal(ioctl.call(asker.fd, ioctl.MAP, asked), errno.EFAULT, "errno of a bad address of records")
        equal(ioctl.call(asker.fd, ioctl.VERSION, 8), errno.EFAULT, "errno of the version to a bad address")


@case()
def records_may_be_larger_than_is_known(t):
    """What a later version adds is zero, and nothing is written behind."""
    _need(t)
    fd = _file(t, PMD)
    with Asker() as asker, Map(fd, PMD) as m:
        m.touch(0, 1)
        wide = ctypes.sizeof(MapRecord) + 24
        room = ctypes.create_string_buffer(b"\xff" * (2 * wide), 2 * wide)
        asked = MapCall(fd=fd, length=PMD, records=ctypes.addressof(room), count=2, record_size=wide)
        equal(ioctl.call(asker.fd, ioctl.MAP, asked), 0, "errno")
        equal(asked.count, 1, "records")
        equal(bytes(room)[wide - 24:wide], b"\0" * 24, "what is not known of the record")
        equal(bytes(room)[wide:], b"\xff" * wide, "what is behind the record")


@case(fs=())
def what_is_no_dax_file_is_told_apart(t):
    name, mount = "pmem1", "/mnt/rdax-report"
    if not device.adopted(name):
        raise Skip(f"{name} is not adopted")
    run(*VARIANTS["xfs"].mkfs, f"/dev/{name}")
    os.makedirs(mount, exist_ok=True)
    run("mount", "-o", "dax=never", f"/dev/{name}", mount)
    try:
        with open(f"{mount}/file", "w+b") as f, Asker() as asker:
            equal(asker.ask(f.fileno())[0], errno.EOPNOTSUPP, "errno")
    finally:
        posix.umount(mount)


def _held(t, name="file"):
    """(descriptor, pipe) of a file a page of which lies in the pipe."""
    fd = _file(t, PMD) if name == "file" else t.open(name, size=PMD, allocate=PMD)
    reader, writer = os.pipe()
    m = Map(fd, PMD)
    m.touch(0, PMD, write=True)
    equal(posix.vmsplice(writer, m.address + 3 * PAGE, PAGE), PAGE, "bytes in the pipe")
    m.unmap()
    return fd, reader


@case()
def a_truncate_that_waits_is_found(t):
    _need(t)
    fd, pipe = _held(t)

    def cut():
        os.ftruncate(fd, 0)

    task = Task(cut)
    with Asker() as asker:
        wait_for(lambda: asker.waits(fd), "wait")
        (wait,) = asker.waits(fd)
        status = os.fstat(fd)
        equal((wait.kind, wait.pid, wait.tid, wait.inode),
              (ioctl.WAIT_LAYOUT, task.pid, task.pid, status.st_ino), "kind, process, task, inode")
        equal((wait.dev_major, wait.dev_minor), (os.major(status.st_dev), os.minor(status.st_dev)), "device")
        check(wait.offset in (0, 3 * PAGE), f"offset: {wait}")
        equal((wait.references, wait.maps), (1, 0), "references, mappings")
        check(wait.physical, "the administrator is told no address")
        check(wait.comm, "it has no name")
        first = wait.waited
        wait_for(lambda: asker.waits(fd)[0].waited > first, "time that goes on")

        def nobody():
            posix.become_nobody()
            with Asker() as other:
                return len(other.waits())

        equal(Task(nobody).result(), 0, "waits that others are told")
        other = t.open("other")
        equal(len(asker.waits(other)), 0, "waits for another file")
        os.read(pipe, PAGE)
        task.result()
        equal(len(asker.waits(fd)), 0, "waits when it is over")


def _cut_as_nobody(fd):
    posix.become_nobody()
    os.ftruncate(fd, 0)


@case()
def own_waits_are_told_without_rights(t):
    _need(t)
    path = t.path()
    fd, pipe = _held(t)
    os.chmod(path, 0o666)

    task = Task(_cut_as_nobody, fd)

    def nobody():
        posix.become_nobody()
        with Asker() as asker:
            wait_for(asker.waits, "wait of its own")
            (wait,) = asker.waits()
            return wait.pid, wait.physical

    equal(Task(nobody).result(), [task.pid, 0], "process, physical address")
    os.read(pipe, PAGE)
    task.result()


@case()
def waits_of_a_neighbour_are_not_told(t):
    """Of the same user, in a PID namespace that the asker does not see."""
    _need(t)
    path = t.path()
    fd, pipe = _held(t)
    os.chmod(path, 0o666)

    def ask(own):
        posix.become_nobody()
        with Asker() as asker:
            wait_for(lambda: asker.waits() or not own, "wait of its own")
            return [(wait.pid, wait.comm.decode()) for wait in asker.waits()]

    def contained():
        posix.unshare(posix.CLONE_NEWPID)
        return Task(ask, False).result()

    task = Task(_cut_as_nobody, fd)
    equal(len(Task(ask, True).result()), 1, "waits in the same namespace")
    equal(Task(contained).result(), [], "waits in another namespace")
    os.read(pipe, PAGE)
    task.result()


@case(fs=("xfs",), timeout=240, quick=False)
def waits_of_many_are_looked_at_in_turns(t):
    """Whoever may not be told of them keeps nobody from waiting or waking meanwhile."""
    _need(t)
    tasks, pipes = [], []
    for number in range(70):
        fd, pipe = _held(t, f"file {number}")
        tasks.append(Task(os.ftruncate, fd, 0))
        pipes.append(pipe)

    def nobody():
        posix.become_nobody()
        with Asker() as asker:
            return len(asker.waits())

    with Asker() as asker:
        wait_for(lambda: len(asker.waits(room=128)) == len(tasks), "all of them wait")
        with Calls("rdax_wait_next") as calls:
            equal(Task(nobody).result(), 0, "waits that nobody is told")
            # The last one finds that there are no more.
            equal(calls.count(), 2, "times that the lock was taken")
        equal(len(asker.waits(room=128)), len(tasks), "waits that the administrator is told")
    for pipe in pipes:
        os.read(pipe, PAGE)
    for task in tasks:
        task.result()


@case(fs=("xfs",), timeout=120)
def writes_and_faults_that_wait_are_found(t):
    """Of a page whose blocks a clone has, too, and that somebody holds."""
    _need(t)
    fd = _file(t, PMD)
    posix.clone(fd, t.open("clone"))
    reader, writer = os.pipe()
    m = Map(fd, PMD, skew=PAGE)
    m.advise(posix.MADV_RANDOM)
    m.touch(3 * PAGE, 1)
    equal(posix.vmsplice(writer, m.address + 3 * PAGE, PAGE), PAGE, "bytes in the pipe")

    def store():
        m.store(3 * PAGE, 7)

    def put():
        os.pwrite(fd, b"x" * PAGE, 3 * PAGE)

    with Asker() as asker:
        for work, kind in ((store, ioctl.WAIT_FAULT), (put, ioctl.WAIT_WRITE)):
            task = Task(work)

            def is_seen(longer, kind=kind):
                return any(wait.kind == kind and wait.waited > longer for wait in asker.waits(fd))

            wait_for(lambda is_seen=is_seen: is_seen(0), f"wait of kind {kind}")
            # Also one that is tried again and again goes on.
            wait_for(lambda is_seen=is_seen: is_seen(10**9), f"wait of kind {kind} that goes on")
            task.kill()
            task.signalled()
            equal(len(asker.waits(fd)), 0, "waits when the task is gone")
    os.read(reader, PAGE)


@case(timeout=240, quick=False)
def a_long_wait_is_told_to_the_log(t):
    _need(t)
    log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    os.lseek(log, 0, os.SEEK_END)
    fd, pipe = _held(t)

    def cut():
        os.ftruncate(fd, 0)

    task = Task(cut)
    found = []

    def is_told():
        try:
            while True:
                line = os.read(log, 8192).decode("utf-8", "replace")
                if "a truncate or the like has waited for" in line:
                    found.append(line)
        except BlockingIOError:
            pass
        return found

    wait_for(is_told, "line in the log", timeout=120)
    for part in (f"[{task.pid}]", f"inode {os.fstat(fd).st_ino}", "1 references"):
        check(part in found[0], f"no '{part}' in {found[0]}")
    os.read(pipe, PAGE)
    task.result()
    equal(len(found), 1, "lines in the log")


@case(fs=(), quick=False)
def the_module_stays_while_somebody_may_ask(t):
    if not device.module_loaded() or not os.path.exists("/run/lab/rdax.ko"):
        raise Skip("the module is not one that can be loaded again")
    names = [name for name in os.listdir(CONFIG) if device.adopted(name)]
    directories = os.listdir(CONFIG)
    for name in directories:
        device.adopt(name, False)
        os.rmdir(f"{CONFIG}/{name}")
    try:
        with Asker():
            said = run("rmmod", "rdax", ok=(1,))
            check("in use" in said, f"rmmod: {said}")
    finally:
        for name in directories:
            os.mkdir(f"{CONFIG}/{name}")
        for name in names:
            device.adopt(name, True)


class _Random:
    """Calls with random numbers, sizes, pointers and descriptors."""

    ERRORS = (0, errno.EBADF, errno.ENODEV, errno.EOPNOTSUPP, errno.EINVAL, errno.E2BIG, errno.EFAULT,
              errno.EINTR, errno.ENOTTY)
    ROOM = 64 * PAGE

    def __init__(self, t, fd, other):
        self.random = random.Random(t.settings.seed)
        self.other = other
        self.asker = os.open(ioctl.DEVICE, os.O_RDONLY)
        # A buffer with an end that nothing is behind.
        self.buffer = Map(-1, self.ROOM, flags=posix.MAP_PRIVATE | posix.MAP_ANONYMOUS)
        self.read_only = Map(-1, PAGE, prot=posix.PROT_READ, flags=posix.MAP_PRIVATE | posix.MAP_ANONYMOUS)
        # Answers may be written to the file that is asked about.
        self.file = Map(fd, PMD)
        path = t.path()
        self.fds = [fd, fd, fd, os.open(path, os.O_RDONLY), os.open(path, os.O_WRONLY),
                    os.open(path, os.O_PATH), os.open(t.dir, os.O_RDONLY), os.open("/tmp", os.O_RDONLY),
                    os.open("/proc/self/maps", os.O_RDONLY), self.asker, os.pipe()[0], -1, -2, 1 << 20,
                    os.open(f"/dev/{t.device}", os.O_RDONLY), os.memfd_create("memory")]
        self.seen = {}

    def _descriptor(self):
        if self.random.randrange(8):
            return self.random.choice(self.fds), None
        # One that is being released, unmounted or adopted at this moment, or is not there.
        try:
            fd = os.open(self.other, os.O_RDONLY)
        except OSError:
            return -1, None
        return fd, fd

    def _pointer(self, size):
        kind = self.random.randrange(12)
        inside = self.random.randrange(0, self.ROOM // 2, 8)
        if kind < 7 or self.random.randrange(3):
            return self.buffer.address + inside
        return [self.buffer.address + self.ROOM - self.random.randrange(0, 2 * size + 8),
                self.read_only.address, self.file.address + self.random.randrange(0, PMD // 2, 8),
                self.random.choice([0, 1, PAGE - 1, 1 << 47, (1 << 64) - PAGE, 0xffff888000000000]),
                self.buffer.address + self.random.randrange(self.ROOM)][kind - 7]

    def _number(self):
        some = [0, 1, 2, 3, PAGE - 1, PAGE, PMD, PMD + 1, 1 << 32, (1 << 63) - 1, 1 << 63, ioctl.NOWHERE]
        return self.random.choice(some) if self.random.randrange(4) else self.random.getrandbits(64)

    def _small(self, right):
        return right if self.random.randrange(16) else self.random.choice([0, 1, 8, 1 << 31, (1 << 32) - 1,
                                                                           self.random.getrandbits(32)])

    def _structure(self, kind, fd):
        if kind is MapCall:
            wide = ctypes.sizeof(MapRecord)
            made = MapCall(fd=fd, start=self._number(), length=self._number(), next=self._number(),
                           record_size=self._small(wide), count=self._small(self.random.randrange(64)))
        else:
            wide = ctypes.sizeof(WaitRecord)
            made = WaitsCall(fd=fd, record_size=self._small(wide),
                             count=self._small(self.random.randrange(64)))
        made.flags, made.reserved = (self._small(0), self._small(0))
        made.records = self._pointer(wide)
        return made

    def call(self):
        fd, own = self._descriptor()
        kind = self.random.choice([MapCall, MapCall, WaitsCall])
        known = ctypes.sizeof(kind)
        size = known if self.random.randrange(4) else self.random.choice(
            [known + 8, known - 8, 0, 16383, self.random.randrange(16384)])
        nr = {MapCall: 1, WaitsCall: 2}[kind] if self.random.randrange(10) else self.random.randrange(256)
        command = ioctl.number(nr, size) if self.random.randrange(20) else self.random.getrandbits(32)
        at = self._pointer(max(size, known))
        inside = self.buffer.address <= at and at + known <= self.buffer.address + self.ROOM
        if inside:
            made = self._structure(kind, fd)
            ctypes.memmove(at, ctypes.addressof(made), known)
        if own is not None and not self.random.randrange(4):
            os.close(own)
            own = None
        found = ioctl.call(self.asker, command, at)
        if own is not None:
            os.close(own)
        check(found in self.ERRORS, f"errno {found} of call {command:#x} at {at:#x}")
        self.seen[found] = self.seen.get(found, 0) + 1


def _disturb(path, seed):
    """Keeps the file changing: mapped, written, cut, punched."""
    rng = random.Random(seed)
    fd = os.open(path, os.O_RDWR)
    while True:
        with Map(fd, PMD, skew=rng.choice([0, PAGE])) as m:
            for _ in range(8):
                m.store(rng.randrange(0, PMD, PAGE), 1)
        at = rng.randrange(0, 4 * PMD, PAGE)
        posix.fallocate(fd, posix.PUNCH_HOLE | posix.KEEP_SIZE, at, rng.choice([PAGE, PMD]))
        os.ftruncate(fd, rng.choice([4 * PMD, 4 * PMD, PMD + PAGE, 3 * PMD]))
        os.ftruncate(fd, 4 * PMD)
        os.pwrite(fd, b"x" * PAGE, rng.randrange(0, 4 * PMD, PAGE))


def _come_and_go(name, mount):
    """Keeps a device being adopted, mounted, unmounted and released.

    All by this process itself: a command that it ran would go on when it is killed, and mount what
    nobody unmounts any more.
    """
    while True:
        device.adopt(name, True)
        posix.mount(f"/dev/{name}", mount, "xfs", "dax=always")
        # Ends: the fuzzer has a file of it open for a moment only.
        while True:
            try:
                posix.umount(mount)
                break
            except OSError as error:
                equal(error.errno, errno.EBUSY, "errno of umount")
        device.adopt(name, False)


# As many calls as an ordinary run has time for, unless it is asked for more.
CALLS = int(os.environ.get("RDAX_CALLS", "5000"))


@case(fs=("xfs", "ext4"), timeout=120 + CALLS // 100)
def random_questions(t):
    """Whatever is asked gets an answer or an error, and loses nothing."""
    _need(t)
    name, mount = "pmem1", "/mnt/rdax-report"
    if not device.adopted(name):
        raise Skip(f"{name} is not adopted")
    run(*VARIANTS["xfs"].mkfs, f"/dev/{name}")
    os.makedirs(mount, exist_ok=True)
    run("mount", "-o", "dax=always", f"/dev/{name}", mount)
    with open(f"{mount}/file", "wb") as f:
        f.write(b"x" * 16 * PAGE)
    posix.umount(mount)
    fd = _file(t, 4 * PMD)
    kept = t.open("kept", size=PMD, allocate=PMD)
    os.pwrite(kept, b"kept" * (PMD // 4), 0)
    fuzzer = _Random(t, fd, f"{mount}/file")
    tasks = [Task(_disturb, t.path(), t.settings.seed), Task(_come_and_go, name, mount)]
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    try:
        for _ in range(CALLS):
            fuzzer.call()
            for task in tasks:
                check(not task.done(), f"{task.name} has ended: {task.outcome() if task.done() else ''}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for task in tasks:
            task.kill()
        for task in tasks:
            check(task.join(60), f"{task.name} does not go away")
        if os.path.ismount(mount):
            posix.umount(mount)
        device.adopt(name, True)
    t.note(" ".join(f"{errno.errorcode.get(number, 'ok')}={count}"
                    for number, count in sorted(fuzzer.seen.items())))
    for wanted in (0, errno.EBADF, errno.ENODEV, errno.EINVAL, errno.EFAULT, errno.ENOTTY):
        check(fuzzer.seen.get(wanted), f"no call ended with {wanted}: {fuzzer.seen}")
    equal(os.pread(kept, PMD, 0), b"kept" * (PMD // 4), "what a file holds")
    # It answers as before.
    with Asker() as asker:
        equal(asker.version(), 1, "version")
        _covers(asker.map(kept), PMD)
