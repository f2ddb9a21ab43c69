"""JSON that is parsed while it arrives: the results of any parser, within limits that hold from the first bytes."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from belljar.control.api.json_stream import Base64Sink, BytesSink, JsonLimits, JsonStream, Sink
from belljar.model.errors import BelljarError, InvalidOption, InvalidRequest, TooLarge
from support.examples import examples

LIMITS = JsonLimits(max_bytes=10_000_000, max_values=1000, max_text_bytes=3_000_000)
TEXT = st.text(st.characters(blacklist_categories=["Cs"]), max_size=40)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)


def read(
    body: bytes, piece: int = 65536, limits: JsonLimits = LIMITS, sinks: dict[str, Sink] | None = None
) -> tuple[Any, int]:
    """The document, and how many bytes were looked at."""
    stream, fed = JsonStream(limits, sinks), 0
    for at in range(0, len(body), piece):
        fed = min(at + piece, len(body))
        stream.feed(body[at : at + piece])
    return stream.close(), fed


@settings(deadline=None)
@given(VALUES, st.booleans(), st.sampled_from([None, 1]), st.integers(1, 50))
def test_a_document_is_read_as_it_was_written(value: Any, ascii_only: bool, indent: int | None, piece: int) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    assert read(body, piece)[0] == value


@settings(deadline=None, max_examples=examples(20))
@given(st.lists(st.sampled_from(["a", "\n", '"', "\\", "é", "😀", "\u2028", "\x01", "中", "x" * 97]), min_size=1))
def test_long_strings_are_read_as_they_were_written(parts: list[str]) -> None:
    text = "".join(parts) * (100_000 // sum(map(len, parts)))
    value = {"stdin": text, "code": text[::-1], "files": {"a": text, "b": "c"}, "n": [1, {}]}
    for ascii_only in (True, False):
        body = json.dumps(value, ensure_ascii=ascii_only).encode()
        found, _ = read(body, 9973, sinks={"stdin": BytesSink("stdin", 10_000_000)})
        found["stdin"] = found["stdin"].decode() if isinstance(found["stdin"], bytes) else found["stdin"]
        assert found == value


@pytest.mark.parametrize("value", [b"1", b'"x"', b"[1]", b'{"a": 1}'])
def test_a_long_name_is_text_after_any_other_name(value: bytes) -> None:
    body = b'{"stdin": ' + value + b', "' + b"A" * 70_000 + b'": 2}'
    found, _ = read(body, sinks={"stdin": BytesSink("stdin", 10_000_000)})
    assert set(found) == {"stdin", "A" * 70_000}


@settings(deadline=None, max_examples=examples(20))
@given(st.binary(max_size=200), st.integers(997, 70_000))
def test_base64_is_decoded_while_it_arrives(seed: bytes, piece: int) -> None:
    data = (seed + b"x") * (300_000 // (len(seed) + 1))
    body = json.dumps({"stdin_base64": base64.b64encode(data).decode()}).replace("/", "\\/").encode()
    found, _ = read(body, piece, sinks={"stdin_base64": Base64Sink("stdin_base64", 10_000_000)})
    assert found == {"stdin_base64": data}


@pytest.mark.parametrize("text", ["A" * 100_001, "A" * 70_000 + "=" + "A" * 70_000, "A" * 99_998 + "-=", "=" * 90_000])
def test_invalid_base64_is_refused(text: str) -> None:
    with pytest.raises(InvalidOption, match="invalid base64"):
        read(json.dumps({"s": text}).encode(), sinks={"s": Base64Sink("s", 10_000_000)})


def test_a_string_over_its_own_limit_is_refused_while_it_arrives() -> None:
    with pytest.raises(InvalidOption, match="stdin is over 100000 bytes"):
        read(json.dumps({"stdin": "x" * 5_000_000}).encode(), sinks={"stdin": BytesSink("stdin", 100_000)})


HOSTILE = {
    "numbers": b'{"args":[' + b"0," * 2_000_000 + b"0]}",
    "empty lists": b"[" + b"[]," * 2_000_000 + b"[]]",
    "names": b"{" + b",".join(b'"A%d":0' % n for n in range(300_000)) + b"}",
    "short strings": b"[" + b'"",' * 1_000_000 + b'""]',
    "texts": json.dumps({"files": {f"{n}": "x" * 100_000 for n in range(80)}}).encode(),
    "depth": b"[" * 1_000_000,
    "closing": b"]" * 1_000_000,
    "a number": b"[" + b"9" * 3_000_000 + b"]",
    "a word": b'{"a":' + b"nul" * 1_000_000,
    "one short string after the other": b'{"a":["' + b'x","' * 900_000,
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_body_is_refused_before_the_most_of_it_is_looked_at(body: bytes) -> None:
    stream, fed = JsonStream(LIMITS), 0
    with pytest.raises((InvalidRequest, InvalidOption, TooLarge)):
        for at in range(0, len(body), 16384):
            fed = at
            stream.feed(body[at : at + 16384])
        stream.close()
    assert fed < len(body) / 2


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'"',
        b'"abc',
        b'{"a": "b}',
        b"nope",
        b"\xff\xfe",
        b"{} {}",
        b'"' + b"x" * 100_000,
        b'"' + b"x" * 100_000 + b"\n" + b'"',
        b'"' + b"x" * 100_000 + b"\xff" + b'"',
        b'"' + b"x" * 100_000 + b"\\q" + b'"',
        b'"' + b"x" * 100_000 + b"\\ud83d" + b'"',
        b'"' + b"x" * 100_000 + b"\\ud83d" + b"x" * 100 + b'"',
        b'["\x00"]',
    ],
)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="JSON"):
        read(body)


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(1, 20))
def test_any_bytes_give_a_document_or_an_error_of_our_own(body: bytes, piece: int) -> None:
    try:
        read(body, piece)
    except BelljarError:
        return
