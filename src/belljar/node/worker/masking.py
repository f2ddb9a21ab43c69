"""Finds a job's secrets in its output and replaces each by `***`, wherever the output is cut into pieces.

Every secret is searched whole, and one of several lines also line by line; a value that JSON would write in another
way, also in that form. A long one is searched in fragments, which bounds how much output waits for its rest. What a
program encodes or splits is not found (docs/secrets.md).
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence

from ahocorasick_rs import BytesAhoCorasick, MatchKind

from belljar.model.secrets import MIN_MASKED_BYTES, SecretValue

MASK = b"***"
#: Longer strings are searched in fragments of half this length to this length.
_FRAGMENT_BYTES = 128
#: Lines that are searched on their own, of all secrets of a job. Of a secret with more only fragments are.
_MAX_LINES = 1024
#: Longer values are not searched in their JSON form.
_MAX_JSON_BYTES = 4096
#: At the end of a stream, a beginning of a secret of this length is masked too.
_MIN_PARTIAL_BYTES = 8

#: Every pattern has so many bytes: its head tells where one may begin.
_HEAD_BYTES = MIN_MASKED_BYTES

Span = tuple[int, int]


class Masker:
    """The search for one job's secrets. Each stream has a `MaskedStream`, which keeps the state."""

    def __init__(self, patterns: Collection[bytes]) -> None:
        """`patterns` are the strings to find: at least one, each of MIN_MASKED_BYTES or more."""
        self._patterns = sorted(set(patterns))
        self._longest = max(map(len, self._patterns))
        self._first_bytes = frozenset(pattern[0] for pattern in self._patterns)
        #: For each pattern the longest other one that it begins with; -1 for none.
        self._shorter = _shorter(self._patterns)
        self._heads = BytesAhoCorasick({pattern[:_HEAD_BYTES] for pattern in self._patterns})
        self._automaton = BytesAhoCorasick(self._patterns, matchkind=MatchKind.LeftmostLongest)

    @classmethod
    def of(cls, values: Iterable[SecretValue]) -> Masker | None:
        """Return the search for these values; None when none of them is long enough to be masked."""
        patterns = _patterns([value.reveal() for value in values])
        return cls(patterns) if patterns else None

    def mask(self, data: bytes) -> bytes:
        """Return the whole of a stream, masked."""
        stream = MaskedStream(self)
        return stream.feed(data) + stream.flush()

    def spans(self, data: bytes) -> list[Span]:
        """Return where patterns are, in order: overlapping ones as one span."""
        merged: list[Span] = []
        for _, start, end in self._automaton.find_matches_as_indexes(data):
            if merged and start < merged[-1][1]:
                continue  # `_extended` has seen it
            merged.append((start, self._extended(data, start, end)))
        return merged

    def _extended(self, data: bytes, start: int, end: int) -> int:
        """Return the end of a match together with all matches that overlap it.

        The latest starts come first, which reach furthest. Each start is looked at once: the work is bounded by the
        output's length, whatever the secrets are.
        """
        found = self._automaton.find_matches_as_indexes(data[start + 1 : end + self._longest - 1])
        if not found or start + 1 + found[0][1] >= end:
            return end  # nearly always
        seen = start + 1
        while seen < end:
            reach = end
            for at in range(end - 1, max(seen, end - self._longest + 1) - 1, -1):
                if at + self._longest <= reach:
                    break
                if data[at] in self._first_bytes:
                    reach = max(reach, at + self._length_at(data, at))
            seen, end = end, reach
        return end

    def _length_at(self, data: bytes, at: int) -> int:
        """Return the length of the longest pattern that begins there; 0 if none does."""
        text = data[at : at + self._longest]
        number = bisect_right(self._patterns, text) - 1
        # A pattern that begins the text begins all patterns between itself and the text.
        while number >= 0 and not text.startswith(self._patterns[number]):
            number = self._shorter[number]
        return len(self._patterns[number]) if number >= 0 else 0

    def unfinished_from(self, data: bytes) -> int:
        """Return where the longest end of `data` begins that may be the beginning of a pattern; its length if none."""
        start = max(0, len(data) - self._longest + 1)
        for _, at, _ in self._heads.find_matches_as_indexes(data[start:], overlapping=True):
            if self._is_beginning(data[start + at :]):
                return start + at
        for at in range(max(0, len(data) - _HEAD_BYTES + 1), len(data)):
            if self._is_beginning(data[at:]):
                return at
        return len(data)

    def _is_beginning(self, text: bytes) -> bool:
        at = bisect_left(self._patterns, text)
        if at < len(self._patterns) and self._patterns[at] == text:
            at += 1  # whole patterns are found by `spans`
        return at < len(self._patterns) and self._patterns[at].startswith(text)


