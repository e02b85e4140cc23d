# SPDX-License-Identifier: GPL-2.0
"""What is written is what is read, by every way in and out of a file."""

import hashlib
import os
import random
import resource
import signal
import subprocess

from lib import posix
from lib.check import Skip, check, equal, raises, same_bytes
from lib.device import run
from lib.mapping import Map
from lib.pattern import ZERO, noise, page, pages
from lib.posix import PAGE, PMD
from lib.runner import case
from lib.space import neighbours, overlap
from lib.task import Task
from lib.uffd import Missing

EAGAIN = 11


def _fio(t, *jobs, **common):
    """Run fio; it ends with an error as soon as what it reads is not what it wrote."""
    options = dict(directory=t.dir, verify="crc32c", verify_fatal=1, verify_state_save=0,
                   thread=1, stonewall=1, end_fsync=1, size="4m", randseed=t.settings.seed)
    options.update(common)
    command = ["fio", "--output-format=terse", "--terse-version=3"]
    for job in jobs:
        command.append(f"--name={job.pop('name')}")
        command += [f"--{key}={value}" for key, value in {**options, **job}.items()]
    output = run(*command)
    lines = [line.split(";") for line in output.splitlines() if line.startswith("3;")]
    equal(len(lines), len(jobs), "jobs that fio reports")
    for line in lines:
        check(line[4] == "0", f"fio: {line[2]} ended with error {line[4]}")
        read_kib, written_kib = int(line[5]), int(line[46])
        check(read_kib or written_kib, f"fio: {line[2]} moved nothing: {output}")


def _sizes(t, rw):
    sizes = ["4k", "2m"] if t.settings.quick else ["4k", "16k", "128k", "2m"]
    return [dict(name=f"{rw}{bs}", bs=bs, rw=rw) for bs in sizes]


@case(quick=False)
def fio_mmap_sequential(t):
    _fio(t, *_sizes(t, "write"), ioengine="mmap")


@case()
def fio_mmap_random(t):
    _fio(t, *_sizes(t, "randwrite"), ioengine="mmap")


@case(quick=False)
def fio_psync_sequential(t):
    _fio(t, *_sizes(t, "write"), ioengine="psync")


@case(quick=False)
def fio_psync_random(t):
    _fio(t, *_sizes(t, "randwrite"), ioengine="psync")


@case()
def fio_mixed_engines(t):
    """Written by one way, verified by the other."""
    one = dict(filename=t.path("one"), bs="4k", rw="randwrite", directory="/")
    two = dict(filename=t.path("two"), bs="64k", rw="randwrite", directory="/")
    _fio(t, dict(one, name="w1", ioengine="psync", do_verify=0),
         dict(one, name="v1", ioengine="mmap", verify_only=1),
         dict(two, name="w2", ioengine="mmap", do_verify=0),
         dict(two, name="v2", ioengine="psync", verify_only=1))


@case(quick=False)
def fio_mixed_read_write(t):
    """Reads and writes at odd sizes at the same time, several files."""
    _fio(t, dict(name="mmap", ioengine="mmap"), dict(name="psync", ioengine="psync"),
         rw="randrw", bsrange="512-64k", bs_unaligned=1, size="2m", nrfiles=2)


