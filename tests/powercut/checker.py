#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Run filesystems' own checkers on copies of devices. Called by tests/powercut/run, on the host.

Each line of the input is the number of a copy and its filesystem. A copy that is good is removed;
one that is damaged is renamed, and what the checker said is a line of JSON.
"""

import json
import os
import subprocess
import sys

CHECKERS = {"xfs": ["xfs_repair", "-n", "-P", "-f"], "ext4": ["e2fsck", "-f", "-n"]}


def main():
    os.chdir(sys.argv[1])
    for line in sys.stdin:
        number, filesystem = line.split()
        copy = f"copy-{number}"
        done = subprocess.run([*CHECKERS[filesystem], copy], stdout=subprocess.PIPE, text=True,
                              stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False)
        if done.returncode:
            print(json.dumps({"copy": int(number), "damage":
                              f"{CHECKERS[filesystem][0]}: {done.stdout[-1500:]}"}), flush=True)
            os.rename(copy, f"damaged-{number}")
        else:
            os.unlink(copy)


main()
