# SPDX-License-Identifier: GPL-2.0
"""Whether what is known is said: of small programs, of files that were changed by hand, and of what is torn."""

import ctypes
import errno
import os
import random

from filesystems import (BLOCK, FILESYSTEMS, JOURNAL_SUPERBLOCK, MOUNT, SUPERBLOCK, SUPERBLOCK_SIZE, Blocks,
                         XfsLog, make, unmount)
from lib import posix
from lib.mapping import Map
from model import CUT, LOAD, PEEK, Failed, tell
from workloads import Files


def images(model, devices, start, length, cuts):
    """Where images of cuts differ from what the model says of single words."""
    wrong, words = [], range(0, length, 8)
    for cut in sorted({0, *random.Random(1).sample(range(cuts), min(cuts, 4)), cuts - 1}):
        model.ask(LOAD, cut, devices[1].number)
        with open(devices[1].node, "rb") as image:
            image.seek(start - devices[0].start)
            whole = image.read(length)
        # Those of which it can be told whether they are this cut's, and others.
        some = [at for at in words if whole[at:at + 8] != bytes(8)][:400]
        for at in some + random.Random(cut).sample(words, 100):
            told = model.ask(PEEK, cut, start + at) & (1 << 64) - 1
            found = int.from_bytes(whole[at:at + 8], "little")
            if found != told:
                wrong.append(f"the image of cut {cut} has {found:#x} at {at:#x}, and is said to have {told:#x}")
    return wrong[:10]


def known(model, devices):
    """Programs of which everybody knows what is left of them."""
    make("ext4", devices[0])
    devices[0].mount("ext4")
    length = 2 << 20
    fd = os.open(f"{MOUNT}/known", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, bytes(length), 0)
    text = ctypes.create_string_buffer(8000)
    with Map(fd, length, flags=posix.MAP_SHARED_VALIDATE | posix.MAP_SYNC) as m:
        for what in ("ADR", "two", "eADR", "two, eADR", "unseen"):
            m.write(0, bytes(length))
            os.fsync(fd)
            pfns = m.pfns()
            if pfns != list(range(pfns[0], pfns[0] + len(pfns))):
                raise Failed("the file for the known answers is not contiguous")
            address = pfns[0] * posix.PAGE
            for at in range(0, length, posix.PAGE):
                ctypes.memset(m.address + at, 0, 8)
            eadr = "eADR" in what
            model.record(1, 0, eadr)
            expected, skipped = 0, None
            if what == "unseen":
                expected = model.lib.known_answers_unseen(m.address, length, address, text, len(text))
            elif what.startswith("two"):
                if model.lib.known_answers_of_two(m.address, length, address, fd, 0, eadr, text, len(text)) < 0:
                    skipped = "one processor"
            else:
                model.lib.known_answers(m.address, length, address, fd, 0, eadr, text, len(text))
            wrong = text.value.decode().splitlines()
            cuts = model.ask(CUT, 0) + 1
            unseen = model.stop()
            if unseen != expected:
                wrong.append(f"{unseen} lines changed unseen, in place of {expected}")
            if what == "ADR":
                wrong += images(model, devices, address, length, cuts)
            tell(type="known", what=what, wrong=wrong, skipped=skipped)
    os.close(fd)
    posix.umount(MOUNT)


def noticed(model, devices):
    """Whether what must not be there after a cut is found: put there by hand."""
    make("ext4", devices[0])
    devices[0].mount("ext4")
    files = Files(model, "map")
    files.prepare(MOUNT)
    files.run(MOUNT, 1, 1 << 40, 400)
    files.begin()
    files.advance(800)
    wrong = [f"nothing was lost, and found is: {line}" for by_read in (False, True)
             for line in files.check(MOUNT, None, by_read)[0]]
    text = ctypes.create_string_buffer(8000)
    if model.lib.oracle_answers(text, len(text)) or text.value:
        wrong += ["of files that shared blocks:", *text.value.decode().splitlines()]
    files.begin()
    files.advance(800)
    promised, older, others = (ctypes.c_uint64() for _ in range(3))
    at = model.lib.oracle_example(0, promised, older, others)
    if at < 0:
        raise Failed("nothing was promised")
    earlier = promised.value ^ 1 << 20
    with open(f"{MOUNT}/file0", "r+b", buffering=0) as file:
        for value, what in ((0, "zero"), (older.value, "older"), (others.value, "another file's"),
                            (earlier, "of an earlier recording")):
            os.pwrite(file.fileno(), value.to_bytes(8, "little"), at)
            for by_read in (False, True):
                found, _ = files.check(MOUNT, None, by_read)
                if len(found) != 1 or what not in found[0]:
                    wrong.append(f"{what} in place of what was promised: {found}")
        os.pwrite(file.fileno(), promised.value.to_bytes(8, "little"), at)
        size = os.fstat(file.fileno()).st_size
        os.truncate(file.fileno(), size - 8)
        if not files.check(MOUNT, None, False)[0]:
            wrong.append("a size that was promised is not missed")
    unmount()
    tell(type="noticed", wrong=wrong)


COMMIT = bytes.fromhex("c03b399800000002")
# The begin of the directory lost+found: itself, and the directory above it.
LOST_AND_FOUND = bytes.fromhex("0b0000000c0001022e000000") + bytes.fromhex("02000000")


