"""nftables in this process, by its own library: a rule set is loaded in half a millisecond, without starting `nft`.

Each context talks to the network namespace of the thread that made it. What is run is one transaction: all of it
happens, or nothing. Source: libnftables(3), libnftables-json(5), nft(8).
"""

from __future__ import annotations

import ctypes
import functools
import json
import threading
from typing import Any

from belljar.model.errors import MissingTool, NetworkError

_OUTPUT_JSON = 1 << 4
_LIBRARY = "libnftables.so.1"


@functools.cache
def library() -> ctypes.CDLL:
    """libnftables. Raises MissingTool."""
    try:
        found = ctypes.CDLL(_LIBRARY)
    except OSError:
        raise MissingTool(f"{_LIBRARY} not found; install with: apt-get install nftables") from None
    found.nft_ctx_new.restype = ctypes.c_void_p
    found.nft_ctx_new.argtypes = [ctypes.c_uint32]
    for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error", "nft_ctx_free"):
        getattr(found, name).argtypes = [ctypes.c_void_p]
    for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        getattr(found, name).argtypes = [ctypes.c_void_p]
        getattr(found, name).restype = ctypes.c_char_p
    found.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    found.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    return found


class Nft:
    """nftables of the namespace of the thread that made it. Usable from any thread; a context manager that closes it.

    After it has loaded rules it holds a megabyte of what it knows of them: not to be kept for each of many namespaces.
    """

    def __init__(self) -> None:
        self._library = library()
        self._context = self._library.nft_ctx_new(0)
        if not self._context:
            raise NetworkError("nftables cannot be used: out of memory or of descriptors")
        self._library.nft_ctx_buffer_output(self._context)
        self._library.nft_ctx_buffer_error(self._context)
        self._library.nft_ctx_output_set_flags(self._context, _OUTPUT_JSON)
        self._one_at_a_time = threading.Lock()

    def run(self, commands: str) -> dict[str, Any]:
        """Run commands as one transaction; returns what they print, of libnftables-json(5). Blocks.

        Raises NetworkError with nft's own words.
        """
        with self._one_at_a_time:
            if self._context is None:
                raise NetworkError("this network is gone")
            result = self._library.nft_run_cmd_from_buffer(self._context, commands.encode())
            output = self._library.nft_ctx_get_output_buffer(self._context)
            error = self._library.nft_ctx_get_error_buffer(self._context)
        if result != 0:
            words = error.decode(errors="replace").strip().splitlines()[:1] or ["no reason given"]
            raise NetworkError(f"nftables refused a rule: {words[0]}")
        printed: dict[str, Any] = json.loads(output) if output else {}
        return printed

    def __enter__(self) -> Nft:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the netlink socket. Idempotent."""
        with self._one_at_a_time:
            if self._context is not None:
                self._library.nft_ctx_free(self._context)
                self._context = None
