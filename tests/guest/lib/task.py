# SPDX-License-Identifier: GPL-2.0
"""Child processes that run a function, and what they are doing meanwhile."""

import json
import os
import select
import signal
import sys
import time
import traceback

from . import posix
from .check import Failure, Skip, check

# Numbers of the system calls that tasks are watched in.
SYSCALLS = {"write": 1, "pread64": 17, "pwrite64": 18, "truncate": 76, "ftruncate": 77, "unlink": 87,
            "umount2": 166, "fallocate": 285, "unlinkat": 263, "close": 3, "munmap": 11, "futex": 202,
            "ioctl": 16, "openat": 257, "copy_file_range": 326}

# What stands in place of a number when a task sleeps in a page fault of its own.
NO_CALL = -1


# How much slower than the stock kernel under emulation everything is here; see measure_pace().
pace = 1.0
MOST = 40.0
# Of the kernel, and of a loop, when the run began.
_first_pace = _first_loop = None
# When the loop was last run, and after how many seconds that is old.
_last_look, OLD = 0.0, 5.0


def _count():
    """Seconds that this processor needs for a bit of work of its own."""
    start = time.monotonic()
    for _ in range(50000):
        pass
    return time.monotonic() - start


def measure_pace():
    """A debug kernel, or a busy host, needs more time for the same: stretch every limit."""
    global pace, _first_pace, _first_loop
    start = time.monotonic()
    for _ in range(40):
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
    pace = _first_pace = min(MOST, max(1.0, (time.monotonic() - start) / NORMAL_FORKS))
    _first_loop = min(_count() for _ in range(5))


def update_pace(least=1.0):
    """The host may have become busy, or idle, since: the same in a moment, without a fork."""
    global pace, _last_look
    if _first_loop:
        _last_look = time.monotonic()
        now = _first_pace * max(1.0, _count() / _first_loop)
        pace = min(MOST, max(least, now))


def keep_pace():
    """The same, unless that was done a moment ago: many a case takes less time than to look. A limit
    that is over is looked at again in any case (Deadline)."""
    if time.monotonic() - _last_look >= OLD:
        update_pace()


# Seconds that the forks above take on the stock kernel, emulated, on an idle host.
NORMAL_FORKS = 0.4


class Deadline:
    """A limit for what is waited for, in seconds of a machine that has nothing else to do."""

    def __init__(self, seconds):
        self.seconds, self.start = seconds, time.monotonic()

    def _over(self):
        return time.monotonic() - self.start >= self.seconds * pace

    def over(self):
        if self._over():
            # Not if it has become slower meanwhile.
            update_pace(least=pace)
        return self._over()


def _explained(failure):
    """What failed and where, then what failed first, of which the rest may only be the clean-up."""
    where = traceback.extract_tb(failure.__traceback__)
    lines = [str(failure) if isinstance(failure, Failure) else repr(failure)]
    lines += [f"  at {os.path.basename(f.filename)}:{f.lineno}: {f.line}" for f in where
              if os.path.dirname(f.filename) != os.path.dirname(__file__)]
    first = failure.__cause__ or (None if failure.__suppress_context__ else failure.__context__)
    if first is not None:
        lines.append(f"after {_explained(first)}")
    return "\n".join(lines)


