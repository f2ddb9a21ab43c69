"""A worker in a process of its own serves its metrics where its setting says."""

from __future__ import annotations

import asyncio
import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from belljar.app.worker import work
from belljar.settings import Settings
from support.empty_database import place_empty_database


async def test_a_separate_worker_serves_its_metrics_until_it_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("belljar.app.worker.forbid_core_dumps", lambda: None)  # it would hold for the tests that follow
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    settings = Settings(data_dir=tmp_path, pool="off", snapshots="off", worker_metrics=address)
    await place_empty_database(settings)
    stop, ready = asyncio.Event(), asyncio.Event()
    working = asyncio.create_task(work(settings, on_ready=lambda _: ready.set(), stop=stop))
    try:
        async with asyncio.timeout(30):
            await ready.wait()
        text = await asyncio.to_thread(_read, address)
    finally:
        stop.set()
        await working
    assert "belljar_build_info" in text and "belljar_machines_total" in text
    with pytest.raises(urllib.error.URLError):
        await asyncio.to_thread(_read, address)


def _read(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as response:
        return response.read().decode()
