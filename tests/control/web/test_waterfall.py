"""The steps of a job as bars on one scale."""

from __future__ import annotations

from belljar.control.web.waterfall import waterfall
from belljar.model.job import Timings


def test_steps_follow_each_other_and_fill_the_scale() -> None:
    bars = waterfall(Timings(queue_ms=100, phases={"clone": 50, "resume": 150, "run": 700}, run_ms=700))
    assert [(bar.name, bar.kind) for bar in bars] == [
        ("queue", "queue"),
        ("clone", "machine"),
        ("resume", "machine"),
        ("run", "run"),
    ]
    assert [(bar.at, bar.width) for bar in bars] == [(0, 10), (10, 5), (15, 15), (30, 70)]
    assert not any(bar.is_cut for bar in bars)


def test_a_long_wait_leaves_half_of_the_scale_to_the_rest() -> None:
    queue, run = waterfall(Timings(queue_ms=1e9, phases={"run": 10}))
    assert (queue.width, queue.is_cut, queue.milliseconds) == (50, True, 1e9)
    assert (run.at, run.width) == (50, 50)


def test_a_short_step_is_seen_and_stays_on_the_scale() -> None:
    bars = waterfall(Timings(phases={"run": 1e6, "artifacts": 0.001}))
    assert bars[1].width > 0.3 and bars[1].at + bars[1].width <= 100


def test_a_job_that_has_not_started_has_no_bars() -> None:
    assert waterfall(Timings()) == []
    assert waterfall(Timings(queue_ms=5)) == []
