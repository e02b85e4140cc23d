# SPDX-License-Identifier: GPL-2.0
"""Futexes and mutexes in memory that processes share."""

import ctypes
import os

from .check import Failure, check, equal, raises
from .device import wait_for
from .posix import PAGE, system_call
from .task import Task

_FUTEX, _WAIT, _WAKE = 202, 0, 1
_PRIO_INHERIT = 1
EFAULT, EBUSY, EOWNERDEAD = 14, 16, 130

_libc = ctypes.CDLL(None)


def _must_be_0(name, *arguments):
    error = getattr(_libc, name)(*arguments)
    if error:
        raise Failure(f"{name}: {os.strerror(error)}")


def wait(address, value=0):
    """Sleep until somebody wakes this address, which holds `value`."""
    system_call("futex", _FUTEX, address, _WAIT, value, 0, 0, 0)


def wake(address, count=1):
    """Wake those who sleep at this address; how many there were."""
    return system_call("futex", _FUTEX, address, _WAKE, count, 0, 0, 0)


class Mutex:
    """A mutex for several processes, at this address."""

    def __init__(self, address, robust=False, inherit=False):
        self.at = ctypes.c_void_p(address)
        attributes = (ctypes.c_uint8 * 64)()
        _must_be_0("pthread_mutexattr_init", attributes)
        _must_be_0("pthread_mutexattr_setpshared", attributes, 1)
        if robust:
            _must_be_0("pthread_mutexattr_setrobust", attributes, 1)
        if inherit:
            _must_be_0("pthread_mutexattr_setprotocol", attributes, _PRIO_INHERIT)
        _must_be_0("pthread_mutex_init", self.at, attributes)

    def seen_at(self, address):
        """The same mutex, where another process has it mapped."""
        other = object.__new__(Mutex)
        other.at = ctypes.c_void_p(address)
        return other

    def lock(self):
        return _libc.pthread_mutex_lock(self.at)

    def try_lock(self):
        return _libc.pthread_mutex_trylock(self.at)

    def unlock(self):
        _must_be_0("pthread_mutex_unlock", self.at)

    def make_consistent(self):
        _must_be_0("pthread_mutex_consistent", self.at)


def sleeper(address):
    """A process that sleeps at an address which both have mapped."""
    # The memory of a device is as whoever had it before left it.
    ctypes.c_uint32.from_address(address).value = 0
    return Task(lambda: wait(address), name="a process that sleeps at a futex")


def woken(task, address):
    """Wake the one who sleeps at this address. Until it does, there is nobody to be woken."""
    wait_for(lambda: task.done() or wake(address) == 1, "somebody to wake")
    task.result()


def _contended(mutex, there):
    """One process has it, another waits for it and gets it in the end."""
    told = os.pipe()
    equal(mutex.lock(), 0, "first lock")

    def second():
        mine = mutex.seen_at(there())
        equal(mine.try_lock(), EBUSY, "attempt to lock it")
        os.write(told[1], b"r")
        equal(mine.lock(), 0, "lock that waits")
        mine.unlock()

    task = Task(second)
    equal(os.read(told[0], 1), b"r", "the second process")
    task.blocked_in("futex")
    mutex.unlock()
    task.result()
    for end in told:
        os.close(end)
    equal(mutex.lock(), 0, "lock in the end")
    mutex.unlock()


def _abandoned(mutex, there):
    """The process that has it ends."""

    def first():
        equal(mutex.seen_at(there()).lock(), 0, "lock")

    Task(first).result()
    equal(mutex.lock(), EOWNERDEAD, "lock of an abandoned mutex")
    mutex.make_consistent()
    mutex.unlock()
    equal(mutex.lock(), 0, "lock in the end")
    mutex.unlock()


def work(m, offset, elsewhere):
    """Processes meet at `offset` of the mapping `m`, one of them with a mapping that `elsewhere()`
    makes of the same memory. 512 bytes are overwritten."""
    at = m.address + offset
    check(offset % PAGE <= PAGE - 512, "the place is too near to the page's end")
    m.write(offset, bytes(512))

    def there():
        return elsewhere().address + offset

    task = Task(lambda: wait(there()), name="a process that sleeps at a futex")
    woken(task, at)
    # Woken from the other mapping.
    task = sleeper(at)

    def waker():
        address = there()
        wait_for(lambda: wake(address) == 1, "somebody to wake")

    Task(waker).result()
    task.result()
    # A page's neighbours are other futexes.
    equal(wake(at + 4), 0, "sleepers beside it")
    for kinds in ({}, {"robust": True}, {"inherit": True}, {"robust": True, "inherit": True}):
        m.write(offset, bytes(512))
        mutex = Mutex(at, **kinds)
        _contended(mutex, there)
        if "robust" in kinds:
            _abandoned(mutex, there)


def gone(address):
    """What is left of the memory at an address is no place for a futex."""
    raises(EFAULT, "waking where there is no memory", wake, address)
