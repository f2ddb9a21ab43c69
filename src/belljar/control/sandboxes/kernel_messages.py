"""What a kernel sends, parsed as what a hostile guest sends: bounded, strict, never more than data for its caller."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from typing import Any

#: A line of a kernel: a result of 4 MiB, in which each byte may be an escape.
MAX_LINE_BYTES = 8 * 1024 * 1024
#: Longer lines are parsed outside of the event loop.
_THREAD_BYTES = 128 * 1024
#: Values of JSON in one line. Each takes up to a hundred bytes here, and one or two in the line.
MAX_VALUES = 250_000
#: Lines of a kernel that are no messages: each costs time here, and as little as one byte there.
_MAX_UNREADABLE = 1000
#: So few values are not counted exactly.
_FEW_VALUES = 1000
_TEXTS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
_MAX_DEPTH = 64
_MAX_MIME_TYPES = 32
_MAX_NAME = 255
_JSON_TYPES = ("application/json", "+json")


class KernelViolation(Exception):
    """A kernel sent what no kernel of ours sends."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message: its type, the run that it belongs to, and its fields, which are of the types that belong to it."""

    kind: str
    run: str | None
    fields: dict[str, Any]
    #: How many values of JSON its line has.
    values: int = 0


class MessageReader:
    """Collects the output of a kernel to messages."""

    def __init__(self, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._lines = LineReader(max_line_bytes)
        self._unreadable = 0

    async def feed(self, data: bytes) -> AsyncGenerator[tuple[Message, int], None]:
        """Yield the messages that are complete with this output, and the length of each. Raises KernelViolation."""
        for line in self._lines.feed(data):
            message = await parse_message(line)
            if message.kind == "unreadable":
                self._unreadable += 1
                if self._unreadable > _MAX_UNREADABLE:
                    raise KernelViolation(f"over {_MAX_UNREADABLE} lines were no messages")
            yield message, len(line)


class LineReader:
    """Collects the output of a kernel to lines."""

    def __init__(self, max_bytes: int = MAX_LINE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the lines that are complete with this output. Raises KernelViolation."""
        searched = len(self._rest)
        self._rest += data
        start = 0
        while (end := self._rest.find(b"\n", searched)) >= 0:
            yield bytes(self._rest[start:end])
            start = searched = end + 1
        del self._rest[:start]
        if len(self._rest) > self._max_bytes:
            raise KernelViolation(f"a message is over {self._max_bytes} bytes")


async def parse_message(line: bytes) -> Message:
    """Return the message of one line; parse a long one outside of the event loop."""
    return parse(line) if len(line) <= _THREAD_BYTES else await asyncio.to_thread(parse, line)


def parse(line: bytes) -> Message:
    """Return the message of one line. A line that is none is an `unreadable` message.

    Such a line may be user code's, one in which a secret was masked, or one with too many values.
    """
    if (values := count_values(line)) > MAX_VALUES:
        return Message("unreadable", None, {})
    try:
        value = json.loads(line, parse_constant=_refuse)
        if b"\\ud" in line or b"\\uD" in line:  # half a surrogate pair is no text that can be sent on
            value = json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))
        if isinstance(value, dict) and (message := _message(value, values)) is not None:
            return message
    except (ValueError, RecursionError):
        pass
    return Message("unreadable", None, {})


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def count_values(line: bytes) -> int:
    """Return at least how many values the JSON of a line has, before it is parsed; exactly, if they are many."""
    count = _separators(line)
    return count if count < _FEW_VALUES else _separators(_TEXTS.sub(b"", line))


def _separators(line: bytes) -> int:
    return line.count(b",") + line.count(b"[") + line.count(b"{")


def _message(value: dict[str, Any], values: int) -> Message | None:
    kind, run = value.pop("type", None), value.pop("run", None)
    if not isinstance(kind, str) or not (run is None or isinstance(run, str)) or kind not in _CHECKS:
        return None
    return Message(kind, run, value, values) if _CHECKS[kind](value) else None


def _is_text(value: dict[str, Any]) -> bool:
    return value.keys() == {"text"} and isinstance(value["text"], str)


def _is_error(value: dict[str, Any]) -> bool:
    return value.keys() == {"name", "message", "traceback"} and all(isinstance(each, str) for each in value.values())


def _is_ready(value: dict[str, Any]) -> bool:
    return value.keys() == {"version"} and isinstance(value["version"], str) and len(value["version"]) <= _MAX_NAME


def _is_done(value: dict[str, Any]) -> bool:
    count = value.get("execution_count")
    return value.keys() == {"execution_count"} and type(count) is int and 0 <= count < 1 << 53


def _is_result(value: dict[str, Any]) -> bool:
    data = value.get("data")
    if value.keys() != {"data", "is_main"} or type(value["is_main"]) is not bool or not isinstance(data, dict):
        return False
    return len(data) <= _MAX_MIME_TYPES and all(_is_representation(mime, each) for mime, each in data.items())


def _is_representation(mime: str, data: Any) -> bool:
    if not 0 < len(mime) <= _MAX_NAME or not mime.isprintable():
        return False
    return isinstance(data, str) or (mime.endswith(_JSON_TYPES) and _is_shallow(data))


def _is_shallow(value: Any) -> bool:
    """Return whether a JSON value is nested no deeper than the bound, which whoever reads it has to bear."""
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [
            each
            for parent in level
            for each in (parent.values() if isinstance(parent, dict) else parent if isinstance(parent, list) else ())
            if isinstance(each, dict | list)
        ]
        if not level:
            return True
    return False


_CHECKS = {
    "ready": _is_ready,
    "stdout": _is_text,
    "stderr": _is_text,
    "result": _is_result,
    "error": _is_error,
    "done": _is_done,
}
