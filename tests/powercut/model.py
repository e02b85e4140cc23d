# SPDX-License-Identifier: GPL-2.0
"""What the emulator's plugin knows (powercut.h), and how guest.py tells what it finds."""

import ctypes
import json
import time

(DEVICE, RECORD, STATE, EVENT, CUT, STOP, LOAD, PEEK, LOST, LINE, COUNTS, KEEP, RESTORE, COPY,
 COPY_STATE, CLOCK, _, MISSED, SURVIVED, SURVIVOR) = range(1, 21)
WAITS, GOOD, DAMAGED = range(3)
THREADS = 4
EVERY_FENCE = 1 << 32


class _Request(ctypes.Structure):
    _fields_ = [("op", ctypes.c_uint64), ("a", ctypes.c_uint64 * 8),
                ("events", ctypes.c_uint64 * THREADS), ("kind", ctypes.c_uint64),
                ("moment", ctypes.c_uint64), ("answer", ctypes.c_int64)]


class Model:
    """What the emulator's plugin knows, and the C parts of the workloads."""

    def __init__(self, library):
        self.lib = lib = ctypes.CDLL(library)
        u64, i64, text, size = (ctypes.c_uint64, ctypes.c_int64, ctypes.c_char_p, ctypes.c_size_t)
        pointer, number, flag = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_bool
        for name, answer, arguments in (
                ("powercut_ask", i64, [u64] * 4),
                ("powercut_answer", ctypes.POINTER(_Request), []),
                ("known_answers", ctypes.c_int,
                 [pointer, u64, u64, ctypes.c_int, u64, flag, text, size]),
                ("known_answers_of_two", ctypes.c_int,
                 [pointer, u64, u64, ctypes.c_int, u64, flag, text, size]),
                ("known_answers_unseen", ctypes.c_int, [pointer, u64, u64, text, size]),
                ("workload_prepare", ctypes.c_int, [text, text]),
                ("workload_run", i64, [text, text, u64, i64, number]),
                ("workload_failure", text, []),
                ("workload_ops", size, [ctypes.POINTER(pointer)]),
                ("workload_ops_are", None, [text, size]),
                ("powercut_salt", None, [number]),
                ("oracle_answers", ctypes.c_int, [text, size]),
                ("oracle_example", i64, [number, *[ctypes.POINTER(u64)] * 3]),
                ("race_promises", None, [ctypes.POINTER(u64), text]),
                ("race_promises_are", ctypes.c_int, [u64, ctypes.POINTER(u64), text]),
                ("oracle_begin", ctypes.c_int, [text]),
                ("oracle_advance", ctypes.c_int, [u64]),
                ("oracle_check", ctypes.c_int,
                 [text, flag, text, size, ctypes.POINTER(u64), ctypes.POINTER(u64)]),
                ("log_prepare", ctypes.c_int, [text]),
                ("log_run", i64, [text, u64, i64, number]),
                ("log_recall", None, [u64]),
                ("log_check", ctypes.c_int, [text, u64, flag, text, size, ctypes.POINTER(u64)]),
                ("race_prepare", ctypes.c_int, [text, u64]),
                ("race_run", i64, [text, u64, i64, number, flag]),
                ("race_check", ctypes.c_int,
                 [text, u64, ctypes.POINTER(u64), flag, text, size, ctypes.POINTER(u64)])):
            function = getattr(lib, name)
            function.restype, function.argtypes = answer, arguments

    def ask(self, op, *values):
        return self.lib.powercut_ask(op, *values, *[0] * (3 - len(values)))

    def answer(self):
        return self.lib.powercut_answer().contents

    def become(self, state):
        # It ends: the processors stop once, and then it is so.
        while self.ask(STATE) != state:
            time.sleep(0.001)

    def record(self, seed, rate, eadr):
        self.ask(RECORD, seed, rate, int(eadr))
        self.become(1)

    def stop(self):
        self.ask(STOP)
        self.become(0)
        return self.ask(MISSED)


class Failed(Exception):
    """The tests themselves did not work."""


def tell(**what):
    print(json.dumps(what), flush=True)
