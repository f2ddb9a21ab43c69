"""The records of nodes: their last reports, with the time of the heartbeat."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, select, type_coerce
from sqlalchemy.dialects.sqlite import insert

from belljar.control.store.database import Database
from belljar.control.store.metadata import UtcTime
from belljar.control.store.schema import NOW_US, nodes
from belljar.link.nodes import NodeReport
from belljar.model.resources import NodeLimits

#: How long `cached_limits` caches: each submission reads them, and heartbeats are seconds apart.
_CACHE_SECONDS = 1.0


class Node(NodeReport):
    """The stored record of a node: its last report."""

    id: str
    heartbeat_at: datetime

    @classmethod
    def of_report(cls, node_id: str, report: NodeReport) -> Node:
        """Return the record of a node that has just reported."""
        fields = {name: getattr(report, name) for name in NodeReport.model_fields}
        return cls(id=node_id, heartbeat_at=datetime.now(UTC), **fields)

    def public(self, silent_after_seconds: float) -> dict[str, Any]:
        """Return the node as the HTTP API prints it; it is `alive` for that long after its last heartbeat."""
        return {"id": self.id, **self.model_dump(mode="json"), "alive": self.is_alive(silent_after_seconds)}

    def is_alive(self, silent_after_seconds: float) -> bool:
        """Return whether its last heartbeat is not older than that."""
        return datetime.now(UTC) - self.heartbeat_at < timedelta(seconds=silent_after_seconds)


class SqlNodes:
    """The records of nodes in the database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._cached_limits: tuple[NodeLimits, ...] = ()
        self._cached_until = 0.0
        #: When each image was last reported by a living node, and when this was first recorded.
        self._images_seen: dict[str, float] = {}
        self._images_seen_since = 0.0

    async def heartbeat(self, node: Node) -> None:
        """Replace a node's report, with the time by the database's clock."""
        values: dict[str, Any] = {
            "heartbeat_at": type_coerce(NOW_US, UtcTime),
            "vcpus": node.vcpus,
            "memory_mb": node.largest_memory_mb,
            "facts": node.model_dump(mode="json"),
        }
        self._cached_until = 0.0
        query = insert(nodes).values(id=node.id, **values).on_conflict_do_update(index_elements=["id"], set_=values)
        await self._database.writing(lambda connection: connection.execute(query))

    async def list(self) -> list[Node]:
        """Return all nodes by id, dead ones too."""
        query = select(nodes.c.facts, nodes.c.heartbeat_at).order_by(nodes.c.id)
        rows = await self._database.reading(lambda connection: connection.execute(query).all())
        return [Node.model_validate({**row.facts, "heartbeat_at": row.heartbeat_at}) for row in rows]

    async def cached_limits(self, silent_after_seconds: float) -> tuple[NodeLimits, ...]:
        """Return `limits`, cached for a second."""
        if time.monotonic() > self._cached_until:
            self._cached_limits = await self.limits(silent_after_seconds)
            self._cached_until = time.monotonic() + _CACHE_SECONDS
        return self._cached_limits

    async def limits(self, silent_after_seconds: float) -> tuple[NodeLimits, ...]:
        """Return the largest machine that each living node can run; empty when there is no living node."""
        disk_mb = nodes.c.facts["largest_disk_mb"].as_integer()
        query = select(nodes.c.vcpus, nodes.c.memory_mb, disk_mb).where(_living(silent_after_seconds)).distinct()
        rows = await self._database.reading(lambda connection: connection.execute(query).all())
        return tuple(
            NodeLimits(vcpus=vcpus, memory_mb=memory_mb, disk_mb=disk_mb) for vcpus, memory_mb, disk_mb in rows
        )

    async def images(self, silent_after_seconds: float, missing_seconds: float = 0.0) -> set[str] | None:
        """Return the digests of the images that living nodes have, or had within the last `missing_seconds`.

        None when there is no living node, when one does not report its images, or when the first call was less than
        `missing_seconds` ago.
        """
        query = select(nodes.c.facts).where(_living(silent_after_seconds))
        facts = await self._database.reading(lambda connection: connection.execute(query).scalars().all())
        reported, now = [each.get("images") for each in facts], time.monotonic()
        self._images_seen_since = self._images_seen_since or now
        if not reported or any(images is None for images in reported):
            return None
        self._images_seen |= {digest: now for images in reported for digest in images}
        self._images_seen = {digest: at for digest, at in self._images_seen.items() if now - at <= missing_seconds}
        return set(self._images_seen) if now - self._images_seen_since >= missing_seconds else None


def _living(silent_after_seconds: float) -> ColumnElement[bool]:
    return type_coerce(nodes.c.heartbeat_at, BigInteger) > NOW_US - int(silent_after_seconds * 1_000_000)
