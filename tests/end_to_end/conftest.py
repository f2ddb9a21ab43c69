from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.internet import METADATA, WEB, SimulatedInternet, host_state, simulated_internet
from support.running import Server, serving


@pytest.fixture(scope="module")
def server(built_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests of a file, which none of them harms."""
    data_dir = tmp_path_factory.mktemp("server") / "data"
    data_dir.mkdir()
    (data_dir / "images").symlink_to(built_images / "images")
    with serving(data_dir, BELLJAR_ACCELERATOR="tcg", BELLJAR_POOL="off") as server:
        yield server
        assert server.process.poll() is None, server.log.read_text()
        server.until_no_machines()
        assert "Traceback" not in server.log.read_text()


@pytest.fixture(scope="module")
def internet() -> Iterator[SimulatedInternet]:
    before = host_state()
    with simulated_internet() as made:
        made.nameserver.zone |= {"www.example.org": [WEB], "rebound.example.org": [METADATA]}
        yield made
    assert host_state() == before
