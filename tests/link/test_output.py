"""What every link promises about output: in order, acknowledged by offset, kept once, bounded."""

from __future__ import annotations

import pytest

from belljar.link.errors import OutputGap, OutputRefused
from belljar.link.interface import ControlLink
from belljar.link.leases import LeaseKey
from belljar.link.output import MAX_PIECE_BYTES
from belljar.model.errors import BelljarError
from belljar.model.log_stream import LogStream
from belljar.model.states import Status
from support.control_plane import ControlPlane
from support.job_queue import ended
from support.link_calls import STDERR, STDOUT, claim_next, piece, start


async def test_output_is_acknowledged_by_offset_and_then_visible(
    link: ControlLink, control: ControlPlane, held: LeaseKey
) -> None:
    assert await link.append_output(held, ()) == {}
    assert await link.append_output(held, [piece(0, b"one "), piece(0, b"oh", STDERR), piece(4, b"two")]) == {
        STDOUT: 7,
        STDERR: 2,
    }
    assert await control.output(held.job_id) == b"one two"
    assert await control.output(held.job_id, STDERR) == b"oh"
    assert await link.append_output(held, [piece(7, b" three")]) == {STDOUT: 13, STDERR: 2}
    assert await control.output(held.job_id) == b"one two three"


async def test_output_wakes_those_who_follow_the_log(link: ControlLink, control: ControlPlane, held: LeaseKey) -> None:
    with control.changes.watching(held.job_id) as watch:
        await link.append_output(held, [piece(0, b"text")])
        assert await watch.wait(5)


async def test_output_that_is_sent_again_is_kept_once(link: ControlLink, control: ControlPlane, held: LeaseKey) -> None:
    for _ in range(2):
        assert await link.append_output(held, [piece(0, b"abc"), piece(3, b"def")]) == {STDOUT: 6}
    assert await link.append_output(held, [piece(2, b"cdefgh")]) == {STDOUT: 8}
    assert await control.output(held.job_id) == b"abcdefgh"


async def test_a_gap_in_the_output_is_refused(link: ControlLink, control: ControlPlane, held: LeaseKey) -> None:
    await link.append_output(held, [piece(0, b"abc")])
    with pytest.raises(OutputGap) as refused:
        await link.append_output(held, [piece(4, b"e")])
    assert refused.value.details["acknowledged"] == 3
    assert await control.output(held.job_id) == b"abc"


async def test_each_attempt_counts_its_own_output(link: ControlLink, control: ControlPlane, held: LeaseKey) -> None:
    await link.append_output(held, [piece(0, b"first")])
    await link.requeue(held, code="x", reason="its node died")
    again = (await claim_next(link)).lease
    assert await link.append_output(again, ()) == {}
    assert await link.append_output(again, [piece(0, b"second")]) == {STDOUT: 6}
    assert await control.output(held.job_id, attempt=1) == b"first"
    assert await control.output(held.job_id, attempt=2) == b"second"
    assert b"attempt 1 was lost: its node died" in await control.output(held.job_id, LogStream.CONSOLE)


async def test_a_stream_of_output_has_a_bound(link: ControlLink, control: ControlPlane, held: LeaseKey) -> None:
    with pytest.raises(OutputRefused):
        for number in range(5):
            await link.append_output(held, [piece(number * MAX_PIECE_BYTES, b"x" * MAX_PIECE_BYTES)])
    assert len(await control.output(held.job_id)) <= 2 * MAX_PIECE_BYTES


async def test_a_piece_of_output_has_a_bound(link: ControlLink, held: LeaseKey) -> None:
    for wrong in (piece(0, b"x" * (MAX_PIECE_BYTES + 1)), piece(-1, b"x")):
        with pytest.raises(BelljarError):
            await link.append_output(held, [wrong])


async def test_output_is_whole_when_the_end_is_visible(
    link: ControlLink, control: ControlPlane, held: LeaseKey
) -> None:
    await start(link, held)
    await link.append_output(held, [piece(0, b"all")])
    await link.finish(held, ended(Status.FAILED))
    assert await control.output(held.job_id) == b"all"
    assert list((control.settings.data_dir / "run" / "logs").iterdir()) == []
