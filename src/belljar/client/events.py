"""Parses server-sent events from the lines of a stream."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

#: The server sends output in pieces far below this.
_MAX_DATA_BYTES = 16 << 20


class MalformedEvent(Exception):
    """The stream holds something else than events with JSON data."""


@dataclass(frozen=True)
class Event:
    """One event: its name, its JSON object and its id, to resume after it."""

    name: str
    data: dict[str, Any]
    id: str | None = None


@dataclass
class EventParser:
    """Collects lines to events."""

    _name: str = "message"
    _id: str | None = None
    _data: list[bytes] = field(default_factory=list)
    _size: int = 0

    def feed(self, line: bytes) -> Event | None:
        """Take a line without its end; return the event that it ends. Raises MalformedEvent."""
        line = line.removesuffix(b"\r")
        if not line:
            return self._end()
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"event":
            self._name = value.decode(errors="replace")
        elif name == b"id":
            self._id = value.decode(errors="replace")
        elif name == b"data":
            self._size += len(value)
            if self._size > _MAX_DATA_BYTES:
                raise MalformedEvent("an event is over 16 MiB")
            self._data.append(value)
        return None

    def _end(self) -> Event | None:
        name, event_id, data = self._name, self._id, b"\n".join(self._data)
        self._name, self._id, self._size = "message", None, 0
        self._data.clear()
        if not data:
            return None
        try:
            content = json.loads(data)
        except (ValueError, RecursionError):
            raise MalformedEvent("an event is not JSON") from None
        if not isinstance(content, dict):
            raise MalformedEvent("an event is no JSON object")
        return Event(name, content, event_id)
