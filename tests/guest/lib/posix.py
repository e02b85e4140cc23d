# SPDX-License-Identifier: GPL-2.0
"""System calls as the tests need them: on addresses, not on Python's buffers."""

import ctypes
import fcntl
import os
import struct

PAGE = 4096
PMD = 2 << 20
GIB = 1 << 30

PROT_NONE, PROT_READ, PROT_WRITE, PROT_RW = 0, 1, 2, 3
MAP_SHARED, MAP_PRIVATE, MAP_SHARED_VALIDATE = 1, 2, 3
MAP_FIXED, MAP_ANONYMOUS, MAP_NORESERVE = 0x10, 0x20, 0x4000
MAP_POPULATE, MAP_SYNC = 0x8000, 0x80000
MADV_NORMAL, MADV_RANDOM = 0, 1
MADV_DONTNEED, MADV_DONTFORK, MADV_HWPOISON = 4, 10, 100
MADV_MERGEABLE = 12
MADV_GUARD_INSTALL, MADV_GUARD_REMOVE = 102, 103
MADV_NOHUGEPAGE, MADV_POPULATE_READ, MADV_POPULATE_WRITE = 15, 22, 23
MREMAP_MAYMOVE, MREMAP_FIXED = 1, 2
MS_ASYNC, MS_SYNC = 1, 4

SPLICE_F_GIFT = 8
KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE = 1, 2, 8, 16
INSERT_RANGE, UNSHARE_RANGE = 32, 64

FICLONE, FICLONERANGE, FIDEDUPERANGE = 0x40049409, 0x4020940D, 0xC0189436
FS_IOC_FIEMAP, FS_IOC_SHUTDOWN = 0xC020660B, 0x8004587D
SHUTDOWN_NO_LOG_FLUSH = 2
XFS_IOC_SWAPEXT, EXT4_IOC_SWAP_BOOT, XFS_IOC_EXCHANGE_RANGE = 0xC0C0586D, 0x6611, 0x40285881
FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR, FS_XFLAG_DAX = 0x801C581F, 0x401C5820, 0x8000
EXTENT_UNWRITTEN, EXTENT_SHARED = 0x800, 0x2000
DEDUPE_SAME, DEDUPE_DIFFERS = 0, 1
NOBODY = 65534
CLONE_NEWPID = 0x20000000
MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)
_void, _size, _off, _int = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64, ctypes.c_int


def _declare(name, result, *arguments):
    function = getattr(_libc, name)
    function.restype = result
    function.argtypes = arguments
    return function


_mmap = _declare("mmap", _void, _void, _size, _int, _int, _int, _off)
_munmap = _declare("munmap", _int, _void, _size)
_mprotect = _declare("mprotect", _int, _void, _size, _int)
_mremap = _declare("mremap", _void, _void, _size, _size, _int, _void)
_madvise = _declare("madvise", _int, _void, _size, _int)
_msync = _declare("msync", _int, _void, _size, _int)
_pread = _declare("pread", ctypes.c_ssize_t, _int, _void, _size, _off)
_pwrite = _declare("pwrite", ctypes.c_ssize_t, _int, _void, _size, _off)
_fallocate = _declare("fallocate", _int, _int, _int, _off, _off)
_ftruncate = _declare("ftruncate", _int, _int, _off)
_unshare = _declare("unshare", _int, _int)
_prctl = _declare("prctl", _int, _int, *[ctypes.c_ulong] * 4)
_vmsplice = _declare("vmsplice", ctypes.c_ssize_t, _int, _void, _size, ctypes.c_uint)
_mount = _declare("mount", _int, *[ctypes.c_char_p] * 3, ctypes.c_ulong, ctypes.c_char_p)
_umount2 = _declare("umount2", _int, ctypes.c_char_p, _int)
_syncfs = _declare("syncfs", _int, _int)
_syscall = _declare("syscall", ctypes.c_long, *[ctypes.c_long] * 7)


def _must(result, what, failed=-1):
    if result == failed:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result


def mmap(address, length, prot, flags, fd=-1, offset=0):
    failed = ctypes.c_void_p(-1).value
    return _must(_mmap(address, length, prot, flags, fd, offset), "mmap", failed)


def munmap(address, length):
    _must(_munmap(address, length), "munmap")


def mprotect(address, length, prot):
    _must(_mprotect(address, length, prot), "mprotect")


def mremap(old, old_length, new_length, flags, new=0):
    failed = ctypes.c_void_p(-1).value
    return _must(_mremap(old, old_length, new_length, flags, new), "mremap", failed)


