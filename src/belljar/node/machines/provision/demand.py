"""The recent demand for clones of one image and shape, and how many clones should wait for it.

Everything here is arithmetic on times that the caller passes in: no clock, no I/O.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, field

#: Older demand does not count: without recent demand no clone waits.
DEMAND_SECONDS = 120.0
#: Jobs that come within this time of each other need a clone each.
_BURST_SECONDS = 0.5
#: A burst counts in full for this long, then less and less until DEMAND_SECONDS.
_FULL_BURST_SECONDS = 30.0
#: The rate is the higher of two averages: one follows a change, the other is steady when jobs come seldom.
_WINDOWS_SECONDS = (15.0, 60.0)
#: A new record is taken for this much older: one demand is no rate yet.
_PRIOR_SECONDS = 20.0
#: The share of jobs that should find a waiting clone.
_HIT_SHARE = 0.95
#: A clone of which none was made yet is assumed to take this long.
_FIRST_REFILL_SECONDS = 0.5
#: Weight of the newest refill time in their average.
_NEWEST_WEIGHT = 0.3
#: From this load on, clones cannot be made as fast as they are taken, and the formula for the queue has no answer.
_MAX_LOAD = 0.9
#: No pool is larger, whatever its limits: bounds the loop over the Poisson distribution.
_MAX_CLONES = 1000
_MAX_BURSTS = 64


@dataclass(slots=True)
class _Burst:
    """Demands within _BURST_SECONDS of its first."""

    since: float
    count: int = 1


@dataclass(slots=True)
class _Average:
    """An exponentially weighted count of demands per second."""

    window_seconds: float
    weight: float = 0.0
    at: float = 0.0

    def add(self, now: float) -> None:
        self.weight = self._decayed(now) + 1
        self.at = now

    def rate(self, now: float, since: float) -> float:
        """Return demands per second; `since`: the time of the first, before which there was no record."""
        recorded_seconds = now - since + _PRIOR_SECONDS
        covered = 1 - math.exp(-recorded_seconds / self.window_seconds)
        return self._decayed(now) / self.window_seconds / covered

    def _decayed(self, now: float) -> float:
        return self.weight * math.exp(-max(0.0, now - self.at) / self.window_seconds)


@dataclass(slots=True)
class Demand:
    """What was requested of one bucket, and how long its clones take to make."""

    _averages: tuple[_Average, ...] = field(default_factory=lambda: tuple(map(_Average, _WINDOWS_SECONDS)))
    _bursts: deque[_Burst] = field(default_factory=lambda: deque(maxlen=_MAX_BURSTS))
    _first: float = 0.0
    _last: float = -math.inf
    _refill_seconds: float | None = None

    def record(self, now: float, max_size: int) -> None:
        """Record that a clone was requested. Of one burst no more count than a pool of `max_size` could have served."""
        if not self.is_recent(now):
            self._first = now
            self._bursts.clear()
            self._averages = tuple(map(_Average, _WINDOWS_SECONDS))
        self._last = now
        if self._bursts and now - self._bursts[-1].since < _BURST_SECONDS:
            self._bursts[-1].count += 1
        else:
            self._bursts.append(_Burst(now))
        if self._bursts[-1].count <= max_size:
            for average in self._averages:
                average.add(now)

    def record_refill(self, seconds: float) -> None:
        """Record how long a clone took to make."""
        known = self._refill_seconds
        self._refill_seconds = seconds if known is None else known + _NEWEST_WEIGHT * (seconds - known)

    @property
    def last_at(self) -> float:
        """Return the time of the last demand."""
        return self._last

    def is_recent(self, now: float, within_seconds: float = DEMAND_SECONDS) -> bool:
        """Return whether there was any demand within that time."""
        return now - self._last < within_seconds

    def rate(self, now: float) -> float:
        """Return the demands per second."""
        return max(average.rate(now, self._first) for average in self._averages) if self.is_recent(now) else 0.0

    @property
    def refill_seconds(self) -> float:
        """Return how long a clone takes to make."""
        return _FIRST_REFILL_SECONDS if self._refill_seconds is None else self._refill_seconds

    def target_size(self, now: float, max_size: int) -> int:
        """Return how many clones should wait: for the rate and for the largest recent burst, at most `max_size`."""
        if not self.is_recent(now):
            return 0
        return min(max_size, max(1, clones_for_rate(self.rate(now), self.refill_seconds), self._burst(now)))

    def _burst(self, now: float) -> int:
        """Return the size of the largest recent burst, where an older one counts less."""
        fading_seconds = DEMAND_SECONDS - _FULL_BURST_SECONDS
        return max(
            (
                math.ceil(burst.count * min(1.0, (DEMAND_SECONDS - (now - burst.since)) / fading_seconds))
                for burst in self._bursts
                if now - burst.since < DEMAND_SECONDS
            ),
            default=0,
        )


def clones_for_rate(rate_per_second: float, refill_seconds: float) -> int:
    """Return the smallest pool in which _HIT_SHARE of jobs that come at random find a clone.

    A clone that is taken is ordered again at once, and arrives after the time to make it and the wait for its turn,
    which is that of a queue with one server (M/D/1). What is ordered and not there yet is then distributed by Poisson,
    and a job finds a clone when fewer are missing than the pool has: a base-stock policy of inventory theory.
    """
    load = min(_MAX_LOAD, rate_per_second * refill_seconds)
    lead_seconds = refill_seconds * (1 + load / (2 * (1 - load)))
    expected = rate_per_second * lead_seconds
    probability = math.exp(-expected)
    hits, clones = probability, 1
    while hits < _HIT_SHARE and clones < _MAX_CLONES:
        probability *= expected / clones
        hits += probability
        clones += 1
    return clones


@dataclass(frozen=True, slots=True)
class Claim:
    """What a bucket wants of the memory budget."""

    count: int
    #: Memory of each of its clones.
    each_mb: float


def share_memory(claims: dict[str, Claim], budget_mb: float) -> dict[str, int]:
    """Return how many clones each bucket may keep within the budget: none loses more of what it wants than another.

    Clones are granted one at a time to the bucket with the smallest part of what it wants.
    """
    if sum(claim.count * claim.each_mb for claim in claims.values()) <= budget_mb:
        return {name: claim.count for name, claim in claims.items()}
    granted = dict.fromkeys(claims, 0)
    left_mb = budget_mb
    # The part of its claim that each has after its next clone.
    parts = [(1 / claim.count, name) for name, claim in claims.items() if claim.count > 0]
    heapq.heapify(parts)
    while parts:
        _, name = heapq.heappop(parts)
        claim = claims[name]
        if claim.each_mb > left_mb:
            continue  # a bucket with smaller clones may still get one
        left_mb -= claim.each_mb
        granted[name] += 1
        if granted[name] < claim.count:
            heapq.heappush(parts, ((granted[name] + 1) / claim.count, name))
    return granted
