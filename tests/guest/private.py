# SPDX-License-Identifier: GPL-2.0
"""Private mappings: copies belong to the process, the file never hears of them."""

import os

from lib import posix
from lib.check import check, equal, same_bytes
from lib.device import some
from lib.mapping import SIGSEGV, Map
from lib.native import probe
from lib.pattern import ZERO, page, pages
from lib.pattern import file as _file
from lib.posix import PAGE, PMD
from lib.runner import case
from lib.task import Task
from lib.trace import Pages

PRIVATE = posix.MAP_PRIVATE


def _unchanged(fd, count, what):
    same_bytes(os.pread(fd, count * PAGE, 0), pages("f", count), f"the file {what}")


@case(alone=True)
def copy_on_write(t):
    fd = _file(t, 16 * PAGE)
    stats = t.stats()
    with Map(fd, 16 * PAGE, flags=PRIVATE, align=PAGE) as m, Map(fd, 16 * PAGE) as shared:
        m.touch(0, 4 * PAGE)
        m.store(PAGE + 9, 0xC1)         # read before
        m.store(8 * PAGE + 9, 0xC2)     # not read before
        for i, value in ((1, 0xC1), (8, 0xC2)):
            wanted = bytearray(page("f", i))
            wanted[9] = value
            same_bytes(m.read(i * PAGE, PAGE), wanted, f"private copy of page {i}")
            same_bytes(shared.read(i * PAGE, PAGE), page("f", i), f"shared mapping of page {i}")
        same_bytes(m.read(9 * PAGE, PAGE), page("f", 9), "page that was not copied")
        _unchanged(fd, 16, "after private stores")
        shared.write(0, page("s", 0))
        same_bytes(m.read(0, PAGE), page("s", 0), "page that was only read follows the file")
        stats.expect(private_pte=some)


@case()
def copies_are_not_device_pages(t):
    """A copy is ordinary memory; its source is idle once it was made."""
    state, fd = Pages(), _file(t, 4 * PAGE)
    with Map(fd, 4 * PAGE, skew=PAGE) as shared:
        shared.touch()
        pfns = shared.pfns()
    with Map(fd, 4 * PAGE, flags=PRIVATE, skew=PAGE) as m:
        m.touch()
        equal(m.pfns(), pfns, "page frames before the copy")
        m.store(PAGE, 1)
        m.store(3 * PAGE, 1)
        check(m.pfn(PAGE) not in pfns and m.pfn(3 * PAGE) not in pfns, "no copy was made")
        equal(state.refcounts(pfns), [1, 0, 1, 0], "references to the file's pages")
    state.check_idle(pfns, "after munmap")


@case()
def copy_inside_huge_page(t):
    fd = _file(t, 2 * PMD)
    stats = t.stats()
    with Map(fd, 2 * PMD, flags=PRIVATE) as m:
        m.touch(step=PMD)
        m.store(5 * PAGE, 0xC5)
        m.store(PMD + 511 * PAGE + 4095, 0xC6)
        wanted = bytearray(pages("f", 1024))
        wanted[5 * PAGE] = 0xC5
        wanted[-1] = 0xC6
        same_bytes(m.read(0, 2 * PMD), wanted, "private mapping")
        _unchanged(fd, 1024, "after private stores")
        stats.expect(private_pte=2, write_pmd=0)
    with Map(fd, 2 * PMD, flags=PRIVATE) as m:
        m.store(3, 1)
        stats.expect(private_pte=3, fallback_private=lambda n: n >= 0)
        equal(m.mapped_huge(), 0, "bytes mapped by huge entries after a private store")
        same_bytes(m.read(PAGE, PAGE), page("f", 1), "next page")


@case()
def copy_of_a_hole(t):
    """A private store into a hole allocates nothing and copies zeros."""
    fd = t.open(size=2 * PMD)
    for skew in (0, PAGE):
        with Map(fd, 2 * PMD, flags=PRIVATE, skew=skew) as m:
            m.touch(0, 3 * PAGE)
            for i in (1, 7):
                m.store(i * PAGE + 5, 0xC0 + i)
                wanted = bytearray(PAGE)
                wanted[5] = 0xC0 + i
                same_bytes(m.read(i * PAGE, PAGE), wanted, f"copy of page {i} of the hole")
            same_bytes(m.read(2 * PAGE, PAGE), ZERO, "page beside it")
    equal(os.fstat(fd).st_blocks, 0, "blocks of the file")
    same_bytes(os.pread(fd, 10 * PAGE, 0), bytes(10 * PAGE), "the file")


