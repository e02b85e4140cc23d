# SPDX-License-Identifier: GPL-2.0
"""Pages that somebody holds while their blocks may go to another file."""

import contextlib
import errno
import fcntl
import os
import signal
import threading
import time

from lib import device, ia32, posix
from lib.check import check, equal, same_bytes
from lib.mapping import Map
from lib.pattern import file as _file, page, pages
from lib.posix import PAGE, PMD
from lib.runner import case
from lib.space import held_clone
from lib.task import Task, describe, state
from lib.uffd import Missing

from .common import XFS, is_file, make_clones, shared_bytes

HELD = 64 * PAGE


def _in_a_pipe(fd, size, skew, offset=0, length=HELD):
    """The end to read a pipe from that holds pages of the file, which nothing maps any more."""
    reader, writer = os.pipe()
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 1 << 20)
    with Map(fd, size, skew=skew) as m:
        m.touch()
        m.splice(writer, offset, length)
    os.close(writer)
    return reader


@contextlib.contextmanager
def _little_space(t, room):
    """Nearly all of the free blocks are taken: what is given back is used next."""
    filler, left = t.open("filler"), os.statvfs(t.dir)
    size, at = left.f_bavail * left.f_bsize - room, 0
    piece = 1 << 30
    while size - at >= PMD and piece >= PMD:
        try:
            posix.fallocate(filler, 0, at, min(piece, size - at))
            at += min(piece, size - at)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            piece >>= 1
    try:
        yield
    finally:
        os.ftruncate(filler, 0)
        os.close(filler)


def _write_until_full(t, name):
    """Another user's file, with all the blocks that there are."""
    with open(t.path(name), "wb", buffering=0) as f:
        try:
            while True:
                f.write(b"SECRET!!" * (1 << 16))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        os.fsync(f.fileno())


