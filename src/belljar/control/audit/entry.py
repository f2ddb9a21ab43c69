"""Entries of the audit log, and how they are written down. Never contains secrets, code, environments or input.

The canonical encoding of a record is what its hash is made of, and what an export contains. Both sides of a
verification use this module.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from belljar.control.projects.key_format import IN_TEXT as KEY_IN_TEXT

#: The action of the row that records a removal by retention.
PRUNE = "audit.prune"
#: Maximum length of a name, an id or a value; longer ones are cut.
MAX_TEXT = 200
_MAX_SEARCHED = 4096
#: Maximum number of details of one entry, and of values in a list.
_MAX_DETAILS = 32
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: Fields of a record that its own hash does not cover.
HASHES = ("previous_hash", "hash")


class ActorKind(StrEnum):
    """Who acts."""

    KEY = "key"
    PERSON = "person"
    #: A user of the server's host, with commands on the data folder.
    OPERATOR = "operator"
    #: belljar itself.
    SYSTEM = "system"
    #: A request without a valid key.
    ANONYMOUS = "anonymous"


class Outcome(StrEnum):
    """What became of the action."""

    SUCCEEDED = "succeeded"
    #: The server refused it; nothing changed.
    REFUSED = "refused"
    #: It failed in the server; what it had changed before may remain.
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Actor:
    """Who acts: the kind, the id of the key or person, and a name to show."""

    kind: ActorKind
    id: str | None = None
    name: str | None = None


SYSTEM = Actor(kind=ActorKind.SYSTEM, id="belljar")
ANONYMOUS = Actor(kind=ActorKind.ANONYMOUS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A place in the chain: the number of a row and its hash."""

    seq: int
    hash: bytes

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash.hex()}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """What is to be recorded; the log adds its number, its time and its hashes."""

    actor: Actor
    action: str
    outcome: Outcome = Outcome.SUCCEEDED
    project: str | None = None
    #: Id or name of what the action changes.
    object: str | None = None
    #: Address of the client; None for what did not come over the network.
    address: str | None = None
    request_id: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


def values_of(entry: Entry) -> dict[str, Any]:
    """Return the entry's fields as bounded text: what is stored, and what is hashed."""
    return {
        "actor_kind": str(entry.actor.kind),
        "actor_id": bounded(entry.actor.id),
        "actor_name": bounded(entry.actor.name),
        "project": bounded(entry.project),
        "action": bounded(entry.action),
        "object": bounded(entry.object),
        "address": bounded(entry.address),
        "request_id": bounded(entry.request_id),
        "outcome": str(entry.outcome),
        "details": _dumped(_details(entry.details)),
    }


def record_of(seq: Any, at_us: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record that is exported, without its hashes; any value that somebody put into the row is kept."""
    actor = {"kind": values["actor_kind"], "id": values["actor_id"], "name": values["actor_name"]}
    try:
        details = json.loads(values["details"])
    except (ValueError, TypeError, RecursionError):
        details = str(values["details"])
    return {
        "seq": seq,
        "at": time_text(at_us),
        "actor": actor,
        **{name: values[name] for name in ("project", "action", "object", "address", "request_id", "outcome")},
        "details": details,
    }


def hash_of(previous: bytes, record: Mapping[str, Any]) -> bytes:
    """Return the hash of a record after the record with the hash `previous`.

    It is the sha256 of that hash (32 bytes) and the record without its hashes: JSON with sorted keys, without spaces,
    in ASCII.
    """
    content = {name: value for name, value in record.items() if name not in HASHES}
    return hashlib.sha256(previous + _dumped(content).encode()).digest()


def time_text(at_us: Any) -> Any:
    """Return a time in microseconds since 1970 as text; what is no time is returned unchanged."""
    if not isinstance(at_us, int):
        return at_us
    try:
        text = (_EPOCH + timedelta(microseconds=at_us)).isoformat(timespec="microseconds")
        return text.replace("+00:00", "Z")
    except OverflowError:
        return at_us


def bounded(text: str | None) -> str | None:
    """Return text that a database can store: cut to `MAX_TEXT`, without NUL, half surrogates and keys."""
    if text is None:
        return None
    if "bj_" in text:
        text = KEY_IN_TEXT.sub("bj_HIDDEN", text[:_MAX_SEARCHED])
    return text[:MAX_TEXT].replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


def _details(details: Mapping[str, Any]) -> dict[str, Any]:
    kept = list(details.items())[:_MAX_DETAILS]
    return {str(name)[:MAX_TEXT]: _detail(value) for name, value in kept if value is not None}


def _detail(value: Any) -> Any:
    if isinstance(value, bool | int):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        return [bounded(str(each)) for each in list(value)[:_MAX_DETAILS]]
    return bounded(str(value))


def _dumped(value: Any) -> str:
    return _ENCODER.encode(value)
