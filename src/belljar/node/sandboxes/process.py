"""One command of a sandbox: a task takes its output out of the guest, so that any number of callers may read it."""

from __future__ import annotations

import asyncio
import contextlib
import signal as signals
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from belljar.model.errors import MachineError
from belljar.model.log_stream import LogStream
from belljar.model.sandbox_values import ProcessExit, ProcessInfo, ProcessRequest
from belljar.node.guest import wire
from belljar.node.guest.channel import ChannelBroken
from belljar.node.guest.process import Process, ProcessEnded
from belljar.node.guest.usage import clamp_usage
from belljar.node.sandboxes.kept_output import KeptOutput
from belljar.node.sandboxes.masked_output import MaskedOutput
from belljar.node.sandboxes.saved import SavedProcess
from belljar.node.sandboxes.use import Use
from belljar.node.worker.masking import Masker
from belljar.node.worker.outcome import signal_name

_MIB = 1024 * 1024
#: Characters of a command's arguments that are kept to be shown.
_MAX_SHOWN_ARGS = 4096
_STREAMS = {wire.Stream.STDOUT: LogStream.STDOUT, wire.Stream.STDERR: LogStream.STDERR}


@dataclass(frozen=True, slots=True)
class MachineSize:
    """The most that a command can have used: the vCPUs and memory of its machine; and what else the machine has."""

    vcpus: int
    memory_mb: int
    #: Size of its scratch disk; None: it has none.
    disk_mb: int | None = None
    #: Whether it has a network device.
    network: bool = False


