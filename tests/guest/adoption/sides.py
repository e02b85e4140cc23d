# SPDX-License-Identifier: GPL-2.0
"""Which side serves a call, with one device adopted and one not."""

import errno
import os
import subprocess

from lib import bpf, posix
from lib.check import Skip, check, equal, raises, same_bytes
from lib.device import CONFIG, Stats, read, run, some, write
from lib.mapping import Map
from lib.pattern import page, pages
from lib.posix import PAGE, PMD
from lib.runner import case

from .common import DEVICE, EBUSY, EINVAL, Item, OTHER, Watched, mountable, need, redirected


@case(fs=())
def nothing_is_redirected_without_a_device(t):
    """The kernel's own code serves as soon as the last device was given back."""
    need(DEVICE, OTHER)
    with Item(DEVICE, adopt=False) as one, Item(OTHER, adopt=False) as two:
        equal(redirected(), [], "functions redirected with no device adopted")
        one.set(True)
        functions = redirected()
        check("dax_iomap_fault" in functions and "dax_iomap_rw" in functions,
              f"functions redirected with a device adopted: {functions}")
        two.set(True)
        one.set(False)
        equal(redirected(), functions, "functions redirected with the other device adopted")
        two.set(False)
        equal(redirected(), [], "functions redirected with both given back")
        fs = mountable()
        fs.make()
        fs.mount()
        try:
            fd = os.open(f"{fs.mount_point}/file", os.O_RDWR | os.O_CREAT)
            os.ftruncate(fd, PMD)
            with Map(fd, PMD) as m:
                m.write(0, pages("k", 512))
            same_bytes(os.pread(fd, PMD, 0), pages("k", 512), "a file served by the kernel")
            os.close(fd)
        finally:
            fs.umount()


def _two(variant):
    """One device adopted, the other not, each under load at the same time, and then crosswise."""
    need(DEVICE, OTHER)
    for adopted in (DEVICE, OTHER):
        plain = OTHER if adopted == DEVICE else DEVICE
        with Item(adopted, adopt=True), Item(plain, adopt=False):
            both = [mountable(variant, name) for name in (adopted, plain)]
            for fs in both:
                fs.make()
                fs.mount()
            try:
                mine, other = Stats(adopted), read(f"{CONFIG}/{plain}/stats", "nothing")
                loads = [subprocess.Popen(
                    ["fio", "--output-format=terse", "--thread=1", "--verify=crc32c",
                     "--verify_fatal=1", "--verify_state_save=0", "--size=2m",
                     f"--directory={fs.mount_point}", "--name=mmap", "--ioengine=mmap",
                     "--rw=randwrite", "--bs=4k", "--name=psync", "--ioengine=psync",
                     "--rw=randwrite", "--bs=16k"],
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for fs in both]
                for load, fs in zip(loads, both, strict=True):
                    said = load.communicate()[0]
                    equal(load.returncode, 0, f"status of fio on {fs.device}: {said}")
                mine.expect(write_bytes=lambda n: n >= 2 << 20, read_bytes=some)
                faults = mine.since()
                check(faults["write_pte"] + faults["write_pmd"] > 0, "no write fault was counted")
                equal(read(f"{CONFIG}/{plain}/stats", "nothing"), other,
                      "counters of the device that is not adopted")
            finally:
                for fs in both:
                    if fs.mounted:
                        fs.umount()
            for fs in both:
                fs.check()


@case(fs=())
def traced_functions_go_the_same_way(t):
    """Somebody who traces the redirected functions sees their calls, which go where they did."""
    need(DEVICE)
    tracing = "/sys/kernel/tracing"
    if "function" not in read(f"{tracing}/available_tracers").split():
        raise Skip("this kernel has no function tracer")
    traced = ("dax_iomap_fault", "dax_iomap_rw", "dax_writeback_mapping_range")
    with Item(DEVICE, adopt=True), Watched(mountable()) as file:
        write(f"{tracing}/set_ftrace_filter", "dax_*")
        write(f"{tracing}/current_tracer", "function")
        try:
            file.use()
            seen = read(f"{tracing}/trace")
        finally:
            write(f"{tracing}/current_tracer", "nop")
            write(f"{tracing}/set_ftrace_filter", "")
        for name in traced:
            check(f"{name} <-" in seen, f"the tracer has not seen {name}")
        file.check()


def _ext4_is_watched():
    return "ext4_ext_map_blocks " in read("/sys/kernel/tracing/enabled_functions")


@case(fs=())
def ext4_is_watched_whenever_it_is_loaded(t):
    """It is kept from telling of blocks too early, whether it is loaded before a device is adopted
    or after, and left alone without one."""
    need(DEVICE, OTHER)
    in_use = [line.split()[1] for line in read("/proc/mounts").splitlines()
              if line.split()[2] == "ext4"]
    equal(in_use, [], "where ext4 is mounted")
    with Item(DEVICE, adopt=False) as item, Item(OTHER, adopt=False):
        run("modprobe", "ext4")
        check(not _ext4_is_watched(), "watched with no device adopted")
        item.set(True)
        check(_ext4_is_watched(), "not watched, and loaded before")
        item.set(False)
        check(not _ext4_is_watched(), "watched with no device adopted any more")
        item.set(True)
        if not os.path.exists("/sys/module/ext4/initstate"):
            raise Skip("ext4 is built into this kernel")
        for _ in range(2):
            run("modprobe", "-r", "ext4")
            check(not _ext4_is_watched(), "watched, and not loaded")
            run("modprobe", "ext4")
            check(_ext4_is_watched(), "not watched, and loaded afterwards")


@case(fs=())
def functions_with_a_bpf_program_go_the_same_way(t):
    """Of two that have ftrace call them at once only the first can; the module has another way."""
    need(DEVICE, OTHER)
    names = ("dax_iomap_fault", "dax_iomap_rw")
    with Item(DEVICE, adopt=False) as item, Item(OTHER, adopt=False):
        with bpf.Attached(names) as programs:
            item.set(True)
            equal({name for name in names if name in redirected()}, set(names), "redirected")
            check("rdax_direct_call" not in read("/sys/kernel/tracing/enabled_functions"),
                  "the module has the way that the BPF programs have")
            with Watched(mountable()) as file:
                file.use()
                file.check()
            for name in names:
                check(programs.calls(name) > 0, f"the program at {name} has seen no call")
        # The programs are gone, and the functions remain redirected.
        with Watched(mountable()) as file:
            file.use()
            file.check()
        item.set(False)
        item.set(True)
        check("rdax_direct_call" in read("/sys/kernel/tracing/enabled_functions"),
              "with nobody else there, the module has not taken the shorter way")
        with Watched(mountable()) as file:
            raises((EBUSY, EINVAL), "a BPF program while the module has the place",
                   bpf.Attached(names).__enter__)
            file.use()
            file.check()


@case(fs=())
def one_adopted_one_not_xfs(t):
    _two("xfs")


@case(fs=(), quick=False)
def one_adopted_one_not_ext4(t):
    _two("ext4")


@case(fs=())
def files_without_dax_are_merged_as_ever(t):
    """Only for mappings of DAX files does the module answer what is asked of KSM."""
    need(DEVICE)
    if not os.path.isdir("/sys/kernel/mm/ksm"):
        raise Skip("the kernel has no KSM")
    fs = mountable()
    path = f"{fs.mount_point}/file"
    with Item(DEVICE, True):
        fs.make()
        os.makedirs(fs.mount_point, exist_ok=True)
        for options, merged in (("dax=inode", True), ("dax=always", False)):
            run("mount", "-t", fs.variant.kind, "-o", options, fs.node, fs.mount_point)
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT)
                try:
                    os.ftruncate(fd, 16 * PAGE)
                    with Map(fd, 16 * PAGE, flags=posix.MAP_PRIVATE) as m:
                        m.touch(0, 16 * PAGE, write=True)
                        m.advise(posix.MADV_MERGEABLE)
                        equal("mg" in m.flags(), merged, f"whether it is merged with {options}")
                finally:
                    os.close(fd)
            finally:
                fs.umount()


