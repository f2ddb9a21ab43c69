"""The name in the first bytes that a machine sends on a connection: of a TLS ClientHello, or an HTTP request's Host.

The guest writes these bytes: a name is what it claims, and may be a lie. Pure functions over hostile input: no
exception, no backtracking, no name but of letters, digits, dots, hyphens and underscores. Sources: RFC 8446 (4.1.2),
RFC 6066 (3), RFC 9112 (3.2).
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,62})?(\.[a-z0-9_]([a-z0-9_-]{0,62})?)*\Z")
_REQUEST_LINE = re.compile(rb"[A-Z]{3,16} [\x21-\x7e]+ HTTP/1\.[01]\r?\n")
_HOST = re.compile(rb"\nhost:[ \t]*([^\r\n]{1,300}?)[ \t]*\r?\n", re.IGNORECASE)
_HANDSHAKE, _CLIENT_HELLO, _SERVER_NAME, _HOST_NAME = 22, 1, 0, 0


class _OutOfBytes(Exception):
    """The payload ends before the field does."""


class _Reader:
    """Reads fields one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, length: int) -> bytes:
        """Return the next bytes. Raises _OutOfBytes."""
        field = self._data[self._at : self._at + length]
        if len(field) < length:
            raise _OutOfBytes
        self._at += length
        return field

    def skip(self, length: int) -> None:
        """Pass over the next bytes, which may be missing: the next field is, then."""
        self._at += length

    def number(self, length: int) -> int:
        """Return the next bytes as a number. Raises _OutOfBytes."""
        return int.from_bytes(self.take(length), "big")


class ClaimedName(NamedTuple):
    """A name that the guest named itself, and where."""

    source: Literal["tls", "http"]
    name: str


def claimed_name(payload: bytes) -> ClaimedName | None:
    """Return the name in the first payload of a connection; None when it has no valid one."""
    if payload[:1] == bytes([_HANDSHAKE]):
        try:
            name = _server_name(_Reader(payload))
        except _OutOfBytes:  # cut off, or no ClientHello at all
            return None
        return ClaimedName("tls", name) if name is not None else None
    if _REQUEST_LINE.match(payload) is None:
        return None
    head, end, _ = payload.partition(b"\r\n\r\n")
    host = _HOST.search(head + end)
    name = _valid_name(host.group(1).partition(b":")[0]) if host is not None else None
    return ClaimedName("http", name) if name is not None else None


def _server_name(reader: _Reader) -> str | None:
    """Return the name in a TLS record with a ClientHello, of which the end may be missing. Raises _OutOfBytes."""
    reader.skip(5)  # of the record: type, version, length
    if reader.number(1) != _CLIENT_HELLO:
        return None
    reader.skip(3 + 2 + 32)  # length, version, random
    reader.skip(reader.number(1))  # session
    reader.skip(reader.number(2))  # cipher suites
    reader.skip(reader.number(1))  # compression methods
    reader.skip(2)
    while True:
        kind, length = reader.number(2), reader.number(2)
        if kind != _SERVER_NAME:
            reader.skip(length)
            continue
        reader.skip(2)
        if reader.number(1) != _HOST_NAME:
            return None
        return _valid_name(reader.take(reader.number(2)))


def _valid_name(wire: bytes) -> str | None:
    """Return a host name in lower case without its trailing dot; None for anything else."""
    try:
        name = wire.decode("ascii").lower().removesuffix(".")
    except UnicodeDecodeError:
        return None
    return name if _NAME.match(name) else None
