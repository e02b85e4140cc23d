# SPDX-License-Identifier: GPL-2.0
"""Device DAX: a namespace of that mode, bound to this driver and back to the kernel's.

The namespace of pmem0 is made anew for every alignment, and at the end as it was.
"""

import json
import os
import select
import shutil
import signal
import subprocess
import time

from lib import asks, device, futex, gup, mce, native, posix
from lib.check import Skip, check, equal, raises, same_bytes
from lib.device import SlowDisk, read, run, wait_for, write
from lib.mapping import BUS_MCEERR_AO, BUS_MCEERR_AR, SIGBUS, Map
from lib.native import Fault, probe
from lib.pattern import pages as pattern
from lib.posix import GIB, PAGE, PMD
from lib.runner import case
from lib.task import Task

DEVICE = "pmem0"
NAMESPACE = "namespace0.0"
NAME = "dax0.0"
NODE = f"/dev/{NAME}"
BUS = "/sys/bus/dax"
SYSFS = f"{BUS}/devices/{NAME}"
MAP_SYNC_VALIDATED = 0x80003
EINVAL, ENXIO = 22, 6


def _driver():
    path = f"{SYSFS}/driver"
    return os.path.basename(os.readlink(path)) if os.path.islink(path) else None


def _unbind():
    if _driver():
        write(f"{BUS}/drivers/{_driver()}/unbind", NAME)
        equal(_driver(), None, "driver after unbinding")


def _bind(name="rdax"):
    if _driver() == name:
        return
    _unbind()
    if name == "rdax":
        try:
            write(f"{BUS}/drivers/rdax/remove_id", NAME)
        except OSError:
            pass
        write(f"{BUS}/drivers/rdax/new_id", NAME)
    else:
        write(f"{BUS}/drivers/{name}/bind", NAME)
    equal(_driver(), name, "driver after binding")


def _namespace(align, *more):
    """A namespace of that alignment, bound to this driver."""
    if not os.path.isdir(f"{BUS}/drivers/rdax"):
        raise Skip("there is no driver rdax on the dax bus")
    bytes_ = {"4K": PAGE, "2M": PMD, "1G": GIB}[align]
    if bytes_ == GIB:
        size = int(read("/sys/bus/nd/devices/region0/size"))
        if size < 3 * GIB:
            raise Skip(f"a pmem device of 3 GiB is needed, and has {size >> 20} MiB")
    if not os.path.isdir(SYSFS) or int(read(f"{SYSFS}/align")) != bytes_:
        if device.adopted(DEVICE):
            write(f"{device.CONFIG}/{DEVICE}/adopt", "0")
            os.rmdir(f"{device.CONFIG}/{DEVICE}")
        _unbind()
        run("ndctl", "create-namespace", "-f", "-e", NAMESPACE, "-m", "devdax", "-a", align, *more)
        wait_for(lambda: os.path.exists(NODE), NODE)
    _bind()
    return bytes_


def _recipe():
    """What docs/devdax.md says how a device is handed over, and how it is taken back, as scripts."""
    with open("/src/docs/devdax.md", encoding="utf-8") as text:
        lines = text.read().splitlines()
    first = lines.index("    cd /sys/bus/dax")
    parts = [[], []]
    part = parts[0]
    for line in lines[first:]:
        if line and not line.startswith("    "):
            break
        if not line:
            part = parts[1]
        part.append(line)
    return "\n".join(parts[0]), "\n".join(parts[0][:1] + parts[1])


def _unbinds_at_once(what):
    """Nobody has pages of the device any more; it is bound again afterwards."""
    unbinding = Task(_unbind)
    check(unbinding.join(20), f"unbinding waits for {what} that should be gone")
    unbinding.result()
    _bind()


def _size():
    return int(read(f"{SYSFS}/size"))


def _open():
    return os.open(NODE, os.O_RDWR)


class _Stats:
    def __init__(self):
        self.before = self._now()

    @staticmethod
    def _now():
        return {name: int(value) for name, value in
                (line.split() for line in read(f"{SYSFS}/rdax/stats").splitlines())}

    def moved(self, name):
        return self._now()[name] - self.before[name]

    def expect(self, **wanted):
        now = self._now()
        moved = {name: now[name] - before for name, before in self.before.items()}
        for name, value in wanted.items():
            equal(moved[name], value, f"counter {name} (all: {moved})")


def _log():
    return subprocess.run(["dmesg"], stdout=subprocess.PIPE, text=True, check=True).stdout


