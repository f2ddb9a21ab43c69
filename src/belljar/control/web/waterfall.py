"""The steps of a job one after the other, as bars on one scale of time."""

from __future__ import annotations

from dataclasses import dataclass

from belljar.model.job import Timings

#: The width of the scale.
_WIDTH = 100.0
#: A bar is at least this wide, so that it is seen.
_MIN_WIDTH = 0.4
#: Waiting in the queue is on the scale up to this many times the rest; a longer one would leave no room for it.
_MAX_QUEUE = 1.0


@dataclass(frozen=True, slots=True)
class Bar:
    """One step."""

    name: str
    #: `queue`, `machine` or `run`: who the time belongs to.
    kind: str
    milliseconds: float
    at: float
    width: float
    #: Whether it took longer than the scale shows.
    is_cut: bool = False


def waterfall(timings: Timings) -> list[Bar]:
    """Return the bars of a job's steps; none for a job that has not started."""
    phases = {name: value for name, value in timings.phases.items() if value > 0}
    if "run" not in phases and timings.run_ms:
        phases["run"] = timings.run_ms
    if not phases:
        return []
    rest = sum(phases.values())
    queue = timings.queue_ms or 0.0
    shown_queue = min(queue, rest * _MAX_QUEUE)
    steps = [("queue", "queue", queue, shown_queue)] if queue else []
    kinds = {name: "run" if name in ("run", "compile") else "machine" for name in phases}
    steps += [(name, kinds[name], value, value) for name, value in phases.items()]
    scale, at, bars = _WIDTH / (shown_queue + rest), 0.0, []
    for name, kind, value, shown in steps:
        width = max(_MIN_WIDTH, shown * scale)
        bars.append(Bar(name, kind, value, round(min(at, _WIDTH - width), 2), round(width, 2), shown < value))
        at += shown * scale
    return bars
