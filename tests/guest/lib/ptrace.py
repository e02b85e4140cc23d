# SPDX-License-Identifier: GPL-2.0
"""Tracing a task, as a debugger does."""

import ctypes
import os
import signal

from .check import check
from .posix import syscall

PTRACE, TRACEME, PEEKDATA, POKEDATA, CONT, DETACH, SYSCALL = 101, 0, 2, 5, 7, 17, 24


def trace_me():
    """Has the parent trace this task, and stops until it is let go on."""
    syscall(PTRACE, TRACEME)
    os.kill(os.getpid(), signal.SIGSTOP)


def await_stop(pid):
    check(os.WIFSTOPPED(os.waitpid(pid, 0)[1]), "it does not stop")


def peek(pid, address):
    """The 8 bytes at an address of a task that has stopped."""
    word = ctypes.create_string_buffer(8)
    syscall(PTRACE, PEEKDATA, pid, address, ctypes.addressof(word))
    return word.raw


def poke(pid, address, word):
    """Writes 8 bytes there."""
    syscall(PTRACE, POKEDATA, pid, address, int.from_bytes(word, "little"))


def let_go_on(pid):
    syscall(PTRACE, CONT, pid)


def let_go_on_to_next_call(pid):
    """Up to where it enters or leaves a system call."""
    syscall(PTRACE, SYSCALL, pid)


def detach(pid):
    syscall(PTRACE, DETACH, pid)
