"""What is kept of a session's commands beside their machine while that is frozen: the host's half of the session."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

from pydantic import TypeAdapter, ValidationError

from belljar.model.log_stream import LogStream
from belljar.model.sandbox_errors import SnapshotUnusable
from belljar.model.sandbox_values import ProcessExit, ProcessInfo, ProcessOutput, ProcessRequest
from belljar.model.value import Value


class SavedOutput(Value):
    """A piece of output that was kept, in base64."""

    stream: LogStream
    offset: int
    data: str


class SavedProcess(Value):
    """One command as it was when its machine was frozen."""

    id: int
    cwd: str
    requested: ProcessRequest
    started_at: datetime
    elapsed_seconds: float
    """How long it had run, without the time that its machine was frozen before."""
    exit: ProcessExit | None
    stdin: str | None
    """Input that was given with the command and not sent yet, in base64."""
    stdout_bytes: int
    stderr_bytes: int
    output: tuple[SavedOutput, ...]

    @classmethod
    def of(
        cls,
        info: ProcessInfo,
        *,
        elapsed_seconds: float,
        request: ProcessRequest,
        stdin: bytes | None,
        pieces: Iterable[ProcessOutput],
    ) -> SavedProcess:
        """Return what is kept of a command."""
        return cls(
            id=info.id,
            cwd=info.cwd,
            requested=replace(request, stdin=None),
            started_at=info.started_at,
            elapsed_seconds=elapsed_seconds,
            exit=info.exit,
            stdin=None if stdin is None else base64.b64encode(stdin).decode(),
            stdout_bytes=info.stdout_bytes,
            stderr_bytes=info.stderr_bytes,
            output=tuple(
                SavedOutput(stream=each.stream, offset=each.offset, data=base64.b64encode(each.data).decode())
                for each in pieces
            ),
        )

    def request(self) -> ProcessRequest:
        """Return the request with the input that is not sent yet."""
        return replace(self.requested, stdin=None if self.stdin is None else base64.b64decode(self.stdin))

    def written(self) -> dict[LogStream, int]:
        """Return the bytes of each stream until then."""
        return {LogStream.STDOUT: self.stdout_bytes, LogStream.STDERR: self.stderr_bytes}

    def pieces(self) -> Iterable[ProcessOutput]:
        """Return the output that was kept."""
        return (ProcessOutput(each.stream, each.offset, base64.b64decode(each.data)) for each in self.output)


_PROCESSES = TypeAdapter(tuple[SavedProcess, ...])


def encode_processes(processes: Iterable[SavedProcess]) -> bytes:
    """Return the commands as they are stored."""
    return _PROCESSES.dump_json(tuple(processes))


def parse_processes(data: bytes) -> tuple[SavedProcess, ...]:
    """Return stored commands. Raises SnapshotUnusable."""
    try:
        return _PROCESSES.validate_json(data)
    except ValidationError:
        raise SnapshotUnusable("the list of the snapshot's commands cannot be read; delete it") from None
