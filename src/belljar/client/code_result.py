"""What came of code that ran in a context: its output, its results, and what it raised."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from typing import Any, Literal

from belljar.client.errors import CodeFailed, ServerError
from belljar.client.events import Event


@dataclass(frozen=True)
class RichResult:
    """A value as its representations, MIME type → text, bytes in base64, or JSON.

    `is_main`: it is the value of the last expression, not something that was displayed.
    """

    data: dict[str, Any] = field(repr=False)
    is_main: bool

    @property
    def text(self) -> str | None:
        """The plain text: what `repr` returns."""
        return self._text("text/plain")

    @property
    def html(self) -> str | None:
        """The HTML. It comes from untrusted code: show it in a sandboxed frame only."""
        return self._text("text/html")

    @property
    def markdown(self) -> str | None:
        """The Markdown."""
        return self._text("text/markdown")

    @property
    def svg(self) -> str | None:
        """The image as SVG."""
        return self._text("image/svg+xml")

    @property
    def png(self) -> bytes | None:
        """The image as PNG."""
        return self._bytes("image/png")

    @property
    def jpeg(self) -> bytes | None:
        """The image as JPEG."""
        return self._bytes("image/jpeg")

    @property
    def json(self) -> Any:
        """The value as JSON: dicts and lists, and the rows of a table."""
        return self.data.get("application/json")

    @property
    def chart(self) -> list[dict[str, Any]] | None:
        """The data of the charts in a figure: title, labels and series of each."""
        found = self.data.get("application/vnd.belljar.chart+json")
        return found if isinstance(found, list) else None

    def _text(self, mime: str) -> str | None:
        found = self.data.get(mime)
        return found if isinstance(found, str) else None

    def _bytes(self, mime: str) -> bytes | None:
        found = self._text(mime)
        try:
            return None if found is None else base64.b64decode(found, validate=False)
        except (binascii.Error, ValueError):
            return None


@dataclass(frozen=True)
class CodeError:
    """An exception that the code raised, as text."""

    name: str
    message: str
    traceback: str = field(repr=False)


@dataclass(frozen=True)
class CodeEvent:
    """A piece of a run as it comes: exactly one of `text`, `result` and `error` is there."""

    kind: Literal["stdout", "stderr", "result", "error"]
    text: str | None = None
    result: RichResult | None = None
    error: CodeError | None = None


@dataclass(kw_only=True)
class CodeResult:
    """What came of a run."""

    stdout: str = field(default="", repr=False)
    stderr: str = field(default="", repr=False)
    stdout_truncated: bool = False
    stderr_truncated: bool = False
    results: list[RichResult] = field(default_factory=list)
    error: CodeError | None = None
    """What it raised; None if it ran to its end."""
    timed_out: bool = False
    restarted: bool = False
    """Whether the code ignored the interrupt at its timeout: the context was restarted, its variables are lost."""
    execution_count: int | None = None
    fields: dict[str, Any] = field(default_factory=dict, repr=False)
    """All fields of the run's end."""

    @property
    def main(self) -> RichResult | None:
        """The value of the last expression; None if it was None, or the code ends with a statement."""
        return next((each for each in self.results if each.is_main), None)

    @property
    def text(self) -> str | None:
        """The last expression's value as text."""
        return None if self.main is None else self.main.text

    @property
    def json(self) -> Any:
        """The last expression's value as JSON."""
        return None if self.main is None else self.main.json

    @property
    def html(self) -> str | None:
        """The HTML of the last expression's value, else of what was displayed last."""
        return next((each.html for each in self._by_rank() if each.html is not None), None)

    @property
    def svg(self) -> str | None:
        """The SVG of the last expression's value, else of what was displayed last."""
        return next((each.svg for each in self._by_rank() if each.svg is not None), None)

    @property
    def png(self) -> bytes | None:
        """The PNG of the last expression's value, else of what was displayed last, such as a plot."""
        return next((each.png for each in self._by_rank() if each.png is not None), None)

    def check(self) -> CodeResult:
        """Return the result if the code ran to its end. Raises CodeFailed."""
        if self.error is None:
            return self
        raise CodeFailed(f"{self.error.name}: {self.error.message}\n\n{self.error.traceback}".rstrip(), self)

    def _by_rank(self) -> list[RichResult]:
        shown = [each for each in self.results if not each.is_main]
        return [*([] if self.main is None else [self.main]), *shown[::-1]]


class CodeResultBuilder:
    """Collects the events of a run to its result, each stream up to a limit."""

    def __init__(self, max_output_bytes: int) -> None:
        self.result = CodeResult()
        self._room = {"stdout": max_output_bytes, "stderr": max_output_bytes}
        self._pieces: dict[str, list[str]] = {"stdout": [], "stderr": []}

    def add(self, event: CodeEvent) -> None:
        """Add one event."""
        if event.text is not None:
            data = event.text.encode(errors="replace")
            kept = data[: self._room[event.kind]]
            if len(kept) < len(data):
                setattr(self.result, f"{event.kind}_truncated", True)
            self._room[event.kind] -= len(kept)
            self._pieces[event.kind].append(kept.decode(errors="ignore"))
        elif event.result is not None:
            self.result.results.append(event.result)
        elif event.error is not None:
            self.result.error = event.error

    def end(self, fields: dict[str, Any]) -> CodeResult:
        """Add the end, and return the result."""
        result = self.result
        result.stdout, result.stderr = "".join(self._pieces["stdout"]), "".join(self._pieces["stderr"])
        result.timed_out, result.restarted = bool(fields.get("timed_out")), bool(fields.get("restarted"))
        result.execution_count, result.fields = fields.get("execution_count"), fields
        return result


def code_event(event: Event) -> CodeEvent:
    """Return an event of a run as a value. Raises ServerError for one that is malformed."""
    data = event.data
    try:
        if event.name == "stdout":
            return CodeEvent("stdout", text=str(data["text"]))
        if event.name == "stderr":
            return CodeEvent("stderr", text=str(data["text"]))
        if event.name == "result":
            return CodeEvent("result", result=RichResult(dict(data["data"]), bool(data["is_main"])))
        if event.name == "error":
            fields = str(data["name"]), str(data["message"]), str(data["traceback"])
            return CodeEvent("error", error=CodeError(*fields))
    except (KeyError, TypeError, ValueError):
        pass
    raise ServerError(200, "not_belljar", f"the run has a malformed event {event.name[:40]!r}")
