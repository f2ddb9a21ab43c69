"""Output on its way to a control plane that is slow, refuses, or gives the lease to another."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from belljar.link.errors import LeaseLost, LinkUnavailable, OutputGap, OutputRefused
from belljar.link.leases import LeaseKey, NodeIdentity
from belljar.link.output import MAX_PIECE_BYTES, OutputOffsets, OutputPiece
from belljar.model.log_stream import LogStream
from belljar.node.worker.output_sender import OutputSender
from support.faults import EMFILE
from support.worker_harness import QUICK

LEASE = LeaseKey("job_x", 1, NodeIdentity("n1", "a"))
STDOUT, STDERR, CONSOLE = LogStream.STDOUT, LogStream.STDERR, LogStream.CONSOLE


class Receiver:
    """A link that keeps output as the interface promises, after the errors that it is to raise."""

    def __init__(self) -> None:
        self.kept: dict[LogStream, bytearray] = {}
        self.order: list[LogStream] = []
        self.calls = 0
        #: Raised by the next calls, before or after the output was kept.
        self.errors: list[tuple[Exception, bool]] = []
        self.open = asyncio.Event()
        self.open.set()

    async def append_output(self, lease: LeaseKey, pieces: Sequence[OutputPiece]) -> OutputOffsets:
        assert lease == LEASE
        await self.open.wait()
        self.calls += 1
        error, is_after = self.errors.pop(0) if self.errors else (None, False)
        if error is not None and not is_after:
            raise error
        for piece in pieces:
            kept = self.kept.setdefault(piece.stream, bytearray())
            assert len(piece.data) <= MAX_PIECE_BYTES
            if piece.offset > len(kept):
                raise OutputGap("a gap", acknowledged=len(kept))
            kept += piece.data[len(kept) - piece.offset :]
            self.order.append(piece.stream)
        if error is not None:
            raise error
        return {stream: len(data) for stream, data in self.kept.items()}


@asynccontextmanager
async def sending(receiver: Receiver, on_lease_lost: Callable[[], None] = lambda: None) -> AsyncIterator[OutputSender]:
    link: Any = receiver
    sender = OutputSender(link, LEASE, QUICK, on_lease_lost)
    await sender.open()
    try:
        yield sender
    finally:
        await sender.close()


async def test_output_arrives_in_order_without_a_drain() -> None:
    receiver = Receiver()
    async with sending(receiver) as sender:
        for stream, data in ((STDOUT, b"one "), (STDERR, b"oh"), (STDOUT, b"two")):
            await sender.write(stream, data)
        async with asyncio.timeout(5):
            while len(receiver.order) < 3:
                await asyncio.sleep(0.005)
    assert receiver.kept == {STDOUT: b"one two", STDERR: b"oh"}
    assert receiver.order == [STDOUT, STDERR, STDOUT]


async def test_small_writes_share_a_call() -> None:
    receiver = Receiver()
    async with sending(receiver) as sender:
        for _ in range(1000):
            await sender.write(STDOUT, b"x")
        await sender.drain(5)
    assert receiver.kept == {STDOUT: b"x" * 1000}
    assert receiver.calls <= 3


async def test_a_program_that_changes_streams_with_every_byte_makes_few_pieces() -> None:
    receiver = Receiver()
    async with sending(receiver) as sender:
        for _ in range(10_000):
            sender.append(STDOUT, b"o")
            sender.append(STDERR, b"e")
        await sender.drain(5)
    assert receiver.kept == {STDOUT: b"o" * 10_000, STDERR: b"e" * 10_000}
    assert len(receiver.order) <= 64 * receiver.calls


@pytest.mark.parametrize("is_after", [False, True])
async def test_output_is_sent_again_until_it_is_acknowledged(is_after: bool) -> None:
    receiver = Receiver()
    async with sending(receiver) as sender:
        receiver.errors = [(error, is_after) for error in (LinkUnavailable("away"), EMFILE(), LinkUnavailable("away"))]
        await sender.write(STDOUT, b"first ")
        await asyncio.sleep(0.03)
        await sender.write(STDOUT, b"second")
        await sender.drain(5)
        assert sender.failure is None
    assert receiver.kept == {STDOUT: b"first second"}


async def test_a_script_waits_while_too_much_is_not_acknowledged() -> None:
    receiver = Receiver()
    async with sending(receiver) as sender:
        receiver.open.clear()
        written = 0

        async def write() -> None:
            nonlocal written
            for _ in range(64):
                await sender.write(STDOUT, b"x" * 65536)
                written += 65536

        writing = asyncio.create_task(write())
        await asyncio.sleep(0.05)
        assert written <= MAX_PIECE_BYTES
        receiver.open.set()
        async with asyncio.timeout(5):
            await writing
        await sender.drain(5)
    assert len(receiver.kept[STDOUT]) == 64 * 65536


async def test_what_does_not_arrive_in_time_is_given_up() -> None:
    receiver = Receiver()
    async with sending(receiver) as sender:
        receiver.open.clear()
        await sender.write(STDOUT, b"text")
        async with asyncio.timeout(5):
            await sender.drain(0.05)
        assert sender.failure is not None
        await sender.write(STDOUT, b"x" * (MAX_PIECE_BYTES + 1))


@pytest.mark.parametrize(
    "error", [OutputRefused("it is full"), OutputGap("a gap", acknowledged=0), RuntimeError("a bug")]
)
async def test_what_cannot_be_kept_costs_the_rest_of_the_output_only(error: Exception) -> None:
    receiver = Receiver()
    async with sending(receiver) as sender:
        await sender.write(STDOUT, b"first")
        await sender.drain(5)
        receiver.errors = [(error, False)]
        await sender.write(STDOUT, b"second")
        await sender.drain(5)
        assert sender.failure is not None
        await sender.write(STDOUT, b"third")
        await sender.drain(5)
    assert receiver.kept == {STDOUT: b"first"}


async def test_a_lost_lease_is_passed_on() -> None:
    receiver, lost = Receiver(), asyncio.Event()
    async with sending(receiver, lost.set) as sender:
        receiver.errors = [(LeaseLost(), False)]
        await sender.write(STDOUT, b"text")
        async with asyncio.timeout(5):
            await lost.wait()
        await sender.drain(5)
        assert isinstance(sender.failure, LeaseLost)


async def test_a_sender_goes_on_where_an_earlier_one_was_acknowledged() -> None:
    receiver = Receiver()
    for text in (b"one ", b"two"):
        async with sending(receiver) as sender:
            await sender.write(STDOUT, text)
            await sender.drain(5)
    assert receiver.kept == {STDOUT: b"one two"}


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    writes=st.lists(st.tuples(st.sampled_from([STDOUT, STDERR, CONSOLE]), st.binary(max_size=200_000)), max_size=20),
    failures=st.lists(st.booleans(), max_size=4),
)
async def test_whatever_fails_every_byte_arrives_once(
    writes: list[tuple[LogStream, bytes]], failures: list[bool]
) -> None:
    receiver = Receiver()
    async with sending(receiver) as sender:
        receiver.errors = [(LinkUnavailable("away"), is_after) for is_after in failures]
        for stream, data in writes:
            await sender.write(stream, data)
        await sender.drain(10)
        assert sender.failure is None
    for stream in (STDOUT, STDERR, CONSOLE):
        assert receiver.kept.get(stream, b"") == b"".join(data for each, data in writes if each is stream)


async def test_output_in_tiny_pieces_takes_no_more_memory_than_it_has_bytes() -> None:
    receiver = Receiver()
    async with sending(receiver) as sender:
        receiver.open.clear()

        async def print_pairs() -> None:
            while True:
                await sender.write(STDOUT, bytes(2))  # a new object each time

        tracemalloc.start()
        try:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await print_pairs()
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak_bytes < 4 * MAX_PIECE_BYTES
        receiver.open.set()
