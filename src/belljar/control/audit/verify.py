"""Verifies the chain of the audit log, and says which row was changed.

The records are those of the database or of an export: a verification needs nothing but this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from belljar.control.audit.entry import PRUNE, Point, hash_of

#: Findings that are reported one by one; further ones are counted.
MAX_FINDINGS = 20


@dataclass(slots=True)
class Verification:
    """The result of a verification."""

    #: Where the records begin: after this row.
    anchor: Point
    #: The last record that was read.
    head: Point
    rows: int = 0
    findings: list[str] = field(default_factory=list)
    #: Findings beyond `MAX_FINDINGS`.
    more: int = 0

    @property
    def is_intact(self) -> bool:
        """Return whether nothing was found."""
        return not self.findings

    def found(self, text: str) -> None:
        """Note a finding."""
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(text)
        else:
            self.more += 1


def verify(anchor: Point, records: Iterable[Mapping[str, Any]], heads: Iterable[Point] = ()) -> Verification:
    """Verify records in the order of their numbers, and hashes that were noted elsewhere before."""
    result = Verification(anchor=anchor, head=anchor)
    noted = {head.seq: head for head in heads if head.seq > anchor.seq}
    prune = _check_records(result, records, noted)
    _check_anchor(result, prune)
    _check_end(result, noted)
    return result


def verify_newest(records: Sequence[Mapping[str, Any]]) -> Verification:
    """Verify the newest records, in the order of their numbers, without those before: what a page can do at once."""
    first = records[0] if records else {}
    seq, digest = _seq_of(first), _digest_of(first.get("previous_hash"))
    anchor = Point(seq=0 if seq is None else seq - 1, hash=digest or b"")
    result = Verification(anchor=anchor, head=anchor)
    _check_records(result, records)
    return result


def _check_records(
    result: Verification, records: Iterable[Mapping[str, Any]], noted: dict[int, Point] | None = None
) -> Mapping[str, Any] | None:
    """Check each record, and take those that were noted out of `noted`. Return the last record of a removal."""
    prune: Mapping[str, Any] | None = None
    for record in records:
        result.rows += 1
        seq, digest = _seq_of(record), _digest_of(record.get("hash"))
        if seq is None or digest is None:
            result.found(f"record {result.rows} has no valid number and hash")
            continue
        _check_record(result, record, seq, digest)
        head = noted.pop(seq, None) if noted else None
        if head is not None and head.hash != digest:
            result.found(f"row {seq} had another hash when it was noted: rows up to it were written anew")
        if record.get("action") == PRUNE:
            prune = record
        result.head = Point(seq=seq, hash=digest)
    return prune


def _check_record(result: Verification, record: Mapping[str, Any], seq: int, digest: bytes) -> None:
    last = result.head
    if seq > last.seq + 1:
        names = f"row {last.seq + 1} was" if seq == last.seq + 2 else f"rows {last.seq + 1} to {seq - 1} were"
        result.found(f"{names} removed")
    elif seq <= last.seq:
        result.found(f"row {seq} comes after row {last.seq}: rows were inserted or reordered")
    previous = _digest_of(record.get("previous_hash"))
    is_edited = previous is None or hash_of(previous, record) != digest
    if is_edited:
        result.found(f"row {seq} was edited: its content does not match its hash")
    if seq == last.seq + 1 and previous != last.hash:
        place = f"row {last.seq}" if result.rows > 1 else "the beginning of the log"
        result.found(f"row {seq} does not follow {place}: one of the two was replaced, inserted or moved")


def _check_anchor(result: Verification, prune: Mapping[str, Any] | None) -> None:
    """Check that the rows before the anchor were removed by retention, which records it."""
    anchor = result.anchor
    if anchor.seq == 0:
        return
    details = prune.get("details") if prune is not None else None
    through = details.get("through_seq") if isinstance(details, Mapping) else None
    if not isinstance(through, int) or through < anchor.seq:
        result.found(f"rows up to {anchor.seq} are missing, and no row records that retention removed them")
    elif through == anchor.seq and isinstance(details, Mapping) and details.get("hash") != anchor.hash.hex():
        result.found(
            f"row {anchor.seq} had another hash when retention removed it: the log was written anew from there"
        )


def _check_end(result: Verification, noted: Mapping[int, Point]) -> None:
    last = result.head.seq
    last_noted = max(noted, default=0)
    if last_noted > last:
        result.found(
            f"rows {last + 1} to {last_noted} are missing at the end: they were cut off, or the database was restored "
            "from an older copy, or lost its last writes in a power failure"
        )


def _seq_of(record: Mapping[str, Any]) -> int | None:
    seq = record.get("seq")
    return seq if isinstance(seq, int) and not isinstance(seq, bool) else None


def _digest_of(text: Any) -> bytes | None:
    if not isinstance(text, str) or len(text) != 64:
        return None
    try:
        return bytes.fromhex(text)
    except ValueError:
        return None
