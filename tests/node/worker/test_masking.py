"""Masking finds every secret in output, however the output is cut, and delays nothing else."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from belljar.model.secrets import SecretValue
from belljar.node.guest.wire import Stream
from belljar.node.worker.masked_observer import MaskedOutput
from belljar.node.worker.masking import MASK, MaskedStream, Masker

TOKEN = b"ghp_0123456789abcdefghij"


def masker(*values: bytes) -> Masker:
    made = Masker.of([SecretValue(value) for value in values])
    assert made is not None
    return made


def in_pieces(search: Masker, pieces: list[bytes]) -> bytes:
    stream = MaskedStream(search)
    return b"".join([*map(stream.feed, pieces), stream.flush()])


def plainly_masked(patterns: list[bytes], text: bytes) -> bytes:
    """The definition: each byte of an occurrence is hidden, and neighbours share a mask."""
    hidden = bytearray(len(text))
    for pattern in patterns:
        at = text.find(pattern)
        while at >= 0:
            hidden[at : at + len(pattern)] = b"\1" * len(pattern)
            at = text.find(pattern, at + 1)
    out, after_mask = bytearray(), False
    for byte, is_hidden in zip(text, hidden, strict=True):
        if not is_hidden:
            out.append(byte)
        elif not after_mask:
            out += MASK
        after_mask = bool(is_hidden)
    return bytes(out)


def test_a_printed_secret_is_masked() -> None:
    assert masker(TOKEN).mask(b"token=" + TOKEN + b"\n" + TOKEN) == b"token=***\n***"


@pytest.mark.parametrize("size", range(1, len(TOKEN) + 2))
def test_it_is_masked_in_pieces_of_every_length(size: int) -> None:
    text = b"a" + TOKEN + b"b" + TOKEN[:5] + TOKEN + b" ghp_ end"
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    assert in_pieces(masker(TOKEN), pieces) == b"a***bghp_0*** ghp_ end"


@given(
    st.lists(st.text("ab", min_size=4, max_size=9).map(str.encode), min_size=1, max_size=5),
    st.lists(st.text("ab-", max_size=12).map(str.encode), max_size=12),
)
@example([b"aaaa", b"aaaaaaaab"], [b"aaaaaaa", b"aaaab"])
def test_however_output_is_cut_the_same_bytes_are_hidden(patterns: list[bytes], pieces: list[bytes]) -> None:
    # A mark ends the text: no beginning of a secret is at its end.
    pieces.append(b"|")
    assert in_pieces(Masker(patterns), pieces) == plainly_masked(patterns, b"".join(pieces))


@given(st.lists(st.integers(1, 400), max_size=20), st.integers(60, 700))
def test_a_long_secret_is_one_mask(cuts: list[int], length: int) -> None:
    secret = (b"%05d-" * 200 % tuple(range(200)))[:length]
    text, pieces = b"<" + secret + b">" + secret + b"!", []
    for size in [*cuts, len(text)]:
        pieces.append(text[:size])
        text = text[size:]
    assert in_pieces(masker(secret), pieces) == b"<***>***!"


def test_lines_of_a_secret_are_masked_one_by_one() -> None:
    key = b"-----BEGIN KEY-----\nMIIEpAIBAAKCAQEA75\nq9+zz\n-----END KEY-----\n"
    search = masker(key)
    assert search.mask(b"> MIIEpAIBAAKCAQEA75\r\n> q9+zz\r\n") == b"> ***\r\n> ***\r\n"
    assert search.mask(b"key: " + key) == b"key: ***\n"
    assert search.mask(json.dumps({"key": key.decode()}).encode()) == b'{"key": "***\\n"}'


def test_the_form_in_json_is_masked_too() -> None:
    value = 'pass"word\\é'.encode()
    for ascii_only in (True, False):
        printed = json.dumps({"p": value.decode()}, ensure_ascii=ascii_only).encode()
        assert masker(value).mask(printed) == b'{"p": "***"}'


def test_a_newline_at_the_end_of_a_secret_hides_nothing_of_it() -> None:
    assert masker(TOKEN + b"\n").mask(TOKEN + b" and " + TOKEN) == b"*** and ***"


def test_the_longest_of_several_secrets_is_masked_and_overlaps_leave_nothing() -> None:
    search = masker(b"hunter2", b"hunter2@db.example", b"admin:hunter2")
    assert search.mask(b"x hunter2@db.example y") == b"x *** y"
    assert search.mask(b"x admin:hunter2@db.example y") == b"x *** y"


def test_short_secrets_are_not_masked() -> None:
    assert Masker.of([SecretValue(b"abc"), SecretValue(b" 12\n")]) is None
    assert masker(b"abc", TOKEN).mask(b"abc " + TOKEN) == b"abc ***"


def test_only_the_beginning_of_a_secret_waits() -> None:
    stream = MaskedStream(masker(TOKEN))
    assert stream.feed(b"Password: ") == b"Password: "
    assert stream.feed(b"log gh") == b"log "
    assert stream.feed(b"p_") == b""
    assert stream.feed(b"x") == b"ghp_x"


def test_output_that_waits_is_bounded() -> None:
    stream = MaskedStream(masker(b"a" * 60_000 + b"b"))
    for _ in range(100):
        stream.feed(b"a" * 5_000)
        assert len(stream._held) < 128
    assert stream.flush() == b""


def test_at_the_end_a_short_beginning_is_shown_and_a_long_one_is_not() -> None:
    assert masker(TOKEN).mask(b"so far: ghp_") == b"so far: ghp_"
    assert masker(TOKEN).mask(b"so far: " + TOKEN[:-1]) == b"so far: ***"


def test_hostile_secrets_and_output_take_bounded_steps() -> None:
    """Secrets that overlap each other and themselves everywhere: each start is looked at once."""
    values = [b"a" * length for length in range(4, 34)] + [b"ab" * 30_000, b"b" + b"a" * 50]
    search, steps = masker(*values), 0
    length_at = search._length_at

    def counted(data: bytes, at: int) -> int:
        nonlocal steps
        steps += 1
        return length_at(data, at)

    search._length_at = counted  # type: ignore[method-assign]
    text = b"a" * 20_000 + b"ab" * 5_000 + (b"b" + b"a" * 50) * 300
    assert search.mask(text) == MASK
    assert 0 < steps <= len(text)


class Kept:
    def __init__(self) -> None:
        self.writes: list[tuple[Stream, bytes]] = []

    async def write(self, stream: Stream, data: bytes) -> None:
        self.writes.append((stream, data))

    def full(self, stream: Stream) -> bool:
        return False


async def test_each_stream_of_a_job_is_masked_on_its_own() -> None:
    kept = Kept()
    output = MaskedOutput(kept, masker(TOKEN))
    await output.write(Stream.STDOUT, b"1 " + TOKEN[:9])
    await output.write(Stream.STDERR, b"2 " + TOKEN[:4])
    await output.write(Stream.STDOUT, TOKEN[9:] + b"\n")
    await output.flush()
    assert kept.writes == [
        (Stream.STDOUT, b"1 "),
        (Stream.STDERR, b"2 "),
        (Stream.STDOUT, b"***\n"),
        (Stream.STDERR, TOKEN[:4]),
    ]
