"""What a guest says a command used, held against what its machine could have used.

A guest may have been taken over by its job: it can always say too little. It cannot say more than the machine has.
"""

from __future__ import annotations

from dataclasses import replace

from belljar.node.guest.wire import Exited

#: The guest counts processor time in ticks, and begins to count a little before the host does.
_SLACK_US = 100_000


def clamp_usage(exited: Exited, *, elapsed_seconds: float, vcpus: int, memory_mb: int) -> Exited:
    """Return `exited` with no number above what is possible.

    `elapsed_seconds` is the host's own measure, from before the command was sent until its end was heard. A number that
    is too large is cut and not refused: how the command ended is as true as before, and refusing would run it again.
    """
    elapsed_us = int(elapsed_seconds * 1_000_000) + _SLACK_US
    return replace(
        exited,
        cpu_us=min(exited.cpu_us, elapsed_us * vcpus),
        max_memory_bytes=min(exited.max_memory_bytes, memory_mb * 1024 * 1024),
        run_us=min(exited.run_us, elapsed_us),
    )
