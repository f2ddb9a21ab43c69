"""Removes records that only say what once was: nodes that are gone, and revoked keys."""

from __future__ import annotations

from belljar.control.maintenance.service import Context, Result
from belljar.control.store.maintenance import ServiceRun
from belljar.system.removal import Extent


class NodeCleaner:
    """Nodes that have not been heard of for long."""

    name = "nodes"
    every_seconds = 3600.0

    async def run(self, context: Context, record: ServiceRun) -> Result:
        before = context.before(context.settings.keep_gone_nodes_days)
        if before is None:
            return Result()
        return Result(removed=Extent(await context.retention.gone_nodes(before, remove=not context.dry_run)))


class KeyCleaner:
    """Keys that were revoked long ago."""

    name = "keys"
    every_seconds = 3600.0

    async def run(self, context: Context, record: ServiceRun) -> Result:
        before = context.before(context.settings.keep_revoked_keys_days)
        if before is None:
            return Result()
        return Result(removed=Extent(await context.retention.revoked_keys(before, remove=not context.dry_run)))