@case(fs=())
def exchange_with_a_file_without_dax(t):
    """XFS_IOC_EXCHANGE_RANGE of a file with DAX and one without breaks neither's layout: it is refused
    with a page that somebody holds, and works without one."""
    need(DEVICE)
    fs = mountable()
    with Item(DEVICE, True):
        run(*fs.variant.mkfs, "-i", "exchange=1", fs.node)
        os.makedirs(fs.mount_point, exist_ok=True)
        run("mount", "-t", "xfs", "-o", "dax=inode", fs.node, fs.mount_point)
        try:
            os.mkdir(f"{fs.mount_point}/dax")
            posix.set_dax(f"{fs.mount_point}/dax")
            fds = [os.open(f"{fs.mount_point}/{name}", os.O_RDWR | os.O_CREAT)
                   for name in ("dax/file", "plain")]
            for fd, letter in zip(fds, "dp", strict=True):
                posix.fallocate(fd, 0, 0, 2 * PMD)
                os.pwrite(fd, pages(letter, 1024), 0)
                os.fsync(fd)
            reader, writer = os.pipe()
            with Map(fds[0], 2 * PMD) as m:
                m.splice(writer, 5 * PAGE)
                for first, second in (fds, fds[::-1]):
                    raises(errno.EBUSY, "an exchange of what somebody holds", posix.exchange_range,
                           first, second, 0, PMD)
                same_bytes(m.read(0, 2 * PMD), pages("d", 1024), "mapping when it was refused")
                # Elsewhere nobody holds anything.
                posix.exchange_range(*fds, PMD, PMD)
                same_bytes(m.read(0, 2 * PMD), pages("d", 512) + pages("p", 512, 512), "mapping")
                same_bytes(os.read(reader, PAGE), page("d", 5), "what was in the pipe")
                posix.exchange_range(*fds, 0, PMD)
                same_bytes(m.read(0, 2 * PMD), pages("p", 1024), "mapping when nobody holds any more")
            same_bytes(os.pread(fds[1], 2 * PMD, 0), pages("d", 1024), "the file without DAX")
            for fd in (*fds, reader, writer):
                os.close(fd)
        finally:
            fs.umount()
            fs.check()
