"""What a process remembers of leases: no more than the database, and nothing for ever."""

from __future__ import annotations

import time
from pathlib import Path

from belljar.link.leases import ClaimRequest, NodeIdentity
from belljar.link.output import OutputPiece
from belljar.model.log_stream import LogStream
from support.control_plane import opened_control_plane

NODE = NodeIdentity("n1", "a")
ROOM = ClaimRequest(vcpus=8, memory_mb=8192)


async def test_a_lease_that_ran_out_long_ago_is_forgotten_and_found_again(tmp_path: Path) -> None:
    async with opened_control_plane(tmp_path / "data") as control:
        link, leases = control.queue.link, []
        for _ in range(2):
            await control.submit()
            assignment = await link.claim(NODE, ROOM, 0)
            assert assignment is not None
            leases.append(assignment.lease)
        first, second = leases
        await link.append_output(first, [OutputPiece(LogStream.STDOUT, 0, b"abc")])
        link.leases._held[first.job_id].valid_until = time.monotonic() - 2 * control.settings.lease_seconds
        await link.renew(NODE, [second])
        assert set(link.leases._held) == {second.job_id}
        assert await link.append_output(first, [OutputPiece(LogStream.STDOUT, 3, b"def")]) == {LogStream.STDOUT: 6}
        assert await control.output(first.job_id) == b"abcdef"
