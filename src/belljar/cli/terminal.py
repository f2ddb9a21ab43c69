"""Shows a job of `belljar run` in this terminal: its output as it comes, notices, and the console on request."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from belljar.cli.passthrough import PassthroughOutput
from belljar.cli.printing import print_message, print_stderr, printable
from belljar.model.job import Artifact, LogInfo
from belljar.node.worker.artifact_folder import FolderArtifacts, NotKept
from belljar.node.worker.local_run import LocalObserver


class DiscardArtifacts:
    """Takes the artifacts of a job whose user named no folder for them."""

    async def begin(self, path: str, size: int) -> None: ...

    async def write(self, data: bytes) -> None: ...

    async def end(self) -> None: ...


class TerminalObserver(LocalObserver):
    """The observer of a job that runs in this terminal. Sets `cancel` when the reader of its output has gone."""

    output: PassthroughOutput

    def __init__(
        self, *, stdout: int, stderr: int, artifacts_dir: Path | None, verbose: bool, cancel: asyncio.Event
    ) -> None:
        """`stdout` and `stderr` are the descriptors that the job's output is written to."""
        super().__init__()
        self._verbose = verbose
        self._cancel = cancel
        self._build_lines = _Lines("build")
        self._folder = FolderArtifacts(artifacts_dir) if artifacts_dir is not None else None
        self.output = PassthroughOutput(stdout, stderr, cancel, self._on_output_closed)
        self.artifacts = self._folder if self._folder is not None else DiscardArtifacts()
        self.output_closed = False

    def notify(self, sentence: str) -> None:
        print_message(sentence)

    def on_build_notice(self, sentence: str) -> None:
        self.notify(sentence)

    def on_build_output(self, data: bytes) -> None:
        if self._verbose:
            self._build_lines.show(data)

    def on_console(self, data: bytes, dropped_bytes: int) -> None:
        if self._verbose:
            _show("console", data)

    def logs(self) -> LogInfo:
        return self.output.info()

    def kept_artifacts(self) -> Sequence[Artifact]:
        return self._folder.kept if self._folder is not None else ()

    def not_kept(self) -> list[NotKept] | None:
        """Return the artifacts that did not arrive whole, after the end of the job; None when none were requested."""
        if self._folder is None:
            return None
        self._folder.abandon("incomplete")
        return self._folder.failed

    def _on_output_closed(self) -> None:
        self.output_closed = True
        self._cancel.set()


def _show(stream: str, data: bytes) -> None:
    for line in data.decode(errors="replace").splitlines():
        print_stderr(f"{stream}| {printable(line)}")


class _Lines:
    """Shows a stream that comes in pieces, line by line."""

    def __init__(self, stream: str) -> None:
        self._stream = stream
        self._rest = b""

    def show(self, data: bytes) -> None:
        whole, newline, self._rest = (self._rest + data).rpartition(b"\n")
        if newline:
            _show(self._stream, whole)