@case()
def sparse_file(t):
    """Few pages far apart: they are there, the rest is zero, and reading allocates nothing."""
    size, fd = 64 << 20, t.open(size=64 << 20)
    spots = [0, 7 * PAGE, PMD - PAGE, PMD, 13 * PMD + 5 * PAGE, size - PAGE]
    with Map(fd, size) as m:
        for i, spot in enumerate(spots):
            if i % 2:
                m.write(spot, page("m", i))
            else:
                equal(os.pwrite(fd, page("p", i), spot), PAGE, "pwrite")
        os.fsync(fd)
        before = os.fstat(fd).st_blocks
        for i, spot in enumerate(spots):
            wanted = page("m" if i % 2 else "p", i)
            same_bytes(m.read(spot, PAGE), wanted, f"mapping at {spot:#x}")
            same_bytes(os.pread(fd, PAGE, spot), wanted, f"pread at {spot:#x}")
            for hole in (spot - PAGE, spot + PAGE):
                if 0 <= hole < size and hole not in spots:
                    same_bytes(m.read(hole, PAGE), ZERO, f"hole in the mapping at {hole:#x}")
                    same_bytes(os.pread(fd, PAGE, hole), ZERO, f"pread of the hole at {hole:#x}")
        same_bytes(os.pread(fd, PMD, 20 * PMD), bytes(PMD), "a large hole")
        m.touch(24 * PMD, 4 * PMD)
        equal(os.fstat(fd).st_blocks, before, "blocks of the file after its holes were read")
    check(before * 512 < 8 * PMD, f"{before} blocks for {len(spots)} pages")


@case()
def zeroes_read_then_their_neighbour_written(t):
    """A filesystem may make the blocks beside a write written ones, too."""
    fd = t.open(allocate=8 * PAGE)
    with Map(fd, 8 * PAGE, skew=PAGE) as m:
        for i in (2, 5, 0, 7):
            m.touch()
            equal(os.pwrite(fd, page("p", i), i * PAGE), PAGE, "pwrite")
            same_bytes(m.read(i * PAGE, PAGE), page("p", i), f"mapping of page {i} after a write")
    os.close(fd)


@case()
def hole_read_then_stored(t):
    """The zero page goes from every mapping when one of them stores."""
    fd = t.open(size=PMD)
    with Map(fd, PMD, align=PAGE) as reader, Map(fd, PMD, align=PAGE) as writer:
        for i in range(8):
            same_bytes(reader.read(i * PAGE, PAGE), ZERO, "hole")
            same_bytes(writer.read(i * PAGE, PAGE), ZERO, "hole in the other mapping")
        for i in range(0, 8, 2):
            writer.write(i * PAGE, page("w", i))
        for i in range(8):
            wanted = ZERO if i % 2 else page("w", i)
            same_bytes(reader.read(i * PAGE, PAGE), wanted, f"page {i} in the reader")
            same_bytes(os.pread(fd, PAGE, i * PAGE), wanted, f"page {i} by pread")
        reader.write(3 * PAGE, page("r", 3))
        same_bytes(writer.read(3 * PAGE, PAGE), page("r", 3), "page 3 in the writer")
        t.holds("with holes and pages mapped")


@case()
def hole_read_then_stored_by_another_process(t):
    fd = t.open(size=PMD)
    with Map(fd, PMD) as m:
        m.touch()

        def child():
            with Map(fd, PMD) as mine:
                same_bytes(mine.read(5 * PAGE, PAGE), ZERO, "hole")
                mine.write(5 * PAGE, page("c", 5))

        Task(child).result()
        same_bytes(m.read(5 * PAGE, PAGE), page("c", 5), "what the other process stored")
        same_bytes(m.read(4 * PAGE, PAGE), ZERO, "the page before it")


@case()
def hole_read_then_pwritten(t):
    """pwrite() allocates the block: a mapping that shows the zero page must not keep it."""
    for skew, name in ((0, "aligned"), (PAGE, "unaligned")):
        fd = t.open(name, size=2 * PMD)
        with Map(fd, 2 * PMD, skew=skew) as m:
            m.touch()
            os.pwrite(fd, b"some", 3 * PAGE + 100)
            same_bytes(m.read(3 * PAGE, PAGE), ZERO[:100] + b"some" + ZERO[104:],
                       f"{name} mapping of a page written in part")
            os.pwrite(fd, page("p", 9), PMD + 9 * PAGE)
            same_bytes(m.read(PMD + 9 * PAGE, PAGE), page("p", 9), f"{name} mapping")
            same_bytes(m.read(PMD + 10 * PAGE, PAGE), ZERO, f"{name} mapping of a hole")


