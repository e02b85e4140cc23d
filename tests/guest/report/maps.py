# SPDX-License-Identifier: GPL-2.0
"""What /dev/rdax tells of files, and to whom."""

import errno
import os
import stat

from lib import ioctl, posix
from lib.ioctl import Asker
from lib.check import check, equal
from lib.device import CONFIG, write
from lib.mapping import Map
from lib.pattern import file as _file
from lib.posix import PAGE, PMD
from lib.runner import case
from lib.task import Task

from .common import covers, need, shape


@case()
def everybody_may_ask(t):
    need(t)
    equal(stat.S_IMODE(os.stat(ioctl.DEVICE).st_mode), 0o666, "rights of /dev/rdax")
    with Asker() as asker:
        equal(asker.version(), 1, "version")


@case()
def a_map_tells_sizes_and_mappings(t):
    need(t)
    fd = _file(t, 4 * PMD)
    with Asker() as asker:
        equal(shape(asker.map(fd)), [(0, 2048, ioctl.UNTOUCHED, 0)], "of a file that nobody has mapped")
        with Map(fd, 2 * PMD) as m, Map(fd, PMD, 2 * PMD, skew=PAGE) as skewed:
            m.touch(step=PMD)
            m.touch(0, 1, write=True)
            skewed.touch(0, 3 * PAGE)
            one, two, *pages = asker.map(fd)
            equal(shape([one, two]), [(0, 512, ioctl.DATA, 9), (512, 512, ioctl.DATA, 9)], "2 MiB each")
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
        covers(asker.map(fd), 4 * PMD)


@case()
def a_mapping_of_who_may_only_read_is_shared(t):
    """As long as it is not private."""
    need(t)
    fd = _file(t, PMD)
    reader = os.open(os.readlink(f"/proc/self/fd/{fd}"), os.O_RDONLY)
    with Asker() as asker:
        for flags, private in ((posix.MAP_SHARED, 0), (posix.MAP_PRIVATE, ioctl.WHY_PRIVATE)):
            with Map(reader, PMD, prot=posix.PROT_READ, flags=flags, skew=PAGE) as m:
                m.touch(0, PAGE)
                why = asker.map(fd)[0].why
                equal(why & (ioctl.WHY_ADDRESS | ioctl.WHY_PRIVATE), ioctl.WHY_ADDRESS | private,
                      "why no larger")
    os.close(reader)


@case()
def a_map_tells_holes_and_ends(t):
    need(t)
    fd = t.open(size=PMD + 5 * PAGE)
    with Asker() as asker, Map(fd, 2 * PMD) as m:
        m.touch(0, 1)
        m.touch(PMD, PAGE)
        records = asker.map(fd)
        covers(records, PMD + 5 * PAGE)
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
    need(t)
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
    need(t)
    fd = _file(t, PMD)
    reader, writer = os.pipe()
    with Asker() as asker, Map(fd, PMD) as m:
        m.touch(0, 1)
        m.splice(writer, PAGE)
        equal(asker.map(fd)[0].references, 1, "references")
        os.read(reader, PAGE)
        equal(asker.map(fd)[0].references, 0, "references when the pipe was read")


@case(fs=("xfs",))
def a_map_tells_of_clones(t):
    need(t)
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
    need(t)
    fd = _file(t, 8 * PMD)
    with Asker() as asker, Map(fd, 8 * PMD, skew=PAGE) as m:
        m.advise(posix.MADV_RANDOM)
        for at in range(0, 8 * PMD, 8 * PAGE):
            m.touch(at, 1, write=at % (16 * PAGE) == 0)
        all_at_once = asker.map(fd, room=4096)
        covers(all_at_once, 8 * PMD)
        for room in (1, 3, 64):
            found = asker.map(fd, room=room)
            covers(found, 8 * PMD)
            equal(shape(found), shape(all_at_once), f"records with room for {room}")
        error, asked, _ = asker.ask(fd, room=0)
        equal((error, asked.count, asked.next, asked.flags), (0, 0, 0, 0), "with room for none")
        # From the middle of an entry: it is told whole.
        first = asker.ask(fd, start=5 * PMD + 1, room=1)[2][0]
        check(first.offset <= 5 * PMD + 1 < first.offset + first.length, f"from the middle: {first}")


@case()
def only_who_may_read_is_told(t):
    need(t)
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
    need(t)
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
