# SPDX-License-Identifier: GPL-2.0
"""Filesystems after a cut: what they are made like, what a cut may tear of them, and how that is mended."""

import errno
import os
import re
import time

from lib import device, kmsg, posix

MOUNT = "/mnt/powercut"
# What ext4 says when the last record of its journal is torn, and what it says besides.
TORN = re.compile(r"JBD2: journal transaction \d+ on \S+ is corrupt\.")
TORN_SUPERBLOCK = re.compile(r"EXT4-fs \(\w+\): VFS: Found ext4 filesystem with invalid superblock checksum\.  "
                             r"Run e2fsck\?")
TORN_JOURNAL = re.compile(r"JBD2: journal checksum error|EXT4-fs \(\w+\): Could not load journal inode")
# Where ext4 has its superblock, how large that and the journal's are, and where in them the checksum is.
SUPERBLOCK, SUPERBLOCK_SIZE, CHECKSUM, JOURNAL_CHECKSUM = 1024, 1024, 1020, 252
JOURNAL_SUPERBLOCK = bytes.fromhex("c03b399800000004")
# Where the superblock of XFS has the size of a sector, which it fills, and its checksum.
XFS_SECTOR_SIZE, XFS_CHECKSUM = 102, 224
# The log of XFS: how far back its head is looked for, and how its records begin; in blocks of 512 bytes.
BLOCK, LOG_SCAN, LOG_RECORD = 512, 4096, bytes.fromhex("feedbabe")
BESIDE_TORN = re.compile(r"EXT4-fs \(\w+\): (?:DAX enabled\..*|error loading journal)")
# What e2fsck does then: it recovers the journal up to there, and counts what ext4 only counts when it is
# unmounted.
REPAIRS = re.compile(r"""e2fsck\ .*|
/dev/pmem\d+:\ (?:recovering\ journal|\*\*\*\*\*\ FILE\ SYSTEM\ WAS\ MODIFIED\ \*\*\*\*\*|
    \d+/\d+\ files\ .*\ blocks)|
Journal\ transaction\ \d+\ was\ corrupt,\ replay\ was\ aborted\.|Pass\ \d:\ .*|
Free\ (?:blocks|inodes)\ count\ wrong\ \(\d+,\ counted=\d+\)\.|Fix\?\ yes|
Feature\ orphan_present\ is\ set\ but\ orphan\ file\ is\ clean\.|Clear\?\ yes""", re.VERBOSE)

FILESYSTEMS = {
    "xfs": (80 << 20, ["mkfs.xfs", "-q", "-f", "-K", "-d", "size=80m,su=2m,sw=1,agcount=2",
                       "-l", "size=13m", "-m", "reflink=1,rmapbt=1"], "dax=always"),
    "ext4": (64 << 20, ["mkfs.ext4", "-q", "-F", "-b", "4096", "-N", "512", "-J", "size=4", "-E",
                        "stride=512,stripe_width=512,nodiscard,lazy_itable_init=0"],
             "dax=always"),
}
# Such that a file of 1 GiB lies as its mapping does.
GIANT = {
    "xfs": (4 << 30, ["mkfs.xfs", "-q", "-f", "-K", "-d", "size=4g,agcount=2,su=1g,sw=1", "-l",
                      "size=64m", "-m", "reflink=1,rmapbt=1"], "dax=always"),
}
# With these mkfs.xfs makes filesystems of less than 300 MiB, as those who test XFS do.
SMALL = {"TEST_DIR": "1", "TEST_DEV": "1", "QA_CHECK_FS": "1"}


def crc32c(data):
    """As ext4 has it: begun with all ones, and not inverted in the end."""
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    return crc


class FilesystemLog(kmsg.KernelLog):
    # As if the filesystem had said it.
    LOST = "(EXT4-fs, JBD2: messages were lost)"


