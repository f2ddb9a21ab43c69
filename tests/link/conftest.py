"""Every implementation of the link is opened here, and passes the same tests: all of this folder."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from belljar.link.interface import ControlLink
from belljar.link.leases import LeaseKey
from belljar.link.sandboxes import SandboxLink
from support.control_plane import ControlPlane, opened_control_plane
from support.link_calls import claim_next


@asynccontextmanager
async def in_process(control: ControlPlane) -> AsyncIterator[ControlLink]:
    yield control.queue.link


#: How a node gets its link to a control plane. One line for each implementation.
IMPLEMENTATIONS: dict[str, Callable[[ControlPlane], AbstractAsyncContextManager[ControlLink]]] = {
    "in_process": in_process,
}


@pytest.fixture
async def control(tmp_path: Path) -> AsyncIterator[ControlPlane]:
    """The control plane behind the link."""
    async with opened_control_plane(
        tmp_path / "data", lease_seconds=30, max_output_mb=1, max_artifacts_mb=1, max_artifact_count=3
    ) as control:
        yield control


@pytest.fixture(params=IMPLEMENTATIONS)
async def link(request: pytest.FixtureRequest, control: ControlPlane) -> AsyncIterator[ControlLink]:
    """A node's link to `control`."""
    async with IMPLEMENTATIONS[request.param](control) as link:
        yield link


@pytest.fixture
async def sandboxes(control: ControlPlane) -> SandboxLink:
    """A node's link to `control` for sandboxes."""
    return control.sandboxes.link


@pytest.fixture
async def held(link: ControlLink, control: ControlPlane) -> LeaseKey:
    """The lease of a job that NODE holds."""
    await control.submit(stdin=b"input", max_attempts=3)
    return (await claim_next(link)).lease
