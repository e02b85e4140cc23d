# SPDX-License-Identifier: GPL-2.0
"""A read-only filesystem served from memory: erofs images, uncompressed."""

import errno
import os
import shutil
import subprocess

from lib import device, posix
from lib.check import Skip, check, equal, raises, same_bytes
from lib.device import run, some
from lib.fs import MOUNT
from lib.mapping import Map
from lib.pattern import noise, page, pages
from lib.posix import PAGE, PMD
from lib.runner import case
from lib.trace import Pages

TREE = "/tmp/rdax-tests/tree"
IMAGE = "/tmp/rdax-tests/image"


class _Image:
    """The device holds an image of a small tree, mounted while this lasts."""

    def __enter__(self):
        if not os.path.exists(IMAGE):
            shutil.rmtree(TREE, ignore_errors=True)
            os.makedirs(f"{TREE}/sub")
            self._write("small", b"a few bytes\n")
            self._write("sub/pages", pages("e", 100) + b"and a tail")
            self._write("large", noise(2 * PMD + 777, 9))
            self._write("empty", b"")
            shutil.copy("/bin/busybox", f"{TREE}/busybox")
            os.chmod(f"{TREE}/busybox", 0o755)
            with open(f"{TREE}/sparse", "wb") as f:
                f.truncate(40 * PAGE)
                f.seek(30 * PAGE)
                f.write(page("s", 30))
            run("mkfs.erofs", "-b", "4096", "-E", "noinline_data", IMAGE, TREE)
        run("dd", f"if={IMAGE}", "of=/dev/pmem0", "bs=1M", "oflag=direct", "conv=notrunc")
        os.makedirs(MOUNT, exist_ok=True)
        run("mount", "-t", "erofs", "-o", "dax=always", "/dev/pmem0", MOUNT)
        return self

    @staticmethod
    def _write(name, content):
        with open(f"{TREE}/{name}", "wb") as f:
            f.write(content)

    def __exit__(self, *_):
        posix.umount(MOUNT)

    @staticmethod
    def open(name):
        return os.open(f"{MOUNT}/{name}", os.O_RDONLY)

    @staticmethod
    def content(name):
        with open(f"{TREE}/{name}", "rb") as f:
            return f.read()


def _names():
    return ["small", "sub/pages", "large", "empty", "sparse", "busybox"]


@case(fs=())
def reads(t):
    with _Image() as image:
        for name in _names():
            wanted, fd = image.content(name), image.open(name)
            same_bytes(os.pread(fd, len(wanted) + 100, 0), wanted, name)
            middle = len(wanted) // 2
            same_bytes(os.pread(fd, 5000, middle), wanted[middle:middle + 5000],
                       f"{name} from the middle")
            os.close(fd)


@case(fs=())
def maps(t):
    stats = t.stats()
    with _Image() as image:
        for name in _names():
            wanted, fd = image.content(name), image.open(name)
            if wanted:
                length = -(-len(wanted) // PAGE) * PAGE
                for flags in (posix.MAP_SHARED, posix.MAP_PRIVATE):
                    for skew in (0, PAGE):
                        with Map(fd, length, prot=posix.PROT_READ, flags=flags, skew=skew) as m:
                            same_bytes(m.read(0, len(wanted)), wanted, f"{name}, mapped")
                with Map(fd, length + PAGE, prot=posix.PROT_READ) as m:
                    m.bus_error(length, f"{name}: load past EOF")
            os.close(fd)
        stats.expect(read_pte=some)


@case(fs=())
def is_dax(t):
    """The pages that are mapped are the device's own: no copy is in between."""
    with _Image() as image:
        fd = image.open("sub/pages")
        with Map(fd, 100 * PAGE, prot=posix.PROT_READ) as m:
            m.touch()
            start = device.data_start("pmem0") // PAGE
            frames = m.pfns()
            check(all(start <= pfn < start + device.size("pmem0") // PAGE for pfn in frames),
                  "pages outside the device are mapped")
        Pages().check_idle(frames[::10], "after munmap")
        os.close(fd)


@case(fs=())
def private_copies(t):
    with _Image() as image:
        fd = image.open("sub/pages")
        with Map(fd, 100 * PAGE, flags=posix.MAP_PRIVATE) as m:
            m.write(5 * PAGE, b"private")
            same_bytes(m.read(5 * PAGE, PAGE), b"private" + page("e", 5)[7:], "the copy")
            same_bytes(os.pread(fd, PAGE, 5 * PAGE), page("e", 5), "the file")
        raises(13, "writable shared mapping", Map, fd, PAGE)
        os.close(fd)


@case(fs=())
def executes(t):
    with _Image():
        done = subprocess.run([f"{MOUNT}/busybox", "echo", "from", "erofs"],
                              stdout=subprocess.PIPE, check=False)
        equal(done.returncode, 0, "status")
        same_bytes(done.stdout, b"from erofs\n", "what the program printed")


@case(fs=())
def probes_are_refused(t):
    """The core reads the instruction for a probe through the page cache, which has no place in a DAX
    file's tree. For XFS and ext4 it refuses that itself."""
    events = "/sys/kernel/tracing/uprobe_events"
    if not os.path.exists(events):
        raise Skip("the kernel has no uprobe_events")
    wanted = _Image.content("busybox")
    with _Image() as image:
        fd = image.open("busybox")
        with Map(fd, len(wanted) // PAGE * PAGE, prot=posix.PROT_READ) as m:
            m.touch()
            device.write(events, f"p:rdaxtest/probe {MOUNT}/busybox:0x{5 * PAGE:x}")
            try:
                raises(errno.EIO, "a probe", device.write,
                       "/sys/kernel/tracing/events/rdaxtest/probe/enable", "1")
            finally:
                device.write(events, "-:rdaxtest/probe")
            same_bytes(m.read(0, m.length), wanted[:m.length], "the file, mapped")
        same_bytes(os.pread(fd, len(wanted), 0), wanted, "the file, read")
        os.close(fd)
