"""A program of a sandbox in this terminal: raw mode, which is always restored, its size, every key to the program."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import termios
import tty
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from belljar.cli.passthrough import write_all

if TYPE_CHECKING:
    from belljar.client import AsyncProcess, AsyncSandbox

#: Ctrl-]: the key that closes the terminal when the program does not end.
CLOSE_KEY = b"\x1d"
_READ_BYTES = 16 * 1024
#: Pieces of input that wait for the server; then this terminal is not read.
_MAX_PENDING = 64
#: How long to wait for the end of a program that was killed.
_END_SECONDS = 5.0


async def run_in_terminal(box: AsyncSandbox, args: list[str], given: dict[str, Any]) -> dict[str, Any]:
    """Run the program in this terminal and return its process when it has ended. It is killed if this ends earlier."""
    env = {"TERM": os.environ.get("TERM", "xterm")} | given.pop("env", {})
    columns, rows = os.get_terminal_size(0)
    size = {"columns": columns or 80, "rows": rows or 24}  # a serial line has no size
    process = await box.start(args, background=False, pty=size, env=env, **given)
    try:
        with _raw_mode() as set_raw:
            await _Session(process, set_raw).run()
        return process
    finally:
        await process.aclose()
        if not process.is_ended:
            await process.kill()
            await process.wait(_END_SECONDS)


class _Session:
    """The tasks that connect this terminal with a process."""

    def __init__(self, process: AsyncProcess, set_raw: Any) -> None:
        self._process = process
        self._set_raw = set_raw
        self._pending: asyncio.Queue[bytes] = asyncio.Queue(_MAX_PENDING)
        self._resized = asyncio.Event()
        self._is_closing = asyncio.Event()

    async def run(self) -> None:
        """Return when the process has ended, or the terminal was closed. Raises ServerError, Unreachable."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGWINCH, self._resized.set)
        loop.add_signal_handler(signal.SIGCONT, self._continued)
        loop.add_reader(0, self._read)
        output = asyncio.create_task(self._write_output())
        tasks = {output, asyncio.create_task(self._send_input()), asyncio.create_task(self._send_size())}
        closing = asyncio.create_task(self._is_closing.wait())
        try:
            done, _ = await asyncio.wait({*tasks, closing}, return_when=asyncio.FIRST_COMPLETED)
            for task in done & tasks:
                task.result()
        finally:
            loop.remove_reader(0)
            loop.remove_signal_handler(signal.SIGWINCH)
            loop.remove_signal_handler(signal.SIGCONT)
            for task in {*tasks, closing}:
                task.cancel()
            await asyncio.gather(*tasks, closing, return_exceptions=True)

    def _read(self) -> None:
        """Read what was typed. A terminal that is gone closes the session."""
        try:
            data = os.read(0, _READ_BYTES)
        except OSError:
            data = b""
        typed, close_key, _ = data.partition(CLOSE_KEY)
        if typed:
            self._pending.put_nowait(typed)
        if close_key or not data:
            self._is_closing.set()
        elif self._pending.full():
            asyncio.get_running_loop().remove_reader(0)

    async def _send_input(self) -> None:
        while True:
            data = await self._pending.get()
            while not self._pending.empty():
                data += self._pending.get_nowait()
            asyncio.get_running_loop().add_reader(0, self._read)
            await self._unless_ended(self._process.write(data))

    async def _send_size(self) -> None:
        while True:
            await self._resized.wait()
            self._resized.clear()
            size = os.get_terminal_size(0)
            await self._unless_ended(self._process.resize(size.columns, size.lines))

    async def _unless_ended(self, call: Any) -> None:
        from belljar.client import Conflict, NotFound

        try:
            await call
        except (Conflict, NotFound) as error:
            if error.code not in ("process_ended", "process_not_found"):
                raise  # for an ended process, its exit is on the way

    async def _write_output(self) -> None:
        async with contextlib.aclosing(self._process.output()) as pieces:
            async for piece in pieces:
                await asyncio.to_thread(write_all, 1, piece.data, self._is_closing.is_set)

    def _continued(self) -> None:
        """Restore raw mode, which the shell of this terminal changed while this process was stopped."""
        self._set_raw()
        self._resized.set()


@contextlib.contextmanager
def _raw_mode() -> Iterator[Any]:
    """Keep this terminal in raw mode while the block runs; yield a function that sets it again."""
    before = termios.tcgetattr(0)

    def set_raw() -> None:
        tty.setraw(0, termios.TCSADRAIN)

    set_raw()
    try:
        yield set_raw
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
