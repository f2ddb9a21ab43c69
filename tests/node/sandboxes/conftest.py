from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.worker_harness import WorkerHarness, build_agent, opened_harness


@pytest.fixture(scope="session")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real agent, to be run as an ordinary process."""
    return build_agent(tmp_path_factory.mktemp("agent"))


@pytest.fixture
async def harness(agent: Path, tmp_path: Path) -> AsyncIterator[WorkerHarness]:
    """A data folder with a store, blobs and an image, for workers without virtual machines."""
    async with opened_harness(tmp_path / "data", agent) as harness:
        yield harness
