# SPDX-License-Identifier: GPL-2.0
"""Page faults, also of files that share their blocks."""

import ctypes
import os

from lib import posix
from lib.check import same_bytes
from lib.mapping import Map
from lib.pattern import page, pages
from lib.posix import PAGE, PMD
from lib.runner import case
from .common import FALLOCATE, FS, IOCTL, PWRITE, SIZE, File, ended, holds, sweep


def _faults(t, kind, skew, write, flags=posix.MAP_SHARED, before=None):
    """The faults of one access to each half."""
    def once(failing):
        with File(t, kind) as f, Map(f.fd, SIZE, skew=skew, flags=flags) as m:
            if before:
                before(f, m)
            failing.touch(m, PAGE, SIZE - PAGE, PMD, 0x55 if write else -1)
            if write and flags != posix.MAP_PRIVATE:
                for at in range(PAGE, SIZE, PMD):
                    f.put(at, b"\x55")
            holds()
            if write and flags == posix.MAP_PRIVATE:
                wanted = bytearray(f.content)
                for at in range(PAGE, SIZE, PMD):
                    wanted[at] = 0x55
                same_bytes(m.read(0, SIZE), wanted, "the private mapping")
                f.is_right()
            else:
                f.is_right(mapping=m)
            os.fsync(f.fd)
            f.is_right("the file after fsync")
    sweep(t, once)


@case(fs=FS, timeout=600)
def read_faults_of_pages(t):
    _faults(t, "written", PAGE, False)


@case(fs=FS, timeout=600)
def read_faults_of_2_mib(t):
    _faults(t, "written", 0, False)


@case(fs=FS, timeout=600)
def read_faults_of_holes(t):
    _faults(t, "hole", PAGE, False)


@case(fs=FS, timeout=600)
def read_faults_of_holes_of_2_mib(t):
    _faults(t, "hole", 0, False)


@case(fs=FS, timeout=600)
def write_faults_of_pages(t):
    _faults(t, "written", PAGE, True)


@case(fs=FS, timeout=600)
def write_faults_of_2_mib(t):
    _faults(t, "written", 0, True)


@case(fs=FS, timeout=600)
def write_faults_that_allocate(t):
    _faults(t, "hole", PAGE, True)


@case(fs=FS, timeout=600)
def write_faults_that_convert_2_mib(t):
    _faults(t, "unwritten", 0, True)


@case(fs=FS, timeout=600)
def stores_over_zeroes(t):
    _faults(t, "hole", PAGE, True, before=lambda f, m: m.touch())


@case(fs=FS, timeout=600)
def stores_over_zeroes_of_2_mib(t):
    _faults(t, "unwritten", 0, True, before=lambda f, m: m.touch())


@case(fs=FS, timeout=600)
def stores_after_fsync(t):
    def before(f, m):
        m.touch(0, SIZE, PMD, write=True)
        os.fsync(f.fd)
    _faults(t, "written", 0, True, before=before)


@case(fs=FS, timeout=600)
def synchronous_faults(t):
    flags = posix.MAP_SHARED_VALIDATE | posix.MAP_SYNC
    _faults(t, "hole", PAGE, True, flags=flags)


@case(fs=FS, timeout=600)
def synchronous_faults_of_2_mib(t):
    flags = posix.MAP_SHARED_VALIDATE | posix.MAP_SYNC
    _faults(t, "unwritten", 0, True, flags=flags)


@case(fs=FS, timeout=600)
def private_stores(t):
    _faults(t, "written", 0, True, flags=posix.MAP_PRIVATE)


@case(fs=FS, timeout=600)
def private_stores_over_holes(t):
    _faults(t, "hole", PAGE, True, flags=posix.MAP_PRIVATE)


def _clones(t, skew, act):
    """Something with one of two files that share all blocks and are mapped."""
    def once(failing):
        with File(t) as f, File(t, "hole", "clone") as g:
            posix.clone(f.fd, g.fd)
            g.content = bytearray(f.content)
            with Map(f.fd, SIZE, skew=skew) as m, Map(g.fd, SIZE, skew=skew) as n:
                m.touch(0, PMD)
                n.touch(0, PMD)
                act(failing, f, g, m)
                holds()
                f.is_right("the file", m)
                g.is_right("the clone", n)
    sweep(t, once)


def _store_to_clone(failing, f, _, m):
    failing.touch(m, PAGE, SIZE - PAGE, PMD, 0x55)
    for at in range(PAGE, SIZE, PMD):
        f.put(at, b"\x55")


@case(fs=("xfs",), timeout=600)
def copies_on_write_of_pages(t):
    _clones(t, PAGE, _store_to_clone)


@case(fs=("xfs",), timeout=600)
def copies_on_write_of_2_mib(t):
    _clones(t, 0, _store_to_clone)


@case(fs=("xfs",), timeout=600)
def write_to_a_clone(t):
    data = ctypes.create_string_buffer(pages("w", 3))

    def act(failing, f, _, __):
        done = failing.call(PWRITE, f.fd, ctypes.addressof(data), 3 * PAGE, 100)
        if ended(done):
            f.put(100, pages("w", 3)[:done])
        f.is_one_of(f.content)
    _clones(t, 0, act)


@case(fs=("xfs",), timeout=600)
def unshare(t):
    def act(failing, f, _, __):
        ended(failing.call(FALLOCATE, f.fd, posix.UNSHARE_RANGE, 0, SIZE))
    _clones(t, 0, act)


@case(fs=("xfs",), timeout=600)
def clone(t):
    """Of a mapped and dirty file, over one that is mapped."""
    def once(failing):
        with File(t) as f, File(t, "written", "clone") as g:
            g.put(0, page("g"))
            os.pwrite(g.fd, page("g"), 0)
            with Map(f.fd, SIZE) as m, Map(g.fd, SIZE) as n:
                m.write(5 * PAGE, page("m", 5))
                f.put(5 * PAGE, page("m", 5))
                n.touch(write=True)
                if ended(failing.call(IOCTL, g.fd, posix.FICLONE, f.fd)):
                    g.content = bytearray(f.content)
                else:
                    g.is_one_of(g.content, f.content)
                holds()
                f.is_right("the file", m)
                g.is_right("the clone", n)
                m.write(7 * PAGE, page("m", 7))
                f.put(7 * PAGE, page("m", 7))
                f.is_right("the file, stored to", m)
                g.is_right("the clone, when the file was stored to", n)
    sweep(t, once)