def madvise(address, length, advice):
    _must(_madvise(address, length, advice), f"madvise {advice}")


def msync(address, length, flags):
    _must(_msync(address, length, flags), "msync")


def pread_to(fd, address, length, offset):
    """Read a file straight into memory at address; returns the bytes read."""
    return _must(_pread(fd, address, length, offset), "pread")


def pwrite_from(fd, address, length, offset):
    return _must(_pwrite(fd, address, length, offset), "pwrite")


def fallocate(fd, mode, offset, length):
    _must(_fallocate(fd, mode, offset, length), f"fallocate mode {mode}")


def ftruncate_once(fd, size):
    """ftruncate() that does not start over after a signal, as Python's does."""
    _must(_ftruncate(fd, size), "ftruncate")


def vmsplice(pipe, address, length, flags=0):
    """Put pages into a pipe, which holds a reference to each until it is read."""
    vector = struct.pack("QQ", address, length)
    return _must(_vmsplice(pipe, vector, 1, flags), "vmsplice")


def process_vm_write(pid, source, target, length):
    """Copy memory of this process into another's; returns the bytes copied."""
    here, there = (ctypes.c_uint64 * 2)(source, length), (ctypes.c_uint64 * 2)(target, length)
    return _must(_syscall(311, pid, ctypes.addressof(here), 1, ctypes.addressof(there), 1, 0),
                 "process_vm_writev")


def mount(source, target, filesystem, options, flags=0):
    """Mount without the command of that name."""
    texts = (text.encode() for text in (source, target, filesystem))
    _must(_mount(*texts, flags, options.encode()), f"mount {source}")


def open_filesystem(source, filesystem):
    """Get a filesystem for mounting, and mount it nowhere (fsopen(), fsconfig())."""
    kind, key, value = (ctypes.create_string_buffer(text.encode())
                        for text in (filesystem, "source", source))
    fd = _must(_syscall(430, ctypes.addressof(kind), 1, 0, 0, 0, 0), "fsopen")
    # FSCONFIG_SET_STRING, FSCONFIG_CMD_CREATE
    _must(_syscall(431, fd, 1, ctypes.addressof(key), ctypes.addressof(value), 0, 0), "fsconfig")
    _must(_syscall(431, fd, 6, 0, 0, 0, 0), f"fsconfig {source}")
    return fd


def umount(path, flags=0):
    _must(_umount2(os.fsencode(path), flags), f"umount {path}")


def syncfs(fd):
    _must(_syncfs(fd), "syncfs")


def die_of_poison_early():
    """Ask for a signal as soon as a mapped page is poisoned (PR_MCE_KILL_EARLY)."""
    _must(_prctl(33, 1, 1, 0, 0), "prctl")


def become_subreaper():
    _must(_prctl(36, 1, 0, 0, 0), "prctl")


def clone_process():
    """A child that is made by clone() itself, without what fork() does for it. It must end soon."""
    return _must(_syscall(56, 17, 0, 0, 0, 0, 0), "clone")


