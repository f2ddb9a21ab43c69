"""A short soak: sandboxes of a server that is killed, and whose machines are killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from belljar.model.sandbox import EndReason
from support.sandbox_history import Life, Report
from support.sandbox_soak_run import Plan, soak, with_agents

pytestmark = pytest.mark.process


async def test_callers_know_what_happened_and_nothing_is_left(agent: Path, tmp_path: Path) -> None:
    history, _, after = await soak(with_agents(tmp_path / "data", agent), Plan(sandboxes=24, kill_seconds=4))
    assert history.faults() == []
    assert history.kills["servers"] + history.kills["machines"] >= 1
    assert history.reports()["exit"] > 20
    assert after["processes below the server"] == 0 and after["files in run"] <= 2


@pytest.mark.parametrize(
    ("report", "fault"),
    [
        (Report("t", b"x", 0, b"x", [0, 0]), "2 exits"),
        (Report("t", b"x", 0, b"x", [1]), "exit 1, not 0"),
        (Report("t", b"xy", 0, b"x", [0]), "1 bytes of output"),
        (Report("t", b"x", 0, b"x", []), "neither an exit nor a failure"),
    ],
)
def test_the_checker_finds_what_cannot_be_true_of_a_command(report: Report, fault: str) -> None:
    assert fault in report.faults()[0]
    assert Report("t", b"x", 0, b"x", [0]).faults() == []


def test_the_checker_finds_commands_that_ran_twice_or_never() -> None:
    life = Life(1, EndReason.DELETED, commands=[Report("a", b"", 0, b"", [0]), Report("b", b"", 0, failure="gone")])
    life.ran = ["a", "b"]
    assert life.faults() == []
    life.ran = ["a", "b", "b"]
    assert "b ran 2 times" in life.faults()[0]
    life.ran = ["b"]
    assert "a has an exit and never ran" in life.faults()[0]


def test_the_checker_finds_ends_that_nobody_caused() -> None:
    life = Life(1, EndReason.DELETED, id="sb_1")
    for status, reason, is_right in (
        ("ended", "deleted", True),
        ("lost", "node_lost", True),
        ("ended", "node_lost", False),
        ("ended", "idle", False),
    ):
        life.end = {"status": status, "end": {"reason": reason}}
        assert (life.faults() == []) is is_right
    life.end = {"status": "running", "end": None}
    assert "no end" in life.faults()[0]
