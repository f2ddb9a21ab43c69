"""libbpf through ctypes: loads an object, finds its maps and programs, attaches them to devices.

Source: libbpf 1.0's bpf/libbpf.h and bpf/bpf.h. Its functions return NULL with errno, or a negative errno.
"""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Any

_LIBRARY = "libbpf.so.1"

INGRESS, EGRESS = 1, 2

RingSample = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


class BpfUnavailable(Exception):
    """This process cannot use BPF here; the message says why."""


class TcHook(ctypes.Structure):
    """struct bpf_tc_hook: one direction of a device."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("ifindex", ctypes.c_int),
        ("attach_point", ctypes.c_int),
        ("parent", ctypes.c_uint32),
    )


class TcOptions(ctypes.Structure):
    """struct bpf_tc_opts: which program is attached."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("prog_fd", ctypes.c_int),
        ("flags", ctypes.c_uint32),
        ("prog_id", ctypes.c_uint32),
        ("handle", ctypes.c_uint32),
        ("priority", ctypes.c_uint32),
    )


@functools.cache
def library() -> ctypes.CDLL:
    """Return libbpf, which prints nothing from now on. Raises BpfUnavailable."""
    try:
        handle = ctypes.CDLL(_LIBRARY, use_errno=True)
    except OSError:
        raise BpfUnavailable(f"{_LIBRARY} not found; install with: apt-get install libbpf1") from None
    pointer, number, text = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "libbpf_set_print": (pointer, [pointer]),
        "bpf_object__open_mem": (pointer, [text, ctypes.c_size_t, pointer]),
        "bpf_object__load": (number, [pointer]),
        "bpf_object__close": (None, [pointer]),
        "bpf_object__find_map_fd_by_name": (number, [pointer, text]),
        "bpf_object__find_program_by_name": (pointer, [pointer, text]),
        "bpf_program__fd": (number, [pointer]),
        "bpf_program__unload": (None, [pointer]),
        "bpf_tc_hook_create": (number, [pointer]),
        "bpf_tc_attach": (number, [pointer, pointer]),
        "bpf_map_lookup_elem": (number, [number, pointer, pointer]),
        "bpf_map_update_elem": (number, [number, pointer, pointer, ctypes.c_uint64]),
        "bpf_map_delete_elem": (number, [number, pointer]),
        "bpf_map_lookup_batch": (number, [number, pointer, pointer, pointer, pointer, pointer, pointer]),
        "ring_buffer__new": (pointer, [number, RingSample, pointer, pointer]),
        "ring_buffer__consume": (number, [pointer]),
        "ring_buffer__free": (None, [pointer]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(handle, name)
        function.restype, function.argtypes = result, arguments
    handle.libbpf_set_print(None)
    return handle


def check(result: int, what: str) -> int:
    """Return a result that is no error. Raises BpfUnavailable with what could not be done."""
    if result < 0:
        raise BpfUnavailable(f"cannot {what}: {os.strerror(-result)}")
    return result


def check_pointer(result: int | None, what: str) -> int:
    """Return a pointer that is not NULL. Raises BpfUnavailable with what could not be done."""
    if not result:
        raise BpfUnavailable(f"cannot {what}: {os.strerror(ctypes.get_errno())}")
    return result