def become_nobody():
    """Go on without any right, as a process that may be looked at by its like."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    # Forgotten with the rights (PR_SET_DUMPABLE).
    _must(_prctl(4, 1, 0, 0, 0), "prctl")


def unshare(flags):
    """Children will be in namespaces of their own."""
    _must(_unshare(flags), "unshare")


def syscall(number, *arguments):
    """Any system call; integers and addresses only."""
    padded = [*arguments, *[0] * (6 - len(arguments))]
    return _must(_syscall(number, *[_signed(a) for a in padded]), f"system call {number}")


def _signed(value):
    return value - (1 << 64) if value >= 1 << 63 else value


def bpf(command, attributes, length):
    return _must(_syscall(321, command, attributes, length, 0, 0, 0), "bpf")


def system_call(name, number, *arguments):
    """A call that the C library has no function for."""
    return _must(_syscall(number, *arguments, *[0] * (6 - len(arguments))), name)


def userfaultfd(flags):
    return _must(_syscall(323, flags, 0, 0, 0, 0, 0), "userfaultfd")


def _ring_with(what, argument):
    parameters = (ctypes.c_uint8 * 120)()
    ring = _must(_syscall(425, 1, ctypes.addressof(parameters), 0, 0, 0, 0), "io_uring_setup")
    try:
        _must(_syscall(427, ring, what, ctypes.addressof(argument), 1, 0, 0), "io_uring_register")
    except OSError:
        os.close(ring)
        raise
    return ring


def pin_buffer(address, length):
    """Pin memory for as long as the descriptor that is returned is open, through io_uring."""
    return _ring_with(0, (ctypes.c_uint64 * 2)(address, length))


def register_file(fd):
    """The descriptor of an io_uring that has the file."""
    return _ring_with(2, (ctypes.c_int32 * 1)(fd))


def close_ring_with_files(ring):
    """At once: closing alone leaves its files to a thread of the kernel."""
    _must(_syscall(427, ring, 3, 0, 0, 0, 0), "io_uring_register")
    os.close(ring)


def register_buffer(address, length):
    """Pin memory for long, through io_uring; raises what the kernel answers."""
    os.close(pin_buffer(address, length))


def clone(source, target):
    fcntl.ioctl(target, FICLONE, source)


def swap_extents_request(target, other):
    """The argument of XFS_IOC_SWAPEXT on the target."""
    stat = os.fstat(target)
    times = b"".join(struct.pack("qi4x", ns // 10 ** 9, ns % 10 ** 9)
                     for ns in (stat.st_atime_ns, stat.st_mtime_ns, stat.st_ctime_ns))
    # What it has besides the times is not looked at.
    before = bytes(40) + times + bytes(48)
    return struct.pack("5q16x", 0, target, other, 0, stat.st_size) + before


def swap_extents(target, other):
    """XFS_IOC_SWAPEXT: two files of one size exchange all that they have."""
    fcntl.ioctl(target, XFS_IOC_SWAPEXT, swap_extents_request(target, other))


def set_dax(path):
    """Files that are made in this directory from now on have DAX (FS_XFLAG_DAX)."""
    fd = os.open(path, os.O_RDONLY)
    try:
        attributes = bytearray(28)
        fcntl.ioctl(fd, FS_IOC_FSGETXATTR, attributes)
        flags = struct.unpack_from("I", attributes)[0]
        struct.pack_into("I", attributes, 0, flags | FS_XFLAG_DAX)
        fcntl.ioctl(fd, FS_IOC_FSSETXATTR, attributes)
    finally:
        os.close(fd)


def exchange_range_request(other, offset, length):
    """The argument of XFS_IOC_EXCHANGE_RANGE."""
    return struct.pack("iIQQQQ", other, 0, offset, offset, length, 0)


def exchange_range(target, other, offset, length):
    """XFS_IOC_EXCHANGE_RANGE: two files exchange what they have at an offset."""
    fcntl.ioctl(target, XFS_IOC_EXCHANGE_RANGE, exchange_range_request(other, offset, length))


def clone_range_request(source, source_offset, length, target_offset):
    """The argument of FICLONERANGE on the target."""
    return struct.pack("qQQQ", source, source_offset, length, target_offset)


def clone_range(source, source_offset, length, target, target_offset):
    fcntl.ioctl(target, FICLONERANGE, clone_range_request(source, source_offset, length, target_offset))


def dedupe_request(source_offset, length, target, target_offset):
    """The argument of FIDEDUPERANGE on the source."""
    return (struct.pack("QQHHI", source_offset, length, 1, 0, 0)
            + struct.pack("qQQiI", target, target_offset, 0, 0, 0))


def dedupe(source, source_offset, length, target, target_offset):
    """Returns (status, bytes deduped)."""
    answer = bytearray(dedupe_request(source_offset, length, target, target_offset))
    fcntl.ioctl(source, FIDEDUPERANGE, answer)
    _, _, done, status, _ = struct.unpack("qQQiI", answer[24:])
    return status, done


def extents(fd):
    """[(file offset, device offset, length, flags)] in bytes, from the disk's point of view."""
    room = 512
    query = bytearray(struct.pack("QQIIII", 0, 2 ** 64 - 1, 1, 0, room, 0) + bytes(56 * room))
    fcntl.ioctl(fd, FS_IOC_FIEMAP, query)
    count = struct.unpack_from("I", query, 20)[0]
    found = []
    for i in range(count):
        logical, physical, length = struct.unpack_from("QQQ", query, 32 + 56 * i)
        flags = struct.unpack_from("I", query, 32 + 56 * i + 40)[0]
        found.append((logical, physical, length, flags))
    return found


def extent_count(fd):
    """How many pieces the file is in on the disk."""
    query = bytearray(struct.pack("QQIIII", 0, 2 ** 64 - 1, 1, 0, 0, 0))
    fcntl.ioctl(fd, FS_IOC_FIEMAP, query)
    return struct.unpack_from("I", query, 20)[0]


def shut_down(path):
    """Stop the filesystem at once, without writing its log: what a power cut leaves."""
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, FS_IOC_SHUTDOWN, struct.pack("I", SHUTDOWN_NO_LOG_FLUSH))
    finally:
        os.close(fd)
