# SPDX-License-Identifier: GPL-2.0
"""Files whose pages somebody holds, or that have failed."""

import errno
import os
import signal

from lib import posix
from lib.check import check, same_bytes
from lib.mapping import Map
from lib.posix import PAGE
from lib.runner import case
from lib.task import Task
from poison.common import POISON, forget
from .common import CLOSE, FS, FTRUNCATE, MADVISE, ORPHANS, SIZE, File, answer, ended, holds, sweep


class Holder:
    """A process that has a page of a file in a pipe, until it is told to let go."""

    def __init__(self, path, inherited):
        ready, tell = os.pipe()
        go, self.let = os.pipe()

        def hold():
            os.close(self.let)
            os.close(inherited)
            fd = os.open(path, os.O_RDWR)
            out, into = os.pipe()
            with Map(fd, PAGE) as m:
                m.splice(into, 0)
            os.close(fd)
            os.write(tell, b"1")
            os.read(go, 1)
            os.read(out, PAGE)
        self.task = Task(hold)
        os.close(tell)
        os.close(go)
        check(os.read(ready, 1), "nobody holds the page")
        os.close(ready)

    def let_go(self):
        os.close(self.let)
        self.task.result()


@case(fs=FS, timeout=900, spoils=ORPHANS)
def truncate_while_held(t):
    """It waits, and is ended by a signal, or gives up."""
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.siginterrupt(signal.SIGALRM, True)

    def once(failing):
        with File(t) as f, Map(f.fd, SIZE) as m:
            f.store_through(m)
            holder = Holder(f.path, f.fd)
            # Again and again, for the first may come before it waits.
            signal.setitimer(signal.ITIMER_REAL, 0.7, 0.7)
            result = failing.call(FTRUNCATE, f.fd, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            check(not ended(result, errno.EINTR, errno.EAGAIN), "it did not wait")
            f.is_right("the file", m)
            holder.let_go()
            holds()
            os.ftruncate(f.fd, 0)
            os.ftruncate(f.fd, SIZE)
            f.content = bytearray(SIZE)
            f.is_right("the file", m)
        return answer(result)
    sweep(t, once)


@case(fs=FS, timeout=900)
def last_close_while_held(t):
    """Of a file that has no name any more: who closes it does not wait for who holds a page."""
    def once(failing):
        f = File(t)
        with Map(f.fd, SIZE) as m:
            f.store_through(m)
        holder = Holder(f.path, f.fd)
        os.unlink(f.path)

        def close():
            mine = type(failing)()
            mine.number = failing.number
            return mine.call(CLOSE, f.fd), mine.through
        go, tell = os.pipe()

        def close_when_told():
            os.close(tell)
            os.read(go, 1)
            return close()
        closer = Task(close_when_told)
        os.close(go)
        os.close(f.fd)
        os.close(tell)
        # Before the holder lets go.
        result, failing.through = closer.result()
        holder.let_go()
        holds()
        return answer(result)
    sweep(t, once, rows=True)


@case(fs=FS, timeout=900, **POISON)
def memory_failure(t):
    """MADV_HWPOISON of a page that is mapped by 2 MiB: no other page's content is lost."""
    bad = 9 * PAGE

    def once(failing):
        with File(t) as f, Map(f.fd, SIZE) as m:
            f.store_through(m)
            result = failing.call(MADVISE, m.address + bad, PAGE, posix.MADV_HWPOISON)
            ended(result, errno.EBUSY, errno.EIO, errno.EFAULT)
            holds()
            m.advise(posix.MADV_DONTNEED)
            for start, end in ((0, bad), (bad + PAGE, SIZE)):
                same_bytes(os.pread(f.fd, end - start, start), f.content[start:end], "the file")
                same_bytes(m.read(start, end - start), f.content[start:end], "the mapping")
        return answer(result)

    def fail():
        # The kernel sends it, besides what the call answers, and kills who ignores it.
        signal.signal(signal.SIGBUS, lambda *_: None)
        sweep(t, once)
    Task(fail).result(600)
    forget(t)
