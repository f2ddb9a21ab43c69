"""`belljar gc` and what doctor tells of the disk, as processes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from belljar.data_dir import DataDir
from belljar.doctor.sizes import measure_sizes
from belljar.model.states import Status
from belljar.settings import Settings
from support.command import belljar
from support.data_folder import opened

pytestmark = pytest.mark.process


async def fill(path: Path) -> None:
    async with opened(path) as folder:
        for days in (400, 500, 1):
            await folder.end(Status.SUCCEEDED, days)
        await folder.script()


async def count(path: Path) -> int:
    async with opened(path) as folder:
        return int(folder.sql("SELECT count(*) FROM jobs")[0][0])


async def hold(path: Path) -> bytes:
    """What the command says while another process does maintenance."""
    async with opened(path) as folder, folder.maintenance().exclusive(0):
        running = asyncio.create_task(asyncio.to_thread(belljar, "gc", data_dir=path))
        done, _ = await asyncio.wait([running], timeout=2)
        assert not done
    return (await running).stdout


def removed(stdout: bytes) -> dict[str, int]:
    return {kind["kind"]: kind["count"] for kind in json.loads(stdout)["removed"] if kind["count"]}


def test_gc_reports_first_and_removes_then(tmp_path: Path) -> None:
    asyncio.run(fill(tmp_path))
    dry = belljar("gc", "--dry-run", "--json", data_dir=tmp_path)
    assert removed(dry.stdout) == {"jobs": 2, "stdin": 3}
    assert json.loads(dry.stdout)["dry_run"] is True
    assert asyncio.run(count(tmp_path)) == 3
    plain = belljar("gc", data_dir=tmp_path)
    assert plain.returncode == 0
    assert b"jobs" in plain.stdout and b"MB removed" in plain.stdout
    assert asyncio.run(count(tmp_path)) == 1
    again = belljar("gc", "--json", data_dir=tmp_path)
    assert removed(again.stdout) == {} and json.loads(again.stdout)["total_bytes"] == 0


def test_gc_waits_for_a_servers_maintenance(tmp_path: Path) -> None:
    asyncio.run(fill(tmp_path))
    assert b"MB removed" in asyncio.run(hold(tmp_path))
    assert asyncio.run(count(tmp_path)) == 1


def test_sizes_are_reported_by_kind(tmp_path: Path) -> None:
    asyncio.run(fill(tmp_path))
    (tmp_path / "snapshots/one").mkdir(parents=True)
    (tmp_path / "snapshots/one/memory").write_bytes(bytes(100_000))
    DataDir(tmp_path).database.with_name("belljar.db.backup-1").write_bytes(b"x")
    (tmp_path / "link").symlink_to("/")
    sizes = measure_sizes(Settings(data_dir=tmp_path))
    counts = {kind: extent.count for kind, extent in sizes.kinds.items() if kind not in ("database", "run")}
    assert counts == {
        "jobs' logs": 3,
        "artifacts": 6,
        "stdin": 3,
        "scripts": 1,
        "backups": 1,
        "snapshots": 1,
        "images": 0,
        "layers": 0,
        "caches": 0,
        "other": 1,
    }
    assert sizes.complete and sizes.kinds["snapshots"].size_bytes >= 100_000
    assert sizes.total.count == sum(extent.count for extent in sizes.kinds.values())
    assert not measure_sizes(Settings(data_dir=tmp_path), seconds=-1).complete
    stored = next(
        check
        for check in json.loads(belljar("doctor", "--json", data_dir=tmp_path).stdout)
        if check["name"] == "stored"
    )
    assert "artifacts 0.0 MB (6 files)" in stored["message"]
