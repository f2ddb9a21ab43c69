"""Cursors of listings: a time and an id in one opaque string."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from datetime import UTC, datetime

from belljar.model.errors import InvalidRequest

#: A page of large entries ends early: a job or a sandbox may have a megabyte of arguments or variables.
_PAGE_CHARACTERS = 2 * 1024 * 1024


def encode(at: datetime, name: str) -> str:
    """Return the cursor after the entry with this time and name."""
    return base64.urlsafe_b64encode(f"{at.isoformat()} {name}".encode()).decode().rstrip("=")


def decode(cursor: str) -> tuple[datetime, str]:
    """Return the time and the name of a cursor. Raises InvalidRequest for an invalid one."""
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
        at, _, name = text.partition(" ")
        return datetime.fromisoformat(at).astimezone(UTC), name
    except (ValueError, binascii.Error, OverflowError):
        raise InvalidRequest("invalid cursor; use next_cursor from the previous page") from None


def page_length(lengths: Sequence[int]) -> int:
    """Return how many entries of these lengths fit into a page: at least one."""
    total = 0
    for count, length in enumerate(lengths):
        total += length
        if total > _PAGE_CHARACTERS:
            return max(1, count)
    return len(lengths)
