"""doctor's findings about what runs machines, over the fakes and over what is not there."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from belljar.doctor.check import Check
from belljar.doctor.machines import check_machines
from belljar.settings import Settings
from support.firecracker.building import build_fakes

pytestmark = [pytest.mark.vm, pytest.mark.root]


def _found(settings: Settings) -> dict[str, Check]:
    async def collect() -> dict[str, Check]:
        return {check.name: check async for check in check_machines(settings, None)}

    return asyncio.run(collect())


def test_suitable_executables_are_shown_with_their_versions(tmp_path: Path) -> None:
    firecracker, jailer = build_fakes(tmp_path / "programs")
    found = _found(Settings(data_dir=tmp_path, firecracker=str(firecracker), jailer=str(jailer)))
    assert (found["Firecracker"].level, found["Firecracker"].message) == ("ok", "1.16.1")
    assert found["jailer"].level == "ok"
    assert "microvm" in found["QEMU"].message


def test_executables_that_others_may_change_are_a_failure(tmp_path: Path) -> None:
    firecracker, jailer = build_fakes(tmp_path / "programs")
    firecracker.chmod(0o777)
    check = _found(Settings(data_dir=tmp_path, firecracker=str(firecracker), jailer=str(jailer)))["executables"]
    assert check.level == "fail" and str(firecracker) in check.message and "chmod go-w" in check.fix


def test_one_that_is_too_old_fails_only_where_it_is_asked_for(tmp_path: Path) -> None:
    firecracker, jailer = build_fakes(tmp_path / "programs", version="1.4.0")
    named = {"data_dir": tmp_path, "firecracker": str(firecracker), "jailer": str(jailer)}
    assert _found(Settings(**named))["Firecracker"].level == "warn"
    check = _found(Settings(**named, hypervisor="firecracker"))["Firecracker"]
    assert check.level == "fail" and "1.4.0 is too old" in check.message


def test_one_that_is_asked_for_and_absent_is_a_failure_with_where_to_take_it_from(tmp_path: Path) -> None:
    check = _found(Settings(data_dir=tmp_path, firecracker="no-such-firecracker", hypervisor="firecracker"))[
        "Firecracker"
    ]
    assert check.level == "fail" and "releases" in check.fix


def test_user_ids_that_somebody_has_are_a_failure(tmp_path: Path) -> None:
    found = _found(Settings(data_dir=tmp_path, jail_uid_base=65_000, jail_uid_count=1000))
    assert found["user ids"].level == "fail" and "nobody" in found["user ids"].message
    assert _found(Settings(data_dir=tmp_path))["user ids"].level == "ok"
