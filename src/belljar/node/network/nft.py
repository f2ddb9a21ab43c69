"""nftables through libnftables: loading a rule set takes half a millisecond, without starting `nft`.

Each context belongs to the network namespace of the thread that created it. The commands of one run are one
transaction: all apply, or none. Sources: libnftables(3), libnftables-json(5), nft(8).
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
    """Return libnftables. Raises MissingTool."""
    try:
        handle = ctypes.CDLL(_LIBRARY)
    except OSError:
        raise MissingTool(f"{_LIBRARY} not found; install with: apt-get install nftables") from None
    handle.nft_ctx_new.restype = ctypes.c_void_p
    handle.nft_ctx_new.argtypes = [ctypes.c_uint32]
    for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error", "nft_ctx_free"):
        getattr(handle, name).argtypes = [ctypes.c_void_p]
    for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        getattr(handle, name).argtypes = [ctypes.c_void_p]
        getattr(handle, name).restype = ctypes.c_char_p
    handle.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    handle.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    return handle


class Nft:
    """An nftables context of the namespace of the thread that created it, usable from any thread.

    A context manager that closes itself. After loading rules it caches about a megabyte: do not keep one per namespace.
    """

    def __init__(self) -> None:
        self._library = library()
        self._context = self._library.nft_ctx_new(0)
        if not self._context:
            raise NetworkError("cannot create an nftables context: out of memory or file descriptors")
        self._library.nft_ctx_buffer_output(self._context)
        self._library.nft_ctx_buffer_error(self._context)
        self._library.nft_ctx_output_set_flags(self._context, _OUTPUT_JSON)
        self._lock = threading.Lock()

    def run(self, commands: str) -> dict[str, Any]:
        """Run commands as one transaction and return their output, libnftables-json(5). Blocks.

        Raises NetworkError with nft's message.
        """
        with self._lock:
            if self._context is None:
                raise NetworkError("this network was removed")
            result = self._library.nft_run_cmd_from_buffer(self._context, commands.encode())
            output = self._library.nft_ctx_get_output_buffer(self._context)
            error = self._library.nft_ctx_get_error_buffer(self._context)
        if result != 0:
            message = (error.decode(errors="replace").strip().splitlines() or ["no reason given"])[0]
            raise NetworkError(f"nftables refused a rule: {message}")
        printed: dict[str, Any] = json.loads(output) if output else {}
        return printed

    def __enter__(self) -> Nft:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the context and its netlink socket. Idempotent."""
        with self._lock:
            if self._context is not None:
                self._library.nft_ctx_free(self._context)
                self._context = None
