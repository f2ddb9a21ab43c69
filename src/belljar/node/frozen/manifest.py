"""The manifest of a frozen machine: which pieces its parts consist of, where they lie, and what they must contain.

A part is the memory, a disk, or what the host knew of the session. It is divided into pieces of one size; a piece is
named by the sha256 of its contents. Pieces of zeros are not stored. Pieces lie in packs: one file for each freezing,
with the pieces that it added. A manifest that was cut off or altered is refused, never used in part.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from belljar.model.sandbox_errors import SnapshotUnusable

PIECE_BYTES = 64 * 1024
_MAGIC = b"belljar frozen 1\n"
_LENGTH = struct.Struct("<I")
#: Index of the piece, number of its pack, offset in the pack, sha256.
_ENTRY = struct.Struct("<IIQ32s")
_DIGEST_BYTES = 32
#: Larger than any part of a machine that this host could run.
_MAX_PART_BYTES = 1 << 46
_MAX_HEADER_BYTES = 1 << 20
_ID = re.compile(r"snap_[0-9A-HJKMNP-TV-Z]{26}\Z")


@dataclass(frozen=True, slots=True)
class Piece:
    """The place of a piece: the pack, by the id of the freezing that wrote it, and the offset in it."""

    pack: str
    offset: int
    sha256: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """The contents of one memory or disk. An index without a piece is all zeros."""

    size: int
    pieces: Mapping[int, Piece] = field(default_factory=dict)

    def length(self, index: int) -> int:
        """Return the bytes of a piece: the last one may be shorter."""
        return min(PIECE_BYTES, self.size - index * PIECE_BYTES)


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """One frozen machine."""

    id: str
    #: JSON values for whoever resumes it: the hypervisor, the shape, the image.
    about: Mapping[str, Any]
    parts: Mapping[str, Part]

    def packs(self) -> frozenset[str]:
        """Return the packs that its pieces lie in."""
        return frozenset(piece.pack for part in self.parts.values() for piece in part.pieces.values())

    def stored_bytes(self) -> int:
        """Return the bytes of its pieces, each counted once."""
        places = {
            (piece.pack, piece.offset): part.length(index)
            for part in self.parts.values()
            for index, piece in part.pieces.items()
        }
        return sum(places.values())

    def encode(self) -> bytes:
        """Return the manifest as it is stored."""
        packs = {pack: number for number, pack in enumerate(sorted(self.packs()))}
        parts = {name: {"size": part.size, "pieces": len(part.pieces)} for name, part in self.parts.items()}
        header = json.dumps({"id": self.id, "about": self.about, "packs": list(packs), "parts": parts}).encode()
        entries = (
            _ENTRY.pack(index, packs[piece.pack], piece.offset, piece.sha256)
            for part in self.parts.values()
            for index, piece in sorted(part.pieces.items())
        )
        data = _MAGIC + _LENGTH.pack(len(header)) + header + b"".join(entries)
        return data + hashlib.sha256(data).digest()


def is_frozen_id(text: str) -> bool:
    """Return whether `text` has the form of a frozen machine's id; other text is never used in a path."""
    return bool(_ID.match(text))


def parse_manifest(data: bytes) -> Manifest:
    """Return the manifest of its stored form. Raises SnapshotUnusable."""
    body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest or not body.startswith(_MAGIC):
        raise SnapshotUnusable("the list of the snapshot's pieces is truncated or altered; delete it")
    try:
        return _parse(body)
    except (ValueError, KeyError, TypeError, IndexError, struct.error) as error:
        raise SnapshotUnusable(f"the list of the snapshot's pieces cannot be read ({error}); delete it") from None


def _parse(body: bytes) -> Manifest:
    (length,) = _LENGTH.unpack_from(body, len(_MAGIC))
    if length > _MAX_HEADER_BYTES:
        raise ValueError("its header is too long")
    start = len(_MAGIC) + _LENGTH.size
    header = json.loads(body[start : start + length])
    packs = header["packs"]
    for name in (header["id"], *packs):
        if not is_frozen_id(name):
            raise ValueError(f"{name!r:.60} is no id")
    entries = _ENTRY.iter_unpack(body[start + length :])
    parts = {}
    for name, described in header["parts"].items():
        part = Part(size=described["size"], pieces=_pieces(entries, described["pieces"], packs))
        if not 0 <= part.size <= _MAX_PART_BYTES or any(index * PIECE_BYTES >= part.size for index in part.pieces):
            raise ValueError(f"a piece lies beyond the end of {name!r:.20}")
        parts[name] = part
    if next(entries, None) is not None:
        raise ValueError("it has more pieces than it says")
    return Manifest(id=header["id"], about=header["about"], parts=parts)


def _pieces(entries: Iterable[tuple[int, int, int, bytes]], count: int, packs: list[str]) -> dict[int, Piece]:
    pieces = {}
    for _, (index, pack, offset, sha256) in zip(range(count), entries, strict=False):
        pieces[index] = Piece(packs[pack], offset, sha256)
    if len(pieces) != count:
        raise ValueError("it has fewer pieces than it says")
    return pieces
