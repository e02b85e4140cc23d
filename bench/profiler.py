# SPDX-License-Identifier: GPL-2.0
"""Where the instructions of a row go: what icount.c counted, by function."""

import bisect
import json
import re
import subprocess
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

from result import NAMES

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"

# Functions below that many instructions an operation, in both, are one line.
FEW = 3
# The clock is read a little inside of the marks; more than that says that something is wrong.
AGREE = 0.02

# Functions of the core that take a lock.
LOCKS = re.compile(r"_raw_(spin|read|write)_(try)?lock(_\w+)?|(down|percpu_down)_(read|write)(_\w+)?|"
                   r"mutex_(try)?lock(_\w+)?")

OWNERS = ("ours", "filesystem", "core", "entry", "user")
FILESYSTEMS = ("xfs", "ext4", "jbd2", "mbcache", "crc16", "libcrc32c")


def in_root(*command, given=None, directory=None):
    options = ["--rw", directory, "/build"] if directory else []
    return subprocess.run([SCRIPTS / "in-root", *options, "--", *command], input=given, text=True,
                          check=True, stdout=subprocess.PIPE).stdout


def shorten(name):
    """A Rust path without what its generic parameters are."""
    name = re.sub(r"::<", "<", name)
    kept, depth = "", 0
    for i, char in enumerate(name):
        if char == "<" and kept and (kept[-1].isalnum() or depth):
            depth += 1
        elif char == ">" and depth and name[i - 1] != "-":
            depth -= 1
        elif not depth:
            kept += char
    return re.sub(r"\brdax_main::(dax::)?", "", kept)


def is_atomic(code):
    """Whether an instruction, as hexadecimal bytes, reads and writes memory atomically. A kernel that
    runs on one processor puts a prefix that means nothing (0x3e) in place of "lock"."""
    data = bytes.fromhex(code)
    at = 0
    while at < len(data) and data[at] in b"\xf0\xf2\xf3\x2e\x36\x3e\x26\x64\x65\x66\x67":
        at += 1
    prefixes = data[:at]
    if at < len(data) and data[at] & 0xf0 == 0x40:
        at += 1
    two = data[at:at + 1] == b"\x0f"
    opcode, modrm = data[at + two:at + two + 1], data[at + two + 1:at + two + 2]
    if not opcode or not modrm or modrm[0] >> 6 == 3:
        return False        # no memory
    opcode, operation = opcode[0], modrm[0] >> 3 & 7
    if not two and opcode in (0x86, 0x87):
        return True         # xchg needs no prefix
    if 0xf0 in prefixes:
        return True
    if 0x3e not in prefixes:
        return False
    if two:
        return (opcode in (0xab, 0xb0, 0xb1, 0xb3, 0xbb, 0xc0, 0xc1)
                or (opcode == 0xba and operation >= 5) or (opcode == 0xc7 and operation == 1))
    return ((opcode < 0x32 and opcode & 7 < 2)
            or (opcode in (0x80, 0x81, 0x83) and operation < 7)
            or (opcode in (0xf6, 0xf7) and operation in (2, 3))
            or (opcode in (0xfe, 0xff) and operation < 2))


class Function:
    """A symbol of the guest's kernel."""

    def __init__(self, start, name, module):
        self.start, self.symbol, self.module = start, name, module
        self.owner = "core"
        self.label = name

    def name(self, name):
        self.label = f"{name} [{self.module}]" if self.module not in (None, "rdax") else name


class Symbols:
    """/proc/kallsyms of a guest."""

    def __init__(self, lines):
        found = {}
        for line in lines:
            words = line.split()
            start, kind, name = int(words[0], 16), words[1], words[2]
            module = words[3].strip("[]") if len(words) > 3 else None
            # Of several names of an address a global one is the best known.
            if start not in found or (kind.isupper() and not found[start][0].isupper()):
                found[start] = (kind, name, module)
        at = {name: start for start, (_, name, _) in found.items()}
        ends = {line.split()[2]: int(line.split()[0], 16) for line in lines if "__entry_text_" in line}
        entry = range(ends.get("__entry_text_start", 0), ends.get("__entry_text_end", 0))
        mangled = [name for name in at if name.startswith("_R")]
        names = dict(zip(mangled, map(shorten, in_root(
            "llvm-cxxfilt", given="".join(f"{name}\n" for name in mangled)).splitlines()), strict=True))
        self.functions = []
        for start in sorted(found):
            _, name, module = found[start]
            function = Function(start, name, module)
            function.name(names.get(name, name))
            # Nobody but us has functions redirected here.
            if module in ("rdax", "__builtin__ftrace"):
                function.owner = "ours"
            elif module in FILESYSTEMS:
                function.owner = "filesystem"
            elif start in entry:
                function.owner = "entry"
            self.functions.append(function)
        self._starts = [function.start for function in self.functions]
        self._user = Function(0, "(user)", None)
        self._user.owner = "user"

    def at(self, address):
        if address < 1 << 63:
            return self._user
        i = bisect.bisect_right(self._starts, address) - 1
        return self.functions[i] if i >= 0 else Function(0, "?", None)


