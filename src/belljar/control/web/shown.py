"""How values look on pages: times, durations, sizes, and text that others wrote.

Templates escape everything. What escaping leaves is text that looks like something else: control characters and
right-to-left overrides. `visible` replaces them with their code points.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup

from belljar.control.projects.scopes import Scope
from belljar.model.sandbox import SandboxStatus
from belljar.model.states import Status

#: Categories of characters that are not seen: controls, formats (right-to-left overrides), surrogates, unassigned.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
#: Parts of emoji and of scripts that join letters.
_JOINERS = frozenset({"\u200c", "\u200d"})
_MAX_CHARACTERS = 500
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
#: The look of each status: a class of the style sheet.
_TONES: Mapping[str, str] = {
    Status.QUEUED: "waiting",
    Status.STARTING: "active",
    Status.RUNNING: "active",
    Status.SUCCEEDED: "good",
    Status.FAILED: "bad",
    Status.TIMED_OUT: "bad",
    Status.CANCELLED: "muted",
    Status.LOST: "bad",
    SandboxStatus.CREATING: "waiting",
    SandboxStatus.PAUSING: "active",
    SandboxStatus.PAUSED: "waiting",
    SandboxStatus.RESUMING: "active",
}
_numbers = itertools.count(1)


def visible(text: object, limit: int = _MAX_CHARACTERS) -> str:
    """Return text of others on one line: characters that cannot be seen as ⟨U+202E⟩, and at most `limit` of all."""
    given = str(text)
    shown = "".join(_seen(character) for character in given[:limit])
    return shown + "…" if len(given) > limit else shown


def _seen(character: str) -> str:
    if character.isascii() and character.isprintable():
        return character
    if unicodedata.category(character) in _UNSEEN and character not in _JOINERS:
        return f"⟨U+{ord(character):04X}⟩"
    return character


def size(number: float | None) -> str:
    """Return a number of bytes with its unit: `1.4 MiB`."""
    if number is None:
        return "–"
    for unit in _UNITS[:-1]:
        if abs(number) < 1024:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} {_UNITS[-1]}"


def megabytes(number: float | None) -> str:
    """Return a number of MiB with the unit that fits."""
    return size(None if number is None else number * 1024 * 1024)


def milliseconds(number: float | None) -> str:
    """Return a duration in milliseconds with the unit that fits: `84 ms`, `1.2 s`, `3 min 5 s`."""
    if number is None:
        return "–"
    if number < 10:
        return f"{number:.1f} ms"
    if number < 999.5:
        return f"{number:.0f} ms"
    seconds = number / 1000
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def between(start: datetime | None, end: datetime | None) -> str:
    """Return how long it is from one time to another, or to now."""
    if start is None:
        return "–"
    return milliseconds(max(0.0, ((end or datetime.now(UTC)) - start).total_seconds() * 1000))


def duration(seconds: float | None) -> str:
    """Return a duration in seconds with the unit that fits."""
    return milliseconds(None if seconds is None else seconds * 1000)


def ago(at: datetime | None) -> Markup:
    """Return an element that says how long ago a time was, and exactly when."""
    if at is None:
        return Markup("never")
    return Markup('<time datetime="{}" title="{}">{}</time>').format(at.isoformat(), exact(at), age(at))


def age(at: datetime) -> str:
    """Return how long ago a time was: `just now`, `3 min ago`, `2 d ago`."""
    seconds = (datetime.now(UTC) - at).total_seconds()
    for length, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{int(seconds // length)} {unit} ago"
    return "just now" if seconds < 5 else f"{int(seconds)} s ago"


def until(at: datetime | None) -> Markup:
    """Return an element that says how long it is to a time, such as `in 3 min`, and exactly when."""
    if at is None:
        return Markup("never")
    seconds = (at - datetime.now(UTC)).total_seconds()
    text = f"in {milliseconds(seconds * 1000)}" if seconds >= 1 else age(at)
    return Markup('<time datetime="{}" title="{}">{}</time>').format(at.isoformat(), exact(at), text)


def unique(prefix: str) -> str:
    """Return an id for an element, which no other element of a page has."""
    return f"{prefix}-{next(_numbers)}"


def exact(at: datetime | None) -> str:
    """Return a time in UTC to the second."""
    return "–" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def count(number: float) -> str:
    """Return a whole number with separated thousands: `12 304`, with thin spaces."""
    return f"{number:,.0f}".replace(",", "\u2009")


def tone(status: Status | str) -> str:
    """Return the class of the style sheet for a status."""
    return _TONES.get(status, "muted")


def words(name: str) -> str:
    """Return the name of a state or a phase as words: `timed out`."""
    return name.replace("_", " ")


FILTERS: Mapping[str, Any] = {
    "visible": visible,
    "size": size,
    "bytes": size,
    "megabytes": megabytes,
    "milliseconds": milliseconds,
    "duration": duration,
    "ago": ago,
    "until": until,
    "exact": exact,
    "stamp": exact,
    "count": count,
    "tone": tone,
    "words": words,
}
GLOBALS: Mapping[str, Any] = {"between": between, "unique": unique, "Scope": Scope}
