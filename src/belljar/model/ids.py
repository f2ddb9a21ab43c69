"""Identifiers that sort by the time they were made: ULIDs with a prefix that says what they name.

Source: the ULID specification (48 bits of milliseconds, 80 random bits, Crockford's base 32).
"""

from __future__ import annotations

import re
import secrets
import threading
import time

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_JOB_ID = re.compile(r"job_[0-9A-HJKMNP-TV-Z]{26}\Z")
_lock = threading.Lock()
_last = 0


def new_id(prefix: str) -> str:
    """PREFIX_ULID; within one process each is greater than the one before."""
    global _last
    with _lock:
        value = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
        _last = value = max(value, _last + 1)
    digits = [_ALPHABET[value >> shift & 31] for shift in range(125, -5, -5)]
    return f"{prefix}_{''.join(digits)}"


def is_job_id(text: str) -> bool:
    """Whether `text` could name a job; what could not is never looked up or made into a path."""
    return bool(_JOB_ID.match(text))
