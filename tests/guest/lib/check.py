# SPDX-License-Identifier: GPL-2.0
"""How a case says that something is not as it must be."""


class Failure(Exception):
    """The case failed."""


class Skip(Exception):
    """The case cannot run here; the text says why."""


def check(condition, text):
    if not condition:
        raise Failure(text)


def equal(got, wanted, what):
    if got != wanted:
        raise Failure(f"{what}: {show(got)} instead of {show(wanted)}")


def same_bytes(got, wanted, what):
    """Compare contents, and say where they part."""
    got, wanted = bytes(got), bytes(wanted)
    if got == wanted:
        return
    if len(got) != len(wanted):
        raise Failure(f"{what}: {len(got)} bytes instead of {len(wanted)}")
    at = next(i for i, (a, b) in enumerate(zip(got, wanted, strict=True)) if a != b)
    wrong = sum(a != b for a, b in zip(got, wanted, strict=True))
    raise Failure(f"{what}: {wrong} wrong bytes, first at {at:#x}: "
                  f"{got[at:at + 8].hex()} instead of {wanted[at:at + 8].hex()}")


def raises(errno_wanted, what, call, *args):
    """call(*args) must fail with that errno (or one of several)."""
    wanted = errno_wanted if isinstance(errno_wanted, tuple) else (errno_wanted,)
    try:
        call(*args)
    except OSError as error:
        if error.errno not in wanted:
            raise Failure(f"{what}: {error} instead of errno {wanted}") from error
        return error
    raise Failure(f"{what}: succeeded, errno {wanted} expected")


def show(value):
    return f"{value:#x}" if isinstance(value, int) and abs(value) > 4095 else repr(value)
