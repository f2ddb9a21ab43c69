"""How much of each deadline was used at most: noted at successes and timeouts, kept in a small file, told by doctor."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from belljar.doctor.machines import check_machines
from belljar.model.errors import MachineDied, MachineTimeout
from belljar.node.machines.deadline_uses import KEEP_SECONDS, DeadlineUse, DeadlineUses, noted, read_deadline_uses
from belljar.settings import Settings


@pytest.fixture
def uses(monkeypatch: pytest.MonkeyPatch) -> DeadlineUses:
    """The maxima of this process, as if it had just begun."""
    fresh = DeadlineUses()
    monkeypatch.setattr("belljar.node.machines.deadline_uses.deadline_uses", fresh)
    return fresh


def shares(uses: list[DeadlineUse]) -> dict[str, float]:
    return {use.name: round(use.share, 2) for use in uses}


async def test_successes_and_timeouts_are_noted_and_other_ends_are_not(uses: DeadlineUses) -> None:
    with noted("quick", 1000):
        pass
    with pytest.raises(TimeoutError), noted("slow", 0.01):
        async with asyncio.timeout(0.01):
            await asyncio.sleep(10)
    with pytest.raises(MachineTimeout), noted("answer", 5):
        raise MachineTimeout("it did not answer")
    with pytest.raises(MachineTimeout), noted("collect", 5, by_guest=True):
        raise MachineTimeout("the guest may have chosen that")
    with pytest.raises(MachineDied), noted("died", 5):
        raise MachineDied("killed")
    assert shares(uses.all()) == {"quick": 0.0, "slow": 1.0, "answer": 1.0}


def test_the_file_has_the_maxima_of_all_processes_and_survives_damage(tmp_path: Path) -> None:
    file = tmp_path / "cache" / "deadlines.json"
    first, second = DeadlineUses(), DeadlineUses()
    for each in (first, second):
        each.keep_in(file)
    first.record("boot", 30, 60)
    second.record("boot", 12, 60)
    second.record("resume", 8, 10)
    assert shares(read_deadline_uses(file)) == {"resume": 0.8, "boot": 0.5}
    assert file.stat().st_mode & 0o077 == 0
    for damaged in ("", "[", "{}", '[{"name": 1}]', "[3]", "null"):
        file.write_text(damaged)
        assert read_deadline_uses(file) == []
    first.record("boot", 59, 60)
    assert shares(read_deadline_uses(file)) == {"boot": 0.98}


def test_the_file_is_written_for_noticeable_changes_only(tmp_path: Path) -> None:
    file = tmp_path / "deadlines.json"
    uses = DeadlineUses()
    uses.keep_in(file)
    written = set()
    for tenth in range(600):
        uses.record("boot", tenth / 10, 60)
        written.add(file.read_text())
    assert len(written) <= 21


def test_an_old_maximum_and_one_of_another_setting_are_replaced() -> None:
    now = time.time()
    high = DeadlineUse(name="boot", used_seconds=59, limit_seconds=60, at=now)
    low = DeadlineUse(name="boot", used_seconds=1, limit_seconds=60, at=now + 10)
    assert not high.is_replaced_by(low)
    assert high.is_replaced_by(DeadlineUse(name="boot", used_seconds=1, limit_seconds=60, at=now + KEEP_SECONDS + 1))
    assert high.is_replaced_by(DeadlineUse(name="boot", used_seconds=1, limit_seconds=120, at=now + 10))


def test_a_data_folder_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    uses = DeadlineUses()
    uses.keep_in(tmp_path / "file" / "deadlines.json")
    uses.record("boot", 30, 60)
    assert shares(uses.all()) == {"boot": 0.5}


@pytest.mark.parametrize(
    ("use", "level", "message", "fix"),
    [
        (None, "ok", "no machine has run here", ""),
        (("boot", 3.0, 60.0), "ok", "the closest: a boot took 3.0 of 60 s (5%)", ""),
        (
            ("resume", 8.0, 10.0),
            "warn",
            "close: the answer of a clone took 8.0 of 10 s (80%)",
            "boot_timeout_seconds to 100",
        ),
        (("boot", 60.0, 60.0), "warn", "close: a boot exceeded 60 s", "boot_timeout_seconds to 120"),
    ],
)
async def test_doctor_tells_which_deadlines_were_close(
    tmp_path: Path, use: tuple[str, float, float] | None, level: str, message: str, fix: str
) -> None:
    settings = Settings(data_dir=tmp_path)
    if use is not None:
        name, used, limit = use
        entry = DeadlineUse(name=name, used_seconds=used, limit_seconds=limit, at=time.time())
        old = DeadlineUse(name="old", used_seconds=limit, limit_seconds=limit, at=time.time() - KEEP_SECONDS - 1)
        settings.paths.deadline_uses.parent.mkdir()
        settings.paths.deadline_uses.write_text(json.dumps([asdict(old), asdict(entry)]))
    (check,) = [check async for check in check_machines(settings, None) if check.name == "deadlines"]
    assert check.level == level and message in check.message and fix in check.fix
