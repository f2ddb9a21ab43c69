"""Identifiers that sort by creation time: ULIDs with a prefix for the kind.

Source: the ULID specification (48 bits of milliseconds, 80 random bits, Crockford's base 32).
"""

from __future__ import annotations

import re
import secrets
import threading
import time
from datetime import datetime

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_JOB_ID = re.compile(r"job_[0-9A-HJKMNP-TV-Z]{26}\Z")
_lock = threading.Lock()
_last = 0


def new_id(prefix: str) -> str:
    """Return a new id PREFIX_ULID, greater than every earlier one of this process."""
    global _last
    with _lock:
        value = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
        _last = value = max(value, _last + 1)
    return _id(prefix, value)


def first_id(prefix: str, at: datetime) -> str:
    """Return an id that sorts before those that were made at that time or later, and after those of before."""
    return _id(prefix, max(0, int(at.timestamp() * 1000)) << 80)


def _id(prefix: str, value: int) -> str:
    digits = [_ALPHABET[value >> shift & 31] for shift in range(125, -5, -5)]
    return f"{prefix}_{''.join(digits)}"


def is_job_id(text: str) -> bool:
    """Return whether `text` has the form of a job's id; other text is never looked up or used in a path."""
    return bool(_JOB_ID.match(text))
