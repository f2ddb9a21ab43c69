"""Numbers from the guest: rejected where no guest could have them, reduced where this machine could not."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from belljar.model.errors import GuestProtocolError
from belljar.node.guest import wire
from belljar.node.guest.command import CommandFailed
from belljar.node.guest.usage import clamp_usage
from belljar.node.guest.wire import Exited, FrameType, Stream

U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)


@given(U64, U64, U64, st.floats(0, 10**6), st.integers(1, 64), st.integers(64, 10**6))
def test_usage_is_never_more_than_the_machine_had(
    cpu_us: int, memory: int, run_us: int, elapsed: float, vcpus: int, memory_mb: int
) -> None:
    reported = Exited(0, None, 0, cpu_us, memory, run_us)
    used = clamp_usage(reported, elapsed_seconds=elapsed, vcpus=vcpus, memory_mb=memory_mb)
    assert used.cpu_us <= min(cpu_us, (elapsed + 0.1) * vcpus * 1e6 + 1)
    assert used.max_memory_bytes == min(memory, memory_mb << 20)
    assert used.run_us <= run_us
    assert (used.exit_code, used.signal) == (0, None)


def test_honest_usage_stays_as_it_is() -> None:
    reported = Exited(1, None, 2, 1_900_000, 50 << 20, 1_000_000)
    assert clamp_usage(reported, elapsed_seconds=1.0, vcpus=2, memory_mb=64) == reported


@given(U32, U32)
def test_a_failure_has_a_stage_and_an_error_number_that_linux_has(stage: int, errno: int) -> None:
    try:
        message = wire.parse(FrameType.FAILED, Stream.NONE, struct.pack("<II", stage, errno))
    except GuestProtocolError:
        assert stage not in (1, 2, 3) or not 0 < errno <= 4095
        return
    assert isinstance(message, wire.Failed)
    assert str(CommandFailed(message.stage, message.errno))


@pytest.mark.parametrize(
    ("frame_type", "payload"),
    [
        (FrameType.FAILED, struct.pack("<II", 3, 2**32 - 1)),
        (FrameType.FAILED, struct.pack("<II", 3, 0)),
        (FrameType.STARTED, struct.pack("<I", 0)),
        (FrameType.STARTED, struct.pack("<I", 2**32 - 1)),
        (FrameType.STDIN_CREDIT, struct.pack("<I", 0)),
        (FrameType.STDIN_CREDIT, struct.pack("<I", wire.WIDE_STDIN_WINDOW + 1)),
    ],
)
def test_numbers_that_no_guest_could_have_are_rejected(frame_type: FrameType, payload: bytes) -> None:
    with pytest.raises(GuestProtocolError):
        wire.parse(frame_type, Stream.NONE, payload)
