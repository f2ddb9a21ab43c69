"""Contexts of code in sandboxes: each is a kernel, a process in the sandbox whose variables live between runs.

A context is what its process is: the sandbox's table of commands has its id, its language and how it ended, so that any
server knows it. This server's memory has the runs only, one at a time for each context.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from belljar.control.sandboxes.code_run import INTERRUPT_SECONDS, CodeRun
from belljar.control.sandboxes.kernel_process import died, make_ready, start_kernel
from belljar.control.sandboxes.kernels.programs import kernel_of
from belljar.link.sandboxes import SandboxMachine
from belljar.model.ids import new_id
from belljar.model.sandbox_errors import ContextBusy, ContextNotFound, ProcessEnded, TooManyContexts
from belljar.model.sandbox_values import ProcessInfo

#: Contexts of a sandbox: each is an interpreter in its memory.
MAX_CONTEXTS = 16

#: A context: the sandbox, and its id there.
_Key = tuple[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """A context as it is now."""

    id: str
    language: str
    process: ProcessInfo
    is_busy: bool

    def public(self) -> dict[str, Any]:
        """Return the context as the API shows it."""
        exit_ = self.process.exit
        status = "died" if exit_ is not None else "running" if self.is_busy else "idle"
        return {
            "id": self.id,
            "language": self.language,
            "status": status,
            "pid": self.process.pid,
            "cwd": self.process.cwd,
            "started_at": self.process.model_dump(mode="json", include={"started_at"})["started_at"],
            "exit": None
            if exit_ is None
            else exit_.model_dump(mode="json", include={"exit_code", "signal", "out_of_memory"}),
        }


class Contexts:
    """The contexts that this server's callers use. An async context manager that owns the runs."""

    def __init__(self) -> None:
        self._runs: dict[_Key, asyncio.Task[None]] = {}
        #: Contexts whose kernels are not ready yet.
        self._starting: set[_Key] = set()
        #: Serializes the starts of kernels in a sandbox; there while one starts.
        self._making: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def __aenter__(self) -> Contexts:
        return self

    async def __aexit__(self, *_: object) -> None:
        runs = [*self._runs.values()]
        for task in runs:
            task.cancel()
        await asyncio.gather(*runs, return_exceptions=True)

    # --- contexts ---------------------------------------------------------------------------------------------------

    async def create(
        self, sandbox_id: str, machine: SandboxMachine, language: str, *, cwd: str | None, env: dict[str, str]
    ) -> Context:
        """Start a context and wait until it is ready.

        Raises InvalidOption, TooManyContexts, CannotStart, ContextDied.
        """
        async with self._making_one(sandbox_id):
            return await self._start(sandbox_id, machine, language, new_id("ctx"), cwd=cwd, env=env)

    async def default(self, sandbox_id: str, machine: SandboxMachine, language: str) -> Context:
        """Return the default context of a language, whose id is the language; start it if there is none.

        Raises what `create` raises.
        """
        name = kernel_of(language).language
        if (sandbox_id, name) not in self._starting:
            with contextlib.suppress(ContextNotFound):
                return await self._find(sandbox_id, machine, name)
        async with self._making_one(sandbox_id):
            with contextlib.suppress(ContextNotFound):
                return await self._find(sandbox_id, machine, name)
            return await self._start(sandbox_id, machine, name, name, cwd=None, env={})

    async def list(self, sandbox_id: str, machine: SandboxMachine) -> tuple[Context, ...]:
        """Return the contexts of a sandbox, oldest first."""
        newest: dict[str, Context] = {}
        for process in sorted(await machine.processes(), key=lambda each: each.id):
            if (label := process.context) is not None:
                is_busy = (key := (sandbox_id, label.id)) in self._runs or key in self._starting
                newest[label.id] = Context(id=label.id, language=label.language, process=process, is_busy=is_busy)
        return tuple(sorted(newest.values(), key=lambda each: each.process.started_at))

    async def get(self, sandbox_id: str, machine: SandboxMachine, context_id: str) -> Context:
        """Return one context. Raises ContextNotFound."""
        try:
            return await self._find(sandbox_id, machine, context_id)
        except ContextNotFound:
            if (sandbox_id, context_id) not in self._starting:
                raise
        async with self._making_one(sandbox_id):  # it is between its old process and the new one
            return await self._find(sandbox_id, machine, context_id)

    async def _find(self, sandbox_id: str, machine: SandboxMachine, context_id: str) -> Context:
        for each in await self.list(sandbox_id, machine):
            if each.id == context_id:
                return each
        raise ContextNotFound(
            f"the sandbox has no context {context_id[:80]!r}; list them with GET "
            f"/v1/sandboxes/{sandbox_id}/contexts, or create one"
        )

    async def delete(self, sandbox_id: str, machine: SandboxMachine, context_id: str) -> Context:
        """Kill a context and forget it. Raises ContextNotFound."""
        found = await self.get(sandbox_id, machine, context_id)
        await machine.forget(found.process.id)
        return found

    async def restart(self, sandbox_id: str, machine: SandboxMachine, context_id: str) -> Context:
        """Start a context anew, without its variables; what runs in it ends.

        Raises ContextNotFound, and what `create` raises.
        """
        async with self._making_one(sandbox_id):
            found = await self._find(sandbox_id, machine, context_id)
            await self._start_anew(sandbox_id, machine, found)
        if (run := self._runs.get((sandbox_id, context_id))) is not None:
            await asyncio.wait({run}, timeout=INTERRUPT_SECONDS)  # it has lost its process
        return await self.get(sandbox_id, machine, context_id)

    async def interrupt(self, sandbox_id: str, machine: SandboxMachine, context_id: str) -> Context:
        """Interrupt what runs in a context; an idle one stays as it is. Raises ContextNotFound, ContextDied."""
        found = await self.get(sandbox_id, machine, context_id)
        try:
            await machine.signal(found.process.id, "SIGINT")
        except ProcessEnded:
            found = await self.get(sandbox_id, machine, context_id)
            raise died(found.process.exit, "") from None
        return found

    # --- code -------------------------------------------------------------------------------------------------------

    def run(self, sandbox_id: str, machine: SandboxMachine, context: Context, code: str, seconds: float) -> CodeRun:
        """Begin to run code in a context, for at most so many seconds. Raises ContextBusy, ContextDied."""
        key = sandbox_id, context.id
        if context.process.exit is not None:
            raise died(context.process.exit, "")
        if key in self._runs:
            raise ContextBusy(
                f"the context {context.id} runs code already; wait for its end, interrupt it, or use another context"
            )
        if key in self._starting:
            raise ContextBusy(f"the context {context.id} is being started; wait until its status is idle")

        async def restart() -> None:
            async with self._making_one(sandbox_id):  # otherwise a second one could take its place meanwhile
                await self._start_anew(sandbox_id, machine, context)

        run = CodeRun(machine, context.process, code, seconds, restart)
        self._runs[key] = task = asyncio.create_task(run.carry_out(), name=f"run in {context.id}")
        task.add_done_callback(lambda _: self._runs.pop(key))
        return run

    # --- kernels ----------------------------------------------------------------------------------------------------

    async def _start(
        self,
        sandbox_id: str,
        machine: SandboxMachine,
        language: str,
        context_id: str,
        *,
        cwd: str | None,
        env: dict[str, str],
    ) -> Context:
        kernel = kernel_of(language)
        known = await self.list(sandbox_id, machine)
        if len(known) >= MAX_CONTEXTS:
            raise TooManyContexts(
                f"the sandbox has {len(known)} contexts; the maximum is {MAX_CONTEXTS}: delete one first",
                limit=MAX_CONTEXTS,
            )
        with self._starting_one((sandbox_id, context_id)):
            process = await start_kernel(machine, kernel, context_id, cwd=cwd, env=env)
        return Context(id=context_id, language=kernel.language, process=process, is_busy=False)

    async def _start_anew(self, sandbox_id: str, machine: SandboxMachine, context: Context) -> None:
        with self._starting_one((sandbox_id, context.id)):
            process = await machine.restart(context.process.id)
            await make_ready(machine, kernel_of(context.language), process)

    @contextlib.contextmanager
    def _starting_one(self, key: _Key) -> Iterator[None]:
        """Note that the kernel of a context takes no code yet while the block runs."""
        self._starting.add(key)
        try:
            yield
        finally:
            self._starting.discard(key)

    def _making_one(self, sandbox_id: str) -> asyncio.Lock:
        return self._making.setdefault(sandbox_id, asyncio.Lock())
