"""Bounds the usage that a guest reports by the usage that was possible in its machine.

A guest that its job took over can always report too little. It must never make a job's record show more than the
machine had.
"""

from __future__ import annotations

from dataclasses import replace

from belljar.node.guest.wire import Exited

#: Microseconds of tolerance: the guest counts CPU time in ticks, and starts a little before the host does.
_SLACK_US = 100_000


def clamp_usage(exited: Exited, *, elapsed_seconds: float, vcpus: int, memory_mb: int) -> Exited:
    """Return `exited` with each number reduced to its possible maximum.

    `elapsed_seconds` is measured by the host, from before it sent the command until it received the exit. No number
    is rejected: the exit itself stays valid, and rejecting it would run the script again.
    """
    elapsed_us = int(elapsed_seconds * 1_000_000) + _SLACK_US
    return replace(
        exited,
        cpu_us=min(exited.cpu_us, elapsed_us * vcpus),
        max_memory_bytes=min(exited.max_memory_bytes, memory_mb * 1024 * 1024),
        run_us=min(exited.run_us, elapsed_us),
    )