@case(fs=())
def pages(t):
    _namespace("4K")
    fd, stats = _open(), _Stats()
    with Map(fd, 4 * PMD) as m:
        m.touch(length=PMD, write=True)
        m.touch(offset=PMD, length=PMD)
        equal(m.mapped(), 2 * PMD, "bytes mapped")
        equal(m.mapped_huge(), 0, "bytes mapped by huge entries")
        stats.expect(write_pte=512, read_pte=512)
    os.close(fd)


@case(fs=(), timeout=120)
def pages_and_huge_pages_at_once(t):
    """A fault for a page makes a table where another enters 2 MiB: one gives way, without a word."""
    _namespace("2M")
    fd, stats = _open(), _Stats()
    rounds = 0
    # Which of the two comes first is chance.
    while not (stats.moved("write_pte") and stats.moved("write_pmd")) or rounds < 5000:
        more = probe().table_race(fd, 32 * PMD, 2000)
        check(more > 0, "no mapping")
        rounds += more
    t.note(f"{rounds} rounds, {stats.moved('write_pte')} pages, {stats.moved('write_pmd')} entries of "
           f"2 MiB, {stats.moved('fallback_conflict')} times one gave way")
    equal(stats.moved("fault_errors"), 0, "faults that failed")
    os.close(fd)


@case(fs=())
def processes_meet_at_pages(t):
    """Futexes and mutexes that processes share, on a device that is mapped by pages."""
    _namespace("4K")
    fd = _open()
    with Map(fd, 2 * PMD) as m:
        futex.work(m, 5 * PAGE + 64, lambda: Map(fd, PMD, skew=PAGE))
    os.close(fd)


@case(fs=())
def processes_meet(t):
    """By whatever entries each of them has the memory mapped, and wherever the mapping begins."""
    _namespace("2M")
    fd = _open()
    with Map(fd, 4 * PMD) as m, Map(fd, PMD, offset=PMD, skew=PAGE) as small:
        futex.work(m, PMD + 5 * PAGE + 64, lambda: Map(fd, 4 * PMD))
        futex.work(m, PMD + 64, lambda: Map(fd, 4 * PMD, skew=PAGE))
        futex.work(small, PMD - PAGE, lambda: _shifted(fd))
        # The same page of the next 2 MiB is another place.
        sleeper = futex.sleeper(m.address + 2 * PMD)
        sleeper.blocked_in("futex")
        equal(futex.wake(m.address + 3 * PMD), 0, "sleepers in the next 2 MiB")
        futex.woken(sleeper, m.address + 2 * PMD)
    os.close(fd)


def _shifted(fd):
    """The second 2 MiB, of which the first page is unlike the place that the address is of."""
    return Map(fd, PMD, offset=PMD, skew=3 * PAGE)


@case(fs=())
def sleepers_outlive_the_device(t):
    """Who sleeps at a futex in memory that goes is not woken, can be ended, and holds up nobody."""
    _namespace("2M")
    fd = _open()
    with Map(fd, 2 * PMD) as m, Map(fd, PMD, skew=PAGE) as small:
        sleepers = [futex.sleeper(place.address + 8 * PAGE) for place in (m, small)]
        for sleeper in sleepers:
            sleeper.blocked_in("futex")
        _unbind()
        for place in (m, small):
            futex.gone(place.address + 8 * PAGE)
        for sleeper in sleepers:
            check(not sleeper.done(), "a sleeper has ended")
            sleeper.kill()
            equal(sleeper.signalled(), 9, "signal that ended a sleeper")
    os.close(fd)
    _bind()


@case(fs=(), timeout=120)
def others_ask(t):
    """What asks a page for its file, or would move it, gets the answer that the kernel's driver
    gives."""
    if subprocess.run(["modprobe", "device_dax"], check=False).returncode:
        raise Skip("there is no module device_dax")
    _namespace("2M")
    said = {}
    for driver in ("device_dax", "rdax"):
        _bind(driver)
        fd = _open()
        with Map(fd, 2 * PMD) as m:
            m.load_ok(PMD, m.read(PMD, 1)[0], "a load")
            m.touch(write=True)
            said[driver] = asks.all_ways(fd, m)
        os.close(fd)
    equal(said["rdax"], said["device_dax"], "answers")
    equal(said["rdax"]["what was written"], "by others", "what others wrote")
    t.note(str(said["rdax"]))


@case(fs=())
def huge_pages(t):
    _namespace("2M")
    fd, stats = _open(), _Stats()
    with Map(fd, 8 * PMD) as m:
        for at in range(0, 4 * PMD, PMD):
            equal(m.store(at, 7).signal, 0, "signal of a store")
        m.touch(offset=4 * PMD)
        equal(m.mapped_huge(), 8 * PMD, "bytes mapped by huge entries")
        stats.expect(write_pmd=4, read_pmd=4, read_pte=0, write_pte=0)
        m.protect(posix.PROT_READ)
        m.protect(posix.PROT_RW)
        m.touch(write=True)
        stats.expect(read_pte=0, write_pte=0)
        m.unmap_part(PMD + PAGE, PAGE)
        m.load_ok(PMD, 7, "beside the hole")
    os.close(fd)