class Device:
    def __init__(self, number, adopt):
        self.name = f"pmem{number}"
        self.node = f"/dev/{self.name}"
        self.number = number
        self.start = device.data_start(self.name)
        self.log = FilesystemLog()
        self.adopt = adopt
        if device.module_loaded():
            if not os.path.isdir(f"{device.CONFIG}/{self.name}"):
                os.mkdir(f"{device.CONFIG}/{self.name}")
            device.set_switch(self.name, "adopt", int(adopt))

    def mount(self, filesystem):
        posix.mount(self.node, MOUNT, filesystem, FILESYSTEMS[filesystem][2])

    def mount_image(self, filesystem, lines):
        """Mount what a cut has left; whether it was repaired before. The lines at `lines()` were not durable.

        ext4 takes a record of its journal or a superblock that the cut has torn for damage, and XFS its
        superblock or a record of its log (docs/powercut.md). What was promised must be there when it is
        repaired. Whatever else keeps them from mounting it is damage.
        """
        self.log.skip()
        try:
            self.mount(filesystem)
            return False
        except OSError as error:
            if filesystem == "xfs" and error.errno == errno.EUCLEAN:
                mended = self.mend_xfs_superblock(lines())
                if self.mend_log() or mended:
                    self.mount(filesystem)
                    return True
            if filesystem != "ext4" or error.errno not in (errno.EUCLEAN, errno.EBADMSG):
                raise
            superblock = error.errno == errno.EBADMSG
        if superblock:
            self.mend_superblock(lines())
            return True
        said = [line for line in self.log.read() if re.search("EXT4-fs|JBD2", line)]
        others = [line for line in said if not TORN.fullmatch(line) and not BESIDE_TORN.fullmatch(line)]
        if others or not any(map(TORN.fullmatch, said)):
            raise OSError(errno.EUCLEAN, f"damaged, and not only a torn record: {said}")
        repaired = device.run("e2fsck", "-f", "-y", self.node, ok=(0, 1)).splitlines()
        others = [line for line in repaired if line.strip() and not REPAIRS.fullmatch(line.strip())]
        if others:
            raise OSError(errno.EUCLEAN, f"a torn record, and other damage: {others[:20]}")
        self.mount(filesystem)
        return True

    def mend_log(self):
        """Take out the record of XFS's log of whose first sector the cut has left a part; whether there is one.

        A disk writes a sector or does not. XFS relies on that, and leaves out the record before such a one.
        """
        log = XfsLog(self.node)
        torn = log.torn()
        for at, cycle in torn.items():
            log.put(at, cycle)
        return bool(torn)

    def mend_xfs_superblock(self, lines):
        """Give the superblock of XFS, which was under way, its checksum; whether it had a wrong one.

        XFS writes it in place, as one sector, and reads it before its log, which has it as well.
        """
        with open(self.node, "rb") as whole:
            sector = bytearray(whole.read(posix.PAGE))
        del sector[int.from_bytes(sector[XFS_SECTOR_SIZE:XFS_SECTOR_SIZE + 2], "big"):]
        there = slice(XFS_CHECKSUM, XFS_CHECKSUM + 4)
        found, sector[there] = bytes(sector[there]), bytes(4)
        checksum = (crc32c(sector) ^ 0xffffffff).to_bytes(4, "little")
        if found == checksum or not any(line < len(sector) for line in lines):
            return False
        Blocks(self, 0).put(XFS_CHECKSUM, checksum)
        return True

    def mend_superblock(self, lines):
        """Mount when the superblock, or the journal's, which was under way, has its checksum again."""
        said = [line for line in self.log.read() if re.search("EXT4-fs|JBD2", line)]
        blocks = Blocks(self, FILESYSTEMS["ext4"][0])
        journal = said and all(map(TORN_JOURNAL.fullmatch, said))
        at, = blocks.places(JOURNAL_SUPERBLOCK) if journal else (SUPERBLOCK,)
        torn = any(at <= line < at + SUPERBLOCK_SIZE for line in lines)
        if not torn or not (journal or (said and all(map(TORN_SUPERBLOCK.fullmatch, said)))):
            raise OSError(errno.EUCLEAN, f"damaged, and not only a torn superblock: {said}")
        block = blocks.all[at:at + SUPERBLOCK_SIZE]
        if journal:
            block[JOURNAL_CHECKSUM:JOURNAL_CHECKSUM + 4] = bytes(4)
            blocks.put(at + JOURNAL_CHECKSUM, crc32c(block).to_bytes(4, "big"))
        else:
            blocks.put(at + CHECKSUM, crc32c(block[:CHECKSUM]).to_bytes(4, "little"))
        self.mount("ext4")


