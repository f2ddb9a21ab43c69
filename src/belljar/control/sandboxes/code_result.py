"""What came of a run of code, as one value: for callers that do not follow its events."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from belljar.control.sandboxes.code_run import Event
from belljar.model.sandbox_errors import ContextDied

#: What of each stream the error has when the context died.
_MAX_TAIL = 16 * 1024


@dataclass(slots=True)
class CodeResult:
    """The events of a run, each stream of text up to a limit."""

    max_bytes: int
    streams: dict[str, bytearray] = field(default_factory=lambda: {"stdout": bytearray(), "stderr": bytearray()})
    truncated: set[str] = field(default_factory=set)
    results: list[dict[str, Any]] = field(default_factory=list)
    error: dict[str, Any] | None = None
    end: dict[str, Any] = field(default_factory=dict)

    def add(self, event: Event) -> None:
        """Add one event."""
        if event.kind in self.streams:
            self._add_text(event.kind, event.data["text"].encode())
        elif event.kind == "result":
            self.results.append(event.data)
        elif event.kind == "error":
            self.error = event.data
        else:
            self.end = event.data

    def _add_text(self, stream: str, data: bytes) -> None:
        kept = self.streams[stream]
        room = self.max_bytes - len(kept)
        if len(data) > room:
            self.truncated.add(stream)
        kept += data[:room]

    def public(self) -> dict[str, Any]:
        """Return the result as the API shows it."""
        fields: dict[str, Any] = {}
        for stream, data in self.streams.items():
            # A character that the limit cut is left out.
            fields[stream] = data.decode(errors="ignore")
            fields[f"{stream}_truncated"] = stream in self.truncated or bool(self.end.get("output_dropped"))
        end = {name: value for name, value in self.end.items() if name != "output_dropped"}
        return {**fields, "results": self.results, "error": self.error, **end}

    def tails(self) -> dict[str, str]:
        """Return the ends of both streams."""
        return {name: data[-_MAX_TAIL:].decode(errors="replace") for name, data in self.streams.items()}


async def collect_run(events: AsyncGenerator[Event, None], max_bytes: int) -> CodeResult:
    """Collect the events of a run. Raises what they raise; ContextDied has the output until then."""
    result = CodeResult(max_bytes)
    try:
        async with contextlib.aclosing(events):
            async for event in events:
                result.add(event)
    except ContextDied as error:
        error.details.update(result.tails())
        raise
    return result