@case()
def huge_hole_then_one_store(t):
    """A 2 MiB zero page gives way to one page of data; its neighbours stay zero."""
    fd = t.open(size=4 * PMD)
    with Map(fd, 4 * PMD) as m, Map(fd, 4 * PMD) as other:
        for hole in range(4):
            equal(m.load(hole * PMD)[0], 0, "hole")
            equal(other.load(hole * PMD + 77)[0], 0, "hole")
        m.write(PMD + 300 * PAGE, page("s", 300))
        for view, name in ((m, "own"), (other, "other")):
            same_bytes(view.read(PMD, PMD),
                       bytes(300 * PAGE) + page("s", 300) + bytes(211 * PAGE),
                       f"{name} mapping")
        same_bytes(os.pread(fd, PMD, PMD), other.read(PMD, PMD), "pread")
        same_bytes(other.read(2 * PMD, PMD), bytes(PMD), "the next hole")


@case()
def unaligned_reads_and_writes(t):
    """Random pieces against a model, through pread, pwrite and a mapping."""
    rng = random.Random(t.settings.seed)
    size = 96 * PAGE + 123
    fd, model = t.open(size=size), bytearray(size)
    with Map(fd, 97 * PAGE) as m:
        for step in range(60 if t.settings.quick else 200):
            length = rng.choice((1, 7, 100, 511, 4095, 4096, 4097, 9000, 70000))
            at = rng.randrange(0, size - length)
            what = f"step {step}: {length} bytes at {at:#x} (seed {t.settings.seed})"
            if rng.random() < 0.5:
                data = rng.randbytes(length)
                if rng.random() < 0.6:
                    equal(os.pwrite(fd, data, at), length, f"{what}: pwrite")
                else:
                    m.write(at, data)
                model[at:at + length] = data
            elif rng.random() < 0.5:
                same_bytes(os.pread(fd, length, at), model[at:at + length], f"{what}: pread")
            else:
                same_bytes(m.read(at, length), model[at:at + length], f"{what}: mapping")
        same_bytes(os.pread(fd, size + 10, 0), model, "the whole file")


@case()
def vectors(t):
    """readv and writev with pieces of all kinds, and an empty one."""
    fd = t.open(size=0)
    parts = [b"", b"a", noise(4095, 1), noise(8192, 2), b"", noise(3, 3)]
    whole = b"".join(parts)
    equal(os.pwritev(fd, parts, 1000), len(whole), "pwritev")
    into = [bytearray(n) for n in (1000, 5, 0, 4096, len(whole) - 4101, 50)]
    equal(os.preadv(fd, into, 0), 1000 + len(whole), "preadv")
    same_bytes(b"".join(into), bytes(1000) + whole + bytes(50), "preadv")


@case()
def read_ends_at_eof(t):
    fd = t.open()
    os.pwrite(fd, b"x" * 5000, 0)
    same_bytes(os.pread(fd, 100000, 4990), b"x" * 10, "read across the end")
    same_bytes(os.pread(fd, 10, 5000), b"", "read at the end")
    same_bytes(os.pread(fd, 10, 1 << 40), b"", "read far past the end")
    os.ftruncate(fd, 3 * PAGE)
    same_bytes(os.pread(fd, 4 * PAGE, 4996), b"x" * 4 + bytes(3 * PAGE - 5000), "grown")


