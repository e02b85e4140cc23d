# SPDX-License-Identifier: GPL-2.0
"""Pages that a fault maps along with the one that was accessed, and what sequences of writes make."""

import errno
import fcntl
import os
import threading

from lib import device, posix
from lib.check import Skip, check, equal, raises, same_bytes
from lib.device import some
from lib.mapping import SIGSEGV, Map
from lib.pattern import ZERO, page, pages
from lib.pattern import file as _file
from lib.posix import PAGE, PMD
from lib.ptrace import await_stop, let_go_on, peek, trace_me
from lib.runner import case
from lib.task import Task
from lib.trace import Pages
from lib.uffd import Protected

BLOCK = 16                      # pages
MADV_RANDOM = 1


class _Switched:
    """A switch of the case's device, set for a while."""

    def __init__(self, t, switch, value, usual):
        self.device, self.switch, self.value, self.usual = t.device, switch, value, usual

    def __enter__(self):
        device.set_switch(self.device, self.switch, self.value)

    def __exit__(self, *_):
        device.set_switch(self.device, self.switch, self.usual)


def _mapped(m, count):
    """A letter for each of the first pages: mapped or not."""
    entries = []
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        pagemap.seek(m.address // PAGE * 8)
        data = pagemap.read(count * 8)
    for at in range(count):
        entries.append("m" if data[at * 8 + 7] & 0x80 else "-")
    return "".join(entries)


@case()
def reads_map_their_block(t):
    t.need_adopted()
    fd = _file(t, 64 * PAGE)
    stats = t.stats()
    with Map(fd, 64 * PAGE, align=PMD) as m:
        same_bytes(m.read(20 * PAGE, PAGE), page("f", 20), "the page")
        equal(_mapped(m, 64), "-" * 20 + "m" * 12 + "-" * 32, "what is mapped")
        stats.expect(read_pte=1, around_pte=11)
        same_bytes(m.read(0, 64 * PAGE), pages("f", 64), "all")
    # The second mapping needs nothing of the filesystem, and gets whole blocks.
    stats = t.stats()
    with Map(fd, 64 * PAGE, align=PMD) as m:
        m.load(40 * PAGE)
        equal(_mapped(m, 64), "-" * 32 + "m" * 16 + "-" * 16, "what is mapped from entries")
        same_bytes(m.read(0, 64 * PAGE), pages("f", 64), "all, from entries")
        stats.expect(read_pte=4, around_pte=60)


def _traced_without_rights(fd, say):
    """Has a mapping that nobody may access, stops for a tracer, and looks at what he has brought there."""
    with Map(fd, 64 * PAGE, prot=posix.PROT_NONE, align=PMD) as m:
        os.write(say, m.address.to_bytes(8, "little"))
        trace_me()
        m.protect(posix.PROT_READ)
        same_bytes(m.read(0, 64 * PAGE), pages("f", 64), "all, once it may be read")
        equal(Pages().counts(m.pfns()), [(1, 1)] * 64, "references and mappings of each page")


@case()
def a_mapping_without_rights_gets_its_own_pages(t):
    """A debugger reads where nobody may, and the pages that come along are those of the file, and each
    counted. The kernel writes the frames of such entries in another way."""
    fd = _file(t, 64 * PAGE)
    for known in (False, True):
        hear, say = os.pipe()
        task = Task(_traced_without_rights, fd, say)
        address = int.from_bytes(os.read(hear, 8), "little")
        await_stop(task.pid)
        stats = t.stats()
        for at in (20, 40):
            same_bytes(peek(task.pid, address + at * PAGE), page("f", at)[:8],
                       f"page {at}, as the debugger has it")
        # Of a file that has no entries yet, only what is behind the page is mapped along.
        stats.expect(around_pte=30 if known else 18)
        let_go_on(task.pid)
        task.result()


@case()
def holes_are_mapped_by_blocks_and_filled_singly(t):
    """No zero page stays where a block has come, whoever brought it."""
    fd = t.open(size=64 * PAGE)
    stats = t.stats()
    with Map(fd, 64 * PAGE) as m:
        same_bytes(m.read(0, 32 * PAGE), ZERO * 32, "holes")
        if t.adopted:
            # ext4 tells of the first hole of a file block by block.
            stats.expect(zero_pte=lambda n: n <= 17, around_pte=lambda n: n >= 15)
        m.write(3 * PAGE, page("s", 3))
        m.write(4 * PAGE, page("s", 4))
        m.write(5 * PAGE + 7, b"x")
        os.pwrite(fd, page("w", 6), 6 * PAGE)
        os.pwrite(fd, b"tail", 20 * PAGE - 4)
        wanted = bytearray(ZERO * 32)
        wanted[3 * PAGE:5 * PAGE] = pages("s", 2, 3)
        wanted[5 * PAGE + 7:5 * PAGE + 8] = b"x"
        wanted[6 * PAGE:7 * PAGE] = page("w", 6)
        wanted[20 * PAGE - 4:20 * PAGE] = b"tail"
        same_bytes(m.read(0, 32 * PAGE), wanted, "the mapping")
        same_bytes(os.pread(fd, 32 * PAGE, 0), wanted, "pread")


@case()
def blocks_end_at_mapping_and_file(t):
    """What the user has not mapped, or is behind the end of the file, is not touched."""
    fd = _file(t, 21 * PAGE)
    os.ftruncate(fd, 20 * PAGE + 1)
    with Map(fd, 6 * PAGE, offset=3 * PAGE, align=PMD, skew=3 * PAGE) as m:
        m.load(2 * PAGE)
        same_bytes(m.read(0, 6 * PAGE), pages("f", 6, 3), "a part of a block")
    with Map(fd, 32 * PAGE, align=PMD) as m:
        m.load(16 * PAGE)
        if t.adopted:
            equal(_mapped(m, 32), "-" * 16 + "m" * 5 + "-" * 11, "what is mapped")
        m.bus_error(21 * PAGE, "behind the end")
        same_bytes(m.read(0, 20 * PAGE), pages("f", 20), "all")
    hole = t.open("hole", size=20 * PAGE + 1)
    with Map(hole, 32 * PAGE, align=PMD) as m:
        m.load(16 * PAGE)
        m.bus_error(21 * PAGE, "behind the end of a hole")
        same_bytes(m.read(0, 21 * PAGE), ZERO * 21, "the hole")


@case()
def each_page_alone_when_told_so(t):
    t.need_adopted()
    fd = _file(t, 64 * PAGE)
    with Map(fd, 64 * PAGE) as m:
        m.advise(MADV_RANDOM)
        stats = t.stats()
        m.touch(0, 32 * PAGE)
        stats.expect(read_pte=32, around_pte=0)
    with _Switched(t, "fault_around", PAGE, BLOCK * PAGE), Map(fd, 64 * PAGE) as m:
        stats = t.stats()
        m.touch(0, 32 * PAGE, write=True)
        stats.expect(write_pte=32, around_pte=0)
    with _Switched(t, "fault_around", 4 * PAGE, BLOCK * PAGE), Map(fd, 64 * PAGE) as m:
        stats = t.stats()
        m.touch(0, 32 * PAGE)
        stats.expect(read_pte=8, around_pte=24)
    for bad in ("0", "5000", "4194304", "many"):
        raises(errno.EINVAL, f"fault_around {bad}", device.set_switch, t.device, "fault_around", bad)
    for bad in ("-1", "9", "pmd"):
        raises(errno.EINVAL, f"write_order {bad}", device.set_switch, t.device, "write_order", bad)


@case()
def guarded_pages_stay_guarded(t):
    """A guard page in the middle of a block survives that the others are mapped."""
    fd = _file(t, 32 * PAGE)
    with Map(fd, 32 * PAGE) as m:
        try:
            m.advise(posix.MADV_GUARD_INSTALL, 5 * PAGE, PAGE)
        except OSError as error:
            raise Skip(f"the kernel has no guard pages for files: {error}") from error
        for write in (False, True):
            m.touch(4 * PAGE, PAGE, write=write)
            m.touch(6 * PAGE, PAGE, write=write)
            fault = m.store(5 * PAGE, 1) if write else m.load(5 * PAGE)[1]
            equal(fault.signal, SIGSEGV, "signal of an access to the guard page")
        m.advise(posix.MADV_GUARD_REMOVE, 5 * PAGE, PAGE)
        same_bytes(m.read(0, 32 * PAGE), pages("f", 32), "without the guard")


@case()
def stores_to_write_protected_pages_are_noted(t):
    """A fault makes no page writable beside its own that userfaultfd has write-protected."""
    fd = _file(t, 32 * PAGE)
    with Map(fd, 32 * PAGE) as m:
        m.touch(0, 32 * PAGE, write=True)
        with Protected(m) as protected:
            equal(m.written(), [], "what was written to before any store")
            for spots in ([0, 5], [5, 6, 7, 0], list(range(32))):
                for spot in spots:
                    m.write(spot * PAGE, page("u", spot))
                equal(m.written(), sorted(spots), "what was written to")
                protected.protect()
                equal(m.written(), [], "what was written to since it was protected again")
        same_bytes(os.pread(fd, 32 * PAGE, 0), pages("u", 32), "the file")


@case()
def store_under_way_when_its_page_is_protected(t):
    """The store has passed what tells userfaultfd of it; it is told nevertheless."""
    fd = _file(t, 32 * PAGE)
    freeze, thaw = 0xC0045877, 0xC0045878
    with Map(fd, 32 * PAGE) as m, Protected(m, protect=False) as protected:
        m.touch()
        writer = threading.Thread(target=m.write, args=(5 * PAGE, page("u")))
        fcntl.ioctl(fd, freeze, 0)
        try:
            writer.start()
            wchan = f"/proc/self/task/{writer.native_id}/wchan"
            device.wait_for(lambda: "percpu" in device.read(wchan), "store that waits for the thaw")
            protected.protect()
            equal(m.written(), [], "what was written to since it was protected")
        finally:
            fcntl.ioctl(fd, thaw, 0)
            writer.join()
        equal(m.written(), [5], "what was written to")
    same_bytes(os.pread(fd, PAGE, 5 * PAGE), page("u"), "the file")


@case()
def pages_are_write_protected_before_they_are_mapped(t):
    """The page table has marks then, where faults expect nothing. The kernel's own code loops."""
    t.need_adopted()
    for name in ("file", "hole"):
        fd = _file(t, 64 * PAGE) if name == "file" else t.open(name, size=64 * PAGE)
        with Map(fd, 64 * PAGE) as m, Protected(m) as protected:
            for stored in ([], [3], [3, 20], [3, 20, 21], [3, 20, 21, 40]):
                if stored:
                    fault = m.store(stored[-1] * PAGE, 7)
                    equal(fault.signal, 0, f"{name}: signal of a store")
                for spot in (2, 3, 50):
                    fault = m.load(spot * PAGE)[1]
                    equal(fault.signal, 0, f"{name}: signal of a load")
                equal(m.written(), stored, f"{name}: what was written to")
            # Blocks that were not there, and what is unmapped again.
            posix.fallocate(fd, posix.PUNCH_HOLE | posix.KEEP_SIZE, 0, 32 * PAGE)
            protected.protect()
            for spot in (3, 9, 21, 41):
                m.write(spot * PAGE, page("x", spot))
                same_bytes(m.read(spot * PAGE, PAGE), page("x", spot), f"{name}: page {spot}")
            equal(m.written(), [3, 9, 21, 41], f"{name}: what was written to in the end")
        for spot in (3, 9, 21, 41):
            same_bytes(os.pread(fd, PAGE, spot * PAGE), page("x", spot), f"{name}: page {spot}")


@case()
def stores_to_pages_mapped_with_others_are_soft_dirty(t):
    """What a fault makes writable beside its own page was stored to, for all that is known."""
    fd = _file(t, 64 * PAGE)
    with Map(fd, 64 * PAGE) as m:
        # Entries that are dirty, so that faults map them writable.
        m.touch(0, 64 * PAGE, write=True)
    with Map(fd, 64 * PAGE) as m:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as clear:
            clear.write("4")
        stored = [16, 21, 3, 0]
        for spot in stored:
            m.store(spot * PAGE, 1)
        found = m.soft_dirty()
        if not found:
            raise Skip("the kernel notes no page as soft-dirty")
        t.note(f"soft-dirty: {found}")
        equal([spot for spot in stored if spot not in found], [], "stores that were missed")


@case()
def copies_stay_private(t):
    """A page that was copied is not covered again by the block of another."""
    fd = _file(t, 32 * PAGE)
    with Map(fd, 32 * PAGE, flags=posix.MAP_PRIVATE) as m:
        m.write(5 * PAGE, page("p", 5))
        m.touch(0, 32 * PAGE)
        wanted = pages("f", 5) + page("p", 5) + pages("f", 26, 6)
        same_bytes(m.read(0, 32 * PAGE), wanted, "the private mapping")
    same_bytes(os.pread(fd, 32 * PAGE, 0), pages("f", 32), "the file")


def _write_in_order(m, tag, count):
    """Store to one page after the other: memmove() goes backwards where that suits the addresses."""
    for number in range(count):
        m.write(number * PAGE, page(tag, number))


@case()
def sequential_writes_take_few_faults(t):
    t.need_adopted()
    fd = _file(t, 512 * PAGE)
    stats = t.stats()
    with Map(fd, 512 * PAGE, skew=PAGE) as m:
        _write_in_order(m, "s", 512)
        same_bytes(m.read(0, 512 * PAGE), pages("s", 512), "the mapping")
        stats.expect(write_pte=lambda n: n <= 48, around_pte=lambda n: n >= 460)
        same_bytes(os.pread(fd, 512 * PAGE, 0), pages("s", 512), "pread")
        os.fsync(fd)
        # Written again, the pages are write-protected: their blocks are made writable together.
        stats = t.stats()
        _write_in_order(m, "t", 512)
        stats.expect(mkwrite_pte=lambda n: n <= 48)
        os.fsync(fd)
        stats.expect(writeback_bytes=512 * PAGE)
    with Map(fd, 512 * PAGE, skew=PAGE) as m:
        same_bytes(m.read(0, 512 * PAGE), pages("t", 512), "afterwards")


def _flushed(t, spots):
    """Pages that fsync flushes after these were written to."""
    count = 2048
    fd = _file(t, count * PAGE, f"file{len(spots)}-{spots[-1]}")
    with Map(fd, count * PAGE, skew=PAGE) as m:
        stats = t.stats()
        for spot in spots:
            m.write(spot * PAGE, page("x", spot))
        os.fsync(fd)
        first = stats.since()["writeback_bytes"] // PAGE
        # And again, when the entries are there.
        stats = t.stats()
        for spot in spots:
            m.write(spot * PAGE, page("y", spot))
        os.fsync(fd)
        again = stats.since()["writeback_bytes"] // PAGE
        for spot in spots:
            same_bytes(os.pread(fd, PAGE, spot * PAGE), page("y", spot), f"page {spot}")
    return first, again


@case()
def fsync_flushes_little_more_than_was_written(t):
    """At most four pages for one that was written to, in the worst of these patterns."""
    t.need_adopted()
    patterns = {
        "all": list(range(2048)),
        "every second page": list(range(0, 2048, 2)),
        "every 16th page": list(range(0, 2048, 16)),
        "two of 16": [s for at in range(0, 2048, 16) for s in (at, at + 1)],
        "four of 32": [s for at in range(0, 2048, 32) for s in range(at, at + 4)],
        "nine of 64": [s for at in range(3, 1984, 64) for s in range(at, at + 9)],
        "backwards": list(range(2047, -1, -1)),
        "scattered": [(s * 37) % 2048 for s in range(300)],
        "half, scattered": [(s * 619) % 2048 for s in range(1024)],
    }
    for name, spots in patterns.items():
        first, again = _flushed(t, spots)
        t.note(f"{name}: {len(spots)} written, {first} flushed, {again} when written again")
        check(len(spots) <= first <= 4 * len(spots), f"{name}: {first} pages for {len(spots)}")
        check(len(spots) <= again <= 4 * len(spots), f"{name}, again: {again} pages")


@case()
def random_writes_after_sequential_ones(t):
    """Entries that a sequence of writes has made are not so large that fsync pays for it."""
    t.need_adopted()
    fd = _file(t, 2048 * PAGE)
    spots = [(s * 619) % 2048 for s in range(100)]
    with Map(fd, 2048 * PAGE, skew=PAGE) as m:
        _write_in_order(m, "s", 2048)
        os.fsync(fd)
        stats = t.stats()
        for spot in spots:
            m.write(spot * PAGE, page("r", spot))
        os.fsync(fd)
        flushed = stats.since()["writeback_bytes"] // PAGE
        t.note(f"{flushed} pages flushed for {len(spots)}")
        check(len(spots) <= flushed <= 4 * len(spots), f"{flushed} pages for {len(spots)}")


@case()
def larger_folios_serve_and_come_apart(t):
    """Every value of write_order gives the same contents, and what it makes goes away."""
    t.need_adopted()
    for order in range(9):
        fd = _file(t, 1024 * PAGE, f"order{order}")
        with _Switched(t, "write_order", order, 2), Map(fd, 1024 * PAGE, skew=PAGE) as m:
            stats = t.stats()
            _write_in_order(m, "o", 1024)
            same_bytes(m.read(0, 1024 * PAGE), pages("o", 1024), f"order {order}: mapping")
            os.fsync(fd)
            # With larger entries there are fewer of them.
            entries = stats.since()["writeback_entries"]
            t.note(f"order {order}: {entries} entries for 1024 pages")
            check(entries <= (1024, 650, 450)[min(order, 2)], f"order {order}: {entries} entries")
            os.ftruncate(fd, 333 * PAGE)
            same_bytes(m.read(0, 333 * PAGE), pages("o", 333), f"order {order}: cut")
            m.bus_error(333 * PAGE, "behind the end")
            posix.fallocate(fd, posix.PUNCH_HOLE | posix.KEEP_SIZE, 100 * PAGE, 10 * PAGE)
            same_bytes(m.read(99 * PAGE, 12 * PAGE),
                       page("o", 99) + ZERO * 10 + page("o", 110), f"order {order}: hole")
        os.close(fd)
        os.unlink(t.path(f"order{order}"))


@case(fs=("xfs",))
def sequences_over_shared_blocks(t):
    """A clone that is written from its begin to its end leaves the file alone, and the other way."""
    fd, clone = _file(t, 256 * PAGE), t.open("clone")
    posix.clone(fd, clone)
    with Map(fd, 256 * PAGE, skew=PAGE) as one, Map(clone, 256 * PAGE, skew=PAGE) as two:
        one.touch()
        two.write(0, pages("c", 128))
        same_bytes(one.read(0, 256 * PAGE), pages("f", 256), "the file")
        one.write(64 * PAGE, pages("d", 128))
        same_bytes(two.read(0, 256 * PAGE), pages("c", 128) + pages("f", 128, 128), "the clone")
        # Pieces of the clone beside blocks of its own.
        posix.clone_range(fd, 64 * PAGE, 8 * PAGE, clone, 20 * PAGE)
        two.write(16 * PAGE, pages("e", 32))
        same_bytes(one.read(64 * PAGE, 8 * PAGE), pages("d", 8), "the source")
        same_bytes(two.read(0, 64 * PAGE), pages("c", 16) + pages("e", 32) + pages("c", 16, 48),
                   "the target")
    same_bytes(os.pread(fd, 256 * PAGE, 0), pages("f", 64) + pages("d", 128) + pages("f", 64, 192),
               "the file in the end")


@case(fs=("xfs",))
def sequences_leave_shared_neighbours_alone(t):
    """Ahead of a store, pages that another file has too are not made writable."""
    fd, other = _file(t, 16 * PAGE), _file(t, 16 * PAGE, "other")
    posix.clone_range(other, 5 * PAGE, 3 * PAGE, fd, 5 * PAGE)
    with Map(fd, 16 * PAGE, skew=PAGE) as m:
        _write_in_order(m, "s", 5)
        os.fsync(fd)
        same_bytes(m.read(5 * PAGE, 3 * PAGE), pages("f", 3, 5), "what is shared")
        # The entries are there, clean: a sequence makes as many dirty ahead as it has written to.
        _write_in_order(m, "t", 5)
        m.write(6 * PAGE, page("u", 6))
        same_bytes(os.pread(other, 16 * PAGE, 0), pages("f", 16), "the other file")
    same_bytes(os.pread(fd, 16 * PAGE, 0),
               pages("t", 5) + page("f", 5) + page("u", 6) + pages("f", 9, 7), "the file")


@case()
def new_blocks_are_found_one_by_one(t):
    """A sequence of writes into a hole takes no blocks that nobody has written to."""
    fd = t.open(size=256 * PAGE)
    with Map(fd, 256 * PAGE, skew=PAGE) as m:
        stats = t.stats()
        for at in range(0, 64):
            m.write(at * PAGE, page("n", at))
        blocks = sum(length for _, _, length, *_ in posix.extents(fd)) // PAGE
        t.note(f"{blocks} blocks for 64 pages")
        check(64 <= blocks <= 65, f"{blocks} blocks for 64 pages")
        same_bytes(m.read(0, 65 * PAGE), pages("n", 64) + ZERO, "the mapping")
        if t.adopted:
            stats.expect(write_pte=some)