class Task:
    """A forked child that runs fn(*args). Its result must be something that JSON can carry."""

    def __init__(self, fn, *args, name=None, session=False):
        self.name = name or fn.__name__
        self.status = None
        self.started = time.monotonic()
        sys.stdout.flush()
        self.pipe, theirs = os.pipe()
        self.output = b""
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.pipe)
            if session:
                os.setsid()
            os._exit(self._run(fn, args, theirs))
        os.close(theirs)

    @staticmethod
    def _run(fn, args, pipe):
        status, said = 0, None
        try:
            said = ["result", fn(*args)]
        except Skip as skip:
            status, said = 4, ["skip", str(skip)]
        except BaseException as failure:  # a defect of the test is a failure too
            status, said = 1, ["fail", _explained(failure)]
        data = json.dumps(said).encode()
        while data:
            data = data[os.write(pipe, data):]
        return status

    def done(self):
        """Take in what the child says; whether it has ended."""
        if self.status is not None:
            return True
        while self.pipe is not None and select.select([self.pipe], [], [], 0)[0]:
            data = os.read(self.pipe, 65536)
            if not data:
                os.close(self.pipe)
                self.pipe = None
            self.output += data
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            # What was written between the look and the end.
            while self.pipe is not None and select.select([self.pipe], [], [], 0)[0]:
                data = os.read(self.pipe, 65536)
                if not data:
                    break
                self.output += data
            if self.pipe is not None:
                os.close(self.pipe)
                self.pipe = None
            self.status = status
            self.ended = time.monotonic()
        return self.status is not None

    def join(self, timeout):
        deadline = Deadline(timeout)
        while not self.done():
            if deadline.over():
                return False
            if self.pipe is not None:
                select.select([self.pipe], [], [], 0.05)
            else:
                time.sleep(0.002)
        return True

    def signalled(self, timeout=30):
        """The signal that ended the child, 0 if it ended by itself."""
        self._must_end(timeout)
        return os.WTERMSIG(self.status) if os.WIFSIGNALED(self.status) else 0

    def outcome(self):
        """("result"|"skip"|"fail", value) of a child that has ended."""
        if os.WIFSIGNALED(self.status):
            return "fail", f"{self.name} was ended by signal {os.WTERMSIG(self.status)}"
        try:
            return tuple(json.loads(self.output))
        except ValueError:
            return "fail", f"{self.name} ended with status {self.status} and said nothing"

    def result(self, timeout=30):
        """What fn returned; fails if it failed, or does not end in time."""
        self._must_end(timeout)
        kind, value = self.outcome()
        if kind == "skip":
            raise Skip(value)
        if kind == "fail":
            raise Failure(value)
        return value

    def _must_end(self, timeout):
        if not self.join(timeout):
            raise Failure(f"{self.name} has not ended after {timeout * pace:.0f} s; it is here:\n"
                          + describe(self.pid))

    def waits_in(self, *names, hold=0.25, timeout=20):
        """Whether the child sleeps in one of these system calls, for a while, or else ends.

        A call that waits may be made again by the kernel from time to time: what the child is in while it
        runs is not looked at."""
        wanted = [SYSCALLS[n] for n in names]
        deadline, since = Deadline(timeout), None
        while not self.done():
            number = syscall(self.pid) if state(self.pid) in "SD" else None
            if number in wanted:
                since = since or time.monotonic()
                if time.monotonic() - since >= hold * pace:
                    return True
            elif number is not None:
                since = None
            if since is None:
                check(not deadline.over(),
                      f"{self.name} is not in {'/'.join(names)}:\n" + describe(self.pid))
            time.sleep(0.02)
        return False

    def must_fault(self):
        """Check that the child comes to sleep in a page fault, and does not end."""
        deadline = Deadline(20)
        while not (state(self.pid) in "SD" and syscall(self.pid) == NO_CALL):
            if self.done():
                raise Failure(f"{self.name} should wait in a fault, but has ended: "
                              f"{self.outcome()}")
            check(not deadline.over(), f"{self.name} is in no fault:\n" + describe(self.pid))
            time.sleep(0.002)

    def blocked_in(self, *names, hold=0.25, timeout=20):
        """Check that the child sleeps in one of these system calls, for a while."""
        if not self.waits_in(*names, hold=hold, timeout=timeout):
            kind, value = self.outcome()
            raise Failure(f"{self.name} should wait in {'/'.join(names)}, "
                          f"but has ended: {kind} {value}")

    def kill(self, number=signal.SIGKILL):
        if not self.done():
            os.kill(self.pid, number)


def _read(path):
    try:
        with open(path, encoding="ascii", errors="replace") as f:
            return f.read()
    except OSError as error:
        return f"({error.strerror})"


def state(pid):
    stat = _read(f"/proc/{pid}/stat")
    return stat.rpartition(") ")[2][:1] or "X"


def syscall(pid):
    word = _read(f"/proc/{pid}/syscall").split(" ")[0]
    return int(word) if word.lstrip("-").isdigit() else None


def describe(pid):
    """Where each thread of a process is."""
    lines = []
    try:
        threads = sorted(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return f"  process {pid} is gone"
    for tid in threads:
        at = f"/proc/{pid}/task/{tid}"
        lines.append(f"  {_read(at + '/comm').strip()}[{tid}] state {state(tid)} "
                     f"in call {_read(at + '/syscall').split(' ')[0]}")
        lines += ["    " + line for line in _read(at + "/stack").splitlines()]
    return "\n".join(lines)


def session_of(pid):
    """All processes of the session that pid leads."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            fields = _read(f"/proc/{entry}/stat").rpartition(") ")[2].split()
            if len(fields) > 3 and fields[3] == str(pid) and fields[0] != "Z":
                found.append(int(entry))
    return found


class LongCalls:
    """Somebody without rights, whose calls take long and do not sleep. A context manager."""

    def __enter__(self):
        self._ready, self._ended = os.pipe(), os.pipe()
        os.set_blocking(self._ended[0], False)
        self._task = Task(self._go)
        os.read(self._ready[0], 1)
        return self

    def __exit__(self, *_):
        self._task.kill()
        self._task.signalled()
        for end in self._ready + self._ended:
            os.close(end)

    def _go(self):
        posix.become_nobody()
        buffer = bytearray(2 << 20)
        with open("/dev/urandom", "rb", buffering=0) as source:
            os.write(self._ready[1], b"x")
            while True:
                os.readv(source.fileno(), [buffer] * 1000)
                os.write(self._ended[1], b"x")

    def has_ended_one(self):
        """Whether one of the calls has come to its end since this was asked last."""
        try:
            os.read(self._ended[0], 4096)
        except BlockingIOError:
            return False
        return True

    def stays_in_one_while(self, work):
        """Whether one of the calls lasts from the beginning of the work to its end.

        One may come to its end by chance: once is enough, and where the work waits for that it never
        happens."""
        for _ in range(5):
            self.has_ended_one()
            work()
            if not self.has_ended_one():
                return True
        return False