@case()
def nowait(t):
    """RWF_NOWAIT gives what can be had at once, or EAGAIN, and never something wrong."""
    fd = t.open()
    os.pwrite(fd, pages("n", 16), 0)
    os.fsync(fd)
    got = bytearray(16 * PAGE)
    try:
        equal(os.preadv(fd, [got], 0, os.RWF_NOWAIT), 16 * PAGE, "preadv without waiting")
        same_bytes(got, pages("n", 16), "preadv without waiting")
    except BlockingIOError:
        t.note("preadv would have had to wait")
    # ext4 takes such writes only as direct ones.
    direct = t.open(flags=os.O_DIRECT)
    try:
        equal(os.pwritev(direct, [page("o", 3)], 3 * PAGE, os.RWF_NOWAIT), PAGE, "pwritev")
        same_bytes(os.pread(fd, PAGE, 3 * PAGE), page("o", 3), "pwritev without waiting")
    except BlockingIOError:
        same_bytes(os.pread(fd, PAGE, 3 * PAGE), page("n", 3), "page not written")
    # A block that is not there yet cannot be written without waiting.
    raises((EAGAIN, 95), "pwritev into a hole", os.pwritev, direct, [ZERO], 64 * PAGE, os.RWF_NOWAIT)
    equal(os.fstat(fd).st_size, 16 * PAGE, "size of the file")


@case()
def append(t):
    """O_APPEND in odd pieces, seen through a mapping made before the data was there."""
    fd = t.open(flags=os.O_APPEND)
    model = b""
    with Map(fd, 64 * PAGE) as m:
        for i in range(40):
            piece = noise(1 + (i * 1237) % 9001, i)
            equal(os.write(fd, piece), len(piece), "write")
            model += piece
            if i % 5 == 0:
                at = max(0, len(model) - len(piece) - 50)
                same_bytes(m.read(at, len(model) - at), model[at:], f"mapping after piece {i}")
                tail = -len(model) % PAGE
                same_bytes(m.read(len(model), tail), bytes(tail), "bytes of the last page past EOF")
    same_bytes(os.pread(fd, len(model) + 1, 0), model, "the file")


@case()
def grow_under_mapping(t):
    fd = t.open()
    os.pwrite(fd, pages("g", 2), 0)
    with Map(fd, 16 * PAGE) as m:
        same_bytes(m.read(0, 2 * PAGE), pages("g", 2), "mapping")
        m.bus_error(2 * PAGE + 17, "load past EOF")
        m.bus_error(5 * PAGE, "store past EOF", write=True)
        os.ftruncate(fd, 4 * PAGE + 1)
        same_bytes(m.read(2 * PAGE, 3 * PAGE), bytes(3 * PAGE), "grown part")
        m.write(4 * PAGE, page("h", 4))
        m.bus_error(5 * PAGE, "load past the new EOF")
        os.ftruncate(fd, 16 * PAGE)
        same_bytes(m.read(4 * PAGE, 1), page("h", 4)[:1], "byte inside the old size")
        same_bytes(m.read(4 * PAGE + 1, PAGE - 1), ZERO[1:], "bytes past the old size")
        same_bytes(m.read(5 * PAGE, 11 * PAGE), bytes(11 * PAGE), "grown part")


@case()
def shrink_under_mapping(t):
    fd = t.open()
    os.pwrite(fd, pages("s", 8), 0)
    with Map(fd, 8 * PAGE) as m:
        m.write(0, pages("t", 8))
        os.ftruncate(fd, PAGE + 2000)
        m.bus_error(2 * PAGE, "load past the new EOF")
        m.bus_error(7 * PAGE + 5, "store past the new EOF", write=True)
        same_bytes(m.read(0, PAGE + 2000), pages("t", 8)[:PAGE + 2000], "what is left")
        same_bytes(m.read(PAGE + 2000, PAGE - 2000), bytes(PAGE - 2000), "rest of the last page")
        os.ftruncate(fd, 8 * PAGE)
        same_bytes(m.read(PAGE + 2000, 7 * PAGE - 2000), bytes(7 * PAGE - 2000), "grown again")
        same_bytes(os.pread(fd, 8 * PAGE, 0), m.read(0, 8 * PAGE), "pread")