def unmount():
    """Unmount what a workload has used."""
    # Ends: who serves a request of io_uring has its file for a moment yet when it has answered.
    while True:
        try:
            posix.umount(MOUNT)
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
        time.sleep(0.001)


class XfsLog:
    """The log of a filesystem that is not mounted, in blocks."""

    def __init__(self, node):
        self.node = node
        with open(node, "rb") as whole:
            sb = whole.read(BLOCK)
            start, size, ag_size = (int.from_bytes(sb[at:at + length], "big")
                                    for at, length in ((48, 8), (96, 4), (84, 4)))
            filesystem_block = int.from_bytes(sb[4:8], "big")
            group, block = start >> sb[124], start & (1 << sb[124]) - 1
            self.start = (group * ag_size + block) * filesystem_block
            self.sector = max(int.from_bytes(sb[194:196], "big"), BLOCK) // BLOCK
            whole.seek(self.start)
            self.all = whole.read(size * filesystem_block)
        self.size = len(self.all) // BLOCK

    def begins_record(self, at):
        return self.all.startswith(LOG_RECORD, at * BLOCK)

    def cycle(self, at):
        """How often the log had been filled when a block was written."""
        first = at * BLOCK + (4 if self.begins_record(at) else 0)
        return int.from_bytes(self.all[first:first + 4], "big")

    def head(self):
        """(where XFS takes the log to end, the cycle of what is there): at the first block that is not of the
        last cycle, as far back as blocks may be missing of what was under way."""
        first, last = self.cycle(0), self.cycle(self.size - 1)
        end, old = self.size, first - 1
        if first != last:
            before, end, old = 0, self.size - 1, last
            # Ends: what is between them gets smaller.
            while end - before > 1:
                middle = (before + end) // 2
                before, end = (before, middle) if self.cycle(middle) == old else (middle, end)
        scan = min(LOG_SCAN, self.size)
        for at in range(self.size - (scan - end), self.size) if end < scan else ():
            if self.cycle(at) == old - 1:
                return at, old - 1
        return next((at for at in range(max(end - scan, 0), end) if self.cycle(at) == old), end), old

    def torn(self):
        """{block: the cycle it was of} for what is there of a record's first sector, if some is missing."""
        head, old = self.head()
        first = head - head % self.sector
        if head == first or not self.begins_record(first):
            return {}
        return {at: old for at in range(first, first + self.sector) if self.cycle(at) != old}

    def put(self, at, cycle):
        """Make a block one of that cycle."""
        with open(self.node, "r+b", buffering=0) as whole:
            os.pwrite(whole.fileno(), cycle.to_bytes(4, "big"), self.start + at * BLOCK)
            os.fsync(whole.fileno())


def make(filesystem, on):
    size, command, _ = FILESYSTEMS[filesystem]
    device.run(*command, on.node, *([f"{size >> 20}M"] if filesystem == "ext4" else []))


class Blocks:
    """The blocks of a device that is not mounted."""

    def __init__(self, on, size):
        self.on = on
        with open(on.node, "rb") as whole:
            self.all = bytearray(whole.read(size))

    def places(self, of):
        return [at for at in range(0, len(self.all), posix.PAGE) if self.all.startswith(of, at)]

    def put(self, at, data):
        with open(self.on.node, "r+b", buffering=0) as whole:
            os.pwrite(whole.fileno(), data, at)
            os.fsync(whole.fileno())
