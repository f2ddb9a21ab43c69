"""Where a listing goes on: a moment and an id, as one opaque word."""

from __future__ import annotations

import base64
import binascii
from datetime import UTC, datetime

from belljar.model.errors import InvalidRequest


def encode(at: datetime, name: str) -> str:
    """The cursor behind the entry with that moment and name."""
    return base64.urlsafe_b64encode(f"{at.isoformat()} {name}".encode()).decode().rstrip("=")


def decode(cursor: str) -> tuple[datetime, str]:
    """What `encode` was given. Raises InvalidRequest for anything else."""
    try:
        words = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
        at, _, name = words.partition(" ")
        return datetime.fromisoformat(at).astimezone(UTC), name
    except (ValueError, binascii.Error, OverflowError):
        raise InvalidRequest("the cursor is not one of ours; use the next_cursor of the page before") from None