@case(fs=())
def address_is_chosen_well(t):
    align = _namespace("2M")
    fd = _open()
    for offset in (0, PAGE, PMD + 5 * PAGE):
        for length in (PMD, 3 * PMD + PAGE):
            at = posix.mmap(None, length, posix.PROT_RW, posix.MAP_SHARED, fd, offset)
            equal(at % align, offset % align, f"address of a mapping of {offset:#x}")
            posix.munmap(at, length)
    os.close(fd)


@case(fs=())
def misaligned_mappings_work(t):
    """The kernel's own driver refuses addresses that are not aligned."""
    _namespace("2M")
    fd = _open()
    with Map(fd, 2 * PMD) as m:
        m.write(0, b"".join(bytes([i % 251 + 1]) * PAGE for i in range(1024)))
    for offset, skew, length in ((PAGE, 0, PMD), (0, PAGE, 2 * PMD), (PAGE, PAGE, PMD),
                                 (0, 0, PAGE), (PMD - PAGE, PMD - PAGE, 2 * PAGE)):
        stats = _Stats()
        with Map(fd, length, offset=offset, skew=skew) as m:
            for at in range(0, length, PAGE):
                m.load_ok(at, ((offset + at) // PAGE) % 251 + 1, f"{offset:#x}+{skew:#x}")
        stats.expect(read_pmd=0, read_pte=length // PAGE, fault_errors=0)
    # Aligned to each other: pages at the edges, huge pages between.
    stats = _Stats()
    with Map(fd, 3 * PMD, offset=PAGE, skew=PAGE) as m:
        m.touch(write=True)
        equal(m.mapped_huge(), 2 * PMD, "bytes mapped by huge entries")
        stats.expect(write_pmd=2, write_pte=512)
    os.close(fd)


@case(fs=())
def what_is_refused(t):
    _namespace("2M")
    fd, size = _open(), _size()
    raises(EINVAL, "MAP_PRIVATE", posix.mmap, None, PMD, posix.PROT_RW, posix.MAP_PRIVATE, fd, 0)
    raises(EINVAL, "past the end", posix.mmap, None, PMD, posix.PROT_RW, posix.MAP_SHARED, fd,
           size)
    log = _log()
    check("MAP_PRIVATE" in log and "no such page" in log, "the log does not say why")
    with Map(fd, 2 * PMD, offset=size - PMD) as m:
        m.touch(length=PMD, write=True)
        m.bus_error(PMD, "past the end")
        m.bus_error(PMD + PAGE, "past the end", write=True)
    with Map(fd, PMD, flags=MAP_SYNC_VALIDATED) as m:
        equal(m.store(0, 1).signal, 0, "signal of a store with MAP_SYNC")
    os.close(fd)


@case(fs=())
def refusals_do_not_flood_the_log(t):
    _namespace("2M")
    fd, size = _open(), _size()
    before = len(_log().splitlines())
    began = time.monotonic()
    for _ in range(100):
        for what in ((posix.MAP_PRIVATE, 0), (posix.MAP_SHARED, size), (posix.MAP_SHARED, 4 * size)):
            raises(EINVAL, str(what), posix.mmap, None, PMD, posix.PROT_RW, what[0], fd, what[1])
    lines = [line for line in _log().splitlines()[before:] if "is refused" in line]
    # Ten of each of the two kinds every five seconds.
    most = 20 * (int(time.monotonic() - began) // 5 + 2)
    check(1 <= len(lines) <= most, f"{len(lines)} lines for 300 refusals, and not {most} at most")
    check(any("multiples of 2048 KiB" in line for line in lines), f"no alignment in {lines[:3]}")
    os.close(fd)


def _moves(fd, length, skew):
    """Registered buffers in a mapping of the device: to a disk and back to another place."""
    import ctypes
    lib = ctypes.CDLL(native.path("uring.so"))
    lib.uring_move.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t,
                               ctypes.c_int]
    lib.uring_move.restype = ctypes.c_long
    slow = SlowDisk()
    slow.release()
    disk = slow.open()
    with Map(fd, length, skew=skew) as source, Map(fd, length, offset=2 * length, skew=skew) as to:
        source.write(0, pattern("u", length // PAGE))
        to.touch(write=True)
        equal(lib.uring_move(disk, source.address, length, 16 * PAGE, 1), length, "bytes written")
        equal(lib.uring_move(disk, to.address, length, 8 * PAGE, 0), length, "bytes read")
        same_bytes(to.read(0, length), pattern("u", length // PAGE), "what came back")
    os.close(disk)


@case(fs=())
def registered_buffers_move_data(t):
    _namespace("2M")
    fd = _open()
    _moves(fd, 2 * PMD, 0)
    _moves(fd, 2 * PMD, 3 * PAGE)
    os.close(fd)
    _unbinds_at_once("a pin")


def _pins_last(fd, length, **place):
    gup.need()
    with Map(fd, length, **place) as m, \
            Map(-1, 16 * PAGE, flags=posix.MAP_PRIVATE | posix.MAP_ANONYMOUS) as copy:
        m.write(0, pattern("p", 16))
        for way in gup.WAYS:
            equal(gup.take(way, m.address, min(length, 8 * PMD)), min(length, 8 * PMD), way)
        for fast in (False, True):
            for write in (False, True):
                equal(gup.take_long_term(m.address, 2 * PMD, fast, write), 2 * PMD,
                      f"lasting pins, fast={fast} write={write}")
                pin = gup.LongTermPin(m.address, 16 * PAGE, fast, write)
                m.advise(posix.MADV_DONTNEED)
                pin.read(copy.address)
                same_bytes(copy.read(0, 16 * PAGE), pattern("p", 16), "the pinned pages")
                pin.drop()


@case(fs=())
def pins_may_last(t):
    """FOLL_LONGTERM, which files refuse, in all ways and for both sizes of entry."""
    _namespace("2M")
    fd = _open()
    _pins_last(fd, 4 * PMD)
    _pins_last(fd, 4 * PMD, skew=PAGE)
    os.close(fd)
    _unbinds_at_once("a pin")


@case(fs=(), timeout=120)
def fio_agrees(t):
    """fio writes and verifies through mappings of its own making."""
    _namespace("2M")
    command = ["fio", "--name=dax", f"--filename={NODE}", "--size=32m", "--verify=crc32c",
               "--verify_fatal=1", "--verify_state_save=0", "--thread=1", "--rw=randwrite",
               "--output-format=terse", "--terse-version=3"]
    for engine, bs in (("dev-dax", "4k"), ("dev-dax", "2m")):
        stats = _Stats()
        fields = run(*command, f"--ioengine={engine}", f"--bs={bs}").splitlines()[-1].split(";")
        equal(fields[4], "0", f"error of fio with {engine} and blocks of {bs}")
        equal((int(fields[5]), int(fields[46])), (32 << 10, 32 << 10), "KiB read and written")
        stats.expect(fault_errors=0)
        check(stats.moved("write_pmd") + stats.moved("read_pmd") > 0, "nothing was mapped by 2 MiB")


@case(fs=())
def forks_share(t):
    _namespace("2M")
    fd, stats = _open(), _Stats()
    with Map(fd, 2 * PMD) as m:
        m.write(PMD, b"parent")

        def child():
            equal(m.read(PMD, 6), b"parent", "what the child sees")
            m.write(0, b"child!")

        Task(child).result()
        equal(m.read(0, 6), b"child!", "what the parent sees")
    stats.expect(fault_errors=0)
    os.close(fd)


@case(fs=(), timeout=120, giant=True)
def giant_pages(t):
    _namespace("1G", "-M", "mem")
    fd, stats = _open(), _Stats()
    size = _size()
    with Map(fd, size, align=GIB) as m:
        for at in range(0, size, GIB):
            equal(m.store(at + 5 * PAGE, 9).signal, 0, "signal of a store")
        stats.expect(write_pud=size // GIB, write_pmd=0, write_pte=0, fallback_vma=0)
        m.touch(length=GIB, step=PMD)
        stats.expect(write_pud=size // GIB, read_pud=0, read_pmd=0, read_pte=0)
    with Map(fd, GIB, align=GIB) as m:
        # Split where one entry maps both sides, with entries of 2 MiB for data.
        data = b"".join((i << 21 | 0xE7).to_bytes(8, "little") for i in range(512))
        m.write(0, data)
        m.advise(posix.MADV_RANDOM, GIB // 2 + PAGE, PAGE)
        m.protect(posix.PROT_READ, 5 * PAGE, PMD)
        m.unmap_part(GIB // 2 - PMD - PAGE, PAGE)
        equal(m.read(0, PAGE), data, "data after the mapping was split")
    with Map(fd, GIB, align=GIB) as m:
        m.touch(step=GIB)
        for at in (0, GIB - 4 * PMD):
            os.close(posix.pin_buffer(m.address + at, 4 * PMD))
    at = posix.mmap(None, GIB, posix.PROT_RW, posix.MAP_SHARED, fd, 0)
    equal(at % GIB, 0, "address modulo 1 GiB")
    posix.munmap(at, GIB)
    stats = _Stats()
    with Map(fd, 4 * PMD, offset=PMD - PAGE) as m:
        m.load_ok(0, 0, "a misaligned mapping")
        m.touch(length=16 * PAGE, write=True)
        m.touch(offset=PMD, length=PMD)
        stats.expect(read_pte=1 + 512, write_pte=15, fault_errors=0)
    os.close(fd)


@case(fs=(), timeout=120, giant=True)
def processes_meet_in_giant_pages(t):
    _namespace("1G", "-M", "mem")
    fd = _open()
    with Map(fd, GIB, align=GIB) as m:
        futex.work(m, GIB // 2 + 5 * PAGE + 64, lambda: Map(fd, GIB, align=GIB))
        futex.work(m, GIB - PAGE, lambda: Map(fd, GIB, skew=PAGE))
    os.close(fd)


@case(fs=(), timeout=120, giant=True)
def giant_pages_are_pinned(t):
    _namespace("1G", "-M", "mem")
    fd = _open()
    _moves(fd, 4 * PMD, 0)
    if not gup.unfit():
        _pins_last(fd, GIB, align=GIB)
    os.close(fd)
    _unbinds_at_once("a pin")


@case(fs=(), timeout=120, giant=True)
def giant_mappings_move(t):
    """The core's move loses entries of 1 GiB, and their references with them."""
    _namespace("1G", "-M", "mem")
    fd = _open()
    with Map(fd, GIB, align=GIB) as m, Map(fd, GIB, align=GIB) as place:
        m.store(5, 0x5a)
        ring = posix.pin_buffer(m.address, 4 * PMD)
        os.close(ring)
        posix.mremap(m.address, GIB, GIB, 1 | 2, place.address)
        place.load_ok(5, 0x5a, "after the move")
        place.touch(length=4 * PAGE)
        # Beside another mapping of the next GiB, where the two could be merged.
    room = Map(-1, 3 * GIB, prot=posix.PROT_NONE, align=GIB,
               flags=posix.MAP_PRIVATE | posix.MAP_ANONYMOUS | posix.MAP_NORESERVE)
    posix.mmap(room.address, GIB, posix.PROT_RW, posix.MAP_SHARED | posix.MAP_FIXED, fd, 0)
    with Map(fd, GIB, offset=GIB, align=GIB) as m:
        equal(m.store(7, 0x77).signal, 0, "signal of a store")
        posix.mremap(m.address, GIB, GIB, 1 | 2, room.address + GIB)
    probe().touch(room.address, 2 * GIB, PMD, True)
    room.unmap()
    os.close(fd)
    _unbinds_at_once("a reference")


def _inject(m, at):
    """How the process is told of a failure of a page that it has mapped."""
    fault = Fault()
    probe().probe_madvise(m.address + at, PAGE, posix.MADV_HWPOISON, fault)
    equal(fault.error, 0, "error of MADV_HWPOISON")
    return fault


def _is_told(m, at, bits, what):
    """As the kernel tells of a page of an entry of 2 to the `bits` bytes, but always of that page."""
    for turn in ("first", "second", "third"):
        m.touch(at, PAGE)
        fault = _inject(m, at)
        equal((fault.signal, fault.code, fault.lsb), (SIGBUS, BUS_MCEERR_AR, bits),
              f"{what}, {turn} time: signal, code, log2 of the bytes in doubt")
        if _driver() == "rdax":
            equal(fault.address, m.address + at, f"{what}, {turn} time: address")
        else:
            equal(fault.address >> bits, (m.address + at) >> bits, f"{what}: address")
        # Nothing has happened to it.
        equal(m.load(at)[1].signal, 0, f"{what}: signal of a load after that")


def _others_are_told(fd, m, at, length, **place):
    """Who asked for it is told early, of the address that is its own; who did not goes on."""
    ready, end = os.pipe(), os.pipe()

    def early():
        posix.die_of_poison_early()
        with Map(fd, length, **place) as mine:
            mine.touch(at, PAGE)
            fault = Fault()
            probe().probe_await(ready[1], fault)
            equal((fault.signal, fault.code), (SIGBUS, BUS_MCEERR_AO), "signal and code")
            equal(fault.address, mine.address + at, "address")

    def calm():
        with Map(fd, length, **place) as mine:
            mine.touch(at, PAGE)
            os.write(ready[1], b"r")
            os.read(end[0], 1)
            equal(mine.load(at)[1].signal, 0, "signal of a load afterwards")

    def deaf():
        with Map(fd, length, **place) as mine:
            mine.touch(at, PAGE)
            signal.signal(signal.SIGBUS, signal.SIG_DFL)
            posix.madvise(mine.address + at, PAGE, posix.MADV_HWPOISON)

    tasks = [Task(early), Task(calm)]
    for _ in tasks:
        wait_for(lambda: select.select([ready[0]], [], [], 0)[0] or any(task.done() for task in tasks),
                 "another process")
        for task in tasks:
            if task.done():
                task.result()
        equal(os.read(ready[0], 1), b"r", "another process")
    _inject(m, at)
    os.write(end[1], b"e")
    for task in tasks:
        task.result()
    equal(Task(deaf).signalled(), SIGBUS, "signal that ended who does not listen")
    for pipe in ready + end:
        os.close(pipe)


@case(fs=())
def failures_of_pages_are_told(t):
    _namespace("4K")
    fd = _open()
    with Map(fd, PMD) as m:
        _is_told(m, 7 * PAGE, 12, "a page")
        _others_are_told(fd, m, 7 * PAGE, PMD, skew=PAGE)
    os.close(fd)


@case(fs=(), timeout=120)
def failures_are_told(t):
    """With the kernel's own driver beside it, which tells of the first page of 2 MiB."""
    drivers = ["rdax"]
    if not subprocess.run(["modprobe", "device_dax"], check=False).returncode:
        drivers.insert(0, "device_dax")
    _namespace("2M")
    for driver in drivers:
        _bind(driver)
        fd = _open()
        with Map(fd, 2 * PMD) as m:
            _is_told(m, PMD + 5 * PAGE, 21, f"{driver}: a page of 2 MiB")
            raises(5, "soft offlining", posix.madvise, m.address, PAGE, asks.MADV_SOFT_OFFLINE)
        os.close(fd)
    _bind()
    fd = _open()
    with Map(fd, 2 * PMD) as m, Map(fd, 2 * PMD, skew=PAGE) as small:
        # Neither the first page of the 2 MiB, nor is that one mapped.
        _is_told(small, PMD + 5 * PAGE, 12, "a page of 2 MiB mapped by pages")
        _others_are_told(fd, small, PMD + 6 * PAGE, 2 * PMD)
        _others_are_told(fd, m, PMD + 6 * PAGE, 2 * PMD, skew=3 * PAGE)
        small.touch(PMD)
        before = small.mapped()
        _inject(small, PMD + 6 * PAGE)
        equal(before - small.mapped(), PAGE, "bytes that were unmapped with a page")
    os.close(fd)


@case(fs=(), timeout=120, giant=True)
def failures_in_giant_pages_are_told(t):
    _namespace("1G", "-M", "mem")
    fd = _open()
    with Map(fd, GIB, align=GIB) as m:
        _is_told(m, GIB // 2 + 5 * PAGE, 30, "a page of 1 GiB")
        _others_are_told(fd, m, GIB // 2 + 5 * PAGE, GIB, skew=PAGE)
    os.close(fd)


@case(fs=(), timeout=120)
def failures_are_told_without_adoption(t):
    """And with it: the function by which the core asks is served for files of adopted devices too."""
    _namespace("2M")
    others = [name for name in ("pmem1", "pmem2") if device.exists(name)]
    if not others:
        raise Skip("there is no other pmem device")
    for adopt in ("0", "1"):
        for name in others:
            write(f"{device.CONFIG}/{name}/adopt", adopt)
        fd = _open()
        with Map(fd, PMD) as m:
            _is_told(m, 5 * PAGE, 21, f"adopted: {adopt}")
        os.close(fd)


@case(fs=())
def bad_memory(t):
    _namespace("2M")
    fd = _open()
    with Map(fd, 2 * PMD) as m:
        m.touch(step=PMD)
        bad = m.pfn(0) + 5
        mce.fail(bad)
        stats = _Stats()
        m.bus_error(5 * PAGE, "bad memory", code=BUS_MCEERR_AR)
        m.bus_error(5 * PAGE, "bad memory", write=True, code=BUS_MCEERR_AR)
        for at in (0, 4 * PAGE, 6 * PAGE, PMD - PAGE, PMD):
            equal(m.load(at)[1].signal, 0, f"signal of a load at {at:#x}")
        stats.expect(poison_faults=2)
        check(m.mapped_huge() >= PMD, "the next 2 MiB are not mapped by a huge entry")
    os.close(fd)
    mce.restore([bad])
    _unbind()
    _bind()
    fd = _open()
    with Map(fd, PMD) as m:
        equal(m.load(5 * PAGE)[1].signal, 0, "signal after binding anew")
    os.close(fd)


@case(fs=())
def command_hands_devices_over(t):
    """The command rdax takes the device from the kernel's driver and gives it back, unless it is in use."""
    if not shutil.which("rdax"):
        raise Skip("the command rdax is not installed")
    if subprocess.run(["modprobe", "device_dax"], check=False).returncode:
        raise Skip("there is no module device_dax")

    def rdax(*arguments, ok=0):
        return run("rdax", *arguments, ok=(ok,))

    _namespace("2M")
    _bind("device_dax")
    fd = _open()
    said = rdax("adopt", NAME, ok=1)
    check(f"({os.getpid()})" in said and "in use by" in said, f"rdax says: {said}")
    equal(_driver(), "device_dax", "driver")
    os.close(fd)
    equal(rdax("adopt", NODE), f"{NAME}: adopted\n", "what rdax says")
    equal(_driver(), "rdax", "driver")
    equal(rdax("adopt", NAME), f"{NAME}: adopted already\n", "what rdax says")
    (listed,) = [each for each in json.loads(rdax("list", "--json")) if each.get("chardev") == NAME]
    equal([listed[key] for key in ("dev", "mode", "align", "adopted", "driver")],
          [NAMESPACE, "devdax", PMD, True, "rdax"], "what rdax list says")
    fd = _open()
    with Map(fd, PMD) as m:
        m.touch(step=PMD)
        os.close(fd)
        # It is mapped still.
        check("in use by" in rdax("release", NAME, ok=1), "it was released")
    check("read_pmd" in rdax("stat", NAME), "the counters have no fault")
    equal(rdax("release", NAME), f"{NAME}: released\n", "what rdax says")
    equal(_driver(), "device_dax", "driver")
    check("no such device" in rdax("adopt", "dax77.0", ok=1), "a device that is not there")


@case(fs=())
def unbinding_ends_mappings(t):
    _namespace("2M")
    fd = _open()
    with Map(fd, 4 * PMD) as m, Map(fd, 2 * PMD, offset=PAGE) as small:
        m.touch(write=True)
        small.touch(write=True)
        _unbind()
        m.bus_error(0, "after unbinding")
        small.bus_error(PAGE, "after unbinding")
        raises((ENXIO,), "opening an unbound device", _open)
        _bind()
        m.bus_error(0, "an old mapping after binding anew")
        with open(NODE, "r+b", buffering=0) as other, Map(other.fileno(), PMD) as new:
            equal(new.store(0, 3).signal, 0, "signal with a new file")
    os.close(fd)


@case(fs=())
def unbinding_waits_for_pins(t):
    _namespace("2M")
    fd = _open()
    m = Map(fd, 4 * PMD)
    m.touch(write=True)
    ring = posix.pin_buffer(m.address, 3 * PMD)

    def unbind():
        os.close(ring)      # the child's, which would be a pin of its own
        _unbind()

    unbinding = Task(unbind)
    wait_for(lambda: "unbinding waits for 3 folios" in _log(), "message about pins")
    check(not unbinding.done(), "unbinding did not wait")
    m.bus_error(0, "while unbinding waits")
    os.close(ring)
    unbinding.result()
    check("no folio is in use any more" in _log(), "no message about the end")
    m.unmap()
    os.close(fd)
    _bind()


@case(fs=(), timeout=120)
def unbinding_under_load(t):
    _namespace("2M")
    for _ in range(3):
        fd = _open()
        ready = os.pipe()

        def load(fd=fd, ready=ready):
            with Map(fd, 16 * PMD) as m, Map(fd, 4 * PMD, offset=PAGE) as small:
                rounds = 0
                while not m.store(37 * rounds * PAGE % m.length, 1).signal:
                    if small.load(37 * rounds * PAGE % small.length)[1].signal:
                        break
                    m.advise(posix.MADV_DONTNEED)
                    rounds += 1
                    if rounds == 100:
                        os.write(ready[1], b"r")

        tasks = [Task(load) for _ in range(3)]
        for _ in tasks:
            equal(os.read(ready[0], 1), b"r", "a task that is faulting all the time")
        for end in ready:
            os.close(end)
        _unbind()
        for task in tasks:
            task.result()
        _bind()
        os.close(fd)


@case(fs=(), timeout=180)
def drivers_take_turns(t):
    if subprocess.run(["modprobe", "device_dax"], check=False).returncode:
        raise Skip("there is no module device_dax")
    _namespace("2M")
    for turn in range(20):
        driver = ("device_dax", "rdax")[turn % 2]
        _bind(driver)
        fd = _open()
        with Map(fd, 2 * PMD) as m:
            if turn:
                m.load_ok(PMD, turn, "what the other driver's turn left")
            equal(m.store(PMD, turn + 1).signal, 0, f"signal of a store with {driver}")
            m.touch(write=True)
        os.close(fd)
    check(os.path.exists(f"{SYSFS}/rdax/stats"), "there are no counters")


def _new_memory_is_not_used():
    """Memory that comes from now on stays offline.

    Used, by the page cache or the kernel itself, it might not be given back for ever.
    """
    write("/sys/devices/system/memory/auto_online_blocks", "offline")


@case(fs=(), timeout=120)
def memory_and_back(t):
    """Another driver on the bus, which makes ordinary memory of the device."""
    if subprocess.run(["modprobe", "kmem"], check=False).returncode:
        raise Skip("there is no module kmem")
    _namespace("2M")
    _new_memory_is_not_used()
    _unbind()
    try:
        write(f"{BUS}/drivers/kmem/new_id", NAME)
        if _driver() != "kmem":
            raise Skip("the driver kmem does not take this device")
        write(f"{SYSFS}/state", "unplugged")
    except OSError as error:
        raise Skip(f"the driver kmem: {error}") from error
    finally:
        write(f"{BUS}/drivers/kmem/remove_id", NAME)
    _bind()
    fd = _open()
    with Map(fd, 2 * PMD) as m:
        equal(m.store(0, 1).signal, 0, "signal of a store")
    os.close(fd)


@case(fs=())
def daxctl_knows(t):
    _namespace("2M")
    found = json.loads(run("daxctl", "list", "-d", NAME))
    equal(found[0]["chardev"], NAME, "daxctl's name of the device")
    equal(found[0]["size"], _size(), "daxctl's size of the device")


def _holds(value, what):
    """The device's first byte, through whatever driver it has."""
    with open(NODE, "r+b", buffering=0) as file, Map(file.fileno(), PMD) as m:
        m.load_ok(0, value, what)


@case(fs=())
def the_recipe_works(t):
    """Handing a device over and taking it back as the documentation says, whether or not the kernel's
    driver is loaded."""
    _namespace("2M")
    hand_over, take_back = _recipe()
    write(f"{BUS}/drivers/rdax/remove_id", NAME)
    for loaded in (True, False):
        _unbind()
        run("modprobe", *(() if loaded else ("-r",)), "device_dax")
        for script, driver in ((hand_over, "rdax"), (take_back, "device_dax")):
            run("sh", "-e", "-c", script)
            equal(_driver(), driver, f"driver (device_dax loaded before: {loaded})")
            if driver == "rdax":
                # The next one is new again.
                write(f"{BUS}/drivers/rdax/remove_id", NAME)
    _bind()


@case(fs=(), timeout=120)
def daxctl_changes_drivers(t):
    """disable-device takes it away, enable-device gives it to the kernel's driver."""
    for module in ("device_dax", "kmem"):
        if subprocess.run(["modprobe", module], check=False).returncode:
            raise Skip(f"there is no module {module}")
    _namespace("2M")
    with open(NODE, "r+b", buffering=0) as file, Map(file.fileno(), PMD) as m:
        equal(m.store(0, 0x5a).signal, 0, "signal of a store")
    said = run("daxctl", "reconfigure-device", "-m", "devdax", NAME)
    check("already in devdax mode" in said, said)
    equal(_driver(), "rdax", "driver of what is in that mode already")
    for _ in range(3):
        run("daxctl", "disable-device", NAME)
        equal(_driver(), None, "driver after disable-device")
        run("daxctl", "enable-device", NAME)
        equal(_driver(), "device_dax", "driver after enable-device")
        _holds(0x5a, "with the kernel's driver")
        _bind()
        _holds(0x5a, "with this driver")
    # To ordinary memory and back.
    _new_memory_is_not_used()
    run("daxctl", "reconfigure-device", "-N", "-m", "system-ram", NAME)
    equal(_driver(), "kmem", "driver in mode system-ram")
    write(f"{SYSFS}/state", "unplugged")
    _bind()
    with open(NODE, "r+b", buffering=0) as file, Map(file.fileno(), PMD) as m:
        equal(m.store(0, 1).signal, 0, "signal of a store in the end")


def end_of_group():
    if not os.path.isdir(SYSFS):
        return
    _unbind()
    write(f"{BUS}/drivers/rdax/remove_id", NAME)
    run("ndctl", "create-namespace", "-f", "-e", NAMESPACE, "-m", "fsdax", "-a", "2M")
