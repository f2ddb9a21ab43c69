"""The commands of one sandbox by their numbers: those that run, and the newest that have ended."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from belljar.model.sandbox_errors import ProcessNotFound
from belljar.model.sandbox_values import GuestUser, ProcessRequest, TerminalSize
from belljar.model.secrets import SecretValue
from belljar.node.guest import process
from belljar.node.guest.command import Command
from belljar.node.guest.session import Session
from belljar.node.sandboxes.calls import check_string, check_user
from belljar.node.sandboxes.kept_output import MAX_KEPT_BYTES
from belljar.node.sandboxes.process import MachineSize, SandboxProcess
from belljar.node.sandboxes.saved import SavedProcess
from belljar.node.sandboxes.use import Use
from belljar.node.worker.masking import Masker

#: Commands that have ended and are kept with their output and exit; the oldest go first.
_MAX_ENDED = 256
#: Bytes of output that a sandbox's commands keep together, as far as none has less than the minimum.
_MAX_OUTPUT_BYTES = 16 * 1024 * 1024
_MIN_OUTPUT_BYTES = 16 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class CommandDefaults:
    """What a command has unless its request says otherwise."""

    env: Mapping[str, str]
    cwd: str
    user: GuestUser
    #: Variables whose values are secrets.
    secret_env: Mapping[str, SecretValue] = field(default_factory=dict)
    #: Finds the sandbox's secrets in output; None: it has none, or wants them shown.
    masker: Masker | None = None


class ProcessTable:
    """The commands of one session."""

    def __init__(
        self,
        session: Session,
        defaults: CommandDefaults,
        size: MachineSize,
        use: Use,
        saved: Collection[SavedProcess] = (),
    ) -> None:
        self._session = session
        self._defaults = defaults
        self._size = size
        self._use = use
        self._processes: dict[int, SandboxProcess] = {
            each.id: SandboxProcess.restored(session.processes[each.id], each, size, use, defaults.masker)
            for each in saved
            if each.id in session.processes  # a command that was being closed is gone
        }

    def all(self) -> tuple[SandboxProcess, ...]:
        """Return every command, in the order of their starts."""
        return tuple(self._processes.values())

    def get(self, process_id: int) -> SandboxProcess:
        """Return one command. Raises ProcessNotFound."""
        found = self._processes.get(process_id)
        if found is None:
            raise ProcessNotFound(f"the sandbox has no command {process_id}, or has forgotten it")
        return found

    async def start(self, request: ProcessRequest) -> SandboxProcess:
        """Start a command. Raises CommandFailed, TooManyChannels, ChannelBroken, InvalidOption, MachineError."""
        command = self._command(request)
        has_input = request.stdin != b""
        started = await self._session.start(command, terminal=_size(request.terminal), has_input=has_input)
        found = SandboxProcess(started, request, command.cwd, self._size, self._use, self._defaults.masker)
        self._processes[found.id] = found
        self._share_output()
        await self._forget_oldest()
        return found

    async def forget(self, process_id: int) -> None:
        """Kill a command if it runs, and forget it. Raises ProcessNotFound, ChannelBroken, MachineError."""
        found = self.get(process_id)
        del self._processes[process_id]
        await found.close()

    async def restart(self, process_id: int) -> SandboxProcess:
        """Forget a command, and start it again as it was started. Raises what `forget` and `start` raise."""
        request = self.get(process_id).request
        await self.forget(process_id)
        return await self.start(request)

    async def stop(self, reason: str) -> None:
        """End the tasks of all commands, when the session is over for this reason."""
        await asyncio.gather(*(each.stop(reason) for each in self._processes.values()))

    def suspend(self) -> None:
        """Keep what the session's commands wrote: the session is about to end, and the commands go on."""
        for each in self._processes.values():
            each.suspend()

    async def suspended(self) -> None:
        """Wait until everything that the ended session received is kept."""
        await asyncio.gather(*(each.suspended() for each in self._processes.values()))

    def saved(self) -> list[SavedProcess]:
        """Return what is kept of the commands beside their machine."""
        return [each.saved() for each in self._processes.values()]

    def attach(self, session: Session) -> None:
        """Go on in a new session of the same machine."""
        self._session = session
        for each in self._processes.values():
            each.resume(session.processes.get(each.id))

    def _command(self, request: ProcessRequest) -> Command:
        for text in (*request.args, *request.env, *request.env.values(), request.cwd or ""):
            check_string(text, "args, env or cwd")
        defaults, user = self._defaults, check_user(request.user, self._defaults.user)
        secret_env = {name: value for name, value in defaults.secret_env.items() if name not in request.env}
        return Command(
            argv=request.args,
            env={**defaults.env, **request.env},
            secret_env=secret_env,
            cwd=request.cwd or defaults.cwd,
            uid=user.uid,
            gid=user.gid,
        )

    def _share_output(self) -> None:
        """Give each command its share of the output that is kept; a share becomes smaller with the next output."""
        share = max(_MIN_OUTPUT_BYTES, min(MAX_KEPT_BYTES, _MAX_OUTPUT_BYTES // len(self._processes)))
        for each in self._processes.values():
            each.output.max_bytes = share

    async def _forget_oldest(self) -> None:
        # How a context died is kept: otherwise a new one would take its place, and its variables would be missing.
        ended = [each for each in self._processes.values() if each.has_ended and each.request.context is None]
        for each in ended[: max(0, len(ended) - _MAX_ENDED)]:
            if self._processes.pop(each.id, None) is not None:
                await each.forget()


def _size(size: TerminalSize | None) -> process.TerminalSize | None:
    return None if size is None else process.TerminalSize(size.columns, size.rows)
