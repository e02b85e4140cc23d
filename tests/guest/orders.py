# SPDX-License-Identifier: GPL-2.0
"""Which size of page table entry serves a file, and that every size shows the right page."""

import os

from lib import device, posix
from lib.check import check, equal, same_bytes
from lib.device import some
from lib.mapping import Map
from lib.pattern import page, pages
from lib.posix import PAGE, PMD
from lib.runner import case
from lib.trace import Pages


def _file(t, size, name="file"):
    """A file in 2 MiB-aligned extents, written, so that only the fault's own needs decide."""
    fd = t.open(name, allocate=size)
    for at in range(0, size, PMD):
        os.pwrite(fd, pages("f", min(PMD, size - at) // PAGE, at // PAGE), at)
    odd = [e for e in posix.extents(fd) if (e[0] - e[1]) % PMD]
    check(not odd, f"the filesystem did not align the file: {odd}")
    return fd


def _huge(m, wanted, what):
    equal(m.mapped_huge(), wanted, f"{what}: bytes mapped by huge entries")


@case()
def aligned_stores_are_huge(t):
    fd = t.open(allocate=4 * PMD)
    stats = t.stats()
    with Map(fd, 4 * PMD) as m:
        m.touch(step=PMD, write=True)
        _huge(m, 4 * PMD, "stores, one in each 2 MiB")
        equal(m.smaps()["Rss"], 4 * PMD, "Rss in smaps")
        stats.expect(write_pmd=4, write_pte=0, read_pmd=0, fallback_extent=0)
        # Where the mapping is the first in a GiB of addresses, a fault of 1 GiB comes before, and falls back.
        stats = t.stats()
        m.touch(write=True)
        stats.expect(write_pmd=0, mkwrite_pmd=0, fallback_alignment=0, fallback_extent=0)


@case()
def smaps_tells(t):
    """FilePmdMapped where the kernel counts device pages there; the page table's size anyway."""
    fd = _file(t, 8 * PMD)

    def tables():
        with open("/proc/self/status", encoding="ascii") as status:
            return next(int(line.split()[1]) << 10 for line in status if line[:6] == "VmPTE:")

    with Map(fd, 8 * PMD) as m, Map(fd, 8 * PMD, skew=PAGE) as small:
        m.touch(step=PMD)
        equal(m.smaps()["Rss"], 8 * PMD, "Rss of the aligned mapping")
        before = tables()
        m.touch(write=True)
        equal(tables(), before, "bytes of page tables after touching every page of huge entries")
        small.touch()
        check(tables() >= before + 8 * PAGE, "page tables did not grow for the small entries")
        equal(small.smaps()["FilePmdMapped"], 0, "FilePmdMapped of the unaligned mapping")
        told = m.smaps()["FilePmdMapped"]
        check(told in (0, 8 * PMD), f"FilePmdMapped {told} of {8 * PMD}")
        t.note(f"FilePmdMapped {'counts' if told else 'does not count'} device pages here")


@case()
def aligned_loads_are_huge(t):
    fd = _file(t, 4 * PMD)
    stats = t.stats()
    with Map(fd, 4 * PMD) as m:
        for i in range(4):
            m.touch(i * PMD + 77 * PAGE, 1)
        _huge(m, 4 * PMD, "loads, one in each 2 MiB")
        stats.expect(read_pmd=4, read_pte=0, zero_pmd=0)
        same_bytes(m.read(0, 4 * PMD), pages("f", 2048), "content")
        stats.expect(read_pmd=4, read_pte=0)


@case()
def holes_are_huge(t):
    fd = t.open(size=3 * PMD)
    stats = t.stats()
    with Map(fd, 3 * PMD) as m:
        m.touch(step=PMD)
        stats.expect(zero_pmd=3, zero_pte=0, read_pmd=0)
        same_bytes(m.read(0, 3 * PMD), bytes(3 * PMD), "holes")
        stats.expect(zero_pmd=3, zero_pte=0)
        equal(os.fstat(fd).st_blocks, 0, "blocks after reading")


@case()
def unaligned_vma_is_small(t):
    fd = _file(t, 2 * PMD)
    stats = t.stats()
    with Map(fd, 2 * PMD, skew=PAGE) as m:
        same_bytes(m.read(0, 2 * PMD), pages("f", 1024), "content")
        m.touch(0, PMD, write=True)
        _huge(m, 0, "addresses off by a page")
        equal(m.mapped(), 2 * PMD, "bytes mapped")
    stats.expect(read_pmd=0, write_pmd=0, read_pte=some, fallback_alignment=lambda n: n >= 0)


@case()
def misaligned_file_offset_is_small(t):
    fd = _file(t, 3 * PMD)
    stats = t.stats()
    with Map(fd, 2 * PMD, offset=5 * PAGE) as m:
        m.touch(write=True)
        _huge(m, 0, "file offset off by five pages")
        same_bytes(m.read(0, 2 * PMD), pages("f", 1024, 5), "content")
    stats.expect(write_pmd=0, read_pmd=0)


@case()
def nohugepage_is_small(t):
    fd = _file(t, 2 * PMD)
    stats = t.stats()
    with Map(fd, 2 * PMD) as m:
        m.advise(posix.MADV_NOHUGEPAGE, 0, PMD)
        m.touch(write=True)
        _huge(m, PMD, "MADV_NOHUGEPAGE on the first half")
        same_bytes(m.read(0, 2 * PMD), pages("f", 1024), "content")
    stats.expect(write_pmd=1)


@case()
def short_vma_is_small(t):
    """The 2 MiB around the address must lie in the mapping, at either end."""
    fd = _file(t, 4 * PMD)
    with Map(fd, 2 * PMD - PAGE) as m:
        m.touch(write=True)
        _huge(m, PMD, "the mapping ends a page early")
    with Map(fd, 2 * PMD - PAGE, offset=2 * PMD + PAGE, skew=PAGE) as m:
        m.touch(write=True)
        _huge(m, PMD, "the mapping begins a page late")
        same_bytes(m.read(0, 2 * PMD - PAGE), pages("f", 1023, 1025), "content")


@case()
def end_of_file_inside(t):
    fd = t.open(allocate=2 * PMD, size=PMD + 300 * PAGE)
    stats = t.stats()
    with Map(fd, 2 * PMD) as m:
        m.touch(PMD + 299 * PAGE, 1, write=True)
        _huge(m, 0, "the file ends inside these 2 MiB")
        m.touch(5, 1, write=True)
        _huge(m, PMD, "the 2 MiB before")
        stats.expect(write_pmd=1, fallback_eof=some, write_pte=some)
        m.bus_error(PMD + 300 * PAGE, "page past EOF")
        os.ftruncate(fd, 2 * PMD - 100)
        # The file now reaches into the last page of the range: rounded up, all of it.
        m.load_ok(2 * PMD - 101, 0, "last byte")


@case()
def file_is_a_page_too_short(t):
    """Of the 2 MiB one page is behind the end, though the blocks are there."""
    fd = t.open(allocate=PMD, size=PMD - PAGE)
    with Map(fd, PMD) as m:
        m.touch(0, 1, write=True)
        _huge(m, 0, "the file ends a page before")
        m.bus_error(PMD - PAGE, "page past EOF")


@case()
def extent_too_short(t):
    """Half of the 2 MiB lies elsewhere: no huge entry can show both halves."""
    fd = _file(t, 2 * PMD)
    posix.fallocate(fd, posix.PUNCH_HOLE | posix.KEEP_SIZE, 256 * PAGE, 256 * PAGE)
    stats = t.stats()
    with Map(fd, 2 * PMD) as m:
        m.touch(0, 1)
        _huge(m, 0, "half data, half hole")
        m.touch(PMD, 1)
        _huge(m, PMD, "all data")
        same_bytes(m.read(0, PMD), pages("f", 256) + bytes(256 * PAGE), "content")
        stats.expect(read_pmd=1, read_pte=some, fallback_extent=some)


@case()
def small_entry_in_the_way(t):
    fd = _file(t, 2 * PMD)
    stats = t.stats()
    with Map(fd, 2 * PMD, skew=PAGE) as small, Map(fd, 2 * PMD) as m:
        small.touch(100 * PAGE, 1, write=True)
        m.touch(0, 1, write=True)
        _huge(m, 0, "a page is there by itself")
        m.touch(PMD, 1, write=True)
        _huge(m, PMD, "nothing is there")
        stats.expect(write_pmd=1, fallback_conflict=some)
        m.write(100 * PAGE, page("x", 1))
        same_bytes(small.read(100 * PAGE, PAGE), page("x", 1), "the other mapping")
        same_bytes(m.read(101 * PAGE, PAGE), page("f", 101), "the next page")


@case()
def small_fault_meets_huge_entry(t):
    """Each page of the folio is found by faults of a page's size."""
    fd = _file(t, 2 * PMD)
    with Map(fd, 2 * PMD) as m, Map(fd, 2 * PMD, skew=PAGE) as small:
        m.touch(0, 1, write=True)
        m.touch(PMD, 1)
        stats = t.stats()
        spots = [i * PAGE for i in (0, 1, 255, 510, 511, 512, 513, 1000, 1023)]
        for spot in spots:
            small.touch(spot, 1)
            equal(small.pfn(spot), m.pfn(spot), f"page frame at {spot:#x}")
            small.store(spot + 5, 0xAB)
            m.load_ok(spot + 5, 0xAB, "stored through the small entry")
        _huge(m, 2 * PMD, "the aligned mapping")
        _huge(small, 0, "the unaligned mapping")
        stats.expect(read_pmd=0, write_pmd=0)
        t.holds("with both mapped")


@case()
def huge_zero_page_then_small(t):
    """A huge hole entry is taken apart when a smaller fault comes."""
    fd = t.open(size=2 * PMD)
    with Map(fd, 2 * PMD) as m, Map(fd, 2 * PMD, skew=PAGE) as small:
        m.touch(step=PMD)
        small.touch(77 * PAGE, 1)
        small.store(78 * PAGE, 0x42)
        m.load_ok(78 * PAGE, 0x42, "stored through the small mapping")
        m.load_ok(77 * PAGE, 0, "hole beside it")
        m.store(79 * PAGE, 0x43)
        small.load_ok(79 * PAGE, 0x43, "stored through the aligned mapping")
        small.load_ok(PMD + 3 * PAGE, 0, "the other huge hole")


@case()
def stores_after_fsync(t):
    """fsync write-protects; the next store makes the same entry writable again."""
    fd = _file(t, PMD)
    with Map(fd, PMD) as m:
        m.store(0, 1)
        os.fsync(fd)
        stats = t.stats()
        m.load_ok(0, 1, "loads go on")
        _huge(m, PMD, "after fsync")
        m.store(99 * PAGE, 2)
        _huge(m, PMD, "after the next store")
        stats.expect(mkwrite_pmd=1, mkwrite_pte=0, write_pmd=0)
        os.fsync(fd)
        m.store(3, 3)
        stats.expect(mkwrite_pmd=2)
    with Map(fd, PMD, skew=PAGE) as small:
        small.store(7 * PAGE, 1)
        os.fsync(fd)
        stats = t.stats()
        small.store(7 * PAGE + 1, 2)
        stats.expect(mkwrite_pte=1, mkwrite_pmd=0)
        same_bytes(os.pread(fd, 2, 7 * PAGE), b"\1\2", "pread")


@case()
def load_then_store(t):
    """A readable entry becomes writable in place."""
    fd = _file(t, 2 * PMD)
    with Map(fd, 2 * PMD) as m:
        m.touch(step=PMD)
        stats = t.stats()
        m.store(5, 1)
        stats.expect(write_pte=0, mkwrite_pte=0)
        _huge(m, 2 * PMD, "after the store")
        same_bytes(os.pread(fd, 1, 5), b"\1", "pread")
        t.holds("after the store")
    with Map(fd, 2 * PMD, skew=PAGE) as small:
        small.touch(PMD, 1)
        small.store(PMD + 5, 2)
        same_bytes(os.pread(fd, 1, PMD + 5), b"\2", "pread")


@case()
def part_unmapped(t):
    """munmap in the middle of a huge entry: the rest is faulted back, and nobody loses count."""
    fd = _file(t, 2 * PMD)
    state = Pages()
    with Map(fd, 2 * PMD) as m:
        m.touch(step=PMD, write=True)
        pfns = m.pfns()
        m.unmap_part(100 * PAGE, 3 * PAGE)
        same_bytes(m.read(0, 100 * PAGE), pages("f", 100), "before the gap")
        same_bytes(m.read(103 * PAGE, 409 * PAGE), pages("f", 409, 103), "behind the gap")
        equal(m.pfn(103 * PAGE), pfns[103], "page frame behind the gap")
        m.store(511 * PAGE, 0x55)
        _huge(m, PMD, "only the second 2 MiB")
        equal(state.refcounts([pfns[512]]), [1], "references to the huge folio")
    state.check_idle(pfns[::64] + pfns[99:104], "after munmap")
    same_bytes(os.pread(fd, 1, 511 * PAGE), b"\x55", "stored after the gap was made")


@case()
def part_protected(t):
    """mprotect in the middle of a huge entry."""
    fd = _file(t, PMD)
    with Map(fd, PMD) as m:
        m.touch(0, 1, write=True)
        m.protect(posix.PROT_READ, 10 * PAGE, PAGE)
        check(m.store(10 * PAGE, 1).signal == 11, "store to a read-only page went through")
        for spot in (9 * PAGE, 11 * PAGE, 511 * PAGE):
            check(not m.store(spot, 0x66).signal, f"store at {spot:#x} failed")
        same_bytes(m.read(10 * PAGE, PAGE), page("f", 10), "read-only page")
        m.protect(posix.PROT_RW, 10 * PAGE, PAGE)
        check(not m.store(10 * PAGE, 0x67).signal, "store failed after mprotect back")
        same_bytes(os.pread(fd, 1, 10 * PAGE), b"\x67", "pread")


@case()
def populate(t):
    """All of a mapping at once: MAP_POPULATE, MADV_POPULATE_READ and _WRITE."""
    fd = _file(t, 2 * PMD)
    with Map(fd, 2 * PMD, flags=posix.MAP_SHARED | posix.MAP_POPULATE) as m:
        equal(m.mapped(), 2 * PMD, "bytes mapped by MAP_POPULATE")
        _huge(m, 2 * PMD, "MAP_POPULATE")
    for advice in (posix.MADV_POPULATE_READ, posix.MADV_POPULATE_WRITE):
        for skew in (0, PAGE):
            with Map(fd, 2 * PMD, skew=skew) as m:
                m.advise(advice)
                equal(m.mapped(), 2 * PMD, f"bytes mapped by advice {advice}")
                _huge(m, 0 if skew else 2 * PMD, f"advice {advice}")
    same_bytes(os.pread(fd, 2 * PMD, 0), pages("f", 1024), "content")


@case()
def dropped_and_faulted_back(t):
    """MADV_DONTNEED only unmaps: the entry in the file's tree is used again."""
    fd = _file(t, 2 * PMD)
    with Map(fd, 2 * PMD) as m:
        m.write(0, pages("g", 1024))
        first = m.pfns()[::100]
        m.advise(posix.MADV_DONTNEED)
        equal(m.mapped(), 0, "bytes mapped")
        same_bytes(m.read(0, 2 * PMD), pages("g", 1024), "content")
        _huge(m, 2 * PMD, "after coming back")
        equal(m.pfns()[::100], first, "page frames")


@case()
def frames_are_the_blocks(t):
    """The page mapped at an offset is the block that the filesystem has there."""
    fd = _file(t, 2 * PMD)
    start = device.data_start(t.device)
    with Map(fd, 2 * PMD) as m, Map(fd, 2 * PMD, skew=PAGE) as small:
        m.touch()
        for logical, physical, length, _ in posix.extents(fd):
            for offset in range(0, length, 37 * PAGE):
                wanted = (start + physical + offset) // PAGE
                equal(m.pfn(logical + offset), wanted, f"frame at {logical + offset:#x}")
                small.touch(logical + offset, 1)
                equal(small.pfn(logical + offset), wanted, "frame in the small mapping")
