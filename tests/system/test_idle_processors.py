"""Idle processors, by the kernel's counters."""

from __future__ import annotations

from pathlib import Path

import pytest

from belljar.system.idle_processors import IdleProcessors, read_idle_seconds


class Host:
    """A host with a clock and idle processors of the test's choice."""

    def __init__(self) -> None:
        self.now = 100.0
        self.idle_seconds = 5.0
        self.processors = IdleProcessors(lambda: self.idle_seconds, lambda: self.now)

    def run(self, seconds: float, idle: float) -> None:
        self.now += seconds
        self.idle_seconds += idle * seconds


@pytest.mark.parametrize(("idle", "taken"), [(0.0, 0), (0.5, 0), (0.9, 1), (1.9, 2), (4.0, 4)])
def test_each_idle_processor_is_taken_once(idle: float, taken: int) -> None:
    host = Host()
    assert not host.processors.take()  # nothing is known yet
    host.run(0.5, idle)
    assert [host.processors.take() for _ in range(6)].count(True) == taken


def test_a_short_time_says_nothing_new_and_an_old_look_nothing_at_all() -> None:
    host = Host()
    host.processors.take()
    host.run(0.1, idle=2)
    assert not host.processors.take()
    host.run(60, idle=2)
    assert not host.processors.take()
    host.run(0.3, idle=2)
    assert host.processors.take()


def test_what_cannot_be_read_is_not_idle() -> None:
    def broken() -> float:
        raise OSError("no /proc")

    assert not IdleProcessors(broken).take()


def test_idle_time_is_that_of_all_processors(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  1 2 3 400 50 6 7 8 9 10\ncpu0 1 2 3 200 25 6 7 8 9 10\n")
    assert read_idle_seconds(stat) == pytest.approx(4.5)
    assert read_idle_seconds() > 0