class Source:
    """Which line of the module's source an instruction is from, and of which inlined function."""

    def __init__(self, directory):
        self._directory = directory
        subprocess.run([SCRIPTS / "build", "--to", f"{directory}/rdax.ko"], check=True)
        # In a module all sections lie at 0; linked, an address says which one is meant.
        in_root("ld", "--unresolved-symbols=ignore-all", "-e", "0", "-o", "/build/rdax",
                "/build/rdax.ko", directory=directory)
        self._offsets = {}
        for line in in_root("nm", "/build/rdax", directory=directory).splitlines():
            words = line.split()
            if len(words) == 3 and words[1] in "tTwW":
                self._offsets[words[2]] = int(words[0], 16)

    def frames(self, addresses):
        """By address, (function, file, line) of this module's source nearest to it."""
        offsets = {}
        for address, function in addresses.items():
            if function.module == "rdax" and function.symbol in self._offsets:
                offsets[address] = self._offsets[function.symbol] + address - function.start
        given = "".join(f"{offset:#x}\n" for offset in offsets.values())
        lines = in_root("llvm-symbolizer", "--obj=/build/rdax", "--inlines",
                        "--output-style=JSON", given=given,
                        directory=self._directory).splitlines() if offsets else []
        found = {}
        for address, line in zip(offsets, lines, strict=True):
            frames = json.loads(line).get("Symbol", [])
            # What is inlined from a library counts for who uses it.
            for frame in frames:
                if frame["FileName"].startswith("/build/"):
                    found[address] = (shorten(frame["FunctionName"]),
                                      frame["FileName"].removeprefix("/build/"), frame["Line"])
                    break
        return found


class Counts:
    """What was executed in one state: instructions by address, an operation."""

    def __init__(self):
        self.rounds, self.clock = 0, 0
        self.by_address, self.bytes = Counter(), {}

    def add(self, path, clock):
        self.rounds += 1
        self.clock += clock
        for line in path.read_text().splitlines():
            address, count, code = line.split()
            address = int(address, 16)
            self.by_address[address] += int(count)
            self.bytes[address] = code

    def scale(self, operations):
        self.clock /= self.rounds * operations
        for address in self.by_address:
            self.by_address[address] /= self.rounds * operations


