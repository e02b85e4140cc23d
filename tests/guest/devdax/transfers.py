# SPDX-License-Identifier: GPL-2.0
"""Transfers, pins and forks."""

import os

from lib.check import check, equal
from lib.device import run
from lib.mapping import Map
from lib.posix import PAGE, PMD
from lib.runner import case
from lib.task import Task

from .common import NODE, Stats, moves, namespace, open_node, pins_last, unbinds_at_once


@case(fs=())
def registered_buffers_move_data(t):
    namespace("2M")
    fd = open_node()
    moves(fd, 2 * PMD, 0)
    moves(fd, 2 * PMD, 3 * PAGE)
    os.close(fd)
    unbinds_at_once("a pin")


@case(fs=())
def pins_may_last(t):
    """FOLL_LONGTERM, which files refuse, in all ways and for both sizes of entry."""
    namespace("2M")
    fd = open_node()
    pins_last(fd, 4 * PMD)
    pins_last(fd, 4 * PMD, skew=PAGE)
    os.close(fd)
    unbinds_at_once("a pin")


@case(fs=(), timeout=120)
def fio_agrees(t):
    """fio writes and verifies through mappings of its own making."""
    namespace("2M")
    command = ["fio", "--name=dax", f"--filename={NODE}", "--size=32m", "--verify=crc32c",
               "--verify_fatal=1", "--verify_state_save=0", "--thread=1", "--rw=randwrite",
               "--output-format=terse", "--terse-version=3"]
    for engine, bs in (("dev-dax", "4k"), ("dev-dax", "2m")):
        stats = Stats()
        fields = run(*command, f"--ioengine={engine}", f"--bs={bs}").splitlines()[-1].split(";")
        equal(fields[4], "0", f"error of fio with {engine} and blocks of {bs}")
        equal((int(fields[5]), int(fields[46])), (32 << 10, 32 << 10), "KiB read and written")
        stats.expect(fault_errors=0)
        check(stats.moved("write_pmd") + stats.moved("read_pmd") > 0, "nothing was mapped by 2 MiB")


@case(fs=())
def forks_share(t):
    namespace("2M")
    fd, stats = open_node(), Stats()
    with Map(fd, 2 * PMD) as m:
        m.write(PMD, b"parent")

        def child():
            equal(m.read(PMD, 6), b"parent", "what the child sees")
            m.write(0, b"child!")

        Task(child).result()
        equal(m.read(0, 6), b"child!", "what the parent sees")
    stats.expect(fault_errors=0)
    os.close(fd)