class MaskedStream:
    """One stream of output on its way: `feed` every piece, then `flush`."""

    def __init__(self, masker: Masker) -> None:
        self._masker = masker
        #: The end of what came, which may be the beginning of a secret: fewer bytes than the longest pattern has.
        self._held = b""
        #: So many of the held bytes belong to a secret that is masked already.
        self._covered = 0
        #: Whether a mask is the last that was returned.
        self._after_mask = False

    def feed(self, data: bytes) -> bytes:
        """Return what is certain so far: the rest may be the beginning of a secret."""
        if not data:
            return b""
        text = self._held + data
        return self._take(text, self._masker.spans(text), self._masker.unfinished_from(text))

    def flush(self) -> bytes:
        """Return the rest: nothing follows. A long beginning of a secret is masked."""
        text, start = self._held, self._masker.unfinished_from(self._held)
        spans = self._masker.spans(text)
        if len(text) - start >= _MIN_PARTIAL_BYTES:
            spans = sorted([*spans, (start, len(text))])
        return self._take(text, spans, len(text))

    def release_short(self) -> bytes:
        """Return what is held, unless it is a long beginning of a secret: for a reader who waits for it."""
        if not self._held or len(self._held) >= _MIN_PARTIAL_BYTES:
            return b""
        return self._take(self._held, self._masker.spans(self._held), len(self._held))

    def _take(self, text: bytes, spans: Iterable[Span], until: int) -> bytes:
        """Return the text up to `until`, with masks, and hold what follows. Spans that touch have one mask."""
        pieces: list[bytes] = []
        at = self._covered
        for start, end in spans:
            if start >= until:
                break
            if end <= at:
                continue
            if start > at:
                pieces.append(text[at:start])
                self._after_mask = False
            if not self._after_mask:
                pieces.append(MASK)
                self._after_mask = True
            at = end
        if at < until:
            pieces.append(text[at:until])
            self._after_mask, at = False, until
        self._held, self._covered = text[until:], at - until
        return b"".join(pieces)


def _shorter(patterns: Sequence[bytes]) -> list[int]:
    """Return for each of the sorted patterns the number of the longest other one that it begins with; -1 for none."""
    shorter: list[int] = []
    for number, pattern in enumerate(patterns):
        candidate = number - 1
        while candidate >= 0 and not pattern.startswith(patterns[candidate]):
            candidate = shorter[candidate]
        shorter.append(candidate)
    return shorter


def _patterns(values: Collection[bytes]) -> set[bytes]:
    """Return the strings to search for."""
    texts: set[bytes] = set()
    lines_left = _MAX_LINES
    for value in values:
        texts.add(value.strip())
        lines = {line.strip() for line in value.splitlines()}
        if 1 < len(lines) <= lines_left:
            texts |= lines
            lines_left -= len(lines)
    texts |= {form for text in texts for form in _json_forms(text)}
    return {fragment for text in texts if len(text) >= MIN_MASKED_BYTES for fragment in _fragments(text)}


def _json_forms(text: bytes) -> Iterator[bytes]:
    if len(text) > _MAX_JSON_BYTES:
        return
    try:
        decoded = text.decode()
    except UnicodeDecodeError:
        return
    for ascii_only in (True, False):
        yield json.dumps(decoded, ensure_ascii=ascii_only)[1:-1].encode()


def _fragments(text: bytes) -> Iterator[bytes]:
    """Yield the text in parts of about the same length, of at most _FRAGMENT_BYTES."""
    count = -(-len(text) // _FRAGMENT_BYTES)
    for number in range(count):
        yield text[number * len(text) // count : (number + 1) * len(text) // count]