@case()
def truncated_meanwhile(t):
    """Copies beyond the new end go, those before it stay."""
    fd = _file(t, 8 * PAGE)
    with Map(fd, 8 * PAGE, flags=PRIVATE) as m:
        for i in (1, 2, 3, 6):
            m.write(i * PAGE, page("c", i))
        os.ftruncate(fd, 3 * PAGE)
        m.bus_error(3 * PAGE, "copy past the new EOF")
        m.bus_error(6 * PAGE + 8, "copy past the new EOF", write=True)
        same_bytes(m.read(0, 3 * PAGE), page("f", 0) + pages("c", 2, 1), "what is left")
        os.ftruncate(fd, 8 * PAGE)
        same_bytes(m.read(3 * PAGE, 5 * PAGE), bytes(5 * PAGE), "grown again")
        m.write(6 * PAGE, page("d", 6))
        same_bytes(os.pread(fd, PAGE, 6 * PAGE), ZERO, "the file under the new copy")


@case()
def punched_meanwhile(t):
    """A hole in the file does not reach a copy that was made before."""
    fd = _file(t, 8 * PAGE)
    with Map(fd, 8 * PAGE, flags=PRIVATE) as m:
        m.touch()
        m.write(2 * PAGE, page("c", 2))
        posix.fallocate(fd, posix.PUNCH_HOLE | posix.KEEP_SIZE, PAGE, 3 * PAGE)
        same_bytes(m.read(0, 5 * PAGE), page("f", 0) + ZERO + page("c", 2) + ZERO + page("f", 4),
                   "private mapping after the hole was punched")


@case(timeout=40)
def truncate_races_with_copies(t):
    """A page is copied as the file has it or as zero, never as something else."""
    count = 32
    fd = t.open()
    letters = bytes(range(1, count + 1))
    whole = b"".join(bytes([b]) * PAGE for b in letters)
    os.pwrite(fd, whole, 0)
    noise = t.open("noise")

    def cut_and_grow():
        """The blocks are wanted elsewhere as soon as they are free."""
        turns = 0
        while True:
            os.ftruncate(fd, (turns % count) * PAGE)
            os.ftruncate(noise, 0)
            os.pwrite(noise, b"\xfe" * (count * PAGE), 0)
            os.pwrite(fd, whole, 0)
            turns += 1

    task = Task(cut_and_grow)
    copies = probe().private_race(fd, count * PAGE, letters, 1000 if t.settings.quick else 3000)
    check(not task.done(), f"the other process ended: {task.done() and task.outcome()}")
    task.kill()
    task.signalled()
    check(copies > 0, f"wrong byte at {-copies - 1:#x} of a copy" if copies else "no copy was made")
    t.note(f"{copies} copies checked")


@case()
def fork_of_private(t):
    """Parent and child part ways at the fork, copied or not."""
    fd = _file(t, 8 * PAGE)
    with Map(fd, 8 * PAGE, flags=PRIVATE) as m:
        m.write(PAGE, page("p", 1))
        m.touch(2 * PAGE, 1)

        def child():
            same_bytes(m.read(0, 3 * PAGE), page("f", 0) + page("p", 1) + page("f", 2),
                       "child's view")
            m.write(0, pages("c", 3))
            same_bytes(m.read(0, 4 * PAGE), pages("c", 3) + page("f", 3), "child's own copies")

        Task(child).result()
        same_bytes(m.read(0, 4 * PAGE), page("f", 0) + page("p", 1) + pages("f", 2, 2),
                   "parent's view after the child's stores")
    _unchanged(fd, 8, "after both")


@case(alone=True)
def fork_of_shared(t):
    """Shared mappings stay shared, at both sizes, and count right."""
    state, fd = Pages(), _file(t, 2 * PMD)
    with Map(fd, 2 * PMD) as m, Map(fd, 2 * PMD, skew=PAGE) as small:
        m.touch(0, 1, write=True)
        small.touch(PMD, PMD, write=True)
        head, page_ = m.pfn(0), small.pfn(PMD + 9 * PAGE)

        def child():
            m.write(7 * PAGE, page("c", 7))
            small.write(PMD + 9 * PAGE, page("c", 9))
            same_bytes(m.read(8 * PAGE, PAGE), page("f", 8), "child's view")

        Task(child).result()
        same_bytes(m.read(7 * PAGE, PAGE), page("c", 7), "child's store, huge")
        same_bytes(m.read(PMD + 9 * PAGE, PAGE), page("c", 9), "child's store, small")
        equal(state.refcounts([head]), [1], "references to the huge folio after the child")
        check(state.refcounts([page_])[0] >= 1, "no reference to a mapped page")
    state.check_idle([head, page_], "after munmap")


