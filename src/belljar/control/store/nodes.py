"""The nodes: which workers there are, what they have, when they last said so."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, select, type_coerce
from sqlalchemy.dialects.sqlite import insert

from belljar.control.store.database import Database
from belljar.control.store.schema import NOW_US, UtcTime, nodes
from belljar.link.nodes import NodeReport
from belljar.model.resources import NodeLimits

#: Each submitted job asks what the largest machines are; heartbeats are seconds apart.
_LATELY_SECONDS = 1.0


class Node(NodeReport):
    """A node's last report, as it is kept."""

    id: str
    heartbeat_at: datetime

    @classmethod
    def of_report(cls, node_id: str, report: NodeReport) -> Node:
        """Return the record of a node that has just reported."""
        fields = {name: getattr(report, name) for name in NodeReport.model_fields}
        return cls(id=node_id, heartbeat_at=datetime.now(UTC), **fields)

    def public(self, silent_after_seconds: float) -> dict[str, Any]:
        """As the HTTP API prints it; `alive` when its last word is not older than that."""
        age = datetime.now(UTC) - self.heartbeat_at
        return {"id": self.id, **self.model_dump(mode="json"), "alive": age < timedelta(seconds=silent_after_seconds)}


class SqlNodes:
    """Heartbeats."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._largest: tuple[NodeLimits, ...] = ()
        self._largest_until = 0.0
        #: When images were last seen on a living node, and since when that is watched.
        self._images_seen: dict[str, float] = {}
        self._images_asked_since = 0.0

    async def heartbeat(self, node: Node) -> None:
        """Write a node's newest word over its last, with the database's time."""
        values: dict[str, Any] = {
            "heartbeat_at": type_coerce(NOW_US, UtcTime),
            "vcpus": node.vcpus,
            "memory_mb": node.largest_memory_mb,
            "facts": node.model_dump(mode="json"),
        }
        self._largest_until = 0.0
        query = insert(nodes).values(id=node.id, **values).on_conflict_do_update(index_elements=["id"], set_=values)
        await self._database.writing(lambda connection: connection.execute(query))

    async def list(self) -> list[Node]:
        """All nodes that ever spoke, by id."""
        query = select(nodes.c.facts, nodes.c.heartbeat_at).order_by(nodes.c.id)
        rows = await self._database.reading(lambda connection: connection.execute(query).all())
        return [Node.model_validate({**row.facts, "heartbeat_at": row.heartbeat_at}) for row in rows]

    async def largest_lately(self, silent_after_seconds: float) -> tuple[NodeLimits, ...]:
        """As `largest`, but what was found is good for a second."""
        if time.monotonic() > self._largest_until:
            self._largest = await self.largest(silent_after_seconds)
            self._largest_until = time.monotonic() + _LATELY_SECONDS
        return self._largest

    async def largest(self, silent_after_seconds: float) -> tuple[NodeLimits, ...]:
        """The largest machines that each living node could run; none when there is no living node."""
        disk_mb = nodes.c.facts["largest_disk_mb"].as_integer()
        query = select(nodes.c.vcpus, nodes.c.memory_mb, disk_mb).where(_living(silent_after_seconds)).distinct()
        rows = await self._database.reading(lambda connection: connection.execute(query).all())
        return tuple(
            NodeLimits(vcpus=vcpus, memory_mb=memory_mb, disk_mb=disk_mb) for vcpus, memory_mb, disk_mb in rows
        )

    async def images(self, silent_after_seconds: float, missing_seconds: float = 0.0) -> set[str] | None:
        """Digests of the images that living nodes have, or had within the last `missing_seconds` as far as seen here.

        None when there is no living node, one that did not tell, or when this has not been asked for so long.
        """
        query = select(nodes.c.facts).where(_living(silent_after_seconds))
        facts = await self._database.reading(lambda connection: connection.execute(query).scalars().all())
        told, now = [each.get("images") for each in facts], time.monotonic()
        self._images_asked_since = self._images_asked_since or now
        if not told or any(images is None for images in told):
            return None
        self._images_seen |= {digest: now for images in told for digest in images}
        self._images_seen = {digest: at for digest, at in self._images_seen.items() if now - at <= missing_seconds}
        return set(self._images_seen) if now - self._images_asked_since >= missing_seconds else None


def _living(silent_after_seconds: float) -> ColumnElement[bool]:
    return type_coerce(nodes.c.heartbeat_at, BigInteger) > NOW_US - int(silent_after_seconds * 1_000_000)
