"""Foreground commands on behalf of callers: they are killed when nobody waits for them. Their nodes keep timeouts.

A caller that waits for a command, or follows it, is a *reader*. When a foreground command has lost its last reader, one
may come back within `GRACE_SECONDS`; then the command is killed, with all that it started.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass

import structlog

from belljar.link.sandboxes import SandboxMachine
from belljar.model.errors import BelljarError
from belljar.model.sandbox_values import ProcessInfo

log = structlog.get_logger()

GRACE_SECONDS = 10.0

#: A command: the sandbox, and its number there.
_Key = tuple[str, int]


@dataclass(slots=True)
class Reader:
    """Somebody who waits for a command."""

    #: Set by the reader once it has seen the command's end: then nobody needs to come back.
    has_ended: bool


class Commands:
    """The commands of this server's callers. An async context manager that owns the tasks behind them."""

    def __init__(self, grace_seconds: float = GRACE_SECONDS) -> None:
        self._grace_seconds = grace_seconds
        self._readers: Counter[_Key] = Counter()
        self._deserted: dict[_Key, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Commands:
        return self

    async def __aexit__(self, *_: object) -> None:
        for timer in self._deserted.values():
            timer.cancel()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    @contextlib.asynccontextmanager
    async def reading(self, sandbox_id: str, machine: SandboxMachine, process: ProcessInfo) -> AsyncIterator[Reader]:
        """Be a reader of the command while the block runs."""
        reader = Reader(has_ended=process.exit is not None)
        key = sandbox_id, process.id
        self._readers[key] += 1
        if (timer := self._deserted.pop(key, None)) is not None:
            timer.cancel()
        try:
            yield reader
        finally:
            self._readers[key] -= 1
            if not self._readers[key]:
                del self._readers[key]
                if not process.background and not reader.has_ended:
                    self._desert(key, machine)

    def _desert(self, key: _Key, machine: SandboxMachine) -> None:
        def give_up() -> None:
            del self._deserted[key]
            self._run(self._kill_unread(key, machine))

        self._deserted[key] = asyncio.get_running_loop().call_later(self._grace_seconds, give_up)

    async def _kill_unread(self, key: _Key, machine: SandboxMachine) -> None:
        sandbox_id, process_id = key
        with contextlib.suppress(BelljarError):  # the sandbox or the command is gone
            if (await machine.process(process_id)).exit is None:
                log.info("command_deserted", sandbox=sandbox_id, process=process_id)
                await machine.kill(process_id)
                await machine.discard_output(process_id)

    def _run(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