@case()
def protection_changes(t):
    """mprotect to and fro, private and shared: stores go where the protection says."""
    fd = _file(t, 4 * PAGE)
    for flags, letter in ((PRIVATE, "p"), (posix.MAP_SHARED, "s")):
        with Map(fd, 4 * PAGE, flags=flags, prot=posix.PROT_READ, skew=PAGE) as m:
            m.touch()
            fault = m.store(PAGE, 1)
            equal((fault.signal, fault.address), (SIGSEGV, m.address + PAGE),
                  "store to a read-only mapping")
            m.protect(posix.PROT_RW)
            m.write(PAGE, page(letter, 1))
            m.protect(posix.PROT_READ)
            equal(m.store(PAGE, 1).signal, SIGSEGV, "store after mprotect back")
            m.protect(posix.PROT_NONE)
            equal(m.load(PAGE)[1].signal, SIGSEGV, "load of a mapping without access")
            m.protect(posix.PROT_RW)
            same_bytes(m.read(0, 3 * PAGE), page("f", 0) + page(letter, 1) + page("f", 2),
                       "content after it all")
            m.write(2 * PAGE + 5, b"x")
        wanted = page("f", 1) if flags == PRIVATE else page("s", 1)
        same_bytes(os.pread(fd, PAGE, PAGE), wanted, "the file")


@case()
def protection_and_fsync(t):
    """A page made read-only by mprotect is written back; made writable again, it is noticed."""
    fd = _file(t, PMD)
    for skew in (PAGE, 0):
        with Map(fd, PMD, skew=skew) as m:
            m.write(0, page("a", 0))
            m.protect(posix.PROT_READ)
            os.fsync(fd)
            m.protect(posix.PROT_RW)
            stats = t.stats()
            m.write(0, page("b", 0))
            stats.expect(**{"mkwrite_pmd" if m.mapped_huge() else "mkwrite_pte": 1})
            same_bytes(os.pread(fd, PAGE, 0), page("b", 0), "the file")


@case()
def moved_private(t):
    """mremap takes copies and plain pages along."""
    fd = _file(t, 8 * PAGE)
    with Map(fd, 8 * PAGE, flags=PRIVATE, skew=PAGE) as m, \
            Map(-1, 8 * PAGE, flags=PRIVATE | posix.MAP_ANONYMOUS, skew=3 * PAGE) as target:
        m.touch()
        m.write(2 * PAGE, page("c", 2))
        posix.mremap(m.address, 8 * PAGE, 8 * PAGE, posix.MREMAP_MAYMOVE | posix.MREMAP_FIXED,
                     target.address)
        same_bytes(target.read(0, 8 * PAGE), pages("f", 2) + page("c", 2) + pages("f", 5, 3),
                   "moved mapping")
        target.write(3 * PAGE, page("c", 3))
        equal(m.load(0)[1].signal, SIGSEGV, "load from the old place")
    _unchanged(fd, 8, "after it all")


@case()
def moved_shared(t):
    """mremap of huge and small entries, to an aligned and an unaligned place, and growing."""
    state, fd = Pages(), _file(t, 2 * PMD)
    move = posix.MREMAP_MAYMOVE | posix.MREMAP_FIXED
    for skew in (0, PAGE):
        with Map(fd, PMD) as m, \
                Map(-1, 2 * PMD, flags=PRIVATE | posix.MAP_ANONYMOUS, skew=skew) as target:
            m.touch(write=True)
            pfns = m.pfns()
            posix.mremap(m.address, PMD, PMD, move, target.address)
            same_bytes(target.read(0, PMD), pages("f", 512), f"moved by {skew}")
            equal(target.pfns(0, PMD)[::50], pfns[::50], "page frames")
            target.write(5 * PAGE, page("m", 5))
            same_bytes(os.pread(fd, PAGE, 5 * PAGE), page("m", 5), "stored after moving")
            posix.munmap(target.address + PMD, PMD)
            posix.mremap(target.address, PMD, 2 * PMD, 0)
            same_bytes(target.read(PMD, PMD), pages("f", 512, 512), "grown part")
            target.write(5 * PAGE, page("f", 5))
        state.check_idle(pfns[::50], "after munmap")
