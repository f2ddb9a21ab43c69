"""One finding about this host, as `belljar doctor` prints it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """What was found; when it is not well, why that matters and how it is mended."""

    name: str
    level: Level
    message: str
    #: A command or a sentence, empty when all is well.
    fix: str = ""
    #: Why it matters, empty when all is well or the message says it.
    why: str = ""


def either(name: str, well: bool, good: str, bad: str, *, fix: str, why: str = "", level: Level = "warn") -> Check:
    """The one message or the other."""
    return Check(name, "ok", good) if well else Check(name, level, bad, fix, why)
