"""The owner of a machine: distinguished from every other process, as far as this process can know."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from belljar.node.machines.host.cgroup import PARENT, Hierarchy
from belljar.node.machines.host.leftovers import clear_leftovers
from belljar.node.machines.host.owner import is_dead, owner_name


@pytest.fixture
def dead() -> str:
    """The name of a process that has ended."""
    process = subprocess.Popen(["sleep", "300"])
    name = owner_name(process.pid)
    assert not is_dead(name)
    process.kill()
    process.wait()
    return name


def test_a_living_process_is_not_dead_and_an_ended_one_is(dead: str) -> None:
    assert not is_dead(owner_name(os.getpid()))
    assert is_dead(dead)


def test_a_reused_pid_is_another_owner() -> None:
    namespace, pid, start = owner_name(os.getpid()).split("-")
    assert is_dead(f"{namespace}-{pid}-{int(start) - 1}")


@pytest.mark.parametrize("name", ["", "x", "1-2", "1-2-3-4", "a-1-2", "-1-1-1"])
def test_what_is_no_owners_name_is_never_dead(name: str) -> None:
    assert not is_dead(name)


def test_owners_in_other_pid_namespaces_cannot_be_known_to_be_dead(dead: str) -> None:
    namespace, _, rest = dead.partition("-")
    assert not is_dead(f"{int(namespace) + 1}-{rest}")


async def test_only_what_the_dead_left_is_removed(dead: str, tmp_path: Path) -> None:
    parent, nodes = tmp_path / "cgroup" / PARENT, tmp_path / "nodes"
    nodes.mkdir()
    mine = owner_name(os.getpid())
    kept = (f"{mine}.a1", "other.b", "no-owner", dead)  # without a dot it is no machine's
    for name in (*kept, f"{dead}.a1", f"{dead}.b2"):
        (parent / name).mkdir(parents=True)
        (nodes / name).touch()
    hierarchy = Hierarchy(version=1, folder=tmp_path / "cgroup", controllers=frozenset({"memory"}))
    assert await clear_leftovers([hierarchy], nodes) == 4
    for folder in (parent, nodes):
        assert sorted(path.name for path in folder.iterdir()) == sorted(kept)
    assert await clear_leftovers([hierarchy], nodes) == 0


async def test_a_host_without_leftovers_is_left_alone(tmp_path: Path) -> None:
    hierarchy = Hierarchy(version=2, folder=tmp_path, controllers=frozenset({"memory"}))
    assert await clear_leftovers([hierarchy], tmp_path / "nodes") == 0
    assert list(tmp_path.iterdir()) == []