def _foreign(data):
    """Pages with anything but what was put into the pipe and what was written over it, which may be
    half done."""
    return [at // PAGE for at in range(0, len(data), PAGE)
            if data[at:at + PAGE].replace(b"w", b"f") != page("f", at // PAGE)]


def _goes_as_far_as_it_can(task):
    """Whether the task has ended; or it sleeps, as if it waited for somebody."""
    asleep = 0
    while asleep < 15 and not task.done():
        asleep += state(task.pid) in "SD"
        time.sleep(0.02)
    return task.done()


def _by_pwrite(t, fd, other):
    os.pwrite(fd, pages("w", HELD // PAGE), 0)


def _by_stores(t, fd, other):
    with Map(fd, PMD, skew=PAGE) as m:
        m.write(0, pages("w", HELD // PAGE))


def _by_huge_stores(t, fd, other):
    with Map(fd, PMD) as m:
        m.write(0, pages("w", HELD // PAGE))


def _by_unlink(t, fd, other):
    os.close(fd)
    os.unlink(t.path(other))


def _by_truncate(t, fd, other):
    os.ftruncate(fd, 0)


def _by_punch(t, fd, other):
    posix.fallocate(fd, posix.PUNCH_HOLE | posix.KEEP_SIZE, 0, HELD)


def _by_zeroing(t, fd, other):
    posix.fallocate(fd, posix.ZERO_RANGE, 0, HELD)


def _in_place(t, fd, other):
    """What nobody else has any more is written over where it is."""
    os.pwrite(fd, b"SECRET!!" * (HELD // 8), 0)


def _by_dedupe(t, fd, other):
    same = t.open("same")
    os.pwrite(same, pages("f", HELD // PAGE), 0)
    # The kernel does not make this call again by itself: it gives up after a while, for as long as the
    # pages are held.
    while (status := posix.dedupe(same, 0, HELD, fd, 0)[0]) == -errno.EAGAIN:
        pass
    equal(status, posix.DEDUPE_SAME, "dedupe")


def _by_copying(t, fd, other):
    source = t.open("source")
    os.pwrite(source, b"SECRET!!" * (HELD // 8), 0)
    equal(os.copy_file_range(source, fd, HELD, 0, 0), HELD, "bytes copied")


def _nobody_sees(t, skew, overwrite, drop, number):
    """Pages of a file are in a pipe; the file gets its own copy, the other gives the blocks up, and
    somebody else's file takes what is free. Whoever has to wait goes on when the pipe was read."""
    one, two = _file(t, PMD, f"one{number}"), t.open(f"two{number}")
    posix.clone(one, two)
    with _little_space(t, 8 * PMD):
        reader = _in_a_pipe(one, PMD, skew)
        tasks = []
        for function, fd, name in ((overwrite, one, f"one{number}"), (drop, two, f"two{number}")):
            task = Task(function, t, fd, name, name=function.__name__)
            os.close(fd)
            tasks.append((task, _goes_as_far_as_it_can(task)))
        _write_until_full(t, f"secret{number}")
        data = b"".join(os.read(reader, PAGE) for _ in range(HELD // PAGE))
        os.close(reader)
        for task, _ in tasks:
            task.result()
        os.unlink(t.path(f"secret{number}"))
    what = " and ".join(f"{task.name[1:]}{'' if ended else ' (which waited)'}"
                        for task, ended in tasks)
    foreign = _foreign(data)
    check(not foreign, f"{len(foreign)} of {HELD // PAGE} pages in the pipe are another file's "
                       f"after {what} with {'small' if skew else 'huge'} entries")
    return what


def _seen_by_nobody(t, skew):
    number = 0
    for overwrite in (_by_pwrite, _by_stores, _by_huge_stores):
        for drop in (_by_unlink, _in_place) if overwrite != _by_pwrite else \
                (_by_unlink, _by_truncate, _by_punch, _by_zeroing, _in_place, _by_dedupe,
                 _by_copying):
            what = _nobody_sees(t, skew, overwrite, drop, number)
            t.note(what)
            number += 1
            for name in os.listdir(t.dir):
                os.unlink(t.path(name))


@case(fs=XFS, timeout=300)
def held_pages_show_no_other_file(t):
    """Whoever reads pages of a file that has got its own copy since sees nothing of what the old
    blocks are used for: they stay the file's as long as somebody holds them."""
    _seen_by_nobody(t, PAGE)


@case(fs=XFS, timeout=300)
def held_huge_pages_show_no_other_file(t):
    _seen_by_nobody(t, 0)


def _left_by_a_write(t, number):
    """A file with blocks set aside for a copy that was not made: the write ended before. There was
    another user's file in them."""
    one, two = _file(t, PMD, f"one{number}"), t.open(f"two{number}")
    posix.clone(one, two)
    _write_until_full(t, "secret")
    with open(t.path("secret"), "r+b", buffering=0) as secret:
        secret.truncate(0)
        os.fsync(secret.fileno())
    source = _file(t, PAGE, f"source{number}")
    with Map(source, PMD, skew=PAGE) as m:
        equal(posix.pwrite_from(two, m.address, PMD, 0), PAGE, "bytes of which there are any")
    os.close(source)
    os.close(one)
    return two


def _punched(t, fd, offset, length):
    posix.fallocate(fd, posix.PUNCH_HOLE | posix.KEEP_SIZE, offset, length)


def _zeroed(t, fd, offset, length):
    posix.fallocate(fd, posix.ZERO_RANGE | posix.KEEP_SIZE, offset, length)


def _hole_cloned(t, fd, offset, length):
    hole = t.open("hole")
    os.ftruncate(hole, PMD)
    posix.clone_range(hole, offset, length, fd, offset)
    posix.fallocate(fd, posix.UNSHARE_RANGE, offset, length)
    os.close(hole)


@case(fs=XFS, timeout=300)
def what_was_set_aside_for_a_write_is_not_taken_for_data(t):
    """What a write that ended early has not written to is nobody's data: a hole stays one."""
    wrong = []
    with _little_space(t, 8 * PMD):
        for number, way in enumerate((_punched, _zeroed, _hole_cloned)):
            fd = _left_by_a_write(t, number)
            way(t, fd, 16 * PAGE, 64 * PAGE)
            data = os.pread(fd, PMD, 0)
            if data[16 * PAGE:80 * PAGE] != bytes(64 * PAGE):
                wrong.append(f"{way.__name__}: {data[16 * PAGE:16 * PAGE + 16]}")
            with Map(fd, PMD, skew=PAGE) as m:
                if m.read(16 * PAGE, 64 * PAGE) != bytes(64 * PAGE):
                    wrong.append(f"{way.__name__}, mapped")
            same_bytes(data[:16 * PAGE], pages("f", 16), "before the hole")
            same_bytes(data[80 * PAGE:], pages("f", 512 - 80, 80), "behind the hole")
            os.close(fd)
            for name in os.listdir(t.dir):
                if name != "filler":
                    os.unlink(t.path(name))
    check(not wrong, f"a hole is not zeroes: {wrong}")


@case(fs=XFS)
def a_page_held_beside_keeps_its_blocks(t):
    """A copy of one page of a huge entry takes the whole entry away: what is held of the rest is
    still the file's when that is cut off."""
    for number, way in enumerate((lambda fd, m: os.pwrite(fd, page("w", 300), 300 * PAGE),
                                  lambda fd, m: m.write(300 * PAGE, page("w", 300)))):
        one, two = _file(t, PMD, f"one{number}"), t.open(f"two{number}")
        posix.clone(one, two)
        with Map(one, PMD) as m:
            reader = _in_a_pipe(one, PMD, 0)
            writing = Task(way, one, m, name="write beside")
            _goes_as_far_as_it_can(writing)
            cutting = [Task(os.ftruncate, fd, 0) for fd in (one, two)]
            for task in cutting:
                _goes_as_far_as_it_can(task)
            with _little_space(t, 4 * PMD):
                _write_until_full(t, "secret")
                data = b"".join(os.read(reader, PAGE) for _ in range(HELD // PAGE))
                os.close(reader)
                for task in cutting:
                    task.result()
                # A store behind the end of what is left of the file ends in a signal.
                if number == 0:
                    writing.result()
                else:
                    writing.join(30)
                os.unlink(t.path("secret"))
        equal(_foreign(data), [], "pages of another file")
        os.close(one)
        os.close(two)


@case(fs=XFS)
def read_that_waits_for_its_buffer_shows_no_other_file(t):
    """While a read waits, stores give the file other blocks, and the old ones go to another file."""
    count = 256
    one, two = make_clones(t, count * PAGE)
    with Map(-1, count * PAGE, flags=posix.MAP_PRIVATE | posix.MAP_ANONYMOUS) as buffer, \
            Missing(buffer) as missing, _little_space(t, 4 * PMD):
        done = []
        reading = threading.Thread(
            target=lambda: done.append(posix.pread_to(one, buffer.address, count * PAGE, 0)))
        reading.start()
        equal(missing.wait(), buffer.address, "address that is wanted")
        with Map(one, count * PAGE, skew=PAGE) as m:
            for at in range(count):
                m.write(at * PAGE, page("w", at))
        os.fsync(one)
        os.close(two)
        os.unlink(t.path("two"))
        os.sync()
        _write_until_full(t, "secret")
        missing.give(bytes(count * PAGE))
        reading.join()
        equal(done, [count * PAGE], "bytes that were read")
        data = buffer.read(0, count * PAGE)
        os.unlink(t.path("secret"))
    foreign = [at for at in range(count)
               if data[at * PAGE:(at + 1) * PAGE] not in (page("f", at), page("w", at))]
    equal(foreign, [], "pages of another file")
    os.close(one)


@case(fs=XFS)
def what_comes_before_a_held_page_is_written(t):
    """A page that somebody holds keeps a long write from its own place on, and from there only. The
    write ends before that page when it has waited for a while, and the next waits with nothing held."""
    one, two = make_clones(t, PMD)
    at = 300 * PAGE
    reader = _in_a_pipe(one, PMD, PAGE, at, PAGE)
    old, data = os.pread(two, PMD, 0), pages("n", 512)

    def write():
        done = 0
        while done < PMD:
            done += os.pwrite(one, data[done:], done)
            check(done in (at, PMD), f"{done} bytes were written")

    writing = Task(write)
    with Map(one, PMD, skew=PAGE) as m:
        device.wait_for(lambda: m.read(at - PAGE, PAGE) == data[at - PAGE:at], "data before the page")
        writing.blocked_in("pwrite64")
        same_bytes(m.read(0, at), data[:at], "what comes before the page")
        same_bytes(m.read(at, PMD - at), old[at:], "the rest")
        same_bytes(os.read(reader, PAGE), old[at:at + PAGE], "what is in the pipe")
        writing.result()
        same_bytes(m.read(0, PMD), data, "the file")
    same_bytes(os.pread(two, PMD, 0), old, "the clone")
    for fd in (one, two, reader):
        os.close(fd)


def _ended_by(t, number, overwrite, catch, call):
    """The wait for somebody who holds the old page ends with a signal, and nothing was done."""
    one, two = _file(t, PMD, "one"), t.open("two")
    posix.clone(one, two)
    reader = _in_a_pipe(one, PMD, PAGE)

    def write():
        if catch:
            signal.signal(number, lambda *_: os._exit(77))
            signal.siginterrupt(number, True)
        overwrite(t, one, "one")

    writing = Task(write, name=overwrite.__name__)
    try:
        if call:
            writing.blocked_in(call)
        else:
            check(not _goes_as_far_as_it_can(writing),
                  "a store to a page that is held did not wait")
        writing.kill(number)
        if catch:
            check(writing.join(20), "the signal was not handled:\n" + describe(writing.pid))
            equal(os.waitstatus_to_exitcode(writing.status), 77, "status")
        else:
            equal(writing.signalled(20), number, "signal that ended the wait")
        data = os.read(reader, PAGE)
        same_bytes(data, page("f", 0), "what was in the pipe")
    finally:
        os.close(reader)
    is_file(one, 512, "the file")
    is_file(two, 512, "the clone")
    os.pwrite(one, page("w", 0), 0)
    is_file(one, 512, "the file that was written to then", p0=page("w", 0))
    os.close(one)
    os.close(two)


@case(fs=XFS)
def signals_end_the_wait_for_a_held_page(t):
    t.need_adopted()
    for number, catch in ((signal.SIGKILL, False), (signal.SIGTERM, False), (signal.SIGUSR1, True)):
        _ended_by(t, number, _by_pwrite, catch, "pwrite64")
        if not catch:
            # Python's own handlers would run after the store.
            _ended_by(t, number, _by_stores, catch, None)


@case(fs=XFS)
def sigkill_ends_a_clone_over_held_pages(t):
    """XFS looks at the pages of two files, and waits for those of one; for the others' it tries again
    and again."""
    low, high = sorted((_file(t, PMD, name) for name in ("one", "two")),
                       key=lambda fd: os.fstat(fd).st_ino)
    for source, target in ((low, high), (high, low)):
        reader = _in_a_pipe(target, PMD, PAGE)
        try:
            task = Task(posix.clone, source, target)
            check(not _goes_as_far_as_it_can(task),
                  "a clone over pages that are held did not wait")
            task.kill()
            equal(task.signalled(20), signal.SIGKILL, "signal that ended the clone")
            same_bytes(os.read(reader, PAGE), page("f", 0), "what was in the pipe")
        finally:
            os.close(reader)
        equal(shared_bytes(target), 0, "bytes shared after the clone was ended")
        posix.clone(source, target)
        is_file(target, 512, "the clone")
        os.pwrite(target, pages("f", 512), 0)


@case(fs=XFS)
def a_pipe_goes_back_where_it_came_from(t):
    """The write that would wait for its own source says so; elsewhere it is written."""
    one, two = _file(t, PMD, "one"), t.open("two")
    posix.clone(one, two)
    for target, name in ((0, "to the same place"), (3 * PAGE, "over a part of itself")):
        reader = _in_a_pipe(one, PMD, PAGE)
        task = Task(os.splice, reader, one, HELD, None, target, name=f"splice {name}")
        check(task.join(20), f"splice {name} does not end:\n" + describe(task.pid))
        kind, text = task.outcome()
        check(kind == "result" or f"[Errno {errno.EDEADLK}]" in text or f"({errno.EDEADLK}," in text,
              f"splice {name}: {kind} {text}")
        os.close(reader)
        if kind == "fail":
            is_file(one, 512, f"the file after a splice {name}")
    reader = _in_a_pipe(one, PMD, PAGE)
    equal(Task(os.splice, reader, one, HELD, None, 100 * PAGE).result(), HELD, "bytes spliced")
    os.close(reader)
    is_file(one, 512, "the file", p100=pages("f", HELD // PAGE))
    is_file(two, 512, "the clone")


@case(fs=XFS)
def io_submit_of_32_bits_gives_up_on_a_held_page(t):
    """It is not made again: the write would end as one that a signal has come to."""
    with held_clone(t.dir) as fd, ia32.Low() as low:
        equal(low.pwrite(fd, PAGE, PAGE), -errno.EAGAIN, "result")
        equal(low.pwrite(fd, PAGE, 2 * PMD), PAGE, "result elsewhere")
