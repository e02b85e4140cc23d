# SPDX-License-Identifier: GPL-2.0
"""System calls on a mapping that leave the file as it is."""

import ctypes
import errno
import os

from lib import asks, ioctl, posix
from lib.mapping import Map
from lib.posix import PAGE
from lib.runner import case
from .common import (FS, IOCTL, MADVISE, MLOCK2, MPROTECT, OPEN, PREAD, PROCESS_VM_READV, SIZE, Bytes, Calls,
                     File, answer, ended, holds, path_argument, sweep, vectors)

ADVICE = {"random": 1, "willneed": 3, "dontneed": 4, "free": 8, "dontfork": 10, "dofork": 11, "mergeable": 12,
          "hugepage": 14, "nohugepage": 15, "cold": 20, "pageout": 21, "populate_read": 22,
          "populate_write": 23, "dontneed_locked": 24, "collapse": 25}
# What advice answers that is not for such a mapping, or that found nothing to do.
NOT_DONE = (errno.EINVAL, errno.EAGAIN, errno.EBUSY, errno.EFAULT, errno.EOPNOTSUPP, errno.EIO)
# By 2 MiB, and by pages.
SKEWS = {"": 0, "_small": PAGE}

# Where processes are read to.
_room = Bytes(bytes(SIZE))


def leaves_it(name, call, *others, skew=0):
    """A case: call(file, mapping) gives the number and the arguments, and what they keep."""
    def run(t):
        def once(failing):
            with File(t) as f, Map(f.fd, SIZE, skew=skew) as m:
                f.store_through(m)
                number, *arguments = call(f, m)
                result = failing.call(number, *[getattr(each, "address", each) for each in arguments])
                ended(result, *others)
                holds()
                f.is_right("the file", m)
                os.fsync(f.fd)
                f.is_right("the file after fsync", m)
            return answer(result)
        sweep(t, once, rows=True)
    run.__name__ = name
    case(fs=FS, timeout=900)(run)


for _kind, _skew in SKEWS.items():
    for _name, _advice in ADVICE.items():
        if not _skew or _name in ("populate_read", "populate_write", "dontneed"):
            leaves_it(f"advice_{_name}{_kind}",
                      lambda f, m, a=_advice: (MADVISE, m.address + PAGE, SIZE - PAGE, a), *NOT_DONE,
                      skew=_skew)
    leaves_it(f"mprotect{_kind}",
              lambda f, m: (MPROTECT, m.address + 9 * PAGE, 4 * PAGE, posix.PROT_READ), skew=_skew)
    leaves_it(f"process_vm_readv{_kind}",
              lambda f, m: (PROCESS_VM_READV, os.getpid(), vectors((_room.address, SIZE)), 1,
                            vectors((m.address, SIZE)), 1, 0), errno.EFAULT, skew=_skew)
leaves_it("soft_offline",
          lambda f, m: (MADVISE, m.address + 9 * PAGE, PAGE, asks.MADV_SOFT_OFFLINE), *NOT_DONE)
leaves_it("mlock", lambda f, m: (MLOCK2, m.address, SIZE, 0), errno.EAGAIN)


@case(fs=FS, timeout=900)
def read_of_proc_mem(t):
    memory = os.open("/proc/self/mem", os.O_RDONLY)

    def once(failing):
        with File(t) as f, Map(f.fd, SIZE, skew=PAGE) as m:
            f.store_through(m)
            result = failing.call(PREAD, memory, _room.address, SIZE, m.address)
            ended(result, errno.EFAULT, errno.EIO)
            holds()
            f.is_right("the file", m)
        return answer(result)
    sweep(t, once, rows=True)
    os.close(memory)


@case(fs=FS, timeout=900)
def questions(t):
    """What the command asks the module."""
    path = path_argument(ioctl.DEVICE)
    mapped, waits = (ioctl.MapRecord * 64)(), (ioctl.WaitRecord * 16)()

    def once(failing):
        calls = Calls(failing)
        with File(t) as f, Map(f.fd, SIZE, skew=PAGE) as m:
            f.store_through(m)
            device = calls.call(OPEN, ctypes.addressof(path), os.O_RDWR)
            if device < 0:
                device = os.open(ioctl.DEVICE, os.O_RDWR)
            question = ioctl.MapCall(fd=f.fd, start=0, length=SIZE, records=ctypes.addressof(mapped),
                                     record_size=ctypes.sizeof(ioctl.MapRecord), count=len(mapped))
            calls.call(IOCTL, device, ioctl.MAP, ctypes.addressof(question))
            question = ioctl.WaitsCall(fd=-1, records=ctypes.addressof(waits),
                                       record_size=ctypes.sizeof(ioctl.WaitRecord), count=len(waits))
            calls.call(IOCTL, device, ioctl.WAITS, ctypes.addressof(question))
            os.close(device)
            holds()
            f.is_right("the file", m)
        return calls.end()
    sweep(t, once, rows=True)
