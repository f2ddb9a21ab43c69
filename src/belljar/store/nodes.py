"""The nodes: which workers there are, what they have, when they last said so."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import BaseModel, ConfigDict
from sqlalchemy import select
from sqlalchemy.dialects.sqlite import insert

from belljar.jobs.resolve import Largest
from belljar.store.database import Database
from belljar.store.schema import nodes

#: Each submitted job asks what the largest machine is; heartbeats are seconds apart.
_LATELY_SECONDS = 1.0


class Node(BaseModel):
    """One worker's word about itself."""

    model_config = ConfigDict(frozen=True)

    id: str
    hostname: str
    version: str
    started_at: datetime
    heartbeat_at: datetime
    #: None until its first machine.
    hypervisor: str | None = None
    accelerator: str | None = None
    vcpus: int
    memory_mb: int
    #: The largest job that could ever run there.
    largest_memory_mb: int
    vcpus_free: int
    memory_free_mb: int
    #: The largest scratch disk that there would be room for if nothing ran there; None: not known.
    largest_disk_mb: int | None = None
    running_jobs: int
    #: Clones of snapshots that wait for jobs, and the memory they take.
    waiting_clones: int = 0
    waiting_memory_mb: int = 0
    #: What machines are cloned from there: image and its digest, shape, hypervisor, bytes on the disk.
    snapshots: tuple[dict[str, Any], ...] = ()

    def public(self, silent_after_seconds: float) -> dict[str, Any]:
        """As the HTTP API prints it; `alive` when its last word is not older than that."""
        age = datetime.now(UTC) - self.heartbeat_at
        return {**self.model_dump(mode="json"), "alive": age < timedelta(seconds=silent_after_seconds)}


class SqlNodes:
    """Heartbeats."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._largest: Largest | None = None
        self._largest_until = 0.0

    async def heartbeat(self, node: Node) -> None:
        """Write a node's newest word over its last."""
        values = {
            "heartbeat_at": node.heartbeat_at,
            "vcpus": node.vcpus,
            "memory_mb": node.largest_memory_mb,
            "facts": node.model_dump(mode="json"),
        }
        query = insert(nodes).values(id=node.id, **values).on_conflict_do_update(index_elements=["id"], set_=values)
        async with self._database.write() as connection:
            await connection.execute(query)

    async def list(self) -> list[Node]:
        """All nodes that ever spoke, by id."""
        async with self._database.read() as connection:
            rows = (await connection.execute(select(nodes.c.facts).order_by(nodes.c.id))).all()
        return [Node.model_validate(row.facts) for row in rows]

    async def largest_lately(self, silent_after_seconds: float) -> Largest | None:
        """As `largest`, but what was found is good for a second."""
        if self._largest is None or time.monotonic() > self._largest_until:
            self._largest = await self.largest(silent_after_seconds)
            self._largest_until = time.monotonic() + _LATELY_SECONDS
        return self._largest

    async def largest(self, silent_after_seconds: float) -> Largest | None:
        """The largest machine that a living node could run; None when there is no living node."""
        since = datetime.now(UTC) - timedelta(seconds=silent_after_seconds)
        query = select(nodes.c.vcpus, nodes.c.memory_mb, nodes.c.facts).where(nodes.c.heartbeat_at > since)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        if not rows:
            return None
        memory_mb, vcpus = max((row.memory_mb, row.vcpus) for row in rows)
        disks_mb = [row.facts.get("largest_disk_mb") for row in rows]
        disk_mb = None if None in disks_mb else max(disks_mb)
        return Largest(vcpus=vcpus, memory_mb=memory_mb, disk_mb=disk_mb)
