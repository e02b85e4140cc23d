# SPDX-License-Identifier: GPL-2.0
"""Bound, unbound, and bound to other drivers."""

import contextlib
import json
import os
import shutil
import subprocess

from lib import device, ioctl, posix
from lib.check import Skip, check, equal, raises
from lib.device import run, wait_for, write
from lib.ioctl import Asker
from lib.mapping import Map
from lib.posix import PAGE, PMD
from lib.runner import Log, case
from lib.task import Task

from .common import (
    BUS, ENXIO, NAME, NAMESPACE, NODE, SYSFS, bind_node, bound_driver, kernel_log, namespace,
    node_size, open_node, unbind_node,
)


def _recipe():
    """What docs/devdax.md says how a device is handed over, and how it is taken back, as scripts."""
    with open("/src/docs/devdax.md", encoding="utf-8") as text:
        lines = text.read().splitlines()
    first = lines.index("    cd /sys/bus/dax")
    parts = [[], []]
    part = parts[0]
    for line in lines[first:]:
        if line and not line.startswith("    "):
            break
        if not line:
            part = parts[1]
        part.append(line)
    return "\n".join(parts[0]), "\n".join(parts[0][:1] + parts[1])


@case(fs=())
def command_hands_devices_over(t):
    """The command rdax takes the device from the kernel's driver and gives it back, unless it is in use."""
    if not shutil.which("rdax"):
        raise Skip("the command rdax is not installed")
    if subprocess.run(["modprobe", "device_dax"], check=False).returncode:
        raise Skip("there is no module device_dax")

    def rdax(*arguments, ok=0):
        return run("rdax", *arguments, ok=(ok,))

    namespace("2M")
    bind_node("device_dax")
    fd = open_node()
    said = rdax("adopt", NAME, ok=1)
    check(f"({os.getpid()})" in said and "in use by" in said, f"rdax says: {said}")
    equal(bound_driver(), "device_dax", "driver")
    os.close(fd)
    equal(rdax("adopt", NODE), f"{NAME}: adopted\n", "what rdax says")
    equal(bound_driver(), "rdax", "driver")
    equal(rdax("adopt", NAME), f"{NAME}: adopted already\n", "what rdax says")
    (listed,) = [each for each in json.loads(rdax("list", "--json")) if each.get("chardev") == NAME]
    equal([listed[key] for key in ("dev", "mode", "align", "adopted", "driver")],
          [NAMESPACE, "devdax", PMD, True, "rdax"], "what rdax list says")
    fd = open_node()
    with Map(fd, PMD) as m:
        m.touch(step=PMD)
        os.close(fd)
        # It is mapped still.
        check("in use by" in rdax("release", NAME, ok=1), "it was released")
    check("read_pmd" in rdax("stat", NAME), "the counters have no fault")
    equal(rdax("release", NAME), f"{NAME}: released\n", "what rdax says")
    equal(bound_driver(), "device_dax", "driver")
    check("no such device" in rdax("adopt", "dax77.0", ok=1), "a device that is not there")


@case(fs=())
def unbinding_ends_mappings(t):
    namespace("2M")
    fd = open_node()
    with Map(fd, 4 * PMD) as m, Map(fd, 2 * PMD, offset=PAGE) as small:
        m.touch(write=True)
        small.touch(write=True)
        unbind_node()
        m.bus_error(0, "after unbinding")
        small.bus_error(PAGE, "after unbinding")
        raises((ENXIO,), "opening an unbound device", open_node)
        bind_node()
        m.bus_error(0, "an old mapping after binding anew")
        with open(NODE, "r+b", buffering=0) as other, Map(other.fileno(), PMD) as new:
            equal(new.store(0, 3).signal, 0, "signal with a new file")
    os.close(fd)


