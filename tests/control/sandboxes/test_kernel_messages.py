"""What a kernel says is parsed strictly: nothing that a guest sends breaks the server."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from belljar.control.sandboxes.kernel_messages import (
    MAX_LINE_BYTES,
    MAX_VALUES,
    KernelViolation,
    LineReader,
    Message,
    MessageReader,
    count_values,
    parse,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
UNREADABLE = Message("unreadable", None, {})


@given(st.lists(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode() + b"\n"), max_size=10))
def test_any_bytes_are_messages_or_unreadable(pieces: list[bytes]) -> None:
    reader = LineReader()
    for piece in pieces:
        for line in reader.feed(piece):
            assert isinstance(parse(line), Message)


@given(st.text(), st.integers(1, 7))
def test_a_message_arrives_in_whatever_pieces(text: str, size: int) -> None:
    line = json.dumps({"type": "stdout", "run": "r", "text": text}).encode() + b"\n"
    reader = LineReader()
    found = [parse(each) for at in range(0, len(line), size) for each in reader.feed(line[at : at + size])]
    assert [(each.kind, each.run) for each in found] == [("stdout", "r")]
    found[0].fields["text"].encode()  # it can be sent on


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b"[]",
        b'{"type": "stdout", "run": 1, "text": "x"}',
        b'{"type": "stdout", "run": "r", "text": 1}',
        b'{"type": "stdout", "run": "r", "text": "x", "more": 1}',
        b'{"type": "other", "run": "r"}',
        b'{"type": "result", "run": "r", "data": {"text/html": 5}, "is_main": true}',
        b'{"type": "result", "run": "r", "data": {"": "x"}, "is_main": true}',
        b'{"type": "result", "run": "r", "data": {"application/json": NaN}, "is_main": true}',
        b'{"type": "result", "run": "r", "data": {"text/plain": "x"}, "is_main": 1}',
        b'{"type": "done", "run": "r", "execution_count": 1e99}',
        b'{"type": "done", "run": "r", "execution_count": true}',
        b'{"type": "done", "run": "r", "execution_count": -1}',
        b'{"type": "result", "run": "r", "data": {"application/json": '
        + b"[" * 100
        + b"]" * 100
        + b'}, "is_main": true}',
        b"[" * 100_000,
        b'{"type": "done", "run": "r", "execution_count": ' + b"9" * 10_000 + b"}",
    ],
)
def test_what_no_kernel_of_ours_sends_is_unreadable(line: bytes) -> None:
    assert parse(line) == UNREADABLE


def test_half_a_surrogate_pair_is_replaced_and_a_whole_one_kept() -> None:
    line = rb'{"type": "stdout", "run": "r", "text": "\ud800 \ud83d\ude00 \uDFFF"}'
    assert parse(line).fields == {"text": "? 😀 ?"}


def test_a_line_without_an_end_is_not_kept_for_ever() -> None:
    reader = LineReader()
    with pytest.raises(KernelViolation):
        for _ in range(MAX_LINE_BYTES // 100_000 + 2):
            list(reader.feed(b"x" * 100_000))


def shown(value: str) -> bytes:
    return b'{"type":"result","run":"r","is_main":true,"data":{"application/json":' + value.encode() + b"}}"


def test_a_result_of_few_bytes_takes_little_memory() -> None:
    """Each `[],` takes 80 bytes once it is parsed."""
    assert parse(shown(f"[{'[],' * MAX_VALUES}1]")) == UNREADABLE
    assert parse(shown(f"[{'[],' * 1000}1]")).values > 2000
    # What is in texts is no value.
    text = json.dumps({"a": ',[{"\\' * MAX_VALUES, "b": [1, 2]})
    assert parse(shown(text)).kind == "result" and count_values(shown(text)) < 20


async def test_a_kernel_that_sends_lines_without_messages_is_no_kernel() -> None:
    """A byte of such a line costs microseconds of the server."""
    messages, count = MessageReader(), 0
    with pytest.raises(KernelViolation, match="no messages"):
        for _ in range(100):
            async for message, _ in messages.feed(b"\n" * 100):
                count += message.kind == "unreadable"
    assert count == 1000