@case()
def shrink_inside_huge_page(t):
    fd = t.open(allocate=2 * PMD)
    with Map(fd, 2 * PMD) as m:
        m.write(0, pages("h", 1024))
        os.ftruncate(fd, 200 * PAGE + 100)
        m.bus_error(201 * PAGE, "load past the new EOF, same huge page")
        m.bus_error(PMD, "load of the second huge page")
        same_bytes(m.read(0, 200 * PAGE + 100), pages("h", 201)[:200 * PAGE + 100], "what is left")
        same_bytes(m.read(200 * PAGE + 100, PAGE - 100), ZERO[100:], "rest of the last page")
        os.ftruncate(fd, 2 * PMD)
        same_bytes(m.read(200 * PAGE + 100, PMD), bytes(PMD), "grown again")
        m.write(PMD + 5 * PAGE, page("i", 5))
        same_bytes(os.pread(fd, PAGE, PMD + 5 * PAGE), page("i", 5), "stored after growing")


def _ranges(t, fd, model, m, offset, length):
    """Every fallocate mode over a range, mapping and model side by side."""
    size = len(model)

    def same(what):
        same_bytes(m.read(0, size), model, f"mapping after {what}")
        same_bytes(os.pread(fd, size, 0), model, f"pread after {what}")

    model[:] = noise(size, 5)
    m.write(0, model)
    posix.fallocate(fd, posix.PUNCH_HOLE | posix.KEEP_SIZE, offset, length)
    model[offset:offset + length] = bytes(length)
    same("punching a hole")
    m.write(offset, noise(length, 6))
    model[offset:offset + length] = noise(length, 6)
    posix.fallocate(fd, posix.ZERO_RANGE | posix.KEEP_SIZE, offset, length)
    model[offset:offset + length] = bytes(length)
    same("zeroing a range")
    posix.fallocate(fd, posix.PUNCH_HOLE | posix.KEEP_SIZE, offset + 100, length - 300)
    same("punching an unaligned hole in zeros")
    posix.fallocate(fd, posix.ZERO_RANGE | posix.KEEP_SIZE, offset + length - 50, 150)
    model[offset + length - 50:offset + length + 100] = bytes(150)
    same("zeroing an unaligned range")
    posix.fallocate(fd, posix.COLLAPSE_RANGE, offset, length)
    model[offset:] = model[offset + length:] + bytes(length)
    m.bus_error(size - PAGE, "load past the end of the collapsed file")
    os.ftruncate(fd, size)
    same("collapsing a range")
    m.write(offset, page("c", 1))
    model[offset:offset + PAGE] = page("c", 1)
    posix.fallocate(fd, posix.INSERT_RANGE, offset, length)
    os.ftruncate(fd, size)
    model[offset:] = (bytes(length) + model[offset:])[:size - offset]
    same("inserting a range")


@case()
def ranges_under_mapping(t):
    fd, model = t.open(size=64 * PAGE), bytearray(64 * PAGE)
    with Map(fd, len(model), skew=PAGE) as m:
        _ranges(t, fd, model, m, 8 * PAGE, 16 * PAGE)


@case()
def ranges_under_huge_mapping(t):
    fd, model = t.open(allocate=2 * PMD), bytearray(2 * PMD)
    with Map(fd, len(model)) as m:
        _ranges(t, fd, model, m, 100 * PAGE, 64 * PAGE)


