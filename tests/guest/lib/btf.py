# SPDX-License-Identifier: GPL-2.0
"""The kernel's description of its types (BTF), changed."""

import struct

FUNC, FUNC_PROTO = 12, 13
# The bytes that follow a type's head: for each member, and whatever their number is.
MEMBERS = {4: 12, 5: 12, 6: 8, FUNC_PROTO: 8, 15: 12, 19: 12}
FIXED = {1: 4, 3: 12, 14: 4, 17: 4}


def with_changed_parameter(data, name):
    """`data`, where the first parameter of the function `name` is void."""
    head, types, types_len, strings, _ = struct.unpack_from("<5I", data, 4)
    at, starts, functions = head + types, [None], []
    while at < head + types + types_len:
        string, info, of = struct.unpack_from("<3I", data, at)
        kind, count = info >> 24 & 0x1f, info & 0xffff
        starts.append(at)
        if kind == FUNC:
            start = head + strings + string
            if data[start:data.index(0, start)] == name.encode():
                functions.append(of)
        at += 12 + MEMBERS.get(kind, 0) * count + FIXED.get(kind, 0)
    [prototype] = functions
    at = starts[prototype]
    kind, count = data[at + 7] & 0x1f, data[at + 4]
    assert kind == FUNC_PROTO and count > 0, "not the prototype of a function with parameters"
    # A parameter is its name and its type. Functions may share a prototype; then they change alike.
    changed = bytearray(data)
    struct.pack_into("<I", changed, at + 12 + 4, 0)
    return bytes(changed)
