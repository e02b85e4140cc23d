# SPDX-License-Identifier: GPL-2.0
"""The filesystems that the cases run on."""

import os
import subprocess

from . import device, posix
from .check import Failure, Skip, check
from .mapping import Map
from .posix import PAGE

MOUNT = "/mnt/rdax-test"

XFS = ["mkfs.xfs", "-q", "-f", "-K", "-d", "su=2m,sw=1", "-l", "size=64m"]
EXT4 = ["mkfs.ext4", "-q", "-F", "-b", "4096", "-N", "4096",
        "-E", "stride=512,stripe_width=512,nodiscard,lazy_itable_init=1"]

# Such that there is room for files that are mapped by 1 GiB.
XFS_1G = ["mkfs.xfs", "-q", "-f", "-K", "-d", "agcount=2,su=1g,sw=1", "-l", "size=64m",
          "-m", "reflink=1,rmapbt=1"]
EXT4_1G = ["mkfs.ext4", "-q", "-F", "-b", "4096", "-N", "4096", "-m", "0", "-G", "4096",
           "-O", "sparse_super2,^resize_inode", "-E", "num_backup_sb=0,nodiscard,lazy_itable_init=1"]


class Variant:
    def __init__(self, name, kind, mkfs, options="dax=always", giant=False):
        self.name, self.kind, self.mkfs, self.options = name, kind, mkfs, options
        # For the group of that name, on a device of 8 GiB, and no other.
        self.giant = giant

    @property
    def reflink(self):
        return self.name in ("xfs", "xfs-1g")


VARIANTS = {v.name: v for v in [
    Variant("xfs", "xfs", XFS + ["-m", "reflink=1,rmapbt=1"]),
    Variant("xfs-noreflink", "xfs", XFS + ["-m", "reflink=0,rmapbt=0"]),
    Variant("ext4", "ext4", EXT4, "dax=always,noinit_itable"),
    Variant("xfs-1g", "xfs", XFS_1G, giant=True),
    Variant("ext4-1g", "ext4", EXT4_1G, "dax=always,noinit_itable", giant=True),
]}
ORDINARY = tuple(name for name, variant in VARIANTS.items() if not variant.giant)


class Filesystem:
    """One filesystem on one device, made when first wanted."""

    def __init__(self, variant, name="pmem0", mount=MOUNT):
        self.variant, self.device, self.mount_point = variant, name, mount
        self.made = False

    @property
    def node(self):
        return f"/dev/{self.device}"

    @property
    def mounted(self):
        with open("/proc/self/mounts", encoding="utf-8") as mounts:
            return any(line.split()[1] == self.mount_point for line in mounts)

    def make(self):
        device.run(*self.variant.mkfs, self.node)

    def mount(self):
        os.makedirs(self.mount_point, exist_ok=True)
        device.run("mount", "-t", self.variant.kind, "-o", self.variant.options, self.node,
                   self.mount_point)
        self._must_be_dax()

    def _must_be_dax(self):
        """Without DAX every case would pass and mean nothing. Only DAX files take MAP_SYNC."""
        path = os.path.join(self.mount_point, ".dax")
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        try:
            os.ftruncate(fd, PAGE)
            with Map(fd, PAGE, flags=posix.MAP_SHARED_VALIDATE | posix.MAP_SYNC):
                pass
        except OSError as error:
            raise Failure(f"{self.variant.name} on {self.node} is not DAX: {error}") from error
        finally:
            os.close(fd)
            os.unlink(path)

    def umount(self):
        posix.umount(self.mount_point)

    def remount(self):
        self.umount()
        self.mount()

    def shut_down_and_remount(self):
        """What a power cut does, as far as the filesystem's own state goes."""
        posix.shut_down(self.mount_point)
        self.remount()

    def check(self):
        """The filesystem's own checker must be content; it must not be mounted."""
        command = (["xfs_repair", "-n", self.node] if self.variant.kind == "xfs"
                   else ["e2fsck", "-f", "-n", self.node])
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              stdin=subprocess.DEVNULL, text=True, check=False)
        check(done.returncode == 0, f"{' '.join(command)} found:\n{done.stdout[-2000:]}")


def need_device(name):
    if not device.exists(name):
        raise Skip(f"there is no {name}")
