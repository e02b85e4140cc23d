# SPDX-License-Identifier: GPL-2.0
"""References to pages of files, taken in each of the kernel's ways (get_user_pages and its kin).

R1 is all that they need: short ones work, whatever size of entry maps the page, pins that are to
last are refused, and afterwards nobody holds anything. The kernel's own test device takes them, by
itself and driven by the kernel's own selftests.
"""

import os
import re
import subprocess
import time

from lib import gib, gup, ktap, native, posix
from lib.check import Skip, check, equal, raises
from lib.device import some
from lib.gib import GibMap
from lib.mapping import Map
from lib.pattern import pages
from lib.posix import GIB, PAGE, PMD
from lib.runner import case
from lib.task import Task
from lib.trace import Pages

EFAULT, EOPNOTSUPP = 14, 95
BYTES = 2 * PMD
# Page numbers and counts: at the edges of 2 MiB and across.
RANGES = [(0, 1), (511, 2), (0, 512), (100, 700), (1023, 1), (0, 1024)]


def unfit():
    return gup.unfit()


def _file(t, name="file", size=BYTES):
    fd = t.open(name, allocate=size)
    os.pwrite(fd, pages("g", size // PAGE), 0)
    os.fsync(fd)
    return fd


def _idle(pfns, when):
    Pages().check_idle(pfns, when)


def _all_ways(m, ranges, sizes=(1, 7, 512)):
    """Take references to the ranges of a mapping, in all ways."""
    for way in gup.WAYS:
        for write in (False, True):
            for first, count in ranges:
                for at_once in sizes:
                    if at_once <= count or at_once == sizes[0]:
                        equal(gup.take(way, m.address + first * PAGE, count * PAGE, write, at_once),
                              count * PAGE, f"{way} write={write} {first}+{count} by {at_once}")


def _refused(m, length=PAGE, offset=0):
    """No way of taking pins that last is successful."""
    for fast in (False, True):
        for write in (False, True):
            what = f"fast={fast} write={write}"
            raises((EFAULT, EOPNOTSUPP), what, gup.LongTermPin, m.address + offset, length, fast,
                   write)
            equal(gup.take_long_term(m.address + offset, length, fast, write), 0,
                  f"bytes pinned with {what}")
    raises((EFAULT, EOPNOTSUPP), "io_uring", posix.register_buffer, m.address + offset, length)


def _short_pins_work(t, skew, order):
    fd = _file(t)
    stats = t.stats()
    with Map(fd, BYTES, skew=skew) as m:
        m.touch(write=True)
        stats.expect(**{f"write_{order}": some})
        pfns = m.pfns(0, PMD)
        mapped = Pages().refcounts(pfns[::73])
        _all_ways(m, RANGES)
        equal(Pages().refcounts(pfns[::73]), mapped, "references afterwards")
        # Of what nobody has touched yet, or what was only loaded.
        for prepare in (lambda: m.advise(posix.MADV_DONTNEED), lambda: os.fsync(fd)):
            for way in gup.WAYS:
                for write in (False, True):
                    prepare()
                    equal(gup.take(way, m.address + 5 * PAGE, 600 * PAGE, write), 600 * PAGE,
                          f"{way} write={write} of pages that have to be faulted in")
        equal(m.read(0, BYTES), pages("g", BYTES // PAGE), "content")
    _idle(pfns[::37], "after munmap")
    os.ftruncate(fd, 0)
    Pages().check_free(pfns[::37], "after truncate")


@case(timeout=120)
def short_pins_of_pages(t):
    _short_pins_work(t, PAGE, "pte")


@case(timeout=120)
def short_pins_of_huge_pages(t):
    _short_pins_work(t, 0, "pmd")


@case()
def short_pins_of_holes_and_copies(t):
    """Zero pages, zero folios, and private copies are the core's or the module's, not the device's."""
    fd = t.open(size=BYTES)
    with Map(fd, BYTES) as m, Map(fd, BYTES, skew=PAGE) as small:
        m.touch(0, 1)
        for way in gup.WAYS:
            equal(gup.take(way, m.address, PMD, False), PMD, f"{way} of huge zeroes")
        small.touch(0, PMD)
        # The kernel does not pin the zero page, which the test device complains of.
        for way in ("get fast", "get"):
            for mapping in (m, small):
                equal(gup.take(way, mapping.address, 600 * PAGE, False), 600 * PAGE, way)
        equal(gup.take("pin fast", m.address + PMD, PMD, True), PMD, "pins for writing of a hole")
    fd = _file(t, "other")
    with Map(fd, BYTES, flags=posix.MAP_PRIVATE) as m:
        m.store(5 * PAGE, 1)
        _all_ways(m, [(0, 16)], (1, 16))
    equal(os.pread(fd, PAGE, 5 * PAGE), pages("g", 1, 5), "the file behind the private copy")


@case(fs=("xfs-1g", "ext4-1g"), timeout=240)
def short_pins_of_giant_pages(t):
    fd = gib.borrow(t)
    first = gib.frame(t, fd)
    last = gib.PAGES - 1
    stats = t.stats()
    with GibMap(fd) as m:
        m.touch(0, 1, write=True)
        _all_ways(m, [(0, 1), (last, 1), (gib.PAGES // 2 - 300, 600)])
        equal(gup.take("pin fast", m.address, GIB, True, gib.PAGES), GIB, "all of it, at once")
        equal(gup.take("get", m.address, GIB, False, gib.PAGES), GIB, "all of it, at once")
        if t.adopted:
            equal(Pages().refcounts([first, first + 1, first + last]), [1, 0, 0], "references")
            stats.expect(write_pud=1, read_pud=0, read_pmd=0, read_pte=0, write_pmd=0, write_pte=0)
        for way in gup.WAYS:
            m.advise(posix.MADV_DONTNEED)
            equal(gup.take(way, m.address + GIB - 600 * PAGE, 600 * PAGE, True), 600 * PAGE,
                  f"{way} of pages that have to be faulted in")
        stats.expect(read_pmd=0, read_pte=0, write_pmd=0, write_pte=0)
        m.touch(0, 1)
        _refused(m, 4 * PAGE, GIB // 2)
        gib.expect(m, 1)
    _idle([first + at for at in (0, 1, 511, 512, last)], "after munmap")
    gib.forget_entries(fd)
    Pages().check_free([first + at for at in (0, 1, 2, 3, 511, 512, last)],
                       "with no entry in the file's tree")


@case()
def lasting_pins_are_refused(t):
    """FOLL_LONGTERM, by the lock and without, of pages and huge pages, shared and private."""
    fd = _file(t)
    for skew in (PAGE, 0):
        for flags in (posix.MAP_SHARED, posix.MAP_PRIVATE):
            with Map(fd, BYTES, skew=skew, flags=flags) as m:
                m.touch(0, BYTES, write=flags == posix.MAP_SHARED)
                pfns = m.pfns(0, PMD)[::73]
                before = Pages().refcounts(pfns)
                if flags == posix.MAP_SHARED:
                    _refused(m, 4 * PAGE, PMD - 2 * PAGE)
                    _refused(m, BYTES)
                else:
                    for fast in (False, True):
                        raises((EFAULT, EOPNOTSUPP), "of a private mapping", gup.LongTermPin,
                               m.address, PAGE, fast, False)
                equal(Pages().refcounts(pfns), before, "references afterwards")
            _idle(pfns, "after munmap")


@case(timeout=120)
def short_pins_race_with_truncate(t):
    """Fast pins while the file is cut, punched and grown: nothing is held in the end."""
    fd = _file(t)
    seconds = 1 if t.settings.quick else 3
    with Map(fd, BYTES) as m, Map(fd, BYTES, skew=PAGE) as small:
        m.touch()
        pfns = m.pfns()

        def pin(mapping, way, step):
            end, taken, at = time.monotonic() + seconds, 0, 0
            while time.monotonic() < end or not taken:
                at = (at + step) % (BYTES // PAGE - 64)
                # For writing: of a hole that is read, the zero page would be pinned, which it is not.
                taken += gup.take(way, mapping.address + at * PAGE, 64 * PAGE, True, 16)
            return taken

        tasks = [Task(pin, m, "pin fast", 37), Task(pin, small, "get fast", 101),
                 Task(pin, m, "pin", 211)]
        end, cuts = time.monotonic() + seconds, 0
        while time.monotonic() < end or cuts < 2:
            os.ftruncate(fd, PMD - 5 * PAGE)
            os.ftruncate(fd, BYTES)
            os.pwrite(fd, pages("h", BYTES // PAGE), 0)
            posix.fallocate(fd, posix.PUNCH_HOLE | posix.KEEP_SIZE, 77 * PAGE, 300 * PAGE)
            cuts += 1
        taken = [task.result(60) for task in tasks]
        t.note(f"{cuts} cuts, {[n // PAGE for n in taken]} pages")
        os.ftruncate(fd, 0)
        Pages().check_free(pfns[::37], "after truncate")


@case(timeout=180)
def selftest_gup_test(t):
    """tools/testing/selftests/mm/gup_test on a file of this filesystem."""
    program = native.selftest("gup_test")
    fd = _file(t, size=2 * PMD)
    ways = {"-u": True, "-a": True, "-U": True, "-b": True, "-L": False}
    for small in (True, False):
        stats = t.stats()
        for way, works in ways.items():
            for more in ("-w", "-W"), ("-n", "512"), ("-j", "3", "-r", "5", "-n", "16"):
                command = [program, way, "-S", "-m", "4", "-f", t.path(), *more,
                           *(["-T"] if small else [])]
                done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                      text=True, check=False)
                said = f"{' '.join(command)}:\n{done.stdout}"
                check(not done.returncode and not ktap.has_failures(done.stdout), said)
                if "SKIP" in done.stdout:
                    raise Skip(said)
                cut = re.findall(r"runcated \(size: (\d+)\)", done.stdout)
                check(not cut if works else cut and set(cut) == {"0"}, said)
        stats.expect(**({"write_pte": some, "write_pmd": 0} if small else
                        {"write_pte": 0, "write_pmd": some}))
        os.ftruncate(fd, 0)
        fd = _file(t, size=2 * PMD)
    with Map(fd, 2 * PMD) as m:
        m.touch()
        pfns = m.pfns()
    _idle(pfns[::37], "after all")


@case(timeout=120)
def selftest_gup_longterm(t):
    """tools/testing/selftests/mm/gup_longterm, with its file here.

    It does not know of DAX, where EOPNOTSUPP is the right answer, and calls that a failure. What can
    be pinned in a private mapping are the copies that the program has just made, without the lock.
    """
    program = native.selftest("gup_longterm")
    done = subprocess.run([program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          cwd=t.dir, check=False)
    seen, test = {}, ""
    for result in ktap.results(done.stdout):
        reason = ""
        for line in result.before:
            found = re.search(r"\[RUN\] (.*) \.\.\. with (.*)", line)
            if found:
                test, reason = (found[1] if found[2] == "local tmpfile" else ""), ""
            else:
                reason = line
        if test:
            seen[test] = "works as expected" if result.passed else reason
    refused = "PIN_LONGTERM_TEST_START failed (Operation not supported)"
    wanted = {f"{access} longterm {how} pin in {mapping} file mapping":
              refused if "SHARED" in mapping or how == "GUP" else "works as expected"
              for access in ("R/W", "R/O") for how in ("GUP", "GUP-fast")
              for mapping in ("MAP_SHARED", "MAP_PRIVATE")}
    wanted |= {f"io_uring fixed buffer with {mapping} file mapping": "works as expected"
               for mapping in ("MAP_SHARED", "MAP_PRIVATE")}
    equal(seen, wanted, "what became of each pin")
