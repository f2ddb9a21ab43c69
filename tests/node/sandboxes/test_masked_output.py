"""Output of commands in sandboxes: without secrets, with offsets that fit, and nothing held for long at a terminal."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from belljar.model.log_stream import LogStream
from belljar.model.sandbox_values import ProcessExit, ProcessOutput
from belljar.model.secrets import SecretValue
from belljar.node.sandboxes import masked_output
from belljar.node.sandboxes.kept_output import KeptOutput
from belljar.node.sandboxes.masked_output import MaskedOutput
from belljar.node.worker.masking import Masker

STDOUT, STDERR = LogStream.STDOUT, LogStream.STDERR
END = ProcessExit(exit_code=0, duration_ms=1, cpu_seconds=0, max_memory_mb=0)


def masker(*values: bytes) -> Masker:
    made = Masker.of([SecretValue(value) for value in values])
    assert made is not None
    return made


async def read(output: KeptOutput, until: int | None = None) -> dict[LogStream, bytes]:
    """The output of each stream, whose offsets follow each other, to its end or until so many bytes came."""
    seen = {STDOUT: b"", STDERR: b""}
    async with asyncio.timeout(10):
        async for piece in output.read({}):
            if not isinstance(piece, ProcessOutput):
                break
            assert piece.offset == len(seen[piece.stream])
            seen[piece.stream] += piece.data
            if until is not None and sum(map(len, seen.values())) >= until:
                break
    return seen


PIECES = st.lists(st.tuples(st.sampled_from([STDOUT, STDERR]), st.sampled_from([b"sec", b"secret-1", b"ret-1", b"x"])))


@given(pieces=PIECES)
def test_each_stream_is_masked_whatever_its_pieces_are(pieces: list[tuple[LogStream, bytes]]) -> None:
    async def play() -> None:
        search, output = masker(b"secret-1"), KeptOutput(waits=True)
        masked = MaskedOutput(output, search, terminal=False)
        for stream, data in pieces:
            await masked.add(stream, data)
        masked.finish()
        output.finish(END)
        seen = await read(output)
        for stream in (STDOUT, STDERR):
            assert seen[stream] == search.mask(b"".join(data for to, data in pieces if to is stream))
            assert output.written[stream] == len(seen[stream])

    asyncio.run(play())


async def test_a_terminal_shows_the_end_of_a_prompt_and_no_whole_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masked_output, "_TERMINAL_SECONDS", 0.01)
    output = KeptOutput(waits=True)
    masked = MaskedOutput(output, masker(b"$abc-secret", b"abcd", b"abcd-and-more"), terminal=True)
    await masked.add(STDOUT, b"prompt $")
    assert (await read(output, 8))[STDOUT] == b"prompt $"
    await masked.add(STDOUT, b" abcd")  # whole, and the beginning of a longer one
    assert (await read(output, 12))[STDOUT] == b"prompt $ ***"
    await masked.add(STDOUT, b" abcd-and")  # a long beginning stays hidden
    await asyncio.sleep(0.1)
    masked.finish()
    output.finish(END)
    assert (await read(output))[STDOUT] == b"prompt $ *** ***"


async def test_what_is_closed_shows_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masked_output, "_TERMINAL_SECONDS", 0.01)
    output = KeptOutput(waits=False)
    masked = MaskedOutput(output, masker(b"secret-1"), terminal=True)
    await masked.add(STDOUT, b"s")
    masked.close()
    await asyncio.sleep(0.05)
    assert output.written[STDOUT] == 0
