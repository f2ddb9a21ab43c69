"""Keeps what a machine used as a series of bounded length, from the agent's messages.

The agent is hostile: no number exceeds what the machine had, messages that come too often are dropped, and time is the
host's. Memory does not grow: when the series is full, each two points become one, and the interval doubles.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from belljar.model.usage_series import MAX_COUNT, MAX_POINTS, UsageSeries
from belljar.node.guest.channel_messages import Usage
from belljar.node.guest.wire import MAX_PID

FIRST_INTERVAL_SECONDS = 1.0
_MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineLimits:
    """What a machine has: the most that its guest may claim to use."""

    vcpus: int
    memory_mb: int
    #: Size of its scratch disk; without one its writable file system is in memory.
    disk_mb: int | None = None
    #: Whether it has a network device.
    network: bool = False

    @property
    def disk_bytes(self) -> int:
        """The most that its writable file system can hold."""
        return (self.disk_mb or self.memory_mb) * _MIB


@dataclass(frozen=True, slots=True)
class _Point:
    seconds: float
    #: Seconds of CPU time so far.
    cpu_seconds: float
    memory_bytes: int
    disk_bytes: int
    processes: int
    received_bytes: int
    sent_bytes: int

    def joined(self, after: _Point) -> _Point:
        """Return one point for this one and the next."""
        return _Point(
            after.seconds,
            after.cpu_seconds,
            max(self.memory_bytes, after.memory_bytes),
            after.disk_bytes,
            max(self.processes, after.processes),
            after.received_bytes,
            after.sent_bytes,
        )


class UsageSampler:
    """The series of one machine. It begins when this object is made, with the machine's first command."""

    def __init__(self, limits: MachineLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._began = clock()
        self._points: list[_Point] = []
        #: What the guest's counter showed last, and the CPU time until then.
        self._counter_us = 0
        self._cpu_seconds = 0.0
        self._next_at = FIRST_INTERVAL_SECONDS / 2
        #: Seconds between points: the interval at which messages are wanted.
        self.interval_seconds = FIRST_INTERVAL_SECONDS

    def add(self, usage: Usage) -> bool:
        """Take a message of the agent, or drop it when it came too early; return whether the interval has doubled."""
        seconds = round(self._clock() - self._began, 3)
        if seconds < self._next_at:
            if not self._points:
                self._counter_us = usage.cpu_us  # before the first command
            return False
        self._points.append(self._point(seconds, usage))
        self._next_at = seconds + self.interval_seconds / 2
        if len(self._points) < MAX_POINTS:
            return False
        pairs = zip(self._points[::2], self._points[1::2], strict=True)
        self._points = [first.joined(second) for first, second in pairs]
        self.interval_seconds *= 2
        return True

    def _point(self, seconds: float, usage: Usage) -> _Point:
        limits, last = self._limits, self._points[-1] if self._points else None
        # The counter begins anew with each command of a job.
        is_anew = usage.cpu_us < self._counter_us
        used_us = usage.cpu_us if is_anew else usage.cpu_us - self._counter_us
        self._counter_us = usage.cpu_us
        self._cpu_seconds = min(self._cpu_seconds + used_us / 1_000_000, limits.vcpus * seconds)
        received, sent = (usage.received_bytes, usage.sent_bytes) if limits.network else (0, 0)
        return _Point(
            seconds,
            self._cpu_seconds,
            min(usage.memory_bytes, limits.memory_mb * _MIB),
            min(usage.disk_bytes, limits.disk_bytes),
            min(usage.processes, MAX_PID),
            min(max(received, last.received_bytes if last else 0), MAX_COUNT),
            min(max(sent, last.sent_bytes if last else 0), MAX_COUNT),
        )

    def __len__(self) -> int:
        return len(self._points)

    def series(self) -> UsageSeries:
        """Return the series so far."""
        points, limits = self._points, self._limits
        cpu, at, before = [], 0.0, 0.0
        for point in points:
            rate = (point.cpu_seconds - before) / (point.seconds - at)
            cpu.append(round(min(rate, limits.vcpus), 4))
            at, before = point.seconds, point.cpu_seconds
        return UsageSeries(
            interval_seconds=self.interval_seconds,
            seconds=tuple(point.seconds for point in points),
            cpu=tuple(cpu),
            memory_bytes=tuple(point.memory_bytes for point in points),
            disk_bytes=tuple(point.disk_bytes for point in points),
            processes=tuple(point.processes for point in points),
            received_bytes=tuple(point.received_bytes for point in points),
            sent_bytes=tuple(point.sent_bytes for point in points),
            vcpus=limits.vcpus,
            memory_limit_bytes=limits.memory_mb * _MIB,
            disk_limit_bytes=limits.disk_bytes,
        )
