# SPDX-License-Identifier: GPL-2.0
"""What a case has left mounted, and who has a device in use."""

import errno
import glob
import os
import re
import time

from . import device, posix, task

# How long it may take until what has died gives up what it had: io_uring does so after its process's end.
PATIENCE = 20

# Where the tests mount what is not on a device of theirs.
BELOW = "/mnt/"


def devices():
    """Names of the pmem devices that are block devices now."""
    return sorted(os.path.basename(path) for path in glob.glob("/sys/block/pmem*"))


def _plain(text):
    """A path of the kernel's, without what it writes for spaces."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _mounts(pid="self"):
    """(ID, device number, mount point, the line) of each mount that the process sees, in their order."""
    with open(f"/proc/{pid}/mountinfo", encoding="utf-8") as f:
        for line in f:
            words = line.split()
            yield int(words[0]), words[2], _plain(words[4]), line.rstrip()


class Mounts:
    """Mounts of the devices, and of whatever below /mnt, since this was made."""

    def __init__(self):
        self.known = {number for number, *_ in _mounts()}

    def left(self, kept=()):
        """(mount point, line) of those that are at none of the places `kept`, the latest first."""
        numbers = {device.read(f"/sys/block/{name}/dev") for name in devices()}
        found = []
        seen = set()
        for number, dev, point, line in _mounts():
            if number in self.known or not (dev in numbers or point.startswith(BELOW)):
                continue
            # What lies on top of another is one too many, wherever it is.
            if point not in kept or point in seen:
                found.append((point, line))
            seen.add(point)
        return found[::-1]


def is_claimed(name):
    """Whether a filesystem, or whoever else wants it for himself, has the device."""
    try:
        os.close(os.open(f"/dev/{name}", os.O_RDONLY | os.O_EXCL))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def _links(pid):
    for name in (*glob.glob(f"/proc/{pid}/fd/*"), f"/proc/{pid}/cwd", f"/proc/{pid}/root", f"/proc/{pid}/exe"):
        try:
            yield name, os.readlink(name), os.stat(name)
        except OSError:
            continue


def users(name):
    """What is known of who uses a device: mounts, processes, other devices, and the module's waits."""
    number = device.read(f"/sys/block/{name}/dev", "?")
    node = f"/dev/{name}"
    found = [f"  {name} is below {holder}" for holder in os.listdir(f"/sys/block/{name}/holders")]
    namespaces = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/comm", encoding="utf-8") as f:
                who = f"process {pid} ({f.read().strip()})"
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
            if namespace not in namespaces:
                namespaces.add(namespace)
                found += [f"  {who} has it mounted: {line}" for _, dev, _, line in _mounts(pid)
                          if dev == number]
            with open(f"/proc/{pid}/maps", encoding="utf-8") as f:
                major, minor = (int(part) for part in number.split(":"))
                mapped = sum(f" {major:02x}:{minor:02x} " in line for line in f)
            if mapped:
                found.append(f"  {who} maps files of it, {mapped} times")
        except OSError:
            continue    # It is gone.
        for link, target, status in _links(pid):
            if target == node or f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}" == number:
                found.append(f"  {who} has {link.rpartition('/')[2]} -> {target}")
    stats = device.read(f"{device.CONFIG}/{name}/stats", "")
    if stats:
        found.append("  the module counts " + " ".join(line.replace(" ", "=") for line in stats.splitlines()
                                                       if not line.endswith(" 0")))
    return "\n".join(found)


def unmount(points):
    """Unmount what is left, and wait for whoever is about to go; why it is not possible, or None."""
    for point in points:
        deadline, busy = task.Deadline(PATIENCE), 0
        # Ends with the deadline at the latest.
        while True:
            try:
                posix.umount(point)
                break
            except OSError as error:
                if error.errno != errno.EBUSY or deadline.over():
                    return f"{point}: {error}"
            busy += 1
            time.sleep(0.05)
        if busy:
            print(f"# {point} was busy, {busy} times", flush=True)
    return None


def claimed(names):
    """Those of the devices that somebody has, and does not give up."""
    deadline = task.Deadline(PATIENCE)
    # Ends with the deadline at the latest.
    while True:
        found = [name for name in names if device.exists(name) and is_claimed(name)]
        if not found or deadline.over():
            return found
        time.sleep(0.05)
