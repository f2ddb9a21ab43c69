"""The result of a command in a sandbox, and a piece of its output."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from belljar.client.errors import CommandFailed

_TAIL_CHARACTERS = 2000


@dataclass(frozen=True)
class ProcessOutput:
    """Bytes of a command's output. `offset` counts the bytes of the stream before them: a gap was not kept."""

    stream: Literal["stdout", "stderr"]
    data: bytes
    offset: int

    @property
    def text(self) -> str:
        """The bytes as text; a character that is cut in two becomes U+FFFD."""
        return self.data.decode(errors="replace")


@dataclass(frozen=True, kw_only=True)
class CommandResult:
    """How a command ended, and its output."""

    exit_code: int | None
    """None if a signal ended it."""
    signal: str | None
    timed_out: bool
    stdout_bytes: bytes = field(repr=False)
    stderr_bytes: bytes = field(repr=False)
    stdout_truncated: bool
    stderr_truncated: bool
    fields: dict[str, Any] = field(repr=False)
    """All fields of the process."""

    @property
    def stdout(self) -> str:
        """Standard output as text."""
        return self.stdout_bytes.decode(errors="replace")

    @property
    def stderr(self) -> str:
        """Standard error as text."""
        return self.stderr_bytes.decode(errors="replace")

    def check(self) -> CommandResult:
        """Return the result if the command exited with 0. Raises CommandFailed."""
        if self.exit_code == 0:
            return self
        reason = "timed out" if self.timed_out else f"exit code {self.exit_code}"
        if self.signal is not None and not self.timed_out:
            reason = f"signal {self.signal}"
        tail = self.stderr[-_TAIL_CHARACTERS:].strip()
        raise CommandFailed(f"the command failed: {reason}" + (f"\n\nstderr:\n{tail}" if tail else ""), self)