@case()
def unwritten_extent_is_zero(t):
    """Allocated blocks show nothing of what they held before, for another file."""
    fd, old = neighbours(t, 2 * PMD)
    with Map(old, 2 * PMD) as m:
        m.write(0, b"\xee" * (2 * PMD))
    os.fsync(old)
    blocks = posix.extents(old)
    os.ftruncate(old, 0)
    os.close(old)
    t.sync()
    for at in (2 * PMD, 3 * PMD):
        posix.fallocate(fd, 0, at, PMD)
    reused = overlap(blocks, posix.extents(fd))
    if reused < PMD:
        raise Skip(f"the filesystem gave other blocks: only {reused} bytes are the old ones")
    wanted = bytearray(2 * PMD)
    with Map(fd, 2 * PMD, offset=2 * PMD) as m, \
            Map(fd, 2 * PMD, offset=2 * PMD, skew=PAGE) as small:
        same_bytes(m.read(0, PMD), bytes(PMD), "unwritten extent")
        for view, offset, value in ((small, PMD + 3 * PAGE + 5, 0x11), (m, 5, 0x22)):
            view.store(offset, value)
            wanted[offset] = value
        os.pwrite(fd, b"\x33", 3 * PMD + 5 * PAGE + 5)
        wanted[PMD + 5 * PAGE + 5] = 0x33
        same_bytes(m.read(0, 2 * PMD), wanted, "mapping after stores")
        same_bytes(os.pread(fd, 2 * PMD, 2 * PMD), wanted, "pread after stores")


@case()
def io_from_own_mapping(t):
    """The buffer of a read or write is a mapping of the same file, not faulted in yet."""
    fd = t.open(allocate=2 * PMD)
    os.pwrite(fd, pages("a", 32), 0)
    with Map(fd, 2 * PMD, skew=PAGE) as m:
        equal(posix.pwrite_from(fd, m.address + 100, 20 * PAGE, 64 * PAGE + 7), 20 * PAGE, "pwrite")
        same_bytes(m.read(64 * PAGE + 7, 20 * PAGE), pages("a", 32)[100:100 + 20 * PAGE], "copy")
    with Map(fd, 2 * PMD) as m:
        equal(posix.pread_to(fd, m.address + PMD + 50, 10 * PAGE, 3 * PAGE), 10 * PAGE, "pread")
    same_bytes(os.pread(fd, 10 * PAGE, PMD + 50), pages("a", 10, 3), "read into the mapping")


@case()
def bad_buffers(t):
    """A buffer that cannot be read or written: EFAULT, or as much as could be done."""
    fd = t.open()
    os.pwrite(fd, pages("b", 4), 0)
    with Map(-1, 4 * PAGE, flags=posix.MAP_PRIVATE | posix.MAP_ANONYMOUS) as m:
        m.write(0, pages("z", 2))
        m.unmap_part(2 * PAGE, 2 * PAGE)
        raises(14, "pread to nowhere", posix.pread_to, fd, m.address + 2 * PAGE, PAGE, 0)
        raises(14, "pwrite from nowhere", posix.pwrite_from, fd, m.address + 2 * PAGE, PAGE, 0)
        same_bytes(os.pread(fd, 4 * PAGE, 0), pages("b", 4), "the file after a failed write")
        done = posix.pwrite_from(fd, m.address + PAGE, 2 * PAGE, 0)
        check(0 < done <= PAGE, f"{done} bytes written of one good page")
        wanted = pages("z", 1, 1)[:done] + pages("b", 4)[done:]
        same_bytes(os.pread(fd, 4 * PAGE, 0), wanted, "the file after a write cut short")
        done = posix.pread_to(fd, m.address + PAGE, 2 * PAGE, 2 * PAGE)
        check(0 < done <= PAGE, f"{done} bytes read to one good page")
        same_bytes(m.read(PAGE, done), pages("b", 1, 2)[:done], "the good part of the buffer")


@case()
def program_runs_from_dax(t):
    with open("/bin/busybox", "rb") as source:
        program = source.read()
    fd = t.open("busybox", flags=os.O_TRUNC)
    equal(os.write(fd, program), len(program), "write")
    os.fchmod(fd, 0o755)
    os.close(fd)
    said = subprocess.run([t.path("busybox"), "echo", "from", "dax"], stdout=subprocess.PIPE,
                          check=False)
    same_bytes(said.stdout, b"from dax\n", "what the program printed")


