# SPDX-License-Identifier: GPL-2.0
"""The C parts, compiled once per boot in the guest, or before in the same root (tests/guest/run --compile)."""

import ctypes
import os
import shutil
import subprocess

from lib.check import Skip, check
from lib.device import wait_for

HERE = os.path.dirname(os.path.abspath(__file__))
BUILD = "/tmp/rdax-tests"
# Where those are that were compiled before.
MADE = "/share/native"
# Where scripts/guest puts the source of the kernel that runs; where it is for --compile.
KERNEL = "/kernel" if os.path.isdir("/kernel/tools") else "/usr/src/linux"
SELFTESTS = f"{KERNEL}/tools/testing/selftests/mm"
# The kernel's headers as they are before they are installed.
_SELFTEST = ["-w", "-D_GNU_SOURCE=", "-D__packed=__attribute__((packed))", "-D__EXPORTED_HEADERS__",
             f"-I{BUILD}", f"-I{KERNEL}", "-I..", f"-I{KERNEL}/tools/include/uapi",
             "-isystem", f"{KERNEL}/include/uapi", "vm_util.c", "hugepage_settings.c"]

# Options and sources for the compiler, and where the sources are if not here.
PARTS = {
    "probe.so": ["-shared", "-fPIC", "probe.c"],
    "stress": ["stress.c", "stress-own.c", "stress-shared.c", "worker.c", "random.c"],
    "attack": ["attack.c", "attack-process.c", "attack-memory.c", "attack-io.c", "attack-kernel.c",
               "attack-victim.c", "random.c", "-luring"],
    "sweep.so": ["-shared", "-fPIC", "sweep.c"],
    "gib.so": ["-shared", "-fPIC", "gib.c"],
    "gib-stress": ["gib-stress.c", "worker.c", "random.c"],
    "uring.so": ["-shared", "-fPIC", "uring.c", "-luring"],
    "gup_test": [*_SELFTEST, "gup_test.c"],
    "gup_longterm": [*_SELFTEST, "gup_longterm.c", "-luring"],
    "guard-regions": [*_SELFTEST, "guard-regions.c"],
    "soft-dirty": [*_SELFTEST, "soft-dirty.c"],
    "pagemap_ioctl": [*_SELFTEST, "pagemap_ioctl.c"],
    "cow": [*_SELFTEST, "cow.c", "-luring"],
}
_OURS = ("probe.so", "stress", "attack", "sweep.so", "gib.so", "gib-stress", "uring.so")
PLACES = {name: SELFTESTS for name in PARTS if name not in _OURS}

_running = {}


def _prepare():
    os.makedirs(BUILD, exist_ok=True)
    # What the kernel's selftests would have found out of the system's libraries.
    with open(os.path.join(BUILD, "local_config.h_gen"), "w", encoding="ascii") as config:
        config.write("#define LOCAL_CONFIG_HAVE_LIBURING 1\n")


def selftest(name):
    """The path of one of the kernel's selftests, compiled."""
    if not os.path.exists(os.path.join(MADE, name)) and not os.path.exists(f"{SELFTESTS}/{name}.c"):
        raise Skip(f"there is no {SELFTESTS}/{name}.c")
    return path(name)


def start(*names):
    """Begin to compile, so that it is done by the time the result is wanted."""
    _prepare()
    for name in names:
        path = os.path.join(BUILD, name)
        if name in _running or os.path.exists(path):
            continue
        if os.path.exists(made := os.path.join(MADE, name)):
            shutil.copy(made, path)
            continue
        _running[name] = _compile(name, path + ".new")


def _compile(name, output):
    command = ["gcc", "-O1", "-Wall", "-pthread", "-o", output, *PARTS[name]]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=PLACES.get(name, HERE))


def compile_all(directory):
    """Everything, the kernel's selftests only where its source is; whether ours compiles.

    A selftest that does not is compiled again for the case that wants it, which fails."""
    _prepare()
    running = {name: _compile(name, os.path.join(directory, name)) for name in PARTS
               if name in _OURS or os.path.isdir(SELFTESTS)}
    said = {name: compiler.communicate()[1] for name, compiler in running.items()}
    ours = "".join(said[name] for name in _OURS)
    print(ours, end="")
    return not ours and not any(running[name].returncode for name in _OURS)


def path(name):
    start(name)
    built = os.path.join(BUILD, name)
    if name in _running:
        compiler = _running.pop(name)
        errors = compiler.communicate()[1]
        if compiler.returncode:
            raise RuntimeError(f"{name} does not compile:\n{errors}")
        os.rename(built + ".new", built)
    return built


class Fault(ctypes.Structure):
    """How an access ended; see probe.c."""

    _fields_ = [("signal", ctypes.c_int32), ("code", ctypes.c_int32),
                ("address", ctypes.c_uint64), ("lsb", ctypes.c_int32),
                ("error", ctypes.c_int32)]

    def __str__(self):
        if not self.signal:
            return "no signal" if not self.error else f"errno {self.error}"
        return f"signal {self.signal} code {self.code} address {self.address:#x} lsb {self.lsb}"


_probe = None


def probe():
    global _probe
    if _probe is None:
        lib = ctypes.CDLL(path("probe.so"))
        fault, void, size = ctypes.POINTER(Fault), ctypes.c_void_p, ctypes.c_size_t
        lib.probe_load.argtypes = [void, ctypes.POINTER(ctypes.c_uint8), fault]
        lib.probe_store.argtypes = [void, ctypes.c_uint8, fault]
        lib.probe_madvise.argtypes = [void, size, ctypes.c_int, fault]
        lib.probe_await.argtypes = [ctypes.c_int, fault]
        lib.touch.argtypes = [void, size, size, ctypes.c_int]
        lib.touch.restype = None
        lib.guard_race.argtypes = [void, size, size, size, size, ctypes.c_int,
                                   ctypes.POINTER(ctypes.c_long)]
        lib.table_race.argtypes = [ctypes.c_int, size, ctypes.c_int]
        lib.table_race.restype = ctypes.c_long
        lib.writer_start.argtypes = [void, void, size]
        lib.writer_stop.argtypes = [void]
        lib.writer_size.restype = size
        lib.writer_stores.argtypes = [void]
        lib.writer_stores.restype = ctypes.c_uint64
        lib.writer_last.argtypes = [void, size]
        lib.writer_last.restype = ctypes.c_uint64
        lib.private_race.argtypes = [ctypes.c_int, size, ctypes.c_char_p, ctypes.c_int]
        lib.private_race.restype = ctypes.c_long
        _probe = lib
    return _probe


class Writer:
    """A thread that stores a counter into some pages in turn, until it is stopped; see probe.c."""

    def __init__(self, address, pages=8):
        self.pages, self.lib = pages, probe()
        self.state = bytes(self.lib.writer_size())
        check(self.lib.writer_start(self.state, address, pages) == 0, "no thread")

    def stores(self):
        return self.lib.writer_stores(self.state)

    def last(self):
        """When each page was stored to last, by the clock of the kernel's tracing."""
        return [self.lib.writer_last(self.state, i) / 1e9 for i in range(self.pages)]

    def await_stores(self):
        """Wait until it has stored to each page once more.

        What it had stored to before its flushes were forgotten may have been flushed before that.
        """
        seen = self.stores()
        wait_for(lambda: self.stores() >= seen + 2 * self.pages, "store to each page")

    def stop(self):
        """How many stores there were."""
        self.lib.writer_stop(self.state)
        return self.stores()
