"""The table of transitions is complete: every job can reach a terminal status, and none leaves one."""

from __future__ import annotations

import pytest

from belljar.model.states import TERMINAL, TRANSITIONS, Status, may_become


def reachable(start: Status) -> set[Status]:
    found, left = {start}, [start]
    while left:
        for after in TRANSITIONS[left.pop()] - found:
            found.add(after)
            left.append(after)
    return found


def test_every_status_has_its_line() -> None:
    assert set(TRANSITIONS) == set(Status)


@pytest.mark.parametrize("status", sorted(TERMINAL))
def test_nothing_follows_an_end(status: Status) -> None:
    assert TRANSITIONS[status] == frozenset()
    assert status.terminal


@pytest.mark.parametrize("status", sorted(set(Status) - TERMINAL))
def test_every_job_can_still_end_and_be_cancelled(status: Status) -> None:
    assert not status.terminal
    assert reachable(status) >= TERMINAL
    assert Status.CANCELLED in TRANSITIONS[status]


def test_every_status_is_reached_from_queued() -> None:
    assert reachable(Status.QUEUED) == set(Status)


def test_a_script_ends_by_itself_only_in_a_machine() -> None:
    assert may_become(Status.SUCCEEDED) == {Status.STARTING, Status.RUNNING}
    assert may_become(Status.TIMED_OUT) == {Status.STARTING, Status.RUNNING}  # a compiler took too long


@pytest.mark.parametrize("status", Status)
def test_may_become_is_the_table_read_backwards(status: Status) -> None:
    assert may_become(status) == {origin for origin in Status if status in TRANSITIONS[origin]}
