"""The output of one command on its way to what is kept of it, without the secrets of its sandbox.

Each stream is masked on its own; the offsets that readers see are those of the masked bytes.
"""

from __future__ import annotations

import asyncio

from belljar.model.log_stream import LogStream
from belljar.node.sandboxes.kept_output import KeptOutput
from belljar.node.worker.masked_observer import PIECE_BYTES
from belljar.node.worker.masking import MaskedStream, Masker

#: After so long without output a terminal shows what is held, if it is short: it may be the end of a prompt.
_TERMINAL_SECONDS = 0.2


class MaskedOutput:
    """Passes output on to `output`. `finish` it when the command has ended, or `close` it."""

    def __init__(self, output: KeptOutput, masker: Masker, *, terminal: bool) -> None:
        self._output = output
        self._streams = {stream: MaskedStream(masker) for stream in (LogStream.STDOUT, LogStream.STDERR)}
        self._terminal = terminal
        self._releasing: asyncio.TimerHandle | None = None

    async def add(self, stream: LogStream, data: bytes) -> None:
        """Pass on what is certain so far."""
        self.close()
        for at in range(0, len(data), PIECE_BYTES):
            if at:
                await asyncio.sleep(0)
            self._pass_on(stream, self._streams[stream].feed(data[at : at + PIECE_BYTES]))
        if self._terminal:
            self._releasing = asyncio.get_running_loop().call_later(_TERMINAL_SECONDS, self._release)

    def finish(self) -> None:
        """Pass on what waited for the rest of a secret."""
        self.close()
        for stream, masked in self._streams.items():
            self._pass_on(stream, masked.flush())

    def close(self) -> None:
        """Pass on nothing by itself any more."""
        if self._releasing is not None:
            self._releasing.cancel()
            self._releasing = None

    def _release(self) -> None:
        self._releasing = None
        for stream, masked in self._streams.items():
            self._pass_on(stream, masked.release_short())

    def _pass_on(self, stream: LogStream, data: bytes) -> None:
        if data:
            self._output.add(stream, data)
