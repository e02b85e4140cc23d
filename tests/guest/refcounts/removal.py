# SPDX-License-Identifier: GPL-2.0
"""Files and filesystems that go while pages are in use; exchanges of files."""

import errno
import fcntl
import os
import signal
import threading

from lib import posix, task
from lib.check import Failure, check, equal, raises, same_bytes
from lib.device import SlowDisk, is_free, wait_for
from lib.mapping import Map
from lib.pattern import file as _file, page, pages
from lib.posix import PAGE, PMD
from lib.runner import case
from lib.space import free_blocks
from lib.task import Task
from lib.trace import Pages

from .common import PINNED, start_transfer


def _orphan_transfer(t, path, length):
    """A task whose direct write is the only thing that holds the file's pages.

    The mapping is gone and the file is closed when it has said so; its result is what
    pwrite() returned.
    """
    ready = t.path("ready")

    def go():
        disk = os.open(SlowDisk.PATH, os.O_RDWR | os.O_DIRECT)
        fd = os.open(path, os.O_RDWR)
        m = Map(fd, length, skew=PAGE)
        m.write(0, pages("o", length // PAGE))
        done = []
        thread = threading.Thread(
            target=lambda: done.append(posix.pwrite_from(disk, m.address, length, 0)))
        thread.start()
        wait_for(lambda: any(
            task.syscall(f"self/task/{tid}") == task.SYSCALLS["pwrite64"]
            and task.state(f"self/task/{tid}") == "D" for tid in os.listdir("/proc/self/task")),
            "transfer under way")
        m.unmap()
        os.close(fd)
        with open(ready, "w", encoding="ascii"):
            pass
        thread.join()
        return done[0]

    task_ = Task(go, name="direct write")

    def is_ready():
        if task_.done():
            raise Failure(str(task_.outcome()))
        return os.path.exists(ready)

    wait_for(is_ready, "transfer under way")
    os.unlink(ready)
    return task_


@case()
def removed_file_keeps_what_is_in_use(t):
    """The last name goes while a transfer reads the pages: the blocks stay until it is over, and
    nobody is made to wait for that."""
    slow = SlowDisk()
    os.close(_file(t, 4 * PMD))
    slow.hold()
    writer = _orphan_transfer(t, t.path(), PINNED)
    t.sync()
    before = free_blocks(t.dir)
    # Not open, not mapped: the name is all that keeps the file.
    Task(os.unlink, t.path(), name="unlink").result()
    t.sync()
    check(free_blocks(t.dir) < before + PMD // PAGE, "blocks came free under the transfer")
    slow.release()
    equal(writer.result(), PINNED, "bytes written")
    same_bytes(slow.content(PINNED), pages("o", 8), "what reached the disk")
    wait_for(lambda: free_blocks(t.dir) > before + 3 * PMD // PAGE, "free blocks")


def _umount_under_transfer(t):
    """(disk, direct write that holds the file's pages, umount that waits for it)"""
    slow = SlowDisk()
    os.close(_file(t, 64 * PAGE))
    slow.hold()
    writer = _orphan_transfer(t, t.path(), PINNED)
    unmount = Task(t.fs.umount, name="umount")
    unmount.blocked_in("umount2")
    return slow, writer, unmount


@case()
def umount_waits(t):
    slow, writer, unmount = _umount_under_transfer(t)
    slow.release()
    equal(writer.result(), PINNED, "bytes written")
    unmount.result()
    same_bytes(slow.content(PINNED), pages("o", 8), "what reached the disk")
    t.fs.mount()
    fd = t.open()
    same_bytes(os.pread(fd, 10 * PAGE, 0), pages("o", 8) + pages("f", 2, 8), "after mounting")


@case()
def umount_that_waits_holds_nobody_up(t):
    """sync, which takes each filesystem's lock, gets on; who unmounts can be killed, and the
    filesystem ends without him."""
    slow, writer, unmount = _umount_under_transfer(t)
    Task(os.sync, name="sync").result()
    unmount.blocked_in("umount2")
    unmount.kill()
    equal(unmount.signalled(), signal.SIGKILL, "signal for who unmounts")
    # It is there as long as its pages are held, so nobody else may have the device.
    raises(errno.EBUSY, "the device while a page is held", os.open, f"/dev/{t.device}",
           os.O_RDONLY | os.O_EXCL)
    slow.release()
    equal(writer.result(), PINNED, "bytes written")

    wait_for(lambda: is_free(t.device), "the filesystem's end")
    t.fs.mount()
    same_bytes(os.pread(t.open(), 10 * PAGE, 0), pages("o", 8) + pages("f", 2, 8), "after mounting")


@case()
def mount_again_ends_the_wait_of_umount(t):
    """A filesystem that is mounted again meanwhile is in use, and who unmounted it is done."""
    slow, writer, unmount = _umount_under_transfer(t)
    Task(t.fs.mount, name="mount").result()
    unmount.result()
    same_bytes(os.pread(t.open(), 10 * PAGE, 0), pages("o", 8) + pages("f", 2, 8),
               "while the page is held")
    slow.release()
    equal(writer.result(), PINNED, "bytes written")


@case()
def fork_under_transfer(t):
    """A child made while a transfer is under way neither copies nor keeps the page."""
    state, slow, fd = Pages(), SlowDisk(), _file(t, 64 * PAGE)
    with Map(fd, 64 * PAGE, skew=PAGE) as m:
        m.write(0, pages("h", 8))
        pfns = m.pfns(0, PINNED)
        slow.hold()
        writer = start_transfer(m, 0, PINNED, write=True)

        def child():
            m.write(0, pages("c", 1))
            return m.pfn(0)

        equal(Task(child).result(), pfns[0], "page frame in the child")
        slow.release()
        equal(writer.result(), PINNED, "bytes written")
        same_bytes(slow.content(PINNED), pages("c", 1) + pages("h", 7, 1), "the disk")
    state.check_idle(pfns, "afterwards")


@case()
def transfer_from_pages_not_faulted(t):
    """Pages come in by the slow path of pinning, at every order, and from holes."""
    slow, fd = SlowDisk(), t.open(size=4 * PMD)
    os.pwrite(fd, pages("f", 512, 512), PMD)
    for skew in (0, PAGE):
        with Map(fd, 4 * PMD, skew=skew) as m:
            disk = slow.open()
            slow.fill(b"\xff" * (3 * PAGE), offset=0)
            equal(posix.pwrite_from(disk, m.address + PMD + 10 * PAGE, 3 * PAGE, 0), 3 * PAGE,
                  "write from data")
            same_bytes(slow.content(3 * PAGE), pages("f", 3, 522), "written from data")
            equal(posix.pwrite_from(disk, m.address, 2 * PAGE, 0), 2 * PAGE, "write from a hole")
            same_bytes(slow.content(2 * PAGE), bytes(2 * PAGE), "written from a hole")
            slow.fill(pages("d", 3))
            equal(posix.pread_to(disk, m.address + 3 * PMD, 3 * PAGE, 0), 3 * PAGE, "read")
            same_bytes(os.pread(fd, 4 * PAGE, 3 * PMD), pages("d", 3) + bytes(PAGE),
                       "read into a hole")
            os.ftruncate(fd, 3 * PMD)
            os.ftruncate(fd, 4 * PMD)


@case(fs=("xfs", "xfs-noreflink"))
def files_that_are_exchanged_give_up_no_page_that_is_held(t):
    """XFS_IOC_SWAPEXT, which breaks no layout: with entries it works, without a word, and with a page
    that somebody holds it is refused."""
    t.need_adopted()
    names, count = ("one", "two"), 1024
    fds = [t.open(name, allocate=count * PAGE) for name in names]
    for name, fd in zip(names, fds, strict=True):
        os.pwrite(fd, pages(name[0], count), 0)
    reader, writer = os.pipe()
    expected = [bytearray(pages(name[0], count)) for name in names]
    for skew in (0, PAGE):
        with Map(fds[0], count * PAGE, skew=skew) as one, \
                Map(fds[1], count * PAGE, skew=skew) as two:

            def are_right(when, maps=(one, two)):
                for m, fd, content in zip(maps, fds, expected, strict=True):
                    same_bytes(m.read(0, count * PAGE), content, f"mapping {when}")
                    same_bytes(os.pread(fd, count * PAGE, 0), content, f"file {when}")

            one.write(3 * PAGE, page("d", skew))
            expected[0][3 * PAGE:4 * PAGE] = page("d", skew)
            are_right("before")
            os.fsync(fds[0])
            one.write(3 * PAGE, page("d", skew))
            posix.swap_extents(*fds)
            expected.reverse()
            are_right("afterwards")
            for held in (one, two):
                held.splice(writer, 5 * PAGE)
                raises(errno.EBUSY, "an exchange of what somebody holds", posix.swap_extents, *fds)
                are_right("when it was refused")
                same_bytes(os.read(reader, PAGE), held.read(5 * PAGE, PAGE), "what was in the pipe")
            posix.swap_extents(*fds)
            expected.reverse()
            are_right("when nobody holds any more")
    for fd in (*fds, reader, writer):
        os.close(fd)


@case(fs=("ext4",))
def exchange_with_the_boot_loader(t):
    """EXT4_IOC_SWAP_BOOT breaks no layout either: no word of the entries, nothing is lost, and with a page
    that somebody holds it is refused."""
    t.need_adopted()
    fd = t.open("file", allocate=1024 * PAGE)
    os.pwrite(fd, pages("b", 1024), 0)
    with Map(fd, 1024 * PAGE) as m:
        m.touch()
        m.write(5 * PAGE, page("s"))
        os.fsync(fd)
        reader, writer = os.pipe()
        m.splice(writer, 5 * PAGE)
        raises(errno.EBUSY, "an exchange of what somebody holds", fcntl.ioctl, fd,
               posix.EXT4_IOC_SWAP_BOOT)
        m.write(6 * PAGE, page("t"))
        same_bytes(os.read(reader, PAGE), page("s"), "what was in the pipe")
        fcntl.ioctl(fd, posix.EXT4_IOC_SWAP_BOOT)
        equal(m.mapped(), 0, "bytes mapped of what the file has no more")
        fcntl.ioctl(fd, posix.EXT4_IOC_SWAP_BOOT)
        same_bytes(m.read(0, 1024 * PAGE), pages("b", 5) + page("s") + page("t") + pages("b", 1017, 7),
                   "the mapping when it is back")
    os.close(fd)
