"""A guest of a few dozen bytes, so that a real hypervisor starts, prints and ends in milliseconds.

A 64-bit ELF as Firecracker loads it (Linux's 64-bit boot protocol: long mode, entry point, identity-mapped low memory).
It writes to the serial port at 0x3f8, and then does what it was made for.
"""

from __future__ import annotations

import struct

_ENTRY = 0x100000
_CODE_AT = 0x1000

#: Asks the keyboard controller for a reset: mov al, 0xfe; out 0x64, al; then halts.
RESET = b"\xb0\xfe\xe6\x64\xf4\xeb\xfd"
#: Loads an empty interrupt table and divides by zero: lidt [rsp-16] of zeros; int3.
TRIPLE_FAULT = b"\x48\xc7\xc4\x00\x00\x20\x00\x48\x31\xc0\x50\x50\x0f\x01\x1c\x24\xcc"
#: Halts for ever, with interrupts off.
HANG = b"\xfa\xf4\xeb\xfd"
#: Writes the text again and again: jump back to the start of the code.
FOREVER = None


def tiny_guest(text: bytes, after: bytes | None) -> bytes:
    """Return an executable that prints `text` and then runs `after`; FOREVER prints without end."""
    print_text = b"\x66\xba\xf8\x03\x48\x8d\x35%b\xac\x84\xc0\x74\x03\xee\xeb\xf8"  # dx = 0x3f8; rsi = text; lodsb, out
    start = print_text.index(b"%b") + 4
    length = len(print_text) + 2
    if after is None:
        after = b"\xeb" + struct.pack("<b", -(length + 2))
    code = print_text.replace(b"%b", struct.pack("<i", length + len(after) - start)) + after + text + b"\0"
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = ident + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, _ENTRY, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 7, _CODE_AT, _ENTRY, _ENTRY, len(code), len(code), 0x1000)
    return (header + segment).ljust(_CODE_AT, b"\0") + code