@case(fs=())
def unbinding_waits_for_pins(t):
    namespace("2M")
    fd = open_node()
    m = Map(fd, 4 * PMD)
    m.touch(write=True)
    ring = posix.pin_buffer(m.address, 3 * PMD)

    def unbind():
        os.close(ring)      # the child's, which would be a pin of its own
        unbind_node()

    unbinding = Task(unbind)
    wait_for(lambda: "unbinding waits for 3 folios" in kernel_log(), "message about pins")
    check(not unbinding.done(), "unbinding did not wait")
    m.bus_error(0, "while unbinding waits")
    with Asker() as asker:
        (wait,) = asker.waits()
        number = os.stat(fd).st_rdev
        equal((wait.kind, wait.pid, wait.inode, wait.order, wait.references, wait.maps),
              (ioctl.WAIT_DEVICE, unbinding.pid, 0, 9, 1, 0), "the wait, as it is told")
        equal((wait.dev_major, wait.dev_minor, wait.dev_type),
              (os.major(number), os.minor(number), ioctl.DEV_CHARACTER), "device")
        check(wait.offset < 3 * PMD and wait.offset % PMD == 0, f"byte of the device: {wait}")
    if shutil.which("rdax"):
        out = run("rdax", "who", NAME)
        for part in ("unbind", str(unbinding.pid), str(os.getpid())):
            check(part in out, f"rdax who does not say '{part}': {out}")
        check(f"rdax who {NAME}" in run("rdax", "list", NAME), "rdax list does not point to who waits")
        said = run("rdax", "doctor", NAME, ok=(0, 1))
        check(f"rdax who {NAME}" in said and "no driver has it" not in said, f"rdax doctor: {said}")
        # It would wait for the same, and could not be ended.
        for deed in ("adopt", "release"):
            said = Task(lambda what=deed: run("rdax", what, NAME, ok=(1,)), name=f"rdax {deed}").result()
            check(f"rdax who {NAME}" in said, f"rdax {deed}: {said}")
    os.close(ring)
    unbinding.result()
    check("no folio is in use any more" in kernel_log(), "no message about the end")
    m.unmap()
    os.close(fd)
    bind_node()


@case(fs=(), timeout=120)
def unbinding_under_load(t):
    namespace("2M")
    for _ in range(3):
        fd = open_node()
        ready = os.pipe()

        def load(fd=fd, ready=ready):
            with Map(fd, 16 * PMD) as m, Map(fd, 4 * PMD, offset=PAGE) as small:
                rounds = 0
                while not m.store(37 * rounds * PAGE % m.length, 1).signal:
                    if small.load(37 * rounds * PAGE % small.length)[1].signal:
                        break
                    m.advise(posix.MADV_DONTNEED)
                    rounds += 1
                    if rounds == 100:
                        os.write(ready[1], b"r")

        tasks = [Task(load) for _ in range(3)]
        for _ in tasks:
            equal(os.read(ready[0], 1), b"r", "a task that is faulting all the time")
        for end in ready:
            os.close(end)
        unbind_node()
        for task in tasks:
            task.result()
        bind_node()
        os.close(fd)


@case(fs=(), timeout=180)
def drivers_take_turns(t):
    if subprocess.run(["modprobe", "device_dax"], check=False).returncode:
        raise Skip("there is no module device_dax")
    namespace("2M")
    for turn in range(20):
        driver = ("device_dax", "rdax")[turn % 2]
        bind_node(driver)
        fd = open_node()
        with Map(fd, 2 * PMD) as m:
            if turn:
                m.load_ok(PMD, turn, "what the other driver's turn left")
            equal(m.store(PMD, turn + 1).signal, 0, f"signal of a store with {driver}")
            m.touch(write=True)
        os.close(fd)
    check(os.path.exists(f"{SYSFS}/rdax/stats"), "there are no counters")


def _new_memory_is_not_used():
    """Memory that comes from now on stays offline.

    Used, by the page cache or the kernel itself, it might not be given back for ever.
    """
    write("/sys/devices/system/memory/auto_online_blocks", "offline")


@case(fs=(), timeout=120)
def memory_and_back(t):
    """Another driver on the bus, which makes ordinary memory of the device."""
    if subprocess.run(["modprobe", "kmem"], check=False).returncode:
        raise Skip("there is no module kmem")
    namespace("2M")
    _new_memory_is_not_used()
    unbind_node()
    try:
        write(f"{BUS}/drivers/kmem/new_id", NAME)
        if bound_driver() != "kmem":
            raise Skip("the driver kmem does not take this device")
        write(f"{SYSFS}/state", "unplugged")
    except OSError as error:
        raise Skip(f"the driver kmem: {error}") from error
    finally:
        write(f"{BUS}/drivers/kmem/remove_id", NAME)
    bind_node()
    fd = open_node()
    with Map(fd, 2 * PMD) as m:
        equal(m.store(0, 1).signal, 0, "signal of a store")
    os.close(fd)


@case(fs=())
def daxctl_knows(t):
    namespace("2M")
    found = json.loads(run("daxctl", "list", "-d", NAME))
    equal(found[0]["chardev"], NAME, "daxctl's name of the device")
    equal(found[0]["size"], node_size(), "daxctl's size of the device")


def _holds(value, what):
    """The device's first byte, through whatever driver it has."""
    with open(NODE, "r+b", buffering=0) as file, Map(file.fileno(), PMD) as m:
        m.load_ok(0, value, what)


