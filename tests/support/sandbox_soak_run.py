"""The run of a soak of sandboxes: a server, its callers, and what kills both server and machines meanwhile."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from support.killed_server import KilledServer
from support.paths import TESTS
from support.sandbox_history import History
from support.sandbox_soak import Soak

#: Quiet time before what is used is counted.
_SETTLE_SECONDS = 5.0
#: What goes wrong between server and worker for a while: lines of PATTERN PROBABILITY.
_TROUBLES = ("", "", "", "sandbox_link.* 0.2\n", "sandbox_link.* 1\n", "provisioner.machine 0.3\n")
_ENVIRONMENT = {"BELLJAR_LEASE_SECONDS": "5", "BELLJAR_MAX_SANDBOXES_PER_PROJECT": "1000"}


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where sandboxes run: a server, the program of its machines, and the request for a sandbox."""

    server: KilledServer
    program: str
    request: dict[str, Any]
    #: Files beside the data folder that only the server's processes use.
    places: tuple[Path, ...] = ()

    @property
    def key(self) -> str:
        """The operator's key, once the server has run."""
        return (self.server.data_dir / "admin.key").read_text().strip()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much, and how often something is killed."""

    sandboxes: int
    callers: int = 4
    kill_seconds: float = 10.0
    seed: int = 1
    max_seconds: float = 3600.0


def with_agents(data_dir: Path, agent: Path) -> Site:
    """Return a site whose machines are processes of the agent."""
    data_dir.mkdir()
    environment = {**_ENVIRONMENT, "BELLJAR_SNAPSHOTS": "off", "BELLJAR_POOL": "off"}
    prefix = (sys.executable, str(TESTS / "support/sandbox_soak_server.py"), str(agent))
    server = KilledServer(data_dir, prefix, environment)
    return Site(server=server, program=str(agent), request={"image": "harness"}, places=(agent,))


def with_machines(data_dir: Path, images: Path) -> Site:
    """Return a site of real machines; `images`: a folder of images with python."""
    data_dir.mkdir()
    (data_dir / "images").symlink_to(images.resolve())
    server = KilledServer(data_dir, environment=_ENVIRONMENT)
    return Site(server=server, program="qemu", request={"shape": {"memory_mb": 128}})


async def soak(site: Site, plan: Plan) -> tuple[History, dict[str, int], dict[str, int]]:
    """Return the history, and what the server used before anything was killed and at the end."""
    server = site.server
    await server.start()
    try:
        headers = {"Authorization": f"Bearer {site.key}"}
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=120, limits=limits) as http:
            soaked = Soak(http, site.request, seed=plan.seed)
            await _lives(soaked, range(plan.callers), plan.callers)
            await asyncio.sleep(_SETTLE_SECONDS)
            before = server.use()
            await _troubled_lives(soaked, site, plan)
            await asyncio.sleep(_SETTLE_SECONDS)
            after = server.use()
            soaked.history.leaked += await _living(http)
    finally:
        await server.stop()
    soaked.history.leaked += server.leftovers(*site.places)
    return soaked.history, before, after


async def _troubled_lives(soaked: Soak, site: Site, plan: Plan) -> None:
    killing = asyncio.create_task(_kill(site, soaked.history, plan))
    try:
        async with asyncio.timeout(plan.max_seconds):
            await _lives(soaked, range(plan.callers, plan.sandboxes), plan.callers)
    finally:
        killing.cancel()
        await asyncio.gather(killing, return_exceptions=True)
        if site.server.process is None or site.server.process.returncode is not None:
            await site.server.start()
    (site.server.data_dir / "faults").unlink(missing_ok=True)


async def _lives(soaked: Soak, numbers: range, callers: int) -> None:
    waiting = iter(numbers)

    async def call() -> None:
        for number in waiting:
            await soaked.live(number)

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(call())


async def _kill(site: Site, history: History, plan: Plan) -> None:
    """Kill the server or a machine at random times, and let calls between server and worker fail for a while."""
    chance, server = random.Random(plan.seed), site.server
    while True:
        (server.data_dir / "faults").write_text(chance.choice(_TROUBLES))
        await asyncio.sleep(chance.uniform(0.5, 1.5) * plan.kill_seconds)
        machines = server.machines(site.program)
        if chance.random() < 0.5 and machines:
            os.kill(chance.choice(machines), signal.SIGKILL)
            history.kills["machines"] += 1
        else:
            await server.kill()
            history.kills["servers"] += 1
            await server.start()


async def _living(http: httpx.AsyncClient) -> list[str]:
    """Return the sandboxes that nobody ended."""
    found: list[str] = []
    for status in ("creating", "running"):
        listed = (await http.get("/v1/sandboxes", params={"status": status})).json()["sandboxes"]
        found += [f"the sandbox {each['id']} is {status}" for each in listed]
    return found
