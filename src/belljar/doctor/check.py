"""The result of one check of this host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check: what was found, why a problem matters and how to fix it."""

    name: str
    level: Level
    message: str
    #: A command or a sentence; empty for `ok`.
    fix: str = ""
    #: Why it matters; empty for `ok`, or when the message says it.
    why: str = ""


def check_that(name: str, ok: bool, good: str, bad: str, *, fix: str, why: str = "", level: Level = "warn") -> Check:
    """Return an `ok` check with the message `good`, or one of `level` with the message `bad`."""
    return Check(name, "ok", good) if ok else Check(name, level, bad, fix, why)