@case(fs=())
def the_recipe_works(t):
    """Handing a device over and taking it back as the documentation says, whether or not the kernel's
    driver is loaded."""
    namespace("2M")
    hand_over, take_back = _recipe()
    write(f"{BUS}/drivers/rdax/remove_id", NAME)
    for loaded in (True, False):
        unbind_node()
        run("modprobe", *(() if loaded else ("-r",)), "device_dax")
        for script, driver in ((hand_over, "rdax"), (take_back, "device_dax")):
            run("sh", "-e", "-c", script)
            equal(bound_driver(), driver, f"driver (device_dax loaded before: {loaded})")
            if driver == "rdax":
                # The next one is new again.
                write(f"{BUS}/drivers/rdax/remove_id", NAME)
    bind_node()


def _said(log):
    """What the module has said."""
    return [line for line in log.read() if line.startswith("rdax: ")]


@case(fs=())
def the_log_says_who_has_what_was_named(t):
    """The bus takes any name for new_id. The log says of a device that there is none, or who has it."""
    if subprocess.run(["modprobe", "device_dax"], check=False).returncode:
        raise Skip("there is no module device_dax")
    namespace("2M")
    bind_node("device_dax")
    ids, none = f"{BUS}/drivers/rdax", "dax77.0"
    write(f"{ids}/remove_id", NAME)
    log = Log()
    for name, says in ((none, "there is no such device"), (NAME, "not taken, device_dax has it")):
        write(f"{ids}/new_id", f"{name}\n")
        said = _said(log)
        check(len(said) == 1 and said[0].startswith(f"rdax: {name}: {says}"), f"the log says: {said}")
        write(f"{ids}/remove_id", name)
    equal(bound_driver(), "device_dax", "driver")
    with contextlib.suppress(OSError):
        write(f"{ids}/new_id", "nonsense")
    equal(_said(log), [], "what the log says of what is no name")
    # As it says.
    write(f"{ids}/new_id", NAME)
    write(f"{BUS}/drivers/device_dax/unbind", NAME)
    write(f"{ids}/bind", NAME)
    equal(bound_driver(), "rdax", "driver in the end")
    write(f"{ids}/unbind", NAME)
    log.read()
    write(f"{ids}/remove_id", NAME)
    write(f"{ids}/new_id", NAME)
    said = _said(log)
    check(len(said) == 1 and "in folios of" in said[0], f"the log says of what was taken: {said}")


@case(fs=(), quick=False)
def the_log_says_what_is_left_without_a_driver(t):
    """When the module goes."""
    namespace("2M")
    log = Log()
    with device.without_module():
        equal(bound_driver(), None, "driver when the module is gone")
        said = [line for line in _said(log) if line.startswith(f"rdax: {NAME}: ")]
        check(len(said) == 1 and "has no driver from now on" in said[0], f"the log says: {said}")
        if shutil.which("rdax"):
            (listed,) = [each for each in json.loads(run("rdax", "list", "--json"))
                         if each.get("chardev") == NAME]
            check("no driver has it" in listed.get("note", ""), f"rdax list: {listed}")
            said = run("rdax", "doctor", NAME, ok=(1,))
            check("no driver has it" in said and f"rdax adopt {NAME}" in said, f"rdax doctor: {said}")
    bind_node()


@case(fs=(), timeout=120)
def daxctl_changes_drivers(t):
    """disable-device takes it away, enable-device gives it to the kernel's driver."""
    for module in ("device_dax", "kmem"):
        if subprocess.run(["modprobe", module], check=False).returncode:
            raise Skip(f"there is no module {module}")
    namespace("2M")
    with open(NODE, "r+b", buffering=0) as file, Map(file.fileno(), PMD) as m:
        equal(m.store(0, 0x5a).signal, 0, "signal of a store")
    said = run("daxctl", "reconfigure-device", "-m", "devdax", NAME)
    check("already in devdax mode" in said, said)
    equal(bound_driver(), "rdax", "driver of what is in that mode already")
    for _ in range(3):
        run("daxctl", "disable-device", NAME)
        equal(bound_driver(), None, "driver after disable-device")
        run("daxctl", "enable-device", NAME)
        equal(bound_driver(), "device_dax", "driver after enable-device")
        _holds(0x5a, "with the kernel's driver")
        bind_node()
        _holds(0x5a, "with this driver")
    # To ordinary memory and back.
    _new_memory_is_not_used()
    run("daxctl", "reconfigure-device", "-N", "-m", "system-ram", NAME)
    equal(bound_driver(), "kmem", "driver in mode system-ram")
    write(f"{SYSFS}/state", "unplugged")
    bind_node()
    with open(NODE, "r+b", buffering=0) as file, Map(file.fileno(), PMD) as m:
        equal(m.store(0, 1).signal, 0, "signal of a store in the end")