class SandboxProcess:
    """A command that runs or has ended. Made once it has started; `close` ends it and everything about it."""

    def __init__(
        self,
        process: Process,
        request: ProcessRequest,
        cwd: str,
        size: MachineSize,
        use: Use,
        masker: Masker | None = None,
        saved: SavedProcess | None = None,
    ) -> None:
        """`masker` finds the secrets of the sandbox; None: it has none.

        `saved`: how it was when its machine was frozen; None: it has just started.
        """
        self.process = process
        self.output = KeptOutput(waits=not request.background or request.context is not None)
        self._masked: MaskedOutput | None = None
        if masker is not None:
            self._masked = MaskedOutput(self.output, masker, terminal=request.terminal is not None)
        #: As it was asked for.
        self.request = request
        self._cwd = cwd
        self._size = size
        self._started_at = datetime.now(UTC)
        self._started = time.monotonic()
        self._exit: ProcessExit | None = None
        if saved is not None:
            self._started_at, self._exit = saved.started_at, saved.exit
            self._started -= saved.elapsed_seconds
            self.output.restore(saved.pieces(), saved.written())
        self._use: Use | None = None
        if not request.background and self._exit is None:
            self._use = use
            use.begin()
        #: Input that was given with the command and is not sent yet; None: nothing is to be sent.
        self._input = request.stdin if saved is not None else request.stdin or None
        self._is_suspended = False
        self._suspended_at = 0.0
        self._has_timed_out = False
        self._begin()

    def _begin(self) -> None:
        self._reading = asyncio.create_task(self._read(), name=f"output of command {self.id}")
        self._feeding = asyncio.create_task(self._feed(self._input)) if self._input is not None else None
        limit = self.request.timeout_seconds if self._exit is None else None
        self._timer = asyncio.create_task(self._end_at(limit)) if limit is not None else None

    @classmethod
    def restored(
        cls, process: Process, saved: SavedProcess, size: MachineSize, use: Use, masker: Masker | None = None
    ) -> SandboxProcess:
        """Return a command of a machine that was frozen, as it was then."""
        return cls(process, saved.request(), saved.cwd, size, use, masker, saved)

    @property
    def id(self) -> int:
        """Its number in the sandbox."""
        return self.process.id

    @property
    def has_ended(self) -> bool:
        """Whether nothing more is expected of it: it has ended, or broke off."""
        return self._reading.done()

    def info(self) -> ProcessInfo:
        """Describe it as it is now."""
        return ProcessInfo(
            id=self.id,
            pid=self.process.pid,
            args=_shown(self.request.args),
            cwd=self._cwd,
            terminal=self.request.terminal is not None,
            background=self.request.background,
            context=self.request.context,
            started_at=self._started_at,
            exit=self._exit,
            stdout_bytes=self.output.written[LogStream.STDOUT],
            stderr_bytes=self.output.written[LogStream.STDERR],
        )

    def suspend(self) -> None:
        """Keep what was received when the session ends; `suspended` waits for it, `resume` goes on."""
        self._is_suspended = True
        self._suspended_at = time.monotonic()
        if self._timer is not None:
            self._timer.cancel()
        self.output.suspend()

    async def suspended(self) -> None:
        """Wait until everything that the ended session received is kept."""
        await asyncio.wait([task for task in (self._reading, self._feeding) if task is not None])
        if self._input is not None:
            self._input = self._input[self.process.sent_bytes :]

    def resume(self, process: Process | None) -> None:
        """Go on in a new session, in which the command is `process`; None: the machine does not have it any more."""
        self._is_suspended = False
        self._started += time.monotonic() - self._suspended_at
        self.output.resume()
        if process is not None:
            self.process = process
        if self._exit is not None:
            return
        if process is not None:
            self._begin()
        else:
            self._end_use()
            self.output.break_off("the machine has no such command any more")

    def saved(self) -> SavedProcess:
        """Return what is kept of it beside the machine while that is frozen."""
        if self._masked is not None:
            self._masked.finish()  # what waited for the rest of a secret is kept as output
        return SavedProcess.of(
            self.info(),
            elapsed_seconds=self._suspended_at - self._started,
            request=self.request,
            stdin=self._input,
            pieces=self.output.pieces(),
        )

    def detach(self) -> None:
        """Let it run on like a background command: nobody reads its output any more, and it is no use."""
        self.output.stop_waiting()
        self._end_use()

    async def kill(self) -> None:
        """Kill it and everything that it started. Raises ChannelBroken, MachineError."""
        if not self.output.has_readers:  # output that nobody reads would hold up its end
            self.detach()
        await self.process.signal(signals.SIGKILL, descendants=True)

    async def close(self) -> None:
        """Kill it if it runs, with what it started, and forget its exit. What it left running before stays.

        Raises ChannelBroken, MachineError.
        """
        self.output.stop_waiting()
        try:
            with contextlib.suppress(ChannelBroken):
                await self.process.close()
        finally:
            await self.stop("the command was forgotten")

    async def forget(self) -> None:
        """Forget the exit of a command that has ended, without waiting for the guest."""
        with contextlib.suppress(ChannelBroken, MachineError):  # the session's end is reported elsewhere
            await self.process.send_close()
        await self.stop("the command was forgotten")

    async def stop(self, reason: str) -> None:
        """End what this process does for it, for this reason; the guest is not told."""
        tasks = [task for task in (self._reading, self._feeding, self._timer) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        self._end_use()
        if self._exit is None:
            self.output.break_off(reason)

    async def _read(self) -> None:
        if self._exit is not None:  # known from before its machine was frozen
            self.output.finish(self._exit)
            return
        try:
            # A new session grants room of its own: what is kept already must be read before more is taken.
            await self.output.wait_room()
            async for piece in self.process.output():
                if self._masked is None:
                    self.output.add(_STREAMS[piece.stream], piece.data)
                else:
                    await self._masked.add(_STREAMS[piece.stream], piece.data)
                await self.output.wait_room()
            if self._masked is not None:
                self._masked.finish()
            self._exit = self._exit_of(await self.process.wait())
            self.output.finish(self._exit)
        except (ChannelBroken, MachineError) as error:
            if not self._is_suspended:
                self.output.break_off(str(error))
        finally:
            if self._timer is not None:
                self._timer.cancel()
            if self._masked is not None:
                self._masked.close()
            if not self._is_suspended or self._exit is not None:
                self._end_use()

    async def _feed(self, data: bytes) -> None:
        """Send the whole input. A command that does not read all of it, or ends meanwhile, misses the rest."""
        with contextlib.suppress(ProcessEnded, ChannelBroken, MachineError):
            await self.process.write(data)
            await self.process.end_input()
            self._input = None

    async def _end_at(self, seconds: float) -> None:
        """Kill it when it has run so long."""
        await asyncio.sleep(max(0.0, self._started + seconds - time.monotonic()))
        if self.process.exited is None:
            self._has_timed_out = True
            with contextlib.suppress(ChannelBroken, MachineError):  # suspended: killed after the resume; or ended
                await self.kill()

    def _end_use(self) -> None:
        if self._use is not None:
            self._use.end()
            self._use = None

    def _exit_of(self, exited: wire.Exited) -> ProcessExit:
        elapsed_seconds = time.monotonic() - self._started
        bounded = clamp_usage(
            exited, elapsed_seconds=elapsed_seconds, vcpus=self._size.vcpus, memory_mb=self._size.memory_mb
        )
        return ProcessExit(
            exit_code=bounded.exit_code,
            signal=signal_name(bounded.signal),
            out_of_memory=bounded.oom_kills > 0,
            timed_out=self._has_timed_out,
            duration_ms=bounded.run_us / 1000,
            cpu_seconds=bounded.cpu_us / 1_000_000,
            max_memory_mb=bounded.max_memory_bytes / _MIB,
        )


def _shown(args: tuple[str, ...]) -> tuple[str, ...]:
    """Return the arguments as they are shown: the first of them, when they are long."""
    shown, left = [], _MAX_SHOWN_ARGS
    for arg in args:
        shown.append(arg[:left])
        left -= len(arg)
        if left <= 0:
            break
    return tuple(shown)