class Profile:
    """The counts of every row that a guest ran."""

    def __init__(self, directory):
        self.directory = Path(directory)
        self.rows = {}
        self._symbols = []
        self._serial = 0

    def symbol(self, line):
        self._symbols.append(line)

    def row(self, fs, state, name, operations, clock):
        """The benchmark said this after it had the counts kept."""
        path = self.directory / f"counts-{self._serial}"
        self._serial += 1
        _, states = self.rows.setdefault((fs, name), (operations, defaultdict(Counts)))
        states[state].add(path, clock)
        path.unlink()

    def report(self, functions):
        symbols, source = Symbols(self._symbols), Source(self.directory)
        for (fs, name), (operations, states) in self.rows.items():
            for counts in states.values():
                counts.scale(operations)
            yield from self._row(f"{NAMES[fs]}, {name}", symbols, states)
            frames = source.frames({address: symbols.at(address)
                                    for address in states["rdax"].by_address})
            yield from self._inlined(symbols, states["rdax"], frames)
            for pattern in functions:
                yield from self._addresses(pattern, symbols, states, frames)

    def _row(self, title, symbols, states):
        ours, theirs = states["rdax"], states["kernel"]
        by_function, by_owner = [Counter(), Counter()], [Counter(), Counter()]
        owner_of = {}
        for side, counts in enumerate((ours, theirs)):
            for address, count in counts.by_address.items():
                function = symbols.at(address)
                by_function[side][function.label] += count
                by_owner[side][function.owner] += count
                owner_of[function.label] = function.owner
        head = f"{'rdax':>10} {'kernel':>10} {'difference':>10}"
        yield ""
        yield f"{title + ', instructions an operation':66} {head}"
        line = "{:66} {:10.1f} {:10.1f} {:+10.1f}".format

        def both(label, pair):
            return line(label, pair[0], pair[1], pair[0] - pair[1])
        yield both("total", [sum(side.values()) for side in by_owner])
        yield both("total, by the clock", (ours.clock, theirs.clock))
        for state, counts in (("rdax", ours), ("kernel", theirs)):
            total = counts.by_address.total()
            if abs(total - counts.clock) > AGREE * counts.clock:
                yield (f"THESE DO NOT AGREE: {state}: {total:.1f} counted, {counts.clock:.1f} by "
                       "the clock")
        for owner in OWNERS:
            yield both(f"  {owner}", [side[owner] for side in by_owner])
        atomic, locks = [], []
        yield ""
        for counts in (ours, theirs):
            atomic.append(sum(count for address, count in counts.by_address.items()
                              if is_atomic(counts.bytes[address])))
            locks.append(sum(count for address, count in counts.by_address.items()
                             if address == (function := symbols.at(address)).start
                             and LOCKS.fullmatch(function.symbol)))
        yield both("atomic operations", atomic)
        yield both("locks taken", locks)
        others = [0, 0]
        yield ""
        for label in sorted(owner_of, key=lambda it: (-by_function[0][it], -by_function[1][it])):
            pair = [side[label] for side in by_function]
            if max(pair) < FEW:
                others = [others[0] + pair[0], others[1] + pair[1]]
            else:
                yield both(f"{owner_of[label]:10} {label}", pair)
        yield both("others", others)

    def _inlined(self, symbols, counts, frames):
        """Ours, by functions of the source: most of them are inlined somewhere."""
        by_function, into = Counter(), defaultdict(set)
        for address, count in counts.by_address.items():
            function = symbols.at(address)
            if function.owner != "ours":
                continue
            name, file, _ = frames.get(address, (function.label, "", 0))
            by_function[name, file] += count
            into[name, file].add(function.label)
        few = 0
        yield ""
        yield f"{'ours, by function of the source (also of what is inlined)':66} {'rdax':>10}"
        for (name, file), count in by_function.most_common():
            if count < FEW:
                few += count
            else:
                within = sorted(into[name, file] - {name})
                yield (f"{name + (f' ({file})' if file else ''):66} {count:10.1f}"
                       f"{'  in ' + ', '.join(within) if within else ''}")
        yield f"{'others':66} {few:10.1f}"

    def _addresses(self, pattern, symbols, states, frames):
        # Never the core's: the kernel's own DAX code is there, and who writes this module does not
        # read it, as source or as instructions.
        counts, found = states["rdax"], defaultdict(dict)
        for address, count in counts.by_address.items():
            function = symbols.at(address)
            if function.owner in ("ours", "filesystem") and pattern.search(function.label):
                found[function][address] = count
        if not found:
            yield ""
            yield f"no function of ours or of a filesystem is named like {pattern.pattern}"
        for function, here in sorted(found.items(), key=lambda it: -sum(it[1].values())):
            yield ""
            yield f"{function.label}, {sum(here.values()):.1f} instructions an operation"
            lines = {address: "{1}:{2}".format(*frames[address]) for address in here
                     if address in frames}
            yield from disassemble(function, here, counts.bytes, symbols, lines)


def disassemble(function, counts, code, symbols, lines):
    """The instructions that were executed: times an operation, offset, instruction, line."""
    start = min(counts)
    end = max(address + len(code[address]) // 2 for address in counts)
    # What was not executed is not known: each of its bytes is an instruction (int3).
    image = bytearray(b"\xcc" * (end - start))
    for address in counts:
        data = bytes.fromhex(code[address])
        image[address - start:address - start + len(data)] = data
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        (Path(directory) / "code").write_bytes(image)
        text = in_root("objdump", "-D", "-b", "binary", "-m", "i386:x86-64", "--no-show-raw-insn",
                       f"--adjust-vma={start:#x}", "/build/code", directory=directory)
    last = start
    for line in text.splitlines():
        match = re.match(r"\s*([0-9a-f]+):\s+(.*)", line)
        if not match or int(match[1], 16) not in counts:
            continue
        address, instruction = int(match[1], 16), match[2].rstrip()
        if address != last:
            yield "       …"
        last = address + len(code[address]) // 2
        target = re.match(r"(?:call|j\w+)\s+0x([0-9a-f]+)$", instruction)
        if target and (to := symbols.at(int(target[1], 16))) != function:
            instruction = f"{instruction.split()[0]:6} {to.label}+{int(target[1], 16) - to.start:#x}"
        elif target:
            instruction = (f"{instruction.split()[0]:6} "
                           f"+{int(target[1], 16) - function.start:#x}")
        text = f"{counts[address]:9.2f}  +{address - function.start:<#6x} {instruction}"
        yield f"{text:76} {lines[address]}" if address in lines else text
