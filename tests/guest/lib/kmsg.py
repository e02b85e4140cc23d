# SPDX-License-Identifier: GPL-2.0
"""What the kernel says."""

import os


class KernelLog:
    """The lines since it was opened, or read or skipped last."""

    # In place of what the kernel had no room for.
    LOST = "(messages were lost)"

    def __init__(self):
        self.fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        self.skip()

    def skip(self):
        os.lseek(self.fd, 0, os.SEEK_END)

    def read(self):
        lines = []
        # It ends with what was said before this call, but for what is said meanwhile.
        while True:
            try:
                record = os.read(self.fd, 8192).decode("utf-8", "replace")
            except BlockingIOError:
                return lines
            except BrokenPipeError:
                lines.append(self.LOST)
                continue
            lines.append(record.partition(";")[2].split("\n", 1)[0])