def refused(model, devices):
    """Whether a torn record of ext4's journal is told from damage, both put there by hand."""
    recorded, on = devices[:2]
    make("ext4", recorded)
    model.record(1, 0, False)
    recorded.mount("ext4")
    files = Files(model, "map")
    files.prepare(MOUNT)
    cut = model.ask(CUT, 0)
    model.stop()
    posix.umount(MOUNT)
    wrong = []

    def torn(blocks):
        # Of the records of this journal the last one.
        at = max(blocks.places(COMMIT), key=lambda at: int.from_bytes(blocks.all[at + 8:at + 12], "big"))
        blocks.put(at + 12, b"\xff" * 48)

    def descriptor(blocks):
        at = posix.PAGE + 0x1e
        blocks.put(at, bytes(byte ^ 0xff for byte in blocks.all[at:at + 2]))

    def directory(blocks):
        at, = blocks.places(LOST_AND_FOUND)
        blocks.put(at + len(LOST_AND_FOUND) - 4, bytes(4))

    def superblock(blocks):
        # The blocks that are free.
        at = SUPERBLOCK + 0xc
        blocks.put(at, bytes(byte ^ 1 for byte in blocks.all[at:at + 1]))

    def journal(blocks):
        # A byte that means nothing.
        at, = blocks.places(JOURNAL_SUPERBLOCK)
        blocks.put(at + 0x60, bytes(byte ^ 1 for byte in blocks.all[at + 0x60:at + 0x61]))

    for name, changes, lines, expected in (
            ("nothing", (), (), "mounted"), ("a torn record", (torn,), (), "torn"),
            ("a wrong checksum in a group descriptor", (descriptor,), (), "damaged"),
            ("a torn record, and a damaged directory", (torn, directory), (), "damaged"),
            ("a torn superblock", (superblock,), (SUPERBLOCK,), "torn"),
            ("a damaged superblock", (superblock,), (SUPERBLOCK + SUPERBLOCK_SIZE,), "damaged"),
            ("a torn superblock of the journal", (journal,), range(0, FILESYSTEMS["ext4"][0], 64), "torn"),
            ("a damaged superblock of the journal", (journal,), (SUPERBLOCK,), "damaged")):
        model.ask(LOAD, cut, on.number)
        blocks = Blocks(on, FILESYSTEMS["ext4"][0])
        for change in changes:
            change(blocks)
        try:
            found = "torn" if on.mount_image("ext4", lambda lines=lines: lines) else "mounted"
            posix.umount(MOUNT)
        except OSError as error:
            found = "damaged" if error.errno == errno.EUCLEAN else str(error)
        if found != expected:
            wrong.append(f"{name}: is {found}, not {expected}")
    tell(type="refused", wrong=wrong)


def left_out(model, devices):
    """Whether what XFS has torn is told from damage and from what is whole, put there by hand, and mended.

    That is a record of its log, or its superblock.
    """
    recorded, on = devices[:2]
    make("xfs", recorded)
    recorded.mount("xfs")
    files = Files(model, "map")
    files.prepare(MOUNT)
    posix.umount(MOUNT)
    model.record(1, 0, False)
    recorded.mount("xfs")
    files.run(MOUNT, 1, 1 << 40, 30)
    cut = model.ask(CUT, 0)
    model.stop()
    unmount()
    wrong = []
    # Of each block of the record so much. XFS itself finds where the last one ends.
    for name, parts, torn in (("its first eight bytes", (8,), True),
                              ("its first sector but for two blocks", 3 * (512,) + (0, 512, 0, 512, 512), True),
                              ("its first sector", 8 * (512,), False),
                              ("its first sector, and a part of the next", 9 * (512,), False),
                              ("all of its first sector but the first block", (0,) + 7 * (512,), False)):
        model.ask(LOAD, cut, on.number)
        log = XfsLog(on.node)
        head, old = log.head()
        if head % log.sector or log.torn():
            raise Failed(f"the log ends at {head}, within a sector")
        last = max(at for at in range(head) if log.begins_record(at))
        record = bytearray(log.all[last * BLOCK:(last + len(parts)) * BLOCK])
        with open(on.node, "r+b", buffering=0) as whole:
            for number, there in enumerate(parts):
                at = number * BLOCK
                if number:
                    record[at:at + 4] = (old + 1).to_bytes(4, "big")
                os.pwrite(whole.fileno(), record[at:at + there], log.start + head * BLOCK + at)
            os.fsync(whole.fileno())
        if on.mend_log() != torn:
            wrong.append(f"{name} of a record: is {'not ' * torn}torn")
        if not torn:
            continue
        if XfsLog(on.node).head() != (head, old):
            wrong.append(f"{name} of a record: the log does not end where it did")
        on.mount("xfs")
        files.begin()
        files.advance(60)
        wrong += [f"{name} of a record: {line}" for line in files.check(MOUNT, None, True)[0]]
        posix.umount(MOUNT)
    # The blocks that are free, which are counted again when the log is recovered.
    free = 144 + 7
    for name, lines, expected in (("a torn superblock", (64,), "torn"),
                                  ("a damaged superblock", (posix.PAGE,), "damaged")):
        model.ask(LOAD, cut, on.number)
        with open(on.node, "rb") as whole:
            byte = whole.read(posix.PAGE)[free] ^ 1
        Blocks(on, 0).put(free, bytes((byte,)))
        try:
            found = "torn" if on.mount_image("xfs", lambda lines=lines: lines) else "mounted"
            files.begin()
            files.advance(60)
            wrong += [f"{name}: {line}" for line in files.check(MOUNT, None, True)[0]]
            posix.umount(MOUNT)
        except OSError as error:
            found = "damaged" if error.errno == errno.EUCLEAN else str(error)
        if found != expected:
            wrong.append(f"{name}: is {found}, not {expected}")
    tell(type="left out", wrong=wrong)