@case()
def sendfile(t):
    fd, out = t.open(), t.open("copy")
    os.pwrite(fd, pages("f", 40), 0)
    reader, writer = os.pipe()
    done = 0
    while done < 40 * PAGE:
        moved = os.splice(fd, writer, 30000, offset_src=done)
        check(moved > 0, "splice moved nothing")
        while moved:
            put = os.splice(reader, out, moved)
            moved -= put
            done += put
    same_bytes(os.pread(out, 41 * PAGE, 0), pages("f", 40), "spliced copy")
    os.ftruncate(out, 0)
    os.lseek(out, 0, os.SEEK_SET)
    equal(os.sendfile(out, fd, 5000, 10 * PAGE), 10 * PAGE, "sendfile")
    same_bytes(os.pread(out, 11 * PAGE, 0), pages("f", 40)[5000:5000 + 10 * PAGE], "sent copy")


@case(quick=False)
def equal_after_remount(t):
    """Everything above in one tree, compared before and after umount and mount."""
    for i in range(3):
        fd = t.open(f"huge{i}", allocate=PMD)
        with Map(fd, PMD) as m:
            m.write(i * 5000, noise(PMD - 20000, i))
        os.close(fd)
        fd = t.open(f"small{i}", size=40 * PAGE + i)
        with Map(fd, 40 * PAGE, skew=PAGE) as m:
            m.write(3 * PAGE + 5, noise(9000, 10 + i))
            os.pwrite(fd, noise(6000, 20 + i), 20 * PAGE + 77)
            posix.fallocate(fd, posix.PUNCH_HOLE | posix.KEEP_SIZE, 4 * PAGE, PAGE)
            m.write(30 * PAGE, noise(100, 30 + i))
            os.ftruncate(fd, 35 * PAGE + i)
        os.close(fd)

    def sums():
        found = {}
        for name in sorted(os.listdir(t.dir)):
            with open(t.path(name), "rb") as f:
                found[name] = hashlib.sha256(f.read()).hexdigest()
        return found

    before = sums()
    equal(len(set(before.values())), 6, "different files")
    t.fs.remount()
    equal(sums(), before, "contents after remounting")


def _major_faults():
    with open("/proc/vmstat", encoding="ascii") as f:
        counted = dict(line.split() for line in f)
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt, int(counted["pgmajfault"])


@case()
def new_blocks_are_major_faults(t):
    """A store for which the filesystem has to find blocks counts as a major fault, no other."""
    fd = t.open(size=64 * PAGE)
    with Map(fd, 64 * PAGE, skew=PAGE) as m:
        before = _major_faults()
        for at in range(64):
            m.write(at * PAGE, b"n")
        own, all_ = (now - then for now, then in zip(_major_faults(), before, strict=True))
        check(64 <= own <= 70, f"{own} major faults of the task for 64 new blocks")
        check(all_ >= own, f"{all_} major faults in all, {own} of the task")
    with Map(fd, 64 * PAGE, skew=PAGE) as m:
        before = _major_faults()
        m.touch(write=True)
        check(_major_faults()[0] - before[0] <= 6, "blocks that are there are major faults")


@case()
def killed_in_the_middle_of_a_write(t):
    """Whoever is killed while a write makes the file longer leaves what was written, and a filesystem
    with which its checker finds nothing wrong."""
    data = pages("k", 2)

    def write():
        fd = t.open()
        with Map(-1, 2 * PAGE, flags=posix.MAP_PRIVATE | posix.MAP_ANONYMOUS) as source, \
                Missing(source) as missing:
            missing.give(data[:PAGE])
            # The rest never comes.
            posix.pwrite_from(fd, source.address, 2 * PAGE, 100)

    writer = Task(write)
    writer.blocked_in("pwrite64")
    writer.kill()
    equal(writer.signalled(), signal.SIGKILL, "signal")
    with open(t.path(), "rb") as f:
        same_bytes(f.read(), bytes(100) + data[:PAGE], "what was written")
    t.fs.umount()
    try:
        t.fs.check()
    finally:
        t.fs.mount()
