"""The host's end of a clone's second QMP monitor, which loads its snapshot.

A new process gets its commands at once, before it can read them: nothing waits for QEMU's start. A process that waited
shows by its answers that it can still run. QEMU may be in the hands of a guest once the state is loaded, so nothing is
read after that.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket

from belljar.model.errors import MachineError, MachineTimeout

#: A QMP command without its id.
QmpCommand = dict[str, object]
#: QEMU's answers to all commands before the load have less than a kilobyte, the greeting included.
_MAX_ANSWER_BYTES = 16 * 1024


class Orders:
    """Sends commands to one QEMU. `host_end` is closed by its owner."""

    def __init__(self, host_end: socket.socket) -> None:
        host_end.setblocking(False)
        self._host_end = host_end
        self._received = bytearray()

    def send(self, commands: list[QmpCommand]) -> None:
        """Send commands to a process that was just started; its death, if it has one, says why it did not follow."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._host_end.send(_lines(commands))

    async def execute(self, commands: list[QmpCommand], timeout_seconds: float) -> None:
        """Send commands and wait until QEMU has carried all of them out.

        Raises MachineTimeout, and MachineError when QEMU refuses one, has ended, or sends something else.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_seconds):
                await loop.sock_sendall(self._host_end, _lines(commands))
                for _ in commands:
                    await self._answer()
        except TimeoutError:
            raise MachineTimeout(f"QEMU did not answer on its monitor within {timeout_seconds:g} s") from None
        except OSError as error:
            raise MachineError(f"lost QEMU's monitor: {error.strerror}") from error

    async def _answer(self) -> None:
        """Wait for the next answer; the greeting and events are skipped."""
        while True:
            message = await self._message()
            if "error" in message:
                error = message["error"]
                reason = error.get("desc") if isinstance(error, dict) else None
                raise MachineError(f"QEMU refused to prepare for a snapshot: {str(reason)[:200]}")
            if "return" in message:
                return

    async def _message(self) -> dict[str, object]:
        loop = asyncio.get_running_loop()
        while (end := self._received.find(b"\n")) < 0:
            chunk = await loop.sock_recv(self._host_end, 4096)
            if not chunk:
                raise MachineError("QEMU closed its monitor")
            self._received += chunk
            if len(self._received) > _MAX_ANSWER_BYTES:
                raise MachineError(f"QEMU's monitor sent over {_MAX_ANSWER_BYTES} bytes without an answer")
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise MachineError("QEMU's monitor sent something other than QMP")
        return message


def _lines(commands: list[QmpCommand]) -> bytes:
    return b"".join(json.dumps(command).encode() + b"\n" for command in commands)
