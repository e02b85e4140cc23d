# SPDX-License-Identifier: GPL-2.0
"""Whether those whose calls are to be redirected make these calls in the kernel that runs."""

import os

from lib.calls import Calls
from lib.check import Skip, check, equal
from lib.device import run
from lib.runner import case

from .common import DEVICE, Item, enabled, need

CALLERS = os.path.join(os.path.dirname(__file__), "callers")
# Where callers are that need not be loaded yet.
MODULES = ["xfs", "ext4", "erofs", "nd_pmem", "dm_mod"]


def _pairs():
    with open(CALLERS, encoding="ascii") as f:
        for line in f:
            callee, *callers = line.split() or ["#"]
            if callee != "#":
                yield callee, callers


@case(fs=())
def those_who_must_be_redirected_call(t):
    """A function whose body the compiler has put in the place of a call is not redirected there."""
    for module in MODULES:
        run("modprobe", module, ok=(0, 1))
    kernel = Calls()
    if kernel.code.file is None:
        raise Skip("the kernel does not show its code, and its vmlinux is not here")
    missing = []
    for callee, callers in _pairs():
        for caller in callers:
            names = caller.lstrip("?!").split("|")
            there = [name for name in names if kernel.exists(name)]
            if (not there and caller[0] == "?") or any(kernel.calls(name, callee) for name in there):
                continue
            text = f"{' or '.join(there or names)} does not call {callee}" if there \
                else f"there is no {' or '.join(names)}, to call {callee}"
            if caller[0] == "!":
                t.note(f"{text}, which is known")
            else:
                missing.append(text)
    equal(missing, [], "calls that are not redirected")


@case(fs=())
def all_that_is_redirected_is_listed(t):
    """The list of callers knows all functions that are redirected."""
    del t
    need(DEVICE)
    listed = {callee for callee, _ in _pairs()}
    with Item(DEVICE, adopt=True):
        # Also those that are only watched, which are marked otherwise.
        found = {line.split()[0] for line in enabled() if "rdax" in line}
    check({"dax_iomap_fault", "evict", "dax_unlock_folio"} <= found, f"functions redirected: {sorted(found)}")
    equal(sorted(found - listed), [], "redirected functions whose callers are not listed")
